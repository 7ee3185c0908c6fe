"""What a router is to the endpoint program: a child process that follows a manifest file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from domyn_swarm.backends.endpoint.activity import Activity
from domyn_swarm.model import Histogram, Record

_OWN_FILES = 64  # of the program itself, and clients that are turned away or look at it
_FILES_PER_REPLICA = 2  # to look at their health and load


class RouterSettings(Record):
    """How one router process listens and distributes. Names the key's file, holds no key."""

    host: str  # to listen on
    port: int
    metrics_port: int
    manifest: Path
    api_key_file: Path
    health_path: str
    policy: str
    max_concurrent: int
    queue_size: int
    retries: int
    tls_cert: Path | None
    tls_key: Path | None
    shutdown_grace_s: int


class Admission(NamedTuple):
    """How many requests a router takes at once."""

    max_concurrent: int  # that it has given to replicas
    queue_size: int  # that wait

    @property
    def total(self) -> int:
        """Those that are not turned away."""
        return self.max_concurrent + self.queue_size


def admission(wanted: Admission, files: int, replicas: int) -> Admission:
    """What a router can take of what is wanted when it may have so many files open.

    A request holds one while it waits, and a second one, to its replica, once it does not.
    """
    free = max(3, files - _OWN_FILES - _FILES_PER_REPLICA * replicas)
    if 2 * wanted.max_concurrent + wanted.queue_size <= free:
        return wanted
    concurrent = min(wanted.max_concurrent, free // 3)
    return Admission(concurrent, min(wanted.queue_size, free - 2 * concurrent))


def files_needed(wanted: Admission, replicas: int) -> int:
    """How many files a router needs open for that."""
    return (
        2 * wanted.max_concurrent + wanted.queue_size + (_OWN_FILES + _FILES_PER_REPLICA * replicas)
    )


class RouterFigures(NamedTuple):
    """What a router has counted since it started."""

    given: Mapping[str, float]  # requests, by the URL of the replica that got them
    in_flight: Mapping[str, float]  # of those, now
    responses: Mapping[tuple[str, str], float]  # by path and status
    durations: Mapping[tuple[str, str], Histogram]  # seconds, by operation and model


class Router(Protocol):
    """A router program. It asks clients for the key and sends it on to the replicas.

    Its process must die with the endpoint program, and end on SIGTERM within the grace period
    after letting requests in flight finish.
    """

    settle_s: float  # it follows a changed manifest within so many seconds

    def argv(self, settings: RouterSettings) -> Sequence[str]:
        """The command of the process; no secrets."""

    def manifest(self, urls: Sequence[str]) -> str:
        """The manifest that lists these replicas."""

    def activity(self, metrics: str) -> Activity:
        """What its metrics (Prometheus text) say of its use."""

    def figures(self, metrics: str) -> RouterFigures:
        """What else they say."""
