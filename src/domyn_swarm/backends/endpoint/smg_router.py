"""The smg router, as a child of the endpoint program: see `smg_process`.

Facts, measured with smg 1.13.0 against servers that count what they execute:

- Its `api_key` is asked of clients (401) and sent on to the replicas. `/v1/models`, `/health`,
  `/readiness` and `/get_server_info` (passed on to a replica) are answered without it, and no
  option of this version closes them: who reaches the port can learn what is served, not use it.
- `retry_max_retries` counts attempts. At 1 every reply of a living replica passes through once,
  whatever its status; a request whose connection breaks before a reply is sent once more to the
  same replica, and then answered 500 with the code `call_upstream_request_error` or
  `call_upstream_connection_failed`: what was in flight as a replica's process died gets the one
  or the other, what could not connect afterwards the second; both name its URL. A 401 or 403 of a
  replica passes through with the header that names it. At 2 a lost replica costs no failed
  request (0 of 384), but 408, 429, 500, 502, 503 and 504 of a living one are repeated too, 50 ms
  later, whatever `Retry-After` says; a replica's `retryable_status_codes` change nothing. One
  layer alone may repeat what a row caused, and that is the driver: 1 is the default.
- The circuit breaker counts 5xx replies that rows caused: ten of them take a good replica out,
  sixty take out all. Off; a dead replica leaves by the manifest, within 30 ms of its change.
- Its own look at a replica's health takes it out after two that got no answer in time, and leaves
  it out: after 12 s of a /health that takes 8 s, at the 5 s that are its default. It is given a
  minute: who is dead or stuck leaves by the manifest, long before that.
- Overload protection leaves busy replicas out, which is what batch work makes of all of them. Off.
- Load monitoring stays on, the policies need it. Requests that take long shed nothing.
- A replica that leaves the manifest drains: no new request after 30 ms, those in flight finish;
  it joins again within two seconds.
- Without any replica known the reply is 404 `model_not_found`; with replicas that are all
  unhealthy or leaving it is 503 `no_available_workers`.
- It reads requests into types of its own and writes them anew: fields are dropped, added, refused
  (`batch/plain_requests`, and the table in `docs/client.md`).
- At log level info every request is logged: warn.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from domyn_swarm.backends.endpoint.activity import Activity
from domyn_swarm.backends.endpoint.router import RouterFigures, RouterSettings

_DAY_S = 86_400  # requests end by the clients' own time-outs, not by the router's
_PROGRAM = "domyn_swarm.backends.endpoint.smg_process"
_POSTS = re.compile(r'^smg_http_requests_total\{method="POST"[^}]*\} (\S+)', re.M)
_ACTIVE = re.compile(r"^smg_worker_requests_active\{[^}]*\} (\S+)", re.M)


class SmgRouter:
    """See `Router`."""

    settle_s = 1.5

    def argv(self, settings: RouterSettings) -> Sequence[str]:
        """See `Router.argv`."""
        told = json.dumps(router_arguments(settings))
        key_file = str(settings.api_key_file)
        return [sys.executable, "-m", _PROGRAM, str(os.getpid()), key_file, told]

    def manifest(self, urls: Sequence[str]) -> str:
        """See `Router.manifest`."""
        return json.dumps({"version": 1, "workers": [{"url": url} for url in urls]}, indent=2)

    def activity(self, metrics: str) -> Activity:
        """See `Router.activity`. Requests for answers are all POST; the metric of a request that is
        being answered belongs to its replica.
        """
        return Activity(
            requests=sum(map(float, _POSTS.findall(metrics))),
            in_flight=sum(map(float, _ACTIVE.findall(metrics))),
        )

    def figures(self, metrics: str) -> RouterFigures:
        """See `Router.figures`."""
        from domyn_swarm.backends.endpoint.smg_figures import read_figures

        return read_figures(metrics)


def router_arguments(settings: RouterSettings) -> dict[str, Any]:
    """The router's settings but for the key, each one that matters to batch work stated."""
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
