"""A simulator of an LLM server: for rehearsing a configuration and for tests, never for answers."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from typing_extensions import override

from domyn_swarm.engines.engine_options import parse_options
from domyn_swarm.engines.engine_protocol import Engine, by_ray, ray_nodes
from domyn_swarm.engines.patterns import SHARED, pattern
from domyn_swarm.engines.sim_openai import READY_PROMPT
from domyn_swarm.engines.sim_options import SimOptions
from domyn_swarm.planning.plan import DeploymentPlan, FirstRequest, ServingSpec

_METRICS: dict[str, Any] = {
    "running_metric": "vllm:num_requests_running",
    "waiting_metric": "vllm:num_requests_waiting",
    "preemptions_metric": "vllm:num_preemptions_total",
    "prompt_tokens_metric": "vllm:prompt_tokens_total",
    "generated_tokens_metric": "vllm:generation_tokens_total",
    "kv_cache_metric": "vllm:kv_cache_usage_perc",
    "progress_metrics": ("vllm:generation_tokens_total",),
}


class Sim(Engine):
    """The simulator. It ignores `args`: another engine's configuration can be rehearsed."""

    name = "sim"
    failure_patterns = (
        pattern(
            r"simulated failure",
            "the simulator is configured to fail",
            "Remove fail_start from engine_options.",
        ),
        *SHARED,
    )

    @override
    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        options = parse_options(SimOptions, self.name, plan.engine_options)
        options_json = TypeAdapter(SimOptions).dump_json(options, exclude_defaults=True)
        body = {
            "model": plan.model,
            "messages": [{"role": "user", "content": READY_PROMPT}],
            "max_tokens": 1,
        }
        program = ("{python}", "-m", "domyn_swarm.engines.sim_server", "--model", plan.model)
        several = options.vllm is not None and len(options.vllm.speeds) > 1
        nodes = 1 if by_ray(plan) else plan.layout.nodes_per_replica
        others = ("--nodes", str(nodes), "--node-port", "{node_port}") if nodes > 1 else ()
        follow = ("--follow", "{head}", "--node-port", "{port}", "--host", "-", "--port", "0")
        ray = ray_nodes(plan) if by_ray(plan) else {}
        return ServingSpec(
            argv=(
                *program,
                *("--host", "{host}", "--port", "{port}", *others),
                *(("--replica", "{replica}") if several else ()),
                *("--options", options_json.decode()),
                *(("--", *plan.args) if plan.args else ()),
            ),
            follower_argv=(*program, *follow) if nodes > 1 else ray.get("follower_argv", ()),
            companion_argv=ray.get("companion_argv", ()),
            env=plan.env,
            key_env="SIM_API_KEY",
            **(_METRICS if options.metrics else {"metrics_path": None}),
            first_request=FirstRequest(path="/v1/chat/completions", body=body),
            failure_patterns=self.failure_patterns,
            max_num_seqs=options.slots,
        )
