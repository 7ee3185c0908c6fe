"""`DomynLLMSwarmConfig`: what a user may write, and nothing that is derived from it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from domyn_swarm.config.backends import BackendConfig, Env, Section
from domyn_swarm.paths import home

EngineName = Literal["vllm", "llamacpp", "sglang", "sim", "command"]
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")


def check_name(name: str) -> str:
    """A swarm's name: it becomes a folder, a job name and part of URLs.

    Raises:
        ValueError: it is not usable as one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "must be lower-case letters, digits and hyphens, begin with a letter, "
            "not end with a hyphen, at most 40"
        )
    return name


def default_gpus(engine: str) -> int:
    """How many GPUs a replica of this engine has when the configuration does not say."""
    return 1 if engine in ("vllm", "sglang") else 0


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _nothing_yet(value: object) -> object:
    if value is not None:
        raise ValueError("this version does not act on it yet: take it out")
    return value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
ExistingFile = Annotated[AbsolutePath, AfterValidator(_existing)]
# A setting that is accepted and then ignored would cost someone GPU hours.
NotYet = AfterValidator(_nothing_yet)
Words = Annotated[
    Annotated[str, Tag("text")] | Annotated[tuple[str, ...], Tag("list")],
    Discriminator(lambda value: "text" if isinstance(value, str | int | float) else "list"),
]


class RouterConfig(Section):
    """How the endpoint distributes requests."""

    policy: Literal["least_load", "power_of_two", "cache_aware", "round_robin", "random"] = (
        "least_load"
    )
    max_concurrent: int = Field(8192, ge=1)
    queue_size: int = Field(8192, ge=0)
    retries: int = Field(1, ge=0, le=1)
    tls_cert: ExistingFile | None = None
    tls_key: ExistingFile | None = Field(None, validate_default=True)

    @field_validator("tls_key")
    @classmethod
    def _together(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (info.data["tls_cert"] is None) != (value is None):
            raise ValueError("tls_cert and tls_key are given together or not at all")
        return value


class NotifyConfig(Section):
    """Who is told when a job ends or a swarm expires."""

    url: Annotated[str | None, NotYet] = None


class WatchdogRayConfig(Section):
    """Supervision of a replica's Ray cluster."""

    enabled: bool = False
    expected_tp: int | None = Field(None, ge=1)
    probe_timeout_s: float = Field(120.0, gt=0)
    status_grace_s: float = Field(10.0, ge=0)
    probe_interval_s: float = Field(30.0, gt=0)


class WatchdogConfig(Section):
    """How each replica is watched. Seconds throughout."""

    probe_interval: float = Field(30.0, gt=0)
    http_path: str | None = None
    http_timeout: float = Field(2.0, gt=0)
    readiness_timeout: float = Field(600.0, gt=0)
    restart_policy: Literal["on-failure", "always", "never"] = "on-failure"
    unhealthy_restart_after: float = Field(120.0, ge=0)
    max_restarts: int = Field(3, ge=0)
    restart_backoff_initial: float = Field(5.0, ge=0)
    restart_backoff_max: float = Field(60.0, ge=0, validate_default=True)
    kill_grace_seconds: float = Field(10.0, ge=0)
    progress_timeout: float | None = Field(None, gt=0)
    ray: WatchdogRayConfig = WatchdogRayConfig()

    @field_validator("restart_backoff_max")
    @classmethod
    def _grows(cls, value: float, info: ValidationInfo) -> float:
        initial = info.data.get("restart_backoff_initial", value)
        if value < initial:
            raise ValueError(f"must not be less than restart_backoff_initial ({initial:g})")
        return value


class DomynLLMSwarmConfig(Section):
    """One swarm, as its user describes it."""

    model: str = Field(min_length=1)
    name: Annotated[str, AfterValidator(check_name)] | None = None
    revision: str | None = None
    engine: EngineName = "vllm"
    replicas: int = Field(1, ge=1, le=10_000)
    min_ready: int = Field(1, ge=1)
    gpus_per_node: int = Field(4, ge=0, le=64)
    gpus_per_replica: int | None = Field(None, ge=0, validate_default=True)
    cpus_per_task: int | None = Field(None, ge=1)
    memory_gb: float | None = Field(None, gt=0)
    image: str | None = None
    args: Words = ()
    port: int = Field(8000, ge=1, le=65535)
    wait_endpoint_s: float = Field(1200.0, gt=0)
    idle_timeout_s: float | None = Field(None, gt=0)
    env: Env = Field(default_factory=dict)
    home_directory: AbsolutePath = Field(default_factory=home)
    engine_options: dict[str, Any] = Field(default_factory=dict)
    router: RouterConfig = RouterConfig()
    notify: NotifyConfig = NotifyConfig()
    backend: BackendConfig
    watchdog: WatchdogConfig = WatchdogConfig()

    @classmethod
    def read(cls, path: str | Path) -> DomynLLMSwarmConfig:
        """The configuration in a YAML file, merged with the defaults.

        Raises:
            ConfigError: every mistake at once, each with file and line.
        """
        from domyn_swarm.config.loading import load

        return load(Path(path)).config

    @field_validator("backend", mode="before")
    @classmethod
    def _bare_type(cls, value: object) -> object:
        """`backend: local` is short for `backend: {type: local}`."""
        return {"type": value} if isinstance(value, str) else value

    @field_validator("backend")
    @classmethod
    def _has_the_nodes(cls, value: BackendConfig, info: ValidationInfo) -> BackendConfig:
        gpus, node = info.data.get("gpus_per_replica"), info.data.get("gpus_per_node")
        if value.type == "local" and gpus and node and gpus > node:
            raise ValueError(
                f"is local, this machine alone, but a replica of {gpus} GPUs takes {gpus // node} "
                f"nodes of {node}: write in gpus_per_node what this machine has"
            )
        return value

    @field_validator("min_ready")
    @classmethod
    def _not_more_than_there_are(cls, value: int, info: ValidationInfo) -> int:
        replicas = info.data.get("replicas", value)
        if value > replicas:
            raise ValueError(f"{value} is more than replicas ({replicas})")
        return value

    @field_validator("gpus_per_replica")
    @classmethod
    def _takes_whole_nodes(cls, value: int | None, info: ValidationInfo) -> int | None:
        """The rule of `planning.layout`, told here with all other mistakes."""
        if not {"engine", "gpus_per_node"} <= info.data.keys():
            return value
        node = info.data["gpus_per_node"]
        gpus = default_gpus(info.data["engine"]) if value is None else value
        if gpus > node and node == 0:
            raise ValueError(f"is {gpus}, but gpus_per_node is 0: write 0 to serve on CPUs")
        if gpus > node and gpus % node:
            raise ValueError(
                f"is {gpus}: a replica that spans nodes takes whole ones, "
                f"so write a multiple of gpus_per_node ({node})"
            )
        return value

    @field_validator("args")
    @classmethod
    def _is_a_command_line(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            try:
                shlex.split(value)
            except ValueError as error:
                raise ValueError(f"is not a command line: {error}; or write a list") from error
        return value


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors."""
    return DomynLLMSwarmConfig.model_json_schema()
