"""Submissions of a swarm's jobs that Slurm may have taken without saying so: whoever submitted got
no answer in time, or was killed while it waited for one. The job may be in the queue much later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from domyn_swarm.backends.slurm.scheduler import Scheduler
from domyn_swarm.backends.slurm.tagged import TaggedJob, shows_comment, tagged
from domyn_swarm.errors import CommandMissing, PlatformError, SubmitRejected
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

TAKEN_WITHIN_S = 300.0  # what is not in the queue by then was not taken

Kind = Literal["endpoint", "replica"]
_KINDS: tuple[Kind, ...] = ("endpoint", "replica")

_ARRAY_HINT = (
    "Each replica is a task of an array: MaxArraySize (`scontrol show config`) is more than the "
    "number of replicas can be."
)
_DEPENDS = re.compile(r"^#SBATCH.*\s(?:--dep|-d)", re.MULTILINE)  # by a site's preamble or template


class Submissions:
    """Of one swarm. From before each submission until its answer a file says that it is under way,
    and which jobs of its kind there were before.
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
        """Submit the script of a kind of jobs, with `array` for these of its tasks; the new job's
        id. `before`: what there is of the swarm already; `after`: a job that must have started
        first, unless the script names a dependency of its own.

        Raises:
            PlatformError: as `Slurm.submit`.
        """
        paths = self._paths
        script = paths.endpoint_script if kind == "endpoint" else paths.replica_script
        under_way = paths.submitting(kind)
        write_private(under_way, " ".join(one.job.id for one in before if one.kind == kind))
        try:
            own = _DEPENDS.search(script.read_text("utf-8"))
            job = self._slurm.submit(script, array=array, after=None if own else after)
        except (SubmitRejected, CommandMissing) as error:
            under_way.unlink(missing_ok=True)
            if "array" in error.message:
                error.hint = f"{error.hint} {_ARRAY_HINT}"
            raise
        under_way.unlink(missing_ok=True)
        return job

    def unanswered(self, jobs: Sequence[TaggedJob]) -> Kind | None:
        """A kind of jobs that Slurm may yet take: submitted lately, without an answer, and not
        among these of the queue. None: there is nothing to come.
        """
        for kind in _KINDS:
            try:
                before = set(self._paths.submitting(kind).read_text("utf-8").split())
                age_s = self._clock.time() - self._paths.submitting(kind).stat().st_mtime
            except FileNotFoundError:
                continue
            came = any(one.kind == kind and one.job.id not in before for one in jobs)
            if not came and age_s < TAKEN_WITHIN_S:
                return kind
        return None


def warn_of_hidden(slurm: Scheduler, tag: str, job: str) -> None:
    """Say what will not work where a job that was just submitted does not show its swarm's tag."""
    try:
        seen = slurm.queue(at_most_s=0.0).get(job)
    except PlatformError:
        return
    if seen is None or shows_comment(seen, tag):
        return
    _log.warning("this site changes comments: that of job %s is %r now", job, seen.comment)
    if not tagged([seen], tag):
        _log.warning(
            "it changes names too (%r): no lost replica or endpoint is replaced, jobs need "
            "--placement job, and of an `up` or `scale` that is killed only what was recorded is "
            "known: see `squeue` then",
            seen.name,
        )
