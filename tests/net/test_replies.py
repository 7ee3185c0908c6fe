"""What a reply of status 200 came to, whole or in chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from domyn_swarm.jobs.builtin import responses
from domyn_swarm.net.replies import ReplyFacts, StreamedReply, read_reply, words_of
from domyn_swarm.net.request_errors import (
    BackPressure,
    BadReply,
    RequestError,
    RequestRefused,
    ServerFailed,
)

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def said(message: dict[str, Any], reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": reason, **more}]}


def facts_of(reply: Any, path: str = CHAT) -> ReplyFacts:
    return read_reply(path, json.dumps(reply).encode())


@pytest.mark.parametrize(
    ("reply", "ending", "silent"),
    [
        (said({"content": "fine"}), "complete", False),
        (said({"content": "fine"}, None), "complete", False),
        (said({"content": "fine"}, "eos_token"), "complete", False),
        (said({"content": "fi"}, "length"), "cut", False),
        (said({"content": "fi"}, "MAX_TOKENS"), "cut", False),
        (said({"content": None, "reasoning_content": "hm"}, "length"), "cut", True),
        (said({"content": ""}), "complete", True),
        (said({"content": None}), "complete", True),
        (said({}), "complete", True),
        (said({"content": " \n\t"}), "complete", True),
        (said({"content": []}), "complete", True),
        (said({"content": "<think>hm</think>\n"}), "complete", True),
        (said({"content": "<think>hm"}, "length"), "cut", True),
        (said({"content": "<think>hm</think>4"}), "complete", False),
        (said({"content": "<b>4</b>"}), "complete", False),
        (said({"content": [{"type": "text", "text": ""}]}), "complete", True),
        (said({"content": [{"type": "thinking", "thinking": "hm"}]}), "complete", True),
        (said({"content": [{"type": "text", "text": "fine"}]}), "complete", False),
        (said({"content": [{"type": "image_url", "image_url": {}}]}), "complete", False),
        (said({"content": None, "audio": {"data": "x"}}), "complete", False),
        (said({"content": None, "refusal": "I will not."}), "refused", False),
        (said({"content": "I"}, "content_filter"), "refused", False),
        (said({"content": None}, "content_filter"), "refused", True),
        (said({"content": None, "tool_calls": [CALL]}, "tool_calls"), "tool_calls", False),
        (said({"content": None, "tool_calls": [CALL]}), "tool_calls", False),
        (said({"content": None, "function_call": {"name": "f"}}), "tool_calls", False),
        (said({"content": None, "tool_calls": [CALL]}, "length"), "cut", False),
        (said({"content": "a", "tool_calls": []}), "complete", False),
        (said({"content": "a", "refusal": ""}), "complete", False),
        (said({"content": "a", "refusal": "I will not."}), "refused", False),
        (said({"content": "a", "function_call": {"name": "f"}}), "tool_calls", False),
        (said({"content": "\u3000\u00a0"}), "complete", True),
        (said({"content": " a"}), "complete", False),
        ({**said({"content": "a"}), "status": "incomplete"}, "complete", False),
    ],
)
def test_how_a_chat_ends(reply: Any, ending: str, silent: bool) -> None:
    facts = facts_of(reply)
    assert (facts.ending, facts.silent) == (ending, silent)
    body = json.dumps(reply).encode()
    read_reply(CHAT, body)
    words = words_of(body)
    assert words is None or words == responses.choices(body)[0].message.answer


def test_the_words_of_a_plain_reply_are_known_without_reading_it_again() -> None:
    bodies = [json.dumps(said({"content": text})).encode() for text in ("one", "two", "")]
    for body, words in zip(bodies, ("one", "two", None), strict=True):
        read_reply(CHAT, body)
        assert words_of(body) == words
    assert [words_of(body) for body in bodies] == [None, "two", None]  # the last plain one alone
    assert words_of(bytes(bytearray(bodies[1]))) is None  # another reply of the same words


def test_other_replies() -> None:
    text = {"choices": [{"text": "a", "finish_reason": "length"}]}
    assert facts_of(text, COMPLETIONS).ending == "cut"
    assert facts_of({"choices": [{"text": ""}]}, COMPLETIONS).silent
    assert facts_of({"data": [{"embedding": [1.0]}]}, EMBEDDINGS) == ReplyFacts()
    assert facts_of({"tokens": [1, 2]}, "/tokenize") == ReplyFacts()
    stopped = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert facts_of({**stopped, "error": None, "output": []}, "/v1/responses").ending == "cut"


def test_of_several_choices_the_worst_counts() -> None:
    both = [*said({"content": "a"})["choices"], *said({"content": ""}, "length")["choices"]]
    usage = {"prompt_tokens": 3, "completion_tokens": None}
    facts = facts_of({"choices": both, "usage": usage})
    assert facts == ReplyFacts(3, 0, ("stop", "length"), facts.code)
    assert facts.silent
    assert facts.ending == "cut"


@pytest.mark.parametrize(
    ("reply", "kind", "status", "words"),
    [
        ({"error": {"message": "upstream overloaded", "code": 502}}, ServerFailed, 502, "upstream"),
        ({"error": {"message": "slow down", "code": "429"}}, BackPressure, 429, "slow down"),
        ({"error": {"message": "m", "type": "rate_limit_exceeded"}}, BackPressure, 429, "m"),
        ({"error": {"message": "too long", "code": 400}}, RequestRefused, 400, "too long"),
        ({"error": {"message": "x", "type": "invalid_request_error"}}, RequestRefused, 400, "x"),
        ({"error": {"message": "bad key", "code": 401}}, RequestRefused, 401, "bad key"),
        ({"error": {"message": "no", "code": "boom"}}, ServerFailed, None, "no"),
        ({"error": "out of memory"}, ServerFailed, None, "out of memory"),
        ({"error": {"reason": "odd"}, "choices": []}, ServerFailed, None, "odd"),
        ({"object": "error", "message": "no model", "code": 404}, RequestRefused, 404, "no model"),
        ({"message": "try later", "code": 503}, ServerFailed, 503, "try later"),
        ({"detail": "not ready"}, ServerFailed, None, "not ready"),
        ({**said({"content": "half"}), "error": {"message": "lost"}}, ServerFailed, None, "lost"),
        (said({"content": ""}, "error"), ServerFailed, None, "finish_reason error"),
        (said({"content": "half"}, "abort"), ServerFailed, None, "finish_reason abort"),
        (
            said({"content": ""}, "stop", error={"message": "gone", "code": 502}),
            *(ServerFailed, 502, "gone"),
        ),
        ({"choices": []}, BadReply, None, "no choices"),
        ({"choices": None}, BadReply, None, "no choices"),
        ({}, BadReply, None, "no choices; it begins '{}'"),
        ({"choices": [{}]}, BadReply, None, "no message"),
        ({"choices": [{"message": None, "finish_reason": "stop"}]}, BadReply, None, "no message"),
        ({"choices": "no"}, BadReply, None, "Expected `array"),
        (["choices"], BadReply, None, "Expected `object`"),
    ],
)
def test_a_200_that_is_no_answer(
    reply: Any, kind: type[RequestError], status: int | None, words: str
) -> None:
    with pytest.raises(RequestError) as raised:
        facts_of(reply)
    assert (type(raised.value), raised.value.status) == (kind, status)
    assert words in raised.value.message


@pytest.mark.parametrize(
    "usage", ['{"prompt_tokens": "3"}', '{"prompt_tokens": 1.5}', '"none"', "[]", "7"]
)
def test_an_answer_is_kept_whatever_is_told_of_its_tokens(usage: str) -> None:
    body = json.dumps(said({"content": "fine"}))[:-1] + f', "usage": {usage}}}'
    facts = read_reply(CHAT, body.encode())
    assert (facts.ending.value, facts.silent, facts.prompt_tokens) == ("complete", False, 0)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": {"content": "a\xff"}, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}]}",
    ],
    ids=["no UTF-8", "nested deeply"],
)
def test_a_reply_that_cannot_be_decoded_is_no_fault_of_the_job(body: bytes) -> None:
    with pytest.raises(BadReply, match="not what the API promises"):
        read_reply(CHAT, body)
    with pytest.raises(BadReply, match="not what the API promises"):
        responses.choices(body)


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize("body", [b"<html>log in</html>", b"{}", b'{"data": [], "choices": [{}]}'])
def test_other_paths_have_a_shape_too(path: str, body: bytes) -> None:
    with pytest.raises(BadReply, match="not what the API promises"):
        read_reply(path, body)


def chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize(
    ("chunks", "ending", "silent"),
    [
        (
            [chunk({"role": "assistant"}), chunk({"content": "a"}), chunk({}, "stop")],
            *("complete", False),
        ),
        ([chunk({"content": ""}), chunk({}, "stop")], *("complete", True)),
        ([chunk({"content": "a"}), chunk({}, "length")], *("cut", False)),
        ([chunk({"refusal": "no"}), chunk({}, "stop")], *("refused", False)),
        ([chunk({"tool_calls": [CALL]}), chunk({}, "tool_calls")], *("tool_calls", False)),
        ([chunk({"content": "a"}), chunk({"content": ""}, "stop", 1)], *("complete", True)),
        ([b'{"choices": [], "usage": {"prompt_tokens": 2}}'], *("complete", True)),
    ],
)
def test_how_a_stream_ends(chunks: list[bytes], ending: str, silent: bool) -> None:
    reply = StreamedReply()
    for one in chunks:
        reply.add(one)
    facts = reply.facts()
    assert (facts.ending, facts.silent) == (ending, silent)


def test_an_error_in_a_stream_is_one() -> None:
    reply = StreamedReply()
    reply.add(chunk({"content": "a"}))
    with pytest.raises(ServerFailed, match="out of memory"):
        reply.add(b'{"error": {"message": "out of memory"}}')
    with pytest.raises(BackPressure, match="slow down"):
        reply.add_rest(b' {"error": {"message": "slow down", "code": 429}}')
    reply.add_rest(b": a comment")
