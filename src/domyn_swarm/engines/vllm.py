"""vLLM: its OpenAI server, told everything by flags, its key by environment."""

from __future__ import annotations

from collections.abc import Sequence

from domyn_swarm.engines.options import refuse_options
from domyn_swarm.engines.patterns import SHARED, pattern
from domyn_swarm.planning.context import FirstRequest, ServingSpec
from domyn_swarm.planning.plan import DeploymentPlan

_SHUTDOWN_GRACE_S = 60  # vLLM's default of 0 leaves requests in flight without an answer


class VLLM:
    """See `Engine`."""

    name = "vllm"
    failure_patterns = (
        pattern(
            r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|HIP out of memory",
            "the GPU ran out of memory",
            "Use more GPUs per replica, a lower --gpu-memory-utilization or --max-model-len.",
        ),
        pattern(
            r"No available memory for the cache blocks|KV cache.*(?:larger|needed).*available",
            "the model leaves no room for the KV cache",
            "Lower --max-model-len, raise --gpu-memory-utilization, or use more GPUs per replica.",
        ),
        pattern(
            r"Free memory on device .* is less than desired",
            "something else uses the GPU",
            "See nvidia-smi on that node, or lower --gpu-memory-utilization.",
            retryable=True,
        ),
        pattern(
            r"(?i)gated repo|401 Client Error|Access to model .* is restricted",
            "the model may not be downloaded with this account",
            "Accept its licence on the hub, and export HF_TOKEN before `up`.",
        ),
        pattern(
            r"LocalEntryNotFoundError|outgoing traffic has been disabled|HF_HUB_OFFLINE",
            "the model is not in the cache and the hub must not or cannot be asked",
            "Download it beforehand into HF_HOME, or give a path.",
        ),
        pattern(
            r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError"
            r"|Repo id must be|does not appear to have a file named",
            "the model was not found",
            "Check `model`: a path that the node sees, or an identifier of the hub.",
        ),
        pattern(
            r"Model architectures? .* (?:is|are) not supported|failed to be inspected",
            "this vLLM does not know the model's architecture",
            "Use a newer vLLM.",
        ),
        pattern(
            r"(?:attention heads|num_heads).*(?:divisible|divided)|must be divisible by tensor",
            "the model cannot be split over so many GPUs",
            "Choose gpus_per_replica so that it divides the number of attention heads.",
        ),
        pattern(
            r"max_model_len .* is greater than|User-specified max_model_len",
            "--max-model-len is more than the model can",
            "Lower --max-model-len.",
        ),
        pattern(
            r"(?i)bfloat16 is only supported|compute capability",
            "the GPU does not support the data type",
            "Add --dtype half to `args`.",
        ),
        pattern(
            r"(?i)no cuda gpus are available|found no nvidia driver|driver .* too old"
            r"|libcuda\.so.*cannot open|Failed to infer device type",
            "no usable GPU was found",
            "Check the driver on that node, the container's GPU flag, and gpus_per_replica.",
        ),
        pattern(
            r"ncclUnhandledCudaError|ncclSystemError|NCCL error|NCCL.*timed? ?out",
            "the GPUs could not talk to each other (NCCL)",
            "Set NCCL_DEBUG=INFO in `env`; check the interconnect and NCCL_SOCKET_IFNAME.",
            retryable=True,
        ),
        pattern(
            r"(?i)ray.*(?:placement group|cluster).*(?:time|not enough|fail)|RayActorError",
            "Ray could not place the replica's workers",
            "Check that every node of the replica joined, with its GPUs.",
            retryable=True,
        ),
        pattern(
            r"(?i)trust_remote_code",
            "the model brings code of its own",
            "Add --trust-remote-code to `args` if you trust it.",
        ),
        *SHARED,
    )

    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """See `Engine.serving_spec`. What the user's `args` say wins over what we would say."""
        refuse_options(self.name, plan.engine_options)
        layout = plan.layout
        ours: dict[str, str] = {
            "--model": plan.model,
            "--host": "{host}",
            "--port": "{port}",
            "--served-model-name": plan.model,
            "--tensor-parallel-size": str(layout.tensor_parallel),
            "--shutdown-timeout": str(_SHUTDOWN_GRACE_S),
        }
        if layout.pipeline_parallel > 1:
            ours["--pipeline-parallel-size"] = str(layout.pipeline_parallel)
        if plan.revision is not None:
            ours["--revision"] = plan.revision
        theirs = flags_in(plan.args)
        flags = [
            word for flag, value in ours.items() if flag not in theirs for word in (flag, value)
        ]
        body = {"model": plan.model, "prompt": "ready?", "max_tokens": 1}
        sequences = theirs.get("--max-num-seqs")
        return ServingSpec(
            argv=("{python}", "-m", "vllm.entrypoints.openai.api_server", *flags, *plan.args),
            env=plan.env,
            key_env="VLLM_API_KEY",
            running_metric="vllm:num_requests_running",
            waiting_metric="vllm:num_requests_waiting",
            progress_metrics=("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
            first_request=FirstRequest(path="/v1/completions", body=body),
            failure_patterns=self.failure_patterns,
            max_num_seqs=int(sequences) if sequences and sequences.isdigit() else None,
        )


def flags_in(args: Sequence[str]) -> dict[str, str | None]:
    """The flags in a command line with their values; None for those without one."""
    found: dict[str, str | None] = {}
    for word, after in zip(args, [*args[1:], "--"], strict=False):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            attached = value if equals else None
            found[flag] = attached if equals or after.startswith("--") else after
    return found
