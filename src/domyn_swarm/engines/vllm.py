"""vLLM's OpenAI server: configured by flags, its API key by the environment."""

from __future__ import annotations

from typing_extensions import override

from domyn_swarm.engines.engine_options import flags_in, merged, refuse_options, whole_number
from domyn_swarm.engines.engine_protocol import Engine, by_ray, ray_nodes
from domyn_swarm.engines.patterns import GPU, HUB, SHARED, pattern
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.plan import DeploymentPlan, FirstRequest, ServingSpec, StartPhase

_SHUTDOWN_GRACE_S = 60  # with vLLM's default of 0, requests in flight get no answer
_SERVER = ("{python}", "-m", "vllm.entrypoints.openai.api_server")
_RAY = {"--distributed-executor-backend": "ray"}  # vLLM no longer chooses it by itself
_FIRST_NODE = {
    "--distributed-executor-backend": "mp",
    "--node-rank": "0",
    "--master-addr": "{host}",
    "--master-port": "{node_port}",
}
_OTHER_NODE = {"--node-rank": "{rank}", "--master-addr": "{head}", "--master-port": "{port}"}
START_PHASES = (
    StartPhase(
        phase="pull", pattern=r"Downloading shards|Fetching \d+ files|: downloading weights"
    ),
    StartPhase(
        phase="load",
        pattern=r"Starting to load model|Loading \w+ checkpoint shards|Loading weights",
    ),
    StartPhase(
        phase="compile",
        pattern=r"Dynamo bytecode transform|Compiling a graph|Directly load the compiled graph"
        r"|for vLLM's torch\.compile",
    ),
    StartPhase(
        phase="warm-up",
        pattern=r"Available KV cache memory|GPU KV cache size|Capturing CUDA graph"
        r"|Graph capturing|[Ww]arming up",
    ),
)
_ALIASES = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size"}


class VLLM(Engine):
    """vLLM, 0.18 or newer: older versions have no `--shutdown-timeout`."""

    name = "vllm"
    failure_patterns = (
        pattern(
            r"unrecognized arguments:.*--shutdown-timeout",
            "this vLLM is too old: it cannot finish its requests before it stops",
            "Use vLLM 0.18 or newer.",
        ),
        pattern(
            r"No available memory for the cache blocks|KV cache is needed, which is larger than",
            "the model leaves no memory for the KV cache",
            "Lower --max-model-len, raise --gpu-memory-utilization, or use more GPUs per replica.",
        ),
        pattern(
            r"Free memory on device .* is less than desired",
            "another program uses the GPU's memory",
            "Run nvidia-smi on that node, or lower --gpu-memory-utilization.",
            retryable=True,
        ),
        pattern(
            r"World size \(\d+\) is larger than the number of available GPUs|local_world_size \(",
            "the node has fewer GPUs than the replica needs",
            "Check gpus_per_node and gpus_per_replica against the nodes.",
        ),
        pattern(
            r"Model architectures? .* (?:is|are) not supported|failed to be inspected"
            r"|does not recognize this architecture",
            "this vLLM does not support the model's architecture",
            "Use a newer vLLM.",
        ),
        pattern(
            r"(?:ValueError:|Value error,) User-specified max_model_len",
            "--max-model-len is more than the model supports",
            "Lower --max-model-len.",
        ),
        pattern(
            r"(?i)ray\.exceptions\.\w*(?:Actor|Node)\w*Error|cannot provide a placement group"
            r"|could not find any running ray instance|ray does not allocate any gpus",
            "Ray could not place or keep the replica's workers",
            "Check that every node of the replica joined, with its GPUs.",
            retryable=True,
        ),
        *GPU,
        *HUB,
        *SHARED,
    )

    @override
    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """The user's `args` take precedence over our flags.

        Raises:
            ConfigError: `args` set a reserved flag, or served names without `model`.
        """
        refuse_options(self.name, plan.engine_options)
        ours = {
            "--model": plan.model,
            "--host": "{host}",
            "--port": "{port}",
            "--served-model-name": plan.model,
            "--tensor-parallel-size": str(plan.layout.tensor_parallel),
            "--shutdown-timeout": str(_SHUTDOWN_GRACE_S),
        }
        nodes = plan.layout.nodes_per_replica
        if nodes > 1:
            ours["--pipeline-parallel-size"] = str(nodes)
            ours.update(_RAY if by_ray(plan) else {"--nnodes": str(nodes), **_FIRST_NODE})
        if plan.revision is not None:
            ours["--revision"] = plan.revision
        theirs = flags_in(plan.args, _ALIASES)
        served = theirs.get("--served-model-name")
        if served is not None and plan.model not in served:
            raise ConfigError(
                f"args: --served-model-name {' '.join(served)} does not include {plan.model!r}, "
                "the name that jobs send.",
                hint=f"Add {plan.model!r} to the names, or remove the flag.",
            )
        body = {"model": plan.model, "prompt": "ready?", "max_tokens": 1}
        others = self._other_nodes(plan, ours)
        return ServingSpec(
            argv=(*_SERVER, *merged(ours, plan.args, _ALIASES)),
            env=plan.env,
            follower_argv=others.get("follower_argv", ()),
            companion_argv=others.get("companion_argv", ()),
            key_env="VLLM_API_KEY",
            running_metric="vllm:num_requests_running",
            waiting_metric="vllm:num_requests_waiting",
            prompt_tokens_metric="vllm:prompt_tokens_total",
            generated_tokens_metric="vllm:generation_tokens_total",
            kv_cache_metric="vllm:kv_cache_usage_perc",
            preemptions_metric="vllm:num_preemptions_total",
            progress_metrics=("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
            first_request=FirstRequest(path="/v1/completions", body=body),
            failure_patterns=self.failure_patterns,
            start_phases=START_PHASES,
            max_num_seqs=whole_number(theirs.get("--max-num-seqs")),
        )

    @staticmethod
    def _other_nodes(plan: DeploymentPlan, ours: dict[str, str]) -> dict[str, tuple[str, ...]]:
        """The fields of a `ServingSpec` for the further nodes of a replica."""
        if plan.layout.nodes_per_replica == 1:
            return {}
        if by_ray(plan):
            return ray_nodes(plan)
        theirs = {name: value for name, value in ours.items() if name not in ("--host", "--port")}
        flags = merged({**theirs, **_OTHER_NODE}, plan.args, _ALIASES)
        return {"follower_argv": (*_SERVER, *flags, "--headless")}
