"""What watching costs, piece by piece; the best of many rounds each, in CPU time of this process.

    python benchmarks/observing.py

Pieces are measured alone because a whole job moves by more than they cost: for that see
`two_versions.py`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.metrics import Readings, exposition
from domyn_swarm.backends.endpoint.supervision import RouterFigures
from domyn_swarm.backends.endpoint.use_meter import FollowedJob
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.batch.outcomes.histograms import LatencyHistogram, SlowRow
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.jobs.reporting import Reporter
from domyn_swarm.model import Histogram, JobProgress, ReplicaReport, ReplicaState, utc_now
from domyn_swarm.paths import JobPaths

_ROUNDS = 20
_ROWS = 100_000


def best_s(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest round."""
    found = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def per_row() -> float:
    """µs that each row costs more than the sums and the latency that were counted anyway."""

    def plain() -> None:
        latency, prompt, completion = LatencyHistogram(), 0, 0
        for _ in range(_ROWS):
            latency.add((0.1,))
            prompt += 600
            completion += 300

    def watched() -> None:
        tally = Tally()
        for row in range(_ROWS):
            tally.replies.count(0.1, 600, 300, "http://10.0.0.1:8000")
            if tally.slowest.floor_s < 0.1:
                tally.slowest.add(SlowRow(0.1, row, 1, 300, failed=False))

    return (best_s(watched) - best_s(plain)) / _ROWS * 1e6


def progress_ms() -> float:
    """What a worker writes once a second."""
    tally = Tally(rows_total=1_000_000)
    for row in range(5_000):
        tally.replies.count(
            0.01 * (row % 700 + 1), 600 + row % 999, 300 + row % 777, f"http://{row % 16}"
        )
    with tempfile.TemporaryDirectory() as folder:
        reporter = Reporter(JobPaths(Path(folder)), tally)
        reporter.state = "running"
        return best_s(reporter.write_progress) * 1e3


def scrape_ms(replicas: int, jobs: int) -> float:
    """What the endpoint program renders for one scrape, the router's text not included."""
    some = Histogram(bounds=tuple(map(float, range(14))), counts=(3,) * 15, total=3.0)
    now = utc_now()
    progress = JobProgress(
        state="running", updated_at=now, latency_s=some, prompt_sizes=some, completion_sizes=some
    )
    reports = tuple(
        ReplicaReport(
            replica=at,
            state=ReplicaState.READY,
            url=f"http://{at}",
            incarnation="1",
            sequence=1,
            reported_at=now,
        )
        for at in range(replicas)
    )
    nowhere = Path("nowhere")
    spec = EndpointSpec(
        tag="t",
        host="h",
        port=1,
        replicas=replicas,
        stale_after_s=10,
        health_path="/",
        policy="p",
        max_concurrent=1,
        queue_size=1,
        retries=1,
        tls_cert=None,
        tls_key=None,
        api_key_file=nowhere,
        collector_key_file=nowhere,
    )
    given = {report.url or "": 5.0 for report in reports}
    readings = Readings(
        swarm="s",
        spec=spec,
        replicas_wanted=replicas,
        view=CollectorView(replicas=reports, taken_at=now, stale_after_s=10),
        router=RouterFigures(given, given, {("/v1/chat/completions", "200"): 9.0}, {}),
        jobs=[FollowedJob(job_id=str(at), progress=progress) for at in range(jobs)],
    )
    return best_s(lambda: exposition(readings)) * 1e3


if __name__ == "__main__":
    print(f"a row: {per_row():.2f} µs more")
    print(f"progress.json and trace.jsonl, once a second: {progress_ms():.2f} ms")
    print(f"a scrape, 16 replicas and 10 jobs: {scrape_ms(16, 10):.1f} ms")
    print(f"a scrape, 256 replicas and 10 jobs: {scrape_ms(256, 10):.1f} ms")
