"""Retries a replica on other nodes, a few times within an hour, if it did not get ready on its
node: its watchdog reports that, or our program never ran there (no file system, no Python).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from domyn_swarm.backends.endpoint.view import last_view
from domyn_swarm.backends.left_out import LeftOutNodes
from domyn_swarm.backends.slurm.queue import TaggedJob
from domyn_swarm.backends.slurm.recovery import KilledTask
from domyn_swarm.logs import get_logger
from domyn_swarm.model import ReplicaState
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

_MOST = 3  # within the hour for which a node is left out
_MOST_ALONE = 1  # while no other replica serves: the cause may be the same on every node
_WRITTEN_S = 20.0  # what a task wrote at its start is visible here by then


class _Left(NamedTuple):
    """A task that ended on a node on which it never served."""

    job: str
    node: str
    ran: bool  # whether our program ran


class OtherNodes:
    """Covers one swarm whose tasks have one replica each; used by its endpoint program."""

    def __init__(self, paths: SwarmPaths, never_on: str | None, clock: Clock) -> None:
        """`never_on`: nodes that the configuration excludes."""
        self._paths = paths
        self._never_on = [never_on] if never_on else []
        self._clock = clock
        self._nodes = LeftOutNodes(paths, clock)
        self._seen_at: dict[str, float] = {}  # jobs in which our program has not run
        self._settled: set[str] = set()  # jobs of replicas that were given up
        self._given_up: list[int] = []  # and not reported yet

    def excluded(self) -> list[str]:
        """The nodes on which no replica starts now, as a Slurm node list."""
        return [*self._never_on, *sorted({one.node for one in self._nodes.now()})]

    def any_left_out(self) -> bool:
        """Whether more nodes are left out than the configuration excludes."""
        return bool(self._nodes.now())

    def any_over(self) -> bool:
        """Whether the time of a node is over: waiting jobs may start there again after `let_in`."""
        return self._nodes.any_over()

    def let_in(self) -> None:
        """Stop excluding the nodes whose time is over."""
        self._nodes.let_in()

    def given_up(self) -> list[int]:
        """The replicas that have failed permanently since the last call."""
        found, self._given_up = self._given_up, []
        return found

    def wanted(self, replica: int, own: Sequence[TaggedJob]) -> bool:
        """Whether a replica whose tasks are all over gets a successor on another node: its node is
        left out for a while. Otherwise the replica has failed.
        """
        left = self._left(replica, own)
        if left is None:
            return False
        before = [one for one in self._nodes.now() if one.replica == replica]
        before = [one for one in before if one.job != left.job]
        if len(before) < self._most(replica, left):
            self._nodes.leave_out(left.node, replica, left.job, self._reason(replica, left))
            return True
        been = ", ".join([*(one.node for one in before), left.node])
        _log.error("replica %d did not get ready on %s: given up", replica, been)
        self._paths.elsewhere(replica).unlink(missing_ok=True)
        self._settled.add(left.job)
        self._given_up.append(replica)
        return False

    def _left(self, replica: int, own: Sequence[TaggedJob]) -> _Left | None:
        """How its last task ended, if it asks for another node."""
        word = self._paths.elsewhere(replica)
        last = own[-1] if own else None
        with contextlib.suppress(FileNotFoundError):
            job, node = word.read_text("utf-8").split()
            if last is None or last.job.id == job:
                return _Left(job, node, ran=True)
            word.unlink(missing_ok=True)  # of one that has been replaced since
        if last is None or last.per_task > 1 or last.job.state != "FAILED" or not last.job.node:
            return None
        job = last.job.id
        if job in self._settled or KilledTask(self._paths, replica, job, self._clock).began:
            return None
        now = self._clock.monotonic()
        if now - self._seen_at.setdefault(job, now) < _WRITTEN_S:
            return None
        return _Left(job, last.job.node, ran=False)

    def _most(self, replica: int, left: _Left) -> int:
        """How many other nodes it may be tried on."""
        view = last_view(self._paths)
        states = {one.replica: one.state for one in view.replicas} if view else {}
        failed = states.pop(replica, None) is ReplicaState.FAILED
        if ReplicaState.READY in states.values():
            return _MOST
        return 0 if failed or not left.ran else _MOST_ALONE

    def _reason(self, replica: int, left: _Left) -> str:
        if not left.ran:
            return f"the task did not start: see {self._paths.slurm_logs}/replica-{replica}.log"
        view = last_view(self._paths)
        said = [one.reason for one in (view.replicas if view else ()) if one.replica == replica]
        unheard = f"the engine did not get ready: see {self._paths.watchdog_log(replica)}"
        return (said[0] if said else None) or unheard
