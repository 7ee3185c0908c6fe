"""What commands show on a terminal of 80 columns and 24 lines: kept as it was looked at.

`pytest tests/cli/test_screens.py --snapshot-update` keeps it anew, when a change is meant.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.backends.checks import failed, ok, warning
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.model import FailureGroup, JobProgress, JobStatus, ReplicaState, utc_now
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.services.checkpoints import CheckpointEntry, CheckpointList
from domyn_swarm.services.doctor import Examination
from domyn_swarm.services.requests import JobFailures, PlanReport
from domyn_swarm.services.usage_report import UsageReport
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.campaign import CampaignRehearsal
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
USES = [
    *enumerate(("queued", "starting", "working", "repeated", "idle_rows_waiting"), 1),
    *enumerate(("idle_without_work", "draining", "dead", "unknown"), 6),
]
SHOW = """\
import sys
from importlib import import_module
from domyn_swarm.cli.shared_options import Format
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


def show(function: str, record: Any, *, columns: int = 80) -> str:
    kind = f"{type(record).__module__}:{type(record).__name__}"
    module, name = function.split(":")
    words = [SHOW, module, name, kind, record.model_dump_json()]
    return screen(words, os.environ, columns=columns, entry="warm:_execute")


def test_doctor_shows_each_remedy_below_what_it_is_for(snapshot: Any) -> None:
    folder = "/leonardo_scratch/large/userexternal/me000000/domyn-swarm-home/checkpoints"
    found = Examination(
        checks=(
            ok("open files", "here: 20000 (soft), 20000 (hard); our programs raise their own"),
            ok("checkpoints", f"finished rows are kept in {folder}"),
            failed("backend.endpoint.partition", "there is no 'gpu'", "Choose from: main, whole"),
            warning(
                "shared home",
                f"{folder} is on ext4, which other machines may not see",
                "Set DOMYN_SWARM_HOME or home_directory to a folder that the nodes share.",
            ),
        )
    )
    shown = show("domyn_swarm.cli.views:show_examination", found)
    assert folder in shown  # what somebody copies is whole
    assert shown == snapshot


def test_a_plan_is_shown_with_whole_paths(snapshot: Any) -> None:
    config = DomynLLMSwarmConfig.model_validate(
        {
            "name": "nightly",
            "model": "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
            "replicas": 4,
            "gpus_per_replica": 8,
            "home_directory": "/leonardo_scratch/large/userexternal/me000000/swarms-of-mine",
            "backend": {"type": "slurm", "partition": "boost_usr_prod", "time_limit": "12:00:00"},
        }
    )
    report = PlanReport(
        plan=PlanBuilder(config, "nightly").build(),
        gpus=32,
        gpu_hours=384.0,
        engine_command=("vllm", "serve", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "--port", "1"),
        scripts={},
    )
    shown = show("domyn_swarm.cli.views:show_plan", report)
    assert "/leonardo_scratch/large/userexternal/me000000/swarms-of-mine/swarms/nightly" in shown
    assert len(shown.splitlines()) <= 24
    assert shown == snapshot


def test_checkpoints_are_listed_with_whole_identities(snapshot: Any) -> None:
    at = datetime(2026, 11, 30, 18, 30, tzinfo=UTC)
    stores = [f"{number:024x}" for number in (11**22, 13**21)]
    size: dict[str, Any] = {"rows_done": 1_250_000, "rows_failed": 17, "bytes": 3_400_000_000}
    entries = [
        CheckpointEntry.model_validate(
            {
                "identity": identity,
                "path": f"/c/{identity}",
                "job": "TemplateJob",
                "model": "Qwen/Qwen3-32B",
                "tag": None,
                "last_written_at": at,
                **size,
                "prompt": "Say in one sentence what this article claims: {{ text }}",
                "jobs": [
                    {
                        "key": "k",
                        "path": "/c/k",
                        "last_written_at": at,
                        "lease": "free",
                        **size,
                        "input": "/data/corpora/2026/articles.parquet",
                        "holder": None,
                        "job_ids": [IDS[0]],
                        "job_name": "TemplateJob",
                        "takes_from": {},
                        "external_id": "nightly",
                        "output": "out.parquet",
                    }
                ],
                "whole": True,
                "touched": [],
            }
        )
        for identity in stores
    ]
    listed = CheckpointList(root=Path("/c"), checkpoints=tuple(entries), bytes=6_800_000_000)
    shown = show("domyn_swarm.cli.checkpoint_commands:show_checkpoints", listed)
    assert all(identity in shown for identity in stores)
    assert "articles.parquet" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown == snapshot


REHEARSED = {
    "ended": "settled",
    "rows": 100_000_000,
    "rows_settled": 100_000_000,
    "rows_asked_again": 12_480,
    "by_hand": 0,
    "duration_s": 1_420_000.0,
    "used_h": 12_620.0,
    "ideal_h": 8_681.0,
    "efficiency": 0.688,
    "idle_h": {"queued behind others": 0.0, "starting": 1830.5, "idle in the tail": 212.25},
    "happened": {"time limit": 310, "preempted": 42},
    "forecast": {"expected_s": 7.2e5, "low_s": 7.0e5, "high_s": 7.4e5, "truth_s": 7.1e5},
}
CHANGED = ("replicas 16", "time limit doubled", "watchdog.drain_seconds doubled to 600 s")


@pytest.mark.parametrize("columns", [60, 80])
def test_a_rehearsal_is_shown_with_whole_figures_and_words(columns: int, snapshot: Any) -> None:
    other = {"duration_s": 715_000.0, "used_h": 12_410.0, "efficiency": 0.6995}
    found = CampaignRehearsal.model_validate(
        {
            "assumptions": {"rows": 100_000_000, "replicas": 32, "gpus_per_replica": 1},
            "result": REHEARSED,
            "alternatives": [{"changed": words, **other} for words in CHANGED],
        }
    )
    shown = show("domyn_swarm.cli.rehearsing:show_rehearsal", found, columns=columns)
    assert max(map(len, shown.splitlines())) <= columns
    said = shown.split()
    assert all(word in said for words in CHANGED for word in words.split())
    assert said.count("GPU-hours") == 3
    assert shown == snapshot


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_usage_shows_whole_names_and_figures_on_any_terminal(columns: int) -> None:
    uses = [{"use": use, "cause": "", "replica_s": 1234.5 * at, "gpu_s": 0.0} for at, use in USES]
    swarm = {"name": "a-swarm-of-mine", "tag": "t", "backend": "local", "model": "m", "user": "u"}
    swarm |= {"gpus_per_replica": 0, "live": True, "began_at": utc_now()}
    held = {"held_replica_s": 98765.4, "held_gpu_s": 0.0, "uses": uses}
    report = UsageReport.model_validate(
        {"since": None, "until": utc_now(), "total": held, "swarms": [{**swarm, **held}]}
    )
    shown = show("domyn_swarm.cli.usage_command:show_usage", report, columns=columns)
    head, line = shown.splitlines()[:2]
    assert line.startswith("a-swarm-of-mine  27.4")
    assert len(head.split()) == len(line.split())  # no figure is broken or cut
    assert max(map(len, (head, line))) <= columns
    figures = {"queued": ".343", "start": ".686", "work": "1.0", "redone": "1.4", "wait": "1.7"}
    named = dict(zip(head.split(), line.split(), strict=True))
    assert all(named[name].endswith(figures[name]) for name in figures.keys() & named.keys())
    assert {"swarm", "held"} < named.keys()


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
