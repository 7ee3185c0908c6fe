"""Which versions would be installed, without installing them: uv's resolver."""

from __future__ import annotations

import sys
from pathlib import Path

from install.packages import CONSTRAINTS, ROOT, pins, run

_PROJECT = ROOT / "pyproject.toml"
_RESOLVE = (
    *(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet"),
    *("--python", sys.executable, "--only-binary", ":all:", "--no-annotate", "--no-header"),
)
_CONSTRAINED = ("-c", CONSTRAINTS)


def resolved(
    folder: Path, requirement: str, *, constrained: bool = True, python: str | None = None
) -> dict[str, str]:
    """What a requirement comes to, from wheels alone; packages given by their file are left out.

    Args:
        folder: where to write the requirement down.
        requirement: as one gives it to pip.
        constrained: by `constraints.txt`.
        python: another version of Python, which need not be installed.
    """
    wanted = folder / "wanted.in"
    wanted.write_text(requirement + "\n", encoding="utf-8")
    held = _CONSTRAINED if constrained else ()
    version = ("--python-version", python) if python else ()
    return pins(run(*_RESOLVE, *held, *version, wanted))


def of_development(*extras: str) -> dict[str, str]:
    """What the group `dev` and these extras come to, constrained."""
    return pins(
        run(*_RESOLVE, *_CONSTRAINED, *_named(extras), "--group", "dev", _PROJECT, cwd=ROOT)
    )


def lowest(*extras: str) -> str:
    """The lowest versions of the direct dependencies that `pyproject.toml` allows and the newest of
    all others, as a file of constraints.
    """
    return run(*_RESOLVE, "--resolution", "lowest-direct", *_named(extras), _PROJECT)


def _named(extras: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for extra in extras for word in ("--extra", extra))
