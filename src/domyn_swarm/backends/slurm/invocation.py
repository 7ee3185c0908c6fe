"""Slurm's commands as programs: with a time limit, and in an environment that does not change their
behaviour.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Sequence

from domyn_swarm.errors import CommandMissing, PlatformUnavailable

_TIMEOUT_S = 60.0
_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|socket timed out|connection refused|slurmctld.*not respond"
    r"|unable to establish a configuration source|transport endpoint is not connected"
    r"|unexpected message received",  # `scontrol requeue`: no message at all
    re.IGNORECASE,
)
_REPEATS = "Job is in transitional state, retrying"  # of `scancel --verbose`, in all versions
_STEERS = re.compile(r"(?:SLURM|SBATCH|SRUN|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})


def submitting_environment() -> dict[str, str]:
    """Our environment without the variables that change what Slurm's commands do: those of the job
    that this process may run in, and the user's defaults that would overrule the configuration.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not _STEERS.match(name)
    }


def run(command: Sequence[str], timeout_s: float = _TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands to its end; the caller judges the exit code.

    Raises:
        CommandMissing: it is not installed here.
        PlatformUnavailable: it does not end in time, or does not reach the controller.
    """
    try:
        done = subprocess.run(
            command,
            env=submitting_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise _missing(command) from error
    except subprocess.TimeoutExpired as error:
        raise _silent(command, timeout_s) from error
    _check_reached(command, done.returncode, done.stderr)
    return done


def send_signals(signal: str, jobs: Sequence[str]) -> None:
    """Send a signal once to the batch scripts of jobs and tasks.

    For an array with waiting tasks, Slurm sends the signal but reports a failure, and scancel
    repeats both for a minute and a half; it is ended before the first repeat.

    Raises:
        CommandMissing, PlatformUnavailable: as `run`.
    """
    command = ["scancel", "--verbose", f"--signal={signal}", "--batch", *jobs]
    try:
        process = subprocess.Popen(
            command,
            env=submitting_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        raise _missing(command) from error
    limit = threading.Timer(_TIMEOUT_S, process.kill)
    limit.start()
    lines: list[str] = []
    with process:
        for line in process.stderr or ():
            lines.append(line)
            if sum(_REPEATS in one for one in lines) == len(jobs):  # each signal was sent
                process.terminate()
                break
    if not limit.is_alive():
        raise _silent(command, _TIMEOUT_S)
    limit.cancel()
    _check_reached(command, process.returncode, "".join(lines))


def last_line(text: str) -> str:
    """The last line of what a command printed, for an error."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _missing(command: Sequence[str]) -> CommandMissing:
    return CommandMissing(
        f"{command[0]} is not on PATH: this machine does not submit to Slurm.",
        hint="Run this on a login node, or load the module that brings Slurm's commands.",
    )


def _silent(command: Sequence[str], timeout_s: float) -> PlatformUnavailable:
    return PlatformUnavailable(
        f"{command[0]} did not answer within {timeout_s:g} s.",
        hint="The controller may be busy; ask again in a while.",
    )


def _check_reached(command: Sequence[str], code: int, errors: str) -> None:
    if code != 0 and _UNREACHABLE.search(errors):
        raise PlatformUnavailable(
            f"{command[0]}: {last_line(errors)}",
            hint="The controller does not answer; running jobs continue. Ask again in a while.",
        )
