"""From a configuration to a plan: pure, the same for every backend."""

from __future__ import annotations

import shlex

from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.config.backends import LeptonConfig, SlurmConfig
from domyn_swarm.config.models import ElasticReplicas, default_gpus, most_replicas
from domyn_swarm.planning.plan import (
    DeploymentPlan,
    ElasticPlan,
    Layout,
    MetricsPlan,
    Resources,
    RouterPlan,
    WatchdogPlan,
    lay_out,
)


class PlanBuilder:
    """Builds the plan of one swarm."""

    def __init__(self, config: DomynLLMSwarmConfig, name: str) -> None:
        self._config = config
        self._name = name

    def build(self) -> DeploymentPlan:
        """Everything that follows from the configuration. Touches nothing.

        Raises:
            ConfigError: the layout is impossible.
        """
        config = self._config
        gpus, gpus_per_node = self._gpus()
        elastic = elastic_of(config.replicas)
        layout = lay_out(most_replicas(config.replicas), gpus, gpus_per_node)
        backend = config.backend.model_dump(mode="json")
        for asked in (backend.get("endpoint"), backend.get("job")):
            if asked is not None and "image" in asked and asked["image"] is None:
                asked["image"] = config.image
        platform_env = dict(backend.get("env", {}))
        if config.backend.type == "slurm":  # engines inherit what their task finds good on the node
            platform_env.pop("TMPDIR", None)
        return DeploymentPlan(
            name=self._name,
            backend=config.backend.type,
            engine=config.engine,
            model=config.model,
            revision=config.revision,
            args=tuple(shlex.split(config.args)) if isinstance(config.args, str) else config.args,
            engine_options=config.engine_options,
            min_ready=config.min_ready if elastic is None else min(config.min_ready, elastic.least),
            layout=layout,
            elastic=elastic,
            resources=Resources(cpus=config.cpus_per_task, memory_gb=config.memory_gb, gpus=gpus),
            image=config.image,
            port_from=config.port,
            env={**platform_env, **config.env},
            home_directory=config.home_directory,
            wait_endpoint_s=config.wait_endpoint_s,
            idle_timeout_s=config.idle_timeout_s,
            router=RouterPlan.model_validate(config.router.model_dump()),
            watchdog=self._watchdog(layout),
            metrics=MetricsPlan.model_validate(config.metrics.model_dump()),
            backend_options=backend,
        )

    def _gpus(self) -> tuple[int, int]:
        """Of a replica and of a node. On Lepton a node is what the resource shape has, and a
        replica has it to itself.
        """
        config = self._config
        gpus = config.gpus_per_replica
        whole = config.backend.endpoint.gpus if isinstance(config.backend, LeptonConfig) else None
        if gpus is None:
            gpus = default_gpus(config.engine)
            gpus = whole if whole and gpus else gpus
        return gpus, max(config.gpus_per_node, whole or 0)

    def _watchdog(self, layout: Layout) -> WatchdogPlan:
        """Ray is watched where a replica's nodes are held together by it."""
        config = self._config
        asked = config.watchdog.model_dump()
        ray = asked.pop("ray")
        needed = isinstance(config.backend, SlurmConfig) and config.backend.requires_ray
        if layout.nodes_per_replica > 1 and (ray.pop("enabled") or needed):
            gpus = ray.pop("expected_tp") or layout.gpus_per_replica
            return WatchdogPlan.model_validate({**asked, "ray": {**ray, "gpus": gpus}})
        return WatchdogPlan.model_validate(asked)


def elastic_of(replicas: int | ElasticReplicas) -> ElasticPlan | None:
    """How a swarm follows its work; None: it does not."""
    if isinstance(replicas, int):
        return None
    return ElasticPlan(least=replicas.min, keep_s=replicas.keep_s, hold_s=replicas.hold_s)
