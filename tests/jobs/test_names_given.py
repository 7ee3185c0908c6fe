"""Names that a job is given: what somebody knows is taken, what nobody knows is refused."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from domyn_swarm import SwarmJob, job
from domyn_swarm.batch.input.reading import InputReading
from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.jobs import (
    BatchFileJob,
    ChatCompletionJob,
    CompletionJob,
    EmbeddingJob,
    MultiChatCompletionJob,
    StructuredOutputJob,
    TemplateJob,
    keywords,
    run_options,
)
from domyn_swarm.jobs.job_loading import load_job
from domyn_swarm.jobs.naming import OPTIONS
from domyn_swarm.jobs.progress_display import Hooks
from domyn_swarm.jobs.running import RunSettings
from domyn_swarm.net import parameters
from domyn_swarm.net.openai import OpenAIClient
from domyn_swarm.record import Record
from domyn_swarm.swarm.job_request import JobRequest, SubmitKeywords, request_of
from jobs.test_builtin import ask
from model_server import ModelServer


@job
async def answered(
    item: str, client: OpenAIClient, model: str, *, words: int = 5, **params: Any
) -> str:
    """A job whose parameters go on to the request."""
    asked = [{"role": "user", "content": f"{words} {item}"}]
    reply = await client.chat.completions.create(model=model, messages=asked, **params)
    return str(reply.choices[0].message.content)


@job
async def closed(item: str, *, words: int = 5) -> str:
    """A job that takes what it names."""
    return item * words


class Styled(SwarmJob):
    """A job of a user's own with an argument of its own."""

    greetings = ("hello", "hi")
    temperature = 0.5

    def __init__(self, *, style: str = "plain", **options: Any) -> None:
        super().__init__(style=style, **options)

    async def transform_item(self, item: Any) -> str:
        return f"{self.greetings[0]} {item} {self.params['style']} {self.temperature}"


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        (ChatCompletionJob, {"max_tokns": 5}, "no parameter 'max_tokns'.*\n.*mean 'max_tokens'"),
        (ChatCompletionJob, {"input_column_name": "x"}, "no parameter.*\n.*mean 'input_columns'"),
        (ChatCompletionJob, {"max_concurency": 5}, "no parameter.*\n.*mean 'max_concurrency'"),
        (ChatCompletionJob, {"parse_resoning": True}, "no parameter.*\n.*mean 'parse_reasoning'"),
        (ChatCompletionJob, {"zzz": 5}, "no parameter 'zzz'.*\n.*extra_body"),
        (
            ChatCompletionJob,
            {"dispatch": "auto"},
            "of the run, not a parameter: --dispatch",
        ),
        (ChatCompletionJob, {"shard_output": True}, "--shard-output of `job submit`"),
        (ChatCompletionJob, {"messages": []}, "makes that part of a request itself"),
        (ChatCompletionJob, {"stream": True}, "makes that part of a request itself"),
        (ChatCompletionJob, {"param_columns": ["temprature"]}, "mean 'temperature'"),
        (ChatCompletionJob, {"param_columns": {"zzz": "z"}}, "no parameter 'zzz'"),
        (ChatCompletionJob, {"extra_body": 5}, "extra_body must be an object"),
        (CompletionJob, {"max_completion_tokens": 5}, "mean 'max_tokens'"),
        (EmbeddingJob, {"dimension": 5}, "mean 'dimensions'"),
        (EmbeddingJob, {"temperature": 1}, "no parameter 'temperature'"),
        (TemplateJob, {"promt": "{{ a }}"}, "mean 'prompt'"),
        (StructuredOutputJob, {"output_schema": {"a": "int"}, "repair": 1}, "mean 'repairs'"),
        (BatchFileJob, {"keep_modell": True}, "mean 'keep_model'"),
        (Styled, {"stile": "x"}, "job Styled has no parameter 'stile'.*\n.*mean 'style'"),
        (Styled, {"wordiness": 5}, "argument of its function or of its class's __init__"),
        (answered, {"max_tokns": 5}, "job answered has no parameter.*\n.*mean 'max_tokens'"),
        (answered, {"wrods": 5}, "mean 'words'"),
        (
            closed,
            {"max_tokens": 5},
            "job closed has no parameter 'max_tokens'.*\n.*It has: .*words",
        ),
    ],
)
def test_what_nobody_knows_is_refused(kind: Any, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        kind(**given)


def test_the_same_from_a_submission() -> None:
    for name in ("ChatCompletionJob", "BatchFileJob"):
        with pytest.raises(ConfigError, match="Did you mean 'max_tokens'"):
            load_job(f"domyn_swarm.jobs:{name}", {"max_tokns": 5})


def test_what_somebody_knows_reaches_the_server(server: ModelServer) -> None:
    known = {"temperature": 0.7, "top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}
    ask(server, ChatCompletionJob(**known, extra_body={"mirostat": 2}), "q")
    assert known.items() <= server.bodies[-1].items()
    assert server.bodies[-1]["mirostat"] == 2
    assert "extra_body" not in server.bodies[-1]
    ask(server, answered(words=2, seed=3, extra_body={"zzz": 1}), "q")
    assert (server.bodies[-1]["seed"], server.bodies[-1]["zzz"]) == (3, 1)
    assert ask(server, Styled(style="fine", temperature=1), "you") == "hello you fine 0.5"


def test_a_column_may_hold_what_only_the_server_knows(server: ModelServer) -> None:
    given = ChatCompletionJob(param_columns=["extra_body", "seed"], extra_body={"a": 1})
    ask(server, given, {"messages": "q", "extra_body": {"zzz": 2}, "seed": None})
    ask(server, given, {"messages": "q", "extra_body": None, "seed": 4})
    assert [{*body} - {"model", "messages"} for body in server.bodies] == [
        {"a", "zzz"},
        {"a", "seed"},
    ]
    with pytest.raises(ConfigError, match="must be an object"):
        ask(server, given, {"messages": "q", "extra_body": "zzz", "seed": 4})


def test_a_client_takes_what_the_api_knows(server: ModelServer) -> None:
    with pytest.raises(ValueError, match="'max_tokns'; did you mean 'max_tokens'"):
        ask(server, answered_wrongly(), "q")
    assert server.bodies == []


@job
async def answered_wrongly(item: str, client: OpenAIClient, model: str) -> Any:
    """A slip in a job's own code."""
    return await client.completions.create(model=model, prompt=item, max_tokns=5)


def test_the_list_has_what_openais_client_takes() -> None:
    openai = pytest.importorskip("openai")
    client = openai.AsyncOpenAI(api_key="none")
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    for resource, known in (
        (client.chat.completions, parameters.CHAT),
        (client.completions, parameters.COMPLETIONS),
        (client.embeddings, parameters.EMBEDDINGS),
        (client.responses, parameters.RESPONSES),
    ):
        taken = {*inspect.signature(resource.create).parameters} - own
        assert taken <= known | parameters.ASKED
    asyncio.run(client.close())


# -- attributes of classes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "name", "reason"),
    [
        (SwarmJob, "max_concurency", "Did you mean 'max_concurrency'"),
        (SwarmJob, "input_column", "Did you mean 'input_columns'"),
        (SwarmJob, "output_column", "Did you mean 'output_col"),
        (SwarmJob, "input_column_name", "earlier version.*\n.*called input_columns"),
        (SwarmJob, "timeout", "Did you mean 'timeout_s'"),
        (SwarmJob, "rows_per_cal", "Did you mean 'rows_per_call'"),
        (ChatCompletionJob, "system", r"no effect.*\n.*Mine\(system=...\)"),
        (ChatCompletionJob, "param_column", "Did you mean 'param_columns'"),
        (EmbeddingJob, "batch_size", "no effect"),
    ],
)
def test_an_attribute_that_looks_like_an_option(base: type, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"Mine.{name}\b[\s\S]*{reason}"):
        type("Mine", (base,), {name: "x"})


def test_code_of_an_earlier_version() -> None:
    with pytest.raises(ConfigError, match=r"item reads self.kwargs[\s\S]*self.params"):

        class Old(SwarmJob):
            async def transform_item(self, item: Any) -> Any:
                return await self.client.completions.create(prompt=item, **self.kwargs)

    class Own(SwarmJob):
        """What it keeps itself is its own matter."""

        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.kwargs = options

        async def transform_item(self, item: Any) -> Any:
            return self.kwargs[item]

    class Whole(SwarmJob):
        async def transform(self, rows: Any) -> Any:
            return rows

    assert asyncio.run(Own(a=1).transform_item("a")) == 1
    with pytest.raises(ConfigError, match="`transform` of earlier versions is not called"):
        Whole().check()


def test_a_parameter_as_an_attribute_that_nothing_reads() -> None:
    class Mine(ChatCompletionJob):
        temperature = 0.2

    with pytest.raises(ConfigError, match=r"Mine.temperature would have no effect[\s\S]*Mine\("):
        Mine().check()
    Mine(temperature=0.3).check()

    class Reads(Mine):
        async def transform_item(self, item: Any) -> Any:
            self.params["temperature"] = self.temperature
            return await super().transform_item(item)

    Reads().check()


def test_attributes_of_ones_own(server: ModelServer) -> None:
    assert ask(server, Styled(), "you") == "hello you plain 0.5"

    class Mine(Styled):
        names = ("a", "b")
        prompt = "{}"
        style = "mine"
        retries = 3

    assert Mine().options.retries == 3


def test_names_of_output_columns(server: ModelServer) -> None:
    class Both(SwarmJob):
        output_cols = ("first", "second")

        async def transform_item(self, item: str) -> tuple[str, str]:
            return item, item

    class One(ChatCompletionJob):
        output_cols = "answer"

    assert Both().schema().names == ["first", "second"]
    assert One().schema().names == ["answer"]
    assert ChatCompletionJob(output_cols=["said"]).schema().names == ["said"]
    assert One(output_columns=["said"]).schema().names == ["said"]
    with pytest.raises(ConfigError, match=r"1 output column \(result\), but 2 names"):
        ChatCompletionJob(output_cols=["a", "b"])
    with pytest.raises(ConfigError, match="2 output columns"):
        One(parse_reasoning=True)


class Kept(SwarmJob):
    """A job that keeps what it is given to itself."""

    def __init__(self, *, style: str = "plain", **options: Any) -> None:
        super().__init__(**options)
        self.style = style


def test_what_a_class_of_ones_own_is_given_is_part_of_the_jobs_identity() -> None:
    plain, fine = Kept(style="plain").described(), Kept(style="fine").described()
    assert plain != fine
    assert {**plain, "arguments": None} == {**fine, "arguments": None}
    assert Kept(max_concurrency=5, retries=2).described() == Kept().described()
    assert "arguments" not in Styled(style="fine").described()  # they are among its parameters


@pytest.mark.parametrize("given", [{"n": 3}, {"extra_body": {"n": 2}}, {"param_columns": ["n"]}])
def test_answers_that_nobody_would_keep_are_not_asked_for(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="keeps one answer") as refused:
        ChatCompletionJob(**given).check()
    assert "MultiChatCompletionJob" in refused.value.hint
    ChatCompletionJob(n=1).check()
    MultiChatCompletionJob(n=3).check()

    class Longest(ChatCompletionJob):
        async def transform_item(self, item: Any) -> str:
            return str(item)

    Longest(n=3).check()


# -- names that editors complete ------------------------------------------------------------------


def test_every_option_has_its_keyword_and_no_keyword_is_unknown() -> None:
    assert {*keywords.OptionKeywords.__annotations__} == OPTIONS
    settings = {one.name for one in (*fields(RunSettings), *fields(Hooks))}
    settings = settings - {"hooks", "reading"} | {*InputReading.field_names()}
    assert {*keywords.RunKeywords.__annotations__} == settings
    requests = parameters.CHAT | parameters.COMPLETIONS | parameters.EMBEDDINGS
    assert {*keywords.RequestKeywords.__annotations__} == requests - {"n"} | {"extra_body"}
    of_the_call = {
        "job",
        "job_source",
        "import_folder",
        "swarm",
        "endpoint",
        "model",
        "input",
        "output",
    }
    assert {*SubmitKeywords.__annotations__} == {*JobRequest.field_names()} - of_the_call


@pytest.mark.parametrize(
    ("record", "written"),
    [
        (run_options.AskingOptions, run_options.AskingKeywords),
        (run_options.KeepingOptions, run_options.KeepingKeywords),
        (InputReading, run_options.ReadingKeywords),
        (run_options.RunOptions, run_options.SubmissionKeywords),
    ],
)
def test_keywords_are_the_fields_of_their_record(record: type[Record], written: type) -> None:
    """Names and types, but where Python takes more forms than a record keeps."""
    more = {"input_columns", "output_columns", "max_failures", "types"}
    fields = {one.name: plain(one.type) for one in msgspec.structs.fields(record)}
    typed = {name: plain(hint) for name, hint in get_type_hints(written).items()}
    typed.pop("name", None)  # of the submission, beside the options of its run
    assert fields.keys() - {"input", "output"} == typed.keys()
    assert {name: fields[name] for name in typed.keys() - more} == {
        name: typed[name] for name in typed.keys() - more
    }


def plain(hint: Any) -> Any:
    """A type without bounds and words."""
    if get_origin(hint) is Annotated:
        return plain(get_args(hint)[0])
    if get_origin(hint) in {Union, UnionType}:
        return frozenset(map(plain, get_args(hint)))
    return hint


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"id_colum": "id"}, r"no option 'id_colum'[\s\S]*mean 'id_column'"),
        ({"temperature": 1}, r"no option 'temperature'[\s\S]*ChatCompletionJob\(temperature="),
        ({"retries": -1}, "retries is -1"),
        ({"swarm": "other"}, "no option 'swarm'"),
        ({"resources": {"cpu": 3}}, "resources.cpu is 3"),
    ],
)
def test_options_of_a_submission_are_checked(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        request_of({"job": "a:b", "input": "i", "output": "o", **given})


def test_one_name_is_one_column_of_a_submission() -> None:
    named = {"input_columns": "text", "output_columns": "answer", "max_failures": 5}
    made = request_of({"job": "a:b", "input": "i", "output": "o", **named})
    assert (made.input_columns, made.output_columns) == (("text",), ("answer",))
    assert made.max_failures == "5"


def test_columns_that_no_request_would_hold_are_refused() -> None:
    two = {"input_columns": ["id", "text"]}
    with pytest.raises(ConfigError, match=r"first input column holds, 'id': 'text' would be") as no:
        load_job("domyn_swarm.jobs:ChatCompletionJob", two)
    assert "{{ id }} {{ text }}" in no.value.hint
    for more in ({"system": "In {{ text }}"}, {"param_columns": {"seed": "text"}}):
        load_job("domyn_swarm.jobs:ChatCompletionJob", {**two, **more})

    class Both(ChatCompletionJob):
        async def transform_item(self, item: Any) -> Any:
            return str(item)

    Both(**two).check()


def test_a_column_of_parameters_that_is_missing_is_named_as_such() -> None:
    job = ChatCompletionJob(input_columns=["text"], param_columns={"seed": "sed"})
    with pytest.raises(InvalidInput, match="param_columns takes seed from the column 'sed'"):
        job.check_columns(["text", "seed"])
