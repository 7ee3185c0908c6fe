"""The `backend` section: one model per platform, told apart by `type`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_TIME_LIMIT = re.compile(r"^(?:\d+-\d{1,2}(?::\d{2}(?::\d{2})?)?|\d+(?::\d{2}){0,2})$")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)


class Section(BaseModel):
    """A part of the configuration: frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _no_secrets(env: dict[str, str]) -> dict[str, str]:
    secret = sorted(name for name in env if _SECRET_NAME.search(name))
    if secret:
        raise ValueError(
            f"{', '.join(secret)} looks like a secret and would be written to disk; "
            "export it in your shell instead: engines inherit it"
        )
    return env


def _time_limit(value: str) -> str:
    if not _TIME_LIMIT.match(value):
        raise ValueError("is not a time like 36:00:00, 90 (minutes) or 2-12:00:00 (days)")
    return value


Env = Annotated[dict[str, str], AfterValidator(_no_secrets)]
TimeLimit = Annotated[str, AfterValidator(_time_limit)]


class LocalConfig(Section):
    """Replicas are processes on this machine that outlive the command line."""

    type: Literal["local"] = "local"


class SlurmEndpointConfig(Section):
    """The small CPU-only job that holds router and collector."""

    partition: str | None = None
    qos: str | None = None
    cpus_per_task: int = Field(2, ge=1)
    mem: str = "8G"
    wall_time: TimeLimit | None = None
    port: int | None = Field(None, ge=1, le=65535)
    timeout_s: float = Field(600.0, gt=0)


class SlurmConfig(Section):
    """Replicas are tasks of Slurm jobs."""

    type: Literal["slurm"] = "slurm"
    partition: str
    account: str | None = None
    qos: str | None = None
    time_limit: TimeLimit = "36:00:00"
    node_list: str | None = None
    exclude_nodes: str | None = None
    modules: tuple[str, ...] = ()
    preamble: tuple[str, ...] = ()
    container: Literal["apptainer", "singularity", "enroot", "pyxis", "none"] = "apptainer"
    container_args: tuple[str, ...] = ()
    mounts: dict[str, str] = Field(default_factory=dict)
    venv_path: str | None = None
    env: Env = Field(default_factory=dict)
    requeue: bool = True
    drain_before_end_s: int = Field(300, ge=0)
    packing: Literal["auto", "replica", "node"] = "auto"
    mail_user: str | None = None
    template_path: str | None = None
    requires_ray: bool = False
    ray_port: int = Field(6379, ge=1, le=65535)
    ray_dashboard_port: int = Field(8265, ge=1, le=65535)
    endpoint: SlurmEndpointConfig = SlurmEndpointConfig()


class LeptonMount(Section):
    """A path of the workspace's storage inside the container."""

    path: str
    mount_path: str


class LeptonJobConfig(Section):
    """How jobs run in the workspace."""

    image: str | None = None
    resource_shape: str = "cpu.small"
    allowed_dedicated_node_groups: tuple[str, ...] = ()
    allowed_nodes: tuple[str, ...] = ()
    mounts: tuple[LeptonMount, ...] = ()
    env: Env = Field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()


class LeptonEndpointConfig(Section):
    """How the endpoint runs in the workspace."""

    image: str | None = None
    resource_shape: str = "gpu.8xh200"
    allowed_dedicated_node_groups: tuple[str, ...] = ()
    allowed_nodes: tuple[str, ...] = ()
    mounts: tuple[LeptonMount, ...] = ()
    env: Env = Field(default_factory=dict)
    api_token_secret_name: str | None = None
    image_pull_secrets: tuple[str, ...] = ()


class LeptonConfig(Section):
    """The endpoint and the jobs are NVIDIA DGX Cloud Lepton's own."""

    type: Literal["lepton"] = "lepton"
    workspace_id: str
    env: Env = Field(default_factory=dict)
    endpoint: LeptonEndpointConfig = LeptonEndpointConfig()
    job: LeptonJobConfig = LeptonJobConfig()


BackendConfig = Annotated[LocalConfig | SlurmConfig | LeptonConfig, Field(discriminator="type")]
