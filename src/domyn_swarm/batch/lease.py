"""One driver per checkpoint, safe on network file systems.

Each holder owns one generation, claimed by linking `lease-<generation>.json` into place (atomic on
NFS, and it fails when there is one); the highest generation is the holder. While it lives it counts
up in that file. Whoever wants the checkpoint watches the counter by their own monotonic clock: no
clock is compared with another machine's, no modification time is read, no lock is asked of the
server. A holder on this very machine (in this boot and this PID namespace) whose process is
gone is succeeded at once.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from domyn_swarm.errors import CheckpointBusy, JobError
from domyn_swarm.identity import host_reach, still_there, this_host, this_process
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Location, ProcessId, Reach
from domyn_swarm.paths import write_private
from domyn_swarm.probing import Clock

_NAME = re.compile(r"^lease-(\d{6})\.json$")
BEAT_S = 2.0
SILENT_S = 15.0  # a counter that stands still for so long has no living holder
_UNRENEWED_S = SILENT_S - 2 * BEAT_S  # a holder stops before anybody may take it for dead

_log = get_logger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as they wrote it."""

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
            Location.model_construct(
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
    """A held lease. `lost` is set when the holder must stop writing: a later generation exists
    (`succeeded`), or the lease could not be renewed for so long that one may.
    """

    def __init__(self, folder: Path, generation: int, clock: Clock = time) -> None:
        self.generation = generation
        self.lost = threading.Event()
        self.succeeded = False
        self._folder = folder
        self._counter = 0
        self._clock = clock
        self._renewed_at = clock.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)

    def start(self) -> Lease:
        """Renew it every `BEAT_S` seconds from now on, in a thread of its own."""
        self._thread.start()
        return self

    def _keep_beating(self) -> None:
        try:
            while not self.lost.is_set() and not self._ended.wait(BEAT_S):
                self.beat()
        finally:
            if not self._ended.is_set():  # whatever ended it, nobody renews the lease now
                self.lost.set()

    def beat(self) -> None:
        """Renew it, or find out that it is lost."""
        try:
            self.succeeded = _highest(self._folder) > self.generation
            if not self.succeeded:
                _write(self._folder, self.generation, self._counter + 1, released=False)
        except OSError as error:  # a full disk is the journal's to report
            _log.warning("cannot renew the lease in %s: %s", self._folder, error)
            if self._clock.monotonic() - self._renewed_at >= _UNRENEWED_S:
                self.lost.set()
            return
        if self.succeeded:
            self.lost.set()
            return
        self._counter += 1
        self._renewed_at = self._clock.monotonic()

    def release(self) -> None:
        """Let the next driver in without waiting. Idempotent."""
        if self._ended.is_set():
            return
        self._stop_beating()
        if not self.lost.is_set():
            try:
                _write(self._folder, self.generation, self._counter, released=True)
            except OSError as error:
                _log.warning("cannot release the lease in %s: %s", self._folder, error)

    def abandon(self) -> None:
        """Stop counting without letting anybody in: for a holder that removes the folder."""
        self._stop_beating()

    def _stop_beating(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()


def holder_of(folder: Path) -> Holder | None:
    """Who holds a checkpoint; None when nobody does, as far as can be seen at once.

    Of a holder on another machine only time would tell (see `acquire`).
    """
    generation = _highest(folder)
    found = _read(folder, generation) if generation else None
    return None if found is None or found.released or found.surely_gone else found


def acquire(folder: Path, *, silent_s: float = SILENT_S, clock: Clock = time) -> Lease:
    """Hold the checkpoint in `folder`; the lease is renewed until it is released or lost.

    Waits at most `silent_s` to find out whether a holder on another machine still lives.

    Raises:
        CheckpointBusy: another driver holds it; the message says who.
        JobError: the folder cannot be written.
    """
    generation = _highest(folder)
    holder = _read(folder, generation) if generation else None
    if holder is not None and not holder.released and not holder.surely_gone:
        _watch(folder, generation, holder, silent_s, clock)
    return _claim(folder, generation + 1, clock).start()


def _watch(folder: Path, generation: int, holder: Holder, silent_s: float, clock: Clock) -> None:
    """Return when the holder's counter has stood still for `silent_s`, or it has let go."""
    began = clock.monotonic()
    while clock.monotonic() - began < silent_s:
        now = _read(folder, generation)
        if now is None or now.released or now.surely_gone:
            return
        if now.counter != holder.counter or _highest(folder) != generation:
            raise _busy(folder, holder)
        clock.sleep(0.2)


def _claim(folder: Path, generation: int, clock: Clock) -> Lease:
    """Become the holder: the file appears with its content, and only if there is none yet."""
    path = _path(folder, generation)
    mine = folder / f".lease-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        write_private(mine, _document(0, released=False))
        try:
            os.link(mine, path)
        finally:
            mine.unlink()
    except FileExistsError:
        raise _busy(folder, _read(folder, generation)) from None
    except OSError as error:
        raise JobError(
            f"Cannot write the checkpoint folder {folder}: {error.strerror}.",
            hint="Choose another place with --checkpoint-dir, or make room.",
        ) from error
    for stale in range(1, generation):
        _path(folder, stale).unlink(missing_ok=True)
    return Lease(folder, generation, clock)


def _busy(folder: Path, holder: Holder | None) -> CheckpointBusy:
    who = f"process {holder.pid} on {holder.host}" if holder else "another driver"
    return CheckpointBusy(
        f"This job is being run by {who} (checkpoint {folder}).",
        hint="Wait for it or cancel it. A different input for the same job can run beside it "
        "with --checkpoint-tag.",
    )


def _path(folder: Path, generation: int) -> Path:
    return folder / f"lease-{generation:06d}.json"


def _highest(folder: Path) -> int:
    found = (_NAME.match(name) for name in os.listdir(folder))  # noqa: PTH208 - names only
    return max((int(match[1]) for match in found if match), default=0)


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
    """The holder, or None when the file is gone or is not one."""
    try:
        return Holder(**json.loads(_path(folder, generation).read_text()))
    except (OSError, ValueError, TypeError):
        return None
