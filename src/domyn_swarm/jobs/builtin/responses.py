"""The fields of the API's replies that the built-in jobs read. `net.replies` has checked before
that they are answers.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from domyn_swarm.net.request_errors import NOT_JSON, BadReply

_Reply = TypeVar("_Reply")
_Indexed = TypeVar("_Indexed", "Choice", "Text")

_TEXTS = frozenset({"text", "output_text"})
_THINKING = frozenset({"thinking", "reasoning"})


class TokenLogprob(msgspec.Struct, gc=False):
    """One generated token."""

    logprob: float


class Logprobs(msgspec.Struct, gc=False):
    """The generated tokens; None if the server does not report them."""

    content: list[TokenLogprob] | None = None


class Message(msgspec.Struct, gc=False):
    """The assistant's message. Reasoning has had two names."""

    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    function_call: dict[str, Any] | None = None

    @property
    def calls(self) -> bool:
        """Whether it has tool calls."""
        return bool(self.tool_calls or self.function_call)

    @property
    def text(self) -> str | None:
        """Its content: text, the texts of its parts, or a refusal."""
        if isinstance(self.content, list):
            return _joined(self.content) or self.refusal
        return self.content or self.refusal or self.content

    @property
    def answer(self) -> str | None:
        """The answer to keep: its text, or the message's JSON if it has tool calls."""
        if not self.tool_calls and not self.function_call:
            return self.content if isinstance(self.content, str) and self.content else self.text
        fields = {
            name: getattr(self, name)
            for name in ("content", "tool_calls", "function_call")
            if getattr(self, name) is not None
        }
        return msgspec.json.encode({"role": "assistant", **fields}).decode()

    @property
    def thoughts(self) -> str | None:
        """The reasoning that a parser of the server separated."""
        return self.reasoning_content or self.reasoning


class Choice(msgspec.Struct, gc=False):
    """One answer."""

    message: Message
    index: Any = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class ChatCompletion(msgspec.Struct, gc=False):
    """A reply of `/v1/chat/completions`."""

    choices: list[Choice]


class Text(msgspec.Struct, gc=False):
    """One continuation."""

    text: str
    index: Any = None


class Completion(msgspec.Struct, gc=False):
    """A reply of `/v1/completions`."""

    choices: list[Text]


class Embedding(msgspec.Struct, gc=False):
    """The vector of one input, not decoded yet."""

    embedding: msgspec.Raw
    index: int | None = None


class Embeddings(msgspec.Struct, gc=False):
    """A reply of `/v1/embeddings`."""

    data: list[Embedding]


class Named(msgspec.Struct, gc=False):
    """The fields that identify any reply."""

    id: str | None = None


chat = msgspec.json.Decoder(ChatCompletion)
completion = msgspec.json.Decoder(Completion)
embeddings = msgspec.json.Decoder(Embeddings)
vector = msgspec.json.Decoder(list[float])
named = msgspec.json.Decoder(Named)


def decoded(
    decoder: msgspec.json.Decoder[_Reply], body: bytes | memoryview | msgspec.Raw
) -> _Reply:
    """A reply's body, or a part of it, decoded.

    Raises:
        BadReply: it does not follow the API.
    """
    try:
        return decoder.decode(body)
    except NOT_JSON as error:
        raise BadReply(f"the reply is not what the API promises: {error}") from error


def choices(body: bytes | memoryview) -> list[Choice]:
    """The answers of a chat completion, at least one, in the order that their indexes say.

    Raises:
        BadReply: they do not follow the API.
    """
    return in_order(decoded(chat, body).choices)


def continuations(body: bytes | memoryview) -> list[Text]:
    """The same of a completion."""
    return in_order(decoded(completion, body).choices)


def in_order(found: list[_Indexed]) -> list[_Indexed]:
    """Choices by their indexes; where these name no order, as they came."""
    if len(found) < 2:  # by far the commonest
        return found
    places: list[Any] = [one.index for one in found]
    if not all(type(place) is int for place in places) or len({*places}) < len(places):
        return found
    return sorted(found, key=lambda one: int(one.index))


def _joined(parts: list[dict[str, Any]]) -> str | None:
    """The text of a message's parts; their JSON if some of them are not text."""
    said = [part for part in parts if part.get("type") not in _THINKING]
    texts = [part.get("text") for part in said]
    if any(part.get("type", "text") not in _TEXTS for part in said):
        return msgspec.json.encode(said).decode()
    return "".join(text for text in texts if isinstance(text, str)) or None
