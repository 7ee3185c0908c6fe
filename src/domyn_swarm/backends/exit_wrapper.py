"""Runs one program and records how it ended: the authoritative source of a job's status.

    python -m domyn_swarm.backends.exit_wrapper [--time-limit=S] EXIT_FILE CWD -- PROGRAM [ARG …]

SIGTERM and SIGINT are forwarded; when its time is up the program receives SIGTERM, and SIGKILL a
minute later. The record (`model.ExitRecord`) is written atomically; then the swarm's webhook, if it
has one, is notified, and the wrapper ends the same way as the program. Files of the wrapper are
private; the program gets the umask that the job was started with, so that its outputs are as
readable as its user's other files. Imports nothing heavy: it runs beside every job.
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
_OF_WARNING = 0.75  # of the time from the warning to the limit, for the program to end in
_LOOK_S = 0.2  # between checks for a signal to end
_TRIES, _REST_S = 10, 1.0  # for writing the record: a disk may be full for a moment


def main(arguments: Sequence[str], umask: int) -> int:
    """Run the program with that umask; return its exit code, or 128 + the number of a signal."""
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
    notify_job_end(paths)
    return code


class ProgramRun:
    """One run of a job's program, and the record of its end. Installs signal handlers in this
    process.
    """

    def __init__(self, paths: JobPaths, warned_s: float = 0.0) -> None:
        """`warned_s`: how long before the time limit the scheduler warns; the program must end
        within a part of that. 0: it may take all the time that is left.
        """
        self._began = datetime.now(UTC)
        self._told: list[int] = []  # all signals so far
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
        """Run the program to its end and record it; return its exit code, or 128 + the number of a
        signal. `limit_s` 0: no limit. `once_stopped` is called after this process received a signal
        to end, while the program may keep running for a while.
        """
        signal.setitimer(signal.ITIMER_REAL, limit_s, _AFTER_LIMIT_S)
        try:
            child = subprocess.Popen(program, cwd=folder, umask=umask, preexec_fn=_prepare)  # noqa: PLW1509 - no threads here
        except OSError as error:
            print(f"cannot start {program[0]}: {error}", file=sys.stderr)  # noqa: T201 - the job's log
            self.record(127)
            return 127
        self._child = child
        if self._told:  # before the program was started
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
        """Whether it was signalled to end: by a user, or by a scheduler that ends its job."""
        return signal.SIGTERM in self._told or signal.SIGINT in self._told

    @property
    def warned(self) -> bool:
        """Whether the scheduler has warned that the time limit is near."""
        return signal.SIGUSR1 in self._told

    @property
    def timed_out(self) -> bool:
        """Whether its time was up, or the scheduler had warned of that."""
        return self.warned or signal.SIGALRM in self._told

    def record(self, code: int, *, timed_out: bool | None = None) -> None:
        """Record how it ended: as in `subprocess`, a signal is negative."""
        timed_out = self.timed_out if timed_out is None else timed_out
        _record(self._exit_path, code, self._began, timed_out=timed_out, stopped=self.stopped)


def _meaning(signals: Sequence[int]) -> int:
    """The signal that the program receives: SIGTERM for SIGUSR1, the scheduler's warning, and for
    SIGALRM, the end of its time; SIGKILL at the second request to end.
    """
    warned = signal.SIGUSR1 in signals
    if max(signals.count(signal.SIGTERM), signals.count(signal.SIGALRM) + warned) > 1:
        return signal.SIGKILL
    return signal.SIGINT if signals[-1] == signal.SIGINT else signal.SIGTERM


def _prepare() -> None:
    """If the wrapper is killed, the program receives SIGTERM: nothing runs without a record of its
    end. The warning, which Slurm sends to every process of a step, is handled by the wrapper.
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
    with contextlib.suppress(OSError):  # only the exit code can report it
        print(f"cannot write {path}: {problem}", file=sys.stderr)  # noqa: T201 - the job's log


def notify_job_end(paths: JobPaths) -> None:
    """Notify the swarm's webhook, if it has one. The job has ended: from now on signals end this
    process.
    """
    try:
        notification = json.loads(paths.notify.read_text("utf-8"))
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
    if notification.get("platform") == "slurm" and not ended.conclusive:
        from domyn_swarm.backends.slurm.slurm_compute import cause_so_far

        status = cause_so_far(paths, os.environ.get("SLURM_JOB_ID", "")) or status
    counts = ("rows_total", "rows_done", "rows_failed", "verdicts")
    result = _result(paths)
    notify(
        Path(notification["url_file"]),
        "job_ended",
        **notification["facts"],
        status=status.value,
        exit_code=ended.code,
        **{name: result.get(name) for name in counts},
        message=result.get("error"),
    )


def _result(paths: JobPaths) -> dict[str, Any]:
    """The worker's result; nothing if it was killed, or is a user's own program."""
    try:
        found: dict[str, Any] = json.loads(paths.result.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.umask(0o077)))
