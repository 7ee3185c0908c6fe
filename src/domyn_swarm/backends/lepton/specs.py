"""What things are called in a workspace. Pure: names follow from the swarm's tag or the job's id
alone, so that what a crash left is found.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from domyn_swarm.backends.base import ComputeSpec, exit_wrapper
from domyn_swarm.config.backends import LeptonConfig, LeptonEndpointConfig, LeptonJobConfig
from domyn_swarm.errors import (
    ConfigError,
    quantity,
)
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

TAG = "DOMYN_SWARM_TAG"  # in the endpoint's environment: whose it is
TAG_LABEL = "domyn-swarm-tag"
JOB_LABEL = "domyn-swarm-job"
_LONGEST = 36  # of a name


def digest(text: str) -> str:
    """Twelve hexadecimal digits that tell tags apart, and fit into names and labels."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def deployment_name(tag: str) -> str:
    """Of the endpoint: the swarm's name as far as it fits, and its tag's digest."""
    return _name(tag.rpartition(".")[0] or "swarm", digest(tag))


def secret_name(tag: str) -> str:
    """Of the workspace secret that holds the clients' key, where the user names none."""
    return f"domyn-swarm-{digest(tag)}"


def job_name(job_id: str) -> str:
    """Of a job."""
    return _name("job", digest(job_id))


def _name(what: str, suffix: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"s-{slug}"
    return f"{slug[: _LONGEST - len(suffix) - 1].strip('-')}-{suffix}"


Document = dict[str, Any]
PYTHON = "python3"  # of the images: the submitter's interpreter is not there
_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - a container's own
_LIVE_LOGS = {"PYTHONUNBUFFERED": "1"}  # else the platform sees what is printed much later
_TARGET_UTILIZATION = 80  # percent of the GPUs: beyond it the platform adds replicas
_KEEP_JOB_S = 3 * 86400  # after its end, for its logs; it costs nothing any more


def section(options: Mapping[str, Any]) -> LeptonConfig:
    """The backend's section out of a plan, or of a job's options."""
    return LeptonConfig.model_validate(options or {"type": "lepton"})


def key_secret(config: LeptonConfig, tag: str) -> str:
    """The workspace secret that holds the clients' key."""
    return config.endpoint.api_token_secret_name or secret_name(tag)


def endpoint_spec(plan: DeploymentPlan, ctx: DeploymentContext) -> Document:
    """The deployment that is the swarm's endpoint, with its replicas.

    Raises:
        ConfigError: the platform cannot serve it that way, or no image is named.
    """
    config = section(plan.backend_options)
    asked, serving = config.endpoint, ctx.serving_spec
    _check_servable(plan, asked)
    key = key_secret(config, ctx.tag)
    env = {**_LIVE_LOGS, **config.env, **serving.env, **asked.env, TAG: ctx.tag}
    secrets = dict(asked.secret_env)
    if serving.key_env is not None:
        secrets[serving.key_env] = key
    spec = {
        "container": {
            "image": asked.image or plan.image,
            "command": _engine_command(plan, ctx),
            "ports": [{"container_port": plan.port_from}],
        },
        "resource_requirement": {
            "resource_shape": asked.resource_shape,
            **_replicas(plan),
            **_affinity(asked),
        },
        "envs": _envs(env, secrets),
        "mounts": _mounts(asked),
        "image_pull_secrets": list(asked.image_pull_secrets),
        "api_tokens": [{"value_from": {"token_name_ref": key}}],
        # An engine that loads its model does not listen yet, and is not to be restarted for it.
        "health": {"liveness": {"initial_delay_seconds": int(plan.watchdog.readiness_timeout)}},
    }
    scaling: Document = {}
    if plan.elastic is not None:
        scaling["target_gpu_utilization_percentage"] = _TARGET_UTILIZATION
    if plan.idle_timeout_s is not None:
        scaling["scale_down"] = {"no_traffic_timeout": int(plan.idle_timeout_s)}
    if scaling:
        spec["auto_scaler"] = scaling
    name = deployment_name(ctx.tag)
    return {"metadata": {"id": name, "name": name}, "spec": spec}


def _replicas(plan: DeploymentPlan) -> Document:
    """How many; of an elastic swarm the platform's own autoscaler decides that within bounds."""
    if plan.elastic is None:
        return {"min_replicas": plan.layout.replicas}
    return {"min_replicas": plan.elastic.least, "max_replicas": plan.layout.replicas}


def replicas_patch(replicas: int) -> Document:
    """The change that `scale` asks for."""
    return {"spec": {"resource_requirement": {"min_replicas": replicas}}}


def job_spec(spec: ComputeSpec) -> Document:
    """One program of a job, under the wrapper that writes down how it ended.

    Raises:
        ConfigError: no image is named, or its files do not reach it.
    """
    config = section(spec.platform_options)
    asked = config.job
    check_job(spec, config)
    env = {**_LIVE_LOGS, **config.env, **asked.env, **spec.env}
    secrets = dict(asked.secret_env)
    labels = {JOB_LABEL: digest(spec.job_id)}
    if spec.tag is not None:
        labels[TAG_LABEL] = digest(spec.tag)
        secrets["DOMYN_SWARM_API_TOKEN"] = key_secret(config, spec.tag)
    name = job_name(spec.job_id)
    return {
        "metadata": {"id": name, "name": name, "labels": labels},
        "spec": {
            "resource_shape": asked.resource_shape,
            **_affinity(asked),
            "container": {"image": asked.image, "command": _job_command(spec, asked)},
            "envs": _envs(env, secrets),
            "mounts": _mounts(asked),
            "image_pull_secrets": list(asked.image_pull_secrets),
            "completions": 1,
            "parallelism": 1,
            "max_failure_retry": 0,  # going on is the checkpoint's business, and costs no row twice
            "ttl_seconds_after_finished": _KEEP_JOB_S,
        },
    }


def check_job(spec: ComputeSpec, config: LeptonConfig) -> None:
    """Refuse what a job of the workspace cannot be given.

    Raises:
        ConfigError: it is asked for.
    """
    asked = spec.resources
    if asked.placement == "step" or asked.mail_user is not None:
        what = "step of the endpoint" if asked.placement == "step" else "mail"
        raise ConfigError(f"Lepton has no {what} for jobs.", hint="Leave the flag out.")
    if asked.cpus is not None or asked.memory_gb is not None:
        raise ConfigError(
            "On Lepton a job's shape says how many CPUs and how much memory it has.",
            hint=f"Set backend.job.resource_shape (now {config.job.resource_shape}).",
        )
    if config.job.image is None:
        raise ConfigError(
            "backend.job.image names no container image for the job.",
            hint="Name one in which domyn-swarm is installed, or use --run-here.",
        )
    lost = [one for one in (spec.job_dir, *spec.files) if not _reaches(one, config.job)]
    if lost:
        places = ", ".join(mount.mount_path for mount in config.job.mounts) or "nothing"
        raise ConfigError(
            f"A job in the workspace would not see {lost[0]}: backend.job.mounts mounts {places}.",
            hint="Mount shared storage under the path it has here (and home_directory in it), "
            "or drive the endpoint from this machine with --run-here.",
        )


def _check_servable(plan: DeploymentPlan, asked: LeptonEndpointConfig) -> None:
    if asked.image is None and plan.image is None:
        raise ConfigError(
            "backend.endpoint.image names no container image for the engine.",
            hint=f"Name one that holds {plan.engine}.",
        )
    if plan.layout.nodes_per_replica > 1:
        raise ConfigError(
            f"A replica of {plan.layout.gpus_per_replica} GPUs would need "
            f"{plan.layout.nodes_per_replica} nodes; on Lepton it is one container.",
            hint="Set gpus_per_node to what the resource shape has, or lower gpus_per_replica.",
        )
    if plan.elastic is not None and (plan.elastic.least == 0 or plan.elastic.keep_s is not None):
        what = "min of 0" if plan.elastic.least == 0 else "keep_s"
        raise ConfigError(
            f"replicas has a {what}, and on Lepton the platform's own autoscaler decides.",
            hint="Set min to 1 or more, and leave keep_s out; with idle_timeout_s the platform "
            "takes the last replica away without traffic.",
        )
    has, wanted = asked.gpus, plan.layout.gpus_per_replica
    if has is not None and wanted not in (0, has):
        raise ConfigError(
            f"backend.endpoint.resource_shape {asked.resource_shape} has {quantity(has, 'GPU')}, "
            f"but gpus_per_replica is {wanted}.",
            hint="A replica has its shape to itself: make the two agree, or leave out "
            "gpus_per_replica.",
        )


def _engine_command(plan: DeploymentPlan, ctx: DeploymentContext) -> list[str]:
    """Exact tokens only, as `ServingSpec` promises. Raises ConfigError: `{replica}` is one."""
    if "{replica}" in ctx.serving_spec.argv:
        raise ConfigError(
            "engine_options: replicas are to differ by their number, which they do not have here.",
            hint="Lepton starts all of them alike: take {replica} out of `argv`, and give "
            "vllm.speed of the engine sim as one number.",
        )
    values = {"{python}": PYTHON, "{host}": _EVERY_ADDRESS, "{port}": str(plan.port_from)}

    def filled(word: str) -> str:
        for place, value in values.items():
            word = word.replace(place, value)
        return word

    return [filled(word) for word in ctx.serving_spec.argv]


def _job_command(spec: ComputeSpec, asked: LeptonJobConfig) -> list[str]:
    argv = [PYTHON if word == sys.executable else word for word in spec.argv]
    folder = spec.cwd if _reaches(spec.cwd, asked) else spec.job_dir
    return exit_wrapper(PYTHON, spec.model_copy(update={"cwd": folder}), argv)


def _reaches(place: str, asked: LeptonJobConfig) -> bool:
    """Whether the job sees it under the same name: a URL, or in what is mounted."""
    if re.match(r"[A-Za-z][\w+.-]*://", place):
        return True
    inside = PurePosixPath(posixpath.normpath(place))
    return any(inside.is_relative_to(mount.mount_path) for mount in asked.mounts)


def _affinity(asked: LeptonEndpointConfig | LeptonJobConfig) -> Document:
    affinity = {
        "allowed_dedicated_node_groups": list(asked.allowed_dedicated_node_groups),
        "allowed_nodes_in_node_group": list(asked.allowed_nodes),
    }
    chosen = {name: value for name, value in affinity.items() if value}
    return {"affinity": chosen} if chosen else {}


def _envs(values: Mapping[str, str], secrets: Mapping[str, str]) -> list[Document]:
    plain = [{"name": name, "value": value} for name, value in values.items()]
    kept = [
        {"name": name, "value_from": {"secret_name_ref": secret}}
        for name, secret in secrets.items()
    ]
    return [*plain, *kept]


def _mounts(asked: LeptonEndpointConfig | LeptonJobConfig) -> list[Document]:
    return [
        {"path": mount.path, "from": mount.volume, "mount_path": mount.mount_path}
        for mount in asked.mounts
    ]
