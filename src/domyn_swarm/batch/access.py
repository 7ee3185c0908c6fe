"""How a run reaches its endpoint: one client, one gate, one retry layer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from domyn_swarm.batch.replicas import ReplicaClient, Replicas
from domyn_swarm.batch.session import EndpointGate, RequestSession, RetryPolicy
from domyn_swarm.batch.sink import beside
from domyn_swarm.batch.steering import ReadGauges, meter_reader, metrics_reader
from domyn_swarm.batch.tally import Tally
from domyn_swarm.net.http import HttpClient, open_client
from domyn_swarm.net.openai import OpenAIClient


@dataclass(frozen=True)
class Meter:
    """Who knows how busy all engines behind the endpoint are."""

    locate: Callable[[], str]
    key: str


@dataclass(frozen=True)
class EndpointAccess:
    """Where requests go. `locate` is asked again whenever nobody answers."""

    locate: Callable[[], str]
    key: str | None
    use_proxy: bool = False
    meter: Meter | None = None  # None: the endpoint's own /metrics, where it has them
    model: str | None = None  # of a swarm whose replicas have the same key


@asynccontextmanager
async def open_session(
    access: EndpointAccess, policy: RetryPolicy, tally: Tally, notice: Callable[[str], None]
) -> AsyncIterator[tuple[OpenAIClient, ReadGauges]]:
    """The client that a job is given, and what its endpoint is asked for its load."""
    http = open_client(access.key, use_proxy=access.use_proxy)

    def on_state(paused: str | None) -> None:
        tally.paused = paused
        notice(paused or "the endpoint answers again; going on")

    gate = EndpointGate(http, access.locate, policy, on_state)
    asked = None if access.meter is None else open_client(access.meter.key, use_proxy=False)
    carrier: HttpClient = http
    work = [gate.keep_knocking()]
    if access.meter is not None and asked is not None:
        gauges = meter_reader(asked, access.meter.locate)
        if access.model is not None:
            replicas = Replicas(asked, access.meter.locate)
            carrier = ReplicaClient(http, replicas, access.model)
            work.append(replicas.keep_looking())
    else:
        gauges = metrics_reader(http, lambda: gate.url)
    try:
        session = RequestSession(carrier, gate, policy, tally)
        async with beside(*work):
            yield OpenAIClient(session, lambda: (gate.url, access.key)), gauges
    finally:
        if asked is not None:
            await asked.close()
        await http.close()
