"""What comes back although Slurm does not bring it back: killed tasks and lost endpoints."""

from __future__ import annotations

import contextlib
import json
import math
import random
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.backends.slurm.queue import tagged
from domyn_swarm.backends.slurm.states import BROKEN, LOST, SlurmJob
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock
from domyn_swarm.restart_budget import RestartBudget, RestartPolicy

_log = get_logger(__name__)

ENDED = " ended"
_LOOKED_S = 120.0  # no look at the queue is so old
_OF_TASK = RestartPolicy(most=3, progress_s=3600.0)  # successors of a killed one, in a row
_OF_ENDPOINT = RestartPolicy(most=3, within_s=3600.0)  # successors of a job that failed


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
        before = [] if _OF_TASK.is_progress(ran_s) else before
        if self._job in before:  # the successor could not be submitted
            return True
        if not _OF_TASK.allows(len(before)):
            _log.error("%s was killed, as before it %s: given up", self._job, ", ".join(before))
            write_private(self._at_work, f"{self._job}{ENDED}")
            return False
        _log.warning("%s was killed", self._job)
        write_private(self._replaced, "\n".join([*before, self._job]))
        return True


_LOOK_S = 5.0
_CONNECT_S = 3.0
_GONE_S = 20.0  # not reached for so long; Slurm acts itself where it may
_ASK_S = 30.0  # then Slurm is asked, ever more seldom: an endpoint may wait for its turn for hours
_ASK_MAX_S = 600.0
_SHARED = 1 / 8  # of a pause: so long one task's question is that of all
_CLAIMED_S = 120.0  # no claimant takes so long to submit: one that has not by then was killed
_MOST_CLAIMS = 3  # of one lost job
_OVER_S = 300.0  # so long nobody has brought it back, as far as those who ask saw


def comes_back(paths: SwarmPaths, ended: SlurmJob, clock: Clock) -> bool:
    """Whether an endpoint's job that is over gets a successor: not one that somebody ended, nor one
    that has failed a few times lately.
    """
    if ended.state not in BROKEN:
        return ended.state in LOST
    pattern = paths.endpoint_successor("*")
    failed_at: list[float] = []
    for claim in pattern.parent.glob(pattern.name):
        with contextlib.suppress(FileNotFoundError):  # taken back: its successor was refused
            if claim.read_text("utf-8") in BROKEN:
                failed_at.append(claim.stat().st_mtime)
    return not RestartBudget(_OF_ENDPOINT, failed_at).exhausted(clock.time())


class LostEndpoint:
    """Looks from one task, whenever it is called and it is time. An endpoint that is not reached
    for `gone_s` may be lost. The tasks see so at the same moment: each waits a while by chance, up
    to `gone_s` again, and asks Slurm only if no other one has just done so.
    """

    def __init__(
        self,
        paths: SwarmPaths,
        gone_s: float = _GONE_S,
        *,
        slurm: Scheduler | None = None,
        clock: Clock = time,
    ) -> None:
        self._paths = paths
        self._gone_s = gone_s
        self._slurm = slurm or Slurm()
        self._clock = clock
        self._next_look = -math.inf
        self._rest_s = _ASK_S
        self.over = False  # for good, so that the task is to end
        self._expect(clock.monotonic())

    def _expect(self, reached_at: float) -> None:
        self._rest_s = _ASK_S
        patience_s = self._gone_s * random.uniform(1.0, 2.0)  # noqa: S311
        self._next_question = reached_at + patience_s

    def look(self) -> None:
        """Submit the endpoint's script again if it was lost. Raises nothing."""
        now = self._clock.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        try:
            self._look(now)
        except (PlatformError, OSError, ValueError, KeyError) as error:
            _log.warning("cannot look for the endpoint now: %s", error)
        except Exception:  # noqa: BLE001 - engines are not to end for it
            _log.exception("cannot look for the endpoint now")

    def _look(self, now: float) -> None:
        if self._reached():
            self._expect(now)
            if self._paths.endpoint_over.exists():  # somebody has put it back
                self._paths.endpoint_over.unlink(missing_ok=True)
            return
        if now >= self._next_question:
            rest_s = self._rest_s
            self._next_question = now + rest_s * random.uniform(1.0, 1.5)  # noqa: S311
            self._rest_s = min(2 * rest_s, _ASK_MAX_S)
            if self._is_first_to_ask(rest_s * _SHARED):
                self._bring_back()
        note = self._note()
        self.over = note is not None and note["ends"]

    def _reached(self) -> bool:
        try:  # plain JSON: a task does without the models that readers of addresses have
            address = json.loads(self._paths.endpoint.read_text("utf-8"))
            place = urlsplit(address["collector_url"] or "")
            socket.create_connection((place.hostname or "", place.port or 0), _CONNECT_S).close()
        except (OSError, ValueError, KeyError):
            return False
        return True

    def _is_first_to_ask(self, within_s: float) -> bool:
        """Whether no other task has asked lately: of a thousand that see the loss a few ask."""
        asked = self._paths.endpoint_asked
        with contextlib.suppress(OSError):  # each asks for itself then
            if asked.exists() and self._clock.time() - asked.stat().st_mtime < within_s:
                return False
            asked.touch(0o600)
        return True

    def _bring_back(self) -> None:
        jobs = tagged(self._slurm.queue(at_most_s=0.0).values(), self._tag())
        seen = [one.job for one in jobs if one.kind == "endpoint"]
        if any(not job.over for job in seen):
            self._paths.endpoint_over.unlink(missing_ok=True)
        elif seen and comes_back(self._paths, seen[-1], self._clock):
            self._paths.endpoint_over.unlink(missing_ok=True)
            self._succeed(seen[-1])
        else:
            self._note_over(known=bool(seen))

    def _tag(self) -> str:
        return str(json.loads(self._paths.endpoint_spec.read_text("utf-8"))["tag"])

    def _note_over(self, *, known: bool) -> None:
        """Write down for all tasks since when the endpoint is over, and then that they end. Slurm
        forgets such a job meanwhile (`known`); what it never showed says nothing.
        """
        note, now = self._note(), self._clock.time()
        if note is None and known:
            self._write_note({"tag": self._tag(), "since": now, "ends": False})
        elif note is not None and not note["ends"] and now - note["since"] >= _OVER_S:
            _log.warning("the endpoint is over and nobody brings it back: the replicas end")
            self._write_note({**note, "ends": True})

    def _note(self) -> dict[str, Any] | None:
        try:
            note = dict(json.loads(self._paths.endpoint_over.read_text("utf-8")))
        except FileNotFoundError:
            return None
        return note if note["tag"] == self._tag() else None  # of an earlier swarm of the name

    def _write_note(self, note: dict[str, Any]) -> None:
        write_private(self._paths.endpoint_over, json.dumps(note))

    def _succeed(self, lost: SlurmJob) -> None:
        claim = self._claimed(lost)
        if claim is None:
            return
        _log.warning("the endpoint's job %s is gone: it %s", lost.id, lost.observation.detail)
        try:
            claim.write_text(lost.state, "utf-8")
            _log.info("its successor is %s", self._slurm.submit(self._paths.endpoint_script))
        except (PlatformError, OSError):  # another time, whoever it is
            claim.unlink(missing_ok=True)
            raise

    def _claimed(self, lost: SlurmJob) -> Path | None:
        """A claim that is this task's alone; None while another one's is good. That of one who was
        killed before its successor came is left behind: the next claim has another name, so that
        of several who see so one gets it.
        """
        for number in range(_MOST_CLAIMS):
            name = f"{lost.id}-{number}" if number else lost.id
            claim = self._paths.endpoint_successor(name)
            try:
                claim.touch(0o600, exist_ok=False)
            except FileExistsError:
                if self._clock.time() - claim.stat().st_mtime < _CLAIMED_S:
                    return None
            else:
                return claim
        return None
