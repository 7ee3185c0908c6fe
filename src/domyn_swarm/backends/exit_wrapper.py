"""Runs one program and writes down how it ended: the first truth about a job.

    python -m domyn_swarm.backends.exit_wrapper [--time-limit=S] EXIT_FILE CWD -- PROGRAM [ARG …]

SIGTERM and SIGINT are handed on; when its time is up the program is told to end, and killed a
minute later. The record (`model.ExitRecord`) appears whole or not at all;
then a webhook is told where the swarm has one, and
the wrapper ends the same way as the program. What the wrapper writes is private; the program gets
the umask that the job was started with, so that its outputs are as readable as its user's files
are. Imports nothing heavy: it runs beside every job.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.temporary import settle_temporary_folder

_PR_SET_PDEATHSIG = 1
_LIMIT = "--time-limit="
_AFTER_LIMIT_S = 60.0
_OF_WARNING = 0.75  # of the time from the warning to the end, for the program to end in
_LOOK_S = 0.2  # whether it was told to end
_TRIES, _REST_S = 10, 1.0  # to write how it ended: a disk may be full for a moment


def main(arguments: Sequence[str], umask: int) -> int:
    """Run the program with that umask; return its exit code, 128 + the number for a signal."""
    limit_s = 0.0
    if arguments and arguments[0].startswith(_LIMIT):
        limit_s, arguments = float(arguments[0].removeprefix(_LIMIT)), arguments[1:]
    exit_path, folder, separator, *program = arguments
    if separator != "--" or not program:
        raise SystemExit(f"usage: exit_wrapper EXIT_FILE CWD -- PROGRAM …, not {arguments}")
    if said := settle_temporary_folder():
        print(said, file=sys.stderr)  # noqa: T201 - the job's log
    paths = JobPaths(Path(exit_path).parent)
    code = ProgramRun(paths).run(folder, program, umask, limit_s)
    tell_end(paths)
    return code


class ProgramRun:
    """One run of a job's program, and the record of its end. Takes the signals of this process."""

    def __init__(self, paths: JobPaths, warned_s: float = 0.0) -> None:
        """`warned_s`: how long before the end of its time the scheduler warns, within a part of
        which the program has to end; 0: it may take what is left.
        """
        self._began = datetime.now(UTC)
        self._told: list[int] = []  # every signal so far
        self._exit_path = paths.exit
        self._warned_s = warned_s
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        self._told.append(number)
        if number == signal.SIGUSR1 and self._warned_s:
            signal.setitimer(signal.ITIMER_REAL, _OF_WARNING * self._warned_s)
        if self._child is not None:
            self._child.send_signal(_meaning(self._told))

    def run(
        self,
        folder: str,
        program: Sequence[str],
        umask: int,
        limit_s: float,
        once_stopped: Callable[[], None] | None = None,
    ) -> int:
        """To the program's end, which is written down; its exit code, 128 + the number for a
        signal. `limit_s` 0: without a limit. `once_stopped` is called once this process was told
        to end, while the program may go on for a while.
        """
        signal.setitimer(signal.ITIMER_REAL, limit_s, _AFTER_LIMIT_S)
        try:
            child = subprocess.Popen(program, cwd=folder, umask=umask, preexec_fn=_prepare)  # noqa: PLW1509 - no threads here
        except OSError as error:
            print(f"cannot start {program[0]}: {error}", file=sys.stderr)  # noqa: T201 - the job's log
            self.record(127)
            return 127
        self._child = child
        if self._told:  # before there was a program to tell
            child.send_signal(_meaning(self._told))
        if once_stopped is not None:
            while child.poll() is None and not self.stopped:
                time.sleep(_LOOK_S)
            if self.stopped:
                once_stopped()
        code = child.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.record(code)
        return code if code >= 0 else 128 - code

    @property
    def stopped(self) -> bool:
        """Whether it was told to end: by somebody, or by a scheduler that ends its job."""
        return signal.SIGTERM in self._told or signal.SIGINT in self._told

    @property
    def warned(self) -> bool:
        """Whether the scheduler has warned that its time will be up."""
        return signal.SIGUSR1 in self._told

    @property
    def timed_out(self) -> bool:
        """Whether its time was up, or the scheduler had warned that it will be."""
        return self.warned or signal.SIGALRM in self._told

    def record(self, code: int, *, timed_out: bool | None = None) -> None:
        """Write down how it ended: as `subprocess` has it, a signal is negative."""
        timed_out = self.timed_out if timed_out is None else timed_out
        _record(self._exit_path, code, self._began, timed_out=timed_out, stopped=self.stopped)


def _meaning(told: Sequence[int]) -> int:
    """What the program is sent: SIGUSR1, the scheduler's warning, and SIGALRM, the end of its time,
    mean SIGTERM to it, and who is asked to end for the second time is killed.
    """
    warned = signal.SIGUSR1 in told
    if max(told.count(signal.SIGTERM), told.count(signal.SIGALRM) + warned) > 1:
        return signal.SIGKILL
    return signal.SIGINT if told[-1] == signal.SIGINT else signal.SIGTERM


def _prepare() -> None:
    """Should the wrapper be killed, the program is told to finish: nothing runs unwatched. The
    warning, which Slurm sends to every process of a step, is the wrapper's to understand.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # not Linux
        return


def _record(
    path: Path, code: int, began: datetime, *, timed_out: bool = False, stopped: bool = False
) -> None:
    document = {
        "schema_version": 1,
        "code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "time_limit": timed_out,
        "stopped": stopped,
        "started_at": began.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
    }
    problem: OSError | None = None
    for _ in range(_TRIES):
        try:
            write_private(path, json.dumps(document))
        except OSError as error:
            problem = error
            time.sleep(_REST_S)
        else:
            return
    with contextlib.suppress(OSError):  # the exit code is all that is left to say it
        print(f"cannot write {path}: {problem}", file=sys.stderr)  # noqa: T201 - the job's log


def tell_end(paths: JobPaths) -> None:
    """Tell the swarm's webhook, if it has one. The job has ended: who ends us now may."""
    try:
        told = json.loads(paths.notify.read_text("utf-8"))
        record = paths.exit.read_text("utf-8")
    except (OSError, ValueError):
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    from domyn_swarm.backends.notification import notify
    from domyn_swarm.logs import configure
    from domyn_swarm.model import ExitRecord

    configure("INFO")
    ended = ExitRecord.model_validate_json(record)
    status = ended.status
    if told.get("platform") == "slurm" and not ended.conclusive:
        from domyn_swarm.backends.slurm.compute import cause_so_far

        status = cause_so_far(paths, os.environ.get("SLURM_JOB_ID", "")) or status
    counts = ("rows_total", "rows_done", "rows_failed", "verdicts")
    result = _result(paths)
    notify(
        Path(told["url_file"]),
        "job_ended",
        **told["facts"],
        status=status.value,
        exit_code=ended.code,
        **{name: result.get(name) for name in counts},
        message=result.get("error"),
    )


def _result(paths: JobPaths) -> dict[str, Any]:
    """The worker's own account; nothing where it was killed, or is a program of the user's."""
    try:
        found: dict[str, Any] = json.loads(paths.result.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.umask(0o077)))
