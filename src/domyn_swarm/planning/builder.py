"""From a configuration to a plan: pure, the same for every backend."""

from __future__ import annotations

import shlex

from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.layout import lay_out
from domyn_swarm.planning.plan import DeploymentPlan, Resources, RouterPlan, WatchdogPlan

_ENGINES_ON_GPUS = frozenset({"vllm", "sglang"})


class PlanBuilder:
    """Builds the plan of one swarm."""

    def __init__(self, config: DomynLLMSwarmConfig, name: str) -> None:
        self._config = config
        self._name = name

    def build(self) -> DeploymentPlan:
        """Everything that follows from the configuration. Touches nothing.

        Raises:
            ConfigError: the layout is impossible, `args` is not a command line, or a key is set
                that nothing acts on yet.
        """
        config = self._config
        self._refuse_what_nothing_acts_on()
        gpus = config.gpus_per_replica
        if gpus is None:
            gpus = 1 if config.engine in _ENGINES_ON_GPUS else 0
        backend = config.backend.model_dump(mode="json")
        platform_env = backend.get("env", {})
        return DeploymentPlan(
            name=self._name,
            backend=config.backend.type,
            engine=config.engine,
            model=config.model,
            revision=config.revision,
            args=self._args(),
            engine_options=config.engine_options,
            min_ready=config.min_ready,
            layout=lay_out(config.replicas, gpus, config.gpus_per_node),
            resources=Resources(cpus=config.cpus_per_task, memory_gb=config.memory_gb, gpus=gpus),
            image=config.image,
            port_from=config.port,
            env={**platform_env, **config.env},
            home_directory=config.home_directory,
            wait_endpoint_s=config.wait_endpoint_s,
            router=RouterPlan.model_validate(config.router.model_dump()),
            watchdog=WatchdogPlan.model_validate(config.watchdog.model_dump(exclude={"ray"})),
            backend_options=backend,
        )

    def _refuse_what_nothing_acts_on(self) -> None:
        """A setting that is accepted and then ignored would cost someone GPU hours."""
        unheard = {
            "idle_timeout_s": self._config.idle_timeout_s,
            "notify.url": self._config.notify.url,
        }
        for key, value in unheard.items():
            if value is not None:
                raise ConfigError(
                    f"{key} is set, but this version does not act on it yet.",
                    hint="Take it out of the configuration.",
                )

    def _args(self) -> tuple[str, ...]:
        if not isinstance(self._config.args, str):
            return self._config.args
        try:
            return tuple(shlex.split(self._config.args))
        except ValueError as error:
            raise ConfigError(
                f"args: {self._config.args!r} is not a command line: {error}.",
                hint="Close the quotation mark, or write a list.",
            ) from error
