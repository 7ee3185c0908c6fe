"""What a job's user reads of its end, and of running it once more: pure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from domyn_swarm.backends.slurm.job_runs import JobRuns
from domyn_swarm.jobs.reporting import TimeLimit
from domyn_swarm.jobs.worker_spec import JobResult, JobSpec
from domyn_swarm.model import ExitRecord, JobStatus, utc_now
from domyn_swarm.paths import JobPaths
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.state import JobRecord
from domyn_swarm.swarm.job_ends import limits_kept, why_it_ended, why_it_waits
from virtual_time import VirtualClock

MISLEADING = "WARNING a new checkpoint, since 3a90 differs: params.seed"


def record(folder: Path, status: JobStatus, *, script: bool = False) -> JobRecord:
    return JobRecord(
        job_id="j1",
        external_id=None,
        name="j",
        swarm="demo",
        platform="slurm",
        status=status,
        job_dir=str(folder),
        input="in.jsonl",
        output=None if script else "out.jsonl",
        submitted_at=utc_now(),
    )


def limited(folder: Path, time_limit_s: float) -> JobSpec:
    return JobSpec(
        job_id="j1",
        name="j",
        job="m:C",
        model="m",
        endpoint_url="http://x",
        input="in.jsonl",
        output="out.jsonl",
        checkpoint_root=str(folder),
        min_version="1",
        resources=JobResources(time_limit_s=time_limit_s),
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (JobStatus.PREEMPTED, ["took its place for another job", "job resume j1`"]),
        (JobStatus.LOST_NODE, ["its node was lost", "job resume j1`"]),
        (JobStatus.TIMED_OUT, ["time limit", "job resume j1 --time LIMIT`"]),
        (JobStatus.OUT_OF_MEMORY, ["killed for its memory", "job resume j1 --mem SIZE`"]),
        (JobStatus.CANCELLED, ["told to stop", "job resume j1`"]),
    ],
)
def test_no_line_of_its_log_is_the_cause(
    tmp_path: Path, status: JobStatus, words: list[str]
) -> None:
    log = JobPaths(tmp_path).log
    log.parent.mkdir()
    log.write_text(MISLEADING)
    for result in (None, JobResult(rows_done=3)):
        said = str(why_it_ended(record(tmp_path, status), result))
        assert MISLEADING not in said
        assert all(word in said for word in words), said
    assert "job resume" not in str(why_it_ended(record(tmp_path, status, script=True), None))


def test_a_limit_that_was_reached_is_named(tmp_path: Path) -> None:
    ended = record(tmp_path, JobStatus.TIMED_OUT)
    assert "the time limit of the allocation" in str(why_it_ended(ended, None))
    told = limited(tmp_path, 90)
    JobPaths(tmp_path).spec.write_text(told.model_dump_json())
    said = str(why_it_ended(ended, None))
    assert said.startswith("its time limit of 1.5 min (--time), or that of the allocation")
    assert "job resume j1 --time LIMIT`" in said


def test_a_job_that_is_too_slow_for_its_time_says_so_before_it_is_up(tmp_path: Path) -> None:
    spec = limited(tmp_path, 600)
    clock = VirtualClock()
    ends = str(int(clock.time()) + 300)
    own = TimeLimit(spec, clock, {})
    schedulers = TimeLimit(spec, clock, {"SLURM_JOB_END_TIME": ends})
    free = spec.model_copy(update={"resources": JobResources()})
    assert own.too_short(5000.0) is None  # its speed is not known yet
    clock.sleep(20.0)
    assert (own.too_short(500.0), own.too_short(None)) == (None, None)
    assert "`domyn-swarm job resume j1 --time LIMIT`" in str(schedulers.too_short(500.0))
    said = own.too_short(600.0)
    assert "too slow" in str(said)
    clock.sleep(20.0)
    assert own.too_short(550.0) == said  # in the same words, though it is about done in time
    assert own.too_short(400.0) is None
    assert TimeLimit(free, clock, {}).too_short(1e9) is None
    lost = TimeLimit(spec.model_copy(update={"checkpointing": False}), clock, {})
    clock.sleep(20.0)
    assert "keeps no checkpoint" in str(lost.too_short(5000.0))


def test_what_failed_says_how_and_what_came_to_its_end_says_nothing(tmp_path: Path) -> None:
    paths = JobPaths(tmp_path)
    failed = record(tmp_path, JobStatus.FAILED)
    assert "no record of its end" in str(why_it_ended(failed, None))
    now = utc_now()
    for how, words in (({"code": 3}, "code 3"), ({"code": None, "signal": 9}, "SIGKILL")):
        ended = ExitRecord.model_validate({**how, "started_at": now, "ended_at": now})
        paths.exit.write_text(ended.model_dump_json())
        assert words in str(why_it_ended(failed, None))
    for last, shown in (
        ("2026-11-29 21:16:14,505 WARNING domyn_swarm.__main__: told to stop", False),
        ("ModuleNotFoundError: No module named 'torch'", True),
    ):
        ended = ExitRecord(code=1, started_at=now, ended_at=now)
        paths.exit.write_text(ended.model_dump_json())
        paths.log.parent.mkdir(exist_ok=True)
        paths.log.write_text(f"Traceback\n{last}\n")
        said = str(why_it_ended(failed, None))
        assert (last in said) is shown
        assert "`domyn-swarm job logs j1` shows what it printed" in said
    told = JobResult(error="The swarm has failed.")
    assert why_it_ended(failed, told) == "The swarm has failed."
    for status in (JobStatus.SUCCEEDED, JobStatus.PARTIAL):
        assert why_it_ended(record(tmp_path, status), told) is None


@pytest.mark.parametrize(
    ("status", "had", "asked", "said"),
    [
        (JobStatus.TIMED_OUT, {"time_limit_s": 120.0}, {}, "2 min again: --time"),
        (JobStatus.TIMED_OUT, {"time_limit_s": 120.0}, {"time_limit_s": 60.0}, "--time"),
        (JobStatus.TIMED_OUT, {"time_limit_s": 120.0}, {"time_limit_s": 600.0}, None),
        (JobStatus.TIMED_OUT, {}, {}, "the same limit again: --time"),
        (JobStatus.TIMED_OUT, {"stop_after_s": 7200.0}, {}, "2 h once more: --stop-after"),
        (JobStatus.OUT_OF_MEMORY, {"memory_gb": 4.0}, {}, "4 GB again: --mem"),
        (JobStatus.OUT_OF_MEMORY, {}, {"memory_gb": 8.0}, None),
        (JobStatus.PREEMPTED, {}, {}, None),
    ],
)
def test_a_limit_that_was_too_small_is_named_when_it_is_kept(
    status: JobStatus, had: dict[str, float], asked: dict[str, float], said: str | None
) -> None:
    had_all, asked_all = JobResources.model_validate(had), JobResources.model_validate(asked)
    found = [*limits_kept(status, had_all, asked_all)]
    assert (said is None and not found) or (said is not None and said in found[0])


@pytest.mark.parametrize(
    ("ended", "cause"),
    [
        ({"code": 143, "time_limit": True}, "its time limit was up"),
        ({"code": 143, "stopped": True}, "Slurm took its node from it"),
        (None, "its node was lost or taken from it"),
    ],
)
def test_why_a_job_waits_for_its_next_run(
    tmp_path: Path, ended: dict[str, object] | None, cause: str
) -> None:
    waiting, paths = record(tmp_path, JobStatus.PENDING), JobPaths(tmp_path)
    assert why_it_waits(waiting, "waits in the queue (Resources)") == (
        "waits in the queue (Resources)"  # for its first one
    )
    JobRuns(2, ("17",), 0.0, 0.0).write(paths)
    if ended is not None:
        found = ExitRecord.model_validate({**ended, "started_at": utc_now(), "ended_at": utc_now()})
        paths.exit.write_text(found.model_dump_json())
    told = why_it_waits(waiting, "waits in the queue (Resources)")
    assert told == f"{cause}: run 3 waits in the queue (Resources)"


@pytest.mark.parametrize(
    ("over", "status", "words"),
    [
        ("stop_after", JobStatus.TIMED_OUT, "--stop-after"),
        ("fruitless", JobStatus.FAILED, "settled no row"),
        ("cancelled", JobStatus.CANCELLED, "told to stop"),
    ],
)
def test_why_a_job_does_not_go_on(
    tmp_path: Path,
    over: Literal["stop_after", "fruitless", "cancelled"],
    status: JobStatus,
    words: str,
) -> None:
    JobRuns(4, ("17",), 0.0, 0.0, over=over, reason="its last 3 runs settled no row").write(
        JobPaths(tmp_path)
    )
    said = str(why_it_ended(record(tmp_path, status), None))
    assert words in said
    assert "`domyn-swarm job resume j1`" in said
