"""Renders batch scripts: a prologue, and the command of one of our programs. The only module that
uses Jinja for scripts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domyn_swarm.errors import ConfigError

# File names, prompts and logs are the same on each node, whatever its locale.
_UTF8 = "export PYTHONUTF8=1\n"

# On many sites, shells that are not login shells have no `module`.
_FIND_MODULE = """\
for init in "${LMOD_PKG:-/}/init/bash" "${MODULESHOME:-/}/init/bash" /etc/profile.d/*mod*.sh; do
    type module > /dev/null 2>&1 || [ ! -r "$init" ] || . "$init"
done
type module > /dev/null 2>&1 || {
    echo "domyn-swarm: $(uname -n) has no \\`module\\`, which backend.modules needs" >&2
    exit 1
}
"""
# Environment Modules 3 reports a missing module, and ends with 0. A module changes the shell that
# loads it, so its messages go to a file.
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
    """The script's lines before the command. `foreign`: variables to remove for the Python that
    runs then.
    """
    return load_modules(modules) + _own_python(foreign) + _UTF8


def _own_python(foreign: Sequence[str]) -> str:
    """Lines that keep these variables, and the packages of `~/.local`, from the environment's
    Python.
    """
    return f"unset {' '.join(foreign)}\nexport PYTHONNOUSERSITE=1\n" if foreign else ""


def load_modules(modules: Sequence[str]) -> str:
    """Lines that load environment modules, or end the script naming the one that cannot be
    loaded.
    """
    if not modules:
        return ""
    return _FIND_MODULE + "".join(_LOAD.format(module=shlex.quote(one)) for one in modules)


_TEMPLATES = Path(__file__).parent / "templates"
_PLAIN = re.compile(r"[\w.,:/@%+=\[\]*~^()-]+")


@dataclass(frozen=True)
class BatchScript:
    """A script: options for sbatch, an environment, a command."""

    name: str
    comment: str
    output: Path  # may hold Slurm's patterns; the caller doubles `%` of the folder
    command: Sequence[str]
    options: Mapping[str, str | int | None] = field(default_factory=dict)  # None: left out
    flags: Sequence[str] = ()  # options without a value
    preamble: Sequence[str] = ()
    modules: Sequence[str] = ()
    foreign: Sequence[str] = ()  # variables to remove for the Python that runs here
    env: Mapping[str, str] = field(default_factory=dict)

    def render(self, template: str, site_template: Path | None = None) -> str:
        """The script's text.

        Raises:
            ConfigError: the site's template cannot be used, or a value fits no `#SBATCH` line.
        """
        import jinja2

        chosen = _TEMPLATES / template if site_template is None else site_template
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # noqa: S701 - shell, not HTML: every value is quoted
            keep_trailing_newline=True,
        )
        environment.filters["quote"] = shlex.quote
        try:
            return environment.from_string(chosen.read_text("utf-8")).render(self._values())
        except (OSError, jinja2.TemplateError) as error:
            raise ConfigError(
                f"backend.template_path: {chosen} cannot be used: {error}.",
                hint='Begin with a copy of domyn-swarm\'s own: the page "Slurm" of the '
                "documentation shows it.",
            ) from error

    def _values(self) -> dict[str, Any]:
        options = {
            "job-name": self.name,
            "comment": self.comment,
            "output": str(self.output),
            "open-mode": "append",
            **self.options,
        }
        lines = [
            f"--{name}={sbatch_word(name, value)}"
            for name, value in options.items()
            if value is not None
        ]
        return {
            "sbatch": [*lines, *self.flags],
            "preamble": list(self.preamble),
            "modules": list(self.modules),
            "prologue": prologue(self.modules, self.foreign),
            "env": dict(self.env),
            "command": list(self.command),
            "output": str(self.output),
        }


def sbatch_word(name: str, value: str | int) -> str:
    """A value as an `#SBATCH` line takes it: plain, or in double quotes.

    Raises:
        ConfigError: it holds a line break or a control character, which no such line can.
    """
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    if not text.isprintable():
        raise ConfigError(f"{name}: {text!r} holds a line break or a control character.")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
