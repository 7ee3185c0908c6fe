# Completion of domyn-swarm for fish: the program is asked at each TAB.

function __domyn_swarm_completion
    set -l program (string replace -r '^~/' "$HOME/" (commandline -opc)[1])
    set -l word (commandline -ct)
    set -l option (string match -r -- '^--[^=]+=' $word; or echo)
    set -lx _DOMYN_SWARM_COMPLETE complete_fish
    set -lx _DSWARM_COMPLETE complete_fish
    set -lx _TYPER_COMPLETE_FISH_ACTION get-args
    set -lx _TYPER_COMPLETE_ARGS (commandline -cp | string collect)
    set -l found ($program 2>/dev/null)
    if test -z "$found"
        set found (__fish_complete_path (string replace -- "$option" '' $word))
    end
    printf '%s\n' $option$found
end

complete -c domyn-swarm -f -a '(__domyn_swarm_completion)'
complete -c dswarm -f -a '(__domyn_swarm_completion)'
