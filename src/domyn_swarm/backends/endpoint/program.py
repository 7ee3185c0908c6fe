"""The endpoint program: the collector in this process, the router as its child."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp import web

from domyn_swarm import open_files
from domyn_swarm.backends.endpoint import connections, ports
from domyn_swarm.backends.endpoint.activity import Activity
from domyn_swarm.backends.endpoint.address import own_address
from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.router import (
    Admission,
    Router,
    RouterFigures,
    RouterSettings,
    admission,
    files_needed,
)
from domyn_swarm.backends.endpoint.scraping import Discovery, SwarmMetrics
from domyn_swarm.backends.endpoint.spec import EndpointSpec
from domyn_swarm.backends.endpoint.supervision import Platform, Supervision
from domyn_swarm.backends.endpoint.view import EndpointAddress
from domyn_swarm.errors import StateError
from domyn_swarm.identity import this_process
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, private_dir, write_private

_log = get_logger(__name__)

SHUTDOWN_GRACE_S = 5
_KILL_AFTER_S = SHUTDOWN_GRACE_S + 2.0
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 10.0
_STABLE_S = 60.0
_METRICS_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


def load_spec(paths: SwarmPaths) -> EndpointSpec:
    """The endpoint's spec in a swarm's folder.

    Raises:
        StateError: it is not there or cannot be used.
    """
    try:
        return EndpointSpec.model_validate_json(paths.endpoint_spec.read_text())
    except (OSError, ValueError) as error:
        raise StateError(
            f"Cannot use {paths.endpoint_spec}: {error}",
            hint="The endpoint program is started by `domyn-swarm up`, which writes this file.",
        ) from error


class Process(Protocol):
    """A program that was started, as `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""

    async def wait(self) -> int:
        """Its exit code, once it has ended."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


StartProcess = Callable[[Sequence[str], Path], Awaitable[Process]]
"""Starts a command whose output goes to the end of a file."""


async def _start_process(argv: Sequence[str], log: Path) -> Process:
    private_dir(log.parent)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )


class RouterProcess:
    """Keeps a router running until it is told to stop. `moved` is told the port it listens on."""

    def __init__(
        self,
        router: Router,
        spec: EndpointSpec,
        paths: SwarmPaths,
        moved: Callable[[int], None],
        start: StartProcess = _start_process,
    ) -> None:
        self._router = router
        self._start = start
        self._spec = spec
        self._paths = paths
        self._moved = moved
        self._host = spec.host or "0.0.0.0"  # noqa: S104 - no address given: every interface
        self._port = ports.router_port(self._host, spec.port)
        self._metrics_port = 0
        self._process: Process | None = None

    async def run(self) -> None:
        """Start it, again with back-off whenever it ends, until cancelled."""
        loop, backoff_s = asyncio.get_running_loop(), _BACKOFF_FIRST_S
        while True:
            self._moved(self._port)
            started = loop.time()
            code = await self._once()
            backoff_s = _BACKOFF_FIRST_S if loop.time() - started > _STABLE_S else backoff_s
            _log.warning("the router ended (code %s); next start in %g s", code, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)
            if not ports.is_free(self._host, self._port) and self._spec.port is None:
                self._port = ports.free_port(self._host)

    async def _once(self) -> int:
        self._metrics_port = ports.free_port("127.0.0.1")
        settings = RouterSettings(
            host=self._host,
            port=self._port,
            metrics_port=self._metrics_port,
            manifest=self._paths.router_manifest,
            shutdown_grace_s=SHUTDOWN_GRACE_S,
            **self._spec.model_dump(include=set(RouterSettings.model_fields) - {"host", "port"}),
        )
        self._process = await self._start(self._router.argv(settings), self._paths.router_log)
        _log.info("the router is process %d on port %d", self._process.pid, self._port)
        return await self._process.wait()

    async def activity(self) -> Activity | None:
        """What the router says of its use; None when it cannot be asked."""
        text = await self._metrics()
        return None if text is None else self._router.activity(text)

    async def figures(self) -> RouterFigures | None:
        """What it has counted; None when it cannot be asked."""
        text = await self._metrics()
        return None if text is None else await asyncio.to_thread(self._router.figures, text)

    async def _metrics(self) -> str | None:
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        try:
            async with (
                aiohttp.ClientSession(timeout=_METRICS_TIMEOUT) as session,
                session.get(url) as reply,
            ):
                return await reply.text()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def stop(self, *, at_work: bool) -> None:
        """SIGTERM, and SIGKILL when requests in flight do not end within the grace period; SIGKILL
        at once where there can be none.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_KILL_AFTER_S if at_work else 0):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def serve(
    paths: SwarmPaths, spec: EndpointSpec, router: Router, platform: Platform | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, or until the swarm has ended itself: only with a `platform`.

    Raises:
        PlatformError: the configured port is taken.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    collector = Collector(spec, paths, router.manifest, router.settle_s)
    discovery = Discovery(paths, spec.discovery_dir)

    def moved(port: int) -> None:
        address = _address(spec, port, collector_port)
        write_private(paths.endpoint, address.model_dump_json(indent=2))
        discovery.announce(f"{_name(spec)}:{collector_port}")

    process = RouterProcess(router, spec, paths, moved)
    metrics = SwarmMetrics(spec, paths, collector, process.figures)
    runner = web.AppRunner(collector.app(metrics.text))
    await runner.setup()
    host = spec.host or "0.0.0.0"  # noqa: S104 - no address given: every interface
    server, collector_port = await connections.serve(runner, host)
    tasks = [
        asyncio.create_task(process.run()),
        asyncio.create_task(collector.keep_files()),
        asyncio.create_task(collector.keep_checking()),
    ]
    if spec.textfile_dir is not None:
        tasks.append(asyncio.create_task(metrics.keep_textfile(spec.textfile_dir)))
    if platform is not None:
        supervision = Supervision(paths, platform, collector, process.activity)
        tasks.append(asyncio.create_task(supervision.run()))
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping")
    tasks[0].cancel()
    paths.endpoint.unlink(missing_ok=True)  # nobody shall take another program for us
    discovery.withdraw()
    await process.stop(at_work=collector.any_at_work())
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks)
    server.close()
    await runner.cleanup()
    await collector.close()
    for ended in done - {stopped}:
        ended.result()  # a bug ended it: say which


def _address(spec: EndpointSpec, port: int, collector_port: int) -> EndpointAddress:
    name = _name(spec)
    scheme = "https" if spec.tls_cert else "http"
    return EndpointAddress(
        url=f"{scheme}://{name}:{port}",
        collector_url=f"http://{name}:{collector_port}",
        node=socket.gethostname(),
        process=this_process(),
        ca_file=spec.tls_ca or spec.tls_cert,
        open_files=open_files.limits(),
        admits=Admission(spec.max_concurrent, spec.queue_size).total,
    )


def _name(spec: EndpointSpec) -> str:
    """Where others reach this node."""
    return spec.host or own_address()


def main(paths: SwarmPaths, platform: Platform | None = None) -> None:
    """Run the endpoint of the swarm in a folder until it is told to stop, or the swarm is.

    Raises:
        StateError: the folder holds no usable spec.
        PlatformError: the configured port is taken.
    """
    from domyn_swarm.backends.endpoint.smg_router import SmgRouter

    os.umask(0o077)
    asyncio.run(serve(paths, within_limits(load_spec(paths)), SmgRouter(), platform))


def within_limits(spec: EndpointSpec) -> EndpointSpec:
    """The spec with what the router can take by the files that it may have open, once this
    process's limit is raised, which the router's inherits. What is less than was asked for is said.
    """
    wanted = Admission(spec.max_concurrent, spec.queue_size)
    files = open_files.raise_limit(files_needed(wanted, spec.replicas))
    possible = admission(wanted, files, spec.replicas)
    if possible != wanted:
        _log.warning(
            "this node lets a process have %d files open (ulimit -Hn), too few for "
            "router.max_concurrent %d and queue_size %d: the endpoint takes %d requests at once, "
            "and %d more wait",
            *(files, *wanted, *possible),
        )
    return spec.model_copy(update=possible._asdict())
