"""`DomynLLMSwarmConfig`: the keys that a user may write. Derived values are in `planning`."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    FieldSerializationInfo,
    Tag,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from domyn_swarm.config.backends import BackendConfig, Env
from domyn_swarm.config.section import Section
from domyn_swarm.errors import WordsAlone
from domyn_swarm.paths import expanded, home

EngineName = Literal["vllm", "llamacpp", "sglang", "sim", "command"]
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")


def check_name(name: str) -> str:
    """The name, unchanged, if it can be a swarm's: a folder, a job name and part of URLs.

    Raises:
        ValueError: it cannot; the message suggests a similar name that can.
    """
    if not _NAME.fullmatch(name):
        plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
        usable = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
        instead = f"; for example {usable}" if _NAME.fullmatch(usable) else ""
        raise ValueError(
            "must be lower-case letters, digits and hyphens, begin with a letter, "
            f"not end with a hyphen, at most 40{instead}"
        )
    return name


def default_gpus(engine: str) -> int:
    """The number of GPUs of a replica if the configuration does not set it."""
    return 1 if engine in ("vllm", "sglang") else 0


def _absolute(path: Path) -> Path:
    return expanded(path).absolute()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _webhook(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that begins with http:// or https://")
    return value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
ExistingFile = Annotated[AbsolutePath, AfterValidator(_existing)]
HIDDEN = "**********"  # shown instead of a secret
REVEALED = {"secrets": True}  # the serialization context that includes secrets
Words = Annotated[
    Annotated[str, Tag("text")] | Annotated[tuple[str, ...], Tag("list")],
    Discriminator(lambda value: "text" if isinstance(value, str | int | float) else "list"),
]


class RouterConfig(Section):
    """How the endpoint distributes requests."""

    policy: Literal["least_load", "power_of_two", "cache_aware", "round_robin", "random"] = Field(
        "least_load", description="how the replica of a request is chosen"
    )
    max_concurrent: int = Field(
        8192,
        ge=1,
        description="requests in flight on all replicas together; further requests are queued",
    )
    queue_size: int = Field(
        8192, ge=0, description="length of the queue; further requests are answered 429"
    )
    retries: int = Field(
        1,
        ge=0,
        le=1,
        description="attempts, as the router counts them: with 0 and 1 it does not repeat a "
        "request that fails",
    )
    tls_cert: ExistingFile | None = Field(
        None, description="certificate of the endpoint (PEM); requires tls_key"
    )
    tls_key: ExistingFile | None = Field(
        None, validate_default=True, description="private key of tls_cert (PEM)"
    )
    tls_ca: ExistingFile | None = Field(
        None,
        description="certificates (PEM) of a private CA, which clients trust in addition to the "
        "system's; empty: clients trust tls_cert itself, which may be self-signed",
    )

    @field_validator("tls_key")
    @classmethod
    def _together(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (info.data["tls_cert"] is None) != (value is None):
            raise ValueError("tls_cert and tls_key must be set together")
        return value


class MetricsConfig(Section):
    """Files for Prometheus, in folders of the node on which the endpoint runs."""

    textfile_dir: AbsolutePath | None = Field(
        None,
        description="folder of node_exporter's textfile collector, for a file with the metrics",
    )
    discovery_dir: AbsolutePath | None = Field(
        None,
        description="folder of Prometheus' file_sd targets, instead of the one in home_directory",
    )


class NotifyConfig(Section):
    """Notifications: a job has ended, or a swarm has failed or ended itself."""

    url: Annotated[str | None, AfterValidator(lambda url: url and _webhook(url))] = Field(
        None,
        repr=False,
        description="webhook that receives JSON when a job ends, or the swarm fails or ends itself",
    )

    @field_serializer("url", when_used="json-unless-none")
    def _hidden(self, value: str, info: FieldSerializationInfo) -> str:
        """Hide the URL, which usually contains a secret, everywhere but in `dump_yaml`."""
        return value if info.context == REVEALED else HIDDEN


class WatchdogRayConfig(Section):
    """Supervision of a replica's Ray cluster."""

    enabled: bool = Field(False, description="supervise Ray")
    expected_tp: int | None = Field(
        None, ge=1, description="GPUs that Ray must have; empty: those of the replica"
    )
    probe_timeout_s: float = Field(
        120.0, gt=0, description="seconds until a probe of Ray times out"
    )
    status_grace_s: float = Field(
        10.0, ge=0, description="seconds that Ray may lack GPUs before its cluster counts as lost"
    )
    probe_interval_s: float = Field(30.0, gt=0, description="seconds between probes of Ray")


class WatchdogConfig(Section):
    """Supervision of each replica. All times are in seconds."""

    probe_interval: float = Field(
        30.0, gt=0, description="seconds between probes of a ready engine"
    )
    http_path: str | None = Field(
        None, description="path that is probed; empty: the engine's own health path"
    )
    http_timeout: float = Field(2.0, gt=0, description="seconds until a probe times out")
    readiness_timeout: float = Field(
        600.0,
        gt=0,
        description="seconds until a starting engine must be ready; six times as long while it "
        "loads",
    )
    restart_policy: Literal["on-failure", "always", "never"] = Field(
        "on-failure", description="when an engine that has ended is restarted"
    )
    unhealthy_restart_after: float = Field(
        120.0, ge=0, description="seconds of failing probes before the engine is restarted"
    )
    max_restarts: int = Field(
        3, ge=0, description="consecutive restarts after which the replica fails permanently"
    )
    restart_backoff_initial: float = Field(
        5.0,
        ge=0,
        description="seconds before the first restart; doubled for each further one",
    )
    restart_backoff_max: float = Field(
        60.0, ge=0, validate_default=True, description="longest wait before a restart, in seconds"
    )
    kill_grace_seconds: float = Field(10.0, ge=0, description="seconds between SIGTERM and SIGKILL")
    progress_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds without a token while requests wait, after which the engine is "
        "restarted; empty: never",
    )
    ray: WatchdogRayConfig = WatchdogRayConfig()

    @field_validator("restart_backoff_max")
    @classmethod
    def _grows(cls, value: float, info: ValidationInfo) -> float:
        initial = info.data.get("restart_backoff_initial", value)
        if value < initial:
            raise ValueError(f"must not be less than restart_backoff_initial ({initial:g})")
        return value


class ElasticReplicas(Section):
    """As many replicas as there is work for, between two bounds."""

    min: int = Field(
        0, ge=0, le=10_000, description="fewest replicas; 0: none without work, so no GPU is held"
    )
    max: int = Field(ge=1, le=10_000, validate_default=True, description="most replicas")
    keep_s: float | None = Field(
        None,
        ge=0,
        description="seconds that an idle replica is kept for further requests, unless a job has "
        "just ended; empty: as long as a start takes here, at least 30",
    )
    hold_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="seconds that a request waits for the first replica before it is answered 503 "
        "with Retry-After",
    )

    @field_validator("max")
    @classmethod
    def _not_less_than_min(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("min", 0)
        if value < least:
            raise ValueError(f"{value} is less than min ({least})")
        return value


def most_replicas(replicas: int | ElasticReplicas) -> int:
    """The largest number of replicas that may run."""
    return replicas if isinstance(replicas, int) else replicas.max


Replicas = Annotated[
    Annotated[int, Field(ge=1, le=10_000), Tag("number")]
    | Annotated[ElasticReplicas, Tag("elastic")],
    Discriminator(
        lambda value: "elastic" if isinstance(value, Mapping | ElasticReplicas) else "number"
    ),
]


class DomynLLMSwarmConfig(Section):
    """One swarm, as its user describes it."""

    model: str = Field(min_length=1, description="name of a model that the engine knows, or a path")
    name: Annotated[str, AfterValidator(check_name)] | None = Field(
        None, description="name of the swarm; empty: a new one is generated at each `up`"
    )
    revision: str | None = Field(None, description="revision of the model")
    engine: EngineName = Field("vllm", description="program that serves the model")
    replicas: Replicas = Field(
        1,
        description="number of replicas; or {min: 0, max: 32}: as many as there is work for",
    )
    min_ready: int = Field(1, ge=1, description="replicas that must answer before `up` returns")
    gpus_per_node: int = Field(4, ge=0, le=64, description="GPUs of one machine")
    gpus_per_replica: int | None = Field(
        None,
        ge=0,
        validate_default=True,
        description="GPUs of one replica; empty: 1 for vllm and sglang, 0 for other engines",
    )
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs of one replica")
    memory_gb: float | None = Field(None, gt=0, description="gigabytes of memory of one replica")
    image: str | None = Field(None, description="container image, if the platform uses containers")
    args: Words = Field((), description="further arguments of the engine: a string or a list")
    port: int = Field(
        8000,
        ge=1,
        le=65535,
        description="first port that is tried for an engine; a free one is used",
    )
    wait_endpoint_s: float = Field(
        1200.0,
        gt=0,
        description="seconds that `up` waits, counted from the start of the first replica",
    )
    idle_timeout_s: float | None = Field(
        None, gt=0, description="seconds without a request after which the swarm ends itself"
    )
    env: Env = Field(
        default_factory=dict,
        description="environment of the engines; secrets are refused: export them in your shell "
        "instead",
    )
    home_directory: AbsolutePath = Field(
        default_factory=home, description="folder of the swarm's files; empty: $DOMYN_SWARM_HOME"
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict,
        description='options of the engine `command` or `sim`: see "Configuration" in the '
        "documentation",
    )
    router: RouterConfig = RouterConfig()
    metrics: MetricsConfig = MetricsConfig()
    notify: NotifyConfig = NotifyConfig()
    backend: BackendConfig = Field(description="platform on which the swarm runs")
    watchdog: WatchdogConfig = WatchdogConfig()

    @classmethod
    @WordsAlone()
    def read(cls, path: str | Path) -> DomynLLMSwarmConfig:
        """The configuration in a YAML file, merged with the defaults.

        Raises:
            ConfigError: something is invalid; the message lists every mistake with file and line.
        """
        from domyn_swarm.config.loading import load

        return load(Path(path)).config

    @field_validator("backend", mode="before")
    @classmethod
    def _bare_type(cls, value: object) -> object:
        """Accept `backend: local` as short for `backend: {type: local}`."""
        return {"type": value} if isinstance(value, str) else value

    @field_validator("backend")
    @classmethod
    def _has_the_nodes(cls, value: BackendConfig, info: ValidationInfo) -> BackendConfig:
        gpus, node = info.data.get("gpus_per_replica"), info.data.get("gpus_per_node")
        if value.type == "local" and gpus and node and gpus > node:
            raise ValueError(
                f"is local, which has one machine, but a replica of {gpus} GPUs takes "
                f"{gpus // node} nodes of {node}: set gpus_per_node to what this machine has"
            )
        return value

    @field_validator("backend")
    @classmethod
    def _has_its_image(cls, value: BackendConfig, info: ValidationInfo) -> BackendConfig:
        """Refused here: on a node it would cost an allocation before the error is noticed."""
        if value.type != "slurm" or "image" not in info.data:
            return value
        image = info.data["image"]
        if value.container is None:
            return value.model_copy(update={"container": "none" if image is None else "apptainer"})
        if value.container == "none" and image is not None:
            raise ValueError(f"container is none, but image is {image}: write image: null")
        if value.container != "none" and image is None:
            why = f"container is {value.container}, but there is no image: set image, or write "
            raise ValueError(f"{why}container: none when the engine is installed on the nodes")
        return value

    @field_validator("min_ready")
    @classmethod
    def _not_more_than_there_are(cls, value: int, info: ValidationInfo) -> int:
        replicas = most_replicas(info.data.get("replicas", value))
        if value > replicas:
            raise ValueError(f"{value} is more than replicas ({replicas})")
        return value

    @field_validator("gpus_per_replica")
    @classmethod
    def _takes_whole_nodes(cls, value: int | None, info: ValidationInfo) -> int | None:
        """The rule of `planning.plan`, checked here to report it with all other mistakes."""
        if not {"engine", "gpus_per_node"} <= info.data.keys():
            return value
        node = info.data["gpus_per_node"]
        gpus = default_gpus(info.data["engine"]) if value is None else value
        if gpus > node and node == 0:
            raise ValueError(f"is {gpus}, but gpus_per_node is 0: write 0 to serve on CPUs")
        if gpus > node and gpus % node:
            raise ValueError(
                f"is {gpus}: a replica that spans nodes uses whole nodes, "
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
