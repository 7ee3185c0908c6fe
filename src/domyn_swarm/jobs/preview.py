"""A job's first rows, asked in this process and kept: the job that follows asks the others.

It is a run of the same job over the same checkpoint that publishes nothing. Its errors do not count
for later runs, so that those ask the rows again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from domyn_swarm import open_files
from domyn_swarm.batch.checkpoint.inspection import SettledRow, settled_rows
from domyn_swarm.batch.run.background import beside
from domyn_swarm.batch.run.engine import BatchRun
from domyn_swarm.batch.run.runner import Events
from domyn_swarm.batch.run.session import EndpointAccess
from domyn_swarm.batch.run.standing import FailureLimit
from domyn_swarm.batch.run.tally import Tally
from domyn_swarm.batch.run.verdicts import outcome_of, verdict_of
from domyn_swarm.errors import ConfigError, PlatformUnavailable
from domyn_swarm.jobs.dry_run import RowFailure, TriedJob, failure_of, rows_settled
from domyn_swarm.jobs.preparation import Prepared
from domyn_swarm.jobs.program import access_of, event_loop
from domyn_swarm.jobs.running import until_over
from domyn_swarm.jobs.spec import JobSpec
from domyn_swarm.model import Record, ReplyVerdict
from domyn_swarm.net.openai import OpenAIClient


class PreviewedRow(Record):
    """One of the first rows, and what it came to."""

    row: int  # its position in the input, from 0
    input: dict[str, Any]  # by column: its id, and what the job reads
    answer: dict[str, Any] | None = None  # by output column; None: it failed
    error: RowFailure | None = None
    verdict: ReplyVerdict
    prompt_tokens: int
    completion_tokens: int
    latency_s: float


class RestEstimate(Record):
    """What the rows left may take if they are like those that were answered: a rough guess."""

    rows: int
    prompt_tokens: int | None  # None: no row was answered, or the endpoint does not tell
    completion_tokens: int | None
    duration_s: float | None  # at the pace of the preview; None: nothing was asked


class Preview(TriedJob):
    """A job as it would be submitted, with its first rows."""

    rows_asked: int  # by this preview; the others had been answered before
    rows: tuple[PreviewedRow, ...]
    estimate: RestEstimate


def preview(
    spec: JobSpec,
    prepared: Prepared,
    notice: Callable[[str], None],
    *,
    rows: int,
    swarm: str | None = None,
    key: str | None = None,
) -> Preview:
    """Ask the first rows of a checked job, but for those that are answered; keep the answers.

    Args:
        spec: the job.
        prepared: the same, checked.
        notice: hears what a run has to say, such as that it waits for the endpoint.
        rows: how many.
        swarm: the name of its swarm.
        key: the endpoint's, where the spec names no file of it.

    Raises:
        ConfigError: the job keeps no checkpoint.
        PlatformUnavailable: nobody serves at the endpoint, before a row was answered.
        CheckpointBusy: another job asks the same rows now.
        JobError: the run cannot go on; what was answered is kept.
        KeyboardInterrupt: likewise, after the rows in flight.
    """
    check_kept(spec, "A preview")
    access = access_of(spec)
    access = replace(access, key=key or access.key)
    whole = prepared.plan
    limit = min(rows, whole.rows)
    policy = replace(whole.work.run_policy, failure_limit=FailureLimit())  # few rows are no share
    work = replace(whole.work, run_policy=policy)
    plan = replace(whole, limit=limit, work=work, publishes=False, errors_count=False)
    tally, began = Tally(), time.monotonic()
    if plan.rows:
        with open_files.raised(), event_loop() as runner:
            runner.run(ask_here(spec, replace(prepared, plan=plan), access, tally, notice))
    wall_s = time.monotonic() - began
    shown = tuple(_shown(one, access.key) for one in settled_rows(plan)) if plan.rows else ()
    asked = tally.rows_answered + tally.rows_failed
    settled = rows_settled(spec.model_copy(update={"resume": True}), whole)
    left = whole.rows - (plan.rows if settled is None else settled)
    return Preview(
        job=spec.job,
        swarm=swarm,
        endpoint=access.locate(),
        model=spec.model,
        input=spec.input,
        output=spec.output,
        rows_total=whole.rows,
        rows_settled=settled,
        rows_asked=asked,
        rows=shown,
        estimate=_estimate(left, shown, wall_s / asked if asked else None),
    )


def check_kept(spec: JobSpec, what: str) -> None:
    """Refuse to ask rows of a job here that keeps no answers.

    Raises:
        ConfigError: it keeps no checkpoint.
    """
    if not spec.checkpointing:
        raise ConfigError(
            f"{what} keeps what it asks, so that nothing is asked twice.",
            hint="Take --no-checkpointing out, or ask one row with `job submit --dry-run`.",
        )


async def ask_here(
    spec: JobSpec,
    prepared: Prepared,
    access: EndpointAccess,
    tally: Tally,
    notice: Callable[[str], None],
    *watching: Coroutine[None, None, None],
) -> None:
    """Run a plan that publishes nothing in this process, for somebody who waits for it.

    Args:
        spec: the job.
        prepared: the same, with that plan.
        access: to the endpoint.
        tally: counts.
        notice: hears what the run has to say.
        watching: what runs beside it.

    Raises:
        PlatformUnavailable: nobody serves at the endpoint, before a row was answered.
        JobError: the run cannot go on; what was answered is kept.
    """

    def heard(text: str) -> None:
        if tally.paused and not tally.rows_answered:
            asking.cancel()  # a job waits for its endpoint, but here somebody waits for us
        else:
            notice(text)

    plan = prepared.plan
    run = BatchRun(replace(plan, work=replace(plan.work, notice=heard)), tally, Events())

    def transform(client: OpenAIClient) -> Callable[[list[Any]], Awaitable[Sequence[Any]]]:
        prepared.job.bind(client, spec.model)
        return prepared.job.transform_items

    asking = asyncio.ensure_future(run.run(access, transform))
    try:
        async with beside(*watching):
            await until_over(asking, run)
    except asyncio.CancelledError:
        if not (tally.paused and asking.cancelled()):
            raise
        raise PlatformUnavailable(
            f"Nobody serves at the endpoint {access.locate()}; no row was answered.",
            hint="Is it up? See `domyn-swarm status`, or check --endpoint.",
        ) from None
    finally:
        await run.keep_account(spec.job_id, ended=True)


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
    told = any(one.prompt_tokens or one.completion_tokens for one in answered)

    def scaled(counts: Sequence[int]) -> int | None:
        return round(left * sum(counts) / len(counts)) if told else None

    return RestEstimate(
        rows=left,
        prompt_tokens=scaled([one.prompt_tokens for one in answered]),
        completion_tokens=scaled([one.completion_tokens for one in answered]),
        duration_s=None if row_wall_s is None else left * row_wall_s,
    )
