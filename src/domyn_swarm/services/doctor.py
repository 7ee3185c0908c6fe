"""`doctor`: whether this machine and the site can do what a configuration asks, and what to do."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from domyn_swarm import __version__
from domyn_swarm.backends.checks import Check, check_folder, check_private, failed, ok, warning
from domyn_swarm.config import load
from domyn_swarm.config.defaults import check_defaults
from domyn_swarm.config.loading import defaults_path
from domyn_swarm.errors import ConfigError, PlatformError, SwarmError
from domyn_swarm.model import Record
from domyn_swarm.paths import checkpoints_dir, home
from domyn_swarm.services.lock_check import check_locks
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
    """Look at this machine, and with a configuration at what it asks for. Starts nothing."""
    checks = [*_machine(), *_defaults()]
    if config is not None:
        checks += _swarm(config)
    return Examination(checks=tuple(checks))


def _machine() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("domyn-swarm", f"{__version__}, Python {python} at {sys.executable}")
    yield check_folder("home", home(), "DOMYN_SWARM_HOME")
    if home().is_dir():
        yield check_private("privacy", home(), "keys and records")
    variables = home() / ".env"
    if variables.is_file():
        yield check_private("privacy", variables, "what you put there, tokens perhaps")
    yield check_locks(home())
    try:
        swarms = SwarmStore.open().swarms()
        yield ok("database", f"{len(swarms)} live swarms")
    except SwarmError as error:
        yield failed("database", error.message, error.hint or "See `domyn-swarm db --help`.")
    if importlib.util.find_spec("smg") is None:
        yield failed("router", "the package smg is missing", "pip install smg")
    else:
        yield ok("router", "smg is installed")


def _defaults() -> Iterator[Check]:
    """The defaults file by itself: a mistake there is one of every swarm."""
    path = defaults_path()
    if not path.exists():
        named = bool(os.environ.get("DOMYN_SWARM_DEFAULTS"))
        fix = "Correct or unset DOMYN_SWARM_DEFAULTS, or run `domyn-swarm init defaults`."
        yield (
            failed("defaults", f"there is no {path}", fix)
            if named
            else ok("defaults", f"none ({path})")
        )
        return
    try:
        check_defaults(path)
    except ConfigError as error:
        yield from _mistakes("defaults", error)
        return
    yield ok("defaults", f"{path} is valid")


def _mistakes(name: str, error: ConfigError) -> Iterator[Check]:
    fix = error.hint or "Correct it."
    if not error.mistakes:
        yield failed(name, error.message, fix)
    for mistake in error.mistakes:
        yield failed(name, str(mistake), fix)


def _checkpoints(home_directory: Path) -> Check:
    """Where finished rows are kept: one place for all swarms, so that another one may go on.
    Whoever puts a swarm's files on another file system may have little room there.
    """
    folder = checkpoints_dir()
    if _device(folder) == _device(home_directory):
        return ok("checkpoints", f"finished rows are kept in {folder}")
    return warning(
        "checkpoints",
        f"finished rows are kept in {folder}, which is on another file system than the "
        f"home_directory {home_directory}: its quota has to hold all answers",
        "Set DOMYN_SWARM_HOME to a folder with room for them, or give each job a --checkpoint-dir.",
    )


def _device(folder: Path) -> int:
    return next(one for one in (folder, *folder.parents) if one.exists()).stat().st_dev


def _swarm(path: Path) -> Iterator[Check]:
    try:
        config = load(path).config
    except ConfigError as error:
        yield from _mistakes("configuration", error)
        return
    try:
        plan, context = SwarmLifecycle.plan(config)
    except ConfigError as error:  # the engine, its model, or the layout
        yield from _mistakes("configuration", error)
        return
    yield ok("configuration", f"{path} is valid")
    yield _checkpoints(plan.home_directory)
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
