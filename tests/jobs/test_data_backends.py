"""Submitted jobs whose input another library reads: `--data-backend`."""

from __future__ import annotations

import json
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.data.polars_backend import LazyPolarsBackend, PolarsBackend
from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main
from model_server import Answer, Bench, ModelServer
from ray_fixtures import RayCluster

BACKENDS = ["arrow", "pandas", "polars"]


def worked(bench: Bench, **changes: Any) -> int:
    return main([str(bench.job_folder(bench.spec(**changes)))])


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_reads_the_same_rows_and_resumes_the_same_checkpoint(
    bench: Bench, server: ModelServer, backend: str
) -> None:
    bench.write(3000)
    assert worked(bench, limit=100) == 0
    assert worked(bench, data_backend=backend) == 0
    rows = [{"n": n, "prompt": f"p{n}", "answer": f"P{n}"} for n in range(3000)]
    assert bench.output() == rows
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_takes_the_readers_own_options(bench: Bench, backend: str) -> None:
    bench.write(10)
    options = {
        "arrow": {"partitioning": None},
        "pandas": {"columns": ["prompt"]},
        "polars": {"n_rows": 7},
    }[backend]
    assert worked(bench, data_backend=backend, backend_read_kwargs=options) == 0
    rows = bench.output()
    assert len(rows) == (7 if backend == "polars" else 10)
    assert ("n" in rows[0]) == (backend != "pandas")


@pytest.mark.parametrize("backend", BACKENDS)
def test_cells_are_their_text_whoever_reads_them(bench: Bench, backend: str) -> None:
    rows = [("00123", "p0"), ("n/a", "p1"), ("TRUE", "p2"), ("", "p3"), ("1e5", "p4")]
    text = "".join(f'"{code}",{prompt}\n' for code, prompt in rows)
    (bench.folder / "in.csv").write_text("code,prompt\n" + text)
    source = str(bench.folder / "in.csv")
    assert worked(bench, input=source, data_backend=backend) == 0
    assert [(row["code"], row["prompt"]) for row in bench.output()] == rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_and_dates_are_those_of_the_file_whoever_reads_them(
    bench: Bench, backend: str
) -> None:
    rows = [{"prompt": f"p{n}", "third": n / 3, "date": f"2026-01-0{n}"} for n in range(1, 9)]
    (bench.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, target = str(bench.folder / "in.jsonl"), str(bench.folder / "out.jsonl")
    assert worked(bench, input=source, output=target, data_backend=backend) == 0
    written = [json.loads(one) for one in (bench.folder / "out.jsonl").read_text().splitlines()]
    dates = [str(row["date"]).partition("T")[0] for row in written]
    assert dates == [row["date"] for row in rows]
    assert [row["third"] for row in written] == [row["third"] for row in rows]


def test_text_and_workers(bench: Bench, server: ModelServer) -> None:
    lines = [json.dumps({"n": n, "prompt": f"p{n}"}) for n in range(500)]
    (bench.folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    source = str(bench.folder / "in.jsonl")
    assert worked(bench, input=source, data_backend="polars", workers=2) == 0
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(500)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"backend_read_kwargs": {"columns": ["n"]}}, "--data-backend"),
        ({"ray_address": "auto"}, "--data-backend ray"),
        ({"data_backend": "ray", "ray_address": "ray://head:10001"}, "Ray's client"),
        ({"data_backend": "pandas", "backend_read_kwargs": {"colums": []}}, "colums"),
        ({"data_backend": "polars", "backend_read_kwargs": {"colums": []}}, "colums"),
        ({"data_backend": "arrow", "backend_read_kwargs": {"colums": []}}, "colums"),
        ({"data_backend": "pandas", "backend_read_kwargs": {"columns": ["n"]}}, "'prompt'"),
        ({"data_backend": "pandas", "encoding": "cp1252"}, "--encoding, --delimiter and --types"),
    ],
)
def test_what_cannot_be_is_refused_before_the_job_is_recorded(
    bench: Bench, changes: dict[str, Any], why: str
) -> None:
    bench.write(5)
    with pytest.raises((ConfigError, InvalidInput), match=why):
        prepare(bench.spec(**changes))


def test_compressed_text_needs_no_library(bench: Bench) -> None:
    (bench.folder / "in.tsv").write_text("prompt\nx\n")
    with pytest.raises(InvalidInput, match="Leave --data-backend out"):
        prepare(bench.spec(input=str(bench.folder / "in.tsv"), data_backend="pandas"))


@pytest.mark.parametrize("backend", ["arrow", "pandas"])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_fsspec_urls(bench: Bench, backend: str, kind: str) -> None:
    """polars and Ray have file systems of their own."""
    memory = fsspec.filesystem("memory")
    content = {"parquet": bench.write(20).read_bytes(), "csv": b"n,prompt\n0,p0\n"}[kind]
    memory.pipe(f"/backends/in.{kind}", content)
    try:
        assert worked(bench, input=f"memory://backends/*.{kind}", data_backend=backend) == 0
        number = "0" if kind == "csv" else 0
        assert bench.output()[0] == {"n": number, "prompt": "p0", "answer": "P0"}
        with pytest.raises(InvalidInput, match="polars cannot read memory://backends"):
            prepare(bench.spec(input=f"memory://backends/in.{kind}", data_backend="polars"))
    finally:
        memory.rm("/backends", recursive=True)


@pytest.fixture
def ray_bench(bench: Bench, ray_cluster: RayCluster) -> Bench:
    return bench


RAY = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@RAY
def test_ray_works_on_a_submitted_job(ray_bench: Bench, server: ModelServer) -> None:
    for part in range(3):
        ray_bench.write(200, f"part-{part}.parquet", start=200 * part)
    source = str(ray_bench.folder / "part-{0..2}.parquet")
    assert worked(ray_bench, input=source, limit=50) == 0
    server.behave = lambda prompt, _: Answer(status=400 if prompt == "p7" else 200)
    code = worked(ray_bench, input=source, data_backend="ray", max_concurrency=16)
    table = pq.read_table(ray_bench.folder / "out.parquet")
    assert table["answer"].to_pylist() == [f"P{n}" for n in range(600)]
    assert code == 0
    assert set(server.asked.values()) == {1}


@RAY
def test_ray_forgets_the_columns_of_a_file_without_rows(ray_bench: Bench) -> None:
    (ray_bench.folder / "in.csv").write_text("n,prompt\n")
    source = str(ray_bench.folder / "in.csv")
    assert worked(ray_bench, input=source, data_backend="ray") == 0
    table = pq.read_table(ray_bench.folder / "out.parquet")
    assert (table.num_rows, table.schema.names) == (0, ["n", "prompt", "answer"])


@RAY
def test_ray_may_not_read_other_rows(ray_bench: Bench, server: ModelServer) -> None:
    ray_bench.write(20)
    table = pa.table({"prompt": ["a"]})
    pq.write_table(table, ray_bench.folder / "other.parquet")
    options = {"columns": ["n"]}
    assert worked(ray_bench, data_backend="ray", backend_read_kwargs=options) == 2
    assert not server.asked
    told = json.loads((ray_bench.folder / "job" / "result.json").read_text())
    assert "--backend-read-kwargs" in told["error"]


@RAY
@pytest.mark.parametrize(
    "case",
    [
        ("10.0.0.1:6379", ConnectionError("nobody there")),
        ("local", Exception("The current node timed out")),  # so Ray says that a machine is busy
        ("local", Exception()),
    ],
)
def test_no_cluster_is_a_clear_error(
    bench: Bench, server: ModelServer, monkeypatch: pytest.MonkeyPatch, case: tuple[str, Exception]
) -> None:
    import ray

    address, raised = case

    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", refuse)
    bench.write(5)
    assert worked(bench, data_backend="ray", ray_address=address) == 4
    told = json.loads((bench.folder / "job" / "result.json").read_text())
    where = "on this machine" if address == "local" else f"no Ray cluster at {address}"
    assert where in told["error"]
    assert (str(raised) or "Exception") in told["error"]
    assert not server.asked


def test_a_type_of_polars_without_an_arrow_type_is_refused_by_name() -> None:
    frame = pl.DataFrame({"p": ["a"], "large": pl.Series([2**70], dtype=pl.Int128)})
    with pytest.raises(InvalidInput, match="The column 'large' is Int128"):
        PolarsBackend().schema(frame)
    with pytest.raises(InvalidInput, match="The column 'large' is Int128"):
        LazyPolarsBackend().schema(frame.lazy())
