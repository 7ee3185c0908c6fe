"""The meaning of Slurm's states. Pure: text in, records out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from domyn_swarm.backends.slurm.reasons import explained, never_runs
from domyn_swarm.probing import Observation, Phase

_WAITING = frozenset(
    {
        *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"),
        *("SUSPENDED", "RESV_DEL_HOLD"),
    }
)
_GOING = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED"})
_UNTOUCHED = frozenset({"RUNNING", "SIGNALING", "RESIZING"})
_ENDED = frozenset({"COMPLETED", "CANCELLED"})
# Ended through no fault of the program. Slurm requeues some of these itself, where it may.
LOST = frozenset({"TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"})
BROKEN = frozenset({"FAILED", "OUT_OF_MEMORY"})  # ended on purpose: COMPLETED, CANCELLED
_FAILED = LOST | BROKEN | {"DEADLINE", "REVOKED"}
_SAYS_NOTHING = ("", "NonZeroExitCode")  # reasons of a failed job that explain nothing
_MEANS = {
    "TIMEOUT": "reached its time limit",
    "NODE_FAIL": "lost its node",
    "OUT_OF_MEMORY": "ran out of memory",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "could not meet its deadline",
    "PREEMPTED": "was preempted",
    "CANCELLED": "was cancelled",
    "REVOKED": "was revoked",
}


class SlurmJob(NamedTuple):
    """A job, a task of an array, or a step, as `squeue` or `sacct` shows it."""

    id: str  # `17`, `17_3` for a task, `17.0` for a step
    state: str  # in full, for example OUT_OF_MEMORY
    reason: str  # why it waits, or empty
    node: str
    ends_at: str  # as Slurm writes it; N/A while it waits
    comment: str
    name: str = ""

    @property
    def waiting(self) -> bool:
        """Whether it waits for its turn, the first or another one."""
        return self.state in _WAITING

    @property
    def going(self) -> bool:
        """Whether any part of it runs."""
        return self.state in _GOING

    @property
    def runs_on(self) -> bool:
        """Whether it runs and Slurm is not ending it. While a signal is being sent to it, such as
        that of its time limit, its state is SIGNALING.
        """
        return self.state in _UNTOUCHED

    @property
    def over(self) -> bool:
        """Whether no part of it runs, or will run."""
        return self.state in _ENDED or self.state in _FAILED

    @property
    def hopeless(self) -> bool:
        """Whether it waits for something that cannot happen with this configuration."""
        return self.waiting and never_runs(self.reason)

    @property
    def limit(self) -> datetime | None:
        """When it reaches its time limit; None while it waits, and without a limit."""
        return _time(self.ends_at)

    @property
    def observation(self) -> Observation:
        """The state in terms of readiness."""
        if self.waiting:
            why = explained(self.reason or self.state, self.id)
            if self.hopeless:
                return Observation(Phase.FAILED, f"will not run ({why})")
            return Observation(Phase.QUEUED, f"waits in the queue ({why})")
        if self.going:
            return Observation(Phase.READY, f"runs on {self.node}" if self.node else "runs")
        if self.over:
            phase = Phase.STOPPED if self.state in _ENDED else Phase.FAILED
            why = "" if self.reason in _SAYS_NOTHING else f", {self.reason}"
            return Observation(phase, _MEANS.get(self.state, f"ended ({self.state}{why})"))
        return Observation(Phase.UNKNOWN, f"is in the state {self.state}")


class OwnEnd(NamedTuple):
    """What Slurm does with a job that it is ending."""

    state: str
    preempted: bool  # it is ended for another one; not of one that goes back into the queue
    restarts: int  # so often it was started again, the next time included

    @property
    def has_grace(self) -> bool:
        """Whether it may keep running for a while (`GraceTime`)."""
        return self.preempted and self.state in _UNTOUCHED


class Allocation(NamedTuple):
    """The resources of a running job."""

    cpus: int
    memory_mb: int | None  # None: Slurm does not count it here
    ends_at: datetime | None  # None: without a limit


_UNITS_MB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "P": 1024.0**3, "": 1.0}


def parse_allocation(text: str) -> Allocation:
    """The allocation in a line of `scontrol --oneliner show job`."""
    cpus = re.search(r"\bNumCPUs=(\d+)", text)
    # `TRES=` until 23.x; later versions show requested and allocated resources separately
    memory = re.search(r"\b(?:Alloc)?TRES=\S*\bmem=([\d.]+)([KMGTP]?)", text)
    ends = re.search(r"\bEndTime=(\S+)", text)
    return Allocation(
        cpus=int(cpus[1]) if cpus else 1,
        memory_mb=int(float(memory[1]) * _UNITS_MB[memory[2]]) if memory else None,
        ends_at=_time(ends[1]) if ends else None,
    )


def _time(text: str) -> datetime | None:
    """A time as Slurm writes it; None: Unknown, N/A."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None


QUEUE_FORMAT = "%i|%T|%r|%N|%e|%k|%j"
STEP_FORMAT = "%i|RUNNING||%N|N/A|%j"
ACCOUNT_FORMAT = "JobID,State,Reason,NodeList,End,Comment,JobName"
STEP_ACCOUNT_FORMAT = "JobID,State,Reason,NodeList,End,JobName"


def parse_queue(text: str) -> Iterator[SlurmJob]:
    """The jobs in lines of `squeue` or `sacct`; a comment may contain bars."""
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) < 6:
            continue
        identity, state, reason, node, ends_at, text = fields
        comment, bar, name = text.rpartition("|")
        if not bar:  # a step: its name is in place of a comment
            comment, name = text, ""
        word = state.split()[0] if state.split() else ""  # sacct: "CANCELLED by 1000"
        said = "" if reason in ("None", "(null)") else reason
        where = "" if node in ("None assigned", "(null)") else node
        yield SlurmJob(identity, word, said, where, ends_at, comment, name)


def latest(jobs: Iterable[SlurmJob]) -> dict[str, SlurmJob]:
    """Jobs by id; of a job that was requeued, the last line."""
    return {job.id: job for job in jobs}
