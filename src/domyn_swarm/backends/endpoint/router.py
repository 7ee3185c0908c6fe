"""The router: a child process of the endpoint program that follows a manifest file. smg is one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from domyn_swarm.backends.endpoint.supervision import Activity, RouterFigures
from domyn_swarm.engine_load import MetricsReader
from domyn_swarm.model import Record

# files of the program itself, and connections of clients that are rejected or ask for its state
_OWN_FILES = 64
_FILES_PER_REPLICA = 2  # connections for health checks and load


class RouterSettings(Record):
    """How one router process listens and distributes. Holds the path of the key's file, not the
    key.
    """

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
    """How many requests a router accepts at a time."""

    max_concurrent: int  # sent to replicas
    queue_size: int  # waiting

    @property
    def total(self) -> int:
        """Requests that are not rejected."""
        return self.max_concurrent + self.queue_size


def admission(wanted: Admission, files: int, replicas: int) -> Admission:
    """The part of the wanted admission that a router can accept with so many open files.

    A request holds one file while it waits, and a second one, to its replica, once it is sent.
    """
    free = max(3, files - _OWN_FILES - _FILES_PER_REPLICA * replicas)
    if 2 * wanted.max_concurrent + wanted.queue_size <= free:
        return wanted
    concurrent = min(wanted.max_concurrent, free // 3)
    return Admission(concurrent, min(wanted.queue_size, free - 2 * concurrent))


def files_needed(wanted: Admission, replicas: int) -> int:
    """How many open files a router needs for that."""
    return (
        2 * wanted.max_concurrent + wanted.queue_size + (_OWN_FILES + _FILES_PER_REPLICA * replicas)
    )


class Router(Protocol):
    """A router program. It checks the clients' key and forwards it to the replicas.

    Its process must die with the endpoint program, and on SIGTERM end within the grace period after
    letting requests in flight finish.
    """

    settle_s: float  # seconds within which it follows a changed manifest

    def argv(self, settings: RouterSettings) -> Sequence[str]:
        """The command of the process; no secrets."""

    def manifest(self, urls: Sequence[str]) -> str:
        """The manifest that lists these replicas."""

    def activity(self, metrics: str) -> Activity:
        """The router's activity, from its metrics (Prometheus text)."""

    def figures(self, metrics: str) -> RouterFigures:
        """The router's counters, from the same text."""


_DAY_S = 86_400  # requests end by the clients' own time-outs, not by the router's
_PROGRAM = "domyn_swarm.backends.endpoint.smg_process"
_COUNTED = MetricsReader(
    {
        "posts": ('smg_http_requests_total{method="POST"',),
        "in_flight": ("smg_worker_requests_active",),
        "health": ("smg_worker_health",),  # 1: the router sends requests to it
    }
)


class SmgRouter(Router):
    """The router `smg`."""

    settle_s = 1.5

    @override
    def argv(self, settings: RouterSettings) -> Sequence[str]:
        arguments = json.dumps(router_arguments(settings))
        key_file = str(settings.api_key_file)
        return [sys.executable, "-m", _PROGRAM, str(os.getpid()), key_file, arguments]

    @override
    def manifest(self, urls: Sequence[str]) -> str:
        return json.dumps({"version": 1, "workers": [{"url": url} for url in urls]}, indent=2)

    @override
    def activity(self, metrics: str) -> Activity:
        """Requests for answers are all POST; the metric of a request that is
        being answered belongs to its replica.
        """
        text = metrics.encode()
        found = _COUNTED.values(text)
        health = _COUNTED.by_label(text, "health", "worker")
        return Activity(
            requests=sum(found.get("posts", ())),
            in_flight=sum(found.get("in_flight", ())),
            usable=frozenset(url for url, healthy in health.items() if healthy == 1),
        )

    @override
    def figures(self, metrics: str) -> RouterFigures:
        from domyn_swarm.backends.endpoint.smg_figures import read_figures

        return read_figures(metrics)


def router_arguments(settings: RouterSettings) -> dict[str, Any]:
    """The router's settings without the key; each setting that matters to batch work is
    explicit.
    """
    return {
        "host": settings.host,
        "port": settings.port,
        "policy": settings.policy,
        "backend": "vllm",
        "discovery_provider": "file",
        "discovery_file": str(settings.manifest),
        "discovery_check_interval_secs": 1,
        "worker_startup_timeout_secs": 30,
        "worker_startup_check_interval": 1,
        "health_check_endpoint": settings.health_path,
        "health_check_interval_secs": 2,
        "health_check_timeout_secs": 60,
        "health_failure_threshold": 2,
        "health_success_threshold": 1,
        "retry_max_retries": max(1, settings.retries),
        "disable_circuit_breaker": True,
        "worker_overload_protection": False,
        "max_concurrent_requests": settings.max_concurrent,
        "queue_size": settings.queue_size,
        "queue_timeout_secs": _DAY_S,
        "request_timeout_secs": _DAY_S,
        "shutdown_grace_period_secs": settings.shutdown_grace_s,
        "prometheus_host": "127.0.0.1",
        "prometheus_port": settings.metrics_port,
        "server_cert_path": str(settings.tls_cert) if settings.tls_cert else None,
        "server_key_path": str(settings.tls_key) if settings.tls_key else None,
        "disable_tokenizer_autoload": True,
        "history_backend": "none",
        "log_level": "warn",
    }
