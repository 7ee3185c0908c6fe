"""A preview: a job's first rows, sent and kept before it is submitted (`trial`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from typing_extensions import override

from domyn_swarm.batch.inspection.settled import SettledRow, settled_rows
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import outcome_of, verdict_of
from domyn_swarm.errors import quantity
from domyn_swarm.jobs.dry_run import RowFailure, failure_of, rows_settled
from domyn_swarm.jobs.trial import Trial, TriedJob
from domyn_swarm.model import Record, ReplyVerdict


class PreviewedRow(Record):
    """One of the first rows, and its result."""

    row: int  # its position in the input, from 0
    input: dict[str, Any]  # by column: its id, and the columns that the job reads
    answer: dict[str, Any] | None = None  # by output column; None: it failed
    error: RowFailure | None = None
    verdict: ReplyVerdict
    prompt_tokens: int
    completion_tokens: int
    latency_s: float


class RestEstimate(Record):
    """The cost of the remaining rows if they are like the answered ones: a rough estimate."""

    rows: int
    prompt_tokens: int | None  # None: no row was answered, or not reported
    completion_tokens: int | None
    duration_s: float | None  # at the speed of the preview; None: nothing was sent


class Preview(TriedJob):
    """A job as it would be submitted, with its first rows."""

    rows_asked: int  # by this preview; the others had been answered before
    rows: tuple[PreviewedRow, ...]
    estimate: RestEstimate

    @override
    def __str__(self) -> str:
        failed = sum(one.error is not None for one in self.rows)
        said = f", {failed} failed" if failed else ""
        shown = quantity(len(self.rows), "row")
        return (
            f"<preview of {self.label}: {shown}, {self.rows_asked} of them asked now{said}; "
            f"{self.estimate.rows} of {self.rows_total} left>"
        )


def preview(trial: Trial, notice: Callable[[str], None], *, rows: int) -> Preview:
    """Send the first rows of a job, except answered ones; keep the answers.

    Args:
        trial: the job.
        notice: receives messages of the run, such as that it waits for the endpoint.
        rows: how many rows.

    Raises:
        ConfigError: the job keeps no checkpoint.
        SwarmError: see `Trial.ask`.
    """
    trial.check_kept("A preview")
    whole = trial.prepared.plan
    plan = trial.plan_of(limit=min(rows, whole.rows))
    tally = Tally()
    wall_s = trial.ask(plan, tally, notice) if plan.rows else 0.0
    shown = tuple(_shown(one, trial.access.key) for one in settled_rows(plan)) if plan.rows else ()
    asked = tally.rows_answered + tally.rows_failed
    settled = rows_settled(trial.spec.model_copy(update={"resume": True}), whole)
    left = whole.rows - (plan.rows if settled is None else settled)
    return Preview(
        **trial.facts,
        rows_settled=settled,
        rows_asked=asked,
        rows=shown,
        estimate=_estimate(left, shown, wall_s / asked if asked else None),
    )


def _shown(row: SettledRow, key: str | None) -> PreviewedRow:
    value = row.value
    return PreviewedRow(
        row=row.ordinal,
        input=row.columns,
        answer=None if value.error else msgspec.json.decode(value.output),
        error=failure_of(value, key) if value.error else None,
        verdict=verdict_of(outcome_of(value)),
        prompt_tokens=value.prompt_tokens,
        completion_tokens=value.completion_tokens,
        latency_s=value.latency_s,
    )


def _estimate(left: int, shown: Sequence[PreviewedRow], row_wall_s: float | None) -> RestEstimate:
    answered = [one for one in shown if one.error is None]
    reported = any(one.prompt_tokens or one.completion_tokens for one in answered)

    def scaled(counts: Sequence[int]) -> int | None:
        return round(left * sum(counts) / len(counts)) if reported else None

    return RestEstimate(
        rows=left,
        prompt_tokens=scaled([one.prompt_tokens for one in answered]),
        completion_tokens=scaled([one.completion_tokens for one in answered]),
        duration_s=None if row_wall_s is None else left * row_wall_s,
    )
