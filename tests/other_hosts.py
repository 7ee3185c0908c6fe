"""Commands as another host runs them that shares this one's home: Linux' namespaces, for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from patience import limit_s

# Several commands in one visit: our modules are imported once, and forked for each command.
_VISIT = """
import importlib, json, os, sys
from domyn_swarm.cli.app import main
for name in ("status", "swarm_commands", "job_commands", "database_commands", "views"):
    importlib.import_module(f"domyn_swarm.cli.{name}")
done = []
for words in json.load(sys.stdin):
    files = [os.memfd_create("out"), os.memfd_create("err")]
    if (pid := os.fork()) == 0:
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        sys.argv = ["domyn-swarm", *words]
        main()
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    done.append([code, *(os.pread(file, 1 << 24, 0).decode() for file in files)])
print(json.dumps(done))
"""
_ENTER = """
set -e
hostname "$1"
test -z "$2" || mount --bind "$2" /proc/sys/kernel/random/boot_id
shift 2
exec "$@"
"""


def _fails(*command: str) -> bool:
    return subprocess.run(command, check=False).returncode != 0


def need_namespaces() -> None:
    """Skip where this user may not make namespaces."""
    flags = ["--mount", "--uts", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or _fails("unshare", *flags, "true"):
        pytest.skip("making namespaces needs root, and `unshare`")


@dataclass(frozen=True)
class OtherHost:
    """A host of that name, or this one in another boot: then with the processes of now."""

    home: Path
    name: str
    boot_id: Path | None = None  # a file with it
    same_processes: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, *words: str) -> list[str]:
        """The command that runs these words there."""
        pids = [] if self.same_processes else ["--pid", "--fork", "--mount-proc"]
        boot_id = "" if self.boot_id is None else str(self.boot_id)
        return [
            *("unshare", "--mount", "--uts", *pids, "sh", "-c", _ENTER, "sh"),
            *(self.name, boot_id, *words),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are given."""
        return {**os.environ, **self.env, "DOMYN_SWARM_HOME": str(self.home)}

    def visit(self, *commands: Sequence[object]) -> list[subprocess.CompletedProcess[str]]:
        """Run `domyn-swarm` there with each of these arguments, one after the other."""
        asked = [[str(word) for word in words] for words in commands]
        done = subprocess.run(
            self.command(sys.executable, "-c", _VISIT),
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=limit_s(),
            check=False,
            env=self.environment,
        )
        assert done.returncode == 0, done.stderr
        return [
            subprocess.CompletedProcess(words, *printed)
            for words, printed in zip(asked, json.loads(done.stdout), strict=True)
        ]
