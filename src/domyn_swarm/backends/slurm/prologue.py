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
_LOAD = """\
module load {module} || {{
    echo "domyn-swarm: $(uname -n) cannot load the module" {module}: see backend.modules >&2
    exit 1
}}
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
