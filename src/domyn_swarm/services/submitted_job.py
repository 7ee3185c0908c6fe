"""`SubmittedJob`: a job that was submitted, as a Python object."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from domyn_swarm.errors import ConfigError, StateError, interrupted, quantity
from domyn_swarm.model import JobHandle
from domyn_swarm.paths import expanded

if TYPE_CHECKING:
    from domyn_swarm.jobs.progress_display import Progress
    from domyn_swarm.services.report_records import JobReport
    from domyn_swarm.swarm.snapshot import JobSnapshot


class SubmittedJob(JobHandle):
    """A job that was submitted: the result of `submit_job`, or an earlier job by `attach`.

    It works in any process with the same `$DOMYN_SWARM_HOME`, on every platform, and can be
    pickled. As JSON (`model_dump_json()`) it is what `job submit` prints and `--handle-json` takes.
    """

    @classmethod
    def attach(cls, job_id: str) -> Self:
        """A job of the state database, by its id or its external id, in any process.

        Raises:
            JobNotFound: there is none of that id.
            StateError: it is not known yet whether its platform has it.
        """
        from domyn_swarm.services.jobs import JobService

        handle = JobService().handle(job_id)
        if handle is None:
            raise StateError(
                f"The job {job_id} is being submitted: its platform has not answered yet.",
                hint=f"Try again in a while; see `domyn-swarm job status {job_id}`.",
            )
        return cls.of(handle)

    @classmethod
    def of(cls, handle: JobHandle) -> Self:
        """The job of a handle, as `JobService.submit` returns it."""
        return cls.model_validate(handle.model_dump())

    def status(self) -> JobSnapshot:
        """The present state, from its platform: status, settled rows, why it waits.

        Raises:
            PlatformError: whether its platform has it cannot be asked.
        """
        from domyn_swarm.services.jobs import JobService

        return JobService().status(self)

    def wait(self, *, timeout_s: float | None = None, progress: bool = True) -> JobSnapshot:
        """Wait until it has ended, or the time is up; return its state then.

        The result is in `.status` of the returned object (`succeeded`, `partial` if some rows
        failed, `failed`, …); a failure raises nothing. Ctrl-C ends the wait, not the job.

        Args:
            timeout_s: seconds to wait at most. None: without limit.
            progress: show the job's progress: a bar in a notebook, a line in a terminal.

        Raises:
            PlatformError: whether its platform has it cannot be asked.
        """
        try:
            return self._followed(timeout_s, progress=progress)
        except KeyboardInterrupt:
            raise interrupted(
                f"Interrupted: the job {self.job_id} keeps running. "
                f"SubmittedJob.attach({self.job_id!r}) is it again: .wait() waits for it, "
                ".cancel() ends it."
            ) from None

    def cancel(self) -> JobSnapshot:
        """End this job only; settled rows are kept, and `job resume` continues from there.

        Raises:
            RunsElsewhere: it can only be ended from another host or cluster.
            PlatformError: it still runs.
        """
        from domyn_swarm.services.jobs import JobService

        return JobService().cancel(self)

    def results(self, *, partial: bool = False, arrow: bool = False) -> Any:  # noqa: ANN401 - pandas is optional
        """Its output as a pandas `DataFrame`, or as an Arrow table.

        Args:
            partial: the rows settled so far, whether or not the job runs.
            arrow: return a `pyarrow.Table`, which needs nothing else.

        Raises:
            ConfigError: pandas is not installed.
            SwarmError: the job has not published (without `partial`), or it cannot be read.
        """
        from domyn_swarm.batch.column_values import as_text, without_json
        from domyn_swarm.data.registry import backend_named
        from domyn_swarm.services.jobs import JobService

        if not arrow and importlib.util.find_spec("pandas") is None:
            raise ConfigError(
                "Results as a DataFrame need pandas, which is not installed.",
                hint="pip install 'domyn-swarm[pandas]', or ask for arrow=True.",
            )
        table = JobService().results(self, partial=partial)
        if arrow:
            return table
        batches = map(as_text, table.to_batches())
        return backend_named("pandas").build(without_json(table.schema), batches, None)

    def report(self, path: str | Path | None = None) -> JobReport:
        """Write a report about it, running or ended: one HTML file, whose path is `.path` of the
        result.

        Args:
            path: the file. None: in the job's folder.

        Raises:
            SwarmError: the job's files cannot be read, or the page cannot be written.
        """
        from domyn_swarm.services.jobs import JobService

        output = None if path is None else expanded(path)
        return JobService().report(self, output=output)

    def _followed(self, timeout_s: float | None, *, progress: bool) -> JobSnapshot:
        """The job once it has ended or the time is up, with its progress shown meanwhile."""
        from domyn_swarm.jobs.progress_display import progress_display
        from domyn_swarm.services.jobs import JobService

        display = progress_display(shown=progress)
        said: list[str] = []
        last: JobSnapshot | None = None

        def show(seen: JobSnapshot) -> None:
            nonlocal last
            if seen.message and seen.message not in said[-1:] and not seen.status.final:
                said.append(seen.message)
                display.notice(f"{seen.job_id}: {seen.message}")
            display.draw(_progress(seen))
            last = seen

        try:
            return JobService().wait(self, timeout_s=timeout_s, on_progress=show)
        finally:
            display.end(None if last is None else _progress(last))

    @override
    def __repr__(self) -> str:
        where = "an endpoint" if self.swarm is None else f"swarm {self.swarm!r}"
        return f"<SubmittedJob {self.job_id!r} of {where}, {self.platform}>"

    __str__ = __repr__


def followed(submitted: SubmittedJob, *, progress: bool) -> JobSnapshot:
    """Wait for the end of a job that nobody follows but its caller: Ctrl-C ends it, too."""
    try:
        return submitted.wait(progress=progress)
    except KeyboardInterrupt:
        try:
            left = submitted.cancel()
        except KeyboardInterrupt:
            raise interrupted(
                f"Interrupted: the job {submitted.job_id} finishes the rows in flight and stops. "
                "The same call continues from there."
            ) from None
    kept = quantity(left.rows_done, "row that is done is", "rows that are done are")
    raise interrupted(
        f"Interrupted: the job {left.job_id} has stopped, and its {kept} kept. "
        "The same call continues from there."
    )


def _progress(seen: JobSnapshot) -> Progress:
    from domyn_swarm.jobs.progress_display import Progress

    return Progress(
        f"{seen.name} {seen.status.value}",
        seen.rows_done,
        seen.rows_total,
        resumed=seen.rows_resumed,
        failed=seen.rows_failed,
        verdicts=seen.verdicts,
        rows_per_s=seen.rows_per_s,
        left=seen.time_left,
        remark=seen.message,
    )
