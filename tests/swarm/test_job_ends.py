"""What a job's user reads of its end, and of running it once more: pure."""

from __future__ import annotations

from pathlib import Path

import pytest

from domyn_swarm.jobs.spec import JobResult
from domyn_swarm.model import ExitRecord, JobStatus, utc_now
from domyn_swarm.paths import JobPaths
from domyn_swarm.planning.resources import JobResources
from domyn_swarm.state import JobRecord
from domyn_swarm.swarm.job_ends import limits_kept, why_it_ended

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
