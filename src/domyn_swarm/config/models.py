"""`DomynLLMSwarmConfig`: what a user may write, and nothing that is derived from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from domyn_swarm.config.backends import BackendConfig, Env, Section
from domyn_swarm.paths import home

EngineName = Literal["vllm", "llamacpp", "sglang", "sim", "command"]
_NAME = re.compile(r"^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?$")


def check_name(name: str) -> str:
    """A swarm's name: it becomes a folder, a job name and part of URLs.

    Raises:
        ValueError: it is not usable as one.
    """
    if not _NAME.match(name):
        raise ValueError(
            "must be lower-case letters, digits and hyphens, begin with a letter, at most 40"
        )
    return name


class RouterConfig(Section):
    """How the endpoint distributes requests."""

    policy: Literal["least_load", "power_of_two", "cache_aware", "round_robin", "random"] = (
        "least_load"
    )
    max_concurrent: int = Field(8192, ge=1)
    queue_size: int = Field(8192, ge=0)
    retries: int = Field(1, ge=0, le=1)
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _together(self) -> RouterConfig:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are given together or not at all")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise ValueError(f"there is no file {path}")
        return self


class NotifyConfig(Section):
    """Who is told when a job ends or a swarm expires."""

    url: str | None = None


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
    restart_backoff_max: float = Field(60.0, ge=0)
    kill_grace_seconds: float = Field(10.0, ge=0)
    progress_timeout: float | None = Field(None, gt=0)
    ray: WatchdogRayConfig = WatchdogRayConfig()


class DomynLLMSwarmConfig(Section):
    """One swarm, as its user describes it."""

    model: str = Field(min_length=1)
    name: Annotated[str, AfterValidator(check_name)] | None = None
    revision: str | None = None
    engine: EngineName = "vllm"
    replicas: int = Field(1, ge=1, le=10_000)
    min_ready: int = Field(1, ge=1)
    gpus_per_replica: int | None = Field(None, ge=0)
    gpus_per_node: int = Field(4, ge=0, le=64)
    cpus_per_task: int | None = Field(None, ge=1)
    memory_gb: float | None = Field(None, gt=0)
    image: str | None = None
    args: str | tuple[str, ...] = ()
    port: int = Field(8000, ge=1, le=65535)
    wait_endpoint_s: float = Field(1200.0, gt=0)
    idle_timeout_s: float | None = Field(None, gt=0)
    env: Env = Field(default_factory=dict)
    home_directory: Path = Field(default_factory=home)
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

    @field_validator("env", mode="before")
    @classmethod
    def _numbers_are_text(cls, value: object) -> object:
        """An environment holds text; YAML reads `1` as a number."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one
            for name, one in value.items()
        }

    @field_validator("args", mode="before")
    @classmethod
    def _flags_are_text(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return tuple(str(one) if isinstance(one, int | float) else one for one in value)

    @field_validator("home_directory")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _fits(self) -> DomynLLMSwarmConfig:
        if self.min_ready > self.replicas:
            raise ValueError(
                f"min_ready ({self.min_ready}) is more than replicas ({self.replicas})"
            )
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors."""
    return DomynLLMSwarmConfig.model_json_schema()
