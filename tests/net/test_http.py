"""Both HTTP clients pass the same suite against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from domyn_swarm.net.http import (
    AiohttpClient,
    HttpClient,
    HttpReply,
    ReqwestClient,
    parse_retry_after,
)
from domyn_swarm.net.request_errors import (
    BackPressure,
    CannotConnect,
    ConnectionBroken,
    NoFileLeft,
    ReplicaAway,
    ReplicaLost,
    RequestError,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
    error_from_status,
)
from open_file_limits import no_files_left
from patience import limit_s, until, until_async

CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()


@pytest.fixture(params=[ReqwestClient, AiohttpClient])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[HttpClient]:
    make: Callable[..., HttpClient] = request.param
    headers = {"content-type": "application/json", "authorization": "Bearer the-key"}
    opened = make(headers, use_proxy=False)
    yield opened
    await opened.close()


async def test_a_reply_is_whole(client: HttpClient, server: Any) -> None:
    reply = await client.request("POST", server.url + CHAT, BODY, limit_s())
    assert reply.status == 200
    assert json.loads(bytes(reply.body))["choices"][0]["message"]["content"] == "HELLO"


async def test_statuses_and_retry_after_come_through(
    client: HttpClient, server: Any, answer: Any
) -> None:
    server.behave = lambda _prompt, _nth: answer(status=503, headers={"retry-after": "7"})
    reply = await client.request("POST", server.url + CHAT, BODY, limit_s())
    assert (reply.status, reply.retry_after_s) == (503, 7.0)


async def test_the_router_says_who_answered(client: HttpClient, server: Any, answer: Any) -> None:
    reply = await client.request("POST", server.url + CHAT, BODY, limit_s())
    assert reply.served_by is None
    replica = "http://10.0.0.7:8000"
    server.behave = lambda _prompt, _nth: answer(headers={"x-smg-routed-worker-id": replica})
    reply = await client.request("POST", server.url + CHAT, BODY, limit_s())
    assert reply.served_by == replica


@pytest.mark.parametrize("timeout_s", [0.4, 3.0])
async def test_who_cannot_be_reached_is_not_one_that_does_not_answer(
    client: HttpClient, timeout_s: float
) -> None:
    """Whatever the limit: a server whose queue is full drops what wants to connect, as a host does
    that is gone.
    """
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        with pytest.raises(CannotConnect):
            await client.request("GET", url, None, timeout_s)


async def test_nobody_listens(client: HttpClient) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(CannotConnect):
        await client.request("GET", f"http://127.0.0.1:{port}/", None, limit_s())


async def test_a_process_without_files_is_not_taken_for_an_endpoint_that_is_away(
    client: HttpClient, server: Any
) -> None:
    await client.request("GET", server.url + "/v1/models", None, limit_s())  # what it opens once
    name = server.url.replace("127.0.0.1", "localhost")
    with no_files_left():
        for url in (f"http://127.0.0.1:{server.port}", name):
            # One connection may be there still, from before: its answer waits for the others' ends.
            server.answers_at_most = server.answered.total()
            asking = [
                asyncio.create_task(client.request("POST", url + CHAT, BODY, limit_s()))
                for _ in range(3)
            ]
            await until_async(lambda asking=asking: sum(one.done() for one in asking) > 1)
            server.answers_at_most = None
            ends = await asyncio.gather(*asking, return_exceptions=True)
            assert {type(end) for end in ends} - {HttpReply} == {NoFileLeft}, ends
    reply = await client.request("POST", server.url + CHAT, BODY, limit_s())
    assert reply.status == 200


async def test_no_reply_in_time(client: HttpClient, server: Any, answer: Any) -> None:
    server.behave = lambda _prompt, _nth: answer(delay_s=limit_s())
    with pytest.raises(RequestTimeout):
        await client.request("POST", server.url + CHAT, BODY, 0.2)


async def test_a_reset_connection(client: HttpClient, server: Any, answer: Any) -> None:
    server.behave = lambda _prompt, _nth: answer(reset=True)
    with pytest.raises(ConnectionBroken):
        await client.request("POST", server.url + CHAT, BODY, limit_s())


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_task_that_is_cancelled_as_its_answer_comes_ends(
    client: HttpClient, server: Any, streamed: bool
) -> None:
    answered = []

    async def ask() -> None:
        if streamed:
            answered.extend(
                [one async for one in client.stream(server.url + CHAT, BODY, limit_s())]
            )
        else:
            answered.append(await client.request("POST", server.url + CHAT, BODY, limit_s()))

    for number in range(1, 11):
        server.answers_at_most = number - 1
        asking = asyncio.create_task(ask())
        await until_async(lambda number=number: server.asked.total() == number)
        server.answers_at_most = number  # the answer comes while the loop does something else
        until(lambda number=number: server.answered.total() == number)
        time.sleep(0.05)  # noqa: ASYNC251 - for its way; the test holds without
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert answered == []


async def test_a_stream_yields_chunks_or_the_failed_reply(
    client: HttpClient, server: Any, answer: Any
) -> None:
    chunks = [chunk async for chunk in client.stream(server.url + CHAT, BODY, limit_s())]
    assert b"HELLO" in b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
    server.behave = lambda _prompt, _nth: answer(status=400)
    [reply] = [chunk async for chunk in client.stream(server.url + CHAT, BODY, limit_s())]
    assert isinstance(reply, HttpReply)
    assert reply.status == 400


@pytest.mark.parametrize(
    ("status", "retry_after_s", "kind", "retryable"),
    [
        (400, None, RequestRefused, False),
        (404, None, RequestRefused, False),
        (408, None, ServerFailed, True),
        (429, None, BackPressure, True),
        (500, None, ServerFailed, True),
        (503, None, ServerFailed, True),
        (503, 1.0, BackPressure, True),
    ],
)
def test_classification(
    status: int, retry_after_s: float | None, kind: type[RequestError], retryable: bool
) -> None:
    error = error_from_status(status, b'{"error": {"message": "why"}}', retry_after_s)
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.message == f"HTTP {status}: why"


def test_a_replica_lost_under_a_request_is_told_by_the_router() -> None:
    body = b'{"error": {"code": "call_upstream_request_error", "message": "gone"}}'
    assert type(error_from_status(500, body, None)) is ReplicaLost
    assert type(error_from_status(400, body, None)) is RequestRefused
    away = body.replace(b"request_error", b"connection_failed")
    assert type(error_from_status(500, away, None)) is ReplicaAway
    full = away.replace(b"gone", b"tcp connect error: Too many open files (os error 24)")
    assert type(error_from_status(500, full, None)) is BackPressure  # the router is full


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "(empty body)"),
        (b"<html>busy</html>", "<html>busy</html>"),
        (b'{"detail": "x"}', "{'detail': 'x'}"),
        (b'{"error": "flat"}', "flat"),
        (b"[1]", "[1]"),
        (b'{"error": "a\xff"}', '{"error": "a\ufffd"}'),
        (b"[" * 4000, "[" * 500),
    ],
)
def test_messages_of_odd_bodies(body: bytes, text: str) -> None:
    assert error_from_status(500, body, None).message == f"HTTP 500: {text}"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("2", 2.0), ("0.5", 0.5), ("-1", 0.0), ("999999", 3600.0), ("Mon, 1", 1.0)],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header) == seconds
