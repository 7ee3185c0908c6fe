"""The `backend` section: one model per platform, told apart by `type`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(?:API|ACCESS|PRIVATE)_?KEY)"
    r"(?:[_\d]|$)|(?:TOKEN|SECRET|PASSWORD|APIKEY)$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"_(?:PATH|FILE|DIR)$", re.IGNORECASE)  # where a secret lies is none
_TIME_LIMIT = re.compile(
    r"(?:(?P<days>\d+)-)(?P<h>\d+)(?::(?P<m>\d{1,2}))?(?::(?P<s>\d{1,2}))?"
    r"|(?:(?P<hours>\d+):(?=\d+:))?(?P<minutes>\d+)(?::(?P<seconds>\d{1,2}))?"
)
_MEMORY = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[KMGT]?)B?", re.IGNORECASE)
_GB = {"K": 1 / 1024**2, "M": 1 / 1024, "": 1 / 1024, "G": 1.0, "T": 1024.0}


class Section(BaseModel):
    """A part of the configuration: frozen, and without room for unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        hide_input_in_errors=True,  # it may be a secret
    )


class WrongNames(ValueError):
    """Some keys of a mapping cannot be; each is told of at its own line."""

    def __init__(self, names: Iterable[str], why: str) -> None:
        self.names = sorted(names)
        self.why = why
        super().__init__(f"{', '.join(self.names)} {why}")


def _environment(env: dict[str, str]) -> dict[str, str]:
    unusable = [name for name in env if not _NAME.fullmatch(name)]
    if unusable:
        raise WrongNames(unusable, "is no name of a variable: use letters, digits and _")
    secret = [name for name in env if _SECRET.search(name) and not _PLACE.search(name)]
    if secret:
        raise WrongNames(
            secret,
            "looks like a secret and would be written to disk; "
            "export it in your shell instead: engines inherit it",
        )
    return env


def time_limit_s(value: str) -> float:
    """The seconds of a time as Slurm writes it; 0 is no limit: infinitely many.

    Raises:
        ValueError: it is none.
    """
    found = _TIME_LIMIT.fullmatch(value)
    if found is None:
        raise ValueError("write a time like 36:00:00, 90 (minutes) or 2-12:00:00 (days)")
    part = {name: int(digits or 0) for name, digits in found.groupdict().items()}
    hours = part["days"] * 24 + part["h"] + part["hours"]
    minutes = hours * 60 + part["m"] + part["minutes"]
    return (minutes * 60 + part["s"] + part["seconds"]) or float("inf")


def memory_gb(value: str) -> float:
    """The gigabytes of a memory size as Slurm writes it: `8G`, `500M`; a bare number is megabytes.

    Raises:
        ValueError: it is none.
    """
    found = _MEMORY.fullmatch(value)
    if found is None or not float(found["number"]):
        raise ValueError("write a size like 8G or 500M")
    return float(found["number"]) * _GB[found["unit"].upper()]


def _memory(value: str) -> str:
    memory_gb(value)
    return value


def _time_limit(value: str) -> str:
    time_limit_s(value)
    return value


Env = Annotated[dict[str, str], AfterValidator(_environment)]
Memory = Annotated[str, AfterValidator(_memory)]
TimeLimit = Annotated[str, AfterValidator(_time_limit)]


class LocalConfig(Section):
    """Replicas are processes on this machine that outlive the command line."""

    type: Literal["local"] = "local"


class SlurmEndpointConfig(Section):
    """The small CPU-only job that holds router and collector."""

    partition: str | None = None
    qos: str | None = None
    cpus_per_task: int = Field(2, ge=1)
    mem: Memory = "8G"
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
    mail_user: str | None = Field(
        default_factory=lambda: os.environ.get("DOMYN_SWARM_MAIL_USER") or None
    )
    template_path: str | None = None
    requires_ray: bool = False
    ray_port: int = Field(6379, ge=1, le=65535)
    ray_dashboard_port: int = Field(8265, ge=1, le=65535)
    endpoint: SlurmEndpointConfig = SlurmEndpointConfig()

    @field_validator("drain_before_end_s")
    @classmethod
    def _leaves_time_to_serve(cls, value: int, info: ValidationInfo) -> int:
        limit = info.data.get("time_limit")
        if limit is not None and value >= time_limit_s(limit):
            raise ValueError(f"must be shorter than time_limit ({limit})")
        return value

    @field_validator("endpoint")
    @classmethod
    def _outlives_replicas(
        cls, value: SlurmEndpointConfig, info: ValidationInfo
    ) -> SlurmEndpointConfig:
        limit = info.data.get("time_limit")
        if limit and value.wall_time and time_limit_s(value.wall_time) < time_limit_s(limit):
            raise ValueError(f"wall_time must not be shorter than the replicas' {limit}")
        return value


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
    workspace_id: str | None = None  # else `LEPTON_WORKSPACE_ID`
    env: Env = Field(default_factory=dict)
    endpoint: LeptonEndpointConfig = LeptonEndpointConfig()
    job: LeptonJobConfig = LeptonJobConfig()


BackendConfig = Annotated[LocalConfig | SlurmConfig | LeptonConfig, Field(discriminator="type")]
