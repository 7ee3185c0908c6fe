"""Results of jobs that ended, run or were stopped: read, shown, exported."""

from __future__ import annotations

import csv
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import warm
from domyn_swarm.batch.inspection.results import Results, check_export, export
from domyn_swarm.batch.output.open_types import OpenTypes
from domyn_swarm.batch.output.text_forms import plain_rows
from domyn_swarm.errors import ConfigError, JobError
from domyn_swarm.jobs.ends import opened_results
from domyn_swarm.jobs.worker import main
from domyn_swarm.model import JobStatus


def run(bench: Any, **changes: Any) -> int:
    return main([str(bench.job_folder(bench.spec(**changes)))])


def results(
    bench: Any, status: JobStatus = JobStatus.RUNNING, *, partial: bool = False, **changes: Any
) -> pa.Table:
    with opened_results(bench.spec(**changes), status, partial=partial) as found:
        table = found.table()
        assert table.num_rows == found.rows
        return table


@pytest.fixture
def stopped(bench: Any, answer: Any) -> dict[str, Any]:
    """A job that was killed when some of its 300 rows were settled, not the first ones alone."""
    bench.write(300)

    def behave(prompt: str, _nth: int) -> Any:
        number = int(prompt[1:])
        if number % 10 == 3:
            return answer(status=400)
        return answer(delay_s=4 if number % 10 == 5 else 0)

    bench.server.behave = behave
    folder = bench.job_folder(bench.spec(max_concurrency=25))
    with warm.start_worker(folder) as worker:
        while sum(bench.server.answered.values()) < 60:
            assert worker.poll() is None
            time.sleep(0.01)
        during = results(bench, partial=True)  # while it runs
        while True:
            after = results(bench, partial=True)
            if after.num_rows > 40:
                break
        worker.send_signal(signal.SIGKILL)
    assert during.num_rows <= after.num_rows
    return {}


@pytest.mark.usefixtures("stopped")
def test_what_is_settled_of_a_killed_job_is_in_input_order(bench: Any) -> None:
    table = results(bench, partial=True)
    assert table.schema.names == ["n", "prompt", "answer", "_error"]
    rows = table.to_pylist()
    numbers = [row["n"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert 40 < len(rows) < 300
    for row in rows:
        failed = row["n"] % 10 == 3
        assert row["answer"] == (None if failed else f"P{row['n']}")
        assert (row["_error"] is not None) == failed
    with opened_results(bench.spec(), JobStatus.FAILED, partial=True) as found:
        assert found.rows_total == 300
        assert found.rows_failed == sum(number % 10 == 3 for number in numbers)
        assert found.table(3).to_pylist() == rows[:3]
        assert found.table(0).num_rows == 0


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("mode", "columns"), [("replace", ["n"]), ("io_only", ["prompt"]), ("append", ["n", "prompt"])]
)
def test_partial_results_keep_the_columns_of_the_output_mode(
    bench: Any, mode: str, columns: list[str]
) -> None:
    table = results(bench, partial=True, output_mode=mode)
    assert table.schema.names == [*columns, "answer", "_error"]
    assert table.num_rows > 40


@pytest.mark.parametrize("sharded", [False, True])
def test_results_of_a_finished_job_are_its_output(
    bench: Any, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domyn_swarm.batch.output.publish.SHARD_ROWS", 10)
    bench.write(25)
    changes = {"output": str(bench.folder / "out"), "shard_output": True} if sharded else {}
    assert run(bench, **changes) == 0
    (bench.folder / "in.parquet").unlink()  # it is not needed any more
    found = results(bench, JobStatus.SUCCEEDED, **changes)
    expected = [{"n": n, "prompt": f"p{n}", "answer": f"P{n}"} for n in range(25)]
    assert found.to_pylist() == expected


def test_a_job_that_has_not_published_says_how_to_read_what_there_is(bench: Any) -> None:
    bench.write(5)
    with pytest.raises(JobError, match="has not published its output") as caught:
        results(bench)
    assert "--partial" in caught.value.hint
    with pytest.raises(JobError, match="no checkpoint at"):
        results(bench, partial=True)


def test_the_output_of_an_earlier_run_is_not_that_of_a_job_that_runs(bench: Any) -> None:
    bench.write(5)
    run(bench)
    with pytest.raises(JobError, match="has not published its output"):
        results(bench, JobStatus.RUNNING, job_id="j2")
    assert results(bench, JobStatus.SUCCEEDED, job_id="j2").num_rows == 5  # j1 went on with it
    with pytest.raises(JobError, match="has no output at"):
        results(bench, JobStatus.SUCCEEDED, job_id="j2", job_kwargs={"temperature": 1})


def test_types_that_are_open_are_settled_by_the_rows_that_are_there(bench: Any) -> None:
    (bench.folder / "counting.py").write_text(
        "from domyn_swarm import SwarmJob\n"
        "class Counting(SwarmJob):\n"
        "    input_columns = ('prompt',)\n"
        "    output_schema = ('size', 'seen')\n"
        "    async def transform_item(self, item):\n"
        "        return {'size': len(item), 'seen': [item]}\n"
    )
    bench.write(12)
    job = {"job": "counting:Counting", "import_path": str(bench.folder), "output_columns": ()}
    assert run(bench, **job, limit=10) == 0
    table = results(bench, partial=True, **job)
    assert [str(field.type) for field in table.schema][2:4] == ["int64", "list<item: string>"]
    assert table.num_rows == 10
    assert table.column("size").to_pylist() == [2] * 10


@pytest.mark.parametrize("rows", [0, 1, 3000])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_exports_hold_every_row(bench: Any, rows: int, suffix: str) -> None:
    bench.write(rows)
    assert run(bench, max_concurrency=128) == 0
    path = bench.folder / f"export{suffix}"
    path.write_text("old")
    with opened_results(bench.spec(), JobStatus.SUCCEEDED, partial=False) as found:
        export(found, path)
    expected = [{"n": n, "prompt": f"p{n}", "answer": f"P{n}"} for n in range(rows)]
    if suffix == ".parquet":
        assert pq.read_table(path).to_pylist() == expected
        assert b"domyn_swarm.process_identity" not in (pq.read_schema(path).metadata or {})
    elif suffix == ".jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()] == expected
    else:
        with path.open() as file:
            read = list(csv.DictReader(file))
        assert read == [{**row, "n": str(row["n"])} for row in expected]
    assert [one.name for one in bench.folder.iterdir() if one.name.startswith(".")] == []


ODD = pa.table(
    {
        "nan": [math.nan, 1.5, None],
        "bytes": [b"\xff", b"", None],
        "list": [[1, None], [], None],
        "struct": [{"a": "ä", "b": [1.0]}, None, {"a": "", "b": None}],
        "ns": pa.array([1, 1_700_000_000_000_000_001, None], pa.timestamp("ns")),
        "day": pa.array([0, 1, None], pa.date32()),
        "took": pa.array([1, 2, None], pa.duration("s")),
        "money": pa.array(["1.50", "2.25", None]).cast(pa.decimal128(10, 2)),
        "text": ['a "b"\nc', "", None],
        "kind": pa.array(["x", "y", None]).dictionary_encode(),
        "nothing": pa.nulls(3),
        "big": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "text_view": pa.array(["a", "", None], pa.string_view()),
        "view": pa.array([b"\x00", b"a", None], pa.binary_view()),
    }
)


def results_of(batches: Any) -> Results:
    return Results(3, 0, 3, ODD.schema, batches, OpenTypes)


def odd_results() -> Results:
    return results_of(lambda: iter(ODD.to_batches()))


def test_everything_that_arrow_knows_can_be_exported(tmp_path: Path) -> None:
    for suffix in ("parquet", "jsonl", "csv"):
        export(odd_results(), tmp_path / f"odd.{suffix}")
    assert pq.read_table(tmp_path / "odd.parquet").column("ns").equals(ODD.column("ns"))
    lines = [json.loads(line) for line in (tmp_path / "odd.jsonl").read_text().splitlines()]
    assert lines == plain_rows(ODD)
    assert lines[0]["nan"] is None
    assert lines[0]["bytes"] == "/w=="
    assert lines[0]["struct"] == {"a": "ä", "b": [1.0]}
    assert lines[1]["ns"] == "2023-11-14 22:13:20.000000001"
    assert lines[0]["day"] == "1970-01-01"
    assert lines[0]["money"] == "1.50"
    assert lines[0]["big"] == 2**64 - 1
    assert all(value is None for value in lines[2].values() if not isinstance(value, dict))
    with (tmp_path / "odd.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["text"] == 'a "b"\nc'
    assert json.loads(rows[0]["list"]) == [1, None]
    assert json.loads(rows[0]["struct"]) == {"a": "ä", "b": [1.0]}
    assert (rows[0]["bytes"], rows[0]["view"], rows[1]["kind"]) == ("/w==", "AA==", "y")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.xlsx", "its name says no kind of file"),
        ("in.parquet", "belongs to the job's own"),
        ("out/part-00009.parquet", "belongs to the job's own"),
    ],
)
def test_an_export_that_would_do_harm_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_export(tmp_path / name, [tmp_path / "in.parquet", tmp_path / "out"])


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from ODD.to_batches()
        raise OSError(28, "No space left on device")

    for suffix in ("parquet", "jsonl", "csv"):
        with pytest.raises(JobError, match="No space left"):
            export(results_of(broken), tmp_path / f"x.{suffix}")
    with pytest.raises(JobError, match="Cannot write"):
        export(odd_results(), tmp_path / "nowhere" / "x.csv")
    assert list(tmp_path.iterdir()) == []
