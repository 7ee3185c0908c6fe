"""Brings several swarms up in parallel, and reports the result of each.

A pool has no record of its own: its swarms are found by their names, so that nothing of it is lost
whenever this process ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from domyn_swarm.errors import PlatformError, SwarmError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Record, utc_now
from domyn_swarm.probing import Observation
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.joining import Outcome, SwarmJoining, Waiting
from domyn_swarm.swarm.launch import Launch
from domyn_swarm.swarm.lifecycle import SwarmLifecycle

_log = get_logger(__name__)

OnPoolChange = Callable[[str, Observation], None]
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class PooledLaunch:
    """The launch of one swarm of a pool, and the file it was made from."""

    path: Path
    launch: Launch

    @property
    def name(self) -> str:
        """The swarm's name."""
        return self.launch.name


class PoolOutcome(Record):
    """The result of one swarm of a pool."""

    name: str
    config: Path
    outcome: Literal[
        "up", "launched", "already_up", "failed", "not_started", "interrupted", "stopped"
    ]
    endpoint: str | None = None
    note: str | None = None
    error: str | None = None
    hint: str | None = None


class PoolLauncher:
    """Brings swarms up, a limited number at a time."""

    def __init__(
        self,
        store: SwarmStore,
        *,
        max_parallel: int,
        wait_ready: bool = True,
        timeout_s: float | None = None,
        on_change: OnPoolChange | None = None,
    ) -> None:
        self._store = store
        self._lifecycle = SwarmLifecycle(store)
        self._max_parallel = max_parallel
        self._wait_ready = wait_ready
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._stop = threading.Event()

    def up(
        self, swarms: Sequence[PooledLaunch], *, all_or_nothing: bool
    ) -> tuple[list[PoolOutcome], bool]:
        """Bring them up; a swarm that is already up stays. Returns each one's outcome, and whether
        this was interrupted (Ctrl-C): then launched swarms keep running.

        A failed swarm does not stop the others; with `all_or_nothing` it ends the whole, and the
        swarms that were launched here are stopped again.
        """
        interrupted = False
        threads = ThreadPoolExecutor(self._max_parallel, thread_name_prefix="pool")
        with threads:
            tasks = [threads.submit(self._one, swarm) for swarm in swarms]
            try:
                self._watch(tasks, all_or_nothing=all_or_nothing)
            except KeyboardInterrupt:
                interrupted = True
                self._stop.set()
        outcomes = [task.result() for task in tasks]
        failed = any(one.outcome == "failed" for one in outcomes)
        if all_or_nothing and failed and not interrupted:
            outcomes = [self._taken_back(one) for one in outcomes]
        return outcomes, interrupted

    def _watch(self, tasks: Sequence[Future[PoolOutcome]], *, all_or_nothing: bool) -> None:
        """Return when all are done. The waits are short, so that a signal is handled at once."""
        left = set(tasks)
        while left:
            done, left = wait(left, _LOOK_EVERY_S)
            if all_or_nothing and any(task.result().outcome == "failed" for task in done):
                self._stop.set()

    def _one(self, swarm: PooledLaunch) -> PoolOutcome:
        so_far = PoolOutcome(name=swarm.name, config=swarm.path, outcome="not_started")
        if self._stop.is_set():
            return so_far
        began = utc_now()
        try:
            waiting = Waiting(
                wait=self._wait_ready,
                timeout_s=self._timeout_s,
                on_change=self._hook(swarm.name),
                interrupted=self._stop.is_set,
            )
            outcome = SwarmJoining(self._store).complete(swarm.launch, waiting)
            return so_far.model_copy(update=self._came_up(outcome, swarm))
        except KeyboardInterrupt:  # while it came up, so there is a record
            ours = self._store.swarm(swarm.name).created_at >= began
            return so_far.model_copy(update={"outcome": "interrupted" if ours else "already_up"})
        except SwarmError as error:
            failed = {"outcome": "failed", "error": error.message, "hint": error.hint}
            return so_far.model_copy(update=failed)
        except Exception as error:  # noqa: BLE001 - a bug: the other swarms' outcomes are still returned
            _log.exception("bringing up %s was interrupted", swarm.name)
            notes = " ".join(getattr(error, "__notes__", ()))
            failed = {"outcome": "failed", "error": f"{error!r}", "hint": notes}
            return so_far.model_copy(update=failed)

    def _came_up(self, outcome: Outcome, swarm: PooledLaunch) -> dict[str, object]:
        live = outcome.swarm
        address = None
        with contextlib.suppress(PlatformError):  # it is up all the same
            address = live.backend.address(live.handle)
        found = "up" if self._wait_ready else "launched"
        same = live.plan == swarm.launch.plan
        other = None if same else "it runs as it was launched, not as its file says"
        return {
            "outcome": found if outcome.launched else "already_up",
            "endpoint": None if address is None else address.url,
            "note": other,
        }

    def _hook(self, name: str) -> Callable[[Observation], None] | None:
        report = self._on_change
        return None if report is None else lambda seen: report(name, seen)

    def _taken_back(self, one: PoolOutcome) -> PoolOutcome:
        """Stop the swarms that this call launched; those that were up before stay."""
        if one.outcome not in ("up", "launched", "interrupted"):
            return one
        try:
            self._lifecycle.down(one.name)
        except SwarmError as error:
            failed = {"outcome": "failed", "error": error.message, "hint": error.hint}
            return one.model_copy(update=failed)
        return one.model_copy(update={"outcome": "stopped", "endpoint": None})
