"""The result of a reply with status 200: its tokens, why it ended, and whether it has content.

A 200 may carry an error, break off, be a refusal, or be empty; every reply to a job is examined
here, however the job uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net.openai import CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH
from domyn_swarm.net.request_errors import NOT_JSON, BadReply, error_in_reply

# Servers say it in OpenAI's words, and in their own.
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_REFUSED = frozenset({"content_filter", "refusal", "safety", "recitation", "sensitive"})
_TOOLS = frozenset({"tool_calls", "function_call"})
_BROKEN = frozenset({"error", "abort", "network_error", "insufficient_system_resource"})

_KNOWN_PATHS = frozenset({CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH})
_THINKING = frozenset({"thinking", "reasoning", "redacted_thinking"})
_WORDS_SHOWN = 200
_STOPPED = ("stop",)
_NO_DATA = tuple(map(msgspec.Raw, (b"", b"null", b"[]")))

ENDINGS = (
    ReplyVerdict.COMPLETE,
    ReplyVerdict.TOOL_CALLS,
    ReplyVerdict.CUT,
    ReplyVerdict.REFUSED,
)
"""How an answer ends, from the best to the worst. Their places are kept in checkpoints."""

_TOOLS_PLACE, _CUT_PLACE, _REFUSED_PLACE = 1, 2, 3


class ReplyFacts(msgspec.Struct, frozen=True, gc=False):
    """One reply. Of several choices the worst ending counts, and an empty one."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: tuple[str | None, ...] = ()
    code: int = 0  # the place of the ending among `ENDINGS`, above a bit that says: silent

    @property
    def ending(self) -> ReplyVerdict:
        """How the answer ended."""
        return ENDINGS[self.code >> 1]

    @property
    def silent(self) -> bool:
        """Whether nothing was said."""
        return bool(self.code & 1)


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class _Message(msgspec.Struct, gc=False):
    content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct, gc=False):
    index: Any = 0
    message: _Message | None = None
    delta: _Message | None = None  # of a stream
    text: Any = None  # of a completion
    finish_reason: Any = None
    error: Any = None


class _Reply(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    data: msgspec.Raw = msgspec.Raw(b"")  # many numbers: not read here
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None
    detail: Any = None
    code: Any = None
    status: Any = None
    incomplete_details: dict[str, Any] | None = None


class _ReplyOfAnyUsage(_Reply):
    usage: Any = None


_NOTHING = _Message()
_NO_USAGE = _Usage()
_last_plain: list[tuple[bytes | memoryview, str]] = [(b"", "")]  # one, as a whole: see `words_of`
_decoder = msgspec.json.Decoder(_Reply)
_any_usage = msgspec.json.Decoder(_ReplyOfAnyUsage)


def read_reply(path: str, body: bytes | memoryview) -> ReplyFacts:
    """The facts of a whole reply to a request at `path`.

    Raises:
        RequestError: it is an error after all; which one is as its code says.
        BadReply: it is not what the API promises.
    """
    reply = _decoded(body)
    said = _plain_words(reply) if path == CHAT_PATH else None
    if said is not None:  # by far the commonest: nothing else to examine
        _last_plain[0] = (body, said)
        usage = reply.usage or _NO_USAGE
        return ReplyFacts(usage.prompt_tokens or 0, usage.completion_tokens or 0, _STOPPED)
    _raise_error(reply)
    if path in _KNOWN_PATHS:
        _check_shape(path, reply, body)
    facts = _facts([_choice_facts(one) for one in reply.choices or ()], reply.usage)
    if reply.status == "incomplete":  # of `/v1/responses`
        word = str((reply.incomplete_details or {}).get("reason"))
        facts = msgspec.structs.replace(facts, finish_reasons=(word,), code=_place(word) << 1)
    return facts


def words_of(body: bytes | memoryview) -> str | None:
    """The text of a chat's reply, if `read_reply` checked this body last and it is a single answer
    of text alone, so that it need not be decoded again. None: it has to be decoded.
    """
    looked_at, said = _last_plain[0]
    return said if looked_at is body else None


def _plain_words(reply: _Reply) -> str | None:
    """What a chat's reply says, if it is a single text answer without anything else to examine."""
    choices = reply.choices
    if not choices or len(choices) > 1 or reply.error or reply.object == "error":
        return None
    choice = choices[0]
    message = choice.message
    if message is None or choice.finish_reason != "stop" or choice.error:
        return None
    if message.refusal is not None or message.tool_calls or message.function_call:
        return None
    said = message.content
    if type(said) is not str or not said or said[0] == "<" or said[0].isspace():
        return None
    return said if choice.text is None and reply.status != "incomplete" else None


class StreamedReply:
    """A reply that comes in chunks."""

    def __init__(self) -> None:
        self._choices: dict[Any, _ChoiceFacts] = {}
        self._prompt_tokens = self._completion_tokens = 0

    def add(self, chunk: bytes) -> None:
        """Add one chunk. Raises as `read_reply`."""
        reply = _decoded(chunk)
        _raise_error(reply)
        for one in reply.choices or ():
            known = self._choices.get(one.index)
            facts = _choice_facts(one)
            self._choices[one.index] = facts if known is None else known.joined(facts)
        if reply.usage is not None:
            self._prompt_tokens += reply.usage.prompt_tokens or 0
            self._completion_tokens += reply.usage.completion_tokens or 0

    def add_rest(self, rest: bytes) -> None:
        """Take in what stood behind the last event: some servers send an error as a plain reply."""
        if rest.lstrip().startswith(b"{"):
            self.add(rest)

    def facts(self) -> ReplyFacts:
        """The facts of all chunks together."""
        usage = _Usage(self._prompt_tokens, self._completion_tokens)
        facts = _facts(list(self._choices.values()), usage)
        return (
            facts if self._choices else msgspec.structs.replace(facts, code=1)
        )  # it has said nothing


class _ChoiceFacts(NamedTuple):
    """One choice, or a chunk of one."""

    finish_reason: str | None
    ending: int  # its place among `ENDINGS`
    said: bool

    @property
    def code(self) -> int:
        """The number of this ending, as `ReplyFacts.code` has it."""
        return self.ending << 1 | (not self.said)

    def joined(self, later: _ChoiceFacts) -> _ChoiceFacts:
        """Both pieces together."""
        return _ChoiceFacts(
            later.finish_reason or self.finish_reason,
            max(self.ending, later.ending),
            self.said or later.said,
        )


def _choice_facts(choice: _Choice) -> _ChoiceFacts:
    reason = choice.finish_reason
    if choice.error:
        raise error_in_reply("the server broke the answer off", choice.error)
    message = choice.message or choice.delta or _NOTHING
    spoken = message.content if choice.text is None else choice.text
    calls = bool(message.tool_calls or message.function_call)
    refusal = message.refusal is not None and _says(message.refusal)
    said = _says(spoken) or refusal or calls or bool(message.audio)
    if reason is None or reason == "stop":  # by far the commonest
        return _ChoiceFacts(reason, _place("", refusal=refusal, calls=calls), said)
    word = str(reason).lower()
    if word in _BROKEN:
        raise error_in_reply(f"the server broke the answer off (finish_reason {reason})", None)
    return _ChoiceFacts(str(reason), _place(word, refusal=refusal, calls=calls), said)


def _place(word: str, *, refusal: bool = False, calls: bool = False) -> int:
    """Of an ending among `ENDINGS`."""
    if refusal or word in _REFUSED:
        return _REFUSED_PLACE
    if word in _CUT:
        return _CUT_PLACE
    return _TOOLS_PLACE if calls or word in _TOOLS else 0


def _says(content: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether there is anything but space and thinking in it."""
    if isinstance(content, str):
        blank = not content or content.isspace()
        return not blank and not (content[0] == "<" and _only_thinks(content))
    if isinstance(content, list):
        return any(map(_part_says, content))
    return bool(content)


def _only_thinks(content: str) -> bool:
    """Whether there is nothing behind a model's thinking, which may not have ended."""
    _, ended, behind = content.rpartition("</think>")
    return content.startswith("<think>") and not (ended and behind.strip())


def _part_says(part: Any) -> bool:  # noqa: ANN401 - JSON
    if not isinstance(part, dict):
        return _says(part)
    if part.get("type") in _THINKING:
        return False
    texts = [part[name] for name in ("text", "refusal") if name in part]
    return any(map(_says, texts)) if texts else True


def _facts(choices: Sequence[_ChoiceFacts], usage: _Usage | None) -> ReplyFacts:
    usage = usage or _NO_USAGE
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    if len(choices) == 1:
        return ReplyFacts(prompt, completion, (choices[0].finish_reason,), choices[0].code)
    code = 0
    for one in choices:
        code = worst(code, one.code)
    return ReplyFacts(prompt, completion, tuple(one.finish_reason for one in choices), code)


def worst(one: int, other: int) -> int:
    """The code of two answers together."""
    return max(one >> 1, other >> 1) << 1 | (one | other) & 1


def _decoded(body: bytes | memoryview) -> _Reply:
    try:
        return _decoder.decode(body)
    except NOT_JSON as error:
        return _without_usage(body, error)


def _without_usage(body: bytes | memoryview, error: Exception) -> _Reply:
    """A reply whose count of tokens alone is not what the API promises: its answer was paid for.

    Raises:
        BadReply: there is more wrong with it.
    """
    try:
        reply = _any_usage.decode(body)
    except NOT_JSON:
        raise _bad(str(error), body) from error
    reply.usage = None
    return reply


def _raise_error(reply: _Reply) -> None:
    """Raise what a reply says went wrong, if it says so."""
    if reply.error:
        raise error_in_reply("the reply is an error", reply.error)
    if reply.object == "error":
        raise error_in_reply("the reply is an error", _complaint(reply))


def _check_shape(path: str, reply: _Reply, body: bytes | memoryview) -> None:
    embeds, chat = path == EMBEDDINGS_PATH, path == CHAT_PATH
    if reply.data in _NO_DATA if embeds else not reply.choices:
        complaint = _complaint(reply)
        if complaint["message"]:
            raise error_in_reply("the reply is an error", complaint)
        raise _bad(f"it has no {'embeddings' if embeds else 'choices'}", body)
    for one in () if embeds else reply.choices or ():
        if (one.message if chat else one.text) is None and not one.error:
            raise _bad(f"a choice has no {'message' if chat else 'text'}", body)


def _complaint(reply: _Reply) -> dict[str, Any]:
    return {"message": reply.message or reply.detail, "code": reply.code}


def _bad(what: str, body: bytes | memoryview) -> BadReply:
    shown = bytes(body[:_WORDS_SHOWN]).decode("utf-8", "replace").strip()
    return BadReply(f"the reply is not what the API promises: {what}; it begins {shown!r}")
