"""Replaces what Slurm itself does not bring back: killed tasks and lost endpoints."""

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
from domyn_swarm.backends.slurm.slurm_states import BROKEN, LOST, SlurmJob
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock
from domyn_swarm.restart_budget import RestartBudget, RestartPolicy

_log = get_logger(__name__)

ENDED = " ended"
_LOOKED_S = 120.0  # no queue snapshot is older than that
_OF_TASK = RestartPolicy(most=3, progress_s=3600.0)  # consecutive successors of a killed task
_OF_ENDPOINT = RestartPolicy(most=3, within_s=3600.0)  # successors of a failed job


class KilledTask:
    """A task whose last job is `job`, which failed or is not known any more."""

    def __init__(self, paths: SwarmPaths, task: int, job: str, clock: Clock = time) -> None:
        self._at_work = paths.at_work(task)
        self._replaced = paths.killed(task)
        self._job = job
        self._clock = clock

    @classmethod
    def forgotten(cls, paths: SwarmPaths, task: int, clock: Clock = time) -> KilledTask | None:
        """One of which Slurm knows no job any more, as it does minutes after its end (`MinJobAge`),
        except a task that began a moment ago: the queue snapshot may be older.

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
    def was_killed(self) -> bool:
        """Whether the task was killed and has not been given up."""
        try:
            return self._at_work.read_text("utf-8") == self._job
        except FileNotFoundError:
            return False

    @property
    def began(self) -> bool:
        """Whether our program ever ran in it: on a node where it cannot, no file is written."""
        try:
            return self._at_work.read_text("utf-8").removesuffix(ENDED) == self._job
        except FileNotFoundError:
            return False

    def once_more(self) -> bool:
        """Whether it gets a successor, which is counted; otherwise it is given up permanently."""
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
_GONE_S = 20.0  # not reached for so long; Slurm may act itself
_ASK_S = 30.0  # interval of queries of Slurm, growing: an endpoint may wait for hours
_ASK_MAX_S = 600.0
_SHARED = 1 / 8  # of a pause: within it, one task's query serves all
_CLAIMED_S = 120.0  # submitting takes less; a claimant that has not submitted by then was killed
_MOST_CLAIMS = 3  # per lost job
_OVER_S = 300.0  # not resubmitted for so long, as far as the asking tasks observed


def comes_back(paths: SwarmPaths, ended: SlurmJob, clock: Clock) -> bool:
    """Whether an endpoint's job that is over gets a successor: not if it was cancelled, or has
    failed a few times recently.
    """
    if ended.state not in BROKEN:
        return ended.state in LOST
    pattern = paths.endpoint_successor("*")
    failed_at: list[float] = []
    for claim in pattern.parent.glob(pattern.name):
        with contextlib.suppress(FileNotFoundError):  # undone, because its successor was refused
            if claim.read_text("utf-8") in BROKEN:
                failed_at.append(claim.stat().st_mtime)
    return not RestartBudget(_OF_ENDPOINT, failed_at).exhausted(clock.time())


class LostEndpoint:
    """Checks for one task, whenever it is called and a check is due. An endpoint that is not
    reached for `gone_s` may be lost. All tasks see that at the same moment, so each waits for a
    random time of up to `gone_s`, and asks Slurm only if no other task has just done so.
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
        self.over = False  # permanently, so that the task ends
        self._expect(clock.monotonic())

    def _expect(self, reached_at: float) -> None:
        self._rest_s = _ASK_S
        patience_s = self._gone_s * random.uniform(1.0, 2.0)  # noqa: S311
        self._next_question = reached_at + patience_s

    def look(self) -> None:
        """Resubmit the endpoint's script if the endpoint was lost. Raises nothing."""
        now = self._clock.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        try:
            self._look(now)
        except (PlatformError, OSError, ValueError, KeyError) as error:
            _log.warning("cannot check on the endpoint now: %s", error)
        except Exception:  # noqa: BLE001 - engines are not to end for it
            _log.exception("cannot check on the endpoint now")

    def _look(self, now: float) -> None:
        if self._reached():
            self._expect(now)
            if self._paths.endpoint_over.exists():  # it has been resubmitted
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
        try:  # plain JSON: the model's imports cost more than a task's
            address = json.loads(self._paths.endpoint.read_text("utf-8"))
            place = urlsplit(address["collector_url"] or "")
            socket.create_connection((place.hostname or "", place.port or 0), _CONNECT_S).close()
        except (OSError, ValueError, KeyError):
            return False
        return True

    def _is_first_to_ask(self, within_s: float) -> bool:
        """Whether no other task has asked recently: of a thousand that see the loss, a few ask."""
        asked = self._paths.endpoint_asked
        with contextlib.suppress(OSError):  # then each asks for itself
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
        """Record for all tasks since when the endpoint is over, and later that they are to end.
        Slurm forgets such a job meanwhile (`known`); one that it never showed proves nothing.
        """
        note, now = self._note(), self._clock.time()
        if note is None and known:
            self._write_note({"tag": self._tag(), "since": now, "ends": False})
        elif note is not None and not note["ends"] and now - note["since"] >= _OVER_S:
            _log.warning("the endpoint is over and was not resubmitted: the replicas end")
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
        except (PlatformError, OSError):  # repeated later, by any task
            claim.unlink(missing_ok=True)
            raise

    def _claimed(self, lost: SlurmJob) -> Path | None:
        """A claim that only this task holds; None while another task's claim is valid. The claim of
        a task that was killed before its successor appeared is left behind: the next claim has
        another name, so that of several tasks that see this, one gets it.
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
