"""An elastic swarm of this machine: real programs, from asleep to asleep."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients import CHAT, HELLO, ask
from domyn_swarm.errors import StateError, SwarmExists
from domyn_swarm.model import JobHandle, JobProgress, JobStatus, SwarmPhase
from domyn_swarm.paths import JobPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.joining import SwarmJoining, Waiting
from domyn_swarm.swarm.launch import prepare
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import config, launch_of
from patience import limit_s, scaled, until

ELASTIC: dict[str, Any] = {"min": 0, "max": 3, "keep_s": 2.0}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    SwarmLifecycle(SwarmStore.open()).down("demo")


def bring_up(replicas: dict[str, Any], **keys: Any) -> SwarmService:
    made = config(replicas=replicas, **keys)
    SwarmLifecycle(SwarmStore.open()).up(prepare(made), timeout_s=limit_s())
    return SwarmService()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine starts a replica, clients are held until it is there."""
    monkeypatch.setitem(ELASTIC, "hold_s", limit_s())


def asleep() -> bool:
    seen = SwarmService().status("demo")
    return seen.asleep and seen.replicas == ()


def submit(folder: Path, rows: int) -> JobHandle:
    source = folder / "in.parquet"
    pq.write_table(pa.table({"prompt": [f"p{number}" for number in range(rows)]}), source)
    request = JobRequest(
        swarm="demo",
        input=str(source),
        input_columns=("prompt",),
        output=str(folder / "out.parquet"),
        max_concurrency=24,
    )
    return JobService().submit(request)


def test_a_job_wakes_it_and_its_tail_is_given_back(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    errors = [{"match": "^p(7|8)$", "held_by": str(held)}]
    options = {"latency_s": 0.2, "slots": 8, "errors": errors}
    service = bring_up(ELASTIC, engine_options=options)
    assert asleep()
    assert service.status("demo").phase is SwarmPhase.READY
    handle = submit(tmp_path, 200)
    until(lambda: service.status("demo").replicas_ready == 3)

    # Two rows take longer than all others: whoever has none of them is not kept for them.
    def in_the_tail() -> bool:
        text = JobPaths(Path(handle.job_dir)).progress.read_text("utf-8")
        return JobProgress.model_validate_json(text).rows_done >= 198

    until(in_the_tail)
    until(lambda: len(service.status("demo").replicas) <= 2)
    busy = service.status("demo")
    assert busy.replicas_ready >= 1
    assert (busy.replicas_min, busy.replicas_max) == (0, 3)
    held.unlink()
    done = JobService().wait(handle, timeout_s=limit_s())
    assert done.status is JobStatus.SUCCEEDED
    assert done.account is not None
    assert (done.account.requests, done.account.retries) == (200, 0)  # none was lost
    assert pq.read_table(tmp_path / "out.parquet").column("result").null_count == 0
    until(asleep)
    events = [(one.replica, one.state) for one in service.history("demo")]
    assert {state for _, state in events} <= {"starting", "ready", "draining", "exited"}
    assert sum(state == "ready" for _, state in events) == 3  # each was started once


def test_clients_are_held_and_all_answered() -> None:
    service = bring_up(ELASTIC, engine_options={"latency_s": 0.1})
    with ThreadPoolExecutor(8) as clients:
        for one in [clients.submit(ask) for _ in range(8)]:
            one.result()
    assert 1 <= service.status("demo").replicas_ready <= 3
    until(asleep)
    ask()


def test_a_client_that_waits_too_long_is_told_when_to_come_again() -> None:
    service = bring_up({**ELASTIC, "hold_s": 0.1}, engine_options={"start_s": scaled(3)})
    info = service.endpoint("demo")
    headers = {
        "authorization": f"Bearer {info.key_file.read_text('utf-8').strip()}",
        "content-type": "application/json",
    }
    asked = urllib.request.Request(info.url + CHAT, json.dumps(HELLO).encode(), headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=limit_s())
    assert refused.value.code == 503
    assert int(refused.value.headers["Retry-After"]) >= 5
    assert "asleep" in refused.value.read().decode()
    until(lambda: service.status("demo").replicas_ready == 1)  # it was woken all the same
    ask()


def test_what_it_is_not_asked() -> None:
    service = bring_up(ELASTIC)
    with pytest.raises(StateError, match="is elastic: it runs 0 to 3 replicas"):
        service.scale("demo", 2)
    joining, waiting = SwarmJoining(SwarmStore.open()), Waiting(timeout_s=limit_s())
    assert joining.up(launch_of(replicas=ELASTIC), waiting).launched is False
    assert joining.wait("demo", waiting).record.phase is SwarmPhase.READY
    with pytest.raises(SwarmExists, match=r"replicas is 3, not 5"):
        joining.up(launch_of(replicas={**ELASTIC, "max": 5}), waiting)
    with pytest.raises(SwarmExists, match=r"replicas.min is 0, not"):
        joining.up(launch_of(replicas=3), waiting)


def test_an_engine_that_fails_is_said_to_whoever_waits() -> None:
    service = bring_up(
        ELASTIC,
        engine_options={"fail_start": "CUDA out of memory"},
        watchdog={"max_restarts": 0, "restart_backoff_initial": 0.1, "probe_interval": 1},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask()
    assert "its replicas failed" in refused.value.read().decode()
    seen = service.status("demo")
    [one] = seen.replicas
    assert one.state == "failed"
    assert not seen.asleep
    assert "asleep" not in seen.detail
    assert "its replicas failed: " in seen.detail


def test_a_job_does_not_wait_for_a_swarm_whose_replicas_have_all_failed(tmp_path: Path) -> None:
    service = bring_up(
        {"min": 0, "max": 2},
        engine_options={"crash_after_requests": 3, "slots": 2},
        watchdog={"max_restarts": 0, "restart_backoff_initial": 0.1, "probe_interval": 1},
    )
    ended = JobService().wait(submit(tmp_path, 50), timeout_s=limit_s())
    assert ended.status is JobStatus.FAILED
    assert "all its replicas failed" in (ended.message or "")
    assert "its replicas failed: " in service.status("demo").detail


def test_a_swarm_that_sleeps_ends_when_nobody_has_used_it() -> None:
    service = bring_up(ELASTIC, idle_timeout_s=3.0)
    until(lambda: service.status("demo").phase is SwarmPhase.STOPPED)
