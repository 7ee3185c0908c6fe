"""A simulator of an LLM server: for rehearsing a configuration and for tests, never for answers."""

from __future__ import annotations

import hashlib
import re

from pydantic import Field, field_validator

from domyn_swarm.engines.options import EngineOptions, parse_options
from domyn_swarm.engines.patterns import SHARED, pattern
from domyn_swarm.engines.ray_nodes import by_ray, ray_nodes
from domyn_swarm.planning.context import FirstRequest, ServingSpec
from domyn_swarm.planning.plan import DeploymentPlan

_WORDS = (
    *("river", "stone", "lantern", "orchard", "harbour", "copper", "violet", "winter"),
    *("meadow", "signal", "anchor", "feather", "marble", "thunder", "garden", "silver"),
)


class ErrorRule(EngineOptions):
    """What happens to requests whose prompt matches. The first rule that applies is taken."""

    match: str = ""  # regular expression, searched in the prompt
    times: int | None = Field(None, ge=1)  # per distinct prompt; None: always
    rate: float = Field(1.0, gt=0, le=1)  # share of the prompts, always the same ones
    status: int = Field(500, ge=400, le=599)
    retry_after_s: float | None = Field(None, ge=0)
    hang: bool = False  # no answer, ever
    reset: bool = False  # the connection is torn down

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value


class SimOptions(EngineOptions):
    """`engine_options` of the simulator."""

    latency_s: float = Field(0.0, ge=0)  # the median; of every request, streaming or not
    latency_sigma: float = Field(0.0, ge=0)  # of a lognormal distribution
    tokens_per_s: float | None = Field(None, gt=0)  # of one request, beside the latency
    slots: int = Field(64, ge=1)  # requests at once; the others wait
    start_s: float = Field(0.0, ge=0)  # until /health answers
    errors: tuple[ErrorRule, ...] = ()
    record: str | None = None  # file that a JSON line is appended to for each request
    fail_start: str | None = None  # printed before the server ends, instead of starting
    fail_start_exit_code: int = Field(1, ge=1, le=255)
    crash_after_requests: int | None = Field(None, ge=1)
    freeze_after_requests: int | None = Field(None, ge=1)  # /health answers, nothing is completed


class Sim:
    """See `Engine`. `args` are ignored, so that another engine's configuration can be rehearsed."""

    name = "sim"
    failure_patterns = (
        pattern(
            r"simulated failure",
            "the simulator was told to fail",
            "Take fail_start out of engine_options.",
        ),
        *SHARED,
    )

    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """See `Engine.serving_spec`."""
        options = parse_options(SimOptions, self.name, plan.engine_options)
        body = {
            "model": plan.model,
            "messages": [{"role": "user", "content": READY_PROMPT}],
            "max_tokens": 1,
        }
        program = ("{python}", "-m", "domyn_swarm.engines.sim_server", "--model", plan.model)
        nodes = 1 if by_ray(plan) else plan.layout.nodes_per_replica
        others = ("--nodes", str(nodes), "--node-port", "{node_port}") if nodes > 1 else ()
        follow = ("--follow", "{head}", "--node-port", "{port}", "--host", "-", "--port", "0")
        return ServingSpec(
            argv=(
                *program,
                *("--host", "{host}", "--port", "{port}", *others),
                *("--options", options.model_dump_json(exclude_defaults=True)),
                *(("--", *plan.args) if plan.args else ()),
            ),
            **(ray_nodes(plan) if by_ray(plan) else {}),
            **({"follower_argv": (*program, *follow)} if nodes > 1 else {}),
            env=plan.env,
            key_env="SIM_API_KEY",
            running_metric="vllm:num_requests_running",
            waiting_metric="vllm:num_requests_waiting",
            prompt_tokens_metric="vllm:prompt_tokens_total",
            generated_tokens_metric="vllm:generation_tokens_total",
            kv_cache_metric="vllm:kv_cache_usage_perc",
            progress_metrics=("vllm:generation_tokens_total",),
            first_request=FirstRequest(path="/v1/chat/completions", body=body),
            failure_patterns=self.failure_patterns,
            max_num_seqs=options.slots,
        )


READY_PROMPT = "domyn-swarm: ready?"  # the watchdog's first request; no rule applies, none is kept
REPLY_TOKENS = 16  # of an answer that is not cut short


def sim_reply(prompt: str, max_tokens: int = REPLY_TOKENS) -> str:
    """What the simulator answers: always the same for the same prompt, and telling of it."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=REPLY_TOKENS - 1).digest()
    words = [_WORDS[byte % len(_WORDS)] for byte in digest]
    return " ".join([digest.hex()[:8], *words][:max_tokens])
