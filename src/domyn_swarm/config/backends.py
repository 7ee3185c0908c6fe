"""The `backend` section: one model per platform, told apart by `type`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from domyn_swarm.config.preamble import check_line

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
_UNITS = {"h": "hours", "m": "minutes", "minutes": "minutes", "s": "seconds", "seconds": "seconds"}
_WITHIN = (  # a part of a time, the one before it, and what fits there
    *(("h", "days", 23), ("m", "h", 59), ("s", "m", 59)),
    *(("minutes", "hours", 59), ("seconds", "minutes", 59)),
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


def _variables(env: dict[str, str]) -> dict[str, str]:
    unusable = [name for name in env if not _NAME.fullmatch(name)]
    if unusable:
        raise WrongNames(unusable, "is no name of a variable: use letters, digits and _")
    return env


def _environment(env: dict[str, str]) -> dict[str, str]:
    _variables(env)
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
    for name, leading, most in _WITHIN:
        if part[name] > most and found[leading] is not None:
            raise ValueError(f"{value!r} has {part[name]} {_UNITS[name]}: {most} at most fit there")
    hours = part["days"] * 24 + part["h"] + part["hours"]
    minutes = hours * 60 + part["m"] + part["minutes"]
    return (minutes * 60 + part["s"] + part["seconds"]) or float("inf")


_UNIT_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration_s(value: str) -> float:
    """The seconds of a time of ours: `3d`, `12h`, `90m`, or as Slurm writes it; 0 is no limit.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", value)
    if found is not None:
        return float(found[1]) * _UNIT_S[found[2]] or float("inf")
    try:
        return time_limit_s(value)
    except ValueError:
        raise ValueError("write a time like 3d, 12h, 90m or 2-12:00:00") from None


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


def _node_memory(value: str) -> str:
    return value if value == "0" else _memory(value)


def _gres(value: str) -> str:
    if value != "none" and (value.count("{n}") != 1 or not value.isprintable()):
        raise ValueError("write how GPUs are asked for, with {n} for their number, or none")
    return value


def _time_limit(value: str) -> str:
    time_limit_s(value)
    return value


Env = Annotated[dict[str, str], AfterValidator(_environment)]
SecretEnv = Annotated[dict[str, str], AfterValidator(_variables)]
Memory = Annotated[str, AfterValidator(_memory)]
NodeMemory = Annotated[str, AfterValidator(_node_memory)]
Gres = Annotated[str, AfterValidator(_gres)]
TimeLimit = Annotated[str, AfterValidator(_time_limit)]


class LocalConfig(Section):
    """Replicas are processes on this machine that outlive the command line."""

    type: Literal["local"] = Field("local", description="this machine")


class SlurmEndpointConfig(Section):
    """The small CPU-only job that holds router and collector."""

    partition: str | None = Field(None, description="empty: that of the replicas")
    qos: str | None = Field(None, description="empty: that of the replicas")
    cpus_per_task: int = Field(2, ge=1, description="CPUs of the job")
    mem: Memory | None = Field(
        "8G",
        description="its memory, such as 8G; followed jobs run in it; empty: no --mem is written",
    )
    wall_time: TimeLimit | None = Field(
        None, description="its time limit, not shorter than the replicas'; empty: theirs"
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="where it listens; empty: any free one"
    )
    timeout_s: float = Field(
        600.0, gt=0, description="seconds until the endpoint must listen once its job runs"
    )


class SlurmConfig(Section):
    """Replicas are tasks of Slurm jobs."""

    type: Literal["slurm"] = Field("slurm", description="a Slurm cluster")
    partition: str = Field(description="of the replicas; `sinfo` lists them")
    account: str | None = Field(
        None, description="that the GPU-hours are billed to; empty: your default"
    )
    qos: str | None = Field(None, description="empty: the site's default")
    time_limit: TimeLimit = Field(
        "36:00:00", description="of each replica: 36:00:00, 90 (minutes) or 2-12:00:00 (days)"
    )
    node_list: str | None = Field(
        None, description="only these nodes, as sbatch takes them: node[01-04]"
    )
    exclude_nodes: str | None = Field(None, description="none of these nodes")
    modules: tuple[str, ...] = Field((), description="environment modules to load on the nodes")
    preamble: tuple[Annotated[str, AfterValidator(check_line)], ...] = Field(
        (),
        description="more lines of the scripts' head, such as '#SBATCH --reservation=x'; the "
        "endpoint and jobs of their own have them (but for GPUs) unless endpoint.partition is set",
    )
    comment: str | None = Field(
        None, description="a text for --comment that the site asks for; it stands after our own"
    )
    container: Literal["apptainer", "singularity", "enroot", "pyxis", "none"] | None = Field(
        None,
        description="what runs `image`; none: the node's own programs; empty: apptainer with an "
        "image, none without",
    )
    container_args: tuple[str, ...] = Field(
        (), description="more arguments of the container program"
    )
    mounts: dict[str, str] = Field(
        default_factory=dict,
        description="folders of the nodes in the container: {/outside: /inside}",
    )
    venv_path: str | None = Field(
        None, description="the Python environment on the nodes; empty: the one that submits"
    )
    env: Env = Field(default_factory=dict, description="environment of the batch scripts")
    requeue: bool = Field(
        True, description="whether replicas go back into the queue when they lose their node"
    )
    drain_before_end_s: int = Field(
        300,
        ge=0,
        validate_default=True,  # the time limit may be shorter than it
        description="seconds before the time limit at which a replica stops taking requests",
    )
    packing: Literal["auto", "replica", "node"] = Field(
        "auto",
        description="one replica per task (replica), a node's worth (node), or as the site needs",
    )
    gres: Gres = Field(
        "gpu:{n}",
        description="how n GPUs are asked for with --gres, such as gpu:a100:{n} where types are "
        "wanted; none: not at all, where a site has no GRES (tasks then take whole nodes) or "
        "`preamble` asks for them",
    )
    mem: NodeMemory | None = Field(
        "0",
        description="memory of tasks that take whole nodes, such as 480G; 0: all that a node has; "
        "empty: no --mem is written",
    )
    mail_user: str | None = Field(
        default_factory=lambda: os.environ.get("DOMYN_SWARM_MAIL_USER") or None,
        description="whom Slurm mails; empty: DOMYN_SWARM_MAIL_USER",
    )
    template_path: str | None = Field(
        None, description="a template of yours instead of the built-in batch script"
    )
    requires_ray: bool = Field(
        False, description="whether a replica over several nodes is a Ray cluster"
    )
    ray_port: int = Field(6379, ge=1, le=65535, description="where Ray's first node listens")
    ray_dashboard_port: int = Field(8265, ge=1, le=65535, description="of Ray's dashboard")
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

    path: str = Field(description="in the workspace's storage")
    volume: str = Field(description="which storage: node-local, or node-nfs:NAME and the like")
    mount_path: str = Field(description="in the container")


class _LeptonPlace(Section):
    """What runs in the workspace, and where."""

    image: str | None = Field(None, description="container image; empty: `image` of the swarm")
    resource_shape: str = Field(description="the machine, as the workspace names its shapes")
    allowed_dedicated_node_groups: tuple[str, ...] = Field(
        (), description="node groups that it may run on; empty: any"
    )
    allowed_nodes: tuple[str, ...] = Field((), description="nodes that it may run on; empty: any")
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


class LeptonJobConfig(_LeptonPlace):
    """How jobs run in the workspace."""

    resource_shape: str = Field(
        "cpu.small", description="the machine, as the workspace names its shapes"
    )


class LeptonEndpointConfig(_LeptonPlace):
    """How the endpoint runs in the workspace."""

    resource_shape: str = Field(
        "gpu.8xh200", description="the machine, as the workspace names its shapes"
    )
    api_token_secret_name: str | None = Field(
        None, description="the workspace secret that holds the clients' key"
    )

    @property
    def gpus(self) -> int | None:
        """How many GPUs the shape has, by its name (`gpu.8xh200`, `gpu.a10`); None: unknown."""
        found = re.fullmatch(r"gpu\.(?:(\d+)x)?[\w-]+", self.resource_shape)
        if found is None:
            return 0 if self.resource_shape.startswith("cpu.") else None
        return int(found[1] or 1)


class LeptonConfig(Section):
    """The endpoint and the jobs are NVIDIA DGX Cloud Lepton's own."""

    type: Literal["lepton"] = Field("lepton", description="NVIDIA DGX Cloud Lepton")
    workspace_id: str | None = Field(None, description="empty: LEPTON_WORKSPACE_ID")
    env: Env = Field(default_factory=dict, description="environment variables of endpoint and jobs")
    endpoint: LeptonEndpointConfig = LeptonEndpointConfig()
    job: LeptonJobConfig = LeptonJobConfig()


BackendConfig = Annotated[LocalConfig | SlurmConfig | LeptonConfig, Field(discriminator="type")]
