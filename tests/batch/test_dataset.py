"""Inputs of every kind, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.column_values import python_values
from domyn_swarm.batch.input.dataset import BATCH_ROWS, check_columns
from domyn_swarm.batch.input.opening import open_dataset
from domyn_swarm.batch.input.row_keys import check_ids
from domyn_swarm.errors import InvalidInput


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path.with_suffix(".parquet"))


def write_csv(path: Path, table: pa.Table) -> None:
    pyarrow.csv.write_csv(table, path.with_suffix(".csv"))


def write_jsonl(path: Path, table: pa.Table) -> None:
    lines = [json.dumps(row) for row in table.to_pylist()]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")


WRITERS = [write_parquet, write_csv, write_jsonl]


def numbers(start: int, count: int) -> pa.Table:
    column = list(range(start, start + count))
    return pa.table({"n": column, "text": [f"t {number}" for number in column]})


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_is_read_in_order_in_batches(
    write: Callable[[Path, pa.Table], None], tmp_path: Path
) -> None:
    rows = BATCH_ROWS * 2 + 100
    write(tmp_path / "in", numbers(0, rows))
    dataset = open_dataset(str(next(tmp_path.iterdir())))
    assert dataset.rows == rows
    assert dataset.schema.names == ["n", "text"]
    for _ in range(2):  # more than once
        batches = list(dataset.batches(["text"]))
        assert max(batch.num_rows for batch in batches) <= BATCH_ROWS
        texts = [text for batch in batches for text in python_values(batch.column(0))]
        assert texts == [f"t {number}" for number in range(rows)]
    limited = list(dataset.batches(limit=10))
    assert sum(batch.num_rows for batch in limited) == 10


@pytest.mark.parametrize("write", WRITERS)
def test_folders_and_globs_are_read_in_the_order_of_names(
    write: Callable[[Path, pa.Table], None], tmp_path: Path
) -> None:
    for part in (2, 0, 1):
        write(tmp_path / f"part-{part}", numbers(part * 10, 10))
    suffix = next(tmp_path.iterdir()).suffix
    for source in (str(tmp_path), str(tmp_path / f"part-*{suffix}")):
        dataset = open_dataset(source)
        found = [int(one) for batch in dataset.batches(["n"]) for one in python_values(batch["n"])]
        assert found == list(range(30))


def test_what_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\nnot json\n')
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n3\n")
    for name, words in (
        ("x.txt", "inputs are files of one kind"),
        ("gone.parquet", "There is no input"),
        ("bad.jsonl", "bad.jsonl, line 2, is no JSON object"),
        ("bad.csv", "bad.csv, line 3: the row has 1 cell, and there are 2 columns"),
    ):
        with pytest.raises(InvalidInput, match=words):
            open_dataset(str(tmp_path / name))
    write_parquet(tmp_path / "one", numbers(0, 3))
    pq.write_table(pa.table({"other": [1]}), tmp_path / "two.parquet")
    with pytest.raises(InvalidInput, match="no column 'n', 'text', which"):
        open_dataset(str(tmp_path / "*.parquet"))


def test_columns_and_ids_are_checked(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, None], "b": ["x", "y", "x"], "c": [1.5, 2.5, 3.5]})
    write_parquet(tmp_path / "in", table)
    dataset = open_dataset(str(tmp_path / "in.parquet"))
    with pytest.raises(InvalidInput, match=r"no column 'z'.*\n.*a, b, c"):
        check_columns(dataset, ["a", "z"], "--input-column")
    with pytest.raises(InvalidInput, match="null in row 2"):
        check_ids(dataset, "a", limit=None)
    check_ids(dataset, "a", limit=2)
    with pytest.raises(InvalidInput, match="'x' in column 'b' stands in row 0 and in row 2"):
        check_ids(dataset, "b", limit=None)
    check_ids(dataset, "c", limit=None)
