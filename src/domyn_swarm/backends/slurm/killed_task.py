"""A task of the replicas that was killed, by its node's OOM killer or by somebody. Slurm does not
tell it from one that failed for good: it is one that has not written into its file that it ended.
"""

from __future__ import annotations

import time

from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

ENDED = " ended"
_MOST_IN_A_ROW = 3
_LOOKED_S = 120.0  # no look at the queue is so old
_LONG_S = 3600.0  # one that ran for so long is worth as many successors as the first


class KilledTask:
    """`job` is the last of the task's, and failed or is not known any more."""

    def __init__(self, paths: SwarmPaths, task: int, job: str, clock: Clock = time) -> None:
        self._at_work = paths.at_work(task)
        self._replaced = paths.killed(task)
        self._job = job
        self._clock = clock

    @classmethod
    def forgotten(cls, paths: SwarmPaths, task: int, clock: Clock = time) -> KilledTask | None:
        """One of which Slurm knows no job any more, as it does minutes after its end (`MinJobAge`).

        Not one that began a moment ago: the look at the queue may be older.
        """
        at_work = paths.at_work(task)
        try:
            job, began = at_work.read_text("utf-8"), at_work.stat().st_mtime
        except FileNotFoundError:
            return None
        if job.endswith(ENDED):
            return None
        return cls(paths, task, job, clock) if clock.time() - began >= _LOOKED_S else None

    @property
    def found(self) -> bool:
        """Whether it was killed, and is not given up."""
        try:
            return self._at_work.read_text("utf-8") == self._job
        except FileNotFoundError:
            return False

    @property
    def began(self) -> bool:
        """Whether our program ever ran in it: on a node where it cannot, nothing is written."""
        try:
            return self._at_work.read_text("utf-8").removesuffix(ENDED) == self._job
        except FileNotFoundError:
            return False

    def once_more(self) -> bool:
        """Whether it gets a successor, which is counted; else it is given up, for ever."""
        ran_s = self._clock.time() - self._at_work.stat().st_mtime
        before = self._replaced.read_text("utf-8").split() if self._replaced.exists() else []
        before = [] if ran_s >= _LONG_S else before
        if self._job in before:  # the successor could not be submitted
            return True
        if len(before) >= _MOST_IN_A_ROW:
            _log.error("%s was killed, as before it %s: given up", self._job, ", ".join(before))
            write_private(self._at_work, f"{self._job}{ENDED}")
            return False
        _log.warning("%s was killed", self._job)
        write_private(self._replaced, "\n".join([*before, self._job]))
        return True
