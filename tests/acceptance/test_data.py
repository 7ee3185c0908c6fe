"""Every library of frames and every kind of output over a swarm: the command, and `swarm.run`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import CommandLine
from domyn_swarm import DomynLLMSwarm
from domyn_swarm.data.data_backend import DataBackend
from domyn_swarm.data.pandas_backend import PandasBackend
from domyn_swarm.data.polars_backend import LazyPolarsBackend, PolarsBackend
from domyn_swarm.data.ray_backend import RayBackend
from domyn_swarm.jobs import ChatCompletionJob
from ray_fixtures import RayCluster

if TYPE_CHECKING:
    from acceptance.conftest import Standing

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, of its own settings
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROWS = 60
TABLE = pa.table({"id": list(range(ROWS)), "messages": [f"say {n}" for n in range(ROWS)]})


@dataclass(frozen=True)
class Served:
    """A swarm, and rows to ask it."""

    cli: CommandLine
    folder: Path

    def submit(self, output: str, *flags: object) -> str:
        """Submit over the rows, and have the output verified; the job's id."""
        output = output if "://" in output else str(self.folder / output)
        command: list[object] = ["job", "submit", "--name", "demo", "--no-progress", *flags]
        command += ["--input", self.folder / "in.parquet", "--output", output]
        job_id = str(json.loads(self.cli.ok(*command))["job_id"])
        self.cli.ok("job", "verify", job_id)
        return job_id


@pytest.fixture(scope="module")
def served(standing: Standing, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(TABLE, folder / "in.parquet")
    return Served(standing.cli, folder)


def test_outputs_of_every_kind_hold_the_same_rows(served: Served) -> None:
    served.submit("out.parquet", "--data-backend", "pandas", "--backend-write-kwargs",
                  '{"compression": "gzip"}')  # fmt: skip
    table = pq.read_table(served.folder / "out.parquet")
    assert table["id"].to_pylist() == list(range(ROWS))
    group = pq.read_metadata(served.folder / "out.parquet").row_group(0)
    assert group.column(0).compression == "GZIP"
    job_id = served.submit("out.jsonl", "--data-backend", "polars")  # no row is asked again
    lines = (served.folder / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    assert served.cli.json("job", "results", job_id)["rows"] == ROWS
    served.submit("out.csv", "--data-backend", "arrow")
    served.submit(f"file://{served.folder}/far/out.parquet")
    far = pq.read_table(served.folder / "far" / "out.parquet")
    assert far.to_pylist() == table.to_pylist()


def test_what_no_backend_takes_is_a_usage_error(served: Served) -> None:
    command = ["job", "submit", "--name", "demo", "--input", served.folder / "in.parquet"]
    for flags, said in (
        (["--output", "s3://bucket/out.parquet"], "pip install s3fs"),
        (["--output", "o.parquet", "--backend-write-kwargs", "{}x"], "not JSON"),
        (["--output", "o.parquet", "--backend-write-kwargs", '{"a": 1}'], "--data-backend"),
        (["--output", "o.txt"], ".parquet, .jsonl, .csv"),
    ):
        done = served.cli(*command, *flags)
        assert done.returncode == 2, done.stderr
        assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "backend", [PandasBackend(), PolarsBackend(), LazyPolarsBackend(), RayBackend()]
)
def test_frames_of_every_library_through_a_swarm(
    served: Served,
    backend: DataBackend[Any],
    ray_cluster: RayCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(served.cli.home))
    swarm = DomynLLMSwarm.attach("demo")
    frame = backend.build(TABLE.schema, TABLE.to_batches())
    found = swarm.run(ChatCompletionJob(), frame, progress=False)
    assert type(found) is type(frame)
    read = pa.Table.from_batches(backend.batches(found), backend.schema(found))
    assert read["id"].to_pylist() == list(range(ROWS))
    assert all(read["result"].to_pylist())
