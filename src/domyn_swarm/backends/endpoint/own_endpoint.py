"""Our endpoint program, for the platforms that run it: builds its spec from a plan, and reads what
it publishes about its swarm. The program itself reads the spec and no plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from domyn_swarm.backends.endpoint.endpoint_spec import ElasticSpec, EndpointSpec
from domyn_swarm.backends.endpoint.view import (
    CollectorView,
    EndpointAddress,
    read_address,
    read_view,
)
from domyn_swarm.backends.ledger import entry_folder
from domyn_swarm.backends.watchdog_spec import heartbeat_s
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

if TYPE_CHECKING:
    from domyn_swarm.backends.protocols import ServingHandle


_HEARTBEATS_MISSED = 3
_STALE_AT_LEAST_S = 10.0
_FULL_AT = 64  # requests per replica, where the engine's own limit is not set


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
        elastic=_elastic(plan, ctx),
        stale_after_s=max(_STALE_AT_LEAST_S, _HEARTBEATS_MISSED * heartbeat_s(plan)),
        health_path=plan.watchdog.http_path or ctx.serving_spec.health_path,
        metrics_path=ctx.serving_spec.metrics_path,
        running_metric=ctx.serving_spec.running_metric,
        waiting_metric=ctx.serving_spec.waiting_metric,
        generated_tokens_metric=ctx.serving_spec.generated_tokens_metric,
        preemptions_metric=ctx.serving_spec.preemptions_metric,
        kv_cache_metric=ctx.serving_spec.kv_cache_metric,
        idle_timeout_s=plan.idle_timeout_s,
        api_key_file=paths.api_key,
        collector_key_file=paths.collector_key,
        metrics_key_file=paths.metrics_key,
        model=plan.model,
        engine=plan.engine,
        backend=plan.backend,
        gpus_per_replica=plan.layout.gpus_per_replica,
        **plan.metrics.as_fields(),
        **plan.router.as_fields(),
    )


def _elastic(plan: DeploymentPlan, ctx: DeploymentContext) -> ElasticSpec | None:
    if plan.elastic is None:
        return None
    full_at = ctx.serving_spec.max_num_seqs or _FULL_AT
    return ElasticSpec(
        full_at=full_at, ledger_entry=entry_folder(ctx.tag), **plan.elastic.model_dump()
    )


class OwnEndpoint:
    """The part of `ServingBackend` that is common to all platforms where router and collector are
    ours and watchdogs write the engines' logs into the swarm's folder.
    """

    supervised = True

    def address(self, handle: ServingHandle) -> EndpointAddress | None:
        """The address that the endpoint program has written; None: none yet."""
        return read_address(SwarmPaths(Path(handle.swarm_dir)))

    def view(self, handle: ServingHandle) -> CollectorView | None:
        """The collector's last view of the replicas; None: none can be read."""
        return read_view(SwarmPaths(Path(handle.swarm_dir)))

    def fetch_logs(
        self, handle: ServingHandle, replicas: Sequence[int], *, follow: bool = False
    ) -> None:
        """Fetches nothing: the logs are files of the swarm's folder."""
