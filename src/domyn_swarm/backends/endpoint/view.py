"""How other programs find the endpoint and learn of its replicas."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from domyn_swarm.model import ProcessId, Record, ReplicaReport, utc_now
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import http_json

_ASK_TIMEOUT_S = 3.0


class EndpointAddress(Record):
    """Where a swarm's endpoint listens: `serving/endpoint.json`, rewritten whenever it moves."""

    url: str  # for clients, without /v1
    collector_url: str | None = None  # None: the platform reports on the replicas
    node: str = ""
    process: ProcessId | None = None  # None: no program of ours


class CollectorView(Record):
    """The last report of every replica that has reported. Times are of the collector's clock."""

    replicas: tuple[ReplicaReport, ...]
    taken_at: datetime
    stale_after_s: float  # a report older than this at `taken_at` is not to be believed
    tag: str = ""  # of the swarm


class Ended(Record):
    """Why a swarm ended itself: `serving/ended.json`."""

    schema_version: Literal[1] = 1
    tag: str  # of the swarm; another one of the same name left it
    reason: str
    at: datetime


def read_ended(paths: SwarmPaths, tag: str) -> Ended | None:
    """Why the swarm of this tag ended itself, if it did."""
    try:
        ended = Ended.model_validate_json(paths.ended.read_text())
    except (OSError, ValueError):
        return None
    return ended if ended.tag == tag else None


def read_address(paths: SwarmPaths) -> EndpointAddress | None:
    """Where the endpoint listens; None: nowhere yet, or it was shut down."""
    try:
        return EndpointAddress.model_validate_json(paths.endpoint.read_text())
    except (OSError, ValueError):
        return None


def read_view(paths: SwarmPaths) -> CollectorView | None:
    """What the collector says; when it cannot be asked, the last view it wrote; None: neither.

    A written view goes on ageing by this machine's clock: what a dead collector last saw must not
    look fresh for ever.
    """
    return _asked(paths) or _written(paths)


def _asked(paths: SwarmPaths) -> CollectorView | None:
    address = read_address(paths)
    if address is None or address.collector_url is None:
        return None
    try:
        key = paths.collector_key.read_text().strip()
        url = f"{address.collector_url}/v1/replicas"
        return CollectorView.model_validate(http_json(url, key=key, timeout_s=_ASK_TIMEOUT_S))
    except (OSError, ValueError):
        return None


def _written(paths: SwarmPaths) -> CollectorView | None:
    try:
        view = CollectorView.model_validate_json(paths.replicas.read_text())
    except (OSError, ValueError):
        return None
    return view.model_copy(update={"taken_at": max(view.taken_at, utc_now())})
