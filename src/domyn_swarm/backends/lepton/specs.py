"""Names and documents of a workspace's deployments, jobs and secrets. Pure: names are derived from
the swarm's tag or the job's id alone, so that they are found again after a crash.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from domyn_swarm.backends.job_end import exit_wrapper
from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.config.backends import LeptonConfig, LeptonEndpointConfig, LeptonJobConfig
from domyn_swarm.errors import ConfigError, quantity
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

TAG = "DOMYN_SWARM_TAG"  # environment variable of the endpoint with the swarm's tag
TAG_LABEL = "domyn-swarm-tag"
JOB_LABEL = "domyn-swarm-job"
_MAX_NAME = 36  # characters


def digest(text: str) -> str:
    """A hash of twelve hexadecimal digits, short enough for names and labels."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def deployment_name(tag: str) -> str:
    """The name of a swarm's deployment: its name, truncated if necessary, and its tag's digest."""
    return _name(tag.rpartition(".")[0] or "swarm", digest(tag))


def secret_name(tag: str) -> str:
    """The name of the workspace secret with the clients' API key, unless the user names one."""
    return f"domyn-swarm-{digest(tag)}"


def job_name(job_id: str) -> str:
    """The name of a job of the workspace."""
    return _name("job", digest(job_id))


def _name(prefix: str, suffix: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", prefix.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"s-{slug}"
    return f"{slug[: _MAX_NAME - len(suffix) - 1].strip('-')}-{suffix}"


Document = dict[str, Any]
PYTHON = "python3"  # in the images, which do not contain the submitter's interpreter
_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - inside a container
_LIVE_LOGS = {"PYTHONUNBUFFERED": "1"}  # otherwise lines reach the platform's log much later
_TARGET_UTILIZATION = 80  # percent of the GPUs above which the platform adds replicas
_KEEP_JOB_S = 3 * 86400  # how long an ended job and its logs are kept, at no cost


def section(options: Mapping[str, Any]) -> LeptonConfig:
    """The backend section in a plan, or in a job's options."""
    return LeptonConfig.model_validate(options or {"type": "lepton"})


def key_secret(config: LeptonConfig, tag: str) -> str:
    """The name of the workspace secret with the clients' API key."""
    return config.endpoint.api_token_secret_name or secret_name(tag)


def endpoint_spec(plan: DeploymentPlan, ctx: DeploymentContext) -> Document:
    """The document of the deployment that is the swarm's endpoint, with its replicas.

    Raises:
        ConfigError: no image is set, or the platform cannot serve the plan.
    """
    config = section(plan.backend_options)
    endpoint, serving = config.endpoint, ctx.serving_spec
    _check_servable(plan, endpoint)
    key = key_secret(config, ctx.tag)
    env = {**_LIVE_LOGS, **config.env, **serving.env, **endpoint.env, TAG: ctx.tag}
    secrets = dict(endpoint.secret_env)
    if serving.key_env is not None:
        secrets[serving.key_env] = key
    spec = {
        "container": {
            "image": endpoint.image or plan.image,
            "command": _engine_command(plan, ctx),
            "ports": [{"container_port": plan.port_from}],
        },
        "resource_requirement": {
            "resource_shape": endpoint.resource_shape,
            **_replicas(plan),
            **_affinity(endpoint),
        },
        "envs": _envs(env, secrets),
        "mounts": _mounts(endpoint),
        "image_pull_secrets": list(endpoint.image_pull_secrets),
        "api_tokens": [{"value_from": {"token_name_ref": key}}],
        # An engine does not listen while it loads its model, and must not be restarted for that.
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
    """The number of replicas; for an elastic swarm, the bounds of the platform's autoscaler."""
    if plan.elastic is None:
        return {"min_replicas": plan.layout.replicas}
    return {"min_replicas": plan.elastic.least, "max_replicas": plan.layout.replicas}


def replicas_patch(replicas: int) -> Document:
    """The document with which `scale` changes the number of replicas."""
    return {"spec": {"resource_requirement": {"min_replicas": replicas}}}


def job_spec(spec: ComputeSpec) -> Document:
    """The document of a job: its program, run by the wrapper that records how it ended.

    Raises:
        ConfigError: no image is set, or the job's files are not mounted in it.
    """
    config = section(spec.platform_options)
    job = config.job
    check_job(spec, config)
    env = {**_LIVE_LOGS, **config.env, **job.env, **spec.env}
    secrets = dict(job.secret_env)
    labels = {JOB_LABEL: digest(spec.job_id)}
    if spec.tag is not None:
        labels[TAG_LABEL] = digest(spec.tag)
        secrets["DOMYN_SWARM_API_TOKEN"] = key_secret(config, spec.tag)
    name = job_name(spec.job_id)
    return {
        "metadata": {"id": name, "name": name, "labels": labels},
        "spec": {
            "resource_shape": job.resource_shape,
            **_affinity(job),
            "container": {"image": job.image, "command": _job_command(spec, job)},
            "envs": _envs(env, secrets),
            "mounts": _mounts(job),
            "image_pull_secrets": list(job.image_pull_secrets),
            "completions": 1,
            "parallelism": 1,
            "max_failure_retry": 0,  # a job is continued from its checkpoint, by the user
            "ttl_seconds_after_finished": _KEEP_JOB_S,
        },
    }


def check_job(spec: ComputeSpec, config: LeptonConfig) -> None:
    """Refuse resources and files that a job of the workspace cannot have.

    Raises:
        ConfigError: the job requests such a resource, or uses a file that is not mounted.
    """
    resources = spec.resources
    if resources.placement == "step" or resources.mail_user is not None:
        option = "step of the endpoint" if resources.placement == "step" else "mail"
        raise ConfigError(f"Lepton has no {option} for jobs.", hint="Leave out the flag.")
    if resources.cpus is not None or resources.memory_gb is not None:
        raise ConfigError(
            "On Lepton the resource shape sets the CPUs and the memory of a job.",
            hint=f"Set backend.job.resource_shape (now {config.job.resource_shape}).",
        )
    if config.job.image is None:
        raise ConfigError(
            "backend.job.image is not set: a job needs a container image.",
            hint="Set it to an image in which domyn-swarm is installed, or use --run-here.",
        )
    missing = [path for path in (spec.job_dir, *spec.files) if not _is_mounted(path, config.job)]
    if missing:
        places = ", ".join(mount.mount_path for mount in config.job.mounts) or "nothing"
        raise ConfigError(
            f"A job in the workspace cannot read {missing[0]}: backend.job.mounts mounts {places}.",
            hint="Mount shared storage at the path it has here (with home_directory in it), "
            "or run the job on this machine with --run-here.",
        )


def _check_servable(plan: DeploymentPlan, endpoint: LeptonEndpointConfig) -> None:
    if endpoint.image is None and plan.image is None:
        raise ConfigError(
            "backend.endpoint.image is not set: the engine needs a container image.",
            hint=f"Set it to an image that contains {plan.engine}.",
        )
    if plan.layout.nodes_per_replica > 1:
        raise ConfigError(
            f"A replica of {plan.layout.gpus_per_replica} GPUs would need "
            f"{plan.layout.nodes_per_replica} nodes; on Lepton it is one container.",
            hint="Set gpus_per_node to the GPUs of the resource shape, or lower gpus_per_replica.",
        )
    if plan.elastic is not None and (plan.elastic.least == 0 or plan.elastic.keep_s is not None):
        option = "min of 0" if plan.elastic.least == 0 else "keep_s"
        raise ConfigError(
            f"replicas has a {option}, but on Lepton the platform's own autoscaler decides.",
            hint="Set min to 1 or more, and remove keep_s; with idle_timeout_s the platform "
            "stops the last replica when there is no traffic.",
        )
    has, wanted = endpoint.gpus, plan.layout.gpus_per_replica
    if has is not None and wanted not in (0, has):
        raise ConfigError(
            f"backend.endpoint.resource_shape {endpoint.resource_shape} has "
            f"{quantity(has, 'GPU')}, but gpus_per_replica is {wanted}.",
            hint="A replica uses its whole shape: make the two agree, or remove gpus_per_replica.",
        )


def _engine_command(plan: DeploymentPlan, ctx: DeploymentContext) -> list[str]:
    """The engine's command line, with the placeholders of `ServingSpec` replaced.

    Raises:
        ConfigError: it contains `{replica}`, which has no value here.
    """
    if "{replica}" in ctx.serving_spec.argv:
        raise ConfigError(
            "engine_options: on Lepton replicas have no numbers, so they cannot differ by them.",
            hint="Lepton starts all replicas alike: remove {replica} from `argv`, and set "
            "vllm.speed of the engine sim to one number.",
        )
    values = {"{python}": PYTHON, "{host}": _EVERY_ADDRESS, "{port}": str(plan.port_from)}

    def filled(word: str) -> str:
        for placeholder, value in values.items():
            word = word.replace(placeholder, value)
        return word

    return [filled(word) for word in ctx.serving_spec.argv]


def _job_command(spec: ComputeSpec, job: LeptonJobConfig) -> list[str]:
    argv = [PYTHON if word == sys.executable else word for word in spec.argv]
    folder = spec.cwd if _is_mounted(spec.cwd, job) else spec.job_dir
    return exit_wrapper(PYTHON, spec.model_copy(update={"cwd": folder}), argv)


def _is_mounted(place: str, job: LeptonJobConfig) -> bool:
    """Whether the job can read `place` under the same name: a URL, or a path in a mount."""
    if re.match(r"[A-Za-z][\w+.-]*://", place):
        return True
    path = PurePosixPath(posixpath.normpath(place))
    return any(path.is_relative_to(mount.mount_path) for mount in job.mounts)


def _affinity(container: LeptonEndpointConfig | LeptonJobConfig) -> Document:
    affinity = {
        "allowed_dedicated_node_groups": list(container.allowed_dedicated_node_groups),
        "allowed_nodes_in_node_group": list(container.allowed_nodes),
    }
    chosen = {name: value for name, value in affinity.items() if value}
    return {"affinity": chosen} if chosen else {}


def _envs(values: Mapping[str, str], secrets: Mapping[str, str]) -> list[Document]:
    plain = [{"name": name, "value": value} for name, value in values.items()]
    secret = [
        {"name": name, "value_from": {"secret_name_ref": reference}}
        for name, reference in secrets.items()
    ]
    return [*plain, *secret]


def _mounts(container: LeptonEndpointConfig | LeptonJobConfig) -> list[Document]:
    return [
        {"path": mount.path, "from": mount.volume, "mount_path": mount.mount_path}
        for mount in container.mounts
    ]
