"""What an input may be called, what kinds of files there are, and which types their rows have."""

from __future__ import annotations

import datetime as dt
import functools
import http.server
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.column_values import python_values
from domyn_swarm.batch.input.dataset import BATCH_ROWS, Dataset, TableDataset
from domyn_swarm.batch.input.input_files import files_of
from domyn_swarm.batch.input.opening import open_dataset
from domyn_swarm.batch.input.row_keys import check_ids
from domyn_swarm.errors import InvalidInput


def rows_of(dataset: Dataset, columns: list[str] | None = None, **window: int) -> list[Any]:
    batches = list(dataset.batches(columns, **window))
    assert all(batch.num_rows <= BATCH_ROWS for batch in batches)
    rows: list[Any] = []
    for batch in batches:
        values = [python_values(column) for column in batch.columns]
        rows += [
            dict(zip(batch.schema.names, row, strict=True)) for row in zip(*values, strict=True)
        ]
    return rows


def numbered(rows: int, start: int = 0) -> pa.Table:
    numbers = range(start, start + rows)
    return pa.table({"n": list(numbers), "text": [f"é {n}" for n in numbers]})


def as_read(kind: str, rows: int, start: int = 0) -> list[Any]:
    """What `numbered` is when it comes from a file of a kind: cells of CSV are text."""
    number = str if kind[:3] in ("csv", "tsv") else int
    return [{"n": number(n), "text": f"é {n}"} for n in range(start, start + rows)]


def as_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path)


def as_csv(table: pa.Table, path: Path) -> None:
    lines = [",".join(table.schema.names)]
    lines += [",".join(map(str, row.values())) for row in table.to_pylist()]
    path.write_text("\n".join(lines) + "\n")


def as_tsv(table: pa.Table, path: Path) -> None:
    as_csv(table, path)
    path.write_text(path.read_text().replace(",", "\t"))


def as_jsonl(table: pa.Table, path: Path) -> None:
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def as_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


def as_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5000)


def packed(write: Callable[[pa.Table, Path], None], packing: str) -> Callable[..., None]:
    def wrote(table: pa.Table, path: Path) -> None:
        write(table, path)
        with pa.output_stream(str(path) + ".packed", compression=packing) as out:
            out.write(path.read_bytes())
        path.with_name(path.name + ".packed").replace(path)

    return wrote


KINDS: dict[str, Callable[[pa.Table, Path], None]] = {
    "parquet": as_parquet,
    "csv": as_csv,
    "tsv": as_tsv,
    "jsonl": as_jsonl,
    "ndjson": as_jsonl,
    "arrow": as_arrow,
    "ipc": as_stream,
    "feather": lambda table, path: pyarrow.feather.write_feather(table, str(path)),
    "csv.gz": packed(as_csv, "gzip"),
    "jsonl.gz": packed(as_jsonl, "gzip"),
    "jsonl.zst": packed(as_jsonl, "zstd"),
    "csv.bz2": packed(as_csv, "bz2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_from_anywhere_to_anywhere(kind: str, tmp_path: Path) -> None:
    table = numbered(3 * BATCH_ROWS + 7)
    KINDS[kind](table, tmp_path / f"in.{kind}")
    dataset = open_dataset(str(tmp_path / f"in.{kind}"))
    assert dataset.rows == table.num_rows
    assert dataset.schema.names == ["n", "text"]
    expected = as_read(kind, table.num_rows)
    assert rows_of(dataset) == expected
    assert rows_of(dataset, ["n"], start=2040, limit=2060) == [
        {"n": row["n"]} for row in expected[2040:2060]
    ]
    assert rows_of(dataset, start=table.num_rows - 1) == expected[-1:]
    assert rows_of(dataset, limit=0) == []
    for part in range(2):
        KINDS[kind](numbered(5, start=5 * part), tmp_path / f"part-{part}.{kind}")
    both = open_dataset(str(tmp_path / f"part-*.{kind}"))
    assert rows_of(both) == as_read(kind, 10)
    assert rows_of(both, start=7, limit=9) == as_read(kind, 2, start=7)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_through_fsspec(kind: str, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for part in range(2):
        KINDS[kind](numbered(5, start=5 * part), tmp_path / f"part-{part}.{kind}")
        memory.pipe(f"/rows/part-{part}.{kind}", (tmp_path / f"part-{part}.{kind}").read_bytes())
    try:
        for source in (
            "memory://rows",
            f"memory://rows/*.{kind}",
            f"memory://rows/part-{{0..1}}.{kind}",
        ):
            assert rows_of(open_dataset(source)) == as_read(kind, 10)
        assert rows_of(open_dataset(f"memory://rows/part-1.{kind}")) == as_read(kind, 5, 5)
        assert rows_of(open_dataset(f"file://{tmp_path}/part-0.{kind}")) == as_read(kind, 5)
    finally:
        memory.rm("/rows", recursive=True)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # fsspec's HTTP session, left to its end
def test_rows_come_over_http(web: str, tmp_path: Path) -> None:
    as_parquet(numbered(10), tmp_path / "in.parquet")
    as_jsonl(numbered(10), tmp_path / "in.jsonl")
    assert rows_of(open_dataset(f"{web}/in.parquet")) == numbered(10).to_pylist()
    assert rows_of(open_dataset(f"{web}/in.jsonl")) == numbered(10).to_pylist()
    with pytest.raises(InvalidInput, match=r"gone\.parquet"):
        open_dataset(f"{web}/gone.parquet")


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    do_HEAD = do_GET  # noqa: N815 - see http.server

    def log_message(self, *_: object) -> None: ...


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # fsspec's HTTP session, left to its end
def test_what_a_web_server_refuses_is_told_as_it_said_it() -> None:
    """Not as if there were nothing."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        for status in (401, 403, 429, 500):
            with pytest.raises(InvalidInput, match=f"cannot be reached: {status}, ") as told:
                files_of(f"{url}/{status}/in.jsonl")
            assert "credentials" in told.value.hint
        for status in (404, 410):
            with pytest.raises(InvalidInput, match="There is no input"):
                files_of(f"{url}/{status}/in.jsonl")
        server.shutdown()
        thread.join()
    with pytest.raises(InvalidInput, match=r"cannot be reached: .*Cannot connect"):
        files_of(f"{url}/200/in.jsonl")


def names(source: str) -> list[str]:
    return [Path(str(file)).name for file in files_of(source)]


def test_brace_ranges_name_files_in_order(tmp_path: Path) -> None:
    for name in ("a_0008", "a_0009", "a_0010", "b_1", "b_2", "b_10", "x_a", "x_b"):
        as_parquet(numbered(1), tmp_path / f"{name}.parquet")
    folder = str(tmp_path)
    assert names(f"{folder}/a_{{0008..0010}}.parquet") == [
        f"a_{n}.parquet" for n in ("0008", "0009", "0010")
    ]
    assert names(f"{folder}/b_{{1-2}}.parquet") == ["b_1.parquet", "b_2.parquet"]
    assert names(f"{folder}/b_{{2..1}}.parquet") == ["b_2.parquet", "b_1.parquet"]
    assert names(f"{folder}/x_{{b,a}}.parquet") == [
        "x_b.parquet",
        "x_a.parquet",
    ]
    assert names(f"{folder}/{{a_00,b_}}*.parquet") == [
        *("a_0008.parquet", "a_0009.parquet", "a_0010.parquet"),
        *("b_1.parquet", "b_10.parquet", "b_2.parquet"),
    ]
    with pytest.raises(InvalidInput, match=r"missing: .*b_3.parquet, .*b_4.parquet"):
        files_of(f"{folder}/b_{{1-4}}.parquet")
    with pytest.raises(InvalidInput, match="There is no input"):
        files_of(f"{folder}/c_{{1-4}}.parquet")
    with pytest.raises(InvalidInput, match="more than"):
        files_of(f"{folder}/{{0..9999}}_{{0..9999}}.parquet")
    as_parquet(numbered(1), tmp_path / "odd_{1-2}.parquet")
    assert names(f"{folder}/odd_{{1-2}}.parquet") == ["odd_{1-2}.parquet"]


def test_a_folder_holds_files_of_one_kind_and_what_does_not_count(tmp_path: Path) -> None:
    as_parquet(numbered(3), tmp_path / "part-0.parquet")
    for name in ("_manifest.json", "_SUCCESS", ".part-1.parquet.partial", "_part.parquet", "notes"):
        (tmp_path / name).write_text("{}")
    assert rows_of(open_dataset(str(tmp_path))) == numbered(3).to_pylist()
    as_csv(numbered(3), tmp_path / "other.csv")
    with pytest.raises(InvalidInput, match="one kind"):
        open_dataset(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="no input"):
        open_dataset(str(tmp_path / "empty"))


def test_json_under_another_name(tmp_path: Path) -> None:
    """As lines where it is named; in a folder it is what lies beside rows."""
    lines = b'{"id": 1}\n{"id": 2}\n'
    (tmp_path / "a.JSON").write_bytes(lines)
    for source in (tmp_path / "a.JSON", f"{tmp_path}/*.[Jj]*"):
        assert rows_of(open_dataset(str(source))) == [{"id": 1}, {"id": 2}]
    with pytest.raises(InvalidInput, match="no input"):
        open_dataset(str(tmp_path))
    (tmp_path / "b.jsonl").write_bytes(lines)
    assert len(rows_of(open_dataset(str(tmp_path)))) == 2
    for content, told in (
        (b'\n[{"id": 1}]', r"array.*\n.*jq -c '\.\[\]' .*c.json > c.jsonl"),
        (b'{\n "id": 1\n}\n{\n "id": 2\n}', r"several lines.*\n.*jq -c '\.' "),
    ):
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(InvalidInput, match=told):
            open_dataset(str(tmp_path / "c.json"))


@pytest.mark.parametrize("name", ["my rows.json", "rows.jsonl", "it's.ndjson"])
def test_the_command_that_makes_lines_can_be_typed_where_the_file_lies(
    tmp_path: Path, name: str
) -> None:
    file, content = tmp_path / name, b'[{"id": 1},\n{"id": 2}]\n'
    file.write_bytes(content)
    with pytest.raises(InvalidInput) as told:
        open_dataset(str(file))
    command = str(told.value).partition("Make lines of it: ")[2].splitlines()[0]
    program = tmp_path / "bin" / "jq"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$#" "$1" "$2" "$3"; cat "$3"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={"PATH": path}, check=True)
    assert file.read_bytes() == content
    [lines] = [one for one in tmp_path.glob("*.jsonl") if one != file]
    assert lines.read_bytes() == f"3\n-c\n.[]\n{file}\n".encode() + content


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.arrow", b"ARROW1", "cannot be read as Arrow"),
        ("a.arrow", b"", "cannot be read as Arrow"),
        ("a.doc", b"x", "one kind"),
        ("a.parquet.gz", b"x", "one kind"),
        ("a.txt", b"x", "one kind"),
    ],
)
def test_a_file_that_is_no_input_says_which_and_why(
    name: str, content: bytes, why: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=why) as raised:
        open_dataset(str(tmp_path / name))
    assert name in str(raised.value)


def test_files_without_rows(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("a,b\n")
    empty = open_dataset(str(tmp_path / "0.csv"))
    assert (empty.rows, empty.schema.names, rows_of(empty)) == (0, ["a", "b"], [])
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("")
    assert rows_of(open_dataset(str(tmp_path))) == [{"a": "1", "b": "2"}]
    as_parquet(numbered(0), tmp_path / "none.parquet")
    assert rows_of(open_dataset(str(tmp_path / "none.parquet"))) == []
    as_arrow(numbered(0), tmp_path / "none.arrow")
    assert rows_of(open_dataset(str(tmp_path / "none.arrow"))) == []


def test_what_cannot_be_reached_says_what_it_takes() -> None:
    with pytest.raises(InvalidInput, match="s3fs"):
        open_dataset("s3://bucket/in.parquet")
    with pytest.raises(InvalidInput, match="nothere"):
        open_dataset("nothere://x/in.parquet")


IDS: dict[str, pa.Array] = {
    "int": pa.array([1, 2, 3]),
    "text": pa.array(["1", "2", "é"]),
    "large": pa.array(["1", "2", "3"], pa.large_string()),
    "category": pa.array(["a", "b", "c"]).dictionary_encode(),
    "float": pa.array([1.0, 1.5, float("inf")]),
    "bytes": pa.array([b"1", b"2", b""]),
    "date": pa.array([dt.date(2026, 1, day) for day in (1, 2, 3)]),
    "time": pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
    "decimal": pa.array(["1.0", "1.5", "2"]).cast(pa.decimal128(5, 2)),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_type_are_checked(kind: str) -> None:
    ids = IDS[kind]
    check_ids(TableDataset(pa.table({"id": ids})), "id", limit=None)
    twice = pa.concat_arrays([ids, ids.slice(1, 1)])
    with pytest.raises(InvalidInput, match="row 1 and in row 3"):
        check_ids(TableDataset(pa.table({"id": twice})), "id", limit=None)
    check_ids(TableDataset(pa.table({"id": twice})), "id", limit=3)
    absent = pa.concat_arrays([ids, pa.nulls(1, ids.type)])
    with pytest.raises(InvalidInput, match="null in row 3"):
        check_ids(TableDataset(pa.table({"id": absent})), "id", limit=None)


def test_what_cannot_name_a_row_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a number in row 1"):
        check_ids(TableDataset(pa.table({"id": [1.0, float("nan")]})), "id", limit=None)
    for nested in (pa.array([[1], [2]]), pa.array([{"a": 1}, {"a": 2}])):
        with pytest.raises(InvalidInput, match="cannot name rows"):
            check_ids(TableDataset(pa.table({"id": nested})), "id", limit=None)
