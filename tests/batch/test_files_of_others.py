"""Files as other programs leave them: polars' views of text, Excel's notes, text that is no UTF-8,
archives under another name, pages that are damaged.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.column_values import python_values, rows_at
from domyn_swarm.batch.input.dataset import TableDataset
from domyn_swarm.batch.input.input_files import is_read_of
from domyn_swarm.batch.input.opening import open_dataset
from domyn_swarm.batch.input.reading import InputReading
from domyn_swarm.errors import InvalidInput
from domyn_swarm.jobs.ends import verify_output
from domyn_swarm.jobs.worker import main

# -- types for which Arrow has few kernels -------------------------------------------------------

RUNS = pa.RunEndEncodedArray.from_arrays([1, 3], pa.array(["x", "y"]))
ODD_COLUMNS = {
    "views": pa.array(["a", None, "c" * 40], pa.string_view()),
    "views of bytes": pa.array([b"a", None, b"c" * 40], pa.binary_view()),
    "views in lists": pa.array([["a"], None, ["b", "c" * 40]], pa.list_(pa.string_view())),
    "views in structs": pa.array(
        [{"k": "a"}, None, {"k": "c" * 40}], pa.struct([("k", pa.string_view())])
    ),
    "runs": RUNS,
    "numbers": pa.array([1, None, 3]),
}


@pytest.mark.parametrize("what", ODD_COLUMNS)
def test_rows_of_any_type_are_taken(what: str) -> None:
    column = ODD_COLUMNS[what]
    values = python_values(column)
    assert python_values(rows_at(column, [2, 0])) == [values[2], values[0]]
    assert rows_at(column, []).type == column.type
    batch = pa.record_batch({"v": column, "n": pa.array([1, 2, 3])})
    taken = rows_at(batch.slice(1), [1])
    assert (taken.schema, taken["n"].to_pylist()) == (batch.schema, [3])
    assert python_values(taken["v"]) == values[2:]


@pytest.mark.parametrize("fingerprint", ["full", "sample"])
def test_what_polars_writes_is_asked_and_kept(bench: Any, fingerprint: str) -> None:
    """Its Arrow files have text as views."""
    frame = pl.DataFrame(
        {"id": [f"r{n}" for n in range(200)], "prompt": [f"p{n} " + "x" * n for n in range(200)]}
    )
    frame = frame.with_columns(
        kind=frame["prompt"].str.slice(0, 2).cast(pl.Categorical),
        kinds=pl.concat_list(frame["prompt"].str.slice(0, 2).cast(pl.Categorical)),
    )
    frame.write_ipc(bench.folder / "in.arrow")
    source = str(bench.folder / "in.arrow")
    spec = bench.spec(input=source, id_column="id", fingerprint=fingerprint)
    assert main([str(bench.job_folder(spec))]) == 0
    written = bench.output()
    assert [row["prompt"] for row in written] == frame["prompt"].to_list()
    assert [row["answer"] for row in written] == [one.upper() for one in frame["prompt"]]
    assert [row["kind"] for row in written] == frame["kind"].to_list()
    assert [row["kinds"] for row in written] == [f'["{kind}"]' for kind in frame["kind"]]
    assert verify_output(spec).whole
    (bench.folder / "out.parquet").unlink()
    assert main([str(bench.job_folder(spec))]) == 0
    assert bench.server.asked.total() == 200


SINGLE = pa.float32()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([[0.1, 0.2]], pa.list_(SINGLE, 2)), [[0.1, 0.2]]),
        (pa.array([[("k", 0.1)]], pa.map_(pa.string(), SINGLE)), [[("k", 0.1)]]),
        (pa.array([0.1], SINGLE).dictionary_encode(), [0.1]),
        (pa.RunEndEncodedArray.from_arrays([2], pa.array([0.1], SINGLE)), [0.1, 0.1]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_numbers_of_single_precision_are_short_wherever_they_stand(
    column: pa.Array, values: list[Any]
) -> None:
    assert python_values(column) == values


# -- what is damaged -----------------------------------------------------------------------------


def no_utf8(*, nested: bool = False) -> pa.Array:
    text = pa.array([b"a", b"b\xff", b"c"]).view(pa.string())
    return pa.ListArray.from_arrays([0, 1, 2, 3], text) if nested else text


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_text_that_is_no_utf8_is_refused_with_its_row(
    suffix: str, nested: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"in.{suffix}"
    table = pa.table({"p": ["x", "y", "z"], "t": no_utf8(nested=nested)})
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    dataset = open_dataset(str(path))
    assert [batch.num_rows for batch in dataset.batches(["p"])] == [3]
    for start in (0, 1):
        with pytest.raises(InvalidInput, match=rf"in.{suffix}, row 1: the column 't'"):
            list(dataset.batches(start=start))
    assert [batch["p"].to_pylist() for batch in dataset.batches(start=2)] == [["z"]]
    with pytest.raises(InvalidInput, match="The input, row 1: the column 't'"):
        list(TableDataset(table).batches(start=1))


def test_a_damaged_page_is_an_error_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"p": [f"row {n}" for n in range(50_000)]}), path)
    content = path.read_bytes()
    path.write_bytes(content[:3000] + b"\xff" * 2000 + content[5000:])
    dataset = open_dataset(str(path))
    with pytest.raises(InvalidInput, match=r"in\.parquet cannot be read as Parquet"):
        list(dataset.batches())


# -- what is named otherwise ---------------------------------------------------------------------


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"p": ["a"]}), sink)
    return sink.getvalue()


def arrow() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, pa.schema([("p", pa.string())])):
        pass
    return sink.getvalue()


TEXT = b'{"p": "a"}\n'
NO_TEXT = {
    "gzip": (gzip.compress(TEXT), "packed with gzip", ".gz"),
    "zstd": (pa.compress(TEXT, "zstd", asbytes=True), "packed with zstd", ".zst"),
    "bzip2": (bz2.compress(TEXT), "packed with bzip2", ".bz2"),
    "xz": (lzma.compress(TEXT), "packed with xz", "Unpack it"),
    "zip": (b"PK\x03\x04\x14\x00\x06\x00", "a workbook of Excel", "Unpack it"),
    "Parquet": (parquet(), "it is Parquet", ".parquet"),
    "Arrow": (arrow(), "it is Arrow", ".arrow"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
@pytest.mark.parametrize("what", NO_TEXT)
def test_a_file_that_is_no_text_says_what_it_is(
    what: str, name: str, encoding: str, tmp_path: Path
) -> None:
    content, words, remedy = NO_TEXT[what]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as raised:
        open_dataset(str(tmp_path / name), reading=InputReading(encoding=encoding))
    assert name in raised.value.message
    assert words in raised.value.message
    assert remedy in str(raised.value.hint)


CSV_AND_JSON = [("in.csv", "a,b\n1,é\n"), ("in.jsonl", '{"a": "é"}\n')]


@pytest.mark.parametrize(
    ("written", "encoding", "why", "hint"),
    [
        ("utf-8-sig", "cp1252", "is UTF-8, not CP1252", "Leave --encoding out."),
        ("utf-8-sig", "utf-16", "is UTF-8, not UTF-16", "Leave --encoding out."),
        ("utf-16", "iso8859-1", "is UTF-16, not ISO8859-1", "--encoding utf-16."),
        ("utf-16", "utf-16-be", "is UTF-16, not UTF-16-BE", "--encoding utf-16."),
        ("utf-16-le", "utf-16", "is UTF-16-LE, not UTF-16", "--encoding utf-16-le."),
        ("utf-8", "utf-16", "is not UTF-16: it has no byte order mark", "if it is UTF-8"),
        ("utf-8", "utf-32", "is not UTF-32: it has no byte order mark", "if it is UTF-8"),
    ],
)
def test_an_encoding_that_the_files_mark_contradicts_is_refused(
    written: str, encoding: str, why: str, hint: str, tmp_path: Path
) -> None:
    for name, text in CSV_AND_JSON:
        (tmp_path / name).write_bytes(text.encode(written))
        with pytest.raises(InvalidInput) as raised:
            open_dataset(str(tmp_path / name), reading=InputReading(encoding=encoding))
        assert why in raised.value.message
        assert hint in str(raised.value.hint)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(("name", "text"), CSV_AND_JSON)
def test_a_byte_order_mark_is_no_part_of_the_first_name(
    encoding: str, name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(f"\ufeff{text}".encode(encoding))
    dataset = open_dataset(str(tmp_path / name), reading=InputReading(encoding=encoding))
    assert dataset.schema.names[0] == "a"
    assert dataset.rows == 1


def test_a_nul_byte_in_json_is_no_utf16(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "a\x00b"}\n')
    with pytest.raises(InvalidInput, match="line 1, is no JSON object"):
        open_dataset(str(tmp_path / "in.jsonl"))


@pytest.mark.parametrize("note", ["sep=;", '"sep=;"', "SEP=;", "sep=,", "sep=\t"])
@pytest.mark.parametrize("delimiter", [None, ";"])
def test_excels_note_of_the_delimiter_is_no_header(
    note: str, delimiter: str | None, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text(f"{note}\r\nid;p\r\n1;a\r\n")
    with pytest.raises(InvalidInput) as raised:
        open_dataset(str(tmp_path / "in.csv"), reading=InputReading(delimiter=delimiter))
    assert "is a note for Excel" in raised.value.message
    named = "tab" if "\t" in note else note.strip('"')[-1]
    assert f"--delimiter '{named}'" in str(raised.value.hint)


def test_numbers_beyond_a_float_are_no_floats(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a\n1.5\n1e400\n-1.0e400\ninf\n")
    with pytest.raises(InvalidInput) as raised:
        open_dataset(str(tmp_path / "in.csv"), reading=InputReading(types={"a": "float"}))
    told = raised.value.message.splitlines()
    assert [line.partition(": ")[0][-6:] for line in told] == ["line 3", "line 4"]
    assert "beyond what a float holds" in told[0]


# -- outputs in inputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "path", "recursive", "inside"),
    [
        ("in", "in/out.jsonl", False, True),
        ("in/", "in/out.parquet", False, True),
        ("in", "in/_out.jsonl", False, False),
        ("in", "in/sub/out.jsonl", False, False),
        ("in", "in/sub/out.jsonl", True, True),
        ("in", "in/.sub/out.jsonl", True, False),
        ("in", "inside/out.jsonl", False, False),
        ("in", "out.jsonl", False, False),
        ("link", "in/out.jsonl", False, True),
        ("in/*.jsonl", "in/out.jsonl", False, True),
        ("in/*.jsonl", "in/out.parquet", False, False),
        ("in/*.jsonl", "in/sub/out.jsonl", False, False),
        ("in/**/*.jsonl", "in/sub/out.jsonl", False, True),
        ("in/**/*.jsonl", "in/out.jsonl", False, True),
        ("in/a.jsonl", "in/out.jsonl", False, False),
        ("in/[x].jsonl", "in/x.jsonl", False, False),  # a file of that very name
        ("in/{a,b}.jsonl", "in/c.jsonl", False, False),
        ("s3://bucket/in", "s3://bucket/in/out.jsonl", False, True),
        ("s3://bucket/in", "s3://bucket/out.jsonl", False, False),
        ("s3://bucket/in", "in/out.jsonl", False, False),
    ],
)
def test_an_output_that_the_next_run_would_read_is_known(
    source: str, path: str, recursive: bool, inside: bool, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in/[x].jsonl").touch()
    places = [one if "://" in one else f"{tmp_path}/{one}" for one in (source, path)]
    assert is_read_of(*places, recursive=recursive) == inside
