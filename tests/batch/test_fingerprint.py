"""What counts as the same row: its id or place, and as much of its input as was asked for."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.input.row_keys import python_values
from domyn_swarm.jobs.worker import main


def run(bench: Any, **changes: Any) -> int:
    """How many requests the run sent."""
    before = bench.server.asked.total()
    assert main([str(bench.job_folder(bench.spec(**changes)))]) == 0
    return int(bench.server.asked.total() - before)


def change(bench: Any, rows: int, changed: list[int], order: list[int] | None = None) -> None:
    table = pa.table(
        {
            "n": list(range(rows)),
            "prompt": [f"p{n}" + ("!" if n in changed else "") for n in range(rows)],
        }
    )
    pq.write_table(table if order is None else table.take(order), bench.folder / "in.parquet")


def test_times_of_nanoseconds_are_those_of_microseconds_or_text() -> None:
    fine = [1_000, None, 5_000_000, 5_000_001]
    whole = [1, None, 5_000, None]
    for kind, coarse in (
        (pa.timestamp("ns", "UTC"), pa.timestamp("us", "UTC")),
        (pa.duration("ns"), pa.duration("us")),
        (pa.time64("ns"), pa.time64("us")),
    ):
        values = python_values(pa.array(fine, kind))
        assert values[:3] == pa.array(whole, coarse).to_pylist()[:3]
        assert isinstance(values[3], str)
        assert [values[3]] != python_values(pa.array([5_000_002], kind))


@pytest.mark.parametrize("id_column", [None, "n"])
@pytest.mark.parametrize(("fingerprint", "asked"), [("full", 3), ("off", 0)])
def test_changed_rows_are_asked_again_as_far_as_inputs_are_compared(
    bench: Any, id_column: str | None, fingerprint: str, asked: int
) -> None:
    change(bench, 200, [])
    assert run(bench, id_column=id_column, fingerprint=fingerprint) == 200
    change(bench, 200, [3, 77, 199])
    assert run(bench, id_column=id_column, fingerprint=fingerprint) == asked


def test_a_sample_finds_an_input_that_changed_as_a_whole(bench: Any) -> None:
    change(bench, 1000, [])
    assert run(bench, fingerprint="sample") == 1000
    assert run(bench, fingerprint="sample") == 0
    change(bench, 1000, list(range(1000)))
    assert run(bench, fingerprint="sample") == 16  # rows 0, 64, 128, …


@pytest.mark.parametrize("id_column", [None, "n"])
@pytest.mark.parametrize("first", ["full", "sample", "off"])
@pytest.mark.parametrize("then", ["full", "sample", "off"])
def test_nothing_is_asked_twice_when_the_fingerprint_changes(
    bench: Any, id_column: str | None, first: str, then: str
) -> None:
    change(bench, 300, [])
    assert run(bench, id_column=id_column, fingerprint=first, limit=200) == 200
    assert run(bench, id_column=id_column, fingerprint=then) == 100
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(300)]


@pytest.mark.parametrize("fingerprint", ["full", "sample", "off"])
def test_rows_with_ids_are_found_wherever_they_stand(bench: Any, fingerprint: str) -> None:
    change(bench, 300, [])
    run(bench, id_column="n", fingerprint=fingerprint)
    change(bench, 310, [], order=[*range(309, -1, -1)])
    assert run(bench, id_column="n", fingerprint=fingerprint) == 10
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(309, -1, -1)]


def test_positions_alone_are_skipped_without_reading(bench: Any) -> None:
    """Several row groups, so that those which are settled are passed over."""
    path = bench.folder / "in.parquet"
    table = pa.table({"prompt": [f"p{n}" for n in range(25_000)]})
    pq.write_table(table.slice(0, 20_000), path, row_group_size=3_000)
    assert run(bench, fingerprint="off", limit=19_990, max_concurrency=64) == 19_990
    pq.write_table(table, path, row_group_size=3_000)
    assert run(bench, fingerprint="off", limit=20_030) == 40
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(20_030)]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "another"},
        {"revision": "2"},
        {"job": "domyn_swarm.jobs:TemplateJob", "job_kwargs": {"prompt": "{{ prompt }}"}},
    ],
    ids=["model", "revision", "job"],
)
def test_answers_of_one_model_and_job_are_those_of_no_other(
    bench: Any, changes: dict[str, Any]
) -> None:
    bench.write(20)
    assert run(bench) == 20
    other = {**changes, "output": str(bench.folder / "other.parquet")}
    assert run(bench, **other) == 20
    assert run(bench, **other) == 0
    assert run(bench) == 0  # and those of the first are still there


def test_a_changed_prompt_asks_all_rows_again(bench: Any) -> None:
    bench.write(20)
    template = {"job": "domyn_swarm.jobs:TemplateJob"}
    for number, prompt in enumerate(("Say {{ prompt }}", "Shout {{ prompt }}")):
        output = str(bench.folder / f"{number}.parquet")
        assert run(bench, **template, job_kwargs={"prompt": prompt}, output=output) == 20
    assert bench.output("1.parquet")[3]["answer"] == "SHOUT P3"
