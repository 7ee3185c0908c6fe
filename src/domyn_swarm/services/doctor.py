"""`doctor`: whether this machine and the site can do what a configuration asks, and what to do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from domyn_swarm import __version__
from domyn_swarm.backends.checks import Check, check_folder, failed, ok
from domyn_swarm.config import load
from domyn_swarm.errors import PlatformError, SwarmError
from domyn_swarm.model import Record
from domyn_swarm.paths import home
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import serving_backend
from domyn_swarm.swarm.lifecycle import SwarmLifecycle


class Examination(Record):
    """Everything that `doctor` looked at."""

    schema_version: Literal[1] = 1
    checks: tuple[Check, ...]

    @property
    def well(self) -> bool:
        """Whether nothing will go wrong, as far as was seen."""
        return all(check.status != "failed" for check in self.checks)


def examine(config: Path | None) -> Examination:
    """Look at this machine, and with a configuration at what it asks for. Starts nothing.

    Raises:
        ConfigError: the configuration itself is wrong.
    """
    checks = list(_machine())
    if config is not None:
        checks += _swarm(config)
    return Examination(checks=tuple(checks))


def _machine() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("domyn-swarm", f"{__version__}, Python {python} at {sys.executable}")
    yield check_folder("home", home())
    try:
        swarms = SwarmStore.open().swarms()
        yield ok("database", f"{len(swarms)} live swarms")
    except SwarmError as error:
        yield failed("database", error.message, error.hint or "See `domyn-swarm db --help`.")
    if importlib.util.find_spec("smg") is None:
        yield failed("router", "the package smg is missing", "pip install smg")
    else:
        yield ok("router", "smg is installed")


def _swarm(path: Path) -> Iterator[Check]:
    config = load(path).config
    plan, context = SwarmLifecycle.plan(config)
    yield ok("configuration", f"{path} is valid")
    backend = serving_backend(plan.backend)
    found = list(backend.checks(plan))
    yield from found
    if any(check.status == "failed" for check in found):
        return
    try:
        for said in backend.rehearse(plan, context):
            yield ok("rehearsal", said)
    except PlatformError as error:
        yield failed("rehearsal", error.message, error.hint or "Correct the configuration.")
