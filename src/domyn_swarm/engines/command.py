"""Any OpenAI-compatible server, run with the command line that the user gives."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import override

from domyn_swarm.config.backends import Env
from domyn_swarm.engines.engine_options import EngineOptions, parse_options
from domyn_swarm.engines.engine_protocol import Engine
from domyn_swarm.engines.patterns import SHARED
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.plan import DeploymentPlan, ServingSpec


class CommandOptions(EngineOptions):
    """How to run the server. `{python}`, `{host}`, `{port}` and `{model}` in argv are filled in."""

    argv: tuple[str, ...] = Field(min_length=1)
    fixed_port: bool = False  # the server always listens on the configuration's `port`
    health_path: str = "/health"
    metrics_path: str | None = None
    running_metric: str | None = None
    waiting_metric: str | None = None
    prompt_tokens_metric: str | None = None
    generated_tokens_metric: str | None = None
    kv_cache_metric: str | None = None
    preemptions_metric: str | None = None
    key_env: str | None = None  # environment variable from which the server reads its API key
    env: Env = Field(default_factory=dict)

    @model_validator(mode="after")
    def _port_can_be_set(self) -> CommandOptions:
        if not self.fixed_port and not any("{port}" in word for word in self.argv):
            raise ValueError(
                "argv must contain {port}: the port is chosen on the node of the replica "
                "(or set fixed_port, for a server that always listens on `port`)"
            )
        return self


class Command(Engine):
    """Any other server, started by the command of its options."""

    name = "command"
    failure_patterns = SHARED

    @override
    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """`args` are appended to argv.

        Raises:
            ConfigError: an option is invalid, or replicas on one machine share a fixed port.
        """
        options = parse_options(CommandOptions, self.name, plan.engine_options)
        together = plan.backend == "local" or plan.layout.replicas_per_node > 1
        if options.fixed_port and together and plan.layout.replicas > 1:
            raise ConfigError(
                f"engine_options.fixed_port: {plan.layout.replicas} replicas cannot share "
                f"port {plan.port_from} of one machine.",
                hint="Pass the port to the server with {port} in argv, or set replicas to 1.",
            )
        argv = [word.replace("{model}", plan.model) for word in options.argv]
        return ServingSpec(
            argv=(*argv, *plan.args),
            env={**options.env, **plan.env},
            key_env=options.key_env,
            health_path=options.health_path,
            metrics_path=options.metrics_path,
            running_metric=options.running_metric,
            waiting_metric=options.waiting_metric,
            prompt_tokens_metric=options.prompt_tokens_metric,
            generated_tokens_metric=options.generated_tokens_metric,
            kv_cache_metric=options.kv_cache_metric,
            preemptions_metric=options.preemptions_metric,
            failure_patterns=self.failure_patterns,
        )
