"""A record is read as strictly as pydantic reads it, whichever of the two reads it."""

from __future__ import annotations

import importlib
import json
import pickle
import pkgutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

import domyn_swarm
from domyn_swarm import record
from domyn_swarm.batch.input.reading import InputReading
from domyn_swarm.jobs.naming import JobOptions
from domyn_swarm.model import ExitRecord, JobHandle, JobProgress, ReplicaReport, ReplyVerdict
from domyn_swarm.planning.plan import MetricsPlan
from domyn_swarm.record import Before, Meta, Record, field
from domyn_swarm.swarm.job_keys import ResourceKeys

NOW = datetime(2026, 11, 30, tzinfo=UTC)
REPORT = {"replica": 0, "state": "ready", "incarnation": "a", "sequence": 1}


def every_record() -> list[type[Record]]:
    for module in pkgutil.walk_packages(domyn_swarm.__path__, "domyn_swarm."):
        if not {"migrations", "sdk", "__main__"} & set(module.name.split(".")):
            importlib.import_module(module.name)

    def below(kind: type[Record]) -> list[type[Record]]:
        return [found for one in kind.__subclasses__() for found in (one, *below(one))]

    return [one for one in below(Record) if one.__module__.startswith("domyn_swarm.")]


def test_every_record_can_be_read_by_both() -> None:
    kinds = every_record()
    assert len(kinds) > 60
    for kind in kinds:
        record._decoder(kind)
        assert kind.model_json_schema(mode="serialization")["title"] == kind.__name__


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": -1},
        {"replica": "first"},
        {"state": "asleep"},
        {"incarnation": "x" * 65},
        {"unheard_of": 1},
        {"sequence": None},
        {"url": 5},
    ],
)
def test_what_is_no_such_record_is_refused_with_the_place(wrong: dict[str, Any]) -> None:
    given = {**REPORT, **wrong}
    for read in (
        lambda: ReplicaReport.model_validate(given),
        lambda: ReplicaReport.model_validate_json(json.dumps(given)),
    ):
        with pytest.raises(ValidationError) as refused:
            read()
        assert refused.value.errors()[0]["loc"] == tuple(wrong)


def test_text_that_is_no_json_is_refused() -> None:
    for text in ("", "{", "[]", '{"replica": 0}', b"\xff"):
        with pytest.raises(ValueError, match="Report"):
            ReplicaReport.model_validate_json(text)


def test_what_only_pydantic_understands_is_read_as_well() -> None:
    """Numbers as text, moments as seconds: what earlier versions took goes on to be taken."""
    found = ReplicaReport.model_validate_json(
        json.dumps({**REPORT, "sequence": "7", "restarts": 2.0})
    )
    assert (found.sequence, found.restarts) == (7, 2)
    assert ExitRecord.model_validate({"code": 0, "started_at": 0, "ended_at": NOW}).ended_at == NOW


def test_a_record_comes_back_from_its_json_as_it_was() -> None:
    made = JobProgress(
        state="running", verdicts={ReplyVerdict.CUT: 2}, rows_per_s=1.5, updated_at=NOW
    )
    text = made.model_dump_json()
    assert JobProgress.model_validate_json(text) == made
    assert made.pydantic_model().model_validate_json(text).model_dump_json() == text
    assert json.loads(text)["updated_at"] == "2026-11-30T00:00:00Z"
    assert made.model_dump()["verdicts"] == {ReplyVerdict.CUT: 2}
    assert made.model_dump(mode="json", include={"verdicts"}) == {"verdicts": {"cut": 2}}
    assert made.model_copy(update={"state": "ended"}).state == "ended"
    with pytest.raises(TypeError):
        made.model_copy(update={"stat": "ended"})
    with pytest.raises(AttributeError):
        made.state = "ended"


def test_paths_and_records_within_records_go_both_ways(tmp_path: Path) -> None:
    made = MetricsPlan.model_validate({"textfile_dir": str(tmp_path)})
    assert made == MetricsPlan.model_validate({"textfile_dir": tmp_path})
    assert MetricsPlan.model_validate_json(made.model_dump_json()) == made

    class Holder(BaseModel):
        metrics: MetricsPlan

    assert Holder(metrics=made).metrics is made
    assert Holder.model_validate({"metrics": {"textfile_dir": "/a"}}).metrics == MetricsPlan(
        textfile_dir=Path("/a")
    )
    assert json.loads(Holder(metrics=made).model_dump_json())["metrics"]["discovery_dir"] is None


def test_checks_beside_a_type_count_where_something_is_given() -> None:
    assert InputReading.model_validate({"encoding": "UTF8", "delimiter": "tab"}) == InputReading(
        delimiter="\t"
    )
    with pytest.raises(ValidationError, match="is no encoding"):
        InputReading.model_validate({"encoding": "utf-9"})


def test_a_default_of_pydantic_is_refused_where_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.size: .*Meta\(ge=0\)"):

        class Wrong(Record):
            size: int = Field(0, ge=0)


class Sized(Record):
    size: Annotated[int, Meta(ge=1)] = 1


class Named(Sized):
    name: str

    def shout(self) -> str:
        return self.name.upper()


class Coloured(Sized):
    colour: Annotated[str | None, Before(lambda value: value or None)] = None
    tags: dict[str, int] = field(default_factory=dict)


class Thing(Named, Coloured):
    weight: float = 0.0


def test_a_record_of_several_has_the_fields_of_all_and_is_checked_as_they_are() -> None:
    assert Thing.field_names() == ("size", "name", "colour", "tags", "weight")
    thing = Thing.model_validate({"name": "a", "colour": "", "size": "2"})
    assert (thing.size, thing.colour, thing.shout()) == (2, None, "A")
    assert Thing.model_validate_json(thing.model_dump_json()) == thing
    assert pickle.loads(pickle.dumps(thing)) == thing
    with pytest.raises(ValidationError, match="size"):
        Thing.model_validate({"name": "a", "size": 0})


def test_a_record_whose_methods_would_be_lost_is_refused_in_the_second_place() -> None:
    with pytest.raises(TypeError, match=r"Wrong: Named has .*shout.* it comes first"):

        class Wrong(Coloured, Named):
            pass


def test_handles_of_earlier_versions_are_read() -> None:
    """As `job submit` printed them before locations were recorded."""
    text = (
        '{"schema_version":1,"job_id":"a","swarm":"s","platform":"local","platform_id":"7",'
        '"process":{"pid":7,"started_at":1161.24},"step":null,"external_id":null,'
        '"job_dir":"/j","log_path":"/l","exit_path":"/e",'
        '"submitted_at":"2026-11-30T22:10:58.949362Z"}'
    )
    found = JobHandle.model_validate_json(text)
    assert found.process is not None
    assert (found.location, found.process.pid) == (None, 7)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (JobOptions, {}),
        (JobOptions, {"max_concurrency": "auto", "retries": 3}),
        (JobOptions, {"max_concurrency": "12"}),
        (JobOptions, {"max_concurrency": 0}),
        (JobOptions, {"retries": "4"}),
        (JobOptions, {"retries": -1}),
        (JobOptions, {"retries": True}),
        (JobOptions, {"timeout_s": 3}),
        (JobOptions, {"timeout_s": 0}),
        (JobOptions, {"unheard_of": 1}),
        (JobOptions, {"keep": "id"}),
        (ResourceKeys, {"mem": "8G", "time_limit": "90"}),
        (ResourceKeys, {"mem": "much"}),
        (ResourceKeys, {"time_limit": "0"}),
        (InputReading, {"encoding": "latin-1"}),
        (InputReading, {"encoding": 5}),
    ],
)
def test_what_is_read_without_pydantic_is_what_it_would_read(
    kind: type[Record], given: dict[str, Any]
) -> None:
    def read(how: Callable[[], Record]) -> object:
        try:
            return how()
        except ValueError as error:
            return str(error)

    model = kind.pydantic_model()
    expected = read(lambda: kind.of_model(model.model_validate(given)))
    assert read(lambda: kind.model_validate(given)) == expected
