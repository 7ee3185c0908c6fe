"""Requests and answers of the simulator, in the shape of OpenAI's API."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from domyn_swarm.engines.sim_options import OutputTokens

_MAX_DEPTH = 12  # ends a schema that contains itself


def instance_of(schema: dict[str, Any], text: str) -> Any:  # noqa: ANN401 - JSON
    """The smallest JSON that fits a schema: strings are `text`, of alternatives the first is taken.

    Supports the part of JSON Schema that pydantic writes: types, enum, const, anyOf, allOf, $ref,
    bounds of numbers, items and required properties.
    """
    return _instance(schema, schema, text, 0)


def _instance(schema: Any, root: dict[str, Any], text: str, depth: int) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return _instance(_referred(root, str(schema["$ref"])), root, text, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _instance(schema[name][0], root, text, depth + 1)
    return _of_type(schema, root, text, depth)


def _of_type(schema: dict[str, Any], root: dict[str, Any], text: str, depth: int) -> Any:  # noqa: ANN401 - JSON
    match schema.get("type"):
        case "string":
            return text[: schema.get("maxLength", len(text))]
        case "integer" | "number" as kind:
            least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return least if kind == "integer" else float(least)
        case "boolean":
            return True
        case "array":
            items = schema.get("minItems", 1)
            return [_instance(schema.get("items"), root, text, depth + 1) for _ in range(items)]
        case "object":
            properties = schema.get("properties", {})
            required = schema.get("required", list(properties))
            return {
                name: _instance(properties.get(name), root, text, depth + 1) for name in required
            }
    return None


def _referred(root: dict[str, Any], reference: str) -> Any:  # noqa: ANN401 - JSON
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return node


READY_PROMPT = "domyn-swarm: ready?"  # the watchdog's first request: has no fault, is not recorded
REPLY_TOKENS = 16  # of an answer that `max_tokens` does not cut short
_WORDS = (
    *("river", "stone", "lantern", "orchard", "harbour", "copper", "violet", "winter"),
    *("meadow", "signal", "anchor", "feather", "marble", "thunder", "garden", "silver"),
)


def sim_reply(prompt: str, max_tokens: int = REPLY_TOKENS) -> str:
    """The answer to a prompt: a hash of the prompt and words derived from it. Deterministic."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=REPLY_TOKENS - 1).digest()
    words = [_WORDS[byte % len(_WORDS)] for byte in digest]
    return " ".join([digest.hex()[:8], *words][:max_tokens])


@dataclass(frozen=True)
class ModelTokens:
    """How a modelled engine counts the tokens of text, and how many it writes."""

    characters: int  # per token
    output: OutputTokens | None

    def of(self, text: str) -> int:
        """The number of tokens of a text."""
        return -(-len(text) // self.characters)

    def wanted(self, prompt: str) -> int:
        """The number of tokens of the uncut answer to a prompt. Deterministic."""
        if self.output is None:
            return REPLY_TOKENS
        chance = random.Random(f"{self.output.seed}:{prompt}")  # noqa: S311 - no secret
        return max(1, round(chance.lognormvariate(math.log(self.output.median), self.output.sigma)))

    def text(self, prompt: str, tokens: int) -> str:
        """An answer of `tokens` tokens. Deterministic."""
        words, length = sim_reply(prompt) + " ", tokens * self.characters
        return (words * (length // len(words) + 1))[: length - 1] + "."


_EMBEDDING_DIMENSIONS = 8


class BadRequest(ValueError):
    """The request is invalid; the message says why."""


@dataclass(frozen=True)
class Question:
    """One request for text."""

    model: str
    prompt: str  # the last message's content, or the text to complete
    max_tokens: int | None
    n: int
    stream: bool
    stream_usage: bool
    chat: bool
    logprobs: bool = False
    shape: dict[str, Any] | None = None  # JSON schema of the answer
    whole: str = ""  # everything a modelled engine reads: all messages, or the text to complete
    tokens: ModelTokens | None = None  # None: a word counts as a token

    @cached_property
    def answer(self) -> str:
        """The text of every choice."""
        if self.shape is not None:
            return json.dumps(instance_of(self.shape, sim_reply(self.prompt, REPLY_TOKENS)))
        most = self.max_tokens or self._wanted_tokens
        if self.tokens is None:
            return sim_reply(self.prompt, most)
        return self.tokens.text(self.prompt, min(most, self._wanted_tokens))

    @cached_property
    def _wanted_tokens(self) -> int:
        return REPLY_TOKENS if self.tokens is None else self.tokens.wanted(self.whole)

    @cached_property
    def prompt_tokens(self) -> int:
        """The number of tokens of everything that is read."""
        return self._count(self.prompt if self.tokens is None else self.whole)

    @cached_property
    def answer_tokens(self) -> int:
        """The number of tokens of one choice."""
        return self._count(self.answer)

    def _count(self, text: str) -> int:
        return len(text.split()) if self.tokens is None else self.tokens.of(text)

    @property
    def finish_reason(self) -> str:
        """`length` if `max_tokens` cut the answer short, else `stop`."""
        cut = self.max_tokens is not None and self.max_tokens < self._wanted_tokens
        return "length" if cut else "stop"

    @property
    def usage(self) -> dict[str, int]:
        """The token counts of all choices together."""
        read, written = self.prompt_tokens, self.answer_tokens * self.n
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }

    def reply(self, envelope: dict[str, Any]) -> dict[str, Any]:
        """The complete answer as one document."""
        content: dict[str, Any] = {"text": self.answer}
        if self.chat:
            content = {"message": {"role": "assistant", "content": self.answer}}
        if self.logprobs:
            content["logprobs"] = {"content": _logprobs(self.answer)}
        choices = [
            {"index": index, **content, "finish_reason": self.finish_reason}
            for index in range(self.n)
        ]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**envelope, "object": kind, "choices": choices, "usage": self.usage}

    def chunk(
        self, envelope: dict[str, Any], index: int, text: str, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One event of a stream."""
        piece: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        choice = {"index": index, **piece, "finish_reason": finish_reason}
        return {**envelope, "object": self._chunk_kind, "choices": [choice]}

    def usage_chunk(self, envelope: dict[str, Any]) -> dict[str, Any]:
        """The last event of a stream, sent if the request asks for usage."""
        return {**envelope, "object": self._chunk_kind, "choices": [], "usage": self.usage}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"


def question(body: dict[str, Any], *, chat: bool, tokens: ModelTokens | None = None) -> Question:
    """Parse a request for text; `tokens` is how a modelled engine counts them.

    Raises:
        BadRequest: a value is missing or of the wrong type.
    """
    options = body.get("stream_options")
    prompt = _last_message(body) if chat else _prompt(body.get("prompt"))
    return Question(
        model=str(body.get("model")),
        prompt=prompt,
        max_tokens=_count(body, "max_completion_tokens") or _count(body, "max_tokens"),
        n=_count(body, "n") or 1,
        stream=body.get("stream") is True,
        stream_usage=isinstance(options, dict) and options.get("include_usage") is True,
        chat=chat,
        logprobs=chat and body.get("logprobs") is True,
        shape=_shape(body),
        whole="" if tokens is None else _whole(body, prompt, tokens, chat=chat),
        tokens=tokens,
    )


def texts(body: dict[str, Any]) -> list[str]:
    """The texts of a request for embeddings.

    Raises:
        BadRequest: there are none.
    """
    given = body.get("input")
    items = given if isinstance(given, list) else [given]
    if not items:
        raise BadRequest("input is empty")
    return [_text(item, "input") for item in items]


def embeddings(inputs: list[str], model: str, tokens: ModelTokens | None = None) -> dict[str, Any]:
    """The reply to a request for embeddings: numbers derived from each text."""
    data = []
    for index, text in enumerate(inputs):
        digest = hashlib.blake2b(text.encode(), digest_size=_EMBEDDING_DIMENSIONS).digest()
        vector = [byte / 255 for byte in digest]
        data.append({"object": "embedding", "index": index, "embedding": vector})
    read = sum(len(text.split()) if tokens is None else tokens.of(text) for text in inputs)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def nothing(model: str) -> dict[str, Any]:
    """The empty reply to a kind of request that the simulator records but does not answer."""
    return {"object": "simulated", "model": model, "data": []}


def _logprobs(answer: str) -> list[dict[str, Any]]:
    """A number between -1 and 0 for each word, derived from it."""
    digests = [(word, hashlib.blake2b(word.encode(), digest_size=1)) for word in answer.split()]
    return [{"token": word, "logprob": -digest.digest()[0] / 256} for word, digest in digests]


def _shape(body: dict[str, Any]) -> dict[str, Any] | None:
    response_format = body.get("response_format")
    if not isinstance(response_format, dict) or response_format.get("type") != "json_schema":
        return None
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise BadRequest("response_format.json_schema.schema must be an object")
    return schema


def _last_message(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise BadRequest("messages must be a list of messages")
    content = messages[-1].get("content")
    return json.dumps(content) if isinstance(content, list) else _text(content, "content")


def _whole(body: dict[str, Any], prompt: str, tokens: ModelTokens, *, chat: bool) -> str:
    """The text that the engine reads, as a chat template would write it.

    A prompt of token ids becomes text of as many tokens.
    """
    if chat:
        tools = json.dumps(body["tools"]) if body.get("tools") else ""
        turns = [
            f"<|{message.get('role')}|>{_content(message.get('content'))}"
            for message in body["messages"]
        ]
        return "".join([tools, *turns, "<|assistant|>"])
    ids = body.get("prompt")
    if isinstance(ids, list):
        size = tokens.characters
        return "".join(f"{token_id:x}"[-size:].rjust(size) for token_id in ids)
    return prompt


def _content(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def _prompt(value: object) -> str:
    """The text of a prompt: a list of token ids becomes its JSON."""
    ids = isinstance(value, list) and value and all(type(item) is int for item in value)
    return json.dumps(value) if ids else _text(value, "prompt")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be text: the simulator supports nothing else")
    return value


def _count(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise BadRequest(f"{name} must be a whole number of at least 1")
    return value
