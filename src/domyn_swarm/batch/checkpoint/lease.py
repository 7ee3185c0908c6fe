"""One driver per checkpoint, safe on network file systems.

Each holder owns one generation, claimed by linking `lease-<generation>.json` into place (atomic on
NFS, and it fails if the file exists); the highest generation is the holder. While it lives it
increments a counter in that file. A process that wants the checkpoint watches the counter by its
own monotonic clock: no clock is compared with another machine's, no modification time is read, no
lock is requested from the server. A holder on the same machine (in this boot and this PID
namespace) whose process has ended is succeeded at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from domyn_swarm.errors import CheckpointBusy, JobError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Location, ProcessId, Reach
from domyn_swarm.paths import write_private
from domyn_swarm.probing import Clock, comes_true
from domyn_swarm.process_identity import host_reach, still_there, this_host, this_process
from domyn_swarm.replaced_files import read_replaced

_NAME = re.compile(r"^lease-(\d{6})\.json$")
BEAT_S = 2.0
SILENT_S = 15.0  # seconds of an unchanged counter after which the holder has ended
_UNRENEWED_S = SILENT_S / 2  # after this time without a renewal a holder must not write any more
_LOOKS = 3  # repeated listings of a folder, whose first listing may be out of date

_log = get_logger(__name__)


@dataclass(frozen=True)
class Holder:
    """The holder of a lease, as recorded in its file."""

    host: str
    pid: int
    started_at: float
    counter: int
    released: bool
    boot_id: str | None = None
    pid_namespace: int | None = None
    machine_id: str | None = None

    @property
    def surely_alive(self) -> bool:
        """Whether its process is visible here, and runs."""
        return self._reach is Reach.HERE and self._runs

    @property
    def surely_gone(self) -> bool:
        """Whether its process would be visible here if it ran, or its host was restarted since."""
        reach = self._reach
        return reach is Reach.OVER or (reach is Reach.HERE and not self._runs)

    @property
    def _reach(self) -> Reach:
        return host_reach(
            Location(
                kind="host",
                name=self.host,
                boot_id=self.boot_id,
                pid_namespace=self.pid_namespace,
                machine_id=self.machine_id,
            )
        )

    @property
    def _runs(self) -> bool:
        return still_there(ProcessId(pid=self.pid, started_at=self.started_at))


class Lease:
    """A held lease.

    It is held if it was renewed within half the time after which others may claim it. A driver that
    is later than that (it was suspended, or its disk hung) claims it again, as others would: the
    process that links the next number first has it. `lost` is set if that failed: a later claim
    exists (`succeeded`), or the disk refuses ours.
    """

    def __init__(self, folder: Path, generation: int, clock: Clock = time) -> None:
        self.generation = generation
        self.lost = threading.Event()
        self.succeeded = False
        self._folder = folder
        self._number = generation  # of its file: a later number after it was claimed again
        self._counter = 0
        self._clock = clock
        self._renewed_at = clock.monotonic()
        self._ended = threading.Event()
        self._beating = threading.Lock()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)

    def start(self) -> Lease:
        """Start a thread that renews it every `BEAT_S` seconds."""
        self._thread.start()
        return self

    def _keep_beating(self) -> None:
        try:
            while not self.lost.is_set() and not self._ended.wait(BEAT_S):
                self.beat()
        finally:
            if not self._ended.is_set():  # the thread failed: the lease is no longer renewed
                self.lost.set()

    def is_held(self) -> bool:
        """Whether its holder may write now. Blocks while it has to be claimed again."""
        if not self.lost.is_set() and self._is_late:
            self.beat()
        return not self.lost.is_set()

    @property
    def _is_late(self) -> bool:
        """Whether the last renewal is too old to count."""
        return self._clock.monotonic() - self._renewed_at >= _UNRENEWED_S

    def beat(self) -> None:
        """Renew it, or detect that it is lost."""
        with self._beating:
            began = self._clock.monotonic()
            try:
                self._renew()
            except OSError as error:  # the journal reports a full disk
                _log.warning("cannot renew the lease in %s: %s", self._folder, error)
                if self._is_late:
                    self.lost.set()
                return
            if self.succeeded:
                self.lost.set()
                return
            self._renewed_at = began

    def _renew(self) -> None:
        if _highest(self._folder) > self._number:
            self.succeeded = True
        elif not self._is_late:
            _write(self._folder, self._number, self._counter + 1, released=False)
            self._counter += 1
        elif _link(self._folder, self._number + 1):
            self._number, self._counter = self._number + 1, 0
        else:
            self.succeeded = True

    def release(self) -> None:
        """Release it: the next driver need not wait. Idempotent."""
        if self._ended.is_set():
            return
        self._stop_beating()
        if not self.lost.is_set():
            try:
                _write(self._folder, self._number, self._counter, released=True)
            except OSError as error:
                _log.warning("cannot release the lease in %s: %s", self._folder, error)

    def abandon(self) -> None:
        """Stop renewing without releasing it: for a holder that removes the folder."""
        self._stop_beating()

    def _stop_beating(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()


def holder_of(folder: Path) -> Holder | None:
    """The holder of a checkpoint; None if none is evident at once.

    For a holder on another machine only time can tell (see `acquire`).

    Raises:
        OSError: that cannot be read.
    """
    generation = _highest(folder)
    found = _read(folder, generation) if generation else None
    return None if found is None or found.released or found.surely_gone else found


def acquire(folder: Path, *, silent_s: float = SILENT_S, clock: Clock = time) -> Lease:
    """Hold the checkpoint in `folder`; the lease is renewed until it is released or lost.

    Waits at most `silent_s` to find out whether a holder on another machine still lives.

    Raises:
        CheckpointBusy: another driver holds it; the message names it.
        JobError: the folder cannot be read or written.
    """
    try:
        for _ in range(_LOOKS):
            latest = _highest(folder)
            holder = _read(folder, latest) if latest else None
            if holder is not None and not holder.released and not holder.surely_gone:
                _watch(folder, latest, holder, silent_s, clock)
            if _link(folder, latest + 1):
                return Lease(folder, latest + 1, clock).start()
            if _highest(folder) == latest + 1:  # else the listing was out of date
                break
        raise _busy(folder, _read(folder, _highest(folder)))
    except OSError as error:
        raise JobError(
            f"Cannot use the checkpoint folder {folder}: {error.strerror or error}.",
            hint="Choose another place with --checkpoint-dir, or make room.",
        ) from error


def check_silent(folder: Path, *, silent_s: float = 2 * BEAT_S + 1, clock: Clock = time) -> None:
    """Return if no process holds the checkpoint in `folder`, after watching it for `silent_s`.

    Raises:
        CheckpointBusy: a driver holds it; the message names it.
        FileNotFoundError: there is no such folder.
        OSError: whether a driver holds it cannot be read.
    """
    generation = _highest(folder)
    holder = _read(folder, generation) if generation else None
    if holder is None or holder.released or holder.surely_gone:
        return
    if holder.surely_alive:
        raise _busy(folder, holder)
    _watch(folder, generation, holder, silent_s, clock)


def _watch(folder: Path, generation: int, holder: Holder, silent_s: float, clock: Clock) -> None:
    """Return when the holder's counter was unchanged for `silent_s`, or the lease was released."""

    def let_go() -> bool:
        now = _read(folder, generation)
        if now is None or now.released or now.surely_gone:
            return True
        if now.counter != holder.counter or _highest(folder) != generation:
            raise _busy(folder, holder)
        return False

    comes_true(let_go, within_s=silent_s, every_s=0.2, clock=clock)


def _link(folder: Path, number: int) -> bool:
    """Claim the lease under this number: its file appears with its content. False: another process
    has it.

    A listing of a network file system may be a minute old, but not after this process has changed
    the folder. A process whose claim turns out to be below another one withdraws it.
    """
    path = _path(folder, number)
    ours = folder / f".lease-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        write_private(ours, _document(0, released=False))
        if not _linked(ours, path):
            return False
    finally:
        with contextlib.suppress(OSError):
            ours.unlink()
    numbers = _numbers(folder)
    if max(numbers) > number:
        path.unlink()
        return False
    for earlier in numbers:
        if earlier < number:
            with contextlib.suppress(OSError):  # it no longer counts
                _path(folder, earlier).unlink()
    return True


def _linked(ours: Path, path: Path) -> bool:
    """Whether the file is ours now; a server that lost its reply reports a conflict to the owner
    itself.
    """
    try:
        os.link(ours, path)
    except OSError as error:
        if ours.stat().st_nlink == 2:
            return True
        if not isinstance(error, FileExistsError):
            raise
        return False
    return True


def _busy(folder: Path, holder: Holder | None) -> CheckpointBusy:
    who = f"process {holder.pid} on {holder.host}" if holder else "another driver"
    return CheckpointBusy(
        f"This job is being run by {who} (checkpoint {folder}).",
        hint="Wait for it or cancel it. Jobs with other inputs may run at the same time.",
    )


def _path(folder: Path, generation: int) -> Path:
    return folder / f"lease-{generation:06d}.json"


def _highest(folder: Path) -> int:
    return max(_numbers(folder), default=0)


def _numbers(folder: Path) -> list[int]:
    found = (_NAME.match(name) for name in os.listdir(folder))  # noqa: PTH208 - names only
    return [int(match[1]) for match in found if match]


def _write(folder: Path, generation: int, counter: int, *, released: bool) -> None:
    write_private(_path(folder, generation), _document(counter, released=released))


def _document(counter: int, *, released: bool) -> str:
    here = this_host()
    document = {
        "host": here.name,
        **here.model_dump(include={"boot_id", "pid_namespace", "machine_id"}),
        **this_process().model_dump(),
        "counter": counter,
        "released": released,
    }
    return json.dumps(document)


def _read(folder: Path, generation: int) -> Holder | None:
    """The holder; None if the file does not exist or is not a lease.

    Raises:
        OSError: it cannot be read, so that its holder may live.
    """
    try:
        text = read_replaced(_path(folder, generation))
        return None if text is None else Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None
