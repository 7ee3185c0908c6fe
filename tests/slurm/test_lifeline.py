"""Programs of a task end with it, also where a setuid program stands between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from domyn_swarm.backends.slurm.containers import LIFELINE, loses_signals
from domyn_swarm.backends.slurm.task_plan import TaskPlan
from patience import limit_s, until

# A task that starts a program which starts another as a setuid runtime does
TASK = """
import sys, time
from domyn_swarm.backends.slurm.task import Child, _start_process
program = _start_process(Child(sys.argv[2:], {}, sys.stderr.buffer, lifeline=sys.argv[1] == "1"))
print(program.pid, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def setuid(tmp_path: Path) -> Path:
    if os.getuid() != 0:
        pytest.skip("only root can make a program of another user's")
    program = tmp_path / "runtime"
    shutil.copy(shutil.which("env") or "/usr/bin/env", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o6755)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    return program


def start(lifeline: bool, *command: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    argv = [sys.executable, "-c", TASK, str(int(lifeline)), *command]
    task = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert task.stdout is not None
    return task, psutil.Process(int(task.stdout.readline()))


def kill(task: subprocess.Popen[str]) -> None:
    task.kill()
    task.communicate(timeout=limit_s())


def ended(program: psutil.Process) -> bool:
    try:
        return program.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_kernel_tells_a_plain_program_and_forgets_a_setuid_one(setuid: Path) -> None:
    task, program = start(False, "/usr/bin/env", "sleep", "1000")
    kill(task)
    until(lambda: ended(program))
    task, program = start(False, str(setuid), "sleep", "1000")
    until(lambda: program.name() == "sleep")
    kill(task)
    second, other = start(False, "/usr/bin/env", "sleep", "1000")
    kill(second)
    until(lambda: ended(other))  # by then the first would have ended, too
    assert not ended(program)
    program.send_signal(signal.SIGKILL)


def test_a_program_that_reads_its_lifeline_ends_with_the_task(setuid: Path) -> None:
    task, program = start(True, str(setuid), "cat")
    until(lambda: program.name() == "cat")
    kill(task)
    until(lambda: ended(program))


@pytest.mark.parametrize(
    ("container", "loses"),
    [("none", False), ("apptainer", True), ("singularity", True), ("enroot", False)],
)
def test_where_a_lifeline_is_needed(container: str, loses: bool) -> None:
    plan = TaskPlan("m", None, 1, 1, 1, container, (), {}, True, False, 6379)
    assert loses_signals(plan) is loses
    assert LIFELINE == "lifeline"  # the word that watchdog and follower know
