"""A launch: everything that follows from a configuration, made once before anything is started."""

from __future__ import annotations

import re
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from domyn_swarm import engines, logs
from domyn_swarm.backends.platforms import serving_backend
from domyn_swarm.backends.protocols import LaunchScripts
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

if TYPE_CHECKING:
    from domyn_swarm.config import DomynLLMSwarmConfig


@dataclass(frozen=True)
class Launch:
    """What is shown and then started unchanged: in between no file is read again, no script is
    rendered again, and the scheduler is not asked again how it assigns nodes.

    It is for one swarm: everything that it starts carries the tag of the context.
    """

    config: DomynLLMSwarmConfig  # with the name of the plan
    plan: DeploymentPlan
    context: DeploymentContext
    scripts: LaunchScripts

    @property
    def name(self) -> str:
        """The swarm's name; generated if the configuration has none."""
        return self.plan.name


def prepare(config: DomynLLMSwarmConfig) -> Launch:
    """The launch of a configuration. Writes nothing and starts nothing; the scheduler may be asked
    how it assigns nodes.

    Raises:
        ConfigError: the engine, the model or the layout is not possible here.
    """
    from domyn_swarm.planning.builder import PlanBuilder

    plan = PlanBuilder(config, config.name or _generated_name(config.model)).build()
    context = deployment_context(plan, f"{plan.name}.{secrets.token_hex(6)}")
    scripts = serving_backend(plan.backend).scripts(plan, context)
    return Launch(config.model_copy(update={"name": plan.name}), plan, context, scripts)


def deployment_context(plan: DeploymentPlan, tag: str) -> DeploymentContext:
    """What a backend needs besides the plan, for the swarm of this tag."""
    return DeploymentContext(
        tag=tag,
        serving_spec=engines.get(plan.engine).serving_spec(plan),
        shared_env=logs.variables(),
        timeout_s=plan.wait_endpoint_s,
        interpreter=sys.executable,
    )


def _generated_name(model: str) -> str:
    """A name that contains the model's and is unlikely to be taken."""
    last = model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
    slug = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:32].strip("-")
    slug = slug if slug[:1].isalpha() else f"m-{slug}".strip("-")
    return f"{slug}-{secrets.token_hex(2)}"
