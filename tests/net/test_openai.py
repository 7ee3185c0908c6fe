"""The client that user code gets has the shape of OpenAI's."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from domyn_swarm.errors import ConfigError
from domyn_swarm.net.openai import ClientAddress, OpenAIClient
from domyn_swarm.net.request_errors import BadReply


class Recorded:
    """A transport that answers from a list and remembers what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = [json.dumps(answer).encode() for answer in answers]
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.timeouts: list[float | None] = []

    async def post(self, path: str, body: dict[str, Any], timeout_s: float | None = None) -> bytes:
        self.timeouts.append(timeout_s)
        self.asked.append((path, body))
        return self.answers.pop(0)

    async def get(self, path: str) -> bytes:
        self.asked.append((path, {}))
        return self.answers.pop(0)

    async def post_stream(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> AsyncIterator[bytes]:
        self.timeouts.append(timeout_s)
        self.asked.append((path, body))
        for answer in self.answers:
            yield answer


CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "hi", "reasoning_content": "hm"},
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


async def test_replies_have_the_attributes_of_openais() -> None:
    transport = Recorded(CHAT)
    client = OpenAIClient(transport)
    reply = await client.chat.completions.create(
        model="m", messages=[], temperature=0.1, stop=None, extra_body={"guided_json": {}}
    )
    theirs = openai.types.chat.ChatCompletion.model_validate(CHAT)
    assert reply.choices[0].message.content == theirs.choices[0].message.content
    assert reply.choices[0].finish_reason == theirs.choices[0].finish_reason
    assert reply.usage.total_tokens == 3
    assert reply.choices[0].message.reasoning_content == "hm"
    assert reply.choices[0].message.tool_calls is None
    assert reply.model_dump() == CHAT
    assert reply["choices"][0]["message"]["content"] == "hi"
    assert transport.asked == [
        (
            "/v1/chat/completions",
            {"model": "m", "messages": [], "temperature": 0.1, "stop": None, "guided_json": {}},
        )
    ]


async def test_streaming_yields_chunks() -> None:
    transport = Recorded(*[{"choices": [{"delta": {"content": text}}]} for text in "abc"])
    chunks = await OpenAIClient(transport).chat.completions.create(model="m", stream=True)
    text = [chunk.choices[0].delta.content async for chunk in chunks]
    assert text == ["a", "b", "c"]
    assert transport.asked[0][1]["stream"] is True


async def test_other_paths() -> None:
    transport = Recorded({"choices": []}, {"data": [{"embedding": [0.5]}]})
    client = OpenAIClient(transport)
    await client.completions.create(model="m", prompt="x")
    reply = await client.embeddings.create(model="m", input="x")
    assert reply.data[0].embedding == [0.5]
    assert [path for path, _ in transport.asked] == ["/v1/completions", "/v1/embeddings"]


async def test_a_reply_that_is_no_object_is_bad() -> None:
    with pytest.raises(BadReply):
        await OpenAIClient(Recorded([1])).completions.create(model="m")


async def test_what_was_not_given_is_left_out_and_what_is_not_ours_is_refused() -> None:
    transport = Recorded(CHAT, CHAT)
    client = OpenAIClient(transport)
    await client.chat.completions.create(
        model="m", max_tokens=openai.NOT_GIVEN, stop=openai.omit, timeout=3.0
    )
    await client.with_options(timeout=9.0).chat.completions.create(model="m")
    assert [body for _, body in transport.asked] == [{"model": "m"}, {"model": "m"}]
    assert transport.timeouts == [3.0, 9.0]
    with pytest.raises(ValueError, match=r"extra_headers .* client\.openai has it"):
        await client.chat.completions.create(model="m", extra_headers={"X": "y"})


async def test_replies_can_be_copied_dumped_and_asked_for_what_is_not_there() -> None:
    reply = await OpenAIClient(Recorded(CHAT)).chat.completions.create(model="m")
    assert copy.deepcopy(reply).model_dump() == CHAT
    assert json.loads(reply.model_dump_json()) == CHAT == reply.to_dict()
    assert reply.system_fingerprint is None
    with pytest.raises(AttributeError):
        _ = reply._private


async def test_models_are_listed() -> None:
    client = OpenAIClient(Recorded({"data": [{"id": "m"}]}))
    assert [model.id for model in (await client.models.list()).data] == ["m"]


async def test_a_stream_is_closed() -> None:
    transport = Recorded({"choices": []}, {"choices": []})
    stream = await OpenAIClient(transport).chat.completions.create(model="m", stream=True)
    async with stream:
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


def test_without_the_package_the_official_client_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match="needs the package openai") as refused:
        _ = OpenAIClient(Recorded(), lambda: ClientAddress("http://x", None)).openai
    assert "domyn-swarm[openai]" in refused.value.hint
