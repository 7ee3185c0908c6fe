"""`--max-concurrency auto` on real engines of the simulator, which behave like vLLM."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.backends.endpoint.view import read_view
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import JobPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of
from patience import limit_s

ROWS = 4000
NARROW = {  # KV memory holds 48 rows of 256 slots; with all of them nearly each row is preempted
    "kv_tokens": 12_288,
    "prefill_tokens_per_s": 500,
    "speed": 8,
    "sequence_step_s": 0.00003,
    "output_tokens": {"median": 240},
}


def counted(url: str, key: str, name: str) -> float:
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=limit_s()) as reply:
        text = reply.read().decode()
    return sum(float(one) for one in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("workers", [1, 2])
def test_each_replica_has_a_limit_that_its_memory_holds(
    lifecycle: SwarmLifecycle, tmp_path: Path, workers: int
) -> None:
    options = {"slots": 256, "vllm": NARROW}
    swarm = lifecycle.up(launch_of(replicas=2, min_ready=2, engine_options=options))
    table = pa.table({"prompt": [f"p{number}" for number in range(ROWS)]})
    pq.write_table(table, tmp_path / "in.parquet")
    service = JobService()
    job = service.submit(
        JobRequest(
            swarm="demo",
            input=str(tmp_path / "in.parquet"),
            output=str(tmp_path / "out.parquet"),
            input_columns=("prompt",),
            workers=workers,
        )
    )
    ended = service.wait(job.job_id)
    assert (ended.status, ended.rows_done) == (JobStatus.SUCCEEDED, ROWS)

    view = read_view(swarm.paths)
    assert view is not None
    urls = {str(one.url) for one in view.replicas}
    key = swarm.paths.api_key.read_text("utf-8").strip()
    preemptions = sum(counted(url, key, "vllm:num_preemptions_total") for url in urls)
    assert preemptions < 0.15 * ROWS
    lines = JobPaths(Path(job.job_dir)).trace.read_text("utf-8").splitlines()
    last = json.loads(lines[-1])
    assert last["replica_limits"].keys() == urls
    assert all(limit < 128 for limit in last["replica_limits"].values())
    assert sum(last["replica_limits"].values()) == last["limit"]
