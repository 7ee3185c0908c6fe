"""What a script of ours does on a node before its command: shell, as text. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

# Names of files, prompts and logs are the same on each node, whatever its locale.
_UTF8 = "export PYTHONUTF8=1\n"

# Shells that are not for logins have no `module` on many sites.
_FIND_MODULE = """\
for init in "${LMOD_PKG:-/}/init/bash" "${MODULESHOME:-/}/init/bash" /etc/profile.d/*mod*.sh; do
    type module > /dev/null 2>&1 || [ ! -r "$init" ] || . "$init"
done
type module > /dev/null 2>&1 || {
    echo "domyn-swarm: $(uname -n) has no \\`module\\`, which backend.modules needs" >&2
    exit 1
}
"""
# Environment Modules 3 says that there is no such module, and ends with 0. A module changes the
# shell that loads it, so that what it says goes to a file.
_LOAD = """\
said=$(mktemp 2> /dev/null || mktemp -p /dev/shm 2> /dev/null) || said=/dev/null
module load {module} 2> "$said" && ! grep -q 'Unable to locate a modulefile' "$said" || {{
    cat "$said" >&2
    [ "$said" = /dev/null ] || rm -f "$said"
    echo "domyn-swarm: $(uname -n) cannot load the module" {module}: see backend.modules >&2
    exit 1
}}
cat "$said" >&2
[ "$said" = /dev/null ] || rm -f "$said"
"""


def prologue(modules: Sequence[str], foreign: Sequence[str]) -> str:
    """All of it. `foreign`: variables that are not for the Python that runs then."""
    return load_modules(modules) + _own_python(foreign) + _UTF8


def _own_python(foreign: Sequence[str]) -> str:
    """Keeps these variables from the environment's Python, and the packages of `~/.local`."""
    return f"unset {' '.join(foreign)}\nexport PYTHONNOUSERSITE=1\n" if foreign else ""


def load_modules(modules: Sequence[str]) -> str:
    """Loads environment modules, or ends the script with the one that is not to be had."""
    if not modules:
        return ""
    return _FIND_MODULE + "".join(_LOAD.format(module=shlex.quote(one)) for one in modules)
