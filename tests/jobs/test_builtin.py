"""The built-in jobs against a real server: what they send, and what they make of replies."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.output.output_schema import OutputMismatch
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.session import EndpointAccess, open_session
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs import (
    ChatCompletionJob,
    ChatCompletionPerplexityJob,
    CompletionJob,
    EmbeddingJob,
    MultiChatCompletionJob,
    MultiTurnChatCompletionJob,
    MultiTurnTranslationJob,
    StructuredOutputJob,
    SwarmJob,
    TemplateJob,
)
from domyn_swarm.jobs.job_loading import load_job
from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net.request_errors import BadReply, RequestError, RequestRefused
from model_server import KEY, Answer, ModelServer


def ask(server: ModelServer, job: SwarmJob, *items: Any) -> Any:
    """The answers of a job, as a run would get them."""

    async def asked() -> Any:
        access = EndpointAccess(lambda: server.url, KEY)
        async with open_session(access, RetryPolicy(retries=0), Tally(), print) as (client, _):
            job.check()
            job.bind(client, "m")
            return await job.transform_items(list(items))

    answers = asyncio.run(asked())
    return answers[0] if len(items) == 1 else answers


def chat(*texts: str | None, **more: Any) -> Answer:
    """A reply with these choices."""
    choices = [{"message": {"role": "assistant", "content": text}, **more} for text in texts]
    return Answer(body={"choices": choices, "usage": {"prompt_tokens": 1}})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# -- what is asked -------------------------------------------------------------------------------


def test_text_messages_system_and_parameters(server: ModelServer) -> None:
    job = ChatCompletionJob(system="Be {{ mood }}.", temperature=0.1, extra_body={"top_k": 3})
    assert tuple(job.input_columns) == ("messages", "mood")
    assert ask(server, job, {"messages": "hi", "mood": "kind"}) == "HI"
    assert server.bodies[-1] == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, user("hi")],
        "temperature": 0.1,
        "top_k": 3,
    }
    assert ask(server, ChatCompletionJob(), [{**user("a"), "name": None}]) == "A"
    assert server.bodies[-1]["messages"] == [{**user("a"), "name": None}]


def test_prompts_over_columns(server: ModelServer) -> None:
    job = TemplateJob(prompt="{{ a }}{% if b %}, {{ b | upper }}{% endif %}: {{ c }}")
    assert tuple(job.input_columns) == ("a", "b", "c")
    ask(server, job, {"a": "x", "b": "y", "c": ["é", {"d": 1}]})
    assert server.bodies[-1]["messages"] == [user('x, Y: ["é",{"d":1}]')]
    with pytest.raises(ValueError, match="a value in the prompt is null"):
        ask(server, job, {"a": None, "b": None, "c": 1})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs a prompt"),
        ({"prompt": "{{ a"}, "template is wrong in line 1"),
        ({"prompt": "always the same"}, "uses no column"),
        ({"prompt": "{{ a }}{{ b }}", "input_columns": ["a"]}, "templates use b"),
    ],
)
def test_prompts_that_are_wrong(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TemplateJob(**options).check()


def test_parameters_by_column(server: ModelServer) -> None:
    job = ChatCompletionJob(param_columns={"temperature": "heat"}, temperature=1, max_tokens=5)
    rows = [{"messages": "a", "heat": 0.5}, {"messages": "b", "heat": None}]
    for row in rows:
        ask(server, job, row)
    assert [body["temperature"] for body in server.bodies] == [0.5, 1]
    assert tuple(CompletionJob(param_columns="seed").input_columns) == ("prompt", "seed")


def test_numbers_that_json_has_not_are_not_sent_as_null(server: ModelServer) -> None:
    job = ChatCompletionJob(param_columns={"temperature": "heat"})
    for odd in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature of the request is no finite number"):
            ask(server, job, {"messages": "a", "heat": odd})
        told = [{**user("a"), "weight": [1.0, odd]}]
        with pytest.raises(ValueError, match=r"messages\[0\].weight\[1\] of the request"):
            ask(server, ChatCompletionJob(), told)
        with pytest.raises(ConfigError, match=r"extra_body.x\[0\] is no finite number"):
            load_job("domyn_swarm.jobs:ChatCompletionJob", {"extra_body": {"x": [odd]}})
    assert server.bodies == []


def test_messages_are_objects(server: ModelServer) -> None:
    pairs = [("role", "user"), ("content", "a")]  # as Python has Arrow's maps
    assert ask(server, ChatCompletionJob(), [pairs, user("b")]) == "B"
    assert server.bodies[-1]["messages"] == [user("a"), user("b")]
    for odd in ([1], ["a"], [[["role", "user"]]], [user("a"), None]):
        with pytest.raises(ValueError, match="a message must be an object"):
            ask(server, ChatCompletionJob(), odd)


def test_completions(server: ModelServer) -> None:
    assert ask(server, CompletionJob(), "go") == "GO"
    assert ask(server, CompletionJob(prompt="{{ a }}!"), "go") == "GO!"
    with pytest.raises(ValueError, match="the prompt is int, not text"):
        ask(server, CompletionJob(), 5)


def test_the_limit_of_completions_has_its_own_name() -> None:
    for options in ({"max_completion_tokens": 5}, {"extra_body": {"max_completion_tokens": 5}}):
        with pytest.raises(ConfigError, match="max_completion_tokens") as refused:
            CompletionJob(**options).check()
        assert "max_tokens" in refused.value.hint
    CompletionJob(max_tokens=5).check()


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (CompletionJob(), "3 answers were cut by the server's own token limit.*16 tokens"),
        (ChatCompletionJob(), "3 answers were cut by the server's own token limit"),
        (ChatCompletionJob(max_tokens=5), None),
        (ChatCompletionJob(param_columns=["max_completion_tokens"]), None),
    ],
)
def test_a_limit_that_nobody_chose_is_told(job: SwarmJob, told: str | None) -> None:
    found = " ".join(job.remarks({ReplyVerdict.CUT: 3, ReplyVerdict.COMPLETE: 1}))
    assert re.search(told, found) if told else found == ""
    assert job.remarks({ReplyVerdict.COMPLETE: 4}) == []


# -- several answers, perplexity -----------------------------------------------------------------


def test_reasoning(server: ModelServer) -> None:
    reply = {"choices": [{"message": {"content": "4", "reasoning": "2+2"}}]}
    server.behave = lambda _prompt, _nth: Answer(body=reply)
    assert ask(server, ChatCompletionJob(parse_reasoning=True), "q") == ("4", "2+2")


def test_a_plain_reply_is_decoded_once(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(_: Any) -> Any:
        raise AssertionError("it was decoded before")

    texts = iter(["4", json.dumps(GOOD), "4"])
    server.behave = lambda _prompt, _nth: chat(next(texts), finish_reason="stop")
    with monkeypatch.context() as patched:
        patched.setattr("domyn_swarm.jobs.builtin.chat.choices", unread)
        patched.setattr("domyn_swarm.jobs.builtin.structured.choices", unread)
        assert ask(server, ChatCompletionJob(), "q") == "4"
        shaped = ask(server, StructuredOutputJob(output_schema=Verdict), "q")
        assert shaped == Verdict(**GOOD)
    assert ask(server, ChatCompletionJob(parse_reasoning=True), "q") == ("4", None)


def test_several_answers(server: ModelServer) -> None:
    server.behave = lambda _prompt, _nth: chat("a", "b", "c")
    assert ask(server, MultiChatCompletionJob(n=3), "q") == ["a", "b", "c"]
    assert server.bodies[-1]["n"] == 3


@pytest.mark.parametrize(
    ("indexes", "texts"),
    [
        ([2, 0, 1], ["b", "c", "a"]),
        ([0, 1, 2], ["a", "b", "c"]),
        ([None, None, None], ["a", "b", "c"]),  # they say nothing
        ([0, 0, 0], ["a", "b", "c"]),
    ],
)
def test_answers_stand_in_the_order_of_their_indexes(
    server: ModelServer, indexes: list[int | None], texts: list[str]
) -> None:
    reply = chat("a", "b", "c")
    for choice, index in zip(reply.body["choices"], indexes, strict=True):
        choice["index"] = index
    server.behave = lambda _prompt, _nth: reply
    assert ask(server, MultiChatCompletionJob(n=3), "q") == texts
    assert ask(server, ChatCompletionJob(), "q") == texts[0]


def test_a_server_that_gives_one_answer_at_a_time(server: ModelServer) -> None:
    server.behave = lambda _prompt, nth: chat(f"a{nth}")
    assert ask(server, MultiChatCompletionJob(n=3, seed=7), "q") == ["a1", "a2", "a3"]
    assert [(body["n"], body["seed"]) for body in server.bodies] == [(3, 7), (2, 8), (1, 9)]


def test_perplexity(server: ModelServer) -> None:
    tokens = [{"token": "x", "logprob": value} for value in (-1.0, -3.0, -0.5)]
    server.behave = lambda _prompt, _nth: chat("xyz", logprobs={"content": tokens})
    text, whole, half = ask(server, ChatCompletionPerplexityJob(), "q")
    assert text == "xyz"
    assert whole == pytest.approx(math.exp(4.5 / 3))
    assert half == pytest.approx(math.exp(4.0 / 2))
    assert server.bodies[-1]["logprobs"] is True
    server.behave = lambda _prompt, _nth: chat("xyz")
    with pytest.raises(BadReply, match="does not report them"):
        ask(server, ChatCompletionPerplexityJob(), "q")


CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "a"}]}, "a"),
        ({"content": [{"type": "image", "url": "u"}]}, '[{"type":"image","url":"u"}]'),
        ({"content": None, "refusal": "I will not."}, "I will not."),
        ({"content": "", "refusal": None}, ""),
        (
            {"content": None, "tool_calls": CALLS},
            json.dumps({"role": "assistant", "tool_calls": CALLS}, separators=(",", ":")),
        ),
        (
            {"content": "so", "function_call": {"name": "f"}},
            '{"role":"assistant","content":"so","function_call":{"name":"f"}}',
        ),
    ],
)
def test_what_is_kept_of_a_message(server: ModelServer, message: Any, answer: str) -> None:
    server.behave = lambda _prompt, _nth: Answer(body={"choices": [{"message": message}]})
    assert ask(server, ChatCompletionJob(), "q") == answer


# -- conversations -------------------------------------------------------------------------------


def test_every_turn_is_answered(server: ModelServer) -> None:
    turns = [
        {"role": "system", "content": "S"},
        user("one"),
        {"role": "assistant", "content": "kept"},
        user("two"),
        {"role": "tool", "content": "three"},
        {"role": "assistant", "content": "end"},
    ]
    said = ask(server, MultiTurnChatCompletionJob(), turns)
    assert [one["content"] for one in said] == [
        *("S", "one", "ONE", "kept", "two", "TWO", "three", "THREE", "end")
    ]
    assert [len(body["messages"]) for body in server.bodies] == [2, 5, 7]
    with pytest.raises(ValueError, match="no user or tool message"):
        ask(server, MultiTurnChatCompletionJob(), turns[:1])


@pytest.mark.parametrize(
    "job", [MultiTurnChatCompletionJob(), MultiTurnTranslationJob(target_language="Italian")]
)
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None, "tool_calls": CALLS}, "called tools"),
        ({"content": None}, "said nothing"),
        ({"content": " "}, "said nothing"),
    ],
)
def test_a_conversation_does_not_go_on_with_nothing(
    server: ModelServer, job: SwarmJob, message: Any, reason: str
) -> None:
    server.behave = lambda _prompt, _nth: Answer(body={"choices": [{"message": message}]})
    with pytest.raises(ValueError, match=reason):
        ask(server, job, [user("one"), user("two")])
    assert len(server.bodies) == 1


def test_conversations_are_translated(server: ModelServer) -> None:
    job = MultiTurnTranslationJob(
        target_language="Italian", roles=["user", "assistant"], context_turns=1
    )
    turns = [
        {"role": "system", "content": "left"},
        user("one"),
        {"role": "assistant", "content": "two", "name": "bot"},
        user(""),
        user("three"),
    ]
    told = ask(server, job, turns)
    assert [one["content"] for one in told] == ["left", "ONE", "TWO", "", "THREE"]
    assert told[2]["name"] == "bot"
    asked = [[one["content"] for one in body["messages"]][1:] for body in server.bodies]
    assert asked == [["one"], ["one", "ONE", "two"], ["two", "TWO", "three"]]
    assert "to Italian" in server.bodies[0]["messages"][0]["content"]
    with pytest.raises(ConfigError, match="needs a target_language"):
        MultiTurnTranslationJob().check()


def test_texts_among_parts_are_translated_and_the_others_kept(server: ModelServer) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,x"}}
    call = {"role": "assistant", "content": None, "tool_calls": CALLS}
    parts = [{"type": "text", "text": "one"}, image, {"type": "text", "text": "two"}, {"text": " "}]
    turns = [{"role": "user", "content": parts}, call, {"role": "tool", "content": "three"}]
    told = ask(server, MultiTurnTranslationJob(target_language="Italian"), turns)
    assert told == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "ONE"},
                image,
                {"type": "text", "text": "TWO"},
                {"text": " "},
            ],
        },
        call,
        {"role": "tool", "content": "three"},
    ]
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([user("a"), {"content": "b"}], "message 2 of the conversation has no role"),
        ([user("a"), "b"], "message 2 of the conversation has no role"),
        ([{"role": "user", "content": 5}], "message 1 has neither text nor parts, but 5"),
        ([{"role": "human", "content": "a"}], "no message is by system or user .* but by human"),
        ("a", "a conversation is a list of messages, not 'a'"),
        ([], "a conversation is a list of messages"),
    ],
)
def test_what_would_not_be_translated_is_an_error_of_its_row(
    server: ModelServer, turns: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(server, MultiTurnTranslationJob(target_language="Italian"), turns)
    assert server.bodies == []


@pytest.mark.parametrize("options", [{"roles": []}, {"roles": [1]}, {"context_turns": -1}], ids=str)
def test_options_of_a_translation_that_mean_nothing(options: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        MultiTurnTranslationJob(target_language="Italian", **options).check()


# -- embeddings ----------------------------------------------------------------------------------


def embed(prompt: str, _nth: int) -> Answer:
    """The length of each text as its vector, in the wrong order; `bad` is refused."""
    texts = prompt.split("|")
    if "bad" in texts:
        return Answer(status=400)
    data = [{"index": at, "embedding": [len(text)]} for at, text in enumerate(texts)]
    return Answer(body={"data": data[::-1]})


def test_a_server_without_embeddings_is_asked_once(server: ModelServer) -> None:
    server.behave = lambda *_: Answer(status=501, body={"error": {"message": "not supported"}})
    errors = ask(server, EmbeddingJob(), "a", "b", "c")
    assert len(server.bodies) == 1
    for error in errors:
        assert isinstance(error, RequestRefused)
        assert (error.status, error.retryable) == (501, False)
        assert "args: --embedding" in error.message


def test_embeddings_go_many_at_once(server: ModelServer) -> None:
    server.behave = embed
    job = EmbeddingJob(batch_size=8, dimensions=1)
    assert (job.rows_per_call, EmbeddingJob(param_columns="dimensions").rows_per_call) == (8, 1)
    assert ask(server, job, "a", "bb", "ccc") == [[1.0], [2.0], [3.0]]
    assert server.bodies == [{"model": "m", "input": ["a", "bb", "ccc"], "dimensions": 1}]


def test_one_text_that_is_refused_takes_no_other_with_it(server: ModelServer) -> None:
    server.behave = embed
    first, bad, empty, last = ask(server, EmbeddingJob(), "a", "bad", None, "dd")
    assert (first, last) == ([1.0], [2.0])
    assert isinstance(bad, RequestError)
    assert "no text to embed" in str(empty)


def brittle(prompt: str, nth: int) -> Answer:
    """One vector for each text; texts that break something do it for all that come with them."""
    texts = prompt.split("|")
    if "broken" in texts:
        return Answer(status=500)
    if "short" in texts and len(texts) > 1:
        return Answer(body={"data": [{"index": 0, "embedding": [1.0]}]})
    if "twice" in texts:
        data = [{"index": 0, "embedding": [1.0]} for _ in texts]
        return Answer(body={"data": data}) if len(texts) > 1 else Answer(body={"data": data[:1]})
    odd = {"none": None, "empty": [], "null": [None], "huge": [1e999], "text": "AAAA"}
    found: list[Any] = [odd.get(text, [float(len(text))]) for text in texts]
    if "nan" in texts:  # Python's server writes what is no JSON
        found[texts.index("nan")] = [math.nan]
    return Answer(body={"data": [{"index": at, "embedding": one} for at, one in enumerate(found)]})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("broken", "HTTP 500"),
        ("nan", "not what the API promises"),
        ("none", "Expected `array`"),
        ("null", "Expected `float`"),
        ("text", "Expected `array`"),
        ("huge", "not what the API promises"),
        ("empty", "the embedding is empty"),
    ],
)
def test_whatever_one_text_breaks_the_others_get_their_vectors(
    server: ModelServer, bad: str, reason: str
) -> None:
    server.behave = brittle
    texts = [f"text {number}" for number in range(64)]
    texts[17] = bad
    answers = ask(server, EmbeddingJob(batch_size=64), *texts)
    wrong = answers.pop(17)
    assert isinstance(wrong, BadReply | RequestError)
    assert reason in str(wrong)
    assert answers == [[float(len(text))] for text in texts if text != bad]
    assert len(server.bodies) <= 13  # halves, not one by one


def test_vectors_that_cannot_be_told_apart_are_asked_for_again(server: ModelServer) -> None:
    server.behave = brittle
    for bad in ("short", "twice"):
        answers = ask(server, EmbeddingJob(), "a", bad, "ccc")
        assert (answers[0], answers[2]) == ([1.0], [3.0])
        assert isinstance(answers[1], list)


@pytest.mark.parametrize("status", [401, 404])
def test_what_is_wrong_with_every_text_is_not_asked_in_halves(
    server: ModelServer, status: int
) -> None:
    server.behave = lambda _prompt, _nth: Answer(status=status)
    answers = ask(server, EmbeddingJob(), "a", "b", "c", "d")
    assert [one.status for one in answers] == [status] * 4
    assert len(server.bodies) == 1


# -- structured output ---------------------------------------------------------------------------


class Verdict(BaseModel):
    label: Literal["good", "bad"]
    score: float


GOOD = {"label": "good", "score": 0.5}


def test_the_schema_goes_with_the_request_and_the_answer_is_typed(server: ModelServer) -> None:
    server.behave = lambda _prompt, _nth: chat(json.dumps(GOOD))
    job = StructuredOutputJob(output_schema=Verdict, prompt="{{ a }}")
    assert ask(server, job, "x") == Verdict(**GOOD)
    assert job.schema().names == ["label", "score"]
    told = server.bodies[-1]["response_format"]
    assert told["type"] == "json_schema"
    assert told["json_schema"]["schema"] == Verdict.model_json_schema()


@pytest.mark.parametrize(
    "declared", ["jobs.test_builtin:Verdict", {"label": str, "score": "float"}]
)
def test_shapes_by_name_and_by_types(server: ModelServer, declared: Any) -> None:
    server.behave = lambda _prompt, _nth: chat(f"```json\n{json.dumps(GOOD)}\n```")
    job = StructuredOutputJob(output_schema=declared)
    assert ask(server, job, "x").model_dump() == GOOD


def test_an_answer_that_does_not_fit_is_sent_back(server: ModelServer) -> None:
    answers = iter(["{", json.dumps({**GOOD, "label": "ugly"}), json.dumps(GOOD)])
    server.behave = lambda _prompt, _nth: chat(next(answers))
    assert ask(server, StructuredOutputJob(output_schema=Verdict, repairs=2), "x").label == "good"
    last = server.bodies[-1]["messages"]
    assert [one["role"] for one in last] == ["user", "assistant", "user", "assistant", "user"]
    assert "label: Input should be 'good' or 'bad'" in last[-1]["content"]


def test_an_answer_that_never_fits_is_a_row_error(server: ModelServer) -> None:
    server.behave = lambda _prompt, _nth: chat('{"label": ')
    with pytest.raises(OutputMismatch, match=r"no Verdict: .*EOF.*it was '\{"):
        ask(server, StructuredOutputJob(output_schema=Verdict), "x")
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (chat('{"label": ', finish_reason="length"), "cut at its token limit: max_tokens"),
        (chat(f"{json.dumps(GOOD)} and", finish_reason="length"), "cut at its token limit"),
        (chat("Sorry.", finish_reason="content_filter"), "refused"),
        (
            Answer(body={"choices": [{"message": {"refusal": "I will not say that."}}]}),
            "refused.*it was 'I will not say that.'",
        ),
        (
            Answer(body={"choices": [{"message": {"tool_calls": [{"id": "1"}]}}]}),
            "calls of tools",
        ),
    ],
)
def test_an_answer_that_would_end_the_same_again_is_not_sent_back(
    server: ModelServer, reply: Answer, reason: str
) -> None:
    server.behave = lambda _prompt, _nth: reply
    with pytest.raises(OutputMismatch, match=reason):
        ask(server, StructuredOutputJob(output_schema=Verdict, repairs=3), "x")
    assert len(server.bodies) == 1


def test_json_behind_thinking_is_one_request(server: ModelServer) -> None:
    text = f"<think>maybe {json.dumps({**GOOD, 'label': 'bad'})}</think>\n{json.dumps(GOOD)}"
    server.behave = lambda _prompt, _nth: chat(text)
    assert ask(server, StructuredOutputJob(output_schema=Verdict), "x") == Verdict(**GOOD)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "text"}},
        {"extra_body": {"response_format": {"type": "text"}}},
        {"param_columns": {"response_format": "a"}},
        {"guided": "guided_json", "guided_json": {}},
    ],
)
def test_a_shape_of_the_users_own_is_not_lost(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="yours would be lost") as told:
        StructuredOutputJob(output_schema=Verdict, **options).check()
    assert 'guided="none"' in told.value.hint


def test_a_shape_of_one_row_is_an_error_of_that_row_and_one_without_ours_is_sent(
    server: ModelServer,
) -> None:
    server.behave = lambda _prompt, _nth: chat(json.dumps(GOOD))
    job = StructuredOutputJob(
        output_schema=Verdict, prompt="{{ a }}", param_columns={"extra_body": "x"}
    )
    own = {"response_format": {"type": "json_object"}}
    with pytest.raises(ConfigError, match="yours would be lost"):
        ask(server, job, {"a": "x", "x": own})
    ask(server, job(guided="none"), {"a": "x", "x": own})
    assert server.bodies[-1]["response_format"] == own["response_format"]


def test_servers_without_guided_decoding(server: ModelServer) -> None:
    server.behave = lambda _prompt, _nth: chat(json.dumps(GOOD))
    ask(server, StructuredOutputJob(output_schema=Verdict, guided="none"), "x")
    assert "response_format" not in server.bodies[-1]
    assert '"score"' in server.bodies[-1]["messages"][0]["content"]
    ask(server, StructuredOutputJob(output_schema=Verdict, guided="guided_json"), "x")
    assert server.bodies[-1]["guided_json"] == Verdict.model_json_schema()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs an output_schema with types"),
        ({"output_schema": "nowhere:Model"}, "cannot be imported"),
        ({"output_schema": Verdict, "guided": "yes"}, "guided is 'yes'"),
        ({"output_schema": Verdict, "repairs": -1}, "repairs must be"),
    ],
)
def test_shapes_that_are_wrong(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        StructuredOutputJob(**options)
