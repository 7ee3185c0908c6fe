"""How a run reaches its endpoint: one client, one gate, one retry layer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from domyn_swarm.batch.asking import RetryPolicy
from domyn_swarm.batch.background import beside
from domyn_swarm.batch.connections import Connections
from domyn_swarm.batch.dispatch import Dispatch
from domyn_swarm.batch.gate import ALONE, EndpointGate
from domyn_swarm.batch.replica_names import Names
from domyn_swarm.batch.replicas import ReplicaClient, Replicas
from domyn_swarm.batch.session import RequestSession
from domyn_swarm.batch.steering import Saturation, fate_reader, meter_reader, metrics_reader
from domyn_swarm.batch.suspects import Suspects
from domyn_swarm.batch.tally import Tally
from domyn_swarm.batch.traffic import Traffic
from domyn_swarm.batch.worth import Worth
from domyn_swarm.model import Dispatching
from domyn_swarm.net.http import HttpClient, open_client
from domyn_swarm.net.openai import ClientAddress, OpenAIClient


@dataclass(frozen=True)
class Meter:
    """Who knows how busy all engines behind the endpoint are."""

    locate: Callable[[], str]
    key: str
    recorded: Callable[[], bytes | None] = lambda: None  # its last view of the replicas, on disk


@dataclass(frozen=True)
class EndpointAccess:
    """Where requests go. `locate` is asked again whenever nobody answers, or lets them in, and
    `key_now` with it.
    """

    locate: Callable[[], str]
    key: str | None
    use_proxy: bool = False
    meter: Meter | None = None  # None: the endpoint's own /metrics, where it has them
    key_now: Callable[[], str | None] | None = None  # None: it does not change
    dispatch: Dispatching = "auto"  # which replica gets a request
    model: str | None = None  # of a swarm whose replicas have the same key
    admits: Callable[[], int | None] = lambda: None  # requests that it takes from this process
    ca_file: Callable[[], str | None] = lambda: None  # certificates to trust beside the system's
    fate: Callable[[], Awaitable[str | None]] | None = None  # see `EndpointGate`


@asynccontextmanager
async def open_session(
    access: EndpointAccess,
    policy: RetryPolicy,
    tally: Tally,
    notice: Callable[[str], None],
    suspects: Suspects | None = None,
    *,
    traffic: Traffic | None = None,
    worth: Worth | None = None,
) -> AsyncIterator[tuple[OpenAIClient, Saturation]]:
    """The client that a job is given, and by what its limits find themselves."""
    http = open_client(access.key, use_proxy=access.use_proxy, ca_file=access.ca_file())
    suspects = Suspects() if suspects is None else suspects
    key = access.key

    alone_said = False

    def on_state(paused: str | None) -> None:
        nonlocal alone_said
        before, tally.paused = tally.paused, paused
        if ALONE not in (before, paused):
            notice(paused or "the endpoint answers again; going on")
        elif not alone_said:  # it comes and goes
            alone_said = True
            notice(ALONE)

    def locate() -> str:
        nonlocal key
        if access.key_now is not None:
            with contextlib.suppress(OSError):  # it is being replaced
                key = access.key_now()
            http.use_key(key)
        return access.locate()

    def official() -> ClientAddress:
        return ClientAddress(gate.url, key, access.use_proxy, access.ca_file())

    meter, fates = access.meter, [access.fate] if access.fate else []
    asked = None if meter is None else open_client(meter.key, use_proxy=False)
    carrier: HttpClient = http
    replicas = None
    if meter is not None and asked is not None:
        fates.insert(0, fate_reader(asked, meter.locate))
        if access.model is not None:
            names = Names(asked, meter.locate, meter.recorded)
            worth = Worth(tally.dispatched) if worth is None else worth
            replicas = Replicas(http, names, notice, Dispatch(access.dispatch, worth))
            carrier = ReplicaClient(http, replicas, access.model)
    gate = EndpointGate(
        carrier,
        locate,
        on_state,
        suspects,
        knock_max_s=policy.knock_max_s,
        fates=fates,
        traffic=traffic,
        expected=bool(fates),  # those of a swarm
    )
    if meter is not None and asked is not None:
        gauges = meter_reader(asked, meter.locate)
    else:
        gauges = metrics_reader(http, lambda: gate.url)
    work = [
        gate.keep_knocking(),
        *([replicas.keep_looking(), replicas.dispatch.keep_measuring(http)] if replicas else []),
    ]
    try:
        connections = Connections(access.admits(), notice)
        session = RequestSession(carrier, gate, policy, tally, connections)
        async with beside(*work):
            placing = None if replicas is None else replicas.dispatch
            yield (
                OpenAIClient(session, official),
                Saturation(gauges, placing, lambda: connections.most),
            )
    finally:
        if asked is not None:
            await asked.close()
        await http.close()
