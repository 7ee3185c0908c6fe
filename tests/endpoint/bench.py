"""Real watchdogs, engines, collectors and endpoint programs, and what they leave behind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from domyn_swarm import watchdog
from domyn_swarm.backends.endpoint import connections
from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.view import (
    CollectorView,
    EndpointAddress,
    read_address,
    read_view,
)
from domyn_swarm.model import ProcessId
from domyn_swarm.paths import SwarmPaths, write_private
from patience import limit_s, until

ENGINE = Path(__file__).with_name("engine_program.py")
API_KEY = "the-clients-key"
COLLECTOR_KEY = "the-collectors-key"


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Replica:
    """One watchdog and the engine it starts."""

    index: int
    spec_path: Path
    control: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Replica:
        with self.log.open("ab") as output:
            argv = [sys.executable, watchdog.__file__, str(self.spec_path)]
            self.process = subprocess.Popen(argv, stdout=output, stderr=output)
        return self

    def tell(self, name: str, value: object) -> Replica:
        temporary = self.control / f".{name}"
        temporary.write_text(str(value))
        temporary.replace(self.control / name)
        return self

    def lines(self, name: str) -> list[str]:
        path = self.control / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def starts(self) -> list[int]:
        return [int(line.split()[0]) for line in self.lines("starts")]

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(limit_s())


class CollectorThread:
    """A collector without a router, in this process."""

    def __init__(self, paths: SwarmPaths, spec: EndpointSpec) -> None:
        self._paths, self._spec = paths, spec
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._stop = asyncio.Event()
        self.url = ""
        started: Future[None] = Future()
        self._served = asyncio.run_coroutine_threadsafe(self._serve(started), self._loop)
        started.result(limit_s())

    async def _serve(self, started: Future[None]) -> None:
        collector = Collector(self._spec, self._paths, SmgRouter().manifest, settle_s=0.3)
        runner = web.AppRunner(collector.app())
        await runner.setup()
        server, port = await connections.serve(runner, "127.0.0.1")
        self.url = f"http://127.0.0.1:{port}"
        process = ProcessId(pid=1, started_at=-1.0)
        address = EndpointAddress(url=self.url, collector_url=self.url, node="n", process=process)
        write_private(self._paths.endpoint, address.model_dump_json())
        files = asyncio.create_task(collector.keep_files())
        started.set_result(None)
        await self._stop.wait()
        files.cancel()
        await asyncio.wait([files])
        server.close()
        await runner.cleanup()
        await collector.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._served.result(limit_s())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Bench:
    """A swarm's folder with keys in it, and everything a test starts there."""

    paths: SwarmPaths
    scratch: Path
    replicas: list[Replica] = field(default_factory=list)
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    collectors: list[CollectorThread] = field(default_factory=list)

    def replica(self, index: int = 0, **changes: Any) -> Replica:
        control = self.scratch / f"control-{index}"
        control.mkdir()
        first = {"path": "/v1/chat/completions", "body": {"messages": [{"content": "first"}]}}
        spec: dict[str, Any] = {
            "replica": index,
            "host": "127.0.0.1",
            "port_from": 21_000,
            "argv": [sys.executable, str(ENGINE), "{host}", "{port}", str(control)],
            "env": {},
            "key_env": "ENGINE_KEY",
            "key_file": str(self.paths.api_key),
            "collector_key_file": str(self.paths.collector_key),
            "endpoint_file": str(self.paths.endpoint),
            "engine_log": str(self.paths.engine_log(index)),
            "health_path": "/health",
            "metrics_path": "/metrics",
            "running_metric": "running",
            "waiting_metric": "waiting",
            "progress_metrics": ["tokens"],
            "reported_metrics": {
                "requests_running": "running",
                "requests_waiting": "waiting",
                "generated_tokens": "tokens",
            },
            "first_request": first,
            "failure_patterns": [],
            "probe_interval": 0.2,
            "startup_probe_interval": 0.1,
            "http_timeout": 0.5,
            "readiness_timeout": limit_s(),
            "quiet_seconds": 0.5,
            "restart_policy": "on-failure",
            "unhealthy_restart_after": 1.5,
            "max_restarts": 3,
            "early_deaths": None,
            "restart_backoff_initial": 0.1,
            "restart_backoff_max": 0.4,
            "kill_grace_seconds": 1.0,
            "drain_seconds": 4.0,
            "progress_timeout": None,
            "ray": None,
            "heartbeat_seconds": 0.3,
            "final_report_seconds": limit_s(),
            "orphaned_seconds": None,
        }
        path = self.paths.watchdog_spec(index)
        write_private(path, json.dumps({**spec, **changes}))
        made = Replica(index, path, control, self.scratch / f"watchdog-{index}.log")
        self.replicas.append(made)
        return made

    def endpoint_spec(self, **changes: Any) -> EndpointSpec:
        fields: dict[str, Any] = {
            "tag": "the-tag",
            "host": "127.0.0.1",
            "port": None,
            "replicas": 3,
            "stale_after_s": 2.0,
            "health_path": "/health",
            "policy": "least_load",
            "max_concurrent": 4096,
            "queue_size": 4096,
            "retries": 1,
            "tls_cert": None,
            "tls_key": None,
            "api_key_file": self.paths.api_key,
            "collector_key_file": self.paths.collector_key,
        }
        return EndpointSpec.model_validate({**fields, **changes})

    def start_collector(self, **changes: Any) -> CollectorThread:
        self.collectors.append(CollectorThread(self.paths, self.endpoint_spec(**changes)))
        return self.collectors[-1]

    def start_endpoint(self, **changes: Any) -> subprocess.Popen[bytes]:
        write_private(self.paths.endpoint_spec, self.endpoint_spec(**changes).model_dump_json())
        argv = [sys.executable, "-m", "domyn_swarm.backends.endpoint", str(self.paths.root)]
        with (self.scratch / "endpoint.log").open("ab") as output:
            self.programs.append(subprocess.Popen(argv, stdout=output, stderr=output))
        return self.programs[-1]

    def address(self) -> EndpointAddress:
        found = until(lambda: read_address(self.paths))
        assert isinstance(found, EndpointAddress)
        return found

    def view(self) -> CollectorView | None:
        return read_view(self.paths)

    def state(self, index: int = 0) -> str:
        view = self.view()
        for report in view.replicas if view else ():
            if report.replica == index:
                return report.state.value
        return "unreported"

    def until_state(self, state: str, index: int = 0) -> None:
        until(lambda: self.state(index) == state, every_s=0.03)

    def end(self) -> None:
        for collector in self.collectors:
            collector.end()
        processes = [one.process for one in self.replicas if one.process] + self.programs
        mine = [child for one in processes for child in _family(one.pid)]
        for one in processes:
            if one.poll() is None:
                one.send_signal(signal.SIGCONT)
                one.kill()
            one.wait(limit_s())
        try:
            until(lambda: not any(runs(one.pid) for one in mine), every_s=0.02)
        finally:
            left = [one for one in mine if runs(one.pid)]
            for one in left:
                one.kill()
            assert not left, f"processes outlived their parents: {left}"


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
