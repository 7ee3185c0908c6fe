"""Programs whose log, or whose last word, a full disk does not take."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from domyn_swarm.backends import exit_wrapper
from domyn_swarm.backends.watchdog_spec import copy_follower
from domyn_swarm.jobs.progress_display import Progress, progress_display
from patience import limit_s, until

FULL = Path("/dev/full")  # each write to it fails


def test_a_follower_keeps_its_program_running(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    spec = tmp_path / "spec.json"
    program_file = tmp_path / "follower.py"
    copy_follower(program_file)
    argv = ["/bin/sh", "-c", f"echo >> {starts}"]
    spec.write_text(json.dumps({"argv": argv, "env": {}}))
    with FULL.open("ab") as log:
        command = [sys.executable, "-I", str(program_file), str(spec), "head", "1", "1"]
        program = subprocess.Popen(command, stdout=log, stderr=log)
    until(lambda: starts.exists() and len(starts.read_text()) > 1)
    program.terminate()
    assert program.wait(limit_s()) == 0


def test_progress_that_nobody_takes_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = FULL.open("w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stderr)
    display = progress_display(shown=True)
    display.notice("something")
    display.end(Progress("job", 3, 3, failed=1))
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        stderr.close()


def test_how_a_job_ended_is_written_as_soon_as_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "exit.json"
    path.mkdir()  # a file cannot take the place of a folder
    rests: list[float] = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 2:
            path.rmdir()

    monkeypatch.setattr(exit_wrapper.time, "sleep", rest)
    exit_wrapper._record(path, 7, exit_wrapper.datetime.now(exit_wrapper.UTC))
    assert json.loads(path.read_text())["code"] == 7


def test_a_disk_that_never_takes_it_changes_nothing_for_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "exit.json"
    path.mkdir()
    monkeypatch.setattr(exit_wrapper.time, "sleep", lambda _seconds: None)
    exit_wrapper._record(path, 7, exit_wrapper.datetime.now(exit_wrapper.UTC))
    assert f"cannot write {path}" in capsys.readouterr().err
