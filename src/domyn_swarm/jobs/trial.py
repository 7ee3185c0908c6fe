"""Sends some of a job's rows from this process before it is submitted: a dry run, a preview, a
forecast.

Answers of the last two are kept, so that the job sends only the others: they are runs of the same
job over the same checkpoint that publish nothing, and whose errors do not count for later runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from domyn_swarm import open_files
from domyn_swarm.batch.background import beside
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.engine import BatchPlan, BatchRun
from domyn_swarm.batch.run.runner import Events
from domyn_swarm.batch.run.session import EndpointAccess
from domyn_swarm.batch.run.standing import FailureLimit
from domyn_swarm.errors import ConfigError, PlatformUnavailable
from domyn_swarm.jobs.preparation import Prepared
from domyn_swarm.jobs.running import in_a_loop, until_over
from domyn_swarm.jobs.worker_program import access_of
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import Record
from domyn_swarm.net.openai import OpenAIClient


class TriedJob(Record):
    """A job as it would be submitted, some of whose rows were sent before."""

    schema_version: Literal[1] = 1
    job: str
    swarm: str | None
    endpoint: str  # without /v1
    model: str
    input: str
    output: str
    rows_total: int
    rows_settled: int | None  # in its checkpoint; None: too many to count here

    @property
    def label(self) -> str:
        """The job's class alone."""
        return self.job.rpartition(":")[2]


@dataclass(frozen=True)
class Trial:
    """A checked job, and its endpoint."""

    spec: JobSpec
    prepared: Prepared
    swarm: str | None = None  # the name of its swarm
    key: str | None = None  # the endpoint's, if the spec names no file of it

    @property
    def access(self) -> EndpointAccess:
        """Of the endpoint."""
        access = access_of(self.spec)
        return replace(access, key=self.key or access.key)

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of a `TriedJob` about the job itself."""
        return {
            "job": self.spec.job,
            "swarm": self.swarm,
            "endpoint": self.access.locate(),
            "model": self.spec.model,
            "input": self.spec.input,
            "output": self.spec.output,
            "rows_total": self.prepared.plan.rows,
        }

    def check_kept(self, what: str) -> None:
        """Refuse to send rows of a job that keeps no answers.

        Raises:
            ConfigError: it keeps no checkpoint.
        """
        if not self.spec.checkpointing:
            raise ConfigError(
                f"{what} keeps the answers, so that no row is sent twice.",
                hint="Take --no-checkpointing (checkpointing=False) out, or send one row with "
                "`job submit --dry-run`.",
            )

    def plan_of(self, **rows: Any) -> BatchPlan:
        """The plan of a run over some rows (`limit`, `only`) that keeps their answers."""
        plan = self.prepared.plan
        policy = replace(plan.work.run_policy, failure_limit=FailureLimit())  # few rows, no share
        work = replace(plan.work, run_policy=policy)
        return replace(plan, work=work, publishes=False, errors_count=False, **rows)

    def ask(
        self,
        plan: BatchPlan,
        tally: Tally,
        notice: Callable[[str], None],
        *watching: Coroutine[None, None, None],
    ) -> float:
        """Run a plan for a waiting caller; returns its duration in seconds.

        Args:
            plan: see `plan_of`.
            tally: counts.
            notice: receives messages of the run, such as that it waits for the endpoint.
            watching: runs beside it.

        Raises:
            PlatformUnavailable: the endpoint does not serve, and no row was answered.
            CheckpointBusy: another job is sending the same rows now.
            JobError: the run cannot continue; answers are kept.
            KeyboardInterrupt: the same, after the rows in flight.
        """
        began = time.monotonic()
        with open_files.raised():
            in_a_loop(lambda: self._finish(plan, tally, notice, *watching))
        return time.monotonic() - began

    async def _finish(
        self,
        plan: BatchPlan,
        tally: Tally,
        notice: Callable[[str], None],
        *watching: Coroutine[None, None, None],
    ) -> None:
        job, access = self.prepared.job, self.access

        def pass_on(text: str) -> None:
            if tally.paused and not tally.rows_answered:
                asking.cancel()  # a job waits for its endpoint, but here a caller waits
            else:
                notice(text)

        run = BatchRun(replace(plan, work=replace(plan.work, notice=pass_on)), tally, Events())

        def transform(client: OpenAIClient) -> Callable[[list[Any]], Awaitable[Sequence[Any]]]:
            job.bind(client, self.spec.model)
            return job.transform_items

        asking = asyncio.ensure_future(run.run(access, transform))
        try:
            async with beside(*watching):
                await until_over(asking, run)
        except asyncio.CancelledError:
            if not (tally.paused and asking.cancelled()):
                raise
            raise PlatformUnavailable(
                f"Nothing serves at the endpoint {access.locate()}; no row was answered.",
                hint="Is it up? See `domyn-swarm status`, or check --endpoint.",
            ) from None
        finally:
            await run.keep_account(self.spec.job_id, ended=True)
