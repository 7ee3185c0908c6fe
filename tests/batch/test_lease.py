"""Who holds a checkpoint, in virtual time: holders on other machines are known by their counter."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domyn_swarm.batch.checkpoint import lease as leases
from domyn_swarm.batch.checkpoint.inventory import remove_job
from domyn_swarm.batch.checkpoint.job_store import check_free
from domyn_swarm.batch.checkpoint.lease import BEAT_S, SILENT_S, Lease, acquire, holder_of
from domyn_swarm.errors import CheckpointBusy, InvalidInput, JobError
from domyn_swarm.process_identity import INITIAL_PID_NAMESPACE, this_host, this_process
from other_hosts import OtherHost, need_namespaces
from patience import limit_s, until
from virtual_time import VirtualClock

_HERE = this_host().model_dump(include={"boot_id", "pid_namespace", "machine_id"})
THIS_HOST = {**_HERE, "host": this_host().name}


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


class Elsewhere:
    """A holder on another machine: its file, as it comes here."""

    def __init__(self, folder: Path, generation: int = 1) -> None:
        self.path = folder / f"lease-{generation:06d}.json"
        self.counter = 0
        self.write()

    def write(self, **changes: object) -> None:
        process = this_process().model_dump()
        document = {"host": "elsewhere", "counter": self.counter, "released": False, **process}
        self.path.write_text(json.dumps({**document, **changes}))

    def beat(self) -> None:
        self.counter += 1
        self.write()


@pytest.fixture
def held() -> Iterator[list[Lease]]:
    """Leases that end with the test."""
    made: list[Lease] = []
    yield made
    for lease in made:
        lease.release()


def test_a_holder_that_is_silent_for_fifteen_seconds_is_succeeded_and_not_before(
    tmp_path: Path, clock: VirtualClock, held: list[Lease]
) -> None:
    Elsewhere(tmp_path)
    began = clock.now
    held.append(acquire(tmp_path, clock=clock))
    assert SILENT_S <= clock.now - began <= SILENT_S + 1
    assert held[0].generation == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lease-000002.json"]


@pytest.mark.parametrize("every_s", [BEAT_S, 7.0, SILENT_S - 0.5])
def test_a_holder_that_beats_however_slowly_is_left_alone(
    tmp_path: Path, clock: VirtualClock, every_s: float
) -> None:
    holder = Elsewhere(tmp_path)
    clock.every(every_s, holder.beat)
    began = clock.now
    with pytest.raises(CheckpointBusy, match=f"process {os.getpid()} on elsewhere"):
        acquire(tmp_path, clock=clock)
    assert clock.now - began <= every_s + 1  # the first beat says it
    assert [path.name for path in tmp_path.iterdir()] == [holder.path.name]


@pytest.mark.parametrize("after_s", [0.0, 4.0, 14.0])
def test_a_holder_that_lets_go_is_succeeded_then(
    tmp_path: Path, clock: VirtualClock, held: list[Lease], after_s: float
) -> None:
    holder = Elsewhere(tmp_path)
    clock.after(after_s, lambda: holder.write(released=True))
    began = clock.now
    held.append(acquire(tmp_path, clock=clock))
    assert clock.now - began <= after_s + 1
    assert held[0].generation == 2


def test_a_holder_of_this_machine_is_succeeded_as_soon_as_its_process_is_gone(
    tmp_path: Path, clock: VirtualClock, held: list[Lease]
) -> None:
    holder = Elsewhere(tmp_path)
    holder.write(**THIS_HOST, started_at=1.0)  # another process had that number
    began = clock.now
    assert holder_of(tmp_path) is None
    held.append(acquire(tmp_path, clock=clock))
    assert clock.now == began


@pytest.mark.parametrize(
    "changed",
    [
        {"pid_namespace": 1},  # another container on this machine, under this one's name
        {"boot_id": "another", "machine_id": "another"},  # a machine that has this one's name
    ],
)
def test_a_holder_that_only_has_this_machines_name_is_left_alone(
    tmp_path: Path, clock: VirtualClock, changed: dict[str, object]
) -> None:
    holder = Elsewhere(tmp_path)
    there = {**THIS_HOST, **changed, "started_at": 1.0}  # no process here has that number
    holder.write(**there)
    clock.after(9.0, lambda: holder.write(**there, counter=1))
    found = holder_of(tmp_path)
    assert found is not None
    assert not found.surely_alive
    with pytest.raises(CheckpointBusy):
        acquire(tmp_path, clock=clock)


def test_a_holder_of_an_earlier_boot_is_succeeded_at_once(
    tmp_path: Path, clock: VirtualClock, held: list[Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = this_host().model_copy(
        update={"pid_namespace": INITIAL_PID_NAMESPACE, "machine_id": "installed-once"}
    )
    monkeypatch.setattr("domyn_swarm.process_identity.this_host", lambda: here)
    there = here.model_dump(exclude={"kind", "name"})
    holder = Elsewhere(tmp_path)
    holder.write(**there | {"host": here.name, "boot_id": "the last one"})
    began = clock.now
    held.append(acquire(tmp_path, clock=clock))
    assert clock.now == began


_HOLD = """
import sys
from pathlib import Path
from domyn_swarm.batch.checkpoint.lease import acquire
lease = acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
lease.release()
"""


def test_a_holder_in_another_pid_namespace_keeps_its_lease(tmp_path: Path) -> None:
    need_namespaces()
    container = OtherHost(tmp_path, this_host().name)
    command = container.command(sys.executable, "-c", _HOLD, str(tmp_path))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(CheckpointBusy):
                acquire(tmp_path)
        finally:
            holder.stdin.close()
    acquire(tmp_path).release()


def test_a_holder_on_another_machine_is_not_looked_for_among_the_processes_of_this_one(
    tmp_path: Path, clock: VirtualClock
) -> None:
    holder = Elsewhere(tmp_path)
    holder.write(started_at=1.0)  # no process here is the one with that number
    clock.after(9.0, lambda: holder.write(started_at=1.0, counter=1))
    assert holder_of(tmp_path) is not None
    with pytest.raises(CheckpointBusy, match="on elsewhere"):
        acquire(tmp_path, clock=clock)


def test_of_two_that_claim_the_lease_of_a_silent_holder_at_once_one_gets_it(
    tmp_path: Path, held: list[Lease]
) -> None:
    class Rival(VirtualClock):
        """Another one claims after this one has looked for the last time."""

        def monotonic(self) -> float:
            if self.now - began >= SILENT_S:
                Elsewhere(tmp_path, generation=2)
            return super().monotonic()

    Elsewhere(tmp_path)
    clock = Rival()
    began = clock.now
    with pytest.raises(CheckpointBusy, match="on elsewhere"):
        held.append(acquire(tmp_path, clock=clock))
    assert leases._read(tmp_path, 2).host == "elsewhere"


def test_of_two_that_wait_for_a_silent_holder_one_gets_it(
    tmp_path: Path, clock: VirtualClock, held: list[Lease]
) -> None:
    Elsewhere(tmp_path)
    clock.after(SILENT_S - 2, lambda: Elsewhere(tmp_path, generation=2))  # it began earlier
    with pytest.raises(CheckpointBusy):
        acquire(tmp_path, clock=clock)


def test_a_held_lease_is_renewed_and_told_apart_from_one_that_was_taken_over(
    tmp_path: Path, clock: VirtualClock
) -> None:
    lease = Lease(tmp_path, 1, clock)
    for beats in range(1, 4):
        lease.beat()
        assert leases._read(tmp_path, 1).counter == beats
    assert not lease.lost.is_set()
    Elsewhere(tmp_path, generation=2)
    lease.beat()
    assert lease.lost.is_set()
    assert lease.succeeded
    assert leases._read(tmp_path, 1).counter == 3
    lease.release()
    assert not leases._read(tmp_path, 1).released


@pytest.mark.parametrize(("fails_s", "lost"), [(2, False), (4, False), (8, True), (60, True)])
def test_a_lease_that_cannot_be_renewed_is_lost_before_another_may_take_it(
    tmp_path: Path, clock: VirtualClock, fails_s: float, lost: bool
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    lease = Lease(folder, 1, clock)
    lease.beat()
    away = folder.rename(tmp_path / "away")  # as a file system that went away
    began = clock.now
    while clock.now - began < fails_s and not lease.lost.is_set():
        clock.sleep(BEAT_S)
        lease.beat()
    assert lease.lost.is_set() is lost
    assert not lease.succeeded
    assert clock.now - began <= SILENT_S / 2 + BEAT_S
    away.rename(folder)
    if not lost:
        clock.sleep(BEAT_S)
        lease.beat()
        assert leases._read(folder, 1).counter == 2
        folder.rename(tmp_path / "away")
        clock.sleep(7)  # it counts from the last time that it was renewed
        lease.beat()
        assert not lease.lost.is_set()
        clock.sleep(BEAT_S)
        lease.beat()
        assert lease.lost.is_set()


def test_a_holder_that_was_suspended_claims_it_anew_unless_another_has(
    tmp_path: Path, clock: VirtualClock
) -> None:
    lease = Lease(tmp_path, 1, clock)
    lease.beat()
    clock.sleep(SILENT_S / 2 - 0.1)
    assert lease.is_held()
    assert numbers(tmp_path) == [1]  # nothing to claim: it is renewed in time
    clock.sleep(3600)
    assert lease.is_held()
    assert numbers(tmp_path) == [2]
    assert lease.generation == 1  # that of its files
    clock.sleep(3600)
    Elsewhere(tmp_path, generation=3)
    assert not lease.is_held()
    assert lease.succeeded
    lease.release()
    assert not leases._read(tmp_path, 3).released


def test_who_watches_a_holder_that_claims_anew_leaves_it_alone(
    tmp_path: Path, clock: VirtualClock
) -> None:
    """As it comes back in the last second of the time that others wait for it."""
    suspended = Lease(tmp_path, 1, clock)
    Elsewhere(tmp_path)  # what it wrote, as others see it
    clock.after(SILENT_S - 0.5, suspended.beat)
    with pytest.raises(CheckpointBusy):
        acquire(tmp_path, clock=clock)
    assert suspended.is_held()
    assert numbers(tmp_path) == [2]


@pytest.mark.parametrize("free", [False, True])
def test_who_comes_in_below_a_claim_leaves_it_alone(
    tmp_path: Path,
    clock: VirtualClock,
    held: list[Lease],
    monkeypatch: pytest.MonkeyPatch,
    free: bool,
) -> None:
    """The names that a network file system lists may be a minute old."""
    holder = Elsewhere(tmp_path, generation=3)
    clock.every(BEAT_S, lambda: holder.write(released=True) if free else holder.beat())
    listed = os.listdir
    looks = itertools.count()

    def old_names_first(folder: Path) -> list[str]:
        return [] if next(looks) == 0 else listed(folder)

    monkeypatch.setattr(os, "listdir", old_names_first)
    if free:
        held.append(acquire(tmp_path, clock=clock))
        assert held[0].generation == 4
    else:
        with pytest.raises(CheckpointBusy, match="on elsewhere"):
            acquire(tmp_path, clock=clock)
    assert numbers(tmp_path) == [3 + free]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_claim_whose_answer_was_lost_is_ours(
    tmp_path: Path, held: list[Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(*paths: Path) -> None:
        link(*paths)
        link(*paths)  # as a client of NFS that repeats a request

    monkeypatch.setattr(os, "link", twice)
    held.append(acquire(tmp_path))
    assert held[0].generation == 1


def test_a_folder_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"Cannot use the checkpoint folder .*away: No such file"):
        acquire(tmp_path / "away")


@pytest.mark.parametrize("after_s", [0.0, 5.0])
def test_a_holder_whose_file_cannot_be_read_is_unknown_and_not_gone(
    tmp_path: Path, clock: VirtualClock, after_s: float
) -> None:
    """A folder in the place of its file cannot be read either, and everybody may make one."""
    folder = tmp_path / "job"
    folder.mkdir()
    holder = Elsewhere(folder)

    def unreadable() -> None:
        holder.path.unlink()
        holder.path.mkdir()

    if after_s:
        clock.after(after_s, unreadable)
    else:
        unreadable()
    with pytest.raises(JobError, match=r"Cannot use the checkpoint folder .*Is a directory"):
        acquire(folder, clock=clock)
    assert numbers(folder) == [1]
    with pytest.raises(IsADirectoryError):
        holder_of(folder)
    with pytest.raises(InvalidInput, match="cannot be read") as refused:
        check_free(folder)
    assert "not known" in refused.value.hint
    (folder / "000001-000-00000000.segment").write_bytes(b"paid")
    with pytest.raises(JobError, match="Is a directory"):
        remove_job(folder)
    assert (folder / "000001-000-00000000.segment").exists()


def test_a_holder_whose_file_was_replaced_as_it_was_read_keeps_its_lease(
    tmp_path: Path, held: list[Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    held.append(acquire(tmp_path))
    read_text = Path.read_text
    reads = itertools.count()

    def stale_every_other_time(path: Path, encoding: str) -> str:
        if path.name.startswith("lease-") and next(reads) % 2 == 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read_text(path, encoding)

    monkeypatch.setattr(Path, "read_text", stale_every_other_time)
    with pytest.raises(CheckpointBusy):
        acquire(tmp_path)
    assert numbers(tmp_path) == [1]
    assert held[0].is_held()


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("lease-")) for path in folder.glob("lease-*.json"))


def test_the_thread_that_renews_it_outlives_an_error_and_says_its_own_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    lease = acquire(folder)
    until(lambda: leases._read(folder, 1).counter > 1)
    numbers = itertools.count()

    def renewal_failed() -> bool:
        if folder.exists():  # a write that was under way has made it anew
            folder.rename(tmp_path / f"away-{next(numbers)}")
        return "cannot renew the lease" in caplog.text

    until(renewal_failed)
    (tmp_path / "away-0").rename(folder)
    before = leases._read(folder, 1).counter
    until(lambda: leases._read(folder, 1).counter > before + 1)
    assert not lease.lost.is_set()
    (folder / "lease-000002.json").write_text("{}")
    assert lease.lost.wait(limit_s())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lease_whose_thread_ends_by_a_bug_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(VirtualClock):
        """Fails from the second time on that it is asked."""

        asked = 0

        def monotonic(self) -> float:
            self.asked += 1
            if self.asked > 1:
                raise RuntimeError("no clock")
            return super().monotonic()

    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    lease = Lease(tmp_path, 1, Broken()).start()
    lease._thread.join(limit_s())
    assert lease.lost.is_set()
    assert not lease.succeeded


def test_of_many_processes_that_want_the_lease_at_once_one_gets_it(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from domyn_swarm.batch.checkpoint.lease import acquire
from domyn_swarm.errors import CheckpointBusy
print("here", flush=True)
sys.stdin.readline()
try:
    lease = acquire(Path({str(tmp_path)!r}))
    print("held", flush=True)
    sys.stdin.readline()
    assert not lease.lost.is_set()
    lease.release()
except CheckpointBusy:
    print("busy", flush=True)
"""
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "here\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.stdout.readline().strip() for child in children]
    for child in children:
        child.communicate("end\n", timeout=limit_s())
    assert sorted(said) == ["busy", "busy", "busy", "held"]
    assert [child.returncode for child in children] == [0] * 4
    acquire(tmp_path).release()  # the last one let go
