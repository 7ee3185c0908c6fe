"""What breaks for every row pauses all and fails none; what one row causes is its error alone."""

from __future__ import annotations

import asyncio

import pytest

from batch.mortal_engines import ANSWER, Engines, Run, reply
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.standing import brief
from domyn_swarm.net.http import HttpReply
from domyn_swarm.net.request_errors import RequestRefused, error_from_status, page_instead
from virtual_time import in_virtual_time, now_s

PAGE = HttpReply(200, b"\n<!DOCTYPE html><title>Log in</title><p>Please log in.</p>", None)
SHUT = {
    "a key that is withdrawn": (reply(401, "invalid key"), "HTTP 401: invalid key", "the key"),
    "no right any more": (reply(403, "forbidden"), "HTTP 403", "allowed"),
    "no credit": (reply(402, "pay"), "HTTP 402", "credit"),
    "no quota": (reply(429, "insufficient_quota"), "HTTP 429", "credit"),
    "a model that is gone": (reply(404, "no model `m`"), "no model `m`", "served under its name"),
    "a redirect": (HttpReply(302, b"", None), "HTTP 302", "login page"),
    "a login page": (PAGE, "a web page came instead of an answer: Log in Please log in.", "login"),
}


def rows(count: int) -> list[str]:
    return [f"row {number}" for number in range(count)]


@pytest.mark.parametrize("slots", [1, 16])
@pytest.mark.parametrize("what", SHUT)
def test_a_door_that_shuts_for_all_pauses_the_rows_until_it_opens(what: str, slots: int) -> None:
    said, words, remedy = SHUT[what]

    @in_virtual_time
    async def run() -> None:
        shut_at = now_s() + 10.0
        open_at = shut_at + 600.0
        engines = Engines(1, routed=False, judge=lambda _: said if _shut() else None)
        engines.answer_s, engines.jitter_s = 0.5, 0.4

        def _shut() -> bool:
            return shut_at <= now_s() < open_at

        work = Run(engines, slots)

        async def look() -> list[bool]:
            await asyncio.sleep(300.0)  # it is shut
            left = [one for row, one in work.took.items() if row not in work.outcomes]
            return [one.only_waits for one in left]

        waiting, _ = await asyncio.gather(look(), work(rows(60 * slots)))
        assert waiting == [True] * slots
        assert not any(one.held or one.asked for one in work.took.values())
        assert work.failed == {}
        assert open_at < now_s()
        paused = [one for one in work.states if one]
        assert len(paused) == 1
        assert words in paused[0]
        assert remedy in paused[0]
        assert work.states[-1] is None
        assert engines.probes < 140  # one in five seconds, for one token
        assert work.tally.retries == 0
        assert max(trace.attempts for trace in work.took.values()) == 1  # what was let in
        assert engines.asked.total() <= 61 * slots + engines.probes

    run()


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("slots", [1, 16])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_row_that_alone_is_turned_away_fails_alone(status: int, slots: int, routed: bool) -> None:
    said = reply(status, "not this one")

    @in_virtual_time
    async def run() -> None:
        bad = {"row 20", "row 21", "row 22", "row 23", "row 24", "row 25"}
        engines = Engines(
            3 if routed else 1, routed=routed, judge=lambda one: said if one in bad else None
        )
        work = Run(engines, slots)
        await work(rows(60))
        assert work.failed == dict.fromkeys(bad, "RequestRefused")
        assert str(work.outcomes["row 20"]) == f"HTTP {status}: not this one"
        assert [one for one in work.states if one] == []
        assert engines.probes <= len(bad) * 3

    run()


@pytest.mark.parametrize("status", [401, 404, 403])
@pytest.mark.parametrize("answer_s", [0.25, 4.0])
def test_another_server_at_a_dead_replicas_port_fails_no_row(answer_s: float, status: int) -> None:
    """It answers at once, so that the least loaded replica is always this one."""

    @in_virtual_time
    async def run() -> None:
        engines = Engines(2, answer_s=answer_s, leaves_s=0.0, elsewhere=0.2)
        work = Run(engines, 12)

        def judge(_prompt: str) -> None:
            if 4.0 <= now_s() - began < 19.0:
                engines.engines[0].says = reply(status, "who are you?")
            elif now_s() - began >= 19.0:  # the router has dropped it
                engines.engines[0].back_at = float("inf")

        began = now_s()
        engines.judge = judge
        await work(rows(int(260 / answer_s)))
        assert work.failed == {}
        assert now_s() - began > 19.0

    run()


@pytest.mark.parametrize("what", SHUT)
def test_a_door_that_is_shut_at_the_beginning_fails_rows_at_once(what: str) -> None:
    """A handful of them ends the run: see `FailureLimit`."""

    @in_virtual_time
    async def run() -> None:
        began = now_s()
        engines = Engines(1, routed=False, judge=lambda _: SHUT[what][0])
        work = Run(engines, 16)
        await work(rows(20))
        assert len(work.failed) == 20
        assert all(error is not None and error.may_meet_all for error in work.outcomes.values())
        assert now_s() - began < 1.0
        assert work.states == []
        assert set(engines.asked.values()) == {1}

    run()


@in_virtual_time
async def test_rows_turned_away_before_the_first_answer_wait_for_it() -> None:
    """A filter says no sooner than a model says anything: it is no wrong key."""
    engines = Engines(1, routed=False, answer_s=9.0)
    filtered = {f"row {number}" for number in range(7)}
    engines.judge = lambda one: reply(403, "filtered") if one in filtered else None
    work = Run(engines, 8)
    began = now_s()
    await work(rows(20))
    assert work.failed == dict.fromkeys(filtered, "RequestRefused")
    assert work.states == []
    assert now_s() - began < 60.0


@in_virtual_time
async def test_a_kind_of_request_that_never_was_answered_fails_beside_others() -> None:
    engines = Engines(1, routed=False)
    work = Run(engines, 4)
    await work(rows(8))
    engines.judge = lambda _: reply(404, "no such path")
    with pytest.raises(RequestRefused, match="HTTP 404"):
        await work.session.post("/v1/rerank", {"model": "m", "prompt": "x"})


# -- no reply in time ------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 8])
def test_a_row_that_takes_too_long_is_sent_twice_and_names_the_limit(slots: int) -> None:
    @in_virtual_time
    async def run() -> None:
        engines = Engines(1, routed=False, judge=lambda one: 30.0 if one == "row 5" else None)
        work = Run(engines, slots, RetryPolicy(timeout_s=3.0))
        await work(rows(20))
        assert work.failed == {"row 5": "RequestTimeout"}
        said = str(work.outcomes["row 5"])
        assert "no reply within 3 s" in said
        assert "--timeout" in said
        assert engines.executed["row 5"] == 2
        assert work.tally.timed_out == 2
        assert work.states == []

    run()


@pytest.mark.parametrize(("more", "requests"), [(0, 1), (3, 4), (9, 6)])
def test_how_often_is_said_and_never_more_than_the_retries(more: int, requests: int) -> None:
    @in_virtual_time
    async def run() -> None:
        engines = Engines(1, routed=False, answer_s=30.0)
        policy = RetryPolicy(timeout_s=3.0, timeout_retries=more, retries=5)
        work = Run(engines, 2, policy)
        await work(rows(2))
        assert set(engines.executed.values()) == {requests}

    run()


@pytest.mark.parametrize("slots", [1, 8])
def test_a_server_that_is_stuck_is_waited_for(slots: int) -> None:
    @in_virtual_time
    async def run() -> None:
        began = now_s()
        engines = Engines(1, routed=False)
        engines.judge = lambda _: 900.0 if 20.0 < now_s() - began < 500.0 else None
        work = Run(engines, slots, RetryPolicy(timeout_s=10.0))
        await work(rows(100))
        assert work.failed == {}
        assert now_s() - began > 500.0
        [paused] = [one for one in work.states if one]
        assert "no reply within 10 s" in paused
        assert "--timeout" in paused
        assert engines.asked.total() < 100 + 3 * slots + 480 / 10

    run()


# -- what a probe is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "sent"),
    [
        ("/v1/chat/completions", b'{"model":"m"}', b'{"model":"m","max_tokens":1}'),
        (
            "/v1/chat/completions",
            b'{"max_completion_tokens":900,"stream":true,"n":4}',
            b'{"max_completion_tokens":1}',
        ),
        ("/v1/embeddings", b'{"input":["a"]}', b'{"input":["a"]}'),
        ("/v1/responses", b'{"max_output_tokens":90}', b'{"max_output_tokens":1}'),
    ],
)
def test_a_probe_asks_for_as_little_as_it_can(path: str, body: bytes, sent: bytes) -> None:
    assert brief(path, body) == sent


@pytest.mark.parametrize(
    ("status", "barred"),
    [(302, True), (400, False), (401, True), (403, True), (404, True), (422, False), (500, False)],
)
def test_which_replies_every_row_may_get(status: int, barred: bool) -> None:
    assert error_from_status(status, b"no", None).barred is barred


def test_what_is_no_page() -> None:
    assert page_instead(ANSWER, None) is None
    assert page_instead(b"", None) is None
