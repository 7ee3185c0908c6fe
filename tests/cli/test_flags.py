"""Flags that are made of records: how they are spelled, what they take, what becomes of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from typer.testing import CliRunner

from domyn_swarm.cli.flags import Typed, flags_of, taking_flags
from domyn_swarm.cli.job_flags import JobFlags, ResumeFlags, RetryFlags
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.run_options import AskingOptions, ChangeableOptions
from domyn_swarm.record import Meta, Record, about, field
from domyn_swarm.swarm.job_file import JobFile, read_changes
from domyn_swarm.swarm.job_request import JobChanges


class Options(Record):
    """One of each kind."""

    rows: Annotated[Annotated[int, Meta(ge=1, le=9)] | None, about("How many.", metavar="N")] = None
    wait_s: Annotated[Annotated[float, Meta(gt=0)] | None, about("How long.", flag="--wait")] = None
    colour: Annotated[Literal["red", "blue"], about("Of what.")] = "red"
    keep: Annotated[bool, about("False: keep nothing.", flag="--no-keep")] = True
    columns: Annotated[tuple[str, ...], about("Which.", flag="--column")] = ()
    types: Annotated[dict[str, int], about("Of columns.")] = field(default_factory=dict)
    more: Annotated[dict[str, Any], about("The rest.")] = field(default_factory=dict)
    unsaid: str = ""


class OptionFlags(Typed):
    """All of them."""

    flags: ClassVar = flags_of(Options)


def typed(*words: str) -> tuple[int, Any]:
    """The exit code of a command that takes them, and what was typed by keys of a file; or its
    output where it was refused.
    """
    found: list[dict[str, Any]] = []
    app = typer.Typer()

    @app.command()
    @taking_flags
    def command(
        name: Annotated[str, typer.Argument()] = "none",
        *,
        flags: OptionFlags,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
    ) -> None:
        found.append(flags.layer().values | {"name": name, "quiet": quiet})

    ran = CliRunner().invoke(app, words)
    return ran.exit_code, found[0] if found else ran.output


def test_each_kind_of_field_has_its_flag() -> None:
    words = ["mine", "--rows", "3", "--wait", "0.5", "--colour", "blue", "--no-keep", "--quiet"]
    words += ["--column", "a", "--column", "b", "--types", "a=1, b=2", "--more", '{"x": [1]}']
    assert typed(*words) == (
        0,
        {
            "name": "mine",
            "quiet": True,
            "rows": 3,
            "wait_s": 0.5,
            "colour": "blue",
            "keep": False,
            "columns": ["a", "b"],
            "types": {"a": "1", "b": "2"},
            "more": {"x": [1]},
        },
    )
    assert typed() == (0, {"name": "none", "quiet": False})


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--rows", "0"], "1<=x<=9"),
        (["--rows", "10"], "1<=x<=9"),
        (["--wait", "0"], "x>=0.001"),
        (["--colour", "green"], "'red', 'blue'"),
        (["--types", "a"], "COLUMN=TYPE"),
        (["--more", "[]"], "not a JSON object"),
        (["--unsaid", "x"], "No such option"),
    ],
)
def test_bounds_and_forms_are_those_of_the_field(words: list[str], reason: str) -> None:
    code, output = typed(*words)
    assert (code, reason in output) == (2, True), output


def test_a_flag_that_is_none_is_a_mistake_in_the_code() -> None:
    with pytest.raises(TypeError, match="OptionFlags has no row"):
        OptionFlags(row=1)


def test_an_option_of_a_record_is_a_key_a_flag_and_a_change() -> None:
    """What makes an option is its field: nothing else lists it."""
    asked = {*AskingOptions.field_names()}
    assert asked <= {*JobFile.field_names()} & JobFlags.flags.keys() & {*JobChanges.field_names()}
    for kind in (ResumeFlags, RetryFlags):
        assert {*ChangeableOptions.field_names()} <= kind.flags.keys()


def test_what_is_not_typed_stays_as_it_was_and_mistakes_are_told_at_their_flags() -> None:
    flags = ResumeFlags(max_concurrency="4", mem="2G", no_continue=True, run_here=True)
    changes = read_changes(flags.layer(), command="job resume", detached=True)
    assert (changes.max_concurrency, changes.retries, changes.overwrite) == (4, None, False)
    asked = changes.resources
    assert (asked.memory_gb, asked.continues, asked.placement) == (2.0, False, "here")
    wrong = ResumeFlags(max_concurrency="0", mem="much", time_limit="0", max_failures="many")
    with pytest.raises(ConfigError) as caught:
        read_changes(wrong.layer(), command="job resume", detached=False)
    assert [(one.place, one.key) for one in caught.value.mistakes] == [
        ("--max-concurrency", "max_concurrency"),
        ("--max-failures", "max_failures"),
        ("--mem", "mem"),
        ("--time", "time_limit"),
    ]
    assert "`domyn-swarm job resume --help`" in caught.value.hint
    with pytest.raises(typer.BadParameter, match="--placement and --run-here exclude"):
        ResumeFlags(placement="job", run_here=True).layer()
