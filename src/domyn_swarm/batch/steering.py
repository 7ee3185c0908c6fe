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
_METRICS = {
    "running": (
        *(b"vllm:num_requests_running", b"llamacpp:requests_processing"),
        b"sglang:num_running_reqs",
    ),
    "waiting": (
        *(b"vllm:num_requests_waiting", b"llamacpp:requests_deferred"),
        b"sglang:num_queue_reqs",
    ),
    "tokens": (
        *(b"vllm:generation_tokens_total", b"llamacpp:tokens_predicted_total"),
        b"sglang:generation_tokens_total",
    ),
    "preemptions": (b"vllm:num_preemptions_total",),
}
_MEANINGS = {name: meaning for meaning, names in _METRICS.items() for name in names}
_LINES = re.compile(rb"^(%s)(?:\{[^}]*\})? +([0-9.eE+]+)" % b"|".join(_MEANINGS), re.MULTILINE)


class _Metered(msgspec.Struct):
    running: float
    waiting: float
    answered: int
    tokens_s: float | None = None
    preemptions_s: float | None = None


class Steered(Protocol):
    """What has calls in flight."""

    limit: int

    def set_limit(self, limit: int) -> None:
        """How many calls may be in flight from now on."""


class Gauges(NamedTuple):
    """Requests at the whole endpoint, and what its engines did lately."""

    running: float
    waiting: float
    tokens_s: float | None = None  # generated, per second; None: not known
    preemptions_s: float | None = None  # requests put back for want of KV memory, per second


ReadGauges = Callable[[], Awaitable[Gauges | None]]
"""The newest gauges, or None when they cannot be had or are too old to be believed."""


def parse_metrics(text: bytes) -> dict[str, float] | None:
    """What a Prometheus text of vLLM, llama.cpp or SGLang says of requests `running` and `waiting`,
    and has counted of `tokens` and `preemptions`; None when it has no such gauges.
    """
    found: dict[str, float] = {}
    for name, value in _LINES.findall(text):
        meaning = _MEANINGS[name]
        found[meaning] = found.get(meaning, 0.0) + float(value)
    return {"running": 0.0, "waiting": 0.0, **found} if found else None


def metrics_reader(client: HttpClient, locate: Callable[[], str]) -> ReadGauges:
    """Gauges of an endpoint that is one engine: its own `/metrics`."""
    now = asyncio.get_running_loop().time
    last: tuple[float, dict[str, float]] = (now(), {})

    async def read() -> Gauges | None:
        nonlocal last
        try:
            reply = await client.request("GET", f"{locate()}/metrics", None, 5.0)
        except RequestError:
            return None
        found = parse_metrics(bytes(reply.body)) if reply.status == 200 else None
        if found is None:
            return None
        (before_at, before), last = last, (now(), found)
        seconds = last[0] - before_at

        def rate(name: str) -> float | None:
            if seconds <= 0 or name not in before or found.get(name, -1.0) < before[name]:
                return None
            return (found[name] - before[name]) / seconds

        return Gauges(found["running"], found["waiting"], rate("tokens"), rate("preemptions"))

    return read


def meter_reader(client: HttpClient, locate: Callable[[], str]) -> ReadGauges:
    """Gauges of a swarm: its collector asks engines, and makes what all have of what it hears."""

    async def read() -> Gauges | None:
        found = await _asked(client, locate, "/v1/gauges", _Metered)
        if found is None or not found.answered:
            return None
        return Gauges(found.running, found.waiting, found.tokens_s, found.preemptions_s)

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
        tally.running = None if reading is None else reading.running
        tally.waiting = None if reading is None else reading.waiting
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
        *(reading or ()),
    )
    return window, reading
