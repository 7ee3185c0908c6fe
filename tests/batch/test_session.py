"""What a request is forgiven, and how a lost endpoint is waited for, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.outcomes.row_outcomes import Row, RowTrace, current_trace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.gate import EndpointGate
from domyn_swarm.batch.run.session import EndpointAccess, RequestSession, open_session
from domyn_swarm.batch.run.standing import Suspects
from domyn_swarm.errors import JobError
from domyn_swarm.net.http import HttpReply
from domyn_swarm.net.request_errors import (
    BackPressure,
    CannotConnect,
    ConnectionBroken,
    DeadlyRow,
    NoFileLeft,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
)
from model_server import Bench
from virtual_time import in_virtual_time, now_s

MODELS = HttpReply(200, b'{"data": [{"id": "m"}]}', None)
NO_MODELS = HttpReply(200, b'{"data": []}', None)
ANSWER = HttpReply(
    200,
    b'{"choices": [{"message": {"content": "a"}}], '
    b'"usage": {"prompt_tokens": 2, "completion_tokens": 3}}',
    None,
)
AWAY = HttpReply(502, b"call_upstream_connection_failed", None)
LOST = HttpReply(502, b"call_upstream_error", None)
BUSY = HttpReply(429, b"busy", None)

TRIP_S = 1 / 128  # of each request

Outcome = HttpReply | Exception


@dataclass
class Endpoint:
    """An `HttpClient` to an endpoint that a test programs; when it was asked what."""

    post: Callable[[int], Outcome] = lambda _nth: ANSWER
    models: Callable[[], Outcome] = lambda: MODELS
    readiness: Callable[[], Outcome] = lambda: HttpReply(404, b"", None)
    posts: list[float] = field(default_factory=list)
    looks: list[tuple[float, str]] = field(default_factory=list)

    async def request(
        self, method: str, url: str, _body: bytes | None, _timeout_s: float
    ) -> HttpReply:
        await asyncio.sleep(TRIP_S)
        if method == "POST":
            self.posts.append(now_s())
            outcome = self.post(len(self.posts))
        elif url.endswith("/readiness"):
            outcome = self.readiness()
        else:
            self.looks.append((now_s(), url))
            outcome = self.models()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def stream(self, _url: str, _body: bytes, _limit_s: float) -> AsyncIterator[bytes | HttpReply]:
        raise NotImplementedError

    async def close(self) -> None:
        return


@dataclass
class Job:
    """Rows in front of an endpoint, with the gate's knocking beside them."""

    endpoint: Endpoint
    policy: RetryPolicy
    locate: Callable[[], str]
    tally: Tally = field(default_factory=Tally)
    states: list[str | None] = field(default_factory=list)
    suspects: Suspects = field(default_factory=Suspects)

    expected: bool = True

    def __post_init__(self) -> None:
        self.gate = EndpointGate(
            self.endpoint,
            self.locate,
            self.states.append,
            self.suspects,
            knock_max_s=self.policy.knock_max_s,
            expected=self.expected,
        )
        self.session = RequestSession(self.endpoint, self.gate, self.policy, self.tally)

    async def row(self) -> RowTrace:
        trace = RowTrace()
        current_trace.set(trace)  # of this task alone
        try:
            await self.session.post("/v1/chat/completions", {"model": "m"})
        except Exception as error:
            error.trace = trace
            raise
        return trace

    async def rows(self, count: int) -> list[RowTrace]:
        async with beside(self.gate.keep_knocking()):
            return await asyncio.gather(*[self.row() for _ in range(count)])


def rests(asked: list[float]) -> list[float]:
    """The pauses between a reply and the next request, but for rounding."""
    return [round(later - earlier - TRIP_S, 6) for earlier, later in pairwise(asked)]


def job(endpoint: Endpoint, locate: Callable[[], str] = lambda: "http://a", **policy: float) -> Job:
    return Job(endpoint, RetryPolicy(**policy), locate)


@in_virtual_time
async def test_ten_minutes_without_an_endpoint_cost_no_row_an_attempt() -> None:
    back_at = now_s() + 600.0
    refused = CannotConnect("refused")
    endpoint = Endpoint(
        post=lambda _nth: ANSWER if now_s() >= back_at else refused,
        models=lambda: MODELS if now_s() >= back_at else refused,
    )
    work = job(endpoint, retries=0)
    traces = await work.rows(100)
    assert [trace.attempts for trace in traces] == [1] * 100
    assert (work.tally.retries, work.tally.requests) == (0, 200)
    assert back_at <= now_s() <= back_at + work.policy.knock_max_s + 0.1
    assert work.states == ["the endpoint http://a is starting; waiting for it", None]
    looks = [at for at, _ in endpoint.looks]
    pauses = rests(looks)
    assert pauses[0] == pytest.approx(0.2, abs=0.02)  # soon, as most are back soon,
    assert max(pauses) == pytest.approx(5.0, abs=0.02)  # and then one for all rows
    assert len(looks) < 140


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (CannotConnect("refused"), "no answer so far from http://a yet; trying again"),
        (HttpReply(503, b"loading", None), "the endpoint http://a is starting; waiting for it"),
        (MODELS, "the endpoint http://a does not answer; waiting for it"),
    ],
)
def test_an_endpoint_that_nobody_brings_up_has_to_be_there(before: Outcome, words: str) -> None:
    """Where it answered anything before, it is waited for; else its address is wrong."""

    @in_virtual_time
    async def run() -> None:
        began = now_s()
        refused = CannotConnect("refused")
        served = before is MODELS
        first = iter([] if served else [before])

        def post(nth: int) -> Outcome:
            there = now_s() >= began + 600.0
            return ANSWER if there or (served and nth == 1) else refused

        endpoint = Endpoint(
            post=post,
            models=lambda: MODELS if now_s() >= began + 600.0 else next(first, refused),
        )
        work = Job(endpoint, RetryPolicy(retries=0), lambda: "http://a", expected=False)
        if served:
            await work.rows(1)
        if isinstance(before, CannotConnect):
            with pytest.raises(JobError, match="Nothing answers at http://a: refused") as caught:
                await work.rows(100)
            assert "host and port" in caught.value.hint
            assert now_s() - began < 20.0
        else:
            await work.rows(1)
            assert now_s() - began >= 600.0
        assert [one for one in work.states if one] == [words]

    run()


@in_virtual_time
async def test_outages_use_up_no_retries() -> None:
    outcomes = [ConnectionBroken("reset")] * 5 + [HttpReply(500, b"no", None), ANSWER]
    endpoint = Endpoint(post=lambda nth: outcomes[nth - 1])

    def models() -> Outcome:
        lost = len(endpoint.posts) <= 5 and len(endpoint.looks) % 2 == 1  # each for one look
        return CannotConnect("refused") if lost else MODELS

    endpoint.models = models
    [trace] = await job(endpoint, retries=1, backoff_initial_s=0.1).rows(1)
    assert (trace.attempts, trace.failures) == (7, 1)


@in_virtual_time
async def test_requests_that_were_in_flight_as_it_went_count_as_attempts() -> None:
    back_at = now_s() + 60.0
    endpoint = Endpoint(
        post=lambda nth: ANSWER if nth > 1 else ConnectionBroken("reset"),
        models=lambda: MODELS if now_s() >= back_at else CannotConnect("refused"),
    )
    [trace] = await job(endpoint, retries=0).rows(1)
    assert (trace.attempts, trace.failures) == (2, 0)


@in_virtual_time
async def test_an_endpoint_that_moves_is_found_where_it_is_now() -> None:
    began = now_s()

    def locate() -> str:
        if now_s() < began + 1:
            return "http://old"
        if now_s() < began + 30:
            raise JobError("nowhere", hint="")
        return "http://new"

    def posted(_nth: int) -> Outcome:
        return ANSWER if work.gate.url == "http://new" else CannotConnect("refused")

    def models() -> Outcome:
        return MODELS if work.gate.url == "http://new" else CannotConnect("refused")

    endpoint = Endpoint(post=posted, models=models)
    work = job(endpoint, locate, retries=0)
    await work.rows(3)
    assert now_s() - began <= 30 + 5
    assert {url for _, url in endpoint.looks} == {
        "http://old/v1/models",
        "http://new/v1/models",
    }


@pytest.mark.parametrize(
    ("models", "readiness", "waits"),
    [
        (MODELS, 200, False),
        (MODELS, 404, False),  # no router: an engine alone
        (MODELS, 503, True),  # a router without a replica
        (NO_MODELS, 200, True),
        (HttpReply(404, b"", None), 404, False),
        (HttpReply(401, b"", None), 200, False),
        (HttpReply(429, b"", None), 200, True),
        (HttpReply(502, b"", None), 200, True),
        (CannotConnect("refused"), 200, True),
        (RequestTimeout("slow"), 200, True),
    ],
)
def test_which_endpoints_are_waited_for(models: Outcome, readiness: int, waits: bool) -> None:
    @in_virtual_time
    async def run() -> None:
        back_at = now_s() + 60.0
        endpoint = Endpoint(
            post=lambda _nth: ANSWER if now_s() >= back_at else HttpReply(500, b"no", None),
            models=lambda: MODELS if now_s() >= back_at else models,
            readiness=lambda: HttpReply(200 if now_s() >= back_at else readiness, b"", None),
        )
        work = job(endpoint, retries=2, backoff_initial_s=0.1)
        if waits:
            [trace] = await work.rows(1)
            assert trace.failures == 0
        else:
            with pytest.raises(ServerFailed):
                await work.rows(1)
            assert len(endpoint.posts) == 3
            assert now_s() < back_at

    run()


@pytest.mark.parametrize("status", [404, 500, 502, 503, 504])
def test_what_a_router_without_replicas_says_is_an_outage_and_no_row_error(status: int) -> None:
    @in_virtual_time
    async def run() -> None:
        back_at = now_s() + 600.0
        nobody = HttpReply(status, b"no worker", None)
        endpoint = Endpoint(
            post=lambda _nth: ANSWER if now_s() >= back_at else nobody,
            models=lambda: MODELS if now_s() >= back_at else NO_MODELS,
        )
        traces = await job(endpoint, retries=0).rows(50)
        assert {trace.failures for trace in traces} == {0}

    run()


@in_virtual_time
async def test_many_rows_that_fail_at_once_look_at_the_endpoint_once_in_half_a_second() -> None:
    endpoint = Endpoint(post=lambda nth: ANSWER if nth > 200 else HttpReply(500, b"no", None))
    work = job(endpoint, retries=1, backoff_initial_s=0.0)
    await work.rows(200)
    assert len(endpoint.looks) == 1


@in_virtual_time
async def test_an_endpoint_that_served_a_moment_ago_is_not_looked_at_again() -> None:
    began = now_s()
    endpoint = Endpoint(post=lambda nth: ANSWER if nth % 2 == 0 else HttpReply(500, b"no", None))
    work = job(endpoint, retries=1, backoff_initial_s=0.0)
    for at_s in (0.0, 0.2, 0.4, 2.0):
        await asyncio.sleep(began + at_s - now_s())
        await work.row()  # fails once
    assert [round(at - began, 1) for at, _ in endpoint.looks] == [0.0, 2.0]


@in_virtual_time
async def test_the_last_attempt_of_a_row_is_not_given_up_on_hearsay() -> None:
    endpoint = Endpoint(post=lambda _nth: HttpReply(500, b"no", None))
    with pytest.raises(ServerFailed):
        await job(endpoint, retries=1, backoff_initial_s=0.0).rows(1)
    assert len(endpoint.looks) == 2  # though the first was a moment ago


@in_virtual_time
async def test_pauses_between_retries_grow_up_to_the_longest() -> None:
    endpoint = Endpoint(post=lambda _nth: HttpReply(408, b"slow", None))
    work = job(endpoint, retries=300, backoff_initial_s=0.5, backoff_max_s=30.0)
    with pytest.raises(ServerFailed):
        await work.rows(1)
    assert len(endpoint.posts) == 301
    pauses = rests(endpoint.posts)
    for failures, pause in enumerate(pauses[:7]):
        assert 0 <= pause <= min(30.0, 0.5 * 2**failures)
    assert max(pauses) <= 30.0
    assert 10 < sum(pauses[10:]) / len(pauses[10:]) < 20  # all of the range is used
    assert work.tally.retries == 300


@in_virtual_time
async def test_what_the_row_caused_is_sent_once() -> None:
    endpoint = Endpoint(post=lambda _nth: HttpReply(400, b"bad", None))
    with pytest.raises(RequestRefused):
        await job(endpoint, retries=5).rows(1)
    assert len(endpoint.posts) == 1


@in_virtual_time
async def test_a_server_that_asks_for_a_longer_pause_than_is_left_gets_none_of_it() -> None:
    endpoint = Endpoint(post=lambda _nth: HttpReply(429, b"busy", 3000.0))
    began = now_s()
    with pytest.raises(BackPressure):
        await job(endpoint, retries=0).rows(1)
    assert 3600 <= now_s() - began <= 3601
    assert rests(endpoint.posts)[0] >= 3000


@pytest.mark.parametrize("told_s", [None, 0.0, 7.0])
def test_back_pressure_is_waited_out_without_an_attempt_and_for_an_hour_at_most(
    told_s: float | None,
) -> None:
    @in_virtual_time
    async def run() -> None:
        began = now_s()
        busy = HttpReply(429, b"busy", told_s)
        endpoint = Endpoint(post=lambda _nth: ANSWER if now_s() > began + 3500 else busy)
        work = job(endpoint, retries=0)
        await work.rows(1)
        least_s = 1.0 if told_s is None else told_s
        pauses = rests(endpoint.posts)
        assert all(least_s <= pause <= least_s + 0.25 for pause in pauses)
        assert (work.tally.retries, work.tally.turned_away) == (0, len(pauses))

        began = now_s()
        endpoint.post = lambda _nth: busy
        with pytest.raises(BackPressure):
            await work.rows(1)
        assert 3600 <= now_s() - began <= 3600 + least_s + 0.3

    run()


@in_virtual_time
async def test_no_server_makes_a_row_wait_longer_than_it_may_be_turned_away() -> None:
    began = now_s()
    hour = HttpReply(429, b"busy", 3600.0)
    endpoint = Endpoint(post=lambda _nth: hour)
    with pytest.raises(BackPressure):
        await job(endpoint, pressure_limit_s=120.0).rows(1)
    assert 120 <= now_s() - began <= 121
    assert len(endpoint.posts) == 2  # the last one as late as it may be


@in_virtual_time
async def test_a_process_without_files_says_nothing_of_the_endpoint_and_costs_no_row_anything() -> (
    None
):
    began = now_s()
    full = NoFileLeft("too many open files")
    endpoint = Endpoint(
        post=lambda _nth: ANSWER if now_s() > began + 60 else full,
        models=lambda: pytest.fail("there was no reason to ask"),
    )
    work = job(endpoint, retries=0)
    traces = await work.rows(50)
    assert {trace.attempts for trace in traces} == {1}
    assert work.tally.requests == 50  # that were sent
    assert work.tally.turned_away == 0
    assert work.tally.repeated["NoFileLeft: too many open files"] == work.tally.retries > 0
    assert work.states == []
    assert 60 <= now_s() - began <= 63


@in_virtual_time
async def test_while_nothing_can_be_opened_the_endpoint_is_not_judged_to_be_away() -> None:
    began = now_s()

    def listing() -> Outcome:
        return MODELS if now_s() > began + 30 else NoFileLeft("too many open files")

    def answer(nth: int) -> Outcome:
        return ConnectionBroken("broken") if nth == 1 else ANSWER

    endpoint = Endpoint(post=answer, models=listing)
    work = job(endpoint, retries=1)
    [trace] = await work.rows(1)
    assert trace.failures == 1
    assert work.states == []
    assert now_s() - began > 30


@in_virtual_time
async def test_a_replica_that_is_away_costs_nothing_for_a_minute_and_then_attempts() -> None:
    began = now_s()
    endpoint = Endpoint(post=lambda _nth: AWAY)
    work = job(endpoint, retries=2, backoff_initial_s=0.1)
    with pytest.raises(ConnectionBroken) as raised:
        await work.rows(1)
    trace = raised.value.trace
    assert trace.failures == 3
    assert trace.attempts == 1  # the first may have been in flight as it died, no other was
    forgiven, counted = endpoint.posts[:-3], endpoint.posts[-3:]
    assert forgiven[-1] - began < 60.1
    assert counted[0] - began > 59.9
    looking_s = 2 * TRIP_S  # whether the endpoint is gone, unless that was just found out
    assert all(0.1 <= pause <= 1.0 + looking_s for pause in rests(forgiven))


@in_virtual_time
async def test_a_replica_that_is_lost_under_a_row_three_times_is_the_rows_fault() -> None:
    endpoint = Endpoint(post=lambda _nth: LOST)
    work = job(endpoint, retries=0, backoff_initial_s=0.1)
    current_trace.set(RowTrace([Row(0, bytes(16), None)]))
    with pytest.raises(DeadlyRow):
        await work.session.post("/v1/chat/completions", {"model": "m"})
    assert len(endpoint.posts) == 3
    assert work.tally.retries == 0
    endpoint.posts.clear()
    with pytest.raises(ConnectionBroken):
        await work.row()  # a request of no row
    assert len(endpoint.posts) == 1


@in_virtual_time
async def test_an_endpoint_that_cannot_be_asked_for_ends_the_run_and_names_the_cause() -> None:
    """Nobody else opens the gate: rows would wait behind it for ever."""
    places = iter(["http://a"])

    def locate() -> str:
        return next(places, "") or str(int("nowhere"))

    endpoint = Endpoint(
        post=lambda _nth: CannotConnect("refused"), models=lambda: CannotConnect("refused")
    )
    work = job(endpoint, locate)
    with pytest.raises(JobError, match=r"Cannot determine whether the endpoint.*nowhere"):
        await work.rows(20)


async def test_a_port_at_which_nobody_listens_ends_the_session(bench: Bench) -> None:
    """A real one, of an endpoint that is no swarm's."""
    url, said = bench.server.url, list[str]()
    bench.server.stop()
    access, policy = EndpointAccess(lambda: url, None), RetryPolicy(retries=0, knock_max_s=0.05)
    with pytest.raises(JobError, match=f"Nothing answers at {url}: .*[Rr]efused"):
        async with open_session(access, policy, Tally(), said.append) as (client, _):
            await client.completions.create(model="m", prompt="p")
    assert said == [f"no answer so far from {url} yet; trying again"]
