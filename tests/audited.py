"""What a program opens and runs, as Python itself reports it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from patience import limit_s

_NOTING = """\
import atexit, json, os, sys
seen, process = {"open": [], "run": []}, os.getpid()
def note(event, args):
    if event == "open":
        seen["open"].append(str(args[0]))
    elif event == "subprocess.Popen":
        seen["run"].append([str(word) for word in args[1]])
def write(path=sys.argv.pop(1)):
    if os.getpid() == process:
        with open(path, "w") as file:
            json.dump(seen, file)
sys.addaudithook(note)
atexit.register(write)
"""
_COMMAND = """\
from domyn_swarm.cli.app import main
sys.argv[0] = "domyn-swarm"
main()
"""


@dataclass(frozen=True)
class Audit:
    """Of one program, from its start to its end, in order."""

    opened: Sequence[str]
    commands: Sequence[Sequence[str]]

    def times_opened(self, path: Path) -> int:
        return self.opened.count(str(path))


def audited_command(*args: object, folder: Path) -> Audit:
    """Of `domyn-swarm` with these arguments, which must end well."""
    return audited(_COMMAND, *args, folder=folder)


def audited(program: str, *args: object, folder: Path) -> Audit:
    """Of a program with these arguments, which must end well; its audit is kept in the folder."""
    report = folder / "audit.json"
    done = subprocess.run(
        [sys.executable, "-c", _NOTING + program, str(report), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=2 * limit_s(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(report.read_text("utf-8"))
    return Audit(seen["open"], seen["run"])
