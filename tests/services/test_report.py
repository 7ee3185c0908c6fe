"""The page about a job, whatever the job is like."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domyn_swarm.batch.checkpoint.accounting import RunAccount
from domyn_swarm.batch.outcomes.histograms import LatencyHistogram, ReplicaShare, SlowRow
from domyn_swarm.batch.outcomes.tally import Counters
from domyn_swarm.errors import JobError, StateError
from domyn_swarm.model import JobProgress, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.services.charts import Moment, Series, duration, histogram, number, over_time
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.time_series import TraceLine, time_series_of
from domyn_swarm.state import JobRecord, SwarmStore
from patience import until


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_a_job_of_any_size_has_a_page(service: JobService, bench: Any, rows: int) -> None:
    bench.write(rows)
    service.submit(bench.request())
    assert service.wait("mine").status is JobStatus.SUCCEEDED
    report = service.report("mine")
    assert report.path == Path(report.job.log_path).parents[1] / "report.html"
    assert report.path.stat().st_mode & 0o777 == 0o600
    page = report.path.read_text()
    assert "No row failed." in page
    assert "Nothing was asked twice." in page
    assert report.account is not None
    assert report.account.rows_answered == rows
    assert len(report.slowest) == min(rows, 20)
    assert report.latency_s is None or sum(report.latency_s.counts) == rows
    assert ("No request has been answered yet." in page) == (rows == 0)


def test_failures_are_grouped_and_what_others_wrote_is_escaped(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(30)
    evil = "<script>alert('x')</script> & co"

    def behave(prompt: str, nth: int) -> Any:
        if prompt == "p3":
            return answer(status=400, body={"error": {"message": evil}})
        return answer(status=500 if (prompt, nth) == ("p5", 1) else 200)

    bench.server.behave = behave
    kwargs = {"system": f"Be kind.\n{evil}", "max_tokens": 9, "extra_body": {"api_key": "hidden"}}
    service.submit(bench.request(retries=2, name=evil, id_column="prompt", job_kwargs=kwargs))
    assert service.wait("mine").status is JobStatus.PARTIAL
    report = service.report("mine", output=bench.folder / "deep" / "page.html")
    page = report.path.read_text()
    assert "<script" not in page
    assert "Be kind.\n&lt;script&gt;" in page
    assert "<dt>max_tokens</dt><dd>9</dd>" in page
    assert "hidden" not in page
    assert (report.job.prompt, report.job.system) == (None, kwargs["system"])
    assert report.job.parameters == {"max_tokens": 9, "extra_body": {"api_key": "***"}}
    assert service.status("mine").parameters == report.job.parameters
    assert [one.parameters for one in service.list()] == [None]
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; co" in page
    [group] = report.failures
    assert (group.rows, group.status, group.example_row) == (1, 400, 3)
    assert (group.example_id, group.example_input) == ("p3", "p3")
    assert {f"p{one.row}" for one in report.slowest} == {one.row_id for one in report.slowest}
    [again] = report.redone
    assert (again.requests, again.cause) == (1, "after an error")

    (bench.folder / "in.parquet").unlink()
    without = service.report("mine")
    assert [(one.rows, one.example_row) for one in without.failures] == [(1, 3)]
    assert "As the runs counted them" in (without.failures_note or "")


def test_a_job_that_runs_has_a_page_of_now(service: JobService, bench: Any, answer: Any) -> None:
    bench.write(200)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.2)
    bench.server.answers_at_most = 40
    service.submit(bench.request(max_concurrency=4))

    def some_done() -> Any:
        report = service.report("mine")
        return report if report.account and report.account.rows_answered > 8 else None

    try:
        report = until(some_done)
        assert report.job.status is JobStatus.RUNNING
        assert [run.ended for run in report.runs] == [False]
        assert report.runs[0].lost_in_flight == 0
        page = report.path.read_text()
        assert "at work" in page
        assert "killed, with" not in page
    finally:
        bench.server.answers_at_most = None
        service.cancel("mine")


def test_a_job_without_a_checkpoint_and_a_page_without_room(
    service: JobService, bench: Any
) -> None:
    bench.write(3)
    service.submit(bench.request(checkpointing=False))
    assert service.wait("mine").status is JobStatus.SUCCEEDED
    assert "nothing to tell of its rows" in service.report("mine").path.read_text()
    (bench.folder / "file").write_text("")
    with pytest.raises(JobError, match="Cannot write"):
        service.report("mine", output=bench.folder / "file" / "page.html")


def test_the_moment_since_the_last_line_is_no_stretch_of_its_own() -> None:
    began = utc_now()
    run = RunAccount("j", Counters(rows_answered=100), 10.2, False, {}, False, began)
    trace = [
        TraceLine(at_s=float(at), at=began.timestamp() + at, settled=10 * at) for at in range(1, 11)
    ]
    [stretches] = time_series_of([run], [trace]).stretches
    assert [one.rows_per_s for one in stretches] == [10.0] * 10  # it ended in a fall to nothing


def recorded(home: Path, bench: Any, counters: Counters, lines: int) -> JobRecord:
    """A job that ended, as its files tell."""
    folder = home / "jobs" / "big"
    checkpoint = bench.folder / "checkpoint"
    spec = bench.spec(job_id="big")
    write_private(JobPaths(folder).spec, spec.model_dump_json())
    began = utc_now() - timedelta(hours=9)
    account = RunAccount("big", counters, 9 * 3600.0, True, {}, False, began)
    write_private(checkpoint / "run-000001.json", msgspec.json.encode(account).decode())
    progress = JobProgress(
        state="ended",
        checkpoint=str(checkpoint),
        rows_total=1_000_000,
        rows_done=1_000_000,
        updated_at=utc_now(),
    )
    write_private(JobPaths(folder).progress, progress.model_dump_json())
    trace = [
        {
            "at": began.timestamp() + at * 9 * 3600 / lines,
            "at_s": at * 9 * 3600 / lines,
            "settled": at * 1_000_000 // lines,
            "in_flight": 1000 + at % 7,
            "limit": 1024,
        }
        for at in range(lines)
    ]
    write_private(
        JobPaths(folder).trace, "".join(json.dumps(one) + "\n" for one in trace) + "{torn"
    )
    record = JobRecord(
        job_id="big",
        name="big",
        swarm=None,
        platform="local",
        status=JobStatus.SUCCEEDED,
        job_dir=str(folder),
        input=spec.input,
        output=spec.output,
        submitted_at=began,
    )
    SwarmStore.open().create_job(record)
    return record


def test_a_million_rows_take_a_page_as_small_and_as_soon_as_any(
    swarm_home: Path, bench: Any
) -> None:
    latency = LatencyHistogram()
    for number_of in range(1, 2000):
        latency.add((number_of / 100,))
    counters = Counters(
        rows_answered=1_000_000,
        requests=1_000_050,
        prompt_tokens=600_000_000,
        completion_tokens=300_000_000,
        latency=latency.counts,
        latency_s=1e7,
        completion_sizes=dict.fromkeys(range(10), 10**5),
        replicas={f"http://n{at}:8000": ReplicaShare(1000 + at, 1, 1, 5.0) for at in range(64)},
        slowest=[SlowRow(99.0 - at, at, 1, 1, failed=False) for at in range(20)],
    )
    recorded(swarm_home, bench, counters, lines=9000)
    began = time.process_time()
    report = JobService().report("big")
    assert time.process_time() - began < 10
    page = report.path.read_text()
    assert len(page) < 200_000
    assert page.count('class="bar"') <= 60
    assert report.latency_s is not None
    assert sum(report.latency_s.counts) == 1999
    assert len(report.latency_s.counts) <= 42
    assert [one.answers for one in report.shares[:2]] == [1063, 1062]
    assert sum(one.share for one in report.shares) == pytest.approx(1)
    assert "1 M / 1 M" in page


def test_a_script_has_no_page(service: JobService, bench: Any, swarm_home: Path) -> None:
    record = recorded(swarm_home, bench, Counters(), lines=1).model_copy(
        update={"job_id": "script", "output": None}
    )
    SwarmStore.open().create_job(record)
    with pytest.raises(StateError, match="ran the script"):
        service.report("script")


def test_numbers_and_times_are_written_for_people() -> None:
    assert [number(value) for value in (0, 0.0312, 7.25, 999, 12_345, 1.5e6, 2e9)] == [
        *("0", "0.0312", "7.25", "999", "12,345", "1.5 M", "2 G")
    ]
    assert [duration(value) for value in (0, 0.0123, 0.5, 90, 150, 3 * 3600 + 1200, 4e5)] == [
        *("0 s", "12.3 ms", "0.5 s", "90 s", "2 min 30 s", "3 h 20 min", "4.62 days")
    ]


def test_plots_have_round_ticks_and_labels_that_do_not_meet() -> None:
    steps = [(float(at), at + 1.0, float(at)) for at in range(100)]
    moments = [Moment(float(at), f"replica {at}", "", "bad") for at in (10, 11, 12, 60)]
    chart = over_time("t", "u", 100.0, [Series("s", "a", steps)], moments)
    assert chart is not None
    assert [tick.label for tick in chart.ys] == ["0", "20", "40", "60", "80", "100"]
    assert [tick.label for tick in chart.xs][:2] == ["0 s", "10 s"]
    assert [mark.label for mark in chart.marks] == ["replica 10", "replica 11", "", "replica 60"]
    assert chart.marks[0].label_y != chart.marks[1].label_y
    gap = over_time("t", "u", 3.0, [Series("s", "a", [(0, 1, 1.0), (1, 2, None), (2, 3, 1.0)])])
    assert gap is not None
    assert gap.lines[0].path.count("M") == 2
    assert over_time("t", "u", 0.0, [Series("s", "a", [])]) is None
    assert histogram("t", "u", [("1 s", 0)]) is None
    bars = histogram("t", "u", [("1 s", 3), ("2 s", 1)])
    assert bars is not None
    assert [bar.title for bar in bars.bars] == ["3 (75.0%) up to 1 s", "1 (25.0%) up to 2 s"]
    alone = histogram("t", "u", [("1 s", 3)])
    assert alone is not None
    assert alone.bars[0].width < (alone.right - alone.left) / 10  # a bar, no block
