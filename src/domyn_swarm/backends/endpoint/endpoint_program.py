"""The endpoint program: the collector in this process, the router as its child."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp
from aiohttp import web

from domyn_swarm import open_files
from domyn_swarm.backends.endpoint import address, connections
from domyn_swarm.backends.endpoint.announcement import Announcement
from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.doorkeeper import HOST as DOOR_HOST
from domyn_swarm.backends.endpoint.doorkeeper import RUNNER, Doorkeeper
from domyn_swarm.backends.endpoint.elasticity import Elasticity
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.platform_protocol import Platform
from domyn_swarm.backends.endpoint.router import (
    Admission,
    Router,
    RouterSettings,
    admission,
    files_needed,
)
from domyn_swarm.backends.endpoint.scraping import SwarmMetrics
from domyn_swarm.backends.endpoint.supervision import Activity, RouterFigures, Supervision
from domyn_swarm.errors import StateError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, private_dir
from domyn_swarm.restart_budget import RestartBudget, RestartPolicy

_log = get_logger(__name__)

SHUTDOWN_GRACE_S = 5
_KILL_AFTER_S = SHUTDOWN_GRACE_S + 2.0
_RESTARTS = RestartPolicy(first_pause_s=0.5, longest_pause_s=10.0, progress_s=60.0)
# Transient errors of a disk or system, after which the operation is repeated.
_PASSING = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE),
        *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM),
    }
)
_METRICS_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


def load_spec(paths: SwarmPaths) -> EndpointSpec:
    """The endpoint's spec in a swarm's folder.

    Raises:
        StateError: it is not there or cannot be used.
    """
    try:
        return EndpointSpec.model_validate_json(paths.endpoint_spec.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(
            f"Cannot use {paths.endpoint_spec}: {error}",
            hint="The endpoint program is started by `domyn-swarm up`, which writes this file.",
        ) from error


_T = TypeVar("_T")


class Process(Protocol):
    """A program that was started, as `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs."""

    async def wait(self) -> int:
        """Wait until it has ended and return its exit code."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


StartProcess = Callable[[Sequence[str], Path], Awaitable[Process]]
"""Starts a command; its output is appended to a file."""


async def _start_process(argv: Sequence[str], log: Path) -> Process:
    private_dir(log.parent)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )


class RouterProcess:
    """Keeps a router running until it is stopped. `moved` is called with each new port it listens
    on.
    """

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
        self._port = address.router_port(self._host, spec.port)
        self._metrics_port = 0
        self._process: Process | None = None
        self._unread = False  # whether it was logged that its metrics cannot be read

    async def run(self) -> None:
        """Start the router, and again with back-off whenever it ends, until cancelled."""
        loop, restarts = asyncio.get_running_loop(), RestartBudget(_RESTARTS)
        while True:
            self._moved(self._port)
            started = loop.time()
            how = await self._attempt()
            restarts.ran(loop.time() - started)
            pause_s = restarts.take() or 0.0
            _log.warning("the router %s; next start in %g s", how, pause_s)
            await asyncio.sleep(pause_s)
            if self._spec.port is None:
                self._port = self._free_port()

    def _free_port(self) -> int:
        """The port it had, so that clients find it again, unless another program has taken that."""
        try:
            taken = not address.is_free(self._host, self._port)
            return address.free_port(self._host) if taken else self._port
        except OSError as error:  # for example, no file descriptors are left
            _log.warning("no free port can be chosen: %s", error)
            return self._port

    async def _attempt(self) -> str:
        """Run the router once and return how it ended."""
        try:
            return f"ended (code {await self._once()})"
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            return f"cannot be started ({error})"

    async def _once(self) -> int:
        self._metrics_port = address.free_port("127.0.0.1")
        settings = RouterSettings(
            host=self._host,
            port=self._port,
            metrics_port=self._metrics_port,
            manifest=self._paths.router_manifest,
            shutdown_grace_s=SHUTDOWN_GRACE_S,
            **self._spec.model_dump(include=set(RouterSettings.field_names()) - {"host", "port"}),
        )
        self._process = await self._start(self._router.argv(settings), self._paths.router_log)
        _log.info("the router is process %d on port %d", self._process.pid, self._port)
        return await self._process.wait()

    async def activity(self) -> Activity | None:
        """The router's activity; None when it cannot be asked."""
        return await self._said(self._router.activity)

    async def figures(self) -> RouterFigures | None:
        """The router's counters; None when it cannot be asked."""
        return await self._said(self._router.figures)

    async def _said(self, read: Callable[[str], _T]) -> _T | None:
        text = await self._metrics()
        try:
            return None if text is None else await asyncio.to_thread(read, text)
        except (KeyError, ValueError) as error:  # a router of another version
            if not self._unread:
                _log.warning("the router's metrics cannot be read: %r", error)
            self._unread = True
            return None

    async def _metrics(self) -> str | None:
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        try:
            async with (
                aiohttp.ClientSession(timeout=_METRICS_TIMEOUT) as session,
                session.get(url) as reply,
            ):
                return await reply.text()
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeError):
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
    announcement = Announcement(paths, spec)
    process = RouterProcess(router, spec, paths, announcement.moved)
    metrics = SwarmMetrics(spec, paths, collector, process.figures)
    runner = web.AppRunner(collector.app(metrics.text))
    await runner.setup()
    host = spec.host or "0.0.0.0"  # noqa: S104 - no address given: every interface
    server, collector_port = await connections.serve(runner, host)
    first = [process.run(), announcement.keep(collector_port)]
    rest: list[Coroutine[None, None, object]] = [collector.keep_files(), collector.keep_checking()]
    if spec.textfile_dir is not None:
        rest.append(metrics.keep_textfile(spec.textfile_dir))
    size = await _elasticity(paths, spec, platform, collector, process)
    if platform is not None:
        rest.append(Supervision(paths, platform, collector, process.activity).run())
    if size is not None:
        rest.append(size.run())
    tasks = [asyncio.create_task(one) for one in [*first, *rest]]
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping")
    for task in tasks[: len(first)]:
        task.cancel()
    announcement.withdraw()
    await process.stop(at_work=collector.any_at_work())
    for task in [*tasks, stopped]:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    server.close()
    await runner.cleanup()
    if size is not None:
        await size.close()
    await collector.close()
    for error in ends:
        if isinstance(error, Exception):  # a bug ended it: log which
            raise error


class _Size:
    """Adjusts the number of replicas, and stands in for them while there are none."""

    def __init__(
        self, elasticity: Elasticity, doorkeeper: Doorkeeper | None, door: web.AppRunner | None
    ) -> None:
        self._elasticity = elasticity
        self._doorkeeper = doorkeeper
        self._door = door

    async def run(self) -> None:
        """Run until cancelled."""
        await self._elasticity.run()

    async def close(self) -> None:
        """Reject the requests that are held."""
        if self._door is not None:
            await self._door.cleanup()
        if self._doorkeeper is not None:
            await self._doorkeeper.close()


async def _elasticity(
    paths: SwarmPaths,
    spec: EndpointSpec,
    platform: Platform | None,
    collector: Collector,
    process: RouterProcess,
) -> _Size | None:
    """The elasticity of an elastic swarm; None: the swarm has a fixed number of replicas."""
    if spec.elastic is None or platform is None:
        return None
    if spec.elastic.least > 0:
        return _Size(Elasticity(paths, spec, platform, collector, process.activity), None, None)
    door = Doorkeeper(spec, spec.elastic.hold_s, collector.serving)
    elasticity = Elasticity(paths, spec, platform, collector, process.activity, door=door)
    door.expected_s, door.why = elasticity.expected_s, elasticity.why_not
    runner = web.AppRunner(door.app(), **RUNNER)
    await runner.setup()
    port = address.free_port(DOOR_HOST)
    await web.TCPSite(runner, DOOR_HOST, port).start()
    collector.stand_in = f"http://{DOOR_HOST}:{port}"
    return _Size(elasticity, door, runner)


def main(paths: SwarmPaths, platform: Platform | None = None) -> None:
    """Run the endpoint of the swarm in a folder until the program or the swarm is ended.

    Raises:
        StateError: the folder holds no usable spec.
        PlatformError: the configured port is taken.
    """
    from domyn_swarm.backends.endpoint.router import SmgRouter

    os.umask(0o077)
    asyncio.run(serve(paths, within_limits(load_spec(paths)), SmgRouter(), platform))


def within_limits(spec: EndpointSpec) -> EndpointSpec:
    """The spec, with the router's limits reduced to what this process's limit of open files allows
    once it is raised; the router inherits it. A reduction is logged.
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
