"""What 1,000 replicas cost the collector: reports and listings over real HTTP.

    python benchmarks/collector.py [REPLICAS ...]

The collector runs in a process of its own, without a router, and the reports of its replicas are
sent by this one, each on a connection of its own as watchdogs do. Prints CPU of the collector's
process: for a report, and for a listing of the replicas that take requests, which every worker that
sends some straight to replicas asks for once a second.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from aiohttp import web

from domyn_swarm.backends.endpoint import connections
from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.paths import SwarmPaths, write_private

_KEY = "k"
_AT_ONCE = 16
_LISTINGS = 200  # as often as 200 workers ask in a second


async def serve(folder: Path, replicas: int) -> None:
    """Be the collector, until killed."""
    paths = SwarmPaths(folder)
    write_private(paths.api_key, _KEY)
    write_private(paths.collector_key, _KEY)
    spec = EndpointSpec(
        tag="t",
        host="127.0.0.1",
        port=None,
        replicas=replicas,
        stale_after_s=3600,
        health_path="/health",
        policy="least_load",
        max_concurrent=1024,
        queue_size=1024,
        retries=1,
        tls_cert=None,
        tls_key=None,
        api_key_file=paths.api_key,
        collector_key_file=paths.collector_key,
    )
    collector = Collector(spec, paths, SmgRouter().manifest, settle_s=1.5)
    runner = web.AppRunner(collector.app())
    await runner.setup()
    _, port = await connections.serve(runner, "127.0.0.1")
    print(port, flush=True)
    await collector.keep_files()


async def send(port: int, method: str, path: str, body: bytes = b"") -> None:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {_KEY}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    reply = await reader.read()
    writer.close()
    if not reply.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{path}: {reply[:200]!r}")


def report(replica: int, sequence: int) -> bytes:
    """As a watchdog sends it."""
    fields = {"replica": replica, "state": "ready", "url": f"http://node-{replica:04}:8000"}
    fields |= {"node": f"node-{replica:04}", "watchdog_pid": 1, "engine_pid": 2, "restarts": 0}
    fields |= {"requests_running": 3.0, "requests_waiting": 1.0, "generated_tokens": 1e6}
    fields |= {"incarnation": "i" * 32, "sampled_at": float(sequence), "sequence": sequence}
    return json.dumps(fields).encode()


async def cpu_s(
    process: psutil.Process, requests: list[tuple[str, str, bytes]], port: int
) -> float:
    """CPU of the collector while it answers these requests."""
    few = asyncio.Semaphore(_AT_ONCE)

    async def one(request: tuple[str, str, bytes]) -> None:
        async with few:
            await send(port, *request)

    before = process.cpu_times()
    await asyncio.gather(*map(one, requests))
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system


async def measure(replicas: int) -> None:
    """Print what they cost."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, __file__, "serve", folder, str(replicas)]
        program = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - nothing runs beside it yet
        try:
            assert program.stdout is not None
            port = int(program.stdout.readline())
            process = psutil.Process(program.pid)
            began = time.monotonic()
            first = [("POST", "/v1/report", report(number, 1)) for number in range(replicas)]
            used = await cpu_s(process, first, port)
            print(f"{replicas} replicas: all become ready: {used:.2f} s CPU, ", end="")
            print(f"{time.monotonic() - began:.1f} s")
            await asyncio.sleep(2)
            beats = [
                ("POST", "/v1/report", report(number % replicas, 2 + number // replicas))
                for number in range(1000)
            ]
            used = await cpu_s(process, beats, port)
            print(f"  a report: {used / len(beats) * 1e3:.2f} ms CPU")
            lists = [("GET", "/v1/replicas?for=requests", b"")] * _LISTINGS
            used = await cpu_s(process, lists, port)
            print(f"  a listing for requests: {used / _LISTINGS * 1e3:.2f} ms CPU")
        finally:
            program.kill()
            program.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        for count in map(int, sys.argv[1:] or ("10", "1000")):
            asyncio.run(measure(count))
