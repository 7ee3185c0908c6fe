"""The live view, driven by keys, over a recording of what the services say."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.cli import views
from domyn_swarm.cli.top.cells import (
    failure_lines,
    job_row,
    number,
    replica_row,
    summary,
)
from domyn_swarm.cli.top.live_view import TopApp
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import (
    FailureGroup,
    JobStatus,
    ReplicaReport,
    ReplicaState,
    SwarmPhase,
    clock_time,
)
from domyn_swarm.swarm import snapshot
from domyn_swarm.swarm.snapshot import JobSnapshot, ReplicaSnapshot, SwarmSnapshot, Whereabouts
from patience import until_async

BEGAN = datetime(2026, 11, 26, 8, 0, tzinfo=UTC)
STATES = {
    3: {"state": ReplicaState.RESTARTING, "reason": "the GPU ran out of memory", "restarts": 2},
    7: {"state": ReplicaState.READY, "stale": True},
    11: {"state": ReplicaState.STARTING},
    15: {"state": ReplicaState.FAILED, "reason": "the model was not found", "restarts": 3},
}


def replica(index: int) -> ReplicaSnapshot:
    fields: dict[str, Any] = {
        "index": index,
        "state": ReplicaState.READY,
        "stale": False,
        "http_status": 200,
        "last_seen_s": 1.5,
        "node": f"n{index // 4 + 1}",
        "requests_running": 40.0 + index,
        "requests_waiting": float(index % 3),
        "tokens_per_s": 1500.0 + 10 * index,
        "kv_cache_usage": 0.5 + index / 100,
    }
    if index in STATES:
        fields |= {name: None for name in fields if name.startswith(("requests", "tokens", "kv"))}
    return ReplicaSnapshot.model_validate({**fields, **STATES.get(index, {})})


def job(number: int, **fields: Any) -> JobSnapshot:
    return JobSnapshot.model_validate(
        {
            "job_id": f"20261126-0800{number:02}-abcdef",
            "name": "ChatCompletionJob",
            "swarm": "night",
            "status": JobStatus.RUNNING,
            "rows_total": 1_000_000,
            "rows_done": 250_000 * number,
            "rows_per_s": 812.4,
            "eta_s": 922.0,
            "prompt_tokens": 41_000_000,
            "completion_tokens": 9_500_000,
            "input": "in.parquet",
            "output": "out.parquet",
            "submitted_at": BEGAN,
            "log_path": "worker.log",
            **fields,
        }
    )


def night(replicas: int = 16, **fields: Any) -> SwarmSnapshot:
    return SwarmSnapshot(
        **{
            "name": "night",
            "phase": SwarmPhase.READY,
            "observed": "ready",
            "backend": "slurm",
            "engine": "vllm",
            "model": "Qwen/Qwen3-32B",
            "endpoint": "http://n1:41873",
            "replicas_wanted": replicas,
            "min_ready": 1,
            "replicas": tuple(replica(index) for index in range(replicas)),
            "jobs": (
                job(
                    1,
                    external_id="synthetic-v3",
                    rows_failed=31,
                    verdicts={"complete": 249_957, "cut": 12, "error": 31},
                ),
                job(2, external_id="judge", rows_failed=0, message="paused: no replica serves"),
            ),
            "swarm_dir": "swarms/night",
            "created_at": BEGAN,
            **fields,
        }
    )


class Recording:
    """A `Source` that plays snapshots, the last one for ever, and notes what it was told to do."""

    def __init__(self, *snapshots: SwarmSnapshot) -> None:
        self.snapshots = list(snapshots)
        self.told: list[object] = []
        self.broken: str | None = None

    def snapshot(self) -> SwarmSnapshot:
        if self.broken is not None:
            raise PlatformError(self.broken)
        return self.snapshots.pop(0) if len(self.snapshots) > 1 else self.snapshots[0]

    def failures(self, job_id: str) -> tuple[FailureGroup, ...]:
        self.told.append(("failures", job_id))
        if not job_id.startswith("20261126-080001"):
            return ()
        return (
            FailureGroup(
                signature="too long",
                rows=30,
                status=400,
                example_row=17,
                example_message="This model's maximum context length is 32768 tokens.",
            ),
            FailureGroup(
                signature="time-out",
                rows=1,
                status=None,
                example_row=90_210,
                example_message="no answer within 600 s",
            ),
        )

    def log(self, replica: int | None) -> list[str]:
        return [f"line {number} of {replica}" for number in range(3)]

    def scale(self, replicas: int) -> None:
        self.told.append(("scale", replicas))

    def cancel(self, job_id: str) -> None:
        self.told.append(("cancel", job_id))


async def settled(pilot: Any, app: TopApp) -> None:
    """Wait until the view has shown what its source says."""
    await pilot.pause()
    await until_async(lambda: app.swarm is not None and not app.workers._workers)
    await pilot.pause()


def text_of(app: TopApp, widget: str) -> str:
    return str(app.query_one(widget).visual)


@pytest.mark.parametrize("width", [80, 160])
def test_a_large_swarm_with_two_jobs_looks_as_it_was_looked_at(
    width: int, snap_compare: Callable[..., bool]
) -> None:
    async def rest(pilot: Any) -> None:
        await settled(pilot, pilot.app)

    app = TopApp(Recording(night()), every_s=3600)
    assert snap_compare(app, terminal_size=(width, 36), run_before=rest)


async def test_it_follows_what_happens() -> None:
    smaller = night(2, jobs=(job(1, status=JobStatus.SUCCEEDED, eta_s=None),))
    app = TopApp(Recording(night(1), smaller), every_s=3600)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot, app)
        assert "0 of 1" not in text_of(app, "#summary")
        await pilot.press("r")
        await settled(pilot, app)
        assert "2 of 2 replicas ready" in text_of(app, "#summary")
        assert app.query_one("#replicas").row_count == 2
        assert app.query_one("#jobs").get_row_at(0)[1].plain == "succeeded"


async def test_a_platform_that_does_not_answer_is_said_and_looked_at_again() -> None:
    source = Recording(night(2))
    app = TopApp(source, every_s=3600)
    async with app.run_test() as pilot:
        await settled(pilot, app)
        source.broken = "squeue did not answer"
        await pilot.press("r")
        await settled(pilot, app)
        assert "squeue did not answer" in text_of(app, "#problem")
        assert app.query_one("#replicas").row_count == 2
        source.broken = None
        await pilot.press("r")
        await settled(pilot, app)
        assert text_of(app, "#problem") == ""


async def test_what_costs_something_is_asked_for_twice() -> None:
    source = Recording(night(2))
    app = TopApp(source, every_s=3600)
    async with app.run_test() as pilot:
        await settled(pilot, app)
        for answer, told in (("n", []), ("y", [("scale", 5)])):
            await pilot.press("s", "backspace", "5", "enter")
            await pilot.pause()
            await pilot.press(answer)
            await settled(pilot, app)
            assert [one for one in source.told if one[0] == "scale"] == told
        await pilot.press("tab")  # to the jobs; the newest is chosen
        for answer, told in (("escape", []), ("y", [("cancel", "20261126-080002-abcdef")])):
            await pilot.press("c")
            await pilot.pause()
            await pilot.press(answer)
            await settled(pilot, app)
            assert [one for one in source.told if one[0] == "cancel"] == told


async def test_no_replicas_and_no_nonsense() -> None:
    source = Recording(night(2))
    app = TopApp(source, every_s=3600)
    async with app.run_test() as pilot:
        await settled(pilot, app)
        await pilot.press("s", "backspace", "0", "enter")  # zero is refused, the field stays
        await pilot.press("escape")
        await settled(pilot, app)
        assert [one for one in source.told if one[0] == "scale"] == []


async def test_logs_open_and_close() -> None:
    app = TopApp(Recording(night(2)), every_s=3600)
    async with app.run_test() as pilot:
        await settled(pilot, app)
        await pilot.press("down", "l")
        await until_async(
            lambda: any(
                "line 2 of 1" in line.text
                for log in app.screen.query("RichLog")
                for line in log.lines
            )
        )
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen.query("#replicas")


def test_failures_are_grouped_once_for_each_that_is_new() -> None:
    groups = Recording(night()).failures("20261126-080001-abcdef")
    lines = failure_lines(job(1), groups, most=1)
    assert lines[0].startswith("30 x 400 This model's maximum context length")
    assert lines[1] == "1 more of 1 other kind"
    assert failure_lines(job(1), ()) == ["20261126-080001-abcdef: no failed rows"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0"), (950.4, "950"), (12_345, "12.3k"), (4.5e6, "4.5M")]
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_times_are_short() -> None:
    assert clock_time(451) == "0:07:31"
    assert clock_time(timedelta(days=2, hours=3, minutes=10).total_seconds()) == "2 d 03:10"


def test_without_a_terminal_it_says_what_to_use(swarm_home: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "top"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "status --json" in done.stderr


@pytest.mark.parametrize(
    ("sample_age_s", "age_s", "status", "row", "line"),
    [
        (0.5, 3.5, "8", "8", None),
        (4.0, 7.0, "8 (7 s ago)", "8 (7 s ago)", "as of up to 7 s ago"),
        (None, None, "8", "8", None),  # another watchdog: it does not say
    ],
)
def test_figures_of_an_engine_are_live_or_shown_with_their_age(
    sample_age_s: float | None, age_s: float | None, status: str, row: str, line: str | None
) -> None:
    report = ReplicaReport(
        replica=0,
        state=ReplicaState.READY,
        requests_running=8.0,
        sample_age_s=sample_age_s,
        incarnation="a",
        sequence=1,
        reported_at=BEGAN,
    )
    view = CollectorView(
        replicas=(report,), taken_at=BEGAN + timedelta(seconds=3), stale_after_s=12
    )
    one = snapshot.reported(view, report, 0, unheard=False)
    assert (one.last_seen_s, one.figures_age_s) == (3.0, age_s)
    assert views._running(one) == status
    assert replica_row(one)[2] == row
    told = ", ".join(summary(night().model_copy(update={"replicas": (one,)}), BEGAN))
    assert ("s ago" in told) == (line is not None)
    assert line is None or line in told


def test_a_swarm_of_another_cluster_is_shown_as_it_was_last_known() -> None:
    where = Whereabouts(kind="cluster", name="alps", elsewhere=True, known_at=BEGAN)
    seen = night(observed="elsewhere", whereabouts=where, detail="it cannot be asked from here")
    phase, model, *_ = summary(seen, BEGAN + timedelta(seconds=90))
    assert phase == "ready  http://n1:41873"
    assert model.endswith("(vllm on slurm, cluster alps: not asked from here, known 0:01:30 ago)")
    assert job_row(job(1, whereabouts=where))[1] == "running on alps"
    assert job_row(job(1, figures_age_s=4))[1] == "running"
    assert job_row(job(1, figures_age_s=130))[1] == "running (0:02:10 ago)"
