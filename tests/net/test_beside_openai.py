"""Ours and OpenAI's own client against one real server: the same calls, the same answers."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from domyn_swarm.backends.endpoint.address import free_port
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.session import EndpointAccess, open_session
from domyn_swarm.net.openai import OpenAIClient
from domyn_swarm.net.request_errors import ConnectionBroken, RequestRefused
from patience import limit_s, until

MESSAGES = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A simulator that speaks OpenAI's protocol."""
    port = free_port("127.0.0.1")
    program = [sys.executable, "-m", "domyn_swarm.engines.sim_server", "--model", "m"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--options", "{}"]
    with subprocess.Popen([*program, *place], stdout=subprocess.DEVNULL) as server:
        found = f"http://127.0.0.1:{port}"

        def healthy() -> bool:
            try:
                urllib.request.urlopen(f"{found}/health", timeout=limit_s()).close()
            except OSError:
                return False
            return True

        until(healthy)
        yield found
        server.terminate()


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
async def ours(url: str, tally: Tally) -> AsyncIterator[OpenAIClient]:
    access = EndpointAccess(lambda: url, None)
    async with open_session(access, RetryPolicy(retries=0), tally, print) as (client, _):
        yield client


@pytest.fixture
async def theirs(ours: OpenAIClient) -> AsyncIterator[openai.AsyncOpenAI]:
    client = ours.openai
    assert client is ours.openai
    yield client
    await client.close()


def told(reply: Any) -> dict[str, Any]:
    """What a reply says, but for what differs from call to call."""
    fields = reply.model_dump(exclude_unset=True) if not isinstance(reply, dict) else reply
    return {name: value for name, value in fields.items() if name not in ("id", "created")}


async def test_chat(ours: OpenAIClient, theirs: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 5, "n": 2}
    mine = await ours.chat.completions.create(**asked)
    other = await theirs.chat.completions.create(**asked)
    assert told(mine.model_dump()) == told(other)
    assert [one.message.content for one in mine.choices] == [
        one.message.content for one in other.choices
    ]
    assert mine.usage.completion_tokens == other.usage.completion_tokens  # type: ignore[union-attr]


async def test_completions_embeddings_and_models(
    ours: OpenAIClient, theirs: openai.AsyncOpenAI
) -> None:
    mine = await ours.completions.create(model="m", prompt="x")
    assert told(mine.model_dump()) == told(await theirs.completions.create(model="m", prompt="x"))
    vector = await ours.embeddings.create(model="m", input=["a", "b"])
    other = await theirs.embeddings.create(model="m", input=["a", "b"], encoding_format="float")
    assert [one.embedding for one in vector.data] == [one.embedding for one in other.data]
    listed = await theirs.models.list()
    assert [one.id for one in (await ours.models.list()).data] == [one.id for one in listed.data]


async def test_streams(ours: OpenAIClient, theirs: openai.AsyncOpenAI, tally: Tally) -> None:
    asked: dict[str, Any] = {
        "model": "m",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    stream_of_ours = await ours.chat.completions.create(**asked)
    mine = [told(chunk.model_dump()) async for chunk in stream_of_ours]
    async with await theirs.chat.completions.create(**asked) as stream:
        other = [told(chunk) async for chunk in stream]
    assert mine == other
    replies = tally.replies.sums
    assert replies.completion_tokens == mine[-1]["usage"]["completion_tokens"] > 0
    assert replies.latency.quantile(0.5) is not None


async def test_errors(ours: OpenAIClient, theirs: openai.AsyncOpenAI) -> None:
    with pytest.raises(RequestRefused) as mine:
        await ours.chat.completions.create(model="m", messages="no list")
    with pytest.raises(openai.BadRequestError) as other:
        await theirs.chat.completions.create(model="m", messages="no list")  # type: ignore[call-overload]
    assert mine.value.status == other.value.status_code == 400


async def test_a_stream_that_is_cut_is_an_error(tally: Tally) -> None:
    import asyncio

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writer.write(head + b'data: {"choices": []}\n\n')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    access = EndpointAccess(lambda: f"http://127.0.0.1:{port}", None)
    async with open_session(access, RetryPolicy(retries=0), tally, print) as (client, _):
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        assert (await anext(stream)).choices == []
        with pytest.raises(ConnectionBroken):
            await anext(stream)
    server.close()
    await server.wait_closed()
