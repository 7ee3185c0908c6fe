"""How other programs learn the endpoint's address and the state of its replicas."""

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
    process: ProcessId | None = None  # None: it is no program of ours
    ca_file: Path | None = None  # certificates that clients trust, besides the system's
    open_files: Limits | None = None  # of that process
    admits: int | None = None  # requests at a time; more are rejected. None: not known


class CollectorView(Record):
    """The last report of every replica that has reported. Times are of the collector's clock."""

    replicas: tuple[ReplicaReport, ...]
    taken_at: datetime
    stale_after_s: float  # age after which a report is stale, judged at `taken_at`
    tag: str = ""  # of the swarm
    wanted: int | None = None  # number of replicas
    elastic: bool = False  # whether the size follows the work
    asked_for: tuple[int, ...] | None = None  # if elastic: the wanted ones; none: it is asleep


class ReplicaEvent(Record, forbid_unknown_fields=False):
    """A change of a replica's state, as the collector recorded it."""

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
    tag: str  # of the swarm; another one of the same name may have left the file
    by: Literal["itself", "down"] = "itself"
    reason: str
    at: datetime


def read_ended(paths: SwarmPaths, tag: str) -> Ended | None:
    """The reason why the swarm of this tag ended, if it did."""
    try:
        ended = Ended.model_validate_json(paths.ended.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return ended if ended.tag == tag else None


def read_address(paths: SwarmPaths) -> EndpointAddress | None:
    """Where the endpoint listens; None: it has not started to listen, or was shut down."""
    try:
        return EndpointAddress.model_validate_json(paths.endpoint.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def read_view(paths: SwarmPaths) -> CollectorView | None:
    """The collector's view; if it cannot be asked, the last view it wrote; None: neither exists.

    A written view ages by this machine's clock: the last state that a dead collector wrote must not
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
    """The last view that the collector wrote, whatever its age; None: it wrote none."""
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
    """The changes of the replicas' states since a moment, the oldest first; only the newest if
    there are many. The collector is asked; its file is opened only when it has shut down.
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
    from domyn_swarm.backends.endpoint.history import MOST_EVENTS, History

    if not paths.watchdog_db.exists():
        return []
    history = History(paths.watchdog_db)
    try:
        return history.read(moment, MOST_EVENTS)
    finally:
        history.close()
