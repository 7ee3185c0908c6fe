"""Builds the plan of a configuration: pure, the same for every backend."""

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
        """The plan. Has no side effects.

        Raises:
            ConfigError: a replica does not fit on whole nodes.
        """
        config = self._config
        gpus, gpus_per_node = self._gpus()
        elastic = elastic_of(config.replicas)
        layout = lay_out(most_replicas(config.replicas), gpus, gpus_per_node)
        backend = config.backend.model_dump(mode="json")
        for section in (backend.get("endpoint"), backend.get("job")):
            if section is not None and "image" in section and section["image"] is None:
                section["image"] = config.image
        platform_env = dict(backend.get("env", {}))
        if config.backend.type == "slurm":  # the task decides on the node whether TMPDIR is usable
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
        """GPUs per replica and per node. On Lepton the resource shape is the node, and a replica
        does not share it.
        """
        config = self._config
        gpus = config.gpus_per_replica
        whole = config.backend.endpoint.gpus if isinstance(config.backend, LeptonConfig) else None
        if gpus is None:
            gpus = default_gpus(config.engine)
            gpus = whole if whole and gpus else gpus
        return gpus, max(config.gpus_per_node, whole or 0)

    def _watchdog(self, layout: Layout) -> WatchdogPlan:
        """The watchdog's settings, with those of Ray if a replica is a Ray cluster."""
        config = self._config
        settings = config.watchdog.model_dump()
        ray = settings.pop("ray")
        needed = isinstance(config.backend, SlurmConfig) and config.backend.requires_ray
        if layout.nodes_per_replica > 1 and (ray.pop("enabled") or needed):
            gpus = ray.pop("expected_tp") or layout.gpus_per_replica
            return WatchdogPlan.model_validate({**settings, "ray": {**ray, "gpus": gpus}})
        return WatchdogPlan.model_validate(settings)


def elastic_of(replicas: int | ElasticReplicas) -> ElasticPlan | None:
    """The rule by which an elastic swarm is sized; None: the swarm has a fixed size."""
    if isinstance(replicas, int):
        return None
    return ElasticPlan(least=replicas.min, keep_s=replicas.keep_s, hold_s=replicas.hold_s)
