"""A swarm whose endpoint is dead for good: nothing begins there, and what asks it ends."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm import DomynLLMSwarm
from domyn_swarm.backends.endpoint.view import last_view, read_address
from domyn_swarm.backends.local.processes import alive
from domyn_swarm.errors import JobError, StateError, SwarmExists
from domyn_swarm.jobs import ChatCompletionJob, worker_program
from domyn_swarm.model import SwarmPhase
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.joining import SwarmJoining, Waiting
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of
from patience import limit_s, until

ROWS = pa.table({"prompt": [f"p{number}" for number in range(20_000)]})
ENDED = "the endpoint program has ended"


class AskingJob:
    """A job of this process on the swarm `demo`, under way."""

    def __init__(self, record: Path) -> None:
        self.error: BaseException | None = None
        self._record = record
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(lambda: record.exists() and record.read_text().count("\n") > 10)

    def _run(self) -> None:
        job = ChatCompletionJob(input_columns=["prompt"], max_concurrency=4, retries=1)
        try:
            DomynLLMSwarm.attach("demo").run(job, ROWS, progress=False)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def goes_on(self) -> None:
        """Wait until rows that are asked from now on are answered."""
        asked = self._record.read_text().count("\n")
        until(lambda: self._record.read_text().count("\n") > asked + 10)
        assert self.error is None

    def ended(self) -> str:
        """Why, once it has."""
        self._thread.join(limit_s())
        assert isinstance(self.error, JobError), self.error
        return str(self.error)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this process ask what became of their swarm as soon as nobody answers."""
    monkeypatch.setattr(worker_program, "_PATIENCE_S", 0.1)


def kill_endpoint(paths: SwarmPaths) -> None:
    address = read_address(paths)
    assert address is not None
    assert address.process is not None
    os.kill(address.process.pid, signal.SIGKILL)
    until(lambda: not alive(address.process))


def kill_replicas(paths: SwarmPaths) -> None:
    view = last_view(paths)
    assert view is not None
    for report in view.replicas:
        for pid in (report.watchdog_pid, report.engine_pid):
            assert pid is not None
            os.kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("impatient")
def test_a_swarm_whose_endpoint_is_dead_refuses_what_needs_it_and_ends_what_asks_it(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    record = tmp_path / "asked.jsonl"
    options = {"latency_s": 0.2, "record": str(record)}
    swarm = lifecycle.up(launch_of(replicas=2, min_ready=2, engine_options=options))
    job = AskingJob(record)
    kill_endpoint(swarm.paths)

    seen = SwarmService().status("demo")
    remedy = f"`domyn-swarm down demo && domyn-swarm up -c {swarm.paths.config}` starts it anew"
    assert (seen.observed, seen.detail) == ("failed", f"{ENDED}; {remedy}")
    assert (seen.replicas_ready, seen.endpoint) == (0, None)
    pq.write_table(ROWS, tmp_path / "in.parquet")
    request = JobRequest(
        swarm="demo",
        input=str(tmp_path / "in.parquet"),
        input_columns=("prompt",),
        output=str(tmp_path / "out.parquet"),
    )
    for refused in (
        lambda: JobService().submit(request),
        lambda: JobService().dry_run(request),
        lambda: DomynLLMSwarm.attach("demo").run(ChatCompletionJob(), ROWS),
        lambda: SwarmService().scale("demo", 3),
        lambda: SwarmService().endpoint("demo"),
    ):
        with pytest.raises(StateError, match=f"demo has failed.*{ENDED}") as caught:
            refused()
        assert "domyn-swarm down demo" in caught.value.hint
    assert JobService().list() == []
    with pytest.raises(SwarmExists, match=f"'demo' has failed: {ENDED}"):
        lifecycle.up(launch_of())
    with pytest.raises(SwarmExists, match=f"'demo' has failed: {ENDED}"):  # as `up` does
        SwarmJoining(SwarmStore.open()).up(launch_of(), Waiting())
    job.goes_on()  # with the replicas that it knows
    kill_replicas(swarm.paths)
    told = job.ended()
    assert f"The swarm has failed: {ENDED}" in told
    assert "job resume" in told

    joining = SwarmJoining(SwarmStore.open())
    again = joining.complete(launch_of(), Waiting()).swarm  # as `pool up` does
    assert again.record.tag != swarm.record.tag
    assert SwarmService().status("demo").observed == "ready"


@pytest.mark.usefixtures("impatient")
def test_a_job_that_down_does_not_reach_ends_with_its_swarm(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    record = tmp_path / "asked.jsonl"
    lifecycle.up(launch_of(engine_options={"latency_s": 0.2, "record": str(record)}))
    job = AskingJob(record)
    lifecycle.down("demo")
    assert "The swarm has ended: `domyn-swarm down` stopped it" in job.ended()
    with pytest.raises(StateError, match="demo is stopped and has no endpoint"):
        SwarmService().endpoint("demo")
    assert SwarmStore.open().swarm("demo").phase is SwarmPhase.STOPPED
