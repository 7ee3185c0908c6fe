"""Slurm's commands as programs: with a time limit, and an environment that steers none of them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

from domyn_swarm.errors import CommandMissing, PlatformUnavailable

_TIMEOUT_S = 60.0
_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|socket timed out|connection refused|slurmctld.*not respond"
    r"|unable to establish a configuration source|transport endpoint is not connected"
    r"|unexpected message received",  # `scontrol requeue`: no message at all
    re.IGNORECASE,
)
_STEERS = re.compile(r"(?:SLURM|SBATCH|SRUN|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})


def submitting_environment() -> dict[str, str]:
    """Ours, without the variables that change what Slurm's commands do: those of the job that we
    may run in, and defaults of the user's that would overrule the configuration.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not _STEERS.match(name)
    }


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands to its end; its exit code is the caller's to judge.

    Raises:
        CommandMissing: it is not installed here.
        PlatformUnavailable: it does not end, or does not reach the controller.
    """
    try:
        done = subprocess.run(
            command,
            env=submitting_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandMissing(
            f"{command[0]} is not on PATH: this machine does not submit to Slurm.",
            hint="Run this on a login node, or load the module that brings Slurm's commands.",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PlatformUnavailable(
            f"{command[0]} did not answer within {_TIMEOUT_S:g} s.",
            hint="The controller may be busy; ask again in a while.",
        ) from error
    if done.returncode != 0 and _UNREACHABLE.search(done.stderr):
        raise PlatformUnavailable(
            f"{command[0]}: {last_line(done.stderr)}",
            hint="The controller does not answer; what it runs goes on. Ask again in a while.",
        )
    return done


def last_line(text: str) -> str:
    """The last line of what a command printed, for an error."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
