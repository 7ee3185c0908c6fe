"""`PoolService`: several swarms of one file, handled together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from domyn_swarm.config.mistakes import config_error
from domyn_swarm.config.pool_file import PooledSwarm, load_pool
from domyn_swarm.errors import ConfigError, Mistake, SwarmNotFound
from domyn_swarm.model import Record
from domyn_swarm.services.requests import DownResult
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.launch import prepare
from domyn_swarm.swarm.pool import OnPoolChange, PooledLaunch, PoolLauncher, PoolOutcome
from domyn_swarm.swarm.snapshot import SwarmSnapshot

_AT_ONCE = 8
_T = TypeVar("_T")


class PoolUpRequest(Record):
    """The request to bring a pool up."""

    max_parallel: int | None = None  # None: the file's value
    wait: bool = True
    timeout_s: float | None = None  # for each swarm, the queue included
    all_or_nothing: bool = False


@dataclass(frozen=True)
class PoolLaunch:
    """A pool's file, with the launch of each of its swarms."""

    name: str
    max_parallel: int
    swarms: tuple[PooledLaunch, ...]


class PoolUpReport(Record):
    """The result for each swarm of a pool."""

    schema_version: Literal[1] = 1
    pool: str
    swarms: tuple[PoolOutcome, ...]
    interrupted: bool  # then launched swarms keep running

    @property
    def whole(self) -> bool:
        """Whether every swarm is up, or launched."""
        return all(one.outcome in ("up", "launched", "already_up") for one in self.swarms)


class PooledSnapshot(Record):
    """One swarm of a pool; without a snapshot if there never was a swarm of that name."""

    name: str
    config: Path
    snapshot: SwarmSnapshot | None


class PoolStatus(Record):
    """The present state of a pool."""

    schema_version: Literal[1] = 1
    pool: str
    swarms: tuple[PooledSnapshot, ...]


class PoolDownReport(Record):
    """The result of `pool down`; swarms that did not exist are left out."""

    schema_version: Literal[1] = 1
    pool: str
    swarms: tuple[DownResult, ...]


class PoolService:
    """The operations on pools that commands use."""

    def __init__(self, store: SwarmStore | None = None) -> None:
        self._store = store or SwarmStore.open()
        self._swarms = SwarmService(self._store)

    @staticmethod
    def prepare(file: Path) -> PoolLaunch:
        """The launches of the pool in a file. Starts nothing, and opens no database.

        Raises:
            ConfigError: every mistake in it and in the configurations it names.
        """
        pool = load_pool(file)
        launches: list[PooledLaunch] = []
        mistakes: list[Mistake] = []
        for swarm in pool.swarms:
            try:
                launches.append(PooledLaunch(swarm.path, prepare(swarm.config)))
            except ConfigError as error:
                words = " ".join(str(error).split("\n"))
                mistakes.append(Mistake(str(swarm.path), "", f"{swarm.name}: {words}"))
        if mistakes:
            raise config_error(mistakes, file)
        return PoolLaunch(pool.name, pool.max_parallel, tuple(launches))

    def up(
        self, pool: PoolLaunch, request: PoolUpRequest, *, on_change: OnPoolChange | None = None
    ) -> PoolUpReport:
        """Bring a pool up, or its missing swarms; see `PoolLauncher.up`."""
        launcher = PoolLauncher(
            self._store,
            max_parallel=request.max_parallel or pool.max_parallel,
            wait_ready=request.wait,
            timeout_s=request.timeout_s,
            on_change=on_change,
        )
        outcomes, interrupted = launcher.up(pool.swarms, all_or_nothing=request.all_or_nothing)
        return PoolUpReport(pool=pool.name, swarms=tuple(outcomes), interrupted=interrupted)

    def status(self, file: Path) -> PoolStatus:
        """The present state of every swarm of a pool, all asked at once.

        Raises:
            ConfigError: the file, or a configuration it names, is wrong.
        """
        pool = load_pool(file)
        return PoolStatus(pool=pool.name, swarms=tuple(_at_once(self._look, pool.swarms)))

    def _look(self, swarm: PooledSwarm) -> PooledSnapshot:
        try:
            snapshot = self._swarms.status(swarm.name)
        except SwarmNotFound:
            snapshot = None
        return PooledSnapshot(name=swarm.name, config=swarm.path, snapshot=snapshot)

    def down(self, file: Path) -> PoolDownReport:
        """Stop every swarm of a pool and verify it; one that cannot be stopped does not keep the
        others.

        Raises:
            ConfigError: the file, or a configuration it names, is wrong.
        """
        pool = load_pool(file)
        results = [one for found in _at_once(self._stop, pool.swarms) for one in found]
        return PoolDownReport(pool=pool.name, swarms=tuple(results))

    def _stop(self, swarm: PooledSwarm) -> tuple[DownResult, ...]:
        try:
            return self._swarms.down([swarm.name])
        except SwarmNotFound:
            return ()


def _at_once(act: Callable[[PooledSwarm], _T], swarms: Sequence[PooledSwarm]) -> list[_T]:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pool") as threads:
        return list(threads.map(act, swarms))
