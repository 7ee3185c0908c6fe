"""Turns what a run sees into windows for the limiter, and its verdicts into slots."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from domyn_swarm.batch.limiter import Limiter, Window
from domyn_swarm.batch.tally import Tally
from domyn_swarm.errors import JobError
from domyn_swarm.net.errors import RequestError
from domyn_swarm.net.http import HttpClient

_T = TypeVar("_T")

WINDOW_S = 0.5
_LEAST_SETTLED = 8  # a throughput over fewer rows is noise
_LONGEST_S = 60.0
_GAUGES = re.compile(
    rb"^(vllm:num_requests_running|llamacpp:requests_processing|sglang:num_running_reqs"
    rb"|vllm:num_requests_waiting|llamacpp:requests_deferred|sglang:num_queue_reqs)"
    rb"(?:\{[^}]*\})? +([0-9.eE+]+)",
    re.MULTILINE,
)
_WAITING = (b"waiting", b"deferred", b"num_queue_reqs")


class _Metered(msgspec.Struct):
    running: float
    waiting: float
    answered: int


class Steered(Protocol):
    """What has calls in flight."""

    limit: int

    def set_limit(self, limit: int) -> None:
        """How many calls may be in flight from now on."""


class Gauges(NamedTuple):
    """Requests at the whole endpoint."""

    running: float
    waiting: float


ReadGauges = Callable[[], Awaitable[Gauges | None]]
"""The newest gauges, or None when they cannot be had or are too old to be believed."""


def parse_gauges(metrics: bytes) -> Gauges | None:
    """The gauges in a Prometheus text of vLLM, llama.cpp or SGLang; None when there are none."""
    running = waiting = 0.0
    found = _GAUGES.findall(metrics)
    for name, value in found:
        if name.endswith(_WAITING):
            waiting += float(value)
        else:
            running += float(value)
    return Gauges(running, waiting) if found else None


def metrics_reader(client: HttpClient, locate: Callable[[], str]) -> ReadGauges:
    """Gauges of an endpoint that is one engine: its own `/metrics`."""

    async def read() -> Gauges | None:
        try:
            reply = await client.request("GET", f"{locate()}/metrics", None, 5.0)
        except RequestError:
            return None
        return parse_gauges(bytes(reply.body)) if reply.status == 200 else None

    return read


def meter_reader(client: HttpClient, locate: Callable[[], str]) -> ReadGauges:
    """Gauges of a swarm: its collector asks engines, and makes what all have of what it hears."""

    async def read() -> Gauges | None:
        found = await _asked(client, locate, "/v1/gauges", _Metered)
        if found is None or not found.answered:
            return None
        return Gauges(found.running, found.waiting)

    return read


async def _asked(
    client: HttpClient, locate: Callable[[], str], path: str, kind: type[_T]
) -> _T | None:
    """What the collector answers; None: it cannot be asked, or refuses."""
    try:
        reply = await client.request("GET", f"{locate()}{path}", None, 5.0)
        return msgspec.json.decode(reply.body, type=kind) if reply.status == 200 else None
    except (RequestError, JobError, msgspec.DecodeError):
        return None


class _Replica(msgspec.Struct):
    replica: int
    state: str
    reason: str | None = None


class _View(msgspec.Struct):
    replicas: list[_Replica]
    wanted: int | None = None


def fate_reader(
    client: HttpClient, locate: Callable[[], str]
) -> Callable[[], Awaitable[str | None]]:
    """Why no replica of a swarm will serve again, by its collector; None: as far as it knows, one
    may. A replica that failed was restarted as often as its watchdog may.
    """

    async def read() -> str | None:
        view = await _asked(client, locate, "/v1/replicas", _View)
        failed = [one for one in view.replicas if one.state == "failed"] if view else []
        if view is None or not view.wanted or len(failed) < view.wanted:
            return None
        first = failed[0]
        why = first.reason or "it ended"
        return f"The swarm has failed: all its replicas failed, replica {first.replica}: {why}"

    return read


async def steer(runner: Steered, tally: Tally, limiter: Limiter, gauges: ReadGauges | None) -> None:
    """Judge one window after the other until cancelled."""
    while True:
        window, reading = await _observe(tally, gauges)
        tally.running, tally.waiting = reading or (None, None)
        if tally.paused is None:
            runner.set_limit(limiter.judge(window))


async def _observe(tally: Tally, gauges: ReadGauges | None) -> tuple[Window, Gauges | None]:
    """One window: long enough that its throughput means something."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    settled, turned_away = tally.rows_answered + tally.rows_failed, tally.turned_away
    in_flight = []
    while True:
        await asyncio.sleep(WINDOW_S / 4)
        in_flight.append(tally.in_flight)
        elapsed = loop.time() - began
        done = tally.rows_answered + tally.rows_failed - settled
        enough = max(_LEAST_SETTLED, 2 * in_flight[-1])
        if elapsed >= _LONGEST_S or (elapsed >= WINDOW_S and done >= enough):
            break
        if gauges is not None and elapsed >= 2 * WINDOW_S:
            break
    reading = await gauges() if gauges is not None else None
    window = Window(
        loop.time() - began,
        tally.rows_answered + tally.rows_failed - settled,
        tally.turned_away - turned_away,
        sum(in_flight) / len(in_flight),
        *(reading or (None, None)),
    )
    return window, reading
