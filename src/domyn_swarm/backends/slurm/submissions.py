"""Submissions of a swarm's jobs that Slurm may have accepted without an answer: the caller got none
in time, or was killed before it recorded the answer. The job may appear in the queue much later. It
is recognized by the swarm's tag; if the site removes that, by its id if one was returned, else by
its output file, which is in the swarm's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.backends.slurm.queue import TaggedJob, shows_comment, tagged
from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.errors import CommandMissing, PlatformError, SubmitRejected
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

TAKEN_WITHIN_S = 300.0  # a job that is not in the queue by then was not accepted

Kind = Literal["endpoint", "replica"]
_KINDS: tuple[Kind, ...] = ("endpoint", "replica")

_ARRAY_HINT = (
    "Each replica is a task of an array: MaxArraySize (`scontrol show config`) is more than the "
    "number of replicas can be."
)
_PER_TASK = re.compile(r"backends\.slurm\.replica_task .* '?(\d+)'?$", re.MULTILINE)
_DEPENDS = re.compile(r"^#SBATCH.*\s(?:--dep|-d)", re.MULTILINE)  # by a site's preamble or template


class _UnderWay(NamedTuple):
    """The file about a submission under way."""

    before: frozenset[str]  # jobs of the kind that existed before it
    answered: str | None  # the new job's id


class Submissions:
    """The submissions of one swarm. From before each submission until its answer is recorded, a
    file holds that it is under way, which jobs of its kind existed before, and then the answer.
    """

    def __init__(self, slurm: Scheduler, paths: SwarmPaths, clock: Clock) -> None:
        self._slurm = slurm
        self._paths = paths
        self._clock = clock

    def submit(
        self,
        kind: Kind,
        array: Sequence[int] | None = None,
        *,
        before: Iterable[TaggedJob] = (),
        after: str | None = None,
    ) -> str:
        """Submit the script of a kind of jobs, with `array` for these of its tasks, and return the
        new job's id; the caller records it and calls `recorded`. `before`: the swarm's jobs so far;
        `after`: a job that must have started first, unless the script names its own dependency.

        Raises:
            PlatformError: as `Slurm.submit`.
        """
        paths = self._paths
        script = paths.endpoint_script if kind == "endpoint" else paths.replica_script
        under_way = paths.submitting(kind)
        known = " ".join(one.job.id for one in before if one.kind == kind)
        write_private(under_way, known)
        try:
            own = _DEPENDS.search(script.read_text("utf-8"))
            job = self._slurm.submit(script, array=array, after=None if own else after)
        except (SubmitRejected, CommandMissing) as error:
            under_way.unlink(missing_ok=True)
            if "array" in error.message:
                error.hint = f"{error.hint} {_ARRAY_HINT}"
            raise
        write_private(under_way, f"{known}\n{job}")
        return job

    def recorded(self, kind: Kind) -> None:
        """Mark the answer as recorded in the swarm's record."""
        self._paths.submitting(kind).unlink(missing_ok=True)

    def unanswered(self, jobs: Sequence[TaggedJob]) -> Kind | None:
        """A kind of jobs that Slurm may yet accept: submitted recently, without an answer, and not
        among these jobs of the queue. None: nothing is pending.
        """
        for kind in _KINDS:
            under_way = self._under_way(kind)
            if under_way is None or under_way.answered is not None:
                continue
            age_s = self._clock.time() - self._paths.submitting(kind).stat().st_mtime
            if not self._came(kind, under_way, jobs) and age_s < TAKEN_WITHIN_S:
                return kind
        return None

    def untagged(
        self, queue: Mapping[str, SlurmJob], shown: Sequence[TaggedJob]
    ) -> list[TaggedJob]:
        """The jobs of unrecorded submissions among the jobs of the queue that do not show the
        swarm's tag; `shown` are those that do.

        Raises:
            PlatformError: Slurm cannot be asked for their output files.
        """
        found = []
        for kind in _KINDS:
            under_way = self._under_way(kind)
            if under_way is None or self._came(kind, under_way, shown):
                continue
            known = under_way.before | {one.job.id for one in shown}
            ids = [one for one in queue if one not in known]
            found += [self._as_tagged(kind, queue[one]) for one in self._of(kind, under_way, ids)]
        return found

    def _of(self, kind: Kind, under_way: _UnderWay, ids: Sequence[str]) -> list[str]:
        """Those of these jobs that a submission created."""
        if under_way.answered is not None or not ids:
            return [one for one in ids if one.partition("_")[0] == under_way.answered]
        logs = self._paths.endpoint_log if kind == "endpoint" else self._paths.slurm_logs
        printed = self._slurm.outputs(ids)
        return [one for one in ids if printed.get(one, "").replace("%%", "%").startswith(str(logs))]

    @staticmethod
    def _came(kind: Kind, under_way: _UnderWay, jobs: Iterable[TaggedJob]) -> bool:
        return any(one.kind == kind and one.job.id not in under_way.before for one in jobs)

    def _as_tagged(self, kind: Kind, job: SlurmJob) -> TaggedJob:
        if kind == "endpoint":
            return TaggedJob(kind, job)
        task = job.id.partition("_")[2]
        group = int(task) if task.isdecimal() else 0
        return TaggedJob(kind, job, group, replicas_per_task(self._paths))

    def _under_way(self, kind: Kind) -> _UnderWay | None:
        try:
            lines = self._paths.submitting(kind).read_text("utf-8").split("\n")
        except FileNotFoundError:
            return None
        return _UnderWay(frozenset(lines[0].split()), lines[1] if len(lines) > 1 else None)


def replicas_per_task(paths: SwarmPaths) -> int:
    """How many replicas share a task, according to the kept script."""
    said = _PER_TASK.search(paths.replica_script.read_text("utf-8"))
    return int(said[1]) if said else 1


def warn_of_hidden(slurm: Scheduler, tag: str, job: str) -> None:
    """Warn of what will not work if a job that was just submitted does not show its swarm's tag."""
    try:
        seen = slurm.queue(at_most_s=0.0).get(job)
    except PlatformError:
        return
    if seen is None or shows_comment(seen, tag):
        return
    _log.warning("this site changes comments: that of job %s is %r now", job, seen.comment)
    if not tagged([seen], tag):
        _log.warning(
            "it changes names too (%r): no lost replica or endpoint is replaced, and jobs need "
            "--placement job",
            seen.name,
        )
