"""What commands show on a terminal of 80 columns and 24 lines: kept as it was looked at.

`pytest tests/cli/test_screens.py --snapshot-update` keeps it anew, when a change is meant.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.model import FailureGroup, JobProgress, JobStatus, ReplicaState, utc_now
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.services.requests import JobFailures
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.snapshot import JobSnapshot, ReplicaSnapshot, SwarmSnapshot
from terminal import screen

IDS = [f"20261130-18304{at}-95db7{at}" for at in range(8)]
REFUSED = FailureGroup(
    signature="RequestRefused: HTTP 400: too long",
    rows=7,
    status=400,
    example_row=12,
    example_id="article-000012",
    example_input="Summarise: " + "a long text of many words " * 20,
    example_message="HTTP 400: This model's maximum context length is 4096 tokens.",
)
SHOW = """\
import sys
from importlib import import_module
from domyn_swarm.cli.options import Format
module, function, record, text = sys.argv[1:]
module_of_record, _, kind = record.rpartition(":")
made = getattr(import_module(module_of_record), kind).model_validate_json(text)
getattr(import_module(module), function)(made, Format.TABLE)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven jobs, the last of which runs; paths and ids are as long as real ones."""
    monkeypatch.setenv("DOMYN_SWARM_HOME", "/nowhere")  # what is shown names no folder of this run
    monkeypatch.chdir(tmp_path)
    store = SwarmStore.open(tmp_path / "swarm.db")
    for at, job_id in enumerate(IDS):
        status = [JobStatus.SUCCEEDED, JobStatus.PARTIAL, JobStatus.RUNNING][at // 4 + at // 7]
        began = utc_now() - timedelta(hours=8 - at)
        folder = tmp_path / "jobs" / job_id
        record = JobRecord(
            job_id=job_id,
            external_id=f"nightly-{at}" if at % 2 else None,
            name="ChatCompletionJob",
            swarm=None,
            platform="slurm",
            status=status,
            job_dir=str(folder),
            input="/data/corpora/2026/articles-of-the-day.parquet",
            output="/data/corpora/2026/answers/articles-of-the-day.parquet",
            submitted_at=began,
        )
        store.create_job(record)
        failed = 0 if at < 4 else 7
        progress = JobProgress(
            state="running",
            rows_total=120_000,
            rows_done=41_000,
            rows_failed=failed,
            commonest_failure=REFUSED if failed else None,
            rows_per_s=212.5,
            eta_s=371,
            eta_low_s=322,
            eta_high_s=455,
            updated_at=utc_now() - timedelta(seconds=125),
        )
        write_private(JobPaths(folder).progress, progress.model_dump_json())
    return tmp_path


def looked_at(home: Path, *words: str, columns: int = 80) -> str:
    shown = screen(words, {**os.environ, "DOMYN_SWARM_HOME": str(home)}, columns=columns)
    return shown.replace(str(home), "/HOME")


def test_jobs_are_listed_in_80_columns_with_whole_ids(home: Path, snapshot: Any) -> None:
    shown = looked_at(home, "job", "list")
    table = shown.split("not shown")[0].splitlines()
    began = [line.split()[0] for line in table if line.startswith("2026")]
    assert began == IDS  # the newest last, none broken
    assert max(map(len, table)) <= 80
    assert len(shown.splitlines()) <= 24
    assert shown == snapshot


def test_so_many_jobs_are_listed_as_a_terminal_shows_at_once(home: Path) -> None:
    shown = looked_at(home, "job", "list", "-n", "2", columns=240)
    assert [job_id for job_id in IDS if f"\n{job_id} " in shown] == IDS[-2:]
    assert shown.count("/data/corpora/2026/answers/articles-of-the-day.parquet") == 2
    assert "jobs before these: 6; -n 0" in shown
    assert "not shown in" not in shown


def test_ids_are_whole_on_any_terminal(home: Path) -> None:
    shown = looked_at(home, "job", "list", columns=40)
    assert [job_id for job_id in IDS if f"{job_id}  " in shown] == IDS
    assert "not shown in 40 columns: external" in " ".join(shown.split())


def test_one_job_is_shown_with_why_its_rows_failed_and_how_old_its_figures_are(
    home: Path, snapshot: Any
) -> None:
    assert looked_at(home, "job", "status", IDS[-1]) == snapshot


def test_a_list_without_anything_says_what_to_type(tmp_path: Path, snapshot: Any) -> None:
    for words in (["job", "list"], ["swarm", "list"]):
        assert looked_at(tmp_path / "home", *words) == snapshot


def show(function: str, record: Any) -> str:
    kind = f"{type(record).__module__}:{type(record).__name__}"
    module, name = function.split(":")
    words = [SHOW, module, name, kind, record.model_dump_json()]
    return screen(words, os.environ, entry="warm:_execute")


def test_failures_are_shown_with_the_rows_id_and_its_text(snapshot: Any) -> None:
    groups = (REFUSED, REFUSED.model_copy(update={"rows": 2, "example_id": "b", "status": None}))
    found = JobFailures(
        job_id=IDS[0],
        rows_failed=9,
        groups=groups,
        rows_unsettled=0,
        rows_failed_unsettled=0,
        exported=None,
    )
    shown = show("domyn_swarm.cli.job_views:show_failures", found)
    assert "article-000012" in shown
    assert shown == snapshot


def test_a_swarm_is_shown_with_its_last_jobs(snapshot: Any) -> None:
    jobs = [
        JobSnapshot(
            job_id=job_id,
            name="ChatCompletionJob",
            swarm="demo",
            status=JobStatus.SUCCEEDED,
            rows_total=10,
            rows_done=10,
            input="in.jsonl",
            output="out.jsonl",
            submitted_at=utc_now() - timedelta(hours=8 - at),
            log_path="worker.log",
        )
        for at, job_id in enumerate(IDS)
    ]
    swarm = SwarmSnapshot.model_validate(
        {
            "name": "demo",
            "phase": "ready",
            "observed": "ready",
            "backend": "slurm",
            "engine": "vllm",
            "model": "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
            "endpoint": "http://lrdn0412.cluster.example.org:49152",
            "replicas_wanted": 2,
            "min_ready": 1,
            "replicas": [
                ReplicaSnapshot(
                    index=0,
                    state=ReplicaState.READY,
                    stale=False,
                    http_status=200,
                    last_seen_s=2,
                    requests_running=31,
                    figures_age_s=40,
                ).model_dump(),
                ReplicaSnapshot(
                    index=1,
                    state=ReplicaState.RESTARTING,
                    stale=False,
                    reason="the GPU's memory is full: lower gpu_memory_utilization",
                    last_seen_s=1,
                    restarts=2,
                ).model_dump(),
            ],
            "jobs": json.loads("[" + ",".join(job.model_dump_json() for job in jobs) + "]"),
            "swarm_dir": "/home/me/.domyn_swarm/swarms/demo",
            "created_at": utc_now(),
        }
    )
    shown = show("domyn_swarm.cli.views:show_swarm", swarm)
    assert [job_id for job_id in IDS if job_id in shown] == IDS[3:]
    assert "jobs before these: 3; domyn-swarm job list --name demo" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown == snapshot
