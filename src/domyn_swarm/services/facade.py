"""`DomynLLMSwarm`: a swarm as a Python object, a thin facade over lifecycle and jobs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from typing_extensions import override

from domyn_swarm.config import DomynLLMSwarmConfig, swarm_name
from domyn_swarm.errors import JobError, StateError, WordsAlone, interrupted
from domyn_swarm.model import JobStatus
from domyn_swarm.services.arguments import check_rows, config_given, request_given
from domyn_swarm.services.submitted_job import SubmittedJob, followed
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.job_records import client_address, live_address, swarm_access
from domyn_swarm.swarm.job_request import JobRequest, SubmitKeywords
from domyn_swarm.swarm.launch import prepare
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.submitter import JobSubmitter
from domyn_swarm.swarm.survey import asked_snapshots, jobs_of, take_snapshot

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from domyn_swarm.jobs.base import SwarmJob
    from domyn_swarm.jobs.forecasting import JobForecast
    from domyn_swarm.jobs.keywords import RunKeywords
    from domyn_swarm.jobs.preview import Preview
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.services.usage_report import SwarmUsage
    from domyn_swarm.swarm.snapshot import SwarmSnapshot

_T = TypeVar("_T")


class DomynLLMSwarm:
    """A swarm for the duration of a `with` block, from `up` to `down`, or an existing one by
    `attach`.

    Entering the block brings the swarm up and waits for it; leaving it, also by an exception,
    brings it down, as does an interruption while it comes up.
    """

    def __init__(self, cfg: DomynLLMSwarmConfig) -> None:
        self._config: DomynLLMSwarmConfig | None = config_given(cfg)
        self._swarm: LiveSwarm | None = None
        self._store = SwarmStore.open()
        self._lifecycle = SwarmLifecycle(self._store)

    @classmethod
    def attach(cls, name: str) -> DomynLLMSwarm:
        """A swarm of the state database, in any process: by its name, or by its YAML file.

        Raises:
            ConfigError: the file cannot be read, or names no swarm.
            SwarmNotFound: there is no swarm of that name.
        """
        if name.endswith((".yaml", ".yml")):
            name = swarm_name(Path(name))
        found = cls.__new__(cls)
        found._config = None
        found._store = SwarmStore.open()
        found._lifecycle = SwarmLifecycle(found._store)
        found._swarm = found._lifecycle.attach(name)
        return found

    @WordsAlone()
    def up(self) -> Self:
        """Bring the swarm up, or join one of its name and configuration that is up or coming up,
        and return once it answers. It stays up until `down`, even when this process ends.

        Raises:
            StateError: the swarm was attached to, so its configuration is not known here.
            SwarmExists: a live swarm has its name and another configuration.
            LaunchError: the swarm did not come up; its started parts have been stopped.
            KeyboardInterrupt: it was interrupted; started parts keep running; repeat `up`.
        """
        from domyn_swarm.swarm.joining import SwarmJoining, Waiting

        if self._config is None:
            raise StateError(
                "This swarm was attached to: its configuration is not known here.",
                hint="DomynLLMSwarm(DomynLLMSwarmConfig.read(FILE)).up() brings up that of a file.",
            )
        config = self._config
        if self._swarm is not None:  # the name may have been generated
            config = config.model_copy(update={"name": self.name})
        try:
            self._swarm = SwarmJoining(self._store).up(prepare(config), Waiting()).swarm
        except KeyboardInterrupt:
            raise interrupted(
                "Interrupted: the started parts keep running, and up() again waits for them. "
                "`domyn-swarm status` shows it, `domyn-swarm down NAME` stops it."
            ) from None
        return self

    def __enter__(self) -> Self:
        if self._swarm is None and self._config is not None:
            try:
                self._swarm = self._lifecycle.up(prepare(self._config), keep_interrupted=False)
            except KeyboardInterrupt:
                raise interrupted(
                    "Interrupted: the swarm was not up yet, and its parts have been signalled to "
                    "end. `domyn-swarm status` shows what is left of it, if anything."
                ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    @override
    def __repr__(self) -> str:
        if self._swarm is None:
            return f"<DomynLLMSwarm {getattr(self._config, 'name', None) or ''!r}, not up>"
        name, plan = self._swarm.record.name, self._swarm.plan
        return f"<DomynLLMSwarm {name!r}: model {plan.model!r}, {plan.backend}>"

    @property
    def _live(self) -> LiveSwarm:
        if self._swarm is None:
            raise StateError(
                "This swarm is not up.",
                hint="Call .up() first, use it in a `with` block, or attach to a live one.",
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

    @property
    def endpoint(self) -> str:
        """The present URL of its endpoint, without `/v1`.

        Raises:
            StateError: the swarm is not up, or has no endpoint.
            RunsElsewhere: its endpoint cannot be reached from here.
        """
        return live_address(self._live).url

    @property
    def api_key(self) -> str:
        """The key of its endpoint. A secret: no `repr` and no log contains it.

        Raises:
            StateError: as `endpoint`, or the key's file cannot be read here.
        """
        return client_address(self._live).key or ""

    def openai(self) -> OpenAI:
        """OpenAI's own client for its endpoint, ready for use.

        It has the swarm's key, trusts its certificate, and bypasses the proxy that the environment
        sets for other sites. It uses the endpoint's present address: create another client when the
        swarm has moved. `with swarm.openai() as client` closes it.

        Raises:
            ConfigError: the package `openai` is not installed.
            StateError: as `api_key`.
        """
        from domyn_swarm.net.openai import official_client

        return official_client(client_address(self._live), "swarm.openai()")

    def async_openai(self) -> AsyncOpenAI:
        """As `openai`, for asynchronous code: `await client.chat.completions.create(...)`.

        Raises:
            ConfigError: the package `openai` is not installed.
            StateError: as `api_key`.
        """
        from domyn_swarm.net.openai import official_async_client

        return official_async_client(client_address(self._live), "swarm.async_openai()")

    def run(self, job: SwarmJob | str, data: Any, **settings: Unpack[RunKeywords]) -> Any:  # noqa: ANN401 - a frame
        """Send every row of a frame to the swarm from this process; return a frame of the same
        kind.

        Args:
            job: the job, or `"module:Class"`.
            data: a pandas, polars, Arrow or Ray frame, or the path of files (returned as an
                Arrow table).
            **settings: of the run; see `RunKeywords`.

        Rows without an answer have an `_error`. The same call again sends only new rows.

        Raises:
            SwarmError: the job or the data is wrong (nothing was sent), the swarm
                has no endpoint, or the run cannot continue (settled rows are kept).
            KeyboardInterrupt: it was interrupted; the message says what is kept.
        """
        from domyn_swarm.jobs.job_loading import job_given
        from domyn_swarm.jobs.running import Endpoint, run, settings_of

        job = job_given(job)
        return run(job, data, Endpoint(swarm_access(self._live)), settings_of({**settings}))

    @WordsAlone()
    def preview(
        self,
        job: SwarmJob | str,
        *,
        input_path: str | Path,
        output_path: str | Path,
        rows: int = 10,
        **options: Unpack[SubmitKeywords],
    ) -> Preview:
        """Send the first rows of a job from this process and return their answers; submit nothing.

        Everything that `submit_job` checks is checked first. Answers are kept: `submit_job` with
        the same job, paths and options sends the other rows, and those that failed.

        Args:
            job: as for `submit_job`.
            input_path: the rows.
            output_path: of the full run's answers. Nothing is written there now.
            rows: how many rows to send.
            **options: as for `submit_job`: see `SubmitKeywords`.

        Raises:
            SwarmError: as `submit_job`, before a row was sent; or the run cannot continue, and its
                answers so far are kept.
            KeyboardInterrupt: it was interrupted; the answers so far are kept.
        """
        check_rows("preview", "rows", rows)
        request = request_given(job, input_path, output_path, options)
        return self._tried(request, lambda jobs, ours, say: jobs.preview(ours, say, rows=rows))

    @WordsAlone()
    def forecast(
        self,
        job: SwarmJob | str,
        *,
        input_path: str | Path,
        output_path: str | Path,
        sample: int | None = None,
        **options: Unpack[SubmitKeywords],
    ) -> JobForecast:
        """Send a sample of a job's rows from this process and forecast the others: time, tokens and
        GPU-hours, by the number of replicas. Submits nothing.

        Everything that `submit_job` checks is checked first. Answers are kept: `submit_job` with
        the same job, paths and options sends the other rows, and those that failed.

        Args:
            job: as for `submit_job`.
            input_path: the rows.
            output_path: of the full run's answers. Nothing is written there now.
            sample: how many rows to send. None: at least 200, and enough to keep the swarm busy for
                a while, but at most half of the remaining rows.
            **options: as for `submit_job`: see `SubmitKeywords`.

        Raises:
            SwarmError: as `submit_job`, before a row was sent; or the run cannot continue, and its
                answers so far are kept.
            KeyboardInterrupt: it was interrupted; the answers so far are kept.
        """
        if sample is not None:
            check_rows("forecast", "sample", sample)
        request = request_given(job, input_path, output_path, options)
        return self._tried(request, lambda jobs, ours, say: jobs.forecast(ours, say, rows=sample))

    def _tried(
        self,
        request: JobRequest,
        ask: Callable[[JobService, JobRequest, Callable[[str], None]], _T],
    ) -> _T:
        """The result of `ask`, which sends some rows of a job of this swarm."""
        from domyn_swarm.jobs.progress_display import progress_display
        from domyn_swarm.services.jobs import JobService

        def say(text: str) -> None:
            progress_display(shown=True).notice(text)  # a notebook's display must exist for it

        mine = request.model_copy(update={"swarm": self.name})
        try:
            return ask(JobService(self._store), mine, say)
        except KeyboardInterrupt:
            raise interrupted(
                "Interrupted: the answers so far are kept, and no job was submitted. "
                "The same call sends only the other rows."
            ) from None

    @WordsAlone()
    def submit_job(
        self,
        job: SwarmJob | str,
        *,
        input_path: str | Path,
        output_path: str | Path,
        detach: bool = False,
        progress: bool = True,
        **options: Unpack[SubmitKeywords],
    ) -> SubmittedJob:
        """Submit a job, and wait for its end unless `detach`. Ctrl-C during the wait ends the job.

        Args:
            job: the job, or `"module:Class"`. If no worker could import it (a script's, a
                notebook's), its source is sent along.
            input_path: the rows.
            output_path: of the answers.
            detach: return once it is submitted; on Slurm it has an allocation of its own.
            progress: show the job's progress during the wait: a bar in a notebook, a line in a
                terminal.
            **options: as the flags of `job submit`: see `SubmitKeywords`.

        Raises:
            SwarmError: the job or an option is wrong; nothing was sent.
            JobError: it did not finish (`detach=False`).
        """
        request = request_given(job, input_path, output_path, options)
        resources = request.resources.model_copy(update={"detached": detach})
        changed = {"swarm": self.name, "resources": resources}
        submitter = JobSubmitter(self._store)
        handle = submitter.submit(request.model_copy(update=changed), self._live)
        submitted = SubmittedJob.of(handle)
        if not detach:
            ended = followed(submitted, progress=progress)
            if ended.status not in (JobStatus.SUCCEEDED, JobStatus.PARTIAL):
                raise JobError(
                    f"Job {handle.job_id} {ended.status.value}: {ended.message}",
                    hint=f"See {handle.log_path}.",
                )
        return submitted

    def results(self, job_id: str, *, partial: bool = False, arrow: bool = False) -> Any:  # noqa: ANN401 - pandas is optional
        """A job's output as a pandas `DataFrame`, or as an Arrow table.

        Args:
            job_id: the job, by its id or its external id.
            partial: the rows settled so far, whether or not the job runs.
            arrow: return a `pyarrow.Table`, which needs nothing else.

        Raises:
            ConfigError: pandas is not installed.
            SwarmError: the job has not published (without `partial`), or it cannot be read.
        """
        return SubmittedJob.attach(job_id).results(partial=partial, arrow=arrow)

    def snapshot(self) -> SwarmSnapshot:
        """The present state: serving, replicas, jobs."""
        self._swarm, look = self._lifecycle.looked_at(self._store.swarm(self.name))
        mine = jobs_of(self._swarm.record, self._store.jobs(self.name))
        jobs = JobSubmitter(self._store).refresh_all(mine)
        return take_snapshot(self._swarm, asked_snapshots(jobs), look=look)

    def usage(self, *, since: datetime | None = None) -> SwarmUsage:
        """The replicas' time so far, by use, cause and replica.

        Args:
            since: only time after that moment.

        Raises:
            StateError: the swarm is not up, or an earlier version brought it up.
        """
        from domyn_swarm.services.usage import UsageService

        record = self._live.record
        report = UsageService(self._store).usage(swarm=record.name, since=since, tag=record.tag)
        if not report.swarms:
            raise StateError(
                f"There is no ledger of {record.name!r}.", hint="; ".join(report.unread)
            )
        return report.swarms[0]

    def scale(self, replicas: int) -> None:
        """Set the number of replicas: more are started, or the last ones finish and end.

        Raises:
            StateError: the swarm is not up, or replicas of an earlier `scale` have not ended yet.
            PlatformError: a replica could not be started.
        """
        self._swarm = self._lifecycle.scale(self.name, replicas)

    def down(self) -> None:
        """Stop the swarm and verify that no part of it runs. Idempotent.

        Raises:
            PlatformError: a part of it still runs.
        """
        if self._swarm is not None:
            self._swarm = self._lifecycle.down(self._swarm.record.name)
