"""The program that runs a job: `python -m domyn_swarm.jobs.worker <job folder>`.

Reads `job.json`, rewrites `progress.json` about once a second, leaves `result.json`. Ends with 0,
with 7 if rows have errors, with the error's own code, or with 128 + the signal that stopped it.
SIGTERM and SIGINT: rows in flight have a grace period, all finished rows are on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domyn_swarm.batch.background import beside, in_thread
from domyn_swarm.batch.checkpoint.request_identity import nearest
from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.engine import BatchPlan, BatchRun
from domyn_swarm.batch.run.runner import Events
from domyn_swarm.batch.run.worker_processes import WorkerPlan, start_local
from domyn_swarm.errors import (
    EXIT_FAILED_ROWS,
    EXIT_OK,
    CheckpointBusy,
    JobError,
    SwarmError,
    disk_error,
)
from domyn_swarm.jobs.gpu_hours import Budget, gpu_hours_of
from domyn_swarm.jobs.preparation import Prepared, prepare
from domyn_swarm.jobs.reporting import Reporter
from domyn_swarm.jobs.worker_program import SwarmFate, access_of, event_loop_runner, read_spec
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.logs import configure, get_logger
from domyn_swarm.model import JobAccount
from domyn_swarm.net.openai import OpenAIClient
from domyn_swarm.paths import JobPaths, private_dir

_log = get_logger(__name__)
_PROGRESS_S = 1.0
_BUSY_S = 5.0  # seconds between checks for a driver that the job's earlier run may have left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job in the given folder; returns the exit code."""
    configure("INFO")
    [folder] = sys.argv[1:] if arguments is None else arguments
    paths = JobPaths(Path(folder))
    try:
        worker = _Worker(read_spec(paths), paths)
    except (SwarmError, OSError) as failure:
        error = failure if isinstance(failure, SwarmError) else disk_error(failure)
        _log.error("%s", error)
        Reporter(paths, Tally()).result(None, None, output=None, error=str(error))
        return error.exit_code
    with event_loop_runner() as runner:
        return runner.run(worker.run())


class _Worker:
    """One job in this process."""

    def __init__(self, spec: JobSpec, paths: JobPaths) -> None:
        self._spec = spec
        self._paths = paths
        self._tally = Tally()
        self._signal: int | None = None
        self._account: JobAccount | None = None
        self._prepared = prepare(spec, InputFacts.load(paths.input_facts), begun=True)
        kept = self._prepared.plan.folder if spec.checkpointing else None
        self._gpu_hours = gpu_hours_of(spec, paths)
        self._budget = Budget(spec.resources.max_gpu_hours, self._gpu_hours)
        self._reporter = Reporter(paths, self._tally, spec, kept)

    async def run(self) -> int:
        """Run to the end; returns the exit code."""
        published, error, reason = False, None, None
        await self._count_gpu_hours()
        self._reporter.write_progress()
        try:
            self._budget.check_counted()
            await self._endpoint_known()
            published = not self._budget.spent and await self._run_batch()
            if self._budget.spent and not published and self._signal is None:
                raise self._budget.over(self._spec.job_id, self._tally)
        except (SwarmError, OSError) as failure:
            error = failure if isinstance(failure, SwarmError) else disk_error(failure)
            reason = str(error)
            _log.error("%s", error)
        except BaseException as bug:
            reason = f"{type(bug).__name__}: {bug}\nThe job's log has the traceback."
            raise
        finally:
            self._reporter.state = "ended"
            self._reporter.write_progress()
            plan = self._prepared.plan
            self._reporter.result(
                plan.folder if self._spec.checkpointing else None,
                self._account,
                output=plan.output.target if published else None,
                error=reason,
                remarks=self._prepared.job.remarks(self._tally.all_verdicts),
            )
        return self._exit_code(error, published=published)

    @property
    def _elsewhere(self) -> bool:
        """Whether other machines write into the checkpoint."""
        return self._spec.data_backend == "ray"

    def _exit_code(self, error: SwarmError | None, *, published: bool) -> int:
        if error is not None:
            return error.exit_code
        if self._signal is not None and not published:  # else it arrived after the end
            return 128 + self._signal
        return EXIT_FAILED_ROWS if self._tally.all_failed else EXIT_OK

    async def _endpoint_known(self) -> None:
        """Wait while the swarm's endpoint moves to another node and has no address.

        Raises:
            JobError: it will not return.
        """
        if not self._endpoint_away():
            return
        fate = SwarmFate(self._spec.serving or {})
        self._tally.paused = "the swarm's endpoint listens nowhere now: it is waited for"
        _log.warning("%s", self._tally.paused)
        self._reporter.state = "running"
        while self._endpoint_away():
            self._reporter.write_progress()
            if (why := await fate()) is not None:
                raise JobError(
                    f"{why}. Its endpoint will not come back.",
                    hint="Finished rows are kept. Bring up a swarm again and continue there: "
                    "domyn-swarm job resume JOB --name SWARM",
                )
            await asyncio.sleep(_PROGRESS_S)
        self._tally.paused, self._reporter.state = None, "starting"

    def _endpoint_away(self) -> bool:
        file = self._spec.endpoint_file
        return self._spec.serving is not None and file is not None and not Path(file).exists()

    async def _run_batch(self) -> bool:
        if self._spec.checkpointing:
            self._tell_differences()
            return await self._run_alone()
        shared = private_dir(Path(self._spec.checkpoint_root)) if self._elsewhere else None
        with tempfile.TemporaryDirectory(prefix="domyn-swarm-", dir=shared) as scratch:
            plan = replace(self._prepared.plan, checkpoint_root=Path(scratch))
            return await self._run_plan(replace(self._prepared, plan=plan))

    async def _run_alone(self) -> bool:
        """Run once no other driver holds the job. The driver of its earlier run may be on a node
        that has lost only its scheduler, until that ends it.
        """
        while True:
            try:
                return await self._run_plan(self._prepared)
            except CheckpointBusy as busy:
                if not _runs_again(self._paths):
                    raise
                _log.warning("%s It is waited for.", busy.message)
                await asyncio.sleep(_BUSY_S)
            if self._signal is not None:
                return False

    async def _run_plan(self, prepared: Prepared) -> bool:
        work = replace(prepared.plan.work, notice=lambda text: _log.warning("%s", text))
        async with self._shared_out(replace(prepared.plan, work=work)) as plan:
            run = BatchRun(plan, self._tally, Events())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop, run, number)

            def transform(client: OpenAIClient) -> Callable[[list[Any]], Awaitable[Sequence[Any]]]:
                prepared.job.bind(client, self._spec.model)
                return prepared.job.transform_items

            self._reporter.state = "running"
            try:
                async with beside(self._report(run)):
                    return await run.run(access_of(self._spec), transform)
            finally:
                self._account = await run.keep_account(self._spec.job_id, ended=True)

    @contextlib.asynccontextmanager
    async def _shared_out(self, plan: BatchPlan) -> AsyncIterator[BatchPlan]:
        """The plan with its workers: this process, others here, or those of a cluster."""
        if self._elsewhere:
            from domyn_swarm.jobs.ray.ray_dataset import over_cluster

            async with over_cluster(self._spec, plan) as shared:
                yield shared
        elif self._spec.workers in (None, 1):
            yield plan
        else:
            workers = WorkerPlan(self._spec.workers, lambda: start_local(self._command))
            yield replace(plan, workers=workers)

    async def _report(self, run: BatchRun) -> None:
        while True:
            self._tally.look()
            await self._count_gpu_hours()
            if self._budget.spent and not run.stopped:
                _log.warning("the budget of GPU-hours is used up: finishing rows in flight")
                run.stop()
            await self._reporter.write_progress_in_thread()
            await run.keep_account(self._spec.job_id)
            await asyncio.sleep(_PROGRESS_S)

    async def _count_gpu_hours(self) -> None:
        if self._gpu_hours is not None:
            await in_thread(self._gpu_hours.count)
            held = self._gpu_hours.held
            self._reporter.gpu_hours = self._gpu_hours.spent if held and held.gpus else None
            self._reporter.budget_ends_in_s = self._budget.ends_in_s

    def _command(self, descriptor: int) -> list[str]:
        program = [sys.executable, "-m", "domyn_swarm.jobs.linked_worker"]
        return [*program, str(self._paths.root), str(descriptor)]

    def _stop(self, run: BatchRun, number: int) -> None:
        _log.warning("asked to stop (signal %d): finishing rows in flight", number)
        self._signal = number
        run.stop()

    def _tell_differences(self) -> None:
        """Log why an existing checkpoint of the same job class is not used."""
        plan = self._prepared.plan
        if plan.place.store.exists():
            return
        found = nearest(plan.checkpoint_root, plan.identity)
        if found is not None:
            name, differences = found
            _log.warning("a new checkpoint, since %s differs: %s", name, "; ".join(differences))


def _runs_again(paths: JobPaths) -> bool:
    """Whether the job continues by itself, and this is not its first run."""
    try:
        return bool(json.loads(paths.runs.read_text("utf-8"))["number"] > 1)
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    # polars would read ahead one row group per thread of the machine, and hold them all; requests
    # take so long that one is enough. It reads the setting each time it opens a file.
    os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")
    sys.exit(main())
