"""How other programs find the endpoint and learn of its replicas."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from domyn_swarm.model import ProcessId, Record, ReplicaReport, utc_now
from domyn_swarm.open_files import Limits
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import http_json

_ASK_TIMEOUT_S = 3.0


class EndpointAddress(Record):
    """Where a swarm's endpoint listens: `serving/endpoint.json`, rewritten whenever it moves."""

    url: str  # for clients, without /v1
    collector_url: str | None = None  # None: the platform reports on the replicas
    node: str = ""
    process: ProcessId | None = None  # None: no program of ours
    ca_file: Path | None = None  # certificates that clients trust, beside the system's
    open_files: Limits | None = None  # of a process of ours on its node
    admits: int | None = None  # requests at once; those beyond are turned away. None: not known


class CollectorView(Record):
    """The last report of every replica that has reported. Times are of the collector's clock."""

    replicas: tuple[ReplicaReport, ...]
    taken_at: datetime
    stale_after_s: float  # a report older than this at `taken_at` is not to be believed
    tag: str = ""  # of the swarm
    wanted: int | None = None  # replicas
    elastic: bool = False  # the work decides how many
    asked_for: tuple[int, ...] | None = None  # then: which are wanted now; none: it is asleep


class ReplicaEvent(Record, forbid_unknown_fields=False):
    """A change of a replica's state, as the collector wrote it down."""

    reported_at: datetime
    replica: int
    state: str
    reason: str | None = None
    restarts: int = 0
    url: str | None = None
    node: str | None = None


class _History(Record):
    events: tuple[ReplicaEvent, ...]


class Ended(Record):
    """Why a swarm ended: `serving/ended.json`."""

    schema_version: Literal[1] = 1
    tag: str  # of the swarm; another one of the same name left it
    by: Literal["itself", "down"] = "itself"
    reason: str
    at: datetime


def read_ended(paths: SwarmPaths, tag: str) -> Ended | None:
    """Why the swarm of this tag ended, if it did."""
    try:
        ended = Ended.model_validate_json(paths.ended.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return ended if ended.tag == tag else None


def read_address(paths: SwarmPaths) -> EndpointAddress | None:
    """Where the endpoint listens; None: nowhere yet, or it was shut down."""
    try:
        return EndpointAddress.model_validate_json(paths.endpoint.read_text("utf-8"))
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
        key = paths.collector_key.read_text("utf-8").strip()
        url = f"{address.collector_url}/v1/replicas"
        return CollectorView.model_validate(http_json(url, key=key, timeout_s=_ASK_TIMEOUT_S))
    except (OSError, ValueError):
        return None


def last_view(paths: SwarmPaths) -> CollectorView | None:
    """The last view that the collector wrote, as old as it may be; None: it wrote none."""
    try:
        return CollectorView.model_validate_json(paths.replicas.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _written(paths: SwarmPaths) -> CollectorView | None:
    view = last_view(paths)
    if view is None:
        return None
    return view.model_copy(update={"taken_at": max(view.taken_at, utc_now())})


def read_history(paths: SwarmPaths, since: datetime) -> tuple[ReplicaEvent, ...]:
    """What the replicas went through since a moment, the oldest first; the newest when it is much.

    The collector tells; its file is opened only when it has shut down.
    """
    from urllib.parse import urlencode

    moment = since.astimezone(UTC).isoformat()
    address = read_address(paths)
    if address is None:
        return _History.model_validate({"events": _old_history(paths, moment)}).events
    try:
        key = paths.collector_key.read_text("utf-8").strip()
        url = f"{address.collector_url}/v1/history?{urlencode({'since': moment})}"
        return _History.model_validate(http_json(url, key=key, timeout_s=_ASK_TIMEOUT_S)).events
    except (OSError, ValueError):
        return ()


def _old_history(paths: SwarmPaths, moment: str) -> list[dict[str, Any]]:
    from domyn_swarm.backends.endpoint.history import EVENTS_TOLD, History

    if not paths.watchdog_db.exists():
        return []
    history = History(paths.watchdog_db)
    try:
        return history.read(moment, EVENTS_TOLD)
    finally:
        history.close()
