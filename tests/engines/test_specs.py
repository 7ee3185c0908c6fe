"""Command lines of the engines, and causes read from logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from domyn_swarm import engines
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.engines.vllm import flags_in
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.context import ServingSpec


def spec(engine: str, **keys: Any) -> ServingSpec:
    fields = {"model": "org/model", "backend": "local", "engine": engine, **keys}
    config = DomynLLMSwarmConfig.model_validate(fields)
    return engines.get(engine).serving_spec(PlanBuilder(config, "demo").build())


def test_vllm_is_told_everything() -> None:
    built = spec("vllm", gpus_per_replica=2, revision="abc", args="--max-num-seqs 128 --dtype half")
    assert built.argv[:3] == ("{python}", "-m", "vllm.entrypoints.openai.api_server")
    flags = flags_in(built.argv)
    assert flags == {
        "--model": "org/model",
        "--host": "{host}",
        "--port": "{port}",
        "--served-model-name": "org/model",
        "--tensor-parallel-size": "2",
        "--shutdown-timeout": "60",
        "--revision": "abc",
        "--max-num-seqs": "128",
        "--dtype": "half",
    }
    assert built.max_num_seqs == 128
    assert built.key_env == "VLLM_API_KEY"


def test_a_replica_over_nodes_is_tensor_parallel_inside_and_pipeline_parallel_across() -> None:
    flags = flags_in(spec("vllm", gpus_per_replica=8, gpus_per_node=4).argv)
    assert flags["--tensor-parallel-size"] == "4"
    assert flags["--pipeline-parallel-size"] == "2"


def test_what_the_user_says_wins_and_stands_once() -> None:
    argv = spec("vllm", args=["--tensor-parallel-size=1", "--served-model-name", "mine"]).argv
    assert [word for word in argv if "tensor-parallel" in word] == ["--tensor-parallel-size=1"]
    assert argv.count("--served-model-name") == 1


def test_json_and_odd_arguments_arrive_unchanged() -> None:
    odd = ["--override", '{"a": {"b": "{port} $HOME `x`"}}', "a b", "it's"]
    for engine in ("vllm", "sglang"):
        assert spec(engine, args=odd).argv[-4:] == tuple(odd)


def test_sglang_is_told_everything_but_the_key() -> None:
    built = spec("sglang", gpus_per_replica=4)
    flags = flags_in(built.argv)
    assert flags["--tp-size"] == "4"
    assert flags["--model-path"] == "org/model"
    assert built.key_env == "SGLANG_SERVER_KEY"


def test_any_command() -> None:
    options = {
        "argv": ["serve", "--at", "{host}:{port}", "--model", "{model}"],
        "health_path": "/ping",
        "key_env": "K",
        "env": {"A": "1", "B": "2"},
    }
    built = spec("command", engine_options=options, args="--more", env={"B": "3"})
    assert built.argv == ("serve", "--at", "{host}:{port}", "--model", "org/model", "--more")
    assert (built.health_path, built.key_env, built.first_request) == ("/ping", "K", None)
    assert built.env == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ("command", {}, "engine_options.argv: Field required"),
        ("command", {"argv": ["x"]}, "argv must hold {port}"),
        ("sim", {"latency": 1}, "engine_options.latency: Extra inputs"),
        ("sim", {"errors": [{"match": "("}]}, "is no regular expression"),
        ("vllm", {"slots": 3}, "takes no engine_options, but got slots"),
    ],
)
def test_options_that_do_not_fit(engine: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(engine, engine_options=options)
    assert words in str(caught.value)


def test_an_unknown_engine_suggests_a_known_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean vllm"):
        engines.get("vlm")


def test_a_model_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model file .*gone\.gguf"):
        spec("llamacpp", model=str(tmp_path / "gone.gguf"))


LOGS = [
    ("vllm", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "GPU ran out"),
    ("vllm", "ValueError: No available memory for the cache blocks. Try increasing", "KV cache"),
    ("vllm", "OSError: You are trying to access a gated repo.", "may not be downloaded"),
    (
        "vllm",
        "OSError: nope/x is not a local folder and is not a valid model identifier listed on",
        "not found",
    ),
    ("vllm", "ValueError: Model architectures ['X'] are not supported for now.", "architecture"),
    ("vllm", "api_server.py: error: unrecognized arguments: --nope", "an argument"),
    ("vllm", "OSError: [Errno 98] Address already in use", "port is taken"),
    ("vllm", "AssertionError: attention heads (15) must be divisible by 4", "so many GPUs"),
    ("vllm", "RuntimeError: No CUDA GPUs are available", "no usable GPU"),
    ("vllm", "RuntimeError: NCCL error: unhandled system error", "NCCL"),
    ("vllm", "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find", "not in the cache"),
    ("vllm", "ModuleNotFoundError: No module named 'vllm'", "Python module is missing"),
    ("vllm", "OSError: [Errno 28] No space left on device", "disk is full"),
    ("vllm", "ValueError: User-specified max_model_len (1000000) is greater", "--max-model-len"),
    ("llamacpp", "llama_model_load: error loading model: invalid magic", "cannot be loaded"),
    ("sim", "simulated failure: as told", "told to fail"),
    ("command", "PermissionError: [Errno 13] Permission denied: '/x'", "may not be read"),
]


@pytest.mark.parametrize(("engine", "line", "cause"), LOGS)
def test_causes_are_read_from_the_log(engine: str, line: str, cause: str) -> None:
    noise = ["INFO starting", "INFO loading"] * 20
    log = "\n".join([*noise, line, "Traceback (most recent call last):", "  ..."])
    found = engines.diagnose(engines.get(engine).failure_patterns, log)
    assert found is not None
    assert cause in found.cause
    assert found.line == line
    assert found.hint


@pytest.mark.parametrize("engine", engines.names())
def test_a_healthy_log_has_no_cause(engine: str) -> None:
    log = (
        "INFO 11-23 api_server.py:1 vLLM API server version 0.32.0\n"
        "INFO: Started server process [1]\nINFO: Uvicorn running on http://0.0.0.0:8000\n"
        'INFO: 127.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
        "WARNING: max_num_batched_tokens is small\n"
    )
    assert engines.diagnose(engines.get(engine).failure_patterns, log) is None
