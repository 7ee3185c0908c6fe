"""The installed versions of this program and of the programs that it uses."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from domyn_swarm import __version__
from domyn_swarm.record import Record, field


class Versions(Record):
    """Versions by package name; None: not installed."""

    schema_version: Literal[1] = 1
    domyn_swarm: str = field(name="domyn-swarm")
    python: str
    smg: str | None
    xllamacpp: str | None
    vllm: str | None


def versions() -> Versions:
    """The versions installed in this environment."""
    return Versions(
        domyn_swarm=__version__,
        python=sys.version.split()[0],
        smg=_version_of("smg"),
        xllamacpp=_version_of("xllamacpp"),
        vllm=_version_of("vllm"),
    )


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
