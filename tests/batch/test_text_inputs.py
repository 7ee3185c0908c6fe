"""CSV, TSV and JSON Lines as they come: right, or refused with file and line, all at once."""

from __future__ import annotations

import gzip
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.column_values import python_values
from domyn_swarm.batch.input import file_facts
from domyn_swarm.batch.input.dataset import LOT_BYTES
from domyn_swarm.batch.input.file_facts import InputFacts, Look
from domyn_swarm.batch.input.input_files import InputFile, files_of
from domyn_swarm.batch.input.opening import open_dataset
from domyn_swarm.batch.input.reading import InputReading, reading_of
from domyn_swarm.errors import ConfigError, InvalidInput
from patience import limit_s


def rows_of(source: Path, **reading: Any) -> list[tuple[Any, ...]]:
    dataset = open_dataset(str(source), reading=InputReading.model_validate(reading))
    found: list[tuple[Any, ...]] = []
    for batch in dataset.batches():
        found += zip(*map(python_values, batch.columns), strict=True)
    assert len(found) == dataset.rows
    return found


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


DEEP = b"[" * 150 + b"]" * 150
GOOD: dict[str, tuple[str, bytes, list[tuple[Any, ...]]]] = {
    "a byte order mark": ("a.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n", [("1", "2")]),
    "blank lines": ("a.csv", b"\n\na,b\n\n1,2\n\n", [("1", "2")]),
    "no end of the last line": ("a.csv", b"a,b\n1,2", [("1", "2")]),
    "line ends of old Macs": ("a.csv", b"a,b\r1,2\r", [("1", "2")]),
    "lines in a cell": ("a.csv", b'a,b\n"x\r\ny ""q""",2\n', [('x\r\ny "q"', "2")]),
    "a quote within a cell": ("a.csv", b'a,b\n1,5" tube\n', [("1", '5" tube')]),
    "empty cells": ("a.csv", b'a,b\n,""\n', [("", "")]),
    "one column": ("a.csv", b'a\n""\nx\n', [("",), ("x",)]),
    "a NUL byte": ("a.csv", b"a,b\n1,x\x00y\n", [("1", "x\x00y")]),
    "quotes of TSV": ("a.tsv", b'a\tb\n1\t"Hello\n2\tb\n', [("1", '"Hello'), ("2", "b")]),
    "a mark before a quote": ("a.csv", b'\xef\xbb\xbf"a",b\n1,2\n', [("1", "2")]),
    "zeros behind an archive": ("a.csv.gz", gzip.compress(b"a\n1\n") + bytes(512), [("1",)]),
    "archives": ("a.csv.gz", gzip.compress(b"a\n1\n") + gzip.compress(b"2\n"), [("1",), ("2",)]),
    "JSON with a mark": ("a.jsonl", b'\xef\xbb\xbf{"a":1}\r\n', [(1,)]),
    "JSON with blank lines": ("a.jsonl", b'\n  \n{"a":1}\n\r\n{"a":2}', [(1,), (2,)]),
    "keys twice": ("a.jsonl", b'{"a":1,"a":2}\n', [(2,)]),
    "large numbers": ("a.jsonl", b'{"a":18446744073709551616}\n', [(2**64,)]),
    "a separator of Unicode": ("a.jsonl", '{"a":"x\u2028y"}\n'.encode(), [("x\u2028y",)]),
    "names like the magic of archives": ("a.csv", b"BZhang,PAR1\n1,2\n", [("1", "2")]),
    "nesting": ("a.jsonl", b'{"a":%s}' % DEEP, [(json.loads(DEEP),)]),
}  # fmt: skip


@pytest.mark.parametrize("what", GOOD)
def test_a_file_is_what_it_says(what: str, tmp_path: Path) -> None:
    name, content, rows = GOOD[what]
    assert rows_of(write(tmp_path, name, content)) == rows


BAD: dict[str, tuple[str, bytes, list[str]]] = {
    "a quote that is not closed": (
        "a.csv",
        b'id,p\n0,x\n1,"open\n' + b"".join(b"%d,row\n" % n for n in range(2, 1000)),
        ["line 3: a quotation mark that is opened in this row is never closed"],
    ),
    "a quote closed by the next one": (
        "a.csv",
        b'id,p\n1,"open\n2,"next"\n3,x\n',
        ["line 2: behind a closing quotation mark"],
    ),
    "ragged rows, all of them": (
        "a.csv",
        b"a,b\n1,2\n3\n4,5,6\n",
        ["line 3: the row has 1 cell,", "line 4: the row has 3 cells"],
    ),
    "Latin-1": (
        "a.csv",
        b"id,p\n1,ok\n2,caf\xe9\n3,\xe8\n",
        ["line 3: the column 'p' is not UTF-8: byte 0xe9", "line 4", "--encoding"],
    ),
    "Latin-1 in a name": ("a.csv", b"id,pr\xe9nom\n1,a\n", ["line 1", "byte 0xe9"]),
    "UTF-16": ("a.csv", "a,b\n1,2\n".encode("utf-16"), ["UTF-16", "--encoding utf-16"]),
    "UTF-16 without a mark": ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), ["UTF-16-LE, not UTF-8"]),
    "the same, blank first": ("a.csv", "\na,b\n1,2\n".encode("utf-16-le"), ["NUL", "UTF-16"]),
    "a name twice": ("a.csv", b"a,a\n1,2\n", ["'a' more than once"]),
    "no name": ("a.csv", b"a,\n1,2\n", ["column 2 has no name"]),
    "semicolons": ("a.csv", b"id;p\n1;x\n", ["seems to be the delimiter", "--delimiter ';'"]),
    "nothing": ("a.csv", b"", ["is empty"]),
    "blank lines alone": ("a.csv", b"\n\n", ["is empty"]),
    "half an archive": ("a.csv.gz", gzip.compress(b"a\n1\n" * 99)[:-20], ["cannot be read"]),
    "no archive": ("a.csv.gz", b"no gzip", ["cannot be read as CSV"]),
    "bad lines, all of them": (
        "a.jsonl",
        b'{"a": 1}\n{"a": 1\n[1]\n{"a": NaN}\n{"a": -Infinity}\n{"a": 1e400}\n',
        ["line 2, is no", "line 3, is no", "NaN is no number", "-Infinity is no", "out of range"],
    ),
    "more digits than Python reads": (
        "a.jsonl",
        b'{"a": 1}\n{"a": [%s]}\n' % (b"9" * 5000),
        ["line 2, is no JSON object: a whole number has more than 4,300 digits"],
    ),
    "JSON in Latin-1": ("a.jsonl", b'{"a": "\xe9"}\n', ["line 1, is not UTF-8: byte 8 is 0xe9"]),
    "half a character": ("a.jsonl", b'{"a": "\\ud83d"}\n', ["line 1", "surrogate"]),
    "JSON of UTF-16": ("a.jsonl", '{"a":1}'.encode("utf-16"), ["UTF-16", "--encoding"]),
    "nesting": ("a.jsonl", b'{"a":1}\n{"a":%s}' % (b"[" * 2000 + b"]" * 2000), ["line 2", "deep"]),
    "deep nesting": ("a.jsonl", b'{"a":' + b"[" * 400 + b"]" * 400 + b"}", ["more than 200 deep"]),
    "no lines": ("a.jsonl", b"", ["is empty"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_told_with_its_place(what: str, tmp_path: Path) -> None:
    name, content, words = BAD[what]
    with pytest.raises(InvalidInput) as raised:
        rows_of(write(tmp_path, name, content))
    for word in (name, *words):
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        *(("utf-16", ""), ("utf-16-le", ""), ("utf-16-be", ""), ("utf-16-be", "\ufeff")),
        *(("utf-32", ""), ("utf-32-le", ""), ("utf-32-be", ""), ("utf-32-be", "\ufeff")),
    ],
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id,p\r\n1,é\r\n2\r\n"),
        ("a.tsv", "id\tp\n1\tü\n"),
        ("a.csv", "日本,日\n1,2\n"),
        ("a.jsonl", '{"p": "é"}\n{"p": "b"}\n'),
    ],
)
def test_another_encoding_is_one_problem_with_one_remedy(
    name: str, text: str, encoding: str, mark: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as raised:
        rows_of(write(tmp_path, name, (mark + text).encode(encoding)))
    encoding = encoding.removesuffix("-be") if mark else encoding  # the mark says which
    assert f"is {encoding.upper()}" in raised.value.message
    assert len(raised.value.message.splitlines()) == 1
    assert raised.value.hint == f"Name its encoding: --encoding {encoding}."


def test_many_problems_are_told_up_to_a_number(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as raised:
        rows_of(write(tmp_path, "a.jsonl", "x\n" * 50))
    assert raised.value.message.splitlines()[-1] == "… and 30 more."


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "1.csv", "a,b\n1\n")
    write(tmp_path, "2.csv", "a,b\n1,2\n")
    write(tmp_path, "3.csv", "a,c\n1,2\n")
    with pytest.raises(InvalidInput) as raised:
        rows_of(tmp_path)
    assert "1.csv, line 2" in raised.value.message
    assert "3.csv has other columns than" in raised.value.message


def test_empty_shards_are_no_rows_wherever_they_stand(tmp_path: Path) -> None:
    for name, content in (
        ("0", ""),
        ("1", "p\na\n"),
        ("2", ""),
        ("3", "\np\nb\nc\n"),
        ("4", "p\n"),
    ):
        write(tmp_path, f"{name}.csv", content)
    assert rows_of(tmp_path) == [("a",), ("b",), ("c",)]
    write(tmp_path, "j0.jsonl", "")
    write(tmp_path, "j1.jsonl", '{"a": 1}\n')
    assert rows_of(tmp_path / "j*.jsonl") == [(1,)]


def test_an_encoding_and_a_delimiter_are_those_that_are_named(tmp_path: Path) -> None:
    text = "id;p\n1;café €\n"
    for encoding in ("cp1252", "utf-16", "utf-16-le"):
        source = write(tmp_path, "a.csv", text.encode(encoding))
        assert rows_of(source, encoding=encoding, delimiter=";") == [("1", "café €")]
    lines = write(tmp_path, "a.jsonl", '{"p": "café"}\n'.encode("cp1252"))
    assert rows_of(lines, encoding="cp1252") == [("café",)]
    assert rows_of(write(tmp_path, "b.csv", 'a\tb\n"x\ty"\t1\n'), delimiter="tab") == [
        ("x\ty", "1")
    ]
    assert rows_of(write(tmp_path, "c.csv", "a;b\n1;2\n"), delimiter=",") == [("1;2",)]
    with pytest.raises(InvalidInput, match=r"is not shift_jis"):
        rows_of(write(tmp_path, "d.csv", b"a\n\xff\xff\n"), encoding="shift_jis")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match="--encoding is for"):
        rows_of(tmp_path / "a.parquet", encoding="latin-1")


@pytest.mark.parametrize(
    "wrong", [{"encoding": "utf-99"}, {"delimiter": ";;"}, {"types": {"a": "x"}}]
)
def test_a_reading_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"utf-99|;;|types"):
        InputReading.model_validate(wrong)


def test_cells_have_the_types_that_are_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path, "a.csv", 'i,f,b,j,t\n007,1.50,TRUE,"[{""role"":""user""}]",1\n,,,,\n')
    types = {"i": "int", "f": "float", "b": "bool", "j": "json"}
    assert rows_of(source, types=types) == [
        (7, 1.5, True, [{"role": "user"}], "1"),
        (None, None, None, None, ""),
    ]
    bad = write(tmp_path, "b.csv", "i,f\n1,x\n1.5,2\n99999999999999999999,3\n")
    with pytest.raises(InvalidInput) as raised:
        rows_of(bad, types={"i": "int", "f": "float"})
    told = raised.value.message.splitlines()
    assert [one.partition(", ")[2][:24] for one in told] == [
        "line 2: the column 'f' h",
        "line 3: the column 'i' h",
        "line 4: the column 'i' h",
    ]
    assert told[1].endswith("'1.5', which is no int.")
    assert told[2].endswith("which has more than the 64 bits of an int.")
    with pytest.raises(InvalidInput, match="no column 'z'"):
        rows_of(source, types={"z": "int"})


def test_lots_have_so_many_bytes_and_long_lines_are_read_in_parts(tmp_path: Path) -> None:
    text = "x" * (LOT_BYTES // 4)
    source = write(tmp_path, "a.jsonl", "".join(f'{{"p": "{n} {text}"}}\n' for n in range(20)))
    write(tmp_path, "a.csv", "p\n" + "".join(f"{n} {text}\n" for n in range(20)))
    pq.write_table(pa.table({"p": [f"{n} {text}" for n in range(20)]}), tmp_path / "a.parquet")
    for path in (source, tmp_path / "a.csv", tmp_path / "a.parquet"):
        batches = list(open_dataset(str(path)).batches())
        assert sum(batch.num_rows for batch in batches) == 20
        assert max(batch.nbytes for batch in batches) < 2 * LOT_BYTES
    long = write(
        tmp_path, "long.jsonl", json.dumps({"p": "y" * (3 * LOT_BYTES)}) + '\n{"p": "z"}\n'
    )
    assert [len(one) for (one,) in rows_of(long)] == [3 * LOT_BYTES, 1]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.csv", "a,b\n1,2\n", "a,b\n1\n"),
        ("b.csv", "a\n1\n", 'a\n"1\n'),
        ("c.csv", "a\n1\n", "a\n\xff\n"),
        ("d.jsonl", '{"a": 1}\n', '{"a": 1\n'),
    ],
)
def test_a_file_that_changes_after_it_was_opened_is_an_error(
    name: str, before: str, after: str, tmp_path: Path
) -> None:
    dataset = open_dataset(str(write(tmp_path, name, before)))
    write(tmp_path, name, after.encode("latin-1"))
    with pytest.raises(InvalidInput, match=name):
        list(dataset.batches())


# -- folders -------------------------------------------------------------------------------------


def test_a_folder_tells_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "y=1").mkdir()
    for name in ("a.parquet", "b.PARQUET", "y=1/c.parquet", "_hidden.parquet", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"p": [name]}), tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert rows_of(tmp_path) == [("a.parquet",), ("b.PARQUET",)]
    [told] = caplog.messages
    assert "sub-folders, which --recursive reads (y=1)" in told
    assert "files of other kinds (notes.md)" in told
    assert len(rows_of(tmp_path, recursive=True)) == 3
    (tmp_path / "e.parquet").symlink_to("/gone")
    with pytest.raises(InvalidInput, match=r"e\.parquet is a link that leads nowhere"):
        files_of(str(tmp_path))


def test_caches_of_hugging_face_are_no_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("data-00000-of-00001", "cache-0123456789abcdef"):
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink:
            table = pa.table({"p": [name]})
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    (tmp_path / "state.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert rows_of(tmp_path) == [("data-00000-of-00001",)]
    assert "caches of Hugging Face (cache-0123456789abcdef.arrow)" in caplog.text


# -- shards --------------------------------------------------------------------------------------

SAME: dict[str, tuple[pa.Array, pa.Array]] = {
    "nulls": (pa.array(["u"]), pa.nulls(1)),
    "nulls first": (pa.nulls(1), pa.array(["u"])),
    "a dictionary": (pa.array(["u"]).dictionary_encode(), pa.array(["v"])),
    "large text": (pa.array(["u"], pa.large_string()), pa.array(["v"])),
    "width": (pa.array([1], pa.int32()), pa.array([2**40])),
    "unsigned": (pa.array([1], pa.uint8()), pa.array([-1], pa.int32())),
    "lists": (pa.array([["a"]]), pa.array([[None]])),
    "structs": (pa.array([{"a": 1}], pa.struct([("a", pa.int8())])), pa.array([{"a": 2}])),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("what", SAME)
def test_shards_that_differ_in_nothing_that_matters_are_one(
    what: str, kind: str, tmp_path: Path
) -> None:
    parts = [pa.table({"prompt": ["a"], "x": one}) for one in SAME[what]]
    parts[1] = parts[1].select(["x", "prompt"])  # in another order
    for number, part in enumerate(parts):
        path = tmp_path / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(part, path)
            continue
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
            writer.write_table(part)
    found = rows_of(tmp_path)
    assert found == [("a", one.to_pylist()[0]) for one in SAME[what]]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (pa.table({"prompt": ["a"], "x": [1]}), "column 'x' is int64 in .*1.parquet and string"),
        (pa.table({"prompt": ["a"]}), "1.parquet has no column 'x'"),
        (pa.table({"prompt": ["a"], "x": ["u"], "y": [1]}), "0.parquet has no column 'y'"),
    ],
)
def test_shards_that_differ_name_the_column(other: pa.Table, why: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "x": ["u"]}), tmp_path / "0.parquet")
    pq.write_table(other, tmp_path / "1.parquet")
    with pytest.raises(InvalidInput, match=why):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("other", [pa.array([1]), pa.array([0.1], pa.float32())])
def test_numbers_that_would_read_otherwise_beside_fractions_are_refused(
    other: pa.Array, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"x": other}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"x": [0.5]}), tmp_path / "1.parquet")
    with pytest.raises(InvalidInput, match="The column 'x' is double in"):
        open_dataset(str(tmp_path))


def test_what_is_no_file_is_left_out_of_a_folder_and_refused_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(InvalidInput, match="is a pipe"):
        open_dataset(str(tmp_path / "p.jsonl"))
    write(tmp_path, "a.jsonl", '{"p": 1}\n')
    assert rows_of(tmp_path) == [(1,)]


@pytest.mark.parametrize(
    "encoding", ["base64", "nonsense", "punycode", "idna", "undefined", "unicode_escape"]
)
def test_what_is_no_encoding_of_text_is_refused(encoding: str) -> None:
    with pytest.raises(ConfigError, match=f"'{encoding}' is no encoding") as refused:
        reading_of({"encoding": encoding})
    assert refused.value.hint == ""


# -- looks that are taken once -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_file_is_looked_at_once_for_as_long_as_it_is_the_same(kind: str, tmp_path: Path) -> None:
    def fill(name: str, rows: int) -> None:
        table = pa.table({"n": [str(n) for n in range(rows)]})
        if kind == "parquet":
            pq.write_table(table, tmp_path / name)
        elif kind == "csv":
            write(tmp_path, name, "n\n" + "".join(f"{n}\n" for n in range(rows)))
        else:
            write(tmp_path, name, "".join(f'{{"n": "{n}"}}\n' for n in range(rows)))

    fill(f"0.{kind}", 3)
    fill(f"1.{kind}", 4)
    facts = InputFacts()
    source = str(tmp_path / f"*.{kind}")
    assert open_dataset(source, facts=facts).rows == 7
    facts.save(tmp_path / "facts")
    kept = InputFacts.load(tmp_path / "facts")
    looked: list[str] = []

    def look(file: InputFile) -> Look:
        looked.append(file.path.rpartition("/")[2])
        return Look(pa.schema([]), 1)

    assert [one.rows for one in kept.looks(files_of(source), look)] == [3, 4]
    assert looked == []
    again = open_dataset(source, facts=kept)
    assert [row for batch in again.batches() for row in python_values(batch["n"])] == [
        *("0", "1", "2"),
        *("0", "1", "2", "3"),
    ]
    fill(f"1.{kind}", 5)
    assert [one.rows for one in kept.looks(files_of(source), look)] == [3, 1]
    assert looked == [f"1.{kind}"]
    (tmp_path / "facts").write_bytes(b"none of ours")
    assert open_dataset(source, facts=InputFacts.load(tmp_path / "facts")).rows == 8


def test_many_files_are_looked_at_side_by_side_and_how_many_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        pq.write_table(pa.table({"n": [number]}), tmp_path / f"{number}.parquet")
    monkeypatch.setattr(file_facts, "_TELL_S", -1.0)
    together = threading.Barrier(2)

    def look(file: InputFile) -> Look:
        together.wait(limit_s())  # one alone would wait for ever
        return Look(pa.schema([]), int(Path(file.path).stem))

    files = files_of(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        found = InputFacts().looks(files, look, side_by_side=True)
    assert [one.rows for one in found] == [0, 1, 2, 3, 4, 5]
    assert caplog.messages == [f"examined {done} of 6 files" for done in range(1, 6)]


def test_footers_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        pq.write_table(pa.table({"n": [number]}), tmp_path / f"{number}.parquet")
    asked: list[bool] = []
    looks = InputFacts.looks

    def noted(self: InputFacts, *args: Any, side_by_side: bool = False) -> list[Look]:
        asked.append(side_by_side)
        return looks(self, *args, side_by_side=side_by_side)

    monkeypatch.setattr(InputFacts, "looks", noted)
    assert rows_of(tmp_path) == [(1,), (2,)]
    assert asked == [True]
