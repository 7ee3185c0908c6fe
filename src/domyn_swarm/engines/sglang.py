"""SGLang. Its command line is tested; the server itself was never run by our tests (no GPU)."""

from __future__ import annotations

from typing_extensions import override

from domyn_swarm.engines.engine_options import flags_in, merged, refuse_options, whole_number
from domyn_swarm.engines.engine_protocol import Engine
from domyn_swarm.engines.patterns import GPU, HUB, SHARED, pattern
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.plan import DeploymentPlan, FirstRequest, ServingSpec, StartPhase

_ALIASES = {
    "--model": "--model-path",
    "--tp": "--tp-size",
    "--tensor-parallel-size": "--tp-size",
}
START_PHASES = (
    StartPhase(phase="pull", pattern=r"Downloading shards|Fetching \d+ files"),
    StartPhase(phase="load", pattern=r"Load weight begin"),
    StartPhase(
        phase="warm-up", pattern=r"KV Cache is allocated|Capture cuda graph begin|Capturing batches"
    ),
)


class SGLang(Engine):
    """SGLang. It takes its key only as a flag, which `sglang_server` adds on the node."""

    name = "sglang"
    failure_patterns = (
        pattern(
            r"Not enough memory\. Please try to increase --mem-fraction-static",
            "the model leaves no memory for the KV cache",
            "Raise --mem-fraction-static, or use more GPUs per replica.",
        ),
        *GPU,
        *HUB,
        *SHARED,
    )

    @override
    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """The user's `args` take precedence over our flags.

        Raises:
            ConfigError: `args` set a reserved flag, or a replica spans several nodes.
        """
        refuse_options(self.name, plan.engine_options)
        if plan.layout.pipeline_parallel > 1:
            raise ConfigError(
                f"The engine 'sglang' serves a replica on one node, but gpus_per_replica "
                f"({plan.layout.gpus_per_replica}) takes {plan.layout.nodes_per_replica}.",
                hint=f"Ask for at most {plan.layout.gpus_per_node}, or use the engine 'vllm'.",
            )
        ours = {
            "--model-path": plan.model,
            "--served-model-name": plan.model,
            "--host": "{host}",
            "--port": "{port}",
            "--tp-size": str(plan.layout.tensor_parallel),
        }
        if plan.revision is not None:
            ours["--revision"] = plan.revision
        running = flags_in(plan.args).get("--max-running-requests")
        body = {"model": plan.model, "prompt": "ready?", "max_tokens": 1}
        return ServingSpec(
            argv=(
                *("{python}", "-m", "domyn_swarm.engines.sglang_server"),
                *merged(ours, plan.args, _ALIASES),
            ),
            env=plan.env,
            key_env="SGLANG_SERVER_KEY",
            running_metric="sglang:num_running_reqs",
            waiting_metric="sglang:num_queue_reqs",
            prompt_tokens_metric="sglang:prompt_tokens_total",
            generated_tokens_metric="sglang:generation_tokens_total",
            kv_cache_metric="sglang:token_usage",
            # generation_tokens_total only grows when an answer is complete, and older versions lack
            # realtime_tokens_total.
            progress_metrics=(
                "sglang:realtime_tokens_total",
                "sglang:inter_token_latency_seconds_count",
                "sglang:generation_tokens_total",
            ),
            first_request=FirstRequest(path="/v1/completions", body=body),
            failure_patterns=self.failure_patterns,
            start_phases=START_PHASES,
            max_num_seqs=whole_number(running),
        )
