"""Forecasts a job's duration from a sample of its own rows, which is sent and kept first
(`trial`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from typing_extensions import override

from domyn_swarm.batch.checkpoint.index import RowIndex, open_index
from domyn_swarm.batch.outcomes.forecast import Pace, time_left, tokens_left
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.batch.run.limiter import FIRST_LIMIT
from domyn_swarm.batch.run.sampling import Sample, take_sample
from domyn_swarm.errors import JobError, quantity
from domyn_swarm.jobs.preparation import Prepared
from domyn_swarm.jobs.trial import Trial, TriedJob
from domyn_swarm.model import Record, TimeLeft

LEAST_SAMPLE = 200
_ROUNDS = 4  # rows of the sample per row in flight: with fewer, start and end dominate
_MOST_REPLICAS = 32
_LOOK_S = 0.05


class Choice(Record):
    """A number of replicas and the forecast with it. The true value lies between low and high in
    four cases of five.
    """

    replicas: int | None  # None: unknown, behind an endpoint that is not a swarm's
    in_flight: int  # rows in flight, which --max-concurrency has to allow
    rows_per_s: float
    duration_s: float
    duration_low_s: float
    duration_high_s: float
    gpu_hours: float | None  # None: its GPUs are not known
    gpu_hours_low: float | None
    gpu_hours_high: float | None
    start: str | None = None  # the scheduler's estimate of its start; None: not requested


class JobForecast(TriedJob):
    """A job as it would be submitted, and the forecast from a sample of its rows."""

    rows_asked: int  # rows of the sample
    rows_failed: int  # of these; the full run sends them again
    rows_left: int  # for the full run
    sample_s: float  # the sample's duration
    in_flight: float  # rows in flight, on average
    replicas: int | None  # that answered the sample
    prompt_tokens_left: int | None  # None: the endpoint does not report tokens
    completion_tokens_left: int | None
    choices: tuple[Choice, ...]  # by replicas; empty: no rows remain, or too few were answered
    notes: tuple[str, ...]  # the assumptions behind it

    @override
    def __str__(self) -> str:
        now = next((one for one in self.choices if one.replicas == self.replicas), None)
        failed = f", {self.rows_failed} failed" if self.rows_failed else ""
        time = ""
        if now is not None:
            left = TimeLeft(now.duration_s, now.duration_low_s, now.duration_high_s)
            served = "" if now.replicas is None else f" with {quantity(now.replicas, 'replica')}"
            time = f", which take {left}{served}"
        return (
            f"<forecast of {self.label}: {quantity(self.rows_asked, 'row')} asked{failed}; "
            f"{self.rows_left} of {self.rows_total} left{time}>"
        )


@dataclass(frozen=True)
class Fleet:
    """The replicas that answer the sample."""

    replicas: int | None = None  # serving now; None: not known
    gpus_per_replica: int | None = None


def forecast(
    trial: Trial, notice: Callable[[str], None], *, fleet: Fleet, rows: int | None = None
) -> JobForecast:
    """Send a sample of a job's rows; keep the answers, and forecast the others.

    Args:
        trial: the job.
        notice: receives messages of the run, such as that it waits for the endpoint.
        fleet: the replicas that answer.
        rows: of the sample; None: enough to keep the endpoint busy for a while.

    Raises:
        ConfigError: the job keeps no checkpoint.
        SwarmError: see `Trial.ask`.
    """
    trial.check_kept("A forecast")
    prepared = trial.prepared
    plan = prepared.plan
    keys = plan.output.keys
    with _settled(prepared) as index:
        sample = take_sample(
            plan.dataset, keys, plan.limit, index, _size(prepared, rows), alike_once=plan.dedup
        )
    left = round(sum(sample.left.values()))
    if rows is None:  # half at most: else nothing would remain to forecast
        sample = replace(sample, rows=sample.rows[: max(1, (left + 1) // 2)])
    tally, sample_s = Tally(), 0.0
    if sample.rows:
        asked = trial.plan_of(only=sample.rows)
        sample_s = trial.ask(asked, tally, notice, _watch(tally, len(sample.rows)))
    settled = tally.rows_answered + tally.rows_failed
    slots = _slots(prepared, tally, len(sample.rows))
    tokens = tokens_left(tally.strata, sample.rest(tally.strata)) if settled else None
    return JobForecast(
        **trial.facts,
        rows_settled=plan.rows - left + tally.rows_answered,
        rows_asked=settled,
        rows_failed=tally.rows_failed,
        rows_left=left - tally.rows_answered,
        sample_s=sample_s,
        in_flight=slots,
        replicas=fleet.replicas,
        prompt_tokens_left=None if tokens is None else tokens[0],
        completion_tokens_left=None if tokens is None else tokens[1],
        choices=tuple(_choices(tally, sample, slots, fleet)),
        notes=tuple(_notes(prepared, tally, slots, fleet)),
    )


def _size(prepared: Prepared, rows: int | None) -> int:
    if rows is not None:
        return rows
    policy = prepared.plan.work.run_policy
    return max(LEAST_SAMPLE, _ROUNDS * (policy.concurrency or FIRST_LIMIT) * policy.rows_per_call)


def _slots(prepared: Prepared, tally: Tally, sampled: int) -> float:
    """Rows in flight while the sample was processed; a sample that was in flight as a whole does
    not show whether more would have fitted.
    """
    policy = prepared.plan.work.run_policy
    if policy.concurrency is not None:
        return float(min(sampled, policy.concurrency * policy.rows_per_call))
    if sampled <= FIRST_LIMIT * policy.rows_per_call or tally.forecaster.slots is None:
        return float(min(sampled, FIRST_LIMIT * policy.rows_per_call))
    return tally.forecaster.slots


@contextmanager
def _settled(prepared: Prepared) -> Iterator[RowIndex | None]:
    """The results so far; None: none counts."""
    plan, keys = prepared.plan, prepared.plan.output.keys
    folders = plan.place.readable(keys)
    if not (plan.resume and any(one.path.is_dir() for one in folders)):
        yield None
        return
    index = open_index(folders, keys, Reading(plan.accept))
    try:
        yield index
    finally:
        index.frames.close()


async def _watch(tally: Tally, rows: int) -> None:
    """Record the rows in flight until the last of them has started: after that there are fewer than
    the job would have.
    """
    while sum(one.begun for one in tally.strata.values()) < rows:
        tally.look()
        await asyncio.sleep(_LOOK_S)
    tally.look()


def _choices(tally: Tally, sample: Sample, slots: float, fleet: Fleet) -> Iterator[Choice]:
    """The forecasts for 1, 2, 4 … replicas and the present number. Replicas are assumed to be
    equal: n times as many process n times as many rows in flight, each row as fast as now.
    """
    rest = sample.rest(tally.strata)
    left = sum(rest.values())
    counts = [2**power for power in range(_MOST_REPLICAS.bit_length())]
    now = fleet.replicas
    for replicas in [None] if now is None else sorted({*counts, now}):
        times = 1.0 if replicas is None or now is None else replicas / now
        found = time_left(tally.strata, rest, Pace(slots * times), begun=False)
        if found is None or left < 1 or (times > 1 and slots * times / 2 >= left):
            continue
        gpus = None
        if replicas is not None and fleet.gpus_per_replica:
            gpus = replicas * fleet.gpus_per_replica / 3600
        yield Choice(
            replicas=replicas,
            in_flight=max(1, round(slots * times)),
            rows_per_s=left / max(1e-9, found.expected_s),
            duration_s=found.expected_s,
            duration_low_s=found.low_s,
            duration_high_s=found.high_s,
            gpu_hours=None if gpus is None else gpus * found.expected_s,
            gpu_hours_low=None if gpus is None else gpus * found.low_s,
            gpu_hours_high=None if gpus is None else gpus * found.high_s,
        )


def _notes(prepared: Prepared, tally: Tally, slots: float, fleet: Fleet) -> Iterator[str]:
    work = prepared.plan.work
    if prepared.plan.dedup:
        yield "Equal rows share a request (--dedup); the forecast counts a request for each row."
    if slots and work.run_policy.concurrency is None:
        yield (
            f"It assumes {quantity(round(slots), 'row')} in flight, as many as the sample had; a "
            "long job may have more and be faster (--max-concurrency auto)."
        )
    elif slots and fleet.replicas is not None:
        yield (
            "More replicas are faster only with as many more rows in flight: --max-concurrency as "
            "the table says."
        )
    if tally.rows_failed:
        yield f"{quantity(tally.rows_failed, 'row')} of the sample failed; the job repeats them."


def check_answered(found: JobForecast) -> None:
    """Refuse to continue if no row of the sample was answered.

    Raises:
        JobError: all of them failed.
    """
    if found.rows_asked and found.rows_failed == found.rows_asked:
        asked = "The only row" if found.rows_asked == 1 else f"All {found.rows_asked} rows"
        raise JobError(
            f"{asked} of the sample failed; no job was submitted.",
            hint="`domyn-swarm job submit --dry-run` shows what the first row sends and gets.",
        )


def with_starts(found: JobForecast, starts: Sequence[str | None]) -> JobForecast:
    """The forecast with the scheduler's estimate of each choice's start."""
    choices = [
        one.model_copy(update={"start": start})
        for one, start in zip(found.choices, starts, strict=True)
    ]
    return found.model_copy(update={"choices": tuple(choices)})
