"""Writes a watchdog's records of its replica's time: the part of the ledger for one replica.

Standard library only and Python 3.8 syntax: it is copied next to `watchdog.py`. The file is read by
`backends.ledger_files`: a line when the watchdog begins, one for each change and one a minute; its
modification time is the watchdog's last sign of life by its own clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import time
from typing import Any, Dict, Sequence

BEAT_LINE_S = 60.0  # longest interval between two lines
POWER_BEATS = 3  # power is read every so many beats
POWER_LIMIT_S = 30.0  # time-out of nvidia-smi
PHASE_BYTES = 1 << 20  # bytes of an engine's log that are read at a time; more is skipped
LAUNCH = "launch"
_QUERY = ("--query-gpu=power.draw", "--format=csv,noheader,nounits")

Line = Dict[str, Any]


class Ledger(threading.Thread):
    """Appends to one file; its thread gives signs of life. A failing disk does not prevent serving:
    what was to be written is written with the next line.
    """

    def __init__(self, path: str, gpus: int, beat_s: float, incarnation: str) -> None:
        super().__init__(daemon=True, name="ledger")
        self._path = path
        self._gpus = gpus
        self._beat_s = beat_s
        self._name = incarnation[:12]
        self._zero = time.time() - time.monotonic()  # a changed system clock has no effect
        self._began = self._now() - process_age_s()
        self._file: int | None = None
        self._torn = False
        self._lock = threading.Lock()
        self._known: Line = {"state": "starting", "phase": LAUNCH, "busy": None}
        self._written_at = float("-inf")
        self._energy: Line = {}

    def _now(self) -> float:
        return self._zero + time.monotonic()

    def note(self, **changes: Any) -> None:
        """Write the changes of `state`, `phase` and `busy`; nothing if nothing changed."""
        with self._lock:
            if any(self._known.get(name) != value for name, value in changes.items()):
                self._known.update(changes)
                self._write()

    def used(self, joules: float) -> None:
        """Add so much used energy (joules)."""
        with self._lock:
            used = self._energy.get("joules", 0.0) + joules
            self._energy = {"joules": round(used, 3), "joules_at": round(self._now(), 3)}

    def begin(self) -> None:
        """Write the first line, and start to give signs of life."""
        with self._lock:
            self._write()
        self.start()

    def run(self) -> None:
        """Give signs of life for ever; the thread ends with the process."""
        while True:
            time.sleep(self._beat_s)
            self.beat()

    def beat(self) -> None:
        """Give one sign of life, and write a line if the last one is old."""
        with self._lock:
            if self._now() - self._written_at >= BEAT_LINE_S:
                self._write()
            else:
                self._touch()

    def _touch(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.utime(self._file, (self._now(), self._now()))

    def _write(self) -> None:
        now = self._now()
        line = dict(self._known, inc=self._name, at=round(now, 3), **self._energy)
        try:
            self._open(now)
            self._append(line)
        except OSError:  # full, or not reachable: with the next line
            return
        self._written_at = now
        self._touch()

    def _open(self, now: float) -> None:
        if self._file is not None:
            return
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.open(self._path, flags, 0o600)
        seen = os.fstat(file)
        began = {"inc": self._name, "began": round(self._began, 3), "gpus": self._gpus}
        began["beat"] = self._beat_s
        if seen.st_size:  # the last sign of life of the watchdog before
            began["before"] = min(seen.st_mtime, now)
            self._torn = True
        self._file = file
        try:
            self._append(began)
        except OSError:
            os.close(file)
            self._file = None
            raise

    def _append(self, line: Line) -> None:
        text = (b"\n" if self._torn else b"") + json.dumps(line).encode() + b"\n"
        self._torn = True  # the next line stays separate from a truncated one
        if self._file is not None and os.write(self._file, text) == len(text):
            self._torn = False


class Phases:
    """The phase of an engine's start, from its log: the last line that matches one."""

    def __init__(self, known: Sequence[Line], log: str, size: int) -> None:
        """`known`: each has a `phase` and a `pattern`; `size`: that of the log when the engine
        began, in bytes.
        """
        self._known = [(one["phase"], re.compile(one["pattern"])) for one in known]
        self._log = log
        self._read_to = size
        self.phase = LAUNCH

    def look(self) -> str:
        """Read what was printed since the last call; return the phase now."""
        text = ""
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._read_to, size - PHASE_BYTES))
            text = file.read(PHASE_BYTES).decode("utf-8", "replace")
            self._read_to = size
        for line in text.splitlines():
            for phase, pattern in self._known:
                if pattern.search(line):
                    self.phase = phase
        return self.phase


def process_age_s() -> float:
    """For how many seconds this process has lived; 0 if the system does not report it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/uptime", "rb") as file:
            up_s = float(file.read().split()[0])
        return max(0.0, up_s - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0


def watts(gpus: int) -> float | None:
    """The power of this replica's GPUs in watts, from `nvidia-smi`. None: it is missing, fails, or
    shows another number of GPUs, some of which are others'.
    """
    asked = ["nvidia-smi", *_QUERY]
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    if own:
        asked.append("--id=" + own)
    try:
        said = subprocess.check_output(
            asked, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=POWER_LIMIT_S
        )
        drawn = [float(line) for line in said.split(b"\n") if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return sum(drawn) if gpus and len(drawn) == gpus else None


def keep_counting(ledger: Ledger, gpus: int, beat_s: float) -> None:
    """Read power repeatedly, for ever, and add what was used between two readings; time between a
    reading and a failure is not counted. Ends at once if nothing can be read.
    """
    drawn, at = watts(gpus), time.monotonic()
    if drawn is None:
        return
    ledger.used(0.0)
    while True:
        time.sleep(POWER_BEATS * beat_s)
        before, since = drawn, at
        drawn, at = watts(gpus), time.monotonic()
        if before is not None and drawn is not None:
            ledger.used((before + drawn) / 2 * (at - since))
