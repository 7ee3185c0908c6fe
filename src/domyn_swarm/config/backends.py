"""The `backend` section: one model per platform, selected by `type`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from domyn_swarm.config.mistakes import WrongNames
from domyn_swarm.config.preamble import check_line
from domyn_swarm.config.section import Section
from domyn_swarm.config.units import memory_gb, time_limit_s

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(?:API|ACCESS|PRIVATE)_?KEY)"
    r"(?:[_\d]|$)|(?:TOKEN|SECRET|PASSWORD|APIKEY)$",
    re.IGNORECASE,
)
_PATH = re.compile(r"_(?:PATH|FILE|DIR)$", re.IGNORECASE)  # the path of a secret is not secret


def _variables(env: dict[str, str]) -> dict[str, str]:
    unusable = [name for name in env if not _NAME.fullmatch(name)]
    if unusable:
        raise WrongNames(unusable, "is not the name of a variable: use letters, digits and _")
    return env


def _environment(env: dict[str, str]) -> dict[str, str]:
    _variables(env)
    secret = [name for name in env if _SECRET.search(name) and not _PATH.search(name)]
    if secret:
        raise WrongNames(
            secret,
            "looks like a secret and would be written to disk; "
            "export it in your shell instead: engines inherit it",
        )
    return env


def _memory(value: str) -> str:
    memory_gb(value)
    return value


def _time_limit(value: str) -> str:
    time_limit_s(value)
    return value


TimeLimit = Annotated[str, AfterValidator(_time_limit)]


class TimeRange(Section):
    """A time limit between two, of which Slurm chooses one as it starts the job."""

    min: TimeLimit = Field(description="shortest time limit with which it may start")
    max: TimeLimit = Field(description="longest time limit that it may be given")

    @field_validator("min")
    @classmethod
    def _is_limited(cls, value: str) -> str:
        if time_limit_s(value) == float("inf"):
            raise ValueError("0 means no limit: write the shortest time, such as 1:00:00")
        return value

    @field_validator("max")
    @classmethod
    def _not_less_than_min(cls, value: str, info: ValidationInfo) -> str:
        least = info.data.get("min")
        if least is not None and time_limit_s(value) <= time_limit_s(least):
            raise ValueError(f"{value} is not longer than min ({least})")
        return value


TimeLimits = Annotated[
    Annotated[TimeLimit, Tag("time")] | Annotated[TimeRange, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, Mapping | TimeRange) else "time"),
]


def _node_memory(value: str) -> str:
    return value if value == "0" else _memory(value)


def _gres(value: str) -> str:
    if value != "none" and (value.count("{n}") != 1 or not value.isprintable()):
        raise ValueError("write how GPUs are requested, with {n} for their number, or none")
    return value


def _joined(value: object) -> object:
    """Several partitions as Slurm writes them."""
    if not isinstance(value, list | tuple):
        return value
    if not value or not all(isinstance(one, str) and one and "," not in one for one in value):
        raise ValueError("must be the name of a partition, or a list of such names: [gpu, spare]")
    return ",".join(value)


_NAMES = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Partition = Annotated[str, BeforeValidator(_joined), WithJsonSchema(_NAMES)]
Env = Annotated[dict[str, str], AfterValidator(_environment)]
SecretEnv = Annotated[dict[str, str], AfterValidator(_variables)]
Memory = Annotated[str, AfterValidator(_memory)]
NodeMemory = Annotated[str, AfterValidator(_node_memory)]
Gres = Annotated[str, AfterValidator(_gres)]


class LocalConfig(Section):
    """Replicas are processes on this machine that outlive the command."""

    type: Literal["local"] = Field("local", description="this machine")


class SlurmEndpointConfig(Section):
    """The small CPU-only job that runs router and collector."""

    partition: Partition | None = Field(None, description="empty: the partition of the replicas")
    qos: str | None = Field(None, description="empty: the QOS of the replicas")
    cpus_per_task: int = Field(2, ge=1, description="CPUs of the job")
    mem: Memory | None = Field(
        "8G",
        description="memory of the job, such as 8G; jobs that are followed run as steps of it; "
        "empty: no --mem is passed",
    )
    wall_time: TimeLimit | None = Field(
        None, description="time limit, at least that of the replicas; empty: that of the replicas"
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="port of the endpoint; empty: any free port"
    )
    timeout_s: float = Field(
        600.0,
        gt=0,
        description="seconds after the start of its job until the endpoint must listen",
    )


class SlurmConfig(Section):
    """Replicas are tasks of Slurm jobs."""

    type: Literal["slurm"] = Field("slurm", description="a Slurm cluster")
    partition: Partition = Field(
        description="partition of the replicas; `sinfo` lists them. Of several, [gpu, spare], "
        "Slurm takes the one in which a job starts first"
    )
    account: str | None = Field(
        None, description="account that pays for the GPU hours; empty: your default"
    )
    qos: str | None = Field(None, description="empty: the site's default")
    time_limit: TimeLimits = Field(
        "36:00:00",
        description="time limit of each replica: 36:00:00, 90 (minutes) or 2-12:00:00 (days); or "
        "{min: 1:00:00, max: 12:00:00}: Slurm may give less so that it starts sooner (--time-min)",
    )
    node_list: str | None = Field(
        None, description="use only these nodes, in sbatch's notation: node[01-04]"
    )
    exclude_nodes: str | None = Field(None, description="do not use these nodes")
    modules: tuple[str, ...] = Field((), description="environment modules to load on the nodes")
    preamble: tuple[Annotated[str, AfterValidator(check_line)], ...] = Field(
        (),
        description="further #SBATCH lines, such as '#SBATCH --reservation=x'; the endpoint and "
        "separate jobs get those that request no GPUs, unless endpoint.partition is set",
    )
    comment: str | None = Field(
        None, description="text for --comment that the site requires; appended to our own"
    )
    container: Literal["apptainer", "singularity", "enroot", "pyxis", "none"] | None = Field(
        None,
        description="what runs `image`; none: the node's own programs; empty: apptainer with an "
        "image, none without",
    )
    container_args: tuple[str, ...] = Field(
        (), description="further arguments of the container program"
    )
    mounts: dict[str, str] = Field(
        default_factory=dict,
        description="folders of the node to mount in the container: {/outside: /inside}",
    )
    venv_path: str | None = Field(
        None,
        description="Python environment on the nodes; empty: the environment that runs `up`",
    )
    env: Env = Field(default_factory=dict, description="environment of the batch scripts")
    requeue: bool = Field(
        True, description="whether a replica is queued again when it loses its node"
    )
    drain_before_end_s: int = Field(
        300,
        ge=0,
        validate_default=True,  # the time limit may be shorter than the default
        description="seconds before the time limit at which a replica stops taking requests",
    )
    packing: Literal["auto", "replica", "node"] = Field(
        "auto",
        description="replicas per task: one (replica), as many as fit on a node (node), or "
        "whichever the site requires (auto)",
    )
    gres: Gres = Field(
        "gpu:{n}",
        description="how n GPUs are requested with --gres, such as gpu:a100:{n} to choose a type; "
        "none: pass no --gres, if the site has no GRES (tasks then take whole nodes) or `preamble` "
        "requests the GPUs",
    )
    mem: NodeMemory | None = Field(
        "0",
        description="memory of tasks that take whole nodes, such as 480G; 0: all memory of the "
        "node; empty: no --mem is passed",
    )
    mail_user: str | None = Field(
        default_factory=lambda: os.environ.get("DOMYN_SWARM_MAIL_USER") or None,
        description="recipient of Slurm's mails; empty: DOMYN_SWARM_MAIL_USER",
    )
    template_path: str | None = Field(
        None, description="your own template, instead of the built-in batch script"
    )
    requires_ray: bool = Field(
        False, description="whether a replica that spans several nodes runs as a Ray cluster"
    )
    ray_port: int = Field(6379, ge=1, le=65535, description="port of Ray's head node")
    ray_dashboard_port: int = Field(8265, ge=1, le=65535, description="port of Ray's dashboard")
    endpoint: SlurmEndpointConfig = SlurmEndpointConfig()

    @property
    def longest_limit(self) -> str:
        """The time limit of a replica, or the longest that it may be given."""
        return self.time_limit.max if isinstance(self.time_limit, TimeRange) else self.time_limit

    @property
    def shortest_limit(self) -> str | None:
        """The shortest that it may be given; None: there is one alone."""
        return self.time_limit.min if isinstance(self.time_limit, TimeRange) else None

    @field_validator("drain_before_end_s")
    @classmethod
    def _leaves_time_to_serve(cls, value: int, info: ValidationInfo) -> int:
        limit = info.data.get("time_limit")
        if isinstance(limit, TimeRange) and value >= time_limit_s(limit.min):
            raise ValueError(f"must be shorter than time_limit.min ({limit.min})")
        if isinstance(limit, str) and value >= time_limit_s(limit):
            raise ValueError(f"must be shorter than time_limit ({limit})")
        return value

    @field_validator("endpoint")
    @classmethod
    def _outlives_replicas(
        cls, value: SlurmEndpointConfig, info: ValidationInfo
    ) -> SlurmEndpointConfig:
        limit = info.data.get("time_limit")
        limit = limit.max if isinstance(limit, TimeRange) else limit
        if limit and value.wall_time and time_limit_s(value.wall_time) < time_limit_s(limit):
            raise ValueError(f"wall_time must not be shorter than the replicas' {limit}")
        return value


class LeptonMount(Section):
    """A path of the workspace's storage inside the container."""

    path: str = Field(description="path in the workspace's storage")
    volume: str = Field(description="which storage: node-local, node-nfs:NAME or another")
    mount_path: str = Field(description="path in the container")


class _LeptonContainer(Section):
    """A container of the workspace, and where it may run."""

    image: str | None = Field(None, description="container image; empty: `image` of the swarm")
    resource_shape: str = Field(description="machine type, as the workspace names it")
    allowed_dedicated_node_groups: tuple[str, ...] = Field(
        (), description="node groups that may run it; empty: any"
    )
    allowed_nodes: tuple[str, ...] = Field((), description="nodes that may run it; empty: any")
    mounts: tuple[LeptonMount, ...] = Field(
        (), description="storage to mount: [{volume: name, path: /outside, mount_path: /inside}]"
    )
    env: Env = Field(default_factory=dict, description="environment variables")
    secret_env: SecretEnv = Field(
        default_factory=dict,
        description="environment variables from workspace secrets: {NAME: secret}",
    )
    image_pull_secrets: tuple[str, ...] = Field(
        (), description="workspace secrets for pulling the image"
    )


class LeptonJobConfig(_LeptonContainer):
    """How jobs run in the workspace."""

    resource_shape: str = Field("cpu.small", description="machine type, as the workspace names it")


class LeptonEndpointConfig(_LeptonContainer):
    """How the endpoint runs in the workspace."""

    resource_shape: str = Field("gpu.8xh200", description="machine type, as the workspace names it")
    api_token_secret_name: str | None = Field(
        None, description="workspace secret that holds the clients' API key"
    )

    @property
    def gpus(self) -> int | None:
        """The number of GPUs of the shape by its name (`gpu.8xh200`, `gpu.a10`); None: unknown."""
        match = re.fullmatch(r"gpu\.(?:(\d+)x)?[\w-]+", self.resource_shape)
        if match is None:
            return 0 if self.resource_shape.startswith("cpu.") else None
        return int(match[1] or 1)


class LeptonConfig(Section):
    """The swarm is an endpoint of NVIDIA DGX Cloud Lepton, its jobs are Lepton's jobs."""

    type: Literal["lepton"] = Field("lepton", description="NVIDIA DGX Cloud Lepton")
    workspace_id: str | None = Field(None, description="empty: LEPTON_WORKSPACE_ID")
    env: Env = Field(default_factory=dict, description="environment variables of endpoint and jobs")
    endpoint: LeptonEndpointConfig = LeptonEndpointConfig()
    job: LeptonJobConfig = LeptonJobConfig()


BackendConfig = Annotated[LocalConfig | SlurmConfig | LeptonConfig, Field(discriminator="type")]
