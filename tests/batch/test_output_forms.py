"""Outputs that are text, that a library writes, or that lie at a URL: whole jobs, then checks."""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import warm
from domyn_swarm.batch.output.manifest import read_manifest
from domyn_swarm.errors import ConfigError, InvalidInput, OutputExists
from domyn_swarm.jobs.ends import opened_results, verify_output
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main
from domyn_swarm.model import JobStatus

ODD = pa.table(
    {
        "prompt": ["a", 'quoted "b",\nin two lines', ""],
        "n": pa.array([1, None, 2**60]),
        "f": [1.5, math.nan, None],
        "list": [[1, None], [], None],
        "struct": [{"x": "é"}, None, {"x": None}],
        "at": pa.array([dt.datetime(2026, 1, 1), None, None], pa.timestamp("us", "UTC")),
        "bytes": [b"\xff", b"", None],
        "text": [None, "null", ""],
    }
)


def run(bench: Any, **changes: Any) -> int:
    return main([str(bench.job_folder(bench.spec(**changes)))])


def to(bench: Any, name: str) -> dict[str, Any]:
    return {"output": str(bench.folder / name)}


def findings(bench: Any, **changes: Any) -> list[str]:
    return list(verify_output(bench.spec(**changes)).findings)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# -- text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_a_job_writes_text(bench: Any, suffix: str, rows: int) -> None:
    bench.write(rows)
    changes = to(bench, f"out.{suffix}")
    assert run(bench, **changes, max_concurrency=64) == 0
    found = rows_of(bench.folder / f"out.{suffix}")
    number = int if suffix == "jsonl" else str
    assert found == [{"n": number(n), "prompt": f"p{n}", "answer": f"P{n}"} for n in range(rows)]
    assert findings(bench, **changes) == []
    with opened_results(bench.spec(**changes), JobStatus.SUCCEEDED, partial=False) as results:
        assert results.schema.names == ["n", "prompt", "answer"]
        assert results.table().column("answer").to_pylist() == [f"P{n}" for n in range(rows)]
    assert run(bench, **changes) == 0  # its own output is replaced


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_text_holds_failures_and_every_type(bench: Any, answer: Any, suffix: str) -> None:
    pq.write_table(ODD, bench.folder / "in.parquet")
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "a" else 200)
    changes = {**to(bench, f"out.{suffix}"), "accept": "any"}  # one of the prompts is empty
    assert run(bench, **changes) == 7
    found = rows_of(bench.folder / f"out.{suffix}")
    assert [row["prompt"] for row in found] == ODD["prompt"].to_pylist()
    error = found[0]["_error"]
    assert (error if suffix == "jsonl" else json.loads(error))["status"] == 400
    assert verify_output(bench.spec(**changes)).rows_failed == 1
    assert findings(bench, **changes) == []


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_text_that_was_changed_is_found_and_left_alone(bench: Any, suffix: str) -> None:
    bench.write(30)
    changes = to(bench, f"out.{suffix}")
    out = bench.folder / f"out.{suffix}"
    assert run(bench, **changes) == 0
    good = out.read_text()
    out.write_text(good.replace("p7", "q7"))
    first, second = findings(bench, **changes)
    assert "has changed since it was written" in first
    assert "Column 'prompt' is not the input's in 1 row, the first at 7" in second
    out.write_text("".join(good.splitlines(keepends=True)[:-1]))
    assert any("29 rows" in one for one in findings(bench, **changes))
    with pytest.raises(OutputExists, match=f"out.{suffix}"):
        prepare(bench.spec(**changes))
    out.write_text("no such text\n")
    assert any("cannot be read" in one for one in findings(bench, **changes))


def test_text_of_another_job_is_in_the_way(bench: Any) -> None:
    bench.write(3)
    changes = to(bench, "out.jsonl")
    (bench.folder / "out.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(OutputExists):
        prepare(bench.spec(**changes))
    (bench.folder / "out.jsonl").unlink()
    assert run(bench, **changes) == 0
    with pytest.raises(OutputExists):
        prepare(bench.spec(**changes, job_kwargs={"temperature": 1.0}))


_KILLED_AT = """
import os, pathlib, signal, sys
left = [int(sys.argv[2])]

def mortal(call):
    def wrapped(*args, **kwargs):
        if any(word in str(args[0]) for word in ("out", "manifest")):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped

for name in ("mkdir", "rename", "replace"):
    setattr(pathlib.Path, name, mortal(getattr(pathlib.Path, name)))
from domyn_swarm.jobs.worker import main
sys.exit(main([sys.argv[1]]))
"""


def test_text_survives_a_kill_at_every_step_of_publishing(bench: Any) -> None:
    bench.write(40)
    changes, out = to(bench, "out.jsonl"), bench.folder / "out.jsonl"
    assert run(bench) == 0  # every row is known
    for step in range(50):
        limit = 40 if step % 2 == 0 else 20
        folder = bench.job_folder(bench.spec(**changes, limit=limit))
        done = warm.run_code(_KILLED_AT, str(folder), str(step))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists() or len(rows_of(out)) in (20, 40)
        assert run(bench, **changes, limit=limit) == 0
        assert len(rows_of(out)) == limit
        assert not [one for one in bench.folder.iterdir() if one.name.startswith(".")]
    else:
        raise AssertionError("never came to its end")
    assert step >= 3  # the stage, the file, the manifest


@pytest.mark.parametrize("name", ["out.txt", "out", "out.parquet.gz"])
def test_other_kinds_of_output_are_refused(bench: Any, name: str) -> None:
    bench.write(1)
    with pytest.raises(InvalidInput, match=r"its name says no kind of file"):
        prepare(bench.spec(**to(bench, name)))


# -- written by a library --------------------------------------------------------------------

ZSTD = {
    "arrow": {"compression": "gzip", "use_dictionary": False},
    "pandas": {"compression": "gzip"},
    "polars": {"compression": "gzip", "statistics": False},
}


@pytest.mark.parametrize("backend", ZSTD)
def test_a_library_writes_with_its_own_options(
    bench: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domyn_swarm.batch.output.publish.SHARD_ROWS", 100)
    bench.write(250)
    chosen = {"data_backend": backend, "backend_write_kwargs": ZSTD[backend]}
    assert run(bench, **chosen) == 0
    column = pq.read_metadata(bench.folder / "out.parquet").row_group(0).column(0)
    assert column.compression == "GZIP"
    assert bench.output() == [{"n": n, "prompt": f"p{n}", "answer": f"P{n}"} for n in range(250)]
    assert findings(bench, **chosen) == []
    assert run(bench, **chosen) == 0  # it knows its own files again
    shards = {**chosen, **to(bench, "shards"), "shard_output": True}
    assert run(bench, **shards) == 0
    assert findings(bench, **shards) == []
    assert len(list((bench.folder / "shards").glob("*.parquet"))) == 3
    assert run(bench, **shards) == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "--data-backend"),
        ({"data_backend": "polars", "backend_write_kwargs": {"compresion": "zstd"}}, "compresion"),
        ({"data_backend": "arrow", "backend_write_kwargs": {"compresion": "zstd"}}, "compresion"),
        ({"data_backend": "ray", "backend_write_kwargs": {"compresion": "zstd"}}, "compresion"),
        ({"data_backend": "pandas", "backend_write_kwargs": {"compression": "zz"}}, "(?i)zz"),
        ({"data_backend": "pandas", "backend_write_kwargs": {"partition_cols": ["n"]}}, "single"),
        ({"data_backend": "pandas", "output": "out.jsonl"}, "out.jsonl is none"),
    ],
)
def test_options_that_no_writer_takes_are_refused_before_the_first_request(
    bench: Any, changes: dict[str, Any], why: str
) -> None:
    bench.write(5)
    given = {"backend_write_kwargs": {"compression": "gzip"}, **changes}
    with pytest.raises((ConfigError, InvalidInput), match=why):
        prepare(bench.spec(**given))


# -- URLs ------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Any]:
    memory = fsspec.filesystem("memory")
    yield memory
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def names_at(store: Any, folder: str = "/bucket") -> list[str]:
    return sorted(one.rpartition("/")[2] for one in store.ls(folder, detail=False))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_rows_come_from_a_url_and_go_to_one(bench: Any, store: Any, suffix: str) -> None:
    store.pipe("/bucket/in.parquet", bench.write(300).read_bytes())
    changes = {"input": "memory://bucket/in.parquet", "output": f"memory://bucket/out.{suffix}"}
    assert run(bench, **changes) == 0
    assert names_at(store) == sorted(["in.parquet", f"out.{suffix}", f"out.{suffix}.manifest.json"])
    assert findings(bench, **changes) == []
    with opened_results(bench.spec(**changes), JobStatus.SUCCEEDED, partial=False) as results:
        assert results.table().column("answer").to_pylist() == [f"P{n}" for n in range(300)]
    bench.server.asked.clear()
    assert run(bench, **changes) == 0
    assert not bench.server.asked
    told = json.loads((bench.folder / "job" / "result.json").read_text())
    assert told["output"] == changes["output"]


def test_shards_at_a_url_are_replaced_the_surplus_ones_too(
    bench: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domyn_swarm.batch.output.publish.SHARD_ROWS", 100)
    bench.write(250)
    changes = {"output": "memory://bucket/out", "shard_output": True}
    assert run(bench, **changes) == 0
    parts = [f"part-{at:05d}.parquet" for at in range(3)]
    assert names_at(store, "/bucket/out") == ["_manifest.json", *parts]
    assert findings(bench, **changes) == []
    assert run(bench, **changes, limit=120) == 0
    assert names_at(store, "/bucket/out") == ["_manifest.json", *parts[:2]]
    store.pipe("/bucket/out/part-00007.parquet", store.cat("/bucket/out/part-00000.parquet"))
    assert findings(bench, **changes, limit=120) == [
        "part-00007.parquet is not one of the output's files."
    ]
    assert run(bench, input="memory://bucket/out", output=str(bench.folder / "next.parquet"),
               output_columns=("again",), limit=5) == 0  # fmt: skip
    store.pipe("/bucket/out/thesis.txt", b"mine")
    with pytest.raises(OutputExists, match=r"thesis\.txt"):
        prepare(bench.spec(**changes))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("at", ["memory://bucket/", ""])
def test_outputs_of_one_stem_do_not_share_a_manifest(bench: Any, at: str) -> None:
    bench.write(5)
    at = at or f"{bench.folder}/"
    outputs: list[dict[str, Any]] = [{"output": f"{at}out.{kind}"} for kind in ("jsonl", "csv")]
    outputs += [{"output": f"{at}out.parquet"}, {"output": f"{at}out", "shard_output": True}]
    for changes in outputs * 2:
        assert run(bench, **changes) == 0
    for changes in outputs:
        assert findings(bench, **changes) == []


def test_nothing_foreign_at_a_url_is_replaced(bench: Any, store: Any) -> None:
    bench.write(5)
    for suffix in ("parquet", "jsonl"):
        store.pipe(f"/bucket/out.{suffix}", b"mine")
        with pytest.raises(OutputExists, match=f"memory://bucket/out.{suffix}"):
            prepare(bench.spec(output=f"memory://bucket/out.{suffix}"))
        store.rm(f"/bucket/out.{suffix}")
    store.pipe("/bucket/out.parquet.manifest.json", b"{}")
    with pytest.raises(OutputExists, match=r"out\.parquet\.manifest\.json"):
        prepare(bench.spec(output="memory://bucket/out.parquet"))


def test_a_run_that_died_while_it_sent_knows_its_file_again(bench: Any, store: Any) -> None:
    bench.write(20)
    changes = {"output": "memory://bucket/out.jsonl"}
    assert run(bench, **changes) == 0
    manifest = store.cat("/bucket/out.jsonl.manifest.json")
    identity = json.loads(manifest)["job"]["identity"]
    store.rm("/bucket/out.jsonl.manifest.json")  # as it is right before the last step
    with pytest.raises(OutputExists):
        prepare(bench.spec(**changes))
    store.pipe(f"/bucket/.out.jsonl.{identity}.manifest.json", manifest)
    assert run(bench, **changes) == 0
    assert names_at(store) == ["out.jsonl", "out.jsonl.manifest.json"]


@pytest.mark.parametrize(
    ("output", "why", "hint"),
    [
        ("s3://bucket/out.parquet", "s3fs", "pip install s3fs"),
        ("hf://datasets/me/it/out.parquet", "huggingface_hub", "pip install huggingface_hub"),
        ("nothere://x/out.parquet", "nothere", ""),
        ("https://example.com/out.parquet", "nothing can be written", "s3://"),
    ],
)
def test_a_url_that_cannot_be_written_is_refused_before_the_first_request(
    bench: Any, output: str, why: str, hint: str
) -> None:
    bench.write(5)
    with pytest.raises(InvalidInput, match=why) as raised:
        prepare(bench.spec(output=output))
    assert hint in (raised.value.hint or "")


def test_a_folder_that_cannot_be_is_refused_before_the_first_request(bench: Any) -> None:
    bench.write(5)
    (bench.folder / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        prepare(bench.spec(**to(bench, "file/deeper/out.parquet")))


def test_a_local_url_is_a_url_as_well(bench: Any) -> None:
    bench.write(5)
    assert run(bench, output=f"file://{bench.folder}/deep/out.parquet") == 0
    assert len(bench.output("deep/out.parquet")) == 5
    assert read_manifest(bench.folder / "deep" / "out.parquet.manifest.json") is not None
