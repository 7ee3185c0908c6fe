"""What is asked of a workspace: exactly what the configuration says, and what the SDK accepts."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest

from domyn_swarm import engines
from domyn_swarm.backends.lepton import sdk, specs
from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import ConfigError, PlatformError
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan, JobResources

TAG = "demo.0123456789ab"
ENDPOINT = {
    "image": "vllm/vllm-openai:v0.18.0",
    "allowed_dedicated_node_groups": ["group-1"],
    "allowed_nodes": ["node-7"],
    "mounts": [{"path": "/models", "volume": "node-nfs:data", "mount_path": "/mnt/models"}],
    "env": {"HF_HOME": "/mnt/models/hf"},
    "secret_env": {"HF_TOKEN": "my-hf-token"},
    "image_pull_secrets": ["registry"],
}
JOB = {
    "image": "domyn-swarm:1",
    "mounts": [{"path": "/work", "volume": "node-nfs:data", "mount_path": "/shared"}],
    "secret_env": {"AWS_SECRET_ACCESS_KEY": "s3"},
}


SPEEDS = {"engine": "sim", "engine_options": {"vllm": {"speed": [1, 2]}}}


def plan_of(backend: dict[str, Any] | None = None, **keys: Any) -> DeploymentPlan:
    section = {"type": "lepton", "env": {"BOTH": "1"}, "endpoint": ENDPOINT, "job": JOB}
    fields = {"model": "org/m", "engine": "vllm", "backend": {**section, **(backend or {})}, **keys}
    return PlanBuilder(DomynLLMSwarmConfig.model_validate(fields), "demo").build()


def endpoint_of(plan: DeploymentPlan) -> dict[str, Any]:
    context = DeploymentContext(
        tag=TAG,
        serving_spec=engines.get(plan.engine).serving_spec(plan),
        timeout_s=60,
        interpreter=sys.executable,
    )
    return specs.endpoint_spec(plan, context)


def job(**fields: Any) -> ComputeSpec:
    given = {
        "job_id": "20261126-193704-abcdef",
        "swarm": "demo",
        "tag": TAG,
        "argv": (sys.executable, "-m", "domyn_swarm.jobs.worker", "/shared/jobs/1"),
        "env": {"MODEL": "m"},
        "cwd": "/somewhere/else",
        "job_dir": "/shared/jobs/1",
        "files": ("s3://bucket/in.parquet", "/shared/out.parquet"),
        "platform_options": plan_of().backend_options,
    }
    return ComputeSpec.model_validate({**given, **fields})


def test_the_endpoint_is_what_the_configuration_says() -> None:
    document = endpoint_of(plan_of(replicas=3, idle_timeout_s=600, args="--max-model-len 4096"))
    name = document["metadata"]["name"]
    assert name == specs.deployment_name(TAG)
    assert name.startswith("demo-")
    spec = document["spec"]
    key = specs.secret_name(TAG)
    command = spec["container"].pop("command")
    assert command[:3] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert command[command.index("--port") + 1] == "8000"
    assert command[command.index("--tensor-parallel-size") + 1] == "8"  # of the shape
    assert command[-2:] == ["--max-model-len", "4096"]
    assert spec == {
        "container": {"image": "vllm/vllm-openai:v0.18.0", "ports": [{"container_port": 8000}]},
        "resource_requirement": {
            "resource_shape": "gpu.8xh200",
            "min_replicas": 3,
            "affinity": {
                "allowed_dedicated_node_groups": ["group-1"],
                "allowed_nodes_in_node_group": ["node-7"],
            },
        },
        "envs": [
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "BOTH", "value": "1"},
            {"name": "HF_HOME", "value": "/mnt/models/hf"},
            {"name": "DOMYN_SWARM_TAG", "value": TAG},
            {"name": "HF_TOKEN", "value_from": {"secret_name_ref": "my-hf-token"}},
            {"name": "VLLM_API_KEY", "value_from": {"secret_name_ref": key}},
        ],
        "mounts": [{"path": "/models", "from": "node-nfs:data", "mount_path": "/mnt/models"}],
        "image_pull_secrets": ["registry"],
        "api_tokens": [{"value_from": {"token_name_ref": key}}],
        "health": {"liveness": {"initial_delay_seconds": 600}},
        "auto_scaler": {"scale_down": {"no_traffic_timeout": 600}},
    }


def test_the_platforms_own_autoscaler_sees_to_an_elastic_swarm() -> None:
    document = endpoint_of(plan_of(replicas={"min": 2, "max": 9}))
    spec = document["spec"]
    sized = {"min_replicas": 2, "max_replicas": 9}
    assert spec["resource_requirement"].items() >= sized.items()
    assert spec["auto_scaler"] == {"target_gpu_utilization_percentage": 80}
    taken = sdk.Sdk().deployment.model_validate(document)
    assert taken.model_dump(exclude_none=True, by_alias=True) == document


@pytest.mark.parametrize(
    ("replicas", "said"),
    [({"min": 0, "max": 2}, "min of 0"), ({"min": 1, "max": 2, "keep_s": 5}, "keep_s")],
)
def test_what_its_autoscaler_cannot_do_is_refused(replicas: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        endpoint_of(plan_of(replicas=replicas))


def test_a_job_is_what_the_configuration_says() -> None:
    document = specs.job_spec(job(resources=JobResources(time_limit_s=90)))
    assert document["metadata"]["labels"] == {
        "domyn-swarm-job": specs.digest("20261126-193704-abcdef"),
        "domyn-swarm-tag": specs.digest(TAG),
    }
    spec = document["spec"]
    assert spec["resource_shape"] == "cpu.small"  # a CPU unless it is said otherwise
    assert spec["container"]["image"] == "domyn-swarm:1"
    assert spec["container"]["command"] == [
        *("python3", "-m", "domyn_swarm.backends.exit_wrapper", "--time-limit=90"),
        *("/shared/jobs/1/exit.json", "/shared/jobs/1", "--"),
        *("python3", "-m", "domyn_swarm.jobs.worker", "/shared/jobs/1"),
    ]
    assert {"name": "MODEL", "value": "m"} in spec["envs"]
    assert spec["envs"][-2:] == [
        {"name": "AWS_SECRET_ACCESS_KEY", "value_from": {"secret_name_ref": "s3"}},
        {
            "name": "DOMYN_SWARM_API_TOKEN",
            "value_from": {"secret_name_ref": specs.secret_name(TAG)},
        },
    ]
    assert spec["max_failure_retry"] == 0


def test_the_sdks_own_models_and_checks_take_them() -> None:
    from leptonai.api.v2.job_validation import validate_job_create
    from leptonai.api.v2.translation import legacy_to_http_endpoint

    kit = sdk.Sdk()
    document = endpoint_of(plan_of(replicas=2, idle_timeout_s=600))
    deployment = kit.deployment.model_validate(document)
    sent = deployment.model_dump(exclude_none=True, by_alias=True)
    assert sent == document
    [component] = legacy_to_http_endpoint(sent)["spec"]["components"]
    assert component["min_replicas"] == 2
    with warnings.catch_warnings(record=True) as said:
        made = kit.job.model_validate(specs.job_spec(job()))
        validate_job_create(made)
    assert said == []


@pytest.mark.parametrize("tag", ["x.1", "9-lives.ab", "A_Very.Long.Name" * 9 + ".ab", "ü.1", ".1"])
def test_names_fit_whatever_the_swarm_is_called(tag: str) -> None:
    from leptonai.api.v2.job_validation import validate_job_name

    for name in (specs.deployment_name(tag), specs.job_name(tag)):
        validate_job_name(name)
    assert specs.deployment_name(tag) == specs.deployment_name(tag)
    assert specs.deployment_name(tag) != specs.deployment_name(tag + "0")


@pytest.mark.parametrize(
    ("backend", "keys", "said"),
    [
        ({"endpoint": {}}, {}, "backend.endpoint.image"),
        ({}, {"gpus_per_replica": 1}, "has 8 GPUs"),
        ({}, {"gpus_per_replica": 16}, "would need 2 nodes"),
        ({}, SPEEDS, "on Lepton replicas have no numbers"),
    ],
)
def test_what_the_platform_cannot_serve_is_refused(
    backend: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        endpoint_of(plan_of(backend, **keys))


def test_the_swarms_image_serves_where_no_other_is_named() -> None:
    document = endpoint_of(plan_of({"endpoint": {}}, image="own:1"))
    assert document["spec"]["container"]["image"] == "own:1"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": ("/elsewhere/in.parquet",)}, "cannot read /elsewhere/in.parquet"),
        ({"files": ("/shared/../etc/in",)}, "cannot read"),
        ({"job_dir": "/home/me/jobs/1"}, "cannot read /home/me/jobs/1"),
        ({"platform_options": {"type": "lepton"}}, "backend.job.image"),
        ({"resources": JobResources(cpus=4)}, "shape"),
        ({"resources": JobResources(memory_gb=4)}, "shape"),
        ({"resources": JobResources(placement="step")}, "no step"),
        ({"resources": JobResources(mail_user="a@b.c")}, "no mail"),
    ],
)
def test_what_a_job_cannot_have_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        specs.job_spec(job(**fields))


def test_a_secret_is_no_value_of_the_environment() -> None:
    with pytest.raises(ValueError, match="looks like a secret"):
        plan_of({"endpoint": {**ENDPOINT, "env": {"HF_TOKEN": "x"}}})


@pytest.mark.parametrize("found", ["0.46.9", "0.47.0", "0.48.0", "1.0.0"])
def test_other_versions_of_the_sdk_are_refused(found: str) -> None:
    with pytest.raises(PlatformError, match=f"leptonai {found} is installed"):
        sdk.check_version(found)


def test_the_tested_versions_are_taken() -> None:
    sdk.check_version("0.47.1")
    sdk.check_version("0.47.12")
    assert sdk.version() == "0.47.1"


def test_the_sdk_is_not_imported_before_it_is_used() -> None:
    program = "import sys, domyn_swarm.backends.lepton; print('leptonai' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
