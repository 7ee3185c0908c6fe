"""What the endpoint program is told: everything but the keys, which it reads from their files."""

from __future__ import annotations

from pathlib import Path

from domyn_swarm.backends.watchdog_spec import heartbeat_s
from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.context import DeploymentContext
from domyn_swarm.planning.plan import DeploymentPlan

_HEARTBEATS_MISSED = 3
_STALE_AT_LEAST_S = 10.0


class EndpointSpec(Record):
    """The endpoint program's settings; the same for every model."""

    tag: str  # of the swarm: a view that another swarm of the same name left is not believed
    host: str  # to listen on and be reached at; empty: every interface, the node's own name
    port: int | None  # None: any free one
    replicas: int  # reports of others are refused; `scale` rewrites it
    stale_after_s: float  # a replica that has not reported for so long serves no more
    health_path: str  # of the engines
    metrics_path: str | None = None
    running_metric: str | None = None
    waiting_metric: str | None = None
    idle_timeout_s: float | None = None  # unused for so long, the swarm ends itself
    policy: str
    max_concurrent: int
    queue_size: int
    retries: int  # attempts per request, as the router counts (see `smg_router`)
    tls_cert: Path | None
    tls_key: Path | None
    api_key_file: Path
    collector_key_file: Path
    # From here on, of its metrics.
    metrics_key_file: Path | None = None  # None: nobody may scrape them
    textfile_dir: Path | None = None
    discovery_dir: Path | None = None
    model: str = ""
    engine: str = ""
    backend: str = ""


def build_endpoint_spec(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, *, host: str
) -> EndpointSpec:
    """The spec of a swarm's endpoint program."""
    endpoint = plan.backend_options.get("endpoint") or {}
    return EndpointSpec(
        tag=ctx.tag,
        host=host,
        port=endpoint.get("port"),
        replicas=plan.layout.replicas,
        stale_after_s=max(_STALE_AT_LEAST_S, _HEARTBEATS_MISSED * heartbeat_s(plan)),
        health_path=plan.watchdog.http_path or ctx.serving_spec.health_path,
        metrics_path=ctx.serving_spec.metrics_path,
        running_metric=ctx.serving_spec.running_metric,
        waiting_metric=ctx.serving_spec.waiting_metric,
        idle_timeout_s=plan.idle_timeout_s,
        api_key_file=paths.api_key,
        collector_key_file=paths.collector_key,
        metrics_key_file=paths.metrics_key,
        model=plan.model,
        engine=plan.engine,
        backend=plan.backend,
        **plan.metrics.model_dump(),
        **plan.router.model_dump(),
    )
