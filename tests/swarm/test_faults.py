"""Jobs on a swarm whose engines die of a row, or whose dead replica's port a stranger takes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.backends.endpoint.view import read_view
from domyn_swarm.model import JobStatus, ReplicaReport
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of
from patience import until

QUICK = {"probe_interval": 1, "restart_backoff_initial": 0.1}


def request(folder: Path, rows: int, poison: Collection[int] = (), **changes: Any) -> JobRequest:
    """A job of so many rows, of which some may be deadly."""
    # Of one length, so that none is expected to take longer and comes earlier for that.
    kinds = ["POISON" if number in poison else "POTION" for number in range(rows)]
    prompts = [f"p{number} {kind}" for number, kind in enumerate(kinds)]
    pq.write_table(pa.table({"prompt": prompts}), folder / "in.parquet")
    fields = {
        "swarm": "demo",
        "input": str(folder / "in.parquet"),
        "output": str(folder / "out.parquet"),
        "input_columns": ("prompt",),
        "external_id": "mine",
        **changes,
    }
    return JobRequest.model_validate(fields)


def asked(record: Path) -> Counter[str]:
    return Counter(json.loads(line)["prompt"] for line in record.read_text().splitlines())


def test_a_row_that_kills_engines_is_found_and_a_swarm_that_failed_ends_the_job(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    record = tmp_path / "asked.jsonl"
    deadly = [{"match": "POISON", "crash": True}]
    options = {"latency_s": 0.05, "record": str(record), "errors": deadly}
    service = JobService()
    lifecycle.up(launch_of(engine_options=options, watchdog={**QUICK, "max_restarts": 0}))
    service.submit(request(tmp_path, 200, poison={30}, max_concurrency=16, workers=2))
    ended = service.wait("mine")
    assert ended.status is JobStatus.FAILED
    assert "The swarm has failed" in (ended.message or "")
    assert "the engine exited with code 13" in (ended.message or "")
    assert asked(record)["p30 POISON"] == 1
    lifecycle.down("demo")

    lifecycle.up(launch_of(replicas=2, min_ready=2, engine_options=options, watchdog=QUICK))
    ended = service.wait(service.resume("mine"))
    assert (ended.status, ended.rows_failed) == (JobStatus.PARTIAL, 1)
    assert asked(record)["p30 POISON"] == 3
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    [failed] = [row for row in rows if row["_error"] is not None]
    assert (failed["prompt"], failed["_error"]["type"]) == ("p30 POISON", "DeadlyRow")
    assert sum(row["result"] is not None for row in rows) == 199


def test_two_rows_that_kill_engines_do_not_end_a_swarm_of_one(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    record = tmp_path / "asked.jsonl"
    deadly = [{"match": "POISON", "crash": True}]
    options = {"latency_s": 0.1, "record": str(record), "errors": deadly}
    lifecycle.up(launch_of(engine_options=options, watchdog=QUICK))
    service = JobService()
    service.submit(request(tmp_path, 400, poison={30, 200}, max_concurrency=8))
    ended = service.wait("mine")
    assert (ended.status, ended.rows_failed) == (JobStatus.PARTIAL, 2), ended.message
    counted = asked(record)
    assert [counted[f"p{number} POISON"] for number in (30, 200)] == [3, 3]
    assert SwarmService().status("demo").replicas[0].restarts == 6  # of three in a row
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert sum(row["result"] is not None for row in rows) == 398


def test_engines_that_are_too_busy_to_say_that_they_are_well_are_left_at_work(
    lifecycle: SwarmLifecycle, swarm_home: Path, tmp_path: Path
) -> None:
    record = tmp_path / "asked.jsonl"
    options = {
        "latency_s": 0.4,
        "slots": 8,
        "health_latency_s": 3.0,
        "metrics_latency_s": 0.6,
        "record": str(record),
    }
    service = JobService()
    watchdog = {**QUICK, "http_timeout": 0.5}
    lifecycle.up(launch_of(replicas=2, min_ready=2, engine_options=options, watchdog=watchdog))
    service.submit(request(tmp_path, 400, max_concurrency=32))
    ended = service.wait("mine")
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.account is not None
    assert (ended.account.requests, ended.account.retries) == (400, 0)
    assert set(asked(record).values()) == {1}
    with sqlite3.connect(SwarmPaths.of(swarm_home, "demo").watchdog_db) as history:
        states = {state for (state,) in history.execute("SELECT state FROM replica_status")}
    history.close()
    assert states <= {"starting", "ready"}


class _Stranger(BaseHTTPRequestHandler):
    """Healthy, and with a key of its own."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self.server.asked |= {self.path}  # type: ignore[attr-defined]
        self._say(200 if self.path == "/health" else 401)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.turned_away += 1  # type: ignore[attr-defined]
        self._say(401)

    def _say(self, status: int) -> None:
        body = b'{"error": {"message": "who are you?"}}'
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def stranger(url: str) -> Iterator[Any]:
    """Another server where a replica was."""
    place = urlsplit(url)
    ThreadingHTTPServer.allow_reuse_address = True
    server: Any = ThreadingHTTPServer((place.hostname or "", place.port or 0), _Stranger)
    server.turned_away = 0
    server.asked = set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def report(paths: SwarmPaths, replica: int) -> ReplicaReport:
    view = until(lambda: read_view(paths))
    return next(one for one in view.replicas if one.replica == replica)


def test_another_server_at_a_dead_replicas_port_fails_no_row(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    options = {"latency_s": 0.05, "slots": 8}
    asked = {"replicas": 2, "min_ready": 2, "engine_options": options, "watchdog": QUICK}
    swarm = lifecycle.up(launch_of(**asked, port=27_000))  # where no other test's engine looks
    service = JobService()
    service.submit(request(tmp_path, 3000, max_concurrency=12))
    until(lambda: service.status("mine").rows_done > 100)
    dead = report(swarm.paths, 1)
    assert dead.watchdog_pid is not None
    assert dead.engine_pid is not None
    assert dead.url is not None
    engine = psutil.Process(dead.engine_pid)
    os.kill(dead.watchdog_pid, signal.SIGKILL)
    os.kill(dead.engine_pid, signal.SIGKILL)
    until(lambda: not engine.is_running())
    with stranger(dead.url) as server:
        ended = service.wait("mine")
        assert "/v1/models" in server.asked  # whether it is one of the swarm's
        assert server.turned_away == 0
    assert (ended.status, ended.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert ended.rows_done == 3000
