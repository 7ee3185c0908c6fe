"""SGLang: its command line is built and tested; the server itself was not run here (no GPU)."""

from __future__ import annotations

from domyn_swarm.engines.options import refuse_options
from domyn_swarm.engines.patterns import SHARED, pattern
from domyn_swarm.engines.vllm import flags_in
from domyn_swarm.planning.context import FirstRequest, ServingSpec
from domyn_swarm.planning.plan import DeploymentPlan


class SGLang:
    """See `Engine`. SGLang takes its key only as a flag: `sglang_server` sets it on the node."""

    name = "sglang"
    failure_patterns = (
        pattern(
            r"OutOfMemoryError|CUDA out of memory|Not enough memory",
            "the GPU ran out of memory",
            "Lower --mem-fraction-static or --context-length, or use more GPUs per replica.",
        ),
        pattern(
            r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError",
            "the model was not found",
            "Check `model`: a path that the node sees, or an identifier of the hub.",
        ),
        *SHARED,
    )

    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """See `Engine.serving_spec`."""
        refuse_options(self.name, plan.engine_options)
        ours = {
            "--model-path": plan.model,
            "--served-model-name": plan.model,
            "--host": "{host}",
            "--port": "{port}",
            "--tp-size": str(plan.layout.tensor_parallel),
        }
        if plan.layout.pipeline_parallel > 1:
            ours["--nnodes"] = str(plan.layout.pipeline_parallel)
        if plan.revision is not None:
            ours["--revision"] = plan.revision
        theirs = flags_in(plan.args)
        flags = [
            word for flag, value in ours.items() if flag not in theirs for word in (flag, value)
        ]
        body = {"model": plan.model, "prompt": "ready?", "max_tokens": 1}
        return ServingSpec(
            argv=("{python}", "-m", "domyn_swarm.engines.sglang_server", *flags, *plan.args),
            env=plan.env,
            key_env="SGLANG_SERVER_KEY",
            running_metric="sglang:num_running_reqs",
            waiting_metric="sglang:num_queue_reqs",
            progress_metrics=("sglang:generation_tokens_total", "sglang:prompt_tokens_total"),
            first_request=FirstRequest(path="/v1/completions", body=body),
            failure_patterns=self.failure_patterns,
        )
