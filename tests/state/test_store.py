"""The state database: real files, real processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.errors import JobNotFound, StateError, SwarmExists, SwarmNotFound
from domyn_swarm.model import JobHandle, JobStatus, Location, SwarmPhase, utc_now
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from patience import limit_s


def swarm(name: str = "demo", **changes: Any) -> SwarmRecord:
    now = utc_now()
    fields: dict[str, Any] = {
        "name": name,
        "tag": f"{name}.1",
        "backend": "local",
        "phase": SwarmPhase.LAUNCHING,
        "swarm_dir": "/x",
        "plan_json": "{}",
        "created_at": now,
        "updated_at": now,
    }
    return SwarmRecord(**{**fields, **changes})


def job(job_id: str = "j1", **changes: Any) -> JobRecord:
    fields: dict[str, Any] = {
        "job_id": job_id,
        "name": "n",
        "swarm": "demo",
        "platform": "local",
        "status": JobStatus.PENDING,
        "job_dir": "/x/j",
        "input": "i",
        "output": "o",
        "submitted_at": utc_now(),
    }
    return JobRecord(**{**fields, **changes})


@pytest.fixture
def store() -> SwarmStore:
    return SwarmStore.open()


def test_a_swarm_comes_back_as_it_was(store: SwarmStore) -> None:
    where = Location(kind="host", name="login1", boot_id="b", pid_namespace=7, machine_id="m")
    record = swarm(parts=({"kind": "endpoint", "index": 0},), location=where)
    store.create_swarm(record)
    store.attach_parts("demo.1", [{"kind": "replica", "index": 0}])
    found = SwarmStore.open().swarm("demo")
    assert found.parts == ({"kind": "endpoint", "index": 0}, {"kind": "replica", "index": 0})
    unchanged = {"parts": record.parts, "updated_at": record.updated_at}
    assert found.model_copy(update=unchanged) == record


def test_names_are_unique_among_live_swarms(store: SwarmStore) -> None:
    store.create_swarm(swarm())
    with pytest.raises(SwarmExists, match="is launching"):
        store.create_swarm(swarm(tag="demo.2"))
    for phase in (SwarmPhase.STOPPING, SwarmPhase.STOPPED):
        store.set_phase("demo.1", phase)
    store.create_job(job())
    store.create_swarm(swarm(tag="demo.2"))
    assert store.swarm("demo").tag == "demo.2"
    assert [found.job_id for found in store.jobs("demo")] == ["j1"]
    with pytest.raises(StateError, match=r"No swarm has the tag 'demo\.1'"):
        store.attach_parts("demo.1", [{}])


def test_only_legal_transitions(store: SwarmStore) -> None:
    store.create_swarm(swarm())
    assert store.set_phase("demo.1", SwarmPhase.READY)
    assert not store.set_phase("demo.1", SwarmPhase.STOPPED)
    assert not store.set_phase("demo.1", SwarmPhase.LAUNCHING)
    assert store.swarm("demo").phase is SwarmPhase.READY
    assert store.set_phase("demo.1", SwarmPhase.FAILED, "why")
    assert store.set_phase("demo.1", SwarmPhase.STOPPING)
    assert store.set_phase("demo.1", SwarmPhase.STOPPING)
    assert store.swarm("demo").detail == "why"
    store.create_job(job())
    store.set_job_status("j1", JobStatus.RUNNING)
    store.set_job_status("j1", JobStatus.PENDING)  # a scheduler put it back into its queue
    assert store.job("j1").status is JobStatus.PENDING
    store.set_job_status("j1", JobStatus.RUNNING)
    store.set_job_status("j1", JobStatus.FAILED)
    store.set_job_status("j1", JobStatus.PENDING)
    assert store.job("j1").status is JobStatus.FAILED


@pytest.mark.parametrize("later", [one for one in JobStatus if one is not JobStatus.FAILED])
def test_of_readers_that_judge_a_job_differently_the_first_counts(
    store: SwarmStore, later: JobStatus
) -> None:
    store.create_job(job())
    store.set_job_status("j1", JobStatus.FAILED, exit_code=3)
    ended = store.job("j1")
    store.set_job_status("j1", later, exit_code=0)
    assert store.job("j1") == ended
    assert (ended.status, ended.exit_code) == (JobStatus.FAILED, 3)
    assert ended.ended_at is not None


def test_a_swarm_that_another_program_has_stopped_or_replaced_is_no_error(
    store: SwarmStore,
) -> None:
    store.create_swarm(swarm())
    store.set_stopped("demo.1")
    assert not store.set_phase("demo.1", SwarmPhase.STOPPING)
    store.create_swarm(swarm(tag="demo.2"))
    assert not store.set_phase("demo.1", SwarmPhase.READY)
    assert store.swarm("demo").phase is SwarmPhase.LAUNCHING


def test_a_part_that_two_programs_record_is_recorded_once(store: SwarmStore) -> None:
    store.create_swarm(swarm())
    parts = [{"kind": "replica", "index": number} for number in range(1000)]
    store.attach_parts("demo.1", parts[:500])
    store.attach_parts("demo.1", [*parts, parts[0]])
    assert store.swarm("demo").parts == tuple(parts)


def test_the_newest_jobs_and_how_many_there_are(store: SwarmStore) -> None:
    now = utc_now()
    for number in range(5):
        moment = now + timedelta(seconds=number)
        name = "demo" if number % 2 else None
        store.create_job(job(f"j{number}", swarm=name, submitted_at=moment))
    assert [one.job_id for one in store.jobs(newest=2)] == ["j3", "j4"]
    assert [one.job_id for one in store.jobs("demo", newest=1)] == ["j3"]
    assert [one.job_id for one in store.jobs()] == [f"j{number}" for number in range(5)]
    assert (store.count_jobs(), store.count_jobs("demo")) == (5, 2)
    before = now + timedelta(seconds=3)
    assert [one.job_id for one in store.jobs_of_none(before)] == ["j0", "j2"]
    assert not store.delete_ended_job("j0")
    store.set_job_status("j0", JobStatus.FAILED)
    assert store.delete_ended_job("j0")
    assert not store.delete_ended_job("j0")
    assert store.count_jobs() == 4


def test_what_runs_no_more_is_stopped_from_any_phase_and_by_several_at_once(
    store: SwarmStore,
) -> None:
    store.create_swarm(swarm())
    store.set_phase("demo.1", SwarmPhase.READY)
    for detail in ("the machine went down", "somebody else saw it too"):
        store.set_stopped("demo.1", detail)
    assert store.swarm("demo").phase is SwarmPhase.STOPPED
    assert store.swarm("demo").detail == "the machine went down"
    store.create_swarm(swarm(tag="demo.2"))
    store.set_stopped("demo.1")
    assert store.swarm("demo").phase is SwarmPhase.LAUNCHING


def test_unknown_names_suggest_close_ones(store: SwarmStore) -> None:
    store.create_swarm(swarm("llama-eval"))
    with pytest.raises(SwarmNotFound, match="Did you mean llama-eval"):
        store.swarm("lama-eval")
    with pytest.raises(JobNotFound):
        store.job("nope")


def test_stopped_swarms_are_listed_only_when_asked_for(store: SwarmStore) -> None:
    store.create_swarm(swarm("a"))
    store.create_swarm(swarm("b"))
    for phase in (SwarmPhase.STOPPING, SwarmPhase.STOPPED):
        store.set_phase("a.1", phase)
    assert [found.name for found in store.swarms()] == ["b"]
    assert [found.name for found in store.swarms(include_stopped=True)] == ["a", "b"]


def test_where_something_runs_is_kept_until_it_is_forgotten(store: SwarmStore) -> None:
    where = Location(kind="cluster", name="alps")
    store.create_job(job("j1", location=where))
    assert store.job("j1").location == where
    store.create_swarm(swarm("a", location=where))
    assert store.swarm("a").location == where
    store.forget_location("a.1")
    assert store.swarm("a").location is None


def test_of_several_jobs_with_one_external_id_the_newest_is_meant(store: SwarmStore) -> None:
    store.create_job(job("j1", external_id="nightly"))
    store.create_job(job("j2", external_id="nightly"))
    assert store.job("nightly").job_id == "j2"
    handle = JobHandle(
        job_id="j2",
        swarm="demo",
        platform="local",
        platform_id="1",
        job_dir="/x",
        log_path="/l",
        exit_path="/e",
        submitted_at=utc_now(),
    )
    store.set_job_handle("j2", handle)
    assert store.job("nightly").handle == handle
    assert store.job("j1").handle is None


def test_the_newest_is_meant_whatever_the_time_zone_of_the_submitter(store: SwarmStore) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    later = datetime(2026, 1, 1, 11, tzinfo=timezone(timedelta(hours=-5)))
    store.create_job(job("j1", external_id="nightly", submitted_at=noon))
    store.create_job(job("j2", external_id="nightly", submitted_at=later))
    found = store.job("nightly")
    assert (found.job_id, found.submitted_at) == ("j2", later)
    assert found.submitted_at.utcoffset() == timedelta(0)
    assert [one.job_id for one in store.jobs()] == ["j1", "j2"]


def test_the_database_is_private_whatever_the_umask(swarm_home: Path) -> None:
    old = os.umask(0)
    try:
        SwarmStore.open().create_swarm(swarm())
    finally:
        os.umask(old)
    assert swarm_home.stat().st_mode & 0o777 == 0o700
    assert (swarm_home / "swarm.db").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(swarm_home / "swarm.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def python(program: str, *told: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *told]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["a home", "q?mode=ro", "100%20", "c#1"])
def test_a_home_may_have_any_name(tmp_path: Path, name: str) -> None:
    SwarmStore.open(tmp_path / name / "swarm.db").create_swarm(swarm())
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["swarm.db"]
    assert (tmp_path / name / "swarm.db").stat().st_size > 0


def test_many_processes_open_a_fresh_home_at_once() -> None:
    program = "from domyn_swarm.state import SwarmStore; print(len(SwarmStore.open().swarms()))"
    for child in [python(program) for _ in range(8)]:
        out, errors = child.communicate(timeout=limit_s())
        assert (out, child.returncode) == ("0\n", 0), errors


ADD_JOBS = """
import sys
from domyn_swarm.model import JobStatus, utc_now
from domyn_swarm.state import JobRecord, SwarmStore
store = SwarmStore.open()
for number in range(int(sys.argv[2])):
    store.create_job(JobRecord(job_id=f"{sys.argv[1]}-{number}", name="n", swarm=None,
        platform="local", status=JobStatus.PENDING, job_dir="/x", input="i", output="o",
        submitted_at=utc_now()))
    print(number, flush=True)
"""


def adding(label: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ADD_JOBS, label, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_writers_at_once_lose_nothing() -> None:
    for child in [adding("a", 40), adding("b", 40)]:
        _, errors = child.communicate(timeout=limit_s())
        assert child.returncode == 0, errors
    assert len(SwarmStore.open().jobs()) == 80


def test_a_writer_killed_in_the_middle_loses_nothing_it_had_written() -> None:
    child = adding("a", 100_000)
    assert child.stdout is not None
    while int(child.stdout.readline()) < 30:
        pass
    child.send_signal(signal.SIGKILL)
    written = 31 + len(child.stdout.read().splitlines())  # `communicate` leaves what was buffered
    child.communicate()
    assert written <= len(SwarmStore.open().jobs()) <= written + 1


def test_opening_leaves_the_locks_of_this_process_alone(
    store: SwarmStore, swarm_home: Path
) -> None:
    holder = sqlite3.connect(swarm_home / "swarm.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    SwarmStore.open()
    program = (
        "import sqlite3, sys; rival = sqlite3.connect(sys.argv[1], timeout=0);"
        "rival.execute('BEGIN IMMEDIATE')"
    )
    command = [sys.executable, "-c", program, str(swarm_home / "swarm.db")]
    rival = subprocess.run(command, capture_output=True, text=True, timeout=limit_s(), check=False)
    holder.execute("ROLLBACK")
    holder.close()
    assert "database is locked" in rival.stderr


def test_who_died_before_the_first_migration_is_succeeded(swarm_home: Path) -> None:
    swarm_home.mkdir()
    (swarm_home / "swarm.db").touch()
    assert SwarmStore.open().swarms() == []


def test_a_database_from_the_future_is_refused(store: SwarmStore, swarm_home: Path) -> None:
    connection = sqlite3.connect(swarm_home / "swarm.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StateError, match="newer domyn-swarm"):
        SwarmStore.open()


def test_a_file_that_is_no_database_is_refused(swarm_home: Path) -> None:
    swarm_home.mkdir()
    (swarm_home / "swarm.db").write_text("something else " * 100)
    with pytest.raises(StateError, match="not a usable state database"):
        SwarmStore.open()


def test_a_page_that_was_overwritten_is_told(store: SwarmStore, swarm_home: Path) -> None:
    for number in range(50):
        store.create_job(job(f"j{number}", input="i" * 1000))
    path = swarm_home / "swarm.db"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(StateError, match="not a usable state database") as refused:
        SwarmStore.open().jobs()
    assert "Move it away" in refused.value.hint


def test_a_job_recorded_twice_is_not_blamed_on_the_file(store: SwarmStore) -> None:
    store.create_job(job())
    with pytest.raises(Exception, match="UNIQUE constraint failed") as refused:
        store.create_job(job())
    assert not isinstance(refused.value, StateError)


def test_a_folder_in_the_place_of_the_database_is_refused(swarm_home: Path) -> None:
    (swarm_home / "swarm.db").mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be opened"):
        SwarmStore.open()


def test_a_home_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StateError, match="cannot be opened"):
        SwarmStore.open()


@pytest.mark.parametrize("new", [True, False], ids=["new", "there"])
def test_opening_an_up_to_date_database_does_without_alembic(swarm_home: Path, new: bool) -> None:
    if not new:
        SwarmStore.open()
    program = (
        "import sys; from domyn_swarm.state import SwarmStore; SwarmStore.open().swarms();"
        "print('alembic' in sys.modules)"
    )
    out, errors = python(program).communicate(timeout=limit_s())
    assert out == "False\n", errors


def test_a_reader_waits_for_a_writer(store: SwarmStore, swarm_home: Path) -> None:
    blocker = sqlite3.connect(swarm_home / "swarm.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    child = python(
        "from domyn_swarm.state import SwarmStore; print(flush=True); SwarmStore.open().swarms()"
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.5)  # it goes on to wait: a longer proof that it does not end would be none either
    assert child.poll() is None
    blocker.execute("COMMIT")
    blocker.close()
    _, errors = child.communicate(timeout=limit_s())
    assert child.returncode == 0, errors


USES = {
    "open": "SwarmStore.open()",
    "read": "store.swarm('demo')",
    "write": "store.attach_parts('demo.1', [{'kind': 'replica', 'index': 0}])",
}
INTERRUPTED = """
import signal, sqlite3, sys, time
from domyn_swarm.state import SwarmStore

store, file, use, interruptions = SwarmStore.open(), sys.argv[1], sys.argv[2], 0
# Started in the background, it would have Ctrl-C ignored, as its shell asked for.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
for moment in range(1, 120):
    try:
        signal.setitimer(signal.ITIMER_REAL, moment * 2e-5)
        for _ in range(3):
            eval(use)
        time.sleep(0.01)
    except KeyboardInterrupt:
        interruptions += 1
        with sqlite3.connect(file, timeout=0) as other:
            other.execute("BEGIN IMMEDIATE")  # while it is handled
        other.close()
print(interruptions)
"""


# In a process of its own: an interruption may leave a lock of `logging` held for ever.
@pytest.mark.parametrize("use", USES)
def test_who_is_interrupted_holds_no_lock(store: SwarmStore, swarm_home: Path, use: str) -> None:
    store.create_swarm(swarm())
    told, errors = python(INTERRUPTED, str(swarm_home / "swarm.db"), USES[use]).communicate()
    assert int(told or 0) > 100, errors  # Python drops one that strikes while it frees something
