"""Replies of the API, as far as the built-in jobs read them."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from domyn_swarm.net.errors import BadReply

_Reply = TypeVar("_Reply")


class TokenLogprob(msgspec.Struct):
    """One generated token."""

    logprob: float


class Logprobs(msgspec.Struct):
    """The generated tokens; None where the server does not tell."""

    content: list[TokenLogprob] | None = None


class Message(msgspec.Struct):
    """What the assistant said. Reasoning has had two names."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """One answer."""

    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class ChatCompletion(msgspec.Struct):
    """A reply of `/v1/chat/completions`."""

    choices: list[Choice]


class Text(msgspec.Struct):
    """One continuation."""

    text: str


class Completion(msgspec.Struct):
    """A reply of `/v1/completions`."""

    choices: list[Text]


class Embedding(msgspec.Struct):
    """The vector of one input."""

    embedding: list[float]
    index: int = 0


class Embeddings(msgspec.Struct):
    """A reply of `/v1/embeddings`."""

    data: list[Embedding]


class Named(msgspec.Struct):
    """Any reply, as far as it says which it is."""

    id: str | None = None


chat = msgspec.json.Decoder(ChatCompletion)
completion = msgspec.json.Decoder(Completion)
embeddings = msgspec.json.Decoder(Embeddings)
named = msgspec.json.Decoder(Named)


def decoded(decoder: msgspec.json.Decoder[_Reply], body: bytes | memoryview) -> _Reply:
    """A reply's body.

    Raises:
        BadReply: it is not what the API promises.
    """
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadReply(f"the reply is not what the API promises: {error}") from error


def choices(body: bytes | memoryview) -> list[Choice]:
    """The answers of a chat completion, at least one.

    Raises:
        BadReply: there is none.
    """
    found = decoded(chat, body).choices
    if not found:
        raise BadReply("the reply has no choice")
    return found
