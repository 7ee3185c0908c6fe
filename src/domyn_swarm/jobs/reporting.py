"""A worker's reports on its job, while it runs and when it ends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from domyn_swarm.batch.background import in_thread
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.jobs.worker_spec import JobResult, JobSpec
from domyn_swarm.logs import get_logger
from domyn_swarm.model import JobAccount, JobProgress, time_left_fields, utc_now
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

_SPEED_KNOWN_S = 10.0  # seconds from the job's beginning
_ROOM = 0.8  # of the remaining time: a job that needs less has enough again
_REPLICAS_TRACED = 64  # whose limits a line of the trace contains
_TRACE_LINES = 1000  # a second apart at first; the interval grows in a long run
# As recommended by OpenTelemetry's semantic conventions for generative AI for
# gen_ai.client.operation.duration and gen_ai.client.token.usage
_LATENCY_BOUNDS_S = tuple(0.01 * 2**power for power in range(14))
_TOKEN_BOUNDS = tuple(4.0**power for power in range(14))


class TimeLimit:
    """Judges whether a job will be done at its time limit: its own, or that of the scheduler's job
    in which this process runs.
    """

    def __init__(
        self, spec: JobSpec | None, clock: Clock = time, env: Mapping[str, str] = os.environ
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._began = clock.time()
        own_s = None if spec is None else spec.resources.time_limit_s
        given = env.get("SLURM_JOB_END_TIME", "")
        ends = [self._began + own_s] if own_s is not None else []
        self._ends_at = min([*ends, *([float(given)] if given.isdecimal() else [])], default=None)
        self._short = False

    def too_short(self, eta_s: float | None) -> str | None:
        """A warning that a job needing `eta_s` seconds will not be done in time; None: it will, or
        its speed is not known yet. The text does not change, and is withdrawn only once the job has
        room to spare.
        """
        now = self._clock.time()
        known = eta_s is not None and now - self._began >= _SPEED_KNOWN_S
        if self._spec is None or self._ends_at is None or eta_s is None or not known:
            return None
        self._short = eta_s > (self._ends_at - now) * (_ROOM if self._short else 1.0)
        if not self._short:
            return None
        ends = datetime.fromtimestamp(self._ends_at, UTC)
        left = "its answers are lost then: it keeps no checkpoint"
        if self._spec.checkpointing:
            resume = f"`domyn-swarm job resume {self._spec.job_id} --time LIMIT`"
            left = f"finished rows are kept, {resume} sends the others"
        return f"too slow to be done when its time is up, at {ends:%Y-%m-%d %H:%M} UTC; {left}"


def ends_at(
    spec: JobSpec, paths: JobPaths, began: float, env: Mapping[str, str] = os.environ
) -> float | None:
    """When a job ends permanently, done or not, in seconds since the epoch; None: no limit ends it.
    A job that runs again after its time limit is ended by `--stop-after` alone.

    Args:
        spec: of the job.
        paths: of the job.
        began: when this run began, in seconds since the epoch.
        env: of this process, in which the scheduler sets the end of its own job.
    """
    resources = spec.resources
    if paths.runs.exists():
        from domyn_swarm.backends.slurm.job_runs import JobRuns  # jobs elsewhere have one run

        runs = JobRuns.read(paths)
        if runs is None or resources.stop_after_s is None:
            return None
        return runs.first_began_at + resources.stop_after_s
    own_s, given = resources.shortest_limit_s, env.get("SLURM_JOB_END_TIME", "")
    ends = [began + own_s] if own_s is not None else []
    return min([*ends, *([float(given)] if given.isdecimal() else [])], default=None)


class Reporter:
    """Writes `progress.json`, `trace.jsonl` and `result.json`.

    A full disk ends a run where results are written, not here.
    """

    def __init__(
        self, paths: JobPaths, tally: Tally, spec: JobSpec | None = None, kept: Path | None = None
    ) -> None:
        """`kept`: the checkpoint's folder, if it stays after the run."""
        self.state = "starting"
        self.gpu_hours: float | None = None  # the job's cost so far
        self.budget_ends_in_s: float | None = None  # until it is used up; None: there is no budget
        self._paths = paths
        self._spec = spec
        self._kept = kept
        self._tally = tally
        self._traced_s = -1.0
        # a job that continues in further runs cannot run out of time
        self._time = TimeLimit(None if paths.runs.exists() else spec)
        self._ends_at = None if spec is None else ends_at(spec, paths, time.time())

    def write_progress(self) -> None:
        """Write the present progress. Blocks."""
        self._write(self._progress(), self._trace_line())

    async def write_progress_in_thread(self) -> None:
        """As `progress`, on a thread: a slow disk delays no request."""
        await in_thread(self._write, self._progress(), self._trace_line())

    def _write(self, progress: str, line: str | None) -> None:
        try:
            write_private(self._paths.progress, progress, synced=False)
            if line is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                handle = os.open(self._paths.trace, flags, 0o600)
                with os.fdopen(handle, "a", encoding="utf-8") as file:
                    file.write(line)
        except OSError as error:
            _log.warning("cannot write the job's progress: %s", error)

    def _progress(self) -> str:
        tally, replies = self._tally, self._tally.replies.sums
        paused = tally.paused if self.state == "running" else None
        left = tally.time_left()
        eta_s = None if left is None else left.expected_s
        progress = JobProgress.model_validate(
            {
                "state": "paused" if paused else self.state,
                "message": paused or tally.remark or self._time.too_short(eta_s),
                **self._identity(),
                "rows_total": tally.rows_total,
                "rows_done": tally.rows_done,
                "rows_resumed": tally.rows_resumed,
                "rows_failed": tally.all_failed,
                "verdicts": tally.all_verdicts,
                "commonest_failure": tally.commonest_failure,
                "rows_per_s": tally.rows_per_s(),
                **time_left_fields(left),
                "gpu_hours": self.gpu_hours,
                "in_flight": tally.in_flight,
                "limit": tally.limit,
                "ends_in_s": self._ends_in_s(),
                "prompt_tokens": replies.prompt_tokens,
                "completion_tokens": replies.completion_tokens,
                "run_answered": tally.rows_answered,
                "run_failed": tally.rows_failed,
                "requests": tally.requests,
                "retries": tally.retries,
                "turned_away": tally.turned_away,
                "latency_s": replies.latency.within(_LATENCY_BOUNDS_S, replies.latency_s),
                "prompt_sizes": replies.prompt_sizes.within(_TOKEN_BOUNDS, replies.prompt_tokens),
                "completion_sizes": replies.completion_sizes.within(
                    _TOKEN_BOUNDS, replies.completion_tokens
                ),
                "updated_at": utc_now(),
            }
        )
        return progress.model_dump_json()

    def _ends_in_s(self) -> float | None:
        at, budget_s = self._ends_at, self.budget_ends_in_s
        known = [] if at is None else [max(0.0, at - time.time())]
        return min([*known, *([] if budget_s is None else [budget_s])], default=None)

    def _identity(self) -> dict[str, str | None]:
        if self._spec is None:
            return {}
        kept = None if self._kept is None else str(self._kept)
        return {"name": self._spec.name, "model": self._spec.model, "checkpoint": kept}

    def _trace_line(self) -> str | None:
        tally, replies = self._tally, self._tally.replies.sums
        at_s = time.monotonic() - tally.began
        if self.state != "running" or at_s - self._traced_s < at_s / _TRACE_LINES:
            return None
        self._traced_s = at_s
        line = {
            "at": round(time.time(), 3),  # seconds since the epoch
            "at_s": round(at_s, 3),  # since the run began
            "rows_done": tally.rows_done,
            "rows_failed": tally.all_failed,
            "settled": tally.rows_answered + tally.rows_failed,  # by this run
            "in_flight": tally.in_flight,
            "limit": tally.limit,
            "replica_limits": dict(islice(tally.replica_limits.items(), _REPLICAS_TRACED)),
            "running": tally.running,
            "waiting": tally.waiting,
            "requests": tally.requests,
            "retries": tally.retries,
            "turned_away": tally.turned_away,
            "prompt_tokens": replies.prompt_tokens,
            "completion_tokens": replies.completion_tokens,
            "paused": tally.paused is not None,
            "why": tally.paused,
            "rows_total": tally.rows_total,
        }
        return json.dumps(line) + "\n"

    def result(
        self,
        checkpoint: Path | None,
        account: JobAccount | None,
        *,
        output: str | None,
        error: str | None,
        remarks: Sequence[str] = (),
    ) -> None:
        """Write the run's result; `account`, `output` and `error` are None if it has none."""
        tally = self._tally
        result = JobResult(
            checkpoint=None if checkpoint is None else str(checkpoint),
            output=output,
            rows_total=tally.rows_total,
            rows_done=tally.rows_done,
            rows_failed=tally.all_failed,
            verdicts=tally.all_verdicts,
            rows_resumed=tally.rows_resumed,
            requests=tally.requests,
            retries=tally.retries,
            account=account,
            remarks=tuple(remarks),
            error=error,
        )
        try:
            write_private(self._paths.result, result.model_dump_json())
        except OSError as failure:  # the exit code still reports how it ended
            _log.warning("cannot write %s: %s", self._paths.result, failure)
