"""Mistakes with jobs in Python: named in our words, before anything is asked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from domyn_swarm import ChatCompletionJob, SwarmJob, TemplateJob, job
from domyn_swarm.batch.output.output_schema import OutputMismatch, OutputSchema
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.job_loading import job_given
from model_server import KEY, ModelServer

ROWS = pa.table({"text": ["a", "b"]})


class Shout(SwarmJob):
    """What the others are told apart from."""

    input_columns = "text"  # one name, as in the constructor and in @job

    async def transform_item(self, item: Any) -> Any:
        """The item in capitals."""
        return str(item).upper()


class NotAsync(SwarmJob):
    """Its transform cannot be awaited."""

    def transform_item(self, item: Any) -> Any:  # type: ignore[override]
        """As Shout."""
        return item


class NoItem(SwarmJob):
    """Its transform takes none."""

    async def transform_items(self) -> Any:  # type: ignore[override]
        """Nothing."""


class NoColumns(Shout):
    """Every row is the same to it."""

    input_columns = ()


class NoSuper(Shout):
    """Its constructor forgets ours."""

    def __init__(self, *, style: str) -> None:
        self.style = style


def plain(item: Any) -> Any:
    """A function that nobody has decorated."""
    return item


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Shout, r"Shout is a class[\s\S]*Make one: Shout\(\)"),
        (plain, r"plain is a function[\s\S]*@job"),
        (ROWS, "The job is a Table[\\s\\S]*The job comes first, then the rows"),
        ("Shout", "'Shout' is not of the form MODULE:NAME"),
        ("jobs.test_mistakes:Shuot", "has no 'Shuot'"),
    ],
)
def test_what_is_no_job(given: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        job_given(given)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: TemplateJob(prompt="{text}"), r"uses no column[\s\S]*{{ column }}"),
        (TemplateJob, "TemplateJob needs a prompt"),
        (NoColumns, "NoColumns has no input columns"),
        (NotAsync, r"NotAsync.transform_item is not asynchronous[\s\S]*async def"),
        (NoItem, r"transform_items cannot be called with one items[\s\S]*async def"),
        (lambda: NoSuper(style="x"), r"does not call that of SwarmJob[\s\S]*super\(\).__init__"),
        (SwarmJob, "SwarmJob does nothing with its rows"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_anything_is_asked(
    made: Callable[[], SwarmJob], reason: str, server: ModelServer
) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        made().run(ROWS, endpoint=server.url, model="m", api_key=KEY, progress=False)
    assert len(refused.traceback) == 3  # the caller's line and two of ours, as a notebook shows it
    assert not server.asked


class SendsUnknown(Shout):
    """It says that its requests hold what it does not read."""

    sent_columns = ("text", "title")


def test_columns_that_are_said_to_be_sent_have_to_be_read(server: ModelServer) -> None:
    with pytest.raises(ConfigError, match="names 'title', which is no input column") as raised:
        SendsUnknown().run(ROWS, endpoint=server.url, model="m", api_key=KEY)
    assert raised.value.hint == "Its input columns are: text."


def test_one_name_is_one_input_column(server: ModelServer) -> None:
    assert Shout().input_columns == ("text",)

    class Asked(ChatCompletionJob):
        input_columns = "text"

    out = Asked().run(ROWS, endpoint=server.url, model="m", api_key=KEY, progress=False)
    assert out["result"].to_pylist() == ["A", "B"]


def test_a_transform_behind_a_decorator_is_as_good() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def called(*arguments: Any) -> Any:
            return function(*arguments)

        return called

    class Wrapped(SwarmJob):
        @logged
        async def transform_item(self, item: Any) -> Any:
            return item

    class Static(SwarmJob):
        @staticmethod
        async def transform_item(item: Any) -> Any:
            return item

    Wrapped().check()
    Static().check()


def test_an_argument_without_its_name() -> None:
    with pytest.raises(
        ConfigError, match=r"arguments by name, not 'Hello {{ x }}'[\s\S]*It takes .*prompt"
    ):
        TemplateJob("Hello {{ x }}")


def test_a_misspelt_transform_is_refused_with_the_class() -> None:
    async def ours(_self: Any, item: Any) -> Any:
        return item

    with pytest.raises(ConfigError, match=r"Mine.tranform_item would never be called"):
        type("Mine", (ChatCompletionJob,), {"tranform_item": ours})
    type("Mine", (ChatCompletionJob,), {"tranform_item": ours, "transform_item": ours})


def test_a_misspelt_key_of_an_answer_is_named() -> None:
    with pytest.raises(OutputMismatch, match="has no key 'shouted', it has 'shoutd'"):
        OutputSchema({"shouted": str}).encode({"shoutd": "A"})


# -- what is shown of jobs -------------------------------------------------------------------------


@job(output_schema=["words"])
async def counted(item: str, *, words: int = 5) -> Any:
    """How many words there are."""
    return words, item


def test_what_a_job_takes_is_shown_by_help_and_completion() -> None:
    taken = inspect.signature(TemplateJob).parameters
    expected = {"prompt", "system", "param_columns", "input_columns", "max_concurrency", "keep"}
    assert expected <= taken.keys()
    assert "parameters" in taken
    own = inspect.signature(counted).parameters
    assert own["words"].default == 5
    assert "max_concurrency" in own
    assert "parameters" not in own  # it takes no **params
    assert counted.__doc__ == "How many words there are."

    class Styled(Shout):
        def __init__(self, *, style: str) -> None:
            super().__init__(name=style)

    assert [*inspect.signature(Styled).parameters] == ["style"]  # it passes nothing on


def test_a_job_shows_what_it_was_given_and_no_secret() -> None:
    assert repr(counted(words=3)) == "counted(words=3)"
    shown = repr(ChatCompletionJob(max_tokens=5, extra_body={"api_key": "abc", "top_k": 2}))
    assert shown == "ChatCompletionJob(max_tokens=5, extra_body={'api_key': '***', 'top_k': 2})"
