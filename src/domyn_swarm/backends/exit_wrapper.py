"""Runs one program and writes down how it ended: the first truth about a job.

    python -m domyn_swarm.backends.exit_wrapper EXIT_FILE CWD -- PROGRAM [ARGUMENT …]

SIGTERM and SIGINT are handed on. The record (`model.ExitRecord`) appears whole or not at all;
then the wrapper ends the same way as the program. Imports nothing heavy: it runs beside every job.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from domyn_swarm.paths import write_private

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit code, 128 + the number for a signal."""
    exit_path, folder, separator, *program = arguments
    if separator != "--" or not program:
        raise SystemExit(f"usage: exit_wrapper EXIT_FILE CWD -- PROGRAM …, not {arguments}")
    began = datetime.now(UTC)
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # what came before there was a program to tell

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    try:
        child = subprocess.Popen(program, cwd=folder, preexec_fn=_end_with_parent)  # noqa: PLW1509 - no threads here
    except OSError as error:
        print(f"cannot start {program[0]}: {error}", file=sys.stderr)  # noqa: T201 - the job's log
        _record(Path(exit_path), 127, began)
        return 127
    for missed in early:
        child.send_signal(missed)
    code = child.wait()
    _record(Path(exit_path), code, began)
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """Should the wrapper be killed, the program is told to finish: nothing runs unwatched."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # not Linux
        return


def _record(path: Path, code: int, began: datetime) -> None:
    document = {
        "schema_version": 1,
        "code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "started_at": began.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
    }
    write_private(path, json.dumps(document))


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1:]))
