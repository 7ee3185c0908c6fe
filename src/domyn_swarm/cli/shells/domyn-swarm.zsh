# Completion of domyn-swarm for zsh: the program is asked at each TAB.

(( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit }

_domyn_swarm_completion() {
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX" program=${words[1]/#\~\//$HOME/} one
    local -a found
    for one in "${(@f)$(_DOMYN_SWARM_COMPLETE=complete_fish _DSWARM_COMPLETE=complete_fish \
        _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=$line $program 2>/dev/null)}"; do
        [[ -z $one ]] || found+=("${${one%%$'\t'*}//:/\\:}${${(M)one%$'\t'*}/$'\t'/:}")
    done
    [[ $PREFIX == -*=* ]] && compset -P '*='
    if (( $#found )); then
        _describe -V domyn-swarm found
    else
        _files
    fi
}

compdef _domyn_swarm_completion domyn-swarm dswarm
