"""Where swarms and jobs run, and whether they can be asked from here.

Several hosts and clusters may share one home. What was started on another one is not visible here,
which does not mean that it has ended: its record stays unchanged, and operations on it are refused,
naming the place to run them.
"""

from __future__ import annotations

import socket
from datetime import datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from domyn_swarm.backends.endpoint.view import EndpointAddress, read_address
from domyn_swarm.backends.platforms import compute_backend, serving_backend
from domyn_swarm.backends.protocols import Located
from domyn_swarm.errors import PlatformError, RunsElsewhere, SwarmExists
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Location, Reach
from domyn_swarm.state import JobRecord, SwarmRecord
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.snapshot import Whereabouts

_log = get_logger(__name__)


def location_of_new_job(platform: str, swarm: LiveSwarm | None) -> Location:
    """Where a job will run that is submitted now.

    Raises:
        RunsElsewhere: it would run beside a swarm that is not here.
        PlatformError: the platform cannot be asked.
    """
    if swarm is not None and swarm.record.backend == platform:
        refuse_elsewhere(swarm.record, "start the job")
        if swarm.record.location is not None:
            return swarm.record.location
    options = {} if swarm is None else swarm.plan.backend_options
    return compute_backend(platform).location(options)


def reach(record: SwarmRecord | JobRecord) -> Reach:
    """Whether what a record describes can be asked from here.

    Raises:
        PlatformError: the platform cannot be asked now.
    """
    return _backend(record).reach(record.location)


def is_here(record: SwarmRecord | JobRecord) -> bool:
    """Whether the platform can be asked about it from here, and now; a failure is logged."""
    try:
        return reach(record) is Reach.HERE
    except PlatformError as error:
        _log.warning("%s cannot be asked for: %s", _name(record), error.message)
        return False


def is_elsewhere(record: SwarmRecord | JobRecord) -> bool:
    """Whether something is not over, as far as is known, and cannot be asked from here. A platform
    that does not answer now does not count as elsewhere.
    """
    if record.location is None or _is_over(record):
        return False
    try:
        return reach(record) is Reach.ELSEWHERE
    except PlatformError:
        return False


def whereabouts(
    record: SwarmRecord | JobRecord, known_at: datetime, *, ask: bool = True
) -> Whereabouts | None:
    """Where it runs, and the time of that knowledge; None: not recorded. Without `ask` no scheduler
    is asked for the name of its cluster.
    """
    location = record.location
    if location is None:
        return None
    costs_nothing = location.kind == "host"
    elsewhere = is_elsewhere(record) if ask or costs_nothing else None
    return Whereabouts(
        kind=location.kind,
        name=location.name,
        elsewhere=elsewhere,
        known_at=known_at if elsewhere else None,
    )


def refuse_elsewhere(record: SwarmRecord | JobRecord, to: str, hint: str = "") -> None:
    """Refuse an operation on something that cannot be asked from here.

    Args:
        record: of the swarm or job.
        to: the operation, as in "cannot … from here".
        hint: what to do if that place no longer exists.

    Raises:
        RunsElsewhere: it is elsewhere.
    """
    if is_elsewhere(record):
        where = place_of(record)
        hint = f" If it is gone for good: {hint}." if hint else ""
        raise RunsElsewhere(
            f"{_name(record)} runs on {where}, as far as is known: cannot {to} from here.",
            hint=f"Run the same command {_way_to(record)}.{hint}",
        )


def refuse_taken(record: SwarmRecord, why_lost: str | None = None) -> None:
    """Refuse to launch another swarm with the name of a live one; `why_lost`: why its endpoint will
    never answer again.

    Raises:
        SwarmExists: it is live, as far as is known.
    """
    name = record.name
    if is_elsewhere(record):
        raise SwarmExists(
            f"A swarm named {name!r} is {record.phase.value} on {place_of(record)}, as far as is "
            "known: it cannot be asked from here.",
            hint=f"Run `domyn-swarm down {name}` {_way_to(record)}, or choose another --name. "
            f"If it is gone for good: `domyn-swarm down {name} --forget`.",
        )
    if record.phase.live:
        state = f"is {record.phase.value}" if why_lost is None else f"has failed: {why_lost}"
        raise SwarmExists(
            f"A swarm named {name!r} {state}.",
            hint=f"Stop it with `domyn-swarm down {name}`, or choose another --name.",
        )


def place_of(record: SwarmRecord | JobRecord) -> str:
    """The recorded location as words."""
    location = record.location
    if location is None:
        return "an unknown place"
    another = location.kind == "host" and location.name == socket.gethostname()
    return f"{location} (another container, or before a restart)" if another else str(location)


def endpoint_address(swarm: LiveSwarm) -> EndpointAddress | None:
    """Where the endpoint of a swarm listens, if programs that are started here can reach it.

    Raises:
        RunsElsewhere: it listens on the loopback interface of another host.
        PlatformError: the platform cannot be asked.
    """
    if not is_elsewhere(swarm.record):
        return swarm.backend.address(swarm.handle)
    address = read_address(swarm.paths)
    if address is not None and _is_loopback(address.url):
        raise RunsElsewhere(
            f"The endpoint of {swarm.record.name} listens on {address.url} of "
            f"{place_of(swarm.record)}, and is not reached from here.",
            hint=f"Run the same command {_way_to(swarm.record)}.",
        )
    return address


def _way_to(record: SwarmRecord | JobRecord) -> str:
    """How to reach the place, as words that follow a command."""
    location = record.location
    ways = {"cluster": "on a login node of ", "workspace": "with a token of "}
    return "there" if location is None else f"{ways.get(location.kind, 'on ')}{location}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _backend(record: SwarmRecord | JobRecord) -> Located:
    if isinstance(record, SwarmRecord):
        return serving_backend(record.backend)
    return compute_backend(record.platform)


def _is_over(record: SwarmRecord | JobRecord) -> bool:
    return not record.phase.live if isinstance(record, SwarmRecord) else record.status.final


def _name(record: SwarmRecord | JobRecord) -> str:
    if isinstance(record, SwarmRecord):
        return f"The swarm {record.name}"
    return f"The job {record.job_id}"
