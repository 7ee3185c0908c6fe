"""Converts observations of a run into input for its limits, and the limits into slots and
shares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from domyn_swarm.batch.outcomes.tally import Replies, Tally
from domyn_swarm.batch.run.dispatch import AtReplica, Capacity
from domyn_swarm.batch.run.request_limits import (
    MOST_IN_ALL,
    WINDOW_S,
    Limits,
    Loads,
    ReplicaLoad,
    Sight,
)
from domyn_swarm.engine_load import EngineLoad, MetricsReader, Reading
from domyn_swarm.errors import JobError
from domyn_swarm.net.http import HttpClient
from domyn_swarm.net.request_errors import NOT_JSON, RequestError

_T = TypeVar("_T")

_SAMPLE_S = WINDOW_S / 4
_ASK_S = 2 * WINDOW_S  # between two polls of the gauges
_ANY_ENGINE = MetricsReader(
    {
        "running": [
            *("vllm:num_requests_running", "llamacpp:requests_processing"),
            "sglang:num_running_reqs",
        ],
        "waiting": [
            *("vllm:num_requests_waiting", "llamacpp:requests_deferred"),
            "sglang:num_queue_reqs",
        ],
        "tokens": [
            *("vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"),
            "sglang:generation_tokens_total",
        ],
        "preemptions": ["vllm:num_preemptions_total"],
        "kv_usage": [
            *("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
        ],
    }
)


class Steered(Protocol):
    """An object with calls in flight."""

    def set_limit(self, limit: int) -> None:
        """Set the limit of calls in flight."""


class Placing(Protocol):
    """The component that chooses the replicas of a run's requests."""

    def at_replicas(self) -> Mapping[str, AtReplica]:
        """Requests now and in total, at each replica that may be sent to."""

    def set_capacities(self, capacities: Mapping[str, Capacity]) -> None:
        """Distribute requests in proportion to these; without any, all replicas are equal."""


class Placed:
    """A `Placing` that also counts the tokens from each replica."""

    def __init__(self, placing: Placing, replies: Replies) -> None:
        self._placing = placing
        self._replies = replies

    def at_replicas(self) -> Mapping[str, AtReplica]:
        """Requests and tokens, now and in total, at each replica that may be sent to."""
        found, shares = dict(self._placing.at_replicas()), self._replies.sums.replicas
        for url in found.keys() & shares.keys():
            found[url] = found[url]._replace(tokens=shares[url].completion_tokens)
        return found

    def set_capacities(self, capacities: Mapping[str, Capacity]) -> None:
        """Distribute requests in proportion to these; without any, all replicas are equal."""
        self._placing.set_capacities(capacities)


ReadLoads = Callable[[], Awaitable[Loads | None]]
"""The newest gauges, or None if they are unavailable or out of date."""


@dataclass(frozen=True)
class Saturation:
    """The measurements that a run's limits use."""

    read: ReadLoads
    placing: Placing | None = None  # None: requests go only through the endpoint
    most: Callable[[], int] = lambda: MOST_IN_ALL  # calls for whose requests there are connections


def metrics_reader(client: HttpClient, locate: Callable[[], str]) -> ReadLoads:
    """Gauges of an endpoint that is one engine: its own `/metrics`."""
    now = asyncio.get_running_loop().time
    before: Reading | None = None

    async def read() -> Loads | None:
        nonlocal before
        try:
            reply = await client.request("GET", f"{locate()}/metrics", None, 5.0)
        except RequestError:
            return None
        reading = _ANY_ENGINE.read(bytes(reply.body), now()) if reply.status == 200 else None
        if reading is None:
            return None
        load, before = reading.load(before), reading
        return Loads(load)

    return read


class _OfReplica(msgspec.Struct):
    url: str
    look: int
    running: float
    waiting: float
    tokens_s: float | None = None
    preemptions_s: float | None = None
    kv_usage: float | None = None


class _Metered(msgspec.Struct):
    running: float
    waiting: float
    answered: int
    tokens_s: float | None = None
    preemptions_s: float | None = None
    kv_usage: float | None = None
    each: list[_OfReplica] = []


def _load_of(one: _Metered | _OfReplica) -> EngineLoad:
    return EngineLoad(one.running, one.waiting, one.tokens_s, one.preemptions_s, one.kv_usage)


def meter_reader(client: HttpClient, locate: Callable[[], str]) -> ReadLoads:
    """Gauges of a swarm: its collector polls the engines, and adds up their gauges."""

    async def read() -> Loads | None:
        metered = await _collector_answer(client, locate, "/v1/gauges", _Metered)
        if metered is None or not metered.answered:
            return None
        each = {one.url: ReplicaLoad(one.look, _load_of(one)) for one in metered.each}
        return Loads(_load_of(metered), each)

    return read


async def _collector_answer(
    client: HttpClient, locate: Callable[[], str], path: str, kind: type[_T]
) -> _T | None:
    """The collector's answer; None: it does not answer, or refuses."""
    try:
        reply = await client.request("GET", f"{locate()}{path}", None, 5.0)
        return msgspec.json.decode(reply.body, type=kind) if reply.status == 200 else None
    except (RequestError, JobError, *NOT_JSON):
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
    """Why no replica of a swarm will serve again, by its collector; None: a replica may, as far as
    is known. A failed replica was restarted as often as its watchdog may.
    """

    async def read() -> str | None:
        view = await _collector_answer(client, locate, "/v1/replicas", _View)
        failed = [one for one in view.replicas if one.state == "failed"] if view else []
        if view is None or not view.wanted or len(failed) < view.wanted:
            return None
        first = failed[0]
        why = first.reason or "it ended"
        return f"The swarm has failed: all its replicas failed, replica {first.replica}: {why}"

    return read


async def steer(
    runner: Steered, tally: Tally, limits: Limits, saturation: Saturation, rows_per_call: int = 1
) -> None:
    """Keep a run's limits until cancelled."""
    now = asyncio.get_running_loop().time
    placing = saturation.placing

    def sight() -> Sight:
        return Sight(
            now(),
            tally.in_flight / rows_per_call,
            tally.rows_answered + tally.rows_failed,
            tally.turned_away,
            placing.at_replicas() if placing is not None else {},
            tally.replies.sums.completion_tokens,
        )

    limits.skip(sight())
    ask_at = now() + _ASK_S
    while True:
        await asyncio.sleep(_SAMPLE_S)
        loads = None
        if now() >= ask_at:
            loads = await saturation.read()
            tally.running = None if loads is None else loads.together.running
            tally.waiting = None if loads is None else loads.together.waiting
            ask_at = now() + _ASK_S
        if tally.paused is not None:
            limits.skip(sight())
        elif limits.observe(sight(), loads):
            capacities = limits.capacities
            tally.replica_limits = {url: int(one.limit) for url, one in capacities.items()}
            if placing is not None:
                placing.set_capacities(capacities)
            runner.set_limit(min(limits.total, saturation.most()))
