"""Slurm's commands: run with a time limit, their refusals in our words."""

from __future__ import annotations

import getpass
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.backends.slurm.states import (
    ACCOUNT_FORMAT,
    QUEUE_FORMAT,
    SlurmJob,
    latest,
    parse_queue,
)
from domyn_swarm.errors import CommandMissing, PlatformUnavailable, SubmitRejected

_TIMEOUT_S = 60.0
_FRESH_S = 1.0
_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|socket timed out|connection refused|slurmctld.*not respond"
    r"|unable to establish a configuration source|transport endpoint is not connected",
    re.IGNORECASE,
)
TAG_PREFIX = "domyn-swarm"


def comment_of(tag: str, what: str) -> str:
    """What a job carries to be found by its swarm's tag: `endpoint`, `replica` or `job/ID`."""
    return f"{TAG_PREFIX}/{tag}/{what}"


class Slurm:
    """The scheduler as its commands show it. One look at the queue serves all who ask at once."""

    def __init__(self) -> None:
        self._queue: dict[str, SlurmJob] = {}
        self._looked_at = -_FRESH_S
        self._accounting = True

    def submit(self, script: Path) -> str:
        """Submit a script; the new job's id.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
            SubmitRejected: it refused.
        """
        done = self._run(["sbatch", "--parsable", str(script)])
        if done.returncode != 0:
            raise SubmitRejected(
                f"Slurm refused {script.name}: {_last_line(done.stderr)}",
                hint=f"The script is {script}. Check partition, account, qos and limits.",
            )
        self._looked_at = -_FRESH_S
        return done.stdout.strip().split(";")[0]

    def jobs(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        """Those of these jobs and array tasks that Slurm knows of.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        queue = self.queue()
        found = {one: queue[one] for one in ids if one in queue}
        missing = [one for one in ids if one not in found]
        return {**found, **(self._accounted(missing) if missing else {})}

    def queue(self) -> dict[str, SlurmJob]:
        """Every job of this user that the controller still knows, ended ones included."""
        if time.monotonic() - self._looked_at >= _FRESH_S:
            command = ["squeue", "--noheader", "--array", "--states=all", "--user"]
            done = self._run([*command, getpass.getuser(), "--format", QUEUE_FORMAT])
            if done.returncode != 0:
                raise PlatformUnavailable(
                    f"squeue failed: {_last_line(done.stderr)}", hint="Ask again in a while."
                )
            self._queue = latest(parse_queue(done.stdout))
            self._looked_at = time.monotonic()
        return self._queue

    def _accounted(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        """What accounting remembers of jobs that the controller forgot; nothing without it."""
        if not self._accounting:
            return {}
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", ",".join(ids)]
        try:
            done = self._run([*command, "--format", ACCOUNT_FORMAT])
        except (CommandMissing, PlatformUnavailable):
            return {}
        self._accounting = done.returncode == 0
        found = latest(parse_queue(done.stdout)) if self._accounting else {}
        return {one: found[one] for one in ids if one in found}

    def cancel(self, ids: Sequence[str], *, signal: str | None = None) -> None:
        """End jobs and tasks, or send their batch scripts a signal. Unknown ones are no error.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        if not ids:
            return
        how = [] if signal is None else ["--batch", f"--signal={signal}"]
        self._run(["scancel", "--quiet", *how, *ids])
        self._looked_at = -_FRESH_S

    def requeue(self, job: str) -> bool:
        """Put a running job back into the queue; whether Slurm agreed."""
        return self._run(["scontrol", "requeue", job]).returncode == 0

    def node_address(self, node: str) -> str | None:
        """Where the scheduler itself reaches a node; None when it does not say."""
        done = self._run(["scontrol", "--oneliner", "show", "node", node])
        found = re.search(r"\bNodeAddr=(\S+)", done.stdout) if done.returncode == 0 else None
        return found[1] if found else None

    @staticmethod
    def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                command,
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
                f"{command[0]}: {_last_line(done.stderr)}",
                hint="The controller does not answer; what it runs goes on. Ask again in a while.",
            )
        return done


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
