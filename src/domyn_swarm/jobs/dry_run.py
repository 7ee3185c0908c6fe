"""The dry run: a job's first row, sent once from this process, and an estimate of the cost of all
rows.

The row passes through the job's own code and the run's error handling, but nothing is kept, and
nothing is waited for: an endpoint that does not serve is an error at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from typing_extensions import override

from domyn_swarm.batch.checkpoint.index import open_index
from domyn_swarm.batch.outcomes.row_outcomes import Result, Row, RowError, RowValue
from domyn_swarm.batch.outcomes.strata import characters_of
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import Reading, outcome_of, verdict_of
from domyn_swarm.batch.output.manifest import without_secrets
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.engine import BatchPlan
from domyn_swarm.batch.run.pending import named_rows, pending_rows
from domyn_swarm.batch.run.runner import Events, Runner, RunPolicy, Sink
from domyn_swarm.batch.run.session import EndpointAccess, open_session
from domyn_swarm.errors import JobError, PlatformUnavailable, quantity
from domyn_swarm.jobs.preparation import Prepared
from domyn_swarm.jobs.trial import Trial, TriedJob
from domyn_swarm.jobs.worker_program import event_loop
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import Record, ReplyVerdict
from domyn_swarm.net.openai import OpenAIClient, Transport

_REQUEST_S = 120.0  # without --timeout
_ROW_S = 600.0  # all requests of the row
_COMPARED_ROWS = 200
_COUNTED_ROWS = 1_000_000  # among more rows it is not cheap to count the settled ones
_TEXT_CHARACTERS = 500
_LIST_ITEMS = 20


class SentRequest(Record):
    """A request of the row, without secrets; long texts and lists are truncated."""

    path: str
    body: dict[str, Any]


class RowFailure(Record):
    """Why the row has no answer, in the form of the `_error` column."""

    type: str
    status: int | None
    message: str


class CostEstimate(Record):
    """The cost of the remaining rows if they are like the first row: a rough estimate."""

    requests: int
    prompt_tokens: int | None  # None: the endpoint does not report tokens
    completion_tokens: int | None
    inputs_compared: int  # whose mean length corrected the prompt tokens


class DryRun(TriedJob):
    """A job as it would be submitted, and the result of its first row."""

    requests: tuple[SentRequest, ...] = ()
    answer: dict[str, Any] | None = None  # by output column
    verdict: ReplyVerdict | None = None  # None: nothing was sent
    remarks: tuple[str, ...] = ()  # about the verdict
    error: RowFailure | None = None
    prompt_tokens: int = 0  # of this row
    completion_tokens: int = 0
    latency_s: float | None = None  # None: nothing was sent
    estimate: CostEstimate | None = None  # None: the row failed, or no row remains


def dry_run(trial: Trial) -> DryRun:
    """Send the first row of a job; write nothing. Without rows nothing is sent.

    Raises:
        PlatformUnavailable: the endpoint does not serve.
        JobError: the row did not end in time, or the swarm's endpoint is not known.
    """
    prepared, access = trial.prepared, trial.access
    plan = prepared.plan
    found = DryRun(**trial.facts, rows_settled=rows_settled(trial.spec, plan))
    if not plan.rows:
        return found
    keys = plan.output.keys
    row = next(named_rows(plan.dataset, keys, 1, {0})).rows(keys)[0]
    with event_loop() as runner:
        value, sent = runner.run(_ask(trial.spec, prepared, row, access))
    value = Reading(plan.accept).judged(value)
    verdict = verdict_of(outcome_of(value))
    answered = found.model_copy(
        update={
            "verdict": verdict,
            "remarks": (*prepared.job.remarks({verdict: 1}), *_of_sharing(plan)),
            "requests": tuple(_shown(one, access.key) for one in sent),
            "prompt_tokens": value.prompt_tokens,
            "completion_tokens": value.completion_tokens,
            "latency_s": value.latency_s,
        }
    )
    if value.error:
        return answered.model_copy(update={"error": failure_of(value, access.key)})
    estimate = _estimate(answered, prepared, row, sent)
    answer = msgspec.json.decode(value.output)
    return answered.model_copy(update={"answer": answer, "estimate": estimate})


def _of_sharing(plan: BatchPlan) -> list[str]:
    if not plan.dedup:
        return []
    return ["Equal rows share a request (--dedup); the estimate counts a request for each row."]


def rows_settled(spec: JobSpec, plan: BatchPlan) -> int | None:
    """The number of rows with a result that counts; None: too many to count here."""
    keys = plan.output.keys
    folders = plan.place.readable(keys)
    known = any(one.path.is_dir() for one in folders)
    if not (spec.resume and spec.checkpointing and known):
        return 0
    if plan.rows > _COUNTED_ROWS:
        return None
    tally = Tally()
    index = open_index(folders, keys, Reading(plan.accept))
    with contextlib.closing(index.frames):
        for _ in pending_rows(plan.dataset, keys, index, plan.limit, tally):
            pass
    return tally.rows_resumed


# -- the row ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    path: str
    body: dict[str, Any]


class _Recorder(Transport):
    """A `Transport` that records the requests that it forwards."""

    def __init__(self, inner: Transport, sent: list[_Sent]) -> None:
        self._inner = inner
        self._sent = sent

    @override
    async def post(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> bytes | memoryview:
        self._write_down(path, body)
        return await self._inner.post(path, body, timeout_s)

    @override
    def post_stream(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> AsyncIterator[bytes]:
        self._write_down(path, body)
        return self._inner.post_stream(path, body, timeout_s)

    @override
    async def get(self, path: str) -> bytes | memoryview:
        return await self._inner.get(path)

    def _write_down(self, path: str, body: dict[str, Any]) -> None:
        self._sent.append(_Sent(path, without_secrets(body)))  # a copy: jobs may change theirs


class _Kept(Sink):
    """A `Sink` in memory."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    @override
    def append(self, results: Sequence[Result]) -> None:
        self.results += results


async def _ask(
    spec: JobSpec, prepared: Prepared, row: Row, access: EndpointAccess
) -> tuple[RowValue, list[_Sent]]:
    sent: list[_Sent] = []
    away: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def notice(_text: str) -> None:
        if not away.done():
            away.set_result(None)

    policy = RetryPolicy(retries=0, timeout_s=spec.timeout_s or _REQUEST_S, pressure_limit_s=0.0)
    async with open_session(access, policy, Tally(), notice) as (client, _):
        recorded = client.through(lambda inner: _Recorder(inner, sent))
        asked = asyncio.create_task(_settle(spec, prepared, row, recorded))
        try:
            either: set[asyncio.Future[Any]] = {asked, away}
            await asyncio.wait(either, timeout=_ROW_S, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result(), sent
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
    if away.done():
        raise PlatformUnavailable(
            f"Nothing serves at the endpoint {access.locate()}; the first row has no answer.",
            hint="Is it up? See `domyn-swarm status`, or check --endpoint.",
        )
    raise JobError(
        f"The first row did not end within {_ROW_S:g} s.",
        hint="Give its requests a limit with --timeout, or look at what the job waits for.",
    )


async def _settle(spec: JobSpec, prepared: Prepared, row: Row, client: OpenAIClient) -> RowValue:
    job, work = prepared.job, prepared.plan.work
    job.bind(client, spec.model)
    kept = _Kept()
    policy = RunPolicy(concurrency=1, accept=work.run_policy.accept, failure_limit=None)
    runner = Runner(
        job.transform_items, kept, policy, encode=work.encode, tally=Tally(), events=Events()
    )
    await runner.run(iter([[row]]))
    return kept.results[0].value


# -- the report ------------------------------------------------------------------------------------


def failure_of(value: RowValue, key: str | None) -> RowFailure:
    """Why a row has no answer; the endpoint's key is masked."""
    error = msgspec.json.decode(value.error, type=RowError)
    return RowFailure(type=error.type, status=error.status, message=_without(error.message, key))


def _shown(sent: _Sent, key: str | None) -> SentRequest:
    return SentRequest(path=sent.path, body=_cut(sent.body, key))


def _cut(value: Any, key: str | None) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, str):
        text = _without(value, key)
        left = len(text) - _TEXT_CHARACTERS
        if left <= 0:
            return text
        return f"{text[:_TEXT_CHARACTERS]}… ({quantity(left, 'character')} more)"
    if isinstance(value, dict):
        return {name: _cut(inner, key) for name, inner in value.items()}
    if isinstance(value, list):
        left = len(value) - _LIST_ITEMS
        shown = [_cut(inner, key) for inner in value[:_LIST_ITEMS]]
        return shown if left <= 0 else [*shown, f"… ({left} more)"]
    return value


def _without(text: str, key: str | None) -> str:
    return text.replace(key, "***") if key else text


def _estimate(
    found: DryRun, prepared: Prepared, row: Row, sent: Sequence[_Sent]
) -> CostEstimate | None:
    """The row's usage times the remaining rows. The part of a row's input in its requests is scaled
    to the mean length of the first inputs; the rest (the system message, the template) is constant.
    """
    rows = found.rows_total - (found.rows_settled or 0)
    if not rows:
        return None
    compared, mean = _mean_characters(prepared.plan)
    asked = sum(characters_of(one.body) for one in sent)
    prompt_share = 1.0
    if asked:
        prompt_share = max(0.0, asked - characters_of(row.item) + mean) / asked
    calls = math.ceil(rows / prepared.job.rows_per_call)
    reported = found.prompt_tokens or found.completion_tokens
    return CostEstimate(
        requests=calls * len(sent),
        prompt_tokens=round(rows * found.prompt_tokens * prompt_share) if reported else None,
        completion_tokens=rows * found.completion_tokens if reported else None,
        inputs_compared=compared,
    )


def _mean_characters(plan: BatchPlan) -> tuple[int, float]:
    """The number of inputs that were examined, and their mean length in characters."""
    keys, most = plan.output.keys, min(plan.rows, _COMPARED_ROWS)
    lengths = [
        characters_of(item)
        for batch in plan.dataset.batches(keys.columns, limit=most)
        for item in keys.items(batch)
    ]
    return len(lengths), sum(lengths) / len(lengths)
