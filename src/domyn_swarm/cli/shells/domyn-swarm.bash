# Completion of domyn-swarm for bash: the program is asked at each TAB.

_domyn_swarm_completion() {
    local line=${COMP_LINE:0:COMP_POINT} program=${1/#\~\//$HOME/}
    local word=${line##*[[:space:]]} value
    # What bash replaces is the part of the word behind its last = or :.
    [[ $word == -*=* ]] && word=${word#*=}
    local kept=${word%"${word##*[=:]}"}
    COMPREPLY=()
    while IFS=$'\t' read -r value _; do
        [[ -n $value ]] || continue
        printf -v value %q "$value"
        COMPREPLY+=("${value#"$kept"}")
    done < <(_DOMYN_SWARM_COMPLETE=complete_fish _DSWARM_COMPLETE=complete_fish \
        _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=$line "$program" 2>/dev/null)
}

complete -o default -F _domyn_swarm_completion domyn-swarm dswarm
