"""What an elastic swarm saves, and what waking costs. Real programs of this machine, engine `sim`.

    python benchmarks/elastic.py [--rows 64] [--row 30] [--start 10] [--rounds 3]

- The tail: GPU-seconds of replicas without a request, from the moment at which no row is left to
  send until the job's last row is settled: an elastic swarm against a fixed one, the same rows.
- From 0: from a request to a sleeping swarm to its answer, against `up` of one replica and a
  request to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm import DomynLLMSwarmConfig
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.view import read_view
from domyn_swarm.model import JobProgress
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.launch import prepare
from domyn_swarm.swarm.lifecycle import SwarmLifecycle

_REPLICAS = 4
_SAMPLE_S = 0.25


def _config(replicas: object, home: Path, **options: object) -> DomynLLMSwarmConfig:
    return DomynLLMSwarmConfig.model_validate(
        {
            "name": "bench",
            "model": "m",
            "engine": "sim",
            "backend": "local",
            "home_directory": str(home),
            "replicas": replicas,
            "min_ready": 1,
            "engine_options": options,
            "watchdog": {"probe_interval": 1, "kill_grace_seconds": 3},
        }
    )


@contextlib.contextmanager
def _swarm(config: DomynLLMSwarmConfig) -> Iterator[LiveSwarm]:
    lifecycle = SwarmLifecycle(SwarmStore.open())
    try:
        yield lifecycle.up(prepare(config), timeout_s=300)
    finally:
        lifecycle.down("bench")


def _idle_and_busy(paths: SwarmPaths) -> tuple[int, int]:
    """The engines that run, by whether they have a request."""
    spec = EndpointSpec.model_validate_json(paths.endpoint_spec.read_text("utf-8"))
    key = paths.api_key.read_text("utf-8").strip()
    view, idle, busy = read_view(paths), 0, 0
    for report in view.replicas if view else ():
        if report.engine_pid is None or not psutil.pid_exists(report.engine_pid):
            continue
        asked = urllib.request.Request(
            f"{report.url}{spec.metrics_path}", headers={"Authorization": f"Bearer {key}"}
        )
        try:
            text = urllib.request.urlopen(asked, timeout=2).read().decode()
        except OSError:  # it starts, or ends
            idle += 1
            continue
        lines = [line for line in text.splitlines() if line.startswith(str(spec.running_metric))]
        running = sum(float(line.rsplit(" ", 1)[1]) for line in lines)
        busy, idle = busy + bool(running), idle + (not running)
    return idle, busy


def _tail_s(replicas: object, rows: int, row_s: float, home: Path) -> tuple[float, float]:
    """GPU-seconds without work in the tail, and how long that took."""
    tag = f"{row_s:g}-{type(replicas).__name__}"
    lengths = {"median": 100, "sigma": 1.0}  # the same for both swarms
    engine = {"step_s": row_s / 100, "sequence_step_s": 0.0, "output_tokens": lengths}
    options = {"slots": 8, "vllm": engine}
    with _swarm(_config(replicas, home, **options)) as swarm:
        source = home / "in.parquet"
        pq.write_table(pa.table({"prompt": [f"p{number}" for number in range(rows)]}), source)
        handle = JobService().submit(
            JobRequest(
                swarm="bench",
                input=str(source),
                input_columns=("prompt",),
                output=str(home / f"{tag}.parquet"),
                max_concurrency=8 * _REPLICAS,
                checkpoint_tag=tag,
            )
        )
        progress, began, last, idle_s = JobPaths(Path(handle.job_dir)).progress, None, 0.0, 0.0
        while True:
            time.sleep(_SAMPLE_S)
            with contextlib.suppress(OSError, ValueError):
                seen = JobProgress.model_validate_json(progress.read_text("utf-8"))
                now, total = time.monotonic(), seen.rows_total
                if total is not None and seen.rows_done >= total:
                    break
                if total is not None and total - seen.rows_done - seen.in_flight <= 0:
                    began = began or now
                    idle_s += _idle_and_busy(swarm.paths)[0] * (now - (last or now))
                    last = now
        done = JobService().wait(handle, timeout_s=60)
        assert done.rows_failed == 0
        assert done.account is not None
        assert done.account.retries == 0
        return idle_s, time.monotonic() - (began or time.monotonic())


def _ask() -> None:
    info = SwarmService().endpoint("bench")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    headers = {
        "Authorization": f"Bearer {info.key_file.read_text('utf-8').strip()}",
        "Content-Type": "application/json",
    }
    asked = urllib.request.Request(f"{info.url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(asked, timeout=120) as reply:
        assert reply.status == 200


def _from_nothing_s(start_s: float, home: Path) -> tuple[float, float]:
    """From a sleeping swarm to an answer; from no swarm to one."""
    began = time.monotonic()
    with _swarm(_config(1, home, start_s=start_s)):
        _ask()
        plain_s = time.monotonic() - began
    with _swarm(_config({"min": 0, "max": _REPLICAS, "hold_s": 120}, home, start_s=start_s)):
        time.sleep(2)
        began = time.monotonic()
        _ask()
        return time.monotonic() - began, plain_s


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--row", type=float, default=30.0, help="median seconds of a row")
    parser.add_argument("--rounds", type=int, default=3, help="of the wake-up")
    parser.add_argument("--start", type=float, default=10.0, help="seconds that an engine starts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="elastic-") as folder:
        home = Path(folder)
        woken = [_from_nothing_s(args.start, home) for _ in range(args.rounds)]
        for sleeping_s, plain_s in woken:
            print(f"from 0: {sleeping_s:.2f} s, plain up: {plain_s:.2f} s")
        if woken:
            ratio = statistics.median(one / other for one, other in woken)
            print(f"first answer of a sleeping swarm / plain up: {ratio:.2f} (median)")
        elastic = {"min": 0, "max": _REPLICAS}
        fixed_s, fixed_tail_s = _tail_s(_REPLICAS, args.rows, args.row, home)
        elastic_s, tail_s = _tail_s(elastic, args.rows, args.row, home)
        print(f"tail of a fixed swarm: {fixed_s:.1f} idle GPU-s in {fixed_tail_s:.1f} s")
        print(f"tail of an elastic swarm: {elastic_s:.1f} idle GPU-s in {tail_s:.1f} s")
        print(f"elastic / fixed: {elastic_s / fixed_s:.2f}")


if __name__ == "__main__":
    main()
