"""`DomynLLMSwarm`: a swarm as a Python object, a thin facade over the lifecycle and the jobs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import ConfigError, JobError, StateError
from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.job_access import swarm_access
from domyn_swarm.swarm.job_files import spec_of
from domyn_swarm.swarm.job_request import JobRequest
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.submitter import JobSubmitter
from domyn_swarm.swarm.survey import asked_snapshots, job_snapshot, take_snapshot

if TYPE_CHECKING:
    from domyn_swarm.jobs.base import SwarmJob
    from domyn_swarm.swarm.snapshot import SwarmSnapshot


class DomynLLMSwarm:
    """A swarm for as long as a `with` block, or an existing one by `attach`.

    Entering the block brings the swarm up and waits for it; leaving it, also by an exception,
    brings it down, and so does an interruption while it comes up.
    """

    def __init__(self, cfg: DomynLLMSwarmConfig) -> None:
        self._config: DomynLLMSwarmConfig | None = cfg
        self._swarm: LiveSwarm | None = None
        self._store = SwarmStore.open()
        self._lifecycle = SwarmLifecycle(self._store)

    @classmethod
    def attach(cls, name: str) -> DomynLLMSwarm:
        """A swarm from the state database, in any process.

        Raises:
            SwarmNotFound: there is none of that name.
        """
        found = cls.__new__(cls)
        found._config = None
        found._store = SwarmStore.open()
        found._lifecycle = SwarmLifecycle(found._store)
        found._swarm = found._lifecycle.attach(name)
        return found

    def __enter__(self) -> Self:
        if self._swarm is None and self._config is not None:
            self._swarm = self._lifecycle.up(self._config, keep_interrupted=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def _live(self) -> LiveSwarm:
        if self._swarm is None:
            raise StateError(
                "This swarm is not up.", hint="Use it in a `with` block, or attach to a live one."
            )
        return self._swarm

    @property
    def name(self) -> str:
        """The swarm's name."""
        return self._live.record.name

    @property
    def model(self) -> str:
        """The model it serves."""
        return self._live.plan.model

    def run(self, job: SwarmJob, data: Any, **settings: Any) -> Any:  # noqa: ANN401 - a frame
        """Ask every row of a frame in this process; return a frame of the same kind.

        Args:
            job: the job.
            data: a frame, or the path of files; see `SwarmJob.run`.
            **settings: as `SwarmJob.run`.

        Raises:
            SwarmError: something is wrong with the job or the data (nothing was asked), the swarm
                has no endpoint, or the run cannot go on (what is settled is kept).
        """
        from domyn_swarm.jobs.running import Endpoint, run, settings_of

        return run(job, data, Endpoint(swarm_access(self._live)), settings_of(settings))

    def submit_job(
        self,
        job: SwarmJob | str,
        *,
        input_path: str | Path,
        output_path: str | Path,
        detach: bool = False,
        **options: Any,
    ) -> JobHandle:
        """Submit a job, and wait for its end unless `detach`.

        Args:
            job: the job, or `"module:Class"`. Where no worker could import it (a script's, a
                notebook's) its source travels.
            input_path: the rows.
            output_path: where the answers go.
            detach: return once it is submitted; on Slurm it has an allocation of its own.
            **options: the other fields of `JobRequest` (`id_column`, `resources`, …).

        Raises:
            SwarmError: something is wrong with the job; nothing was asked.
            JobError: it did not come to its end (`detach=False`).
        """
        request = _request(job, str(input_path), str(output_path), options)
        resources = request.resources.model_copy(update={"detached": detach})
        changed = {"swarm": self.name, "resources": resources}
        submitter = JobSubmitter(self._store)
        handle = submitter.submit(request.model_copy(update=changed), self._live)
        if not detach:
            ended = submitter.wait(self._store.job(handle.job_id), timeout_s=None)
            if ended.status not in (JobStatus.SUCCEEDED, JobStatus.PARTIAL):
                raise JobError(
                    f"Job {handle.job_id} {ended.status.value}: {job_snapshot(ended).message}",
                    hint=f"See {handle.log_path}.",
                )
        return handle

    def results(self, job_id: str, *, partial: bool = False, arrow: bool = False) -> Any:  # noqa: ANN401 - pandas is optional
        """A job's output as a pandas `DataFrame`, or as an Arrow table.

        Args:
            job_id: the job, by its id or its external id.
            partial: the rows that are settled by now, whether or not the job runs.
            arrow: return a `pyarrow.Table`, which needs nothing else.

        Raises:
            ConfigError: pandas is not installed.
            SwarmError: the job has not published (without `partial`), or it cannot be read.
        """
        from domyn_swarm.jobs.outputs import opened_results

        if not arrow and importlib.util.find_spec("pandas") is None:
            raise ConfigError(
                "Results as a DataFrame need pandas, which is not installed.",
                hint="pip install 'domyn-swarm[pandas]', or ask for arrow=True.",
            )
        record = JobSubmitter(self._store).refresh(self._store.job(job_id))
        with opened_results(spec_of(record), record.status, partial=partial) as results:
            table = results.table()
        return table if arrow else table.to_pandas()

    def snapshot(self) -> SwarmSnapshot:
        """What it looks like now: serving, replicas, jobs."""
        self._swarm = self._lifecycle.attach(self.name)
        jobs = JobSubmitter(self._store).refresh_all(self._store.jobs(self.name))
        return take_snapshot(self._swarm, asked_snapshots(jobs))

    def scale(self, replicas: int) -> None:
        """Have it run so many replicas; see `SwarmLifecycle.scale`.

        Raises:
            StateError: it is not up, or replicas that were taken out have not ended yet.
            PlatformError: a replica could not be started.
        """
        self._swarm = self._lifecycle.scale(self.name, replicas)

    def down(self) -> None:
        """Stop it and verify that nothing runs. Idempotent.

        Raises:
            PlatformError: something still runs.
        """
        if self._swarm is not None:
            self._swarm = self._lifecycle.down(self._swarm.record.name)


def _request(
    job: SwarmJob | str, input_path: str, output_path: str, options: dict[str, Any]
) -> JobRequest:
    from domyn_swarm.jobs.loading import reference_to

    fields = {"input": input_path, "output": output_path, **options}
    if isinstance(job, str):
        return JobRequest(job=job, **fields)
    found = reference_to(job)
    name = {"name": job.options.name} if job.options.name else {}
    return JobRequest(
        job=found.job, job_source=found.source, job_kwargs=found.kwargs, **{**name, **fields}
    )
