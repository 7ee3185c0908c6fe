"""One store of answers, many jobs: who finds whose answers, and who disturbs whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import warm
from domyn_swarm.batch.checkpoint.accounting import read_accounts
from domyn_swarm.batch.checkpoint.frames import scan_frames
from domyn_swarm.batch.checkpoint.index import open_index
from domyn_swarm.batch.checkpoint.job_store import (
    Asker,
    JobPlace,
    ResultsFolder,
    frame_key,
    input_key,
)
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.checkpoint.segments import checkpoint_files, join, void_path
from domyn_swarm.batch.input.dataset import TableDataset
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.errors import JobError
from domyn_swarm.jobs.worker import main
from model_server import Answer
from patience import until

IDENTITY = JobIdentity({"job": "m:J"})


def job(bench: Any, name: str, **changes: Any) -> Path:
    """The folder of a job over `<name>.parquet`."""
    fields = {"job_id": name, "input": str(bench.folder / f"{name}.parquet"), "id_column": "n"}
    output = str(bench.folder / f"{name}.out.parquet")
    folder = Path(bench.folder / f"job-{name}")
    folder.mkdir(exist_ok=True)
    spec = bench.spec(**{**fields, "output": output, **changes})
    (folder / "job.json").write_text(spec.model_dump_json())
    return folder


def asked(bench: Any, name: str, code: int = 0, **changes: Any) -> int:
    """How many requests it takes to run the job over `<name>.parquet`."""
    before = bench.server.asked.total()
    assert main([str(job(bench, name, **changes))]) == code
    return int(bench.server.asked.total() - before)


def result(bench: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bench.folder / f"job-{name}" / "result.json").read_text())
    return found


def answers(bench: Any, name: str) -> list[str]:
    return [row["answer"] for row in bench.output(f"{name}.out.parquet")]


def folder_of(bench: Any, name: str) -> Path:
    return Path(result(bench, name)["checkpoint"])


def rows_on_disk(folder: Path) -> int:
    return sum(ref.rows for path in checkpoint_files(folder) for ref in scan_frames(path))


def test_no_resume_asks_the_rows_of_its_own_file_and_removes_nothing(bench: Any) -> None:
    bench.write(60, "a.parquet")
    bench.write(40, "b.parquet", start=40)  # 20 rows stand in both
    assert asked(bench, "a") == 60
    assert asked(bench, "b") == 20
    assert folder_of(bench, "a").parent == folder_of(bench, "b").parent
    bench.server.behave = lambda prompt, _nth: Answer(text=f"new {prompt}")
    assert asked(bench, "b", resume=False) == 40
    assert answers(bench, "b") == [f"new p{number}" for number in range(40, 80)]
    assert asked(bench, "b") == 0  # what was asked again is kept
    assert answers(bench, "b")[0] == "new p40"
    assert asked(bench, "a") == 0
    assert answers(bench, "a") == [f"P{number}" for number in range(60)]
    assert rows_on_disk(folder_of(bench, "a")) == 60
    assert rows_on_disk(folder_of(bench, "b")) == 60


def test_a_killed_run_without_resume_is_gone_on_with(bench: Any) -> None:
    bench.write(60, "a.parquet")
    bench.write(60, "b.parquet")  # the same rows
    assert asked(bench, "a") == 60
    bench.server.asked.clear()
    bench.server.answered.clear()
    bench.server.answers_at_most = 20
    folder = job(bench, "b", resume=False, max_concurrency=4)
    running = warm.start_worker(folder)
    until(lambda: bench.server.answered.total() == 20)
    until(lambda: rows_on_disk(*bench_folders(bench, "b")) >= 16)
    running.kill()
    running.wait()
    bench.server.answers_at_most = None
    kept = rows_on_disk(*bench_folders(bench, "b"))
    before = bench.server.asked.total()
    # as a platform that starts the very job again, and as somebody who leaves out the flag
    running = warm.start_worker(folder)
    assert running.wait() == 0
    assert bench.server.asked.total() - before == 60 - kept
    assert asked(bench, "b", job_id="later") == 0
    assert asked(bench, "b", job_id="again", resume=False) == 60


def bench_folders(bench: Any, name: str) -> list[Path]:
    """The folder of a job that may not have ended yet."""
    key = input_key(str(bench.folder / f"{name}.parquet"))
    return list((bench.folder / "checkpoints").glob(f"*/{key}"))


def test_two_files_are_asked_at_the_same_time_and_a_kill_of_each_loses_only_rows_in_flight(
    bench: Any,
) -> None:
    bench.write(300, "a.parquet")
    bench.write(300, "b.parquet", start=200)  # 100 rows stand in both
    bench.server.behave = lambda _prompt, _nth: Answer(delay_s=0.02)
    bench.server.answers_at_most = 200
    folders = {name: job(bench, name, max_concurrency=8) for name in "ab"}
    running = {name: warm.start_worker(folder) for name, folder in folders.items()}
    until(lambda: bench.server.answered.total() == 200)
    assert all(any(bench_folders(bench, name)) for name in "ab")
    for name in "ab":
        running[name].kill()
        running[name].wait()
        bench.server.answers_at_most += 100
        running[name] = warm.start_worker(folders[name])
        until(lambda: bench.server.answered.total() >= bench.server.answers_at_most)
    bench.server.answers_at_most = None
    for name in "ab":
        assert running[name].wait() == 0, warm.said(folders[name])
    assert answers(bench, "a") == [f"P{number}" for number in range(300)]
    assert answers(bench, "b") == [f"P{number}" for number in range(200, 500)]
    # A row of one file: once, and once more if it was in flight as its driver was killed. One of
    # both: by each of the two that has not seen the other's answer.
    twice = [prompt for prompt, times in bench.server.asked.items() if times > 1]
    alone = [one for one in twice if not 200 <= int(one[1:]) < 300]
    assert len(alone) <= 2 * 8
    bench.write(500, "c.parquet")
    assert asked(bench, "c") == 0
    assert answers(bench, "c") == [f"P{number}" for number in range(500)]


def test_what_lies_there_is_told_apart(bench: Any) -> None:
    bench.write(20, "a.parquet")
    bench.write(10, "b.parquet", start=16)
    bench.write(0, "none.parquet")
    bench.write(1, "one.parquet", start=3)
    asked(bench, "a")
    asked(bench, "b")
    told = result(bench, "b")
    assert (told["rows_done"], told["rows_resumed"], told["requests"]) == (10, 4, 6)
    assert (told["account"]["requests"], told["account"]["runs"]) == (6, 1)
    [run] = read_accounts(folder_of(bench, "b"))
    assert run.resumed_from == {folder_of(bench, "a").name: 4}
    asked(bench, "b")
    told = result(bench, "b")
    assert (told["rows_done"], told["rows_resumed"], told["requests"]) == (10, 10, 0)
    assert (told["account"]["requests"], told["account"]["runs"]) == (6, 1)
    assert asked(bench, "none") == 0
    told = result(bench, "none")
    assert (told["rows_done"], told["account"]["requests"], told["account"]["runs"]) == (0, 0, 0)
    assert asked(bench, "one") == 0
    assert answers(bench, "one") == ["P3"]
    note = json.loads((folder_of(bench, "b") / "job.json").read_text())
    assert (note["job_id"], note["input"]) == ("b", str(bench.folder / "b.parquet"))


def test_errors_are_their_own_jobs(bench: Any) -> None:
    bench.write(10, "a.parquet")
    bench.write(10, "b.parquet")
    bench.server.behave = lambda prompt, _nth: Answer(status=400 if prompt == "p3" else 200)
    assert asked(bench, "a", code=7) == 10
    assert asked(bench, "b", code=7) == 1
    assert asked(bench, "a", code=7) == 0
    bench.server.behave = lambda _prompt, _nth: Answer()
    assert asked(bench, "a", retry_failed=True) == 1
    assert asked(bench, "b") == 0  # an answer is better than an error, whoever has it
    assert answers(bench, "b")[3] == "P3"


@pytest.mark.parametrize("fingerprint", ["off", "sample"])
@pytest.mark.parametrize("id_column", [None, "n"])
def test_an_id_or_a_position_means_a_row_of_one_input(
    bench: Any, fingerprint: str, id_column: str | None
) -> None:
    how = {"fingerprint": fingerprint, "id_column": id_column}
    table = {"n": list(range(10)), "prompt": [f"p{number}" for number in range(10)]}
    pq.write_table(pa.table(table), bench.folder / "a.parquet")
    pq.write_table(pa.table({**table, "prompt": ["q"] * 10}), bench.folder / "b.parquet")
    assert asked(bench, "a", **how) == 10
    assert asked(bench, "b", **how) == 10
    assert answers(bench, "b") == ["Q"] * 10
    assert asked(bench, "b", **{**how, "fingerprint": "full"}) == 0
    pq.write_table(pa.table({**table, "prompt": ["r"] * 10}), bench.folder / "c.parquet")
    assert asked(bench, "c", **{**how, "fingerprint": "full"}) == 10
    assert asked(bench, "a", **how) == 0
    pq.write_table(pa.table({**table, "prompt": ["s"] * 10}), bench.folder / "d.parquet")
    assert asked(bench, "d", **how) == 10  # also beside results that are kept with their inputs
    assert answers(bench, "d") == ["S"] * 10


def test_a_retry_asks_the_failed_rows_and_leaves_the_others_unasked(bench: Any) -> None:
    bench.write(30, "a.parquet")
    bench.server.behave = lambda prompt, _nth: Answer(status=400 if prompt in ("p2", "p9") else 200)
    assert asked(bench, "a", code=7, limit=20) == 20
    bench.server.behave = lambda _prompt, _nth: Answer()
    assert asked(bench, "a", code=6, retry_failed=True) == 2
    told = result(bench, "a")
    assert (told["rows_done"], told["rows_total"], told["output"]) == (20, 30, None)
    assert "10 of 30 rows have never been sent" in told["error"]
    assert "job resume a" in told["error"]
    assert asked(bench, "a") == 10
    assert answers(bench, "a") == [f"P{number}" for number in range(30)]


def test_what_hides_results_is_believed_or_refused(bench: Any) -> None:
    bench.write(5, "a.parquet")
    asked(bench, "a")
    asked(bench, "a", resume=False)
    hidden = folder_of(bench, "a") / "hidden.json"
    hidden.write_text("{")
    assert asked(bench, "a", code=6) == 0
    assert str(hidden) in result(bench, "a")["error"]


def test_a_key_is_that_of_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.csv").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    same = {input_key(one) for one in ("in.csv", str(tmp_path / "x/../in.csv"), "link/in.csv")}
    assert same == {input_key(f"file://{tmp_path}/in.csv")}
    assert input_key("s3://bucket/rows/") == input_key("s3://bucket/rows")
    assert len({input_key(one) for one in ("in.csv", "other.csv", "s3://bucket/in.csv")}) == 3


def test_a_frame_has_the_key_of_an_equal_one() -> None:
    keys = RowKeys(["text"], None)

    def key(frame: Any, by: RowKeys = keys) -> str:
        table = frame if isinstance(frame, pa.Table) else pa.table(frame)
        return frame_key(TableDataset.of(table.schema, table.to_batches()), by)

    columns = {"text": [f"t{number}" for number in range(100)], "n": list(range(100))}
    table = pa.table(columns)
    equal = {key(table), key(pl.DataFrame(columns).to_arrow().cast(table.schema))}
    equal.add(key(pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)))
    assert len(equal) == 1
    others = [table.slice(1), table.slice(0, 99), table.set_column(0, "text", [["x"] * 100])]
    others += [table.slice(0, 0), table.slice(0, 1)]
    assert len({*equal, *map(key, others), key(table, RowKeys(["text"], "n"))}) == 7


# -- reading several folders, beside a dictionary ------------------------------------------------

ROWS = 6


@dataclass(frozen=True)
class Kept:
    """One result of one job."""

    job: int
    generation: int
    row: int
    failed: bool
    number: int


def digest(row: int) -> np.ndarray:
    return np.array([row + 1, row + 7], np.uint64)


def write(place: JobPlace, kept: Sequence[Kept]) -> None:
    journal = Journal(place.folder, kept[0].generation)
    for one in kept:
        text = b"%d" % one.number
        value = RowValue(b"" if one.failed else text, text if one.failed else b"", 1, 0, 0, 0.1)
        journal.append([Result(one.row, digest(one.row).tobytes(), value)])
    journal.close()


def expected(
    kept: Sequence[Kept], row: int, own: int, hidden: dict[int, int], void: set[int]
) -> int | None:
    """The number of the result that counts for one job."""
    there = [one for one in kept if one.row == row and one.generation > hidden.get(one.job, 0)]
    mine = [one for one in there if one.job == own]
    good = [one for one in mine if not one.failed]
    if good:
        return good[-1].number
    for job_number in range(3):  # the oldest job first
        theirs = [one for one in there if one.job == job_number != own and not one.failed]
        if theirs:
            return theirs[0].number
    bad = [one for one in mine if one.generation not in void]
    return bad[-1].number if bad else None


@given(
    runs=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(
                st.tuples(st.integers(0, ROWS - 1), st.booleans()),
                min_size=1,
                max_size=4,
                unique_by=lambda one: one[0],
            ),
        ),
        max_size=8,
    ),
    hides_at=st.integers(0, 9),
    joined=st.booleans(),
    voided=st.booleans(),
)
def test_each_job_finds_its_own_results_and_the_answers_of_others(
    tmp_path_factory: pytest.TempPathFactory,
    runs: list[tuple[int, list[tuple[int, bool]]]],
    hides_at: int,
    joined: bool,
    voided: bool,
) -> None:
    root = tmp_path_factory.mktemp("store")
    places = [JobPlace(root, IDENTITY, f"{2 - number:016x}") for number in range(3)]
    for place in places:
        place.folder.mkdir(parents=True)
        place.note(Asker("j"))
    kept: list[Kept] = []
    last, hidden = {0: 0, 1: 0, 2: 0}, {0: 0}
    for at, (number, rows) in enumerate(runs):
        if at == hides_at:
            places[0].hide_earlier(last[0] + 1, "j")
            hidden = dict(last)
        last[number] += 1
        run = [
            Kept(number, last[number], row, failed, len(kept) + nth)
            for nth, (row, failed) in enumerate(rows)
        ]
        write(places[number], run)
        kept += run
    void = {1} if voided else set()
    for place in places:
        if voided:
            void_path(place.folder, 1).touch()
        files = checkpoint_files(place.folder)
        if joined and len(files) > 1:
            join(files)
    for own, place in enumerate(places):
        for id_column in (None, "id"):
            keys = RowKeys(["text"], id_column)
            index = open_index(place.readable(keys), keys, Reading())
            found = index.match(0, np.array([digest(row) for row in range(ROWS)]))
            for row in range(ROWS):
                number = None
                if found.found[row]:
                    value = index.frames.value(int(found.frame[row]), int(found.row[row]))
                    assert value is not None
                    number = int(value.output or value.error)
                mine = hidden if own == 0 else {}
                assert number == expected(kept, row, own, mine, void), (own, id_column, row)
            index.frames.close()


def test_of_a_store_that_is_being_removed_nothing_is_found(tmp_path: Path) -> None:
    place = JobPlace(tmp_path, IDENTITY, "0" * 16)
    keys = RowKeys(["text"], None)
    assert [one.path for one in place.readable(keys)] == [place.folder]
    index = open_index([ResultsFolder(place.folder)], keys)
    assert not index.match(0, np.array([digest(1)])).found.any()
    index.frames.close()
    place.folder.mkdir(parents=True)
    (place.folder / "hidden.json").write_text("[]")
    with pytest.raises(JobError, match=r"hidden\.json"):
        place.readable(keys)
