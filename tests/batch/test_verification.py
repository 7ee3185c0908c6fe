"""`verify`: every way in which an output can be wrong is found and told."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.inspection.verification import differing
from domyn_swarm.errors import JobError
from domyn_swarm.jobs.ends import verify_output
from domyn_swarm.jobs.worker import main

ROWS = 250


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domyn_swarm.batch.output.publish.SHARD_ROWS", 100)


def run(bench: Any, **changes: Any) -> int:
    return main([str(bench.job_folder(bench.spec(**changes)))])


@pytest.fixture(params=[False, True], ids=["one file", "shards"])
def published(request: pytest.FixtureRequest, bench: Any, answer: Any) -> dict[str, Any]:
    """The changes to a spec whose output is there, with a failed row."""
    bench.write(ROWS)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p7" else 200)
    sharded = {"output": str(bench.folder / "out"), "shard_output": True}
    changes = sharded if request.param else {}
    assert run(bench, **changes) == 7
    return changes


def findings(bench: Any, changes: dict[str, Any]) -> list[str]:
    found = verify_output(bench.spec(**changes))
    assert found.whole == (not found.findings)
    return list(found.findings)


def part(bench: Any, changes: dict[str, Any]) -> Path:
    """The file that holds row 7."""
    return bench.folder / ("out/part-00000.parquet" if changes else "out.parquet")


def manifest(bench: Any, changes: dict[str, Any]) -> Path:
    return bench.folder / ("out/_manifest.json" if changes else "out.parquet.manifest.json")


def test_an_output_that_is_whole_passes(bench: Any, published: dict[str, Any]) -> None:
    found = verify_output(bench.spec(**published))
    assert (found.whole, found.findings) == (True, ())
    assert (found.rows, found.rows_failed, found.files) == (ROWS, 1, 3 if published else 1)
    assert found.columns_compared == ("n", "prompt")


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def value_changed(table: pa.Table) -> pa.Table:
    answers = table.column("answer").to_pylist()
    answers[3] = "forged"
    return table.set_column(table.schema.get_field_index("answer"), "answer", [answers])


def row_dropped(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 20), table.slice(21)])


def row_doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 20), table.slice(19)])


def rows_swapped(table: pa.Table) -> pa.Table:
    return table.take([*range(5), 6, 5, *range(7, table.num_rows)])


def error_dropped(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("_error")
    return table.set_column(
        at, table.schema.field(at), pa.nulls(table.num_rows, table.field(at).type)
    )


def column_dropped(table: pa.Table) -> pa.Table:
    return table.drop_columns(["prompt"])


def column_retyped(table: pa.Table) -> pa.Table:
    return table.set_column(0, "n", table.column("n").cast(pa.int32()))


REWRITTEN = [
    (value_changed, ["checksum"]),
    (row_dropped, ["rows instead of", "Column 'n' is not the input's", "the first at 20"]),
    (row_doubled, ["rows instead of", "Column 'prompt' is not the input's", "the first at 20"]),
    (rows_swapped, ["Column 'n' is not the input's in 2 rows, the first at 5"]),
    (error_dropped, ["0 rows carry an error; the manifest counts 1", "neither an answer nor"]),
    (column_dropped, ["'prompt' is missing", "The columns are"]),
    (column_retyped, ["n (int32)"]),
]


@pytest.mark.parametrize(("change", "said"), REWRITTEN)
def test_a_rewritten_file_is_found_and_what_is_wrong_with_its_rows(
    bench: Any, published: dict[str, Any], change: Callable[[pa.Table], pa.Table], said: list[str]
) -> None:
    everywhere = published and change in {column_dropped, column_retyped}
    rewritten = (bench.folder / "out").glob("*.parquet") if everywhere else [part(bench, published)]
    for path in list(rewritten):
        rewrite(path, change)
    found = findings(bench, published)
    assert any("out.parquet has" in one or "part-00000.parquet has" in one for one in found), found
    if change is not value_changed:
        assert all(any(words in one for one in found) for words in said), found


def forge_checksums(path: Path) -> None:
    """Make the manifest fit the files: only their rows can give a change away then."""
    document = json.loads(path.read_text())
    for file in document["files"]:
        content = (path.parent / file["name"]).read_bytes()
        file["bytes"], file["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(document))


def test_rows_are_compared_whatever_the_checksums_say(
    bench: Any, published: dict[str, Any]
) -> None:
    rewrite(part(bench, published), rows_swapped)
    forge_checksums(manifest(bench, published))
    found = findings(bench, published)
    assert [one.split(":")[0] for one in found] == [
        f"Column {name!r} is not the input's in 2 rows, the first at 5" for name in ("n", "prompt")
    ]


def test_a_single_changed_bit_is_found(bench: Any, published: dict[str, Any]) -> None:
    path = part(bench, published)
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert any("checksum" in one for one in findings(bench, published))


def test_a_truncated_file_is_found(bench: Any, published: dict[str, Any]) -> None:
    path = part(bench, published)
    path.write_bytes(path.read_bytes()[:-100])
    found = findings(bench, published)
    assert f"{path.name} has {path.stat().st_size} bytes instead of" in found[0]
    assert "cannot be read as Parquet" in found[1]


def test_a_file_that_is_gone_is_found(bench: Any, published: dict[str, Any]) -> None:
    part(bench, published).unlink()
    assert findings(bench, published) == [
        f"{part(bench, published).name} cannot be read: No such file or directory."
    ]


def test_a_changed_count_of_the_manifest_is_found(bench: Any, published: dict[str, Any]) -> None:
    path = manifest(bench, published)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "rows_failed": 5, "rows": 9}))
    found = findings(bench, published)
    assert found == [
        "The manifest counts 9 rows; 250 are there.",
        "1 row carries an error; the manifest counts 5.",
    ]


def test_without_a_manifest_nothing_is_verified(bench: Any, published: dict[str, Any]) -> None:
    manifest(bench, published).unlink()
    with pytest.raises(JobError, match="no manifest"):
        verify_output(bench.spec(**published))


def test_an_input_that_changed_since_is_found(bench: Any, published: dict[str, Any]) -> None:
    columns = {
        "n": list(range(ROWS + 1)),
        "prompt": ["other", *(f"p{n}" for n in range(1, ROWS + 1))],
    }
    pq.write_table(pa.table(columns), bench.folder / "in.parquet")
    found = findings(bench, published)
    assert "The input has 251 rows; it had 250 when the output was written." in found
    assert any(
        "Column 'prompt' is not the input's in 1 row, the first at 0" in one for one in found
    )


def test_a_shard_too_many_is_found(bench: Any) -> None:
    bench.write(ROWS)
    changes = {"output": str(bench.folder / "out"), "shard_output": True}
    run(bench, **changes)
    out = bench.folder / "out"
    shutil.copy(out / "part-00000.parquet", out / "part-00003.parquet")
    assert findings(bench, changes) == ["part-00003.parquet is not one of the output's files."]


def test_findings_are_bounded(bench: Any) -> None:
    bench.write(3000)
    changes = {"output": str(bench.folder / "out"), "shard_output": True}
    run(bench, **changes)
    for path in (bench.folder / "out").glob("*.parquet"):
        path.unlink()
    found = verify_output(bench.spec(**changes))
    assert (len(found.findings), found.findings_left_out) == (20, 10)


@pytest.mark.parametrize("mode", ["append", "replace", "io_only"])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_every_mode_and_the_first_rows_alone(bench: Any, mode: str, rows: int) -> None:
    bench.write(30)
    changes = {"output_mode": mode, "limit": rows}
    assert run(bench, **changes) == 0
    found = verify_output(bench.spec(**changes))
    assert (found.findings, found.rows) == ((), rows)
    kept = {"append": ("n", "prompt"), "replace": ("n",), "io_only": ("prompt",)}
    assert found.columns_compared == kept[mode]


def test_an_output_of_no_column_of_the_input_is_checked_by_its_counts(bench: Any) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"]}), bench.folder / "in.parquet")
    assert run(bench, output_mode="replace") == 0
    found = verify_output(bench.spec(output_mode="replace"))
    assert (found.whole, found.columns_compared, found.rows) == (True, (), 2)


def test_a_later_job_that_went_on_is_named(bench: Any) -> None:
    bench.write(30)
    run(bench, limit=10)
    run(bench, job_id="j2")
    found = verify_output(bench.spec(limit=10))
    assert (found.whole, found.job_id, found.written_by, found.rows) == (True, "j1", "j2", 30)
    bench.write(30, "other.parquet")
    assert run(bench, job_id="j3", input=str(bench.folder / "other.parquet"), overwrite=True) == 0
    assert "is of another input" in findings(bench, {})[0]


def test_all_kinds_of_columns_survive_the_way_through(bench: Any) -> None:
    nan = math.nan
    table = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "f": [1.0, nan, None],
            "l": [[1.0, nan], [], None],
            "s": [{"x": nan, "y": ["q"]}, None, {"x": 1.0, "y": None}],
            "t": pa.array([1, 2, None], pa.timestamp("s")),
            "ns": pa.array([1, 2, None], pa.timestamp("ns", "UTC")),
            "d": pa.array(["k", "k", None]).dictionary_encode(),
            "b": [b"\xff", b"", None],
            "u": pa.array([1, 2, None], pa.uint64()),
            "m": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    pq.write_table(table, bench.folder / "in.parquet")
    assert run(bench) == 0
    assert findings(bench, {}) == []
    with (bench.folder / "in.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": f"p{n}", "x": [n, None]}) + "\n" for n in range(99))
    changes = {"input": str(bench.folder / "in.jsonl"), "output": str(bench.folder / "j.parquet")}
    assert run(bench, **changes) == 0
    assert findings(bench, changes) == []


@pytest.mark.parametrize(
    ("one", "other", "rows"),
    [
        (pa.array([1.0, math.nan, None]), pa.array([1.0, math.nan, None]), []),
        (pa.array([1.0, math.nan, None]), pa.array([math.nan, 1.0, math.nan]), [0, 1, 2]),
        (pa.array(["a", None, ""]), pa.array(["a", "", None]), [1, 2]),
        (pa.array([[1.0], [math.nan], None]), pa.array([[1.5], [math.nan], []]), [0, 2]),
        (pa.array([{"a": 1}, None]), pa.array([{"a": 2}, None]), [0]),
        (pa.array([1, 2]), pa.array([1.0, 3.0]), [1]),
        (pa.array([True, False]), pa.array([True, True]), [1]),
        (pa.array([None, None]), pa.array([None, None]), []),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "c"]).dictionary_encode(), [1]),
    ],
)
def test_values_are_compared_nan_by_nan_and_null_by_null(
    one: pa.Array, other: pa.Array, rows: list[int]
) -> None:
    assert differing(one, other).tolist() == rows
