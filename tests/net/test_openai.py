"""The client that user code gets has the shape of OpenAI's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from domyn_swarm.net.errors import BadReply
from domyn_swarm.net.openai import OpenAIClient


class Recorded:
    """A transport that answers from a list and remembers what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = [json.dumps(answer).encode() for answer in answers]
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        self.asked.append((path, body))
        return self.answers.pop(0)

    async def post_stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
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
            {"model": "m", "messages": [], "temperature": 0.1, "guided_json": {}},
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
