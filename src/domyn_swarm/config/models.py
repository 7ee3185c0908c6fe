"""`DomynLLMSwarmConfig`: what a user may write, and nothing that is derived from it."""

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

from domyn_swarm.config.backends import BackendConfig, Env, Section
from domyn_swarm.paths import expanded, home

EngineName = Literal["vllm", "llamacpp", "sglang", "sim", "command"]
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")


def check_name(name: str) -> str:
    """A swarm's name: it becomes a folder, a job name and part of URLs.

    Raises:
        ValueError: it is not usable as one.
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
    """How many GPUs a replica of this engine has when the configuration does not say."""
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
HIDDEN = "**********"  # what is shown of a secret
REVEALED = {"secrets": True}  # the context in which a dump holds them
Words = Annotated[
    Annotated[str, Tag("text")] | Annotated[tuple[str, ...], Tag("list")],
    Discriminator(lambda value: "text" if isinstance(value, str | int | float) else "list"),
]


class RouterConfig(Section):
    """How the endpoint distributes requests."""

    policy: Literal["least_load", "power_of_two", "cache_aware", "round_robin", "random"] = Field(
        "least_load", description="how a request's replica is chosen"
    )
    max_concurrent: int = Field(
        8192,
        ge=1,
        description="requests in flight over all replicas; those beyond wait in the queue",
    )
    queue_size: int = Field(
        8192, ge=0, description="requests that may wait; those beyond are answered 429"
    )
    retries: int = Field(
        1,
        ge=0,
        le=1,
        description="attempts as the router counts them: 0 and 1 repeat nothing that a row caused",
    )
    tls_cert: ExistingFile | None = Field(
        None, description="certificate of the endpoint (PEM); given together with tls_key"
    )
    tls_key: ExistingFile | None = Field(None, validate_default=True, description="its private key")
    tls_ca: ExistingFile | None = Field(
        None,
        description="certificates (PEM) that clients trust beside the system's: those of a private "
        "CA; none: tls_cert itself, which may be self-signed",
    )

    @field_validator("tls_key")
    @classmethod
    def _together(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (info.data["tls_cert"] is None) != (value is None):
            raise ValueError("tls_cert and tls_key are given together or not at all")
        return value


class MetricsConfig(Section):
    """Where Prometheus finds what the endpoint tells, beside scraping it. Folders of the node that
    the endpoint runs on.
    """

    textfile_dir: AbsolutePath | None = Field(
        None, description="where node_exporter's textfile collector looks; a file is kept there"
    )
    discovery_dir: AbsolutePath | None = Field(
        None,
        description="where Prometheus looks for targets (file_sd), not the home's own folder",
    )


class NotifyConfig(Section):
    """Who is told when a job ends, and when a swarm fails or ends itself."""

    url: Annotated[str | None, AfterValidator(lambda url: url and _webhook(url))] = Field(
        None,
        repr=False,
        description="a webhook that is sent JSON when a job ends or the swarm fails or ends itself",
    )

    @field_serializer("url", when_used="json-unless-none")
    def _hidden(self, value: str, info: FieldSerializationInfo) -> str:
        """Such URLs hold a secret as a rule: only `dump_yaml` has it."""
        return value if info.context == REVEALED else HIDDEN


class WatchdogRayConfig(Section):
    """Supervision of a replica's Ray cluster."""

    enabled: bool = Field(False, description="supervise Ray")
    expected_tp: int | None = Field(
        None, ge=1, description="GPUs that Ray must have; empty: the replica's"
    )
    probe_timeout_s: float = Field(
        120.0, gt=0, description="seconds until an answer of Ray is given up"
    )
    status_grace_s: float = Field(
        10.0, ge=0, description="seconds that Ray may miss capacity before it counts as lost"
    )
    probe_interval_s: float = Field(30.0, gt=0, description="seconds between looks at Ray")


class WatchdogConfig(Section):
    """How each replica is watched. Seconds throughout."""

    probe_interval: float = Field(
        30.0, gt=0, description="seconds between probes of a ready engine"
    )
    http_path: str | None = Field(None, description="what is probed; empty: what the engine offers")
    http_timeout: float = Field(2.0, gt=0, description="seconds until a probe is given up")
    readiness_timeout: float = Field(
        600.0,
        gt=0,
        description="seconds until a starting engine must be ready; one that loads has six times",
    )
    restart_policy: Literal["on-failure", "always", "never"] = Field(
        "on-failure", description="when an engine that ended is started again"
    )
    unhealthy_restart_after: float = Field(
        120.0, ge=0, description="seconds of failing probes before a restart"
    )
    max_restarts: int = Field(
        3, ge=0, description="restarts in a row after which a replica is given up"
    )
    restart_backoff_initial: float = Field(
        5.0,
        ge=0,
        description="seconds before the first restart; each further one waits twice as long",
    )
    restart_backoff_max: float = Field(
        60.0, ge=0, validate_default=True, description="seconds that a restart waits at most"
    )
    kill_grace_seconds: float = Field(10.0, ge=0, description="seconds between SIGTERM and SIGKILL")
    progress_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds without a token while requests wait: then the engine is restarted",
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
    """As many servers as there is work for, within bounds."""

    min: int = Field(
        0, ge=0, le=10_000, description="so many always; 0: without work none, and no GPU is held"
    )
    max: int = Field(ge=1, le=10_000, validate_default=True, description="so many at most")
    keep_s: float | None = Field(
        None,
        ge=0,
        description="seconds that an idle replica is kept for whoever comes next, where not a job "
        "has just ended its work; empty: as long as a start takes here, 30 at least",
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
    """How many run at most."""
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

    model: str = Field(min_length=1, description="a name that the engine knows, or a path")
    name: Annotated[str, AfterValidator(check_name)] | None = Field(
        None, description="of the swarm; empty: one is generated at each start"
    )
    revision: str | None = Field(None, description="of the model")
    engine: EngineName = Field("vllm", description="the program that serves the model")
    replicas: Replicas = Field(
        1,
        description="how many servers, exactly; or {min: 0, max: 32}: as many as there is work for",
    )
    min_ready: int = Field(1, ge=1, description="how many must answer before `up` returns")
    gpus_per_node: int = Field(4, ge=0, le=64, description="GPUs of one machine")
    gpus_per_replica: int | None = Field(
        None,
        ge=0,
        validate_default=True,
        description="empty: 1 for vllm and sglang, 0 for the others",
    )
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs of one replica")
    memory_gb: float | None = Field(None, gt=0, description="gigabytes of memory of one replica")
    image: str | None = Field(None, description="container image, where the platform uses them")
    args: Words = Field((), description="more arguments of the engine: a string or a list")
    port: int = Field(
        8000, ge=1, le=65535, description="where the search for a free port of an engine begins"
    )
    wait_endpoint_s: float = Field(
        1200.0,
        gt=0,
        description="seconds that `up` waits, counted from the first replica that runs",
    )
    idle_timeout_s: float | None = Field(
        None, gt=0, description="seconds without a request after which the swarm ends itself"
    )
    env: Env = Field(
        default_factory=dict,
        description="environment of the engines; secrets are refused: export them in your shell",
    )
    home_directory: AbsolutePath = Field(
        default_factory=home, description="where the swarm's folder lies; empty: $DOMYN_SWARM_HOME"
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict,
        description='of the engine `command` or `sim`: see "Configuration" in the documentation',
    )
    router: RouterConfig = RouterConfig()
    metrics: MetricsConfig = MetricsConfig()
    notify: NotifyConfig = NotifyConfig()
    backend: BackendConfig = Field(description="where it runs")
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

    @field_validator("backend")
    @classmethod
    def _has_its_image(cls, value: BackendConfig, info: ValidationInfo) -> BackendConfig:
        """Refused here: on a node it would cost an allocation before anybody notices."""
        if value.type != "slurm" or "image" not in info.data:
            return value
        if value.container is None:
            container = "none" if info.data["image"] is None else "apptainer"
            return value.model_copy(update={"container": container})
        if value.container != "none" and info.data["image"] is None:
            raise ValueError(
                f"container is {value.container}, but there is no image: set image, or write "
                "container: none when the engine is installed on the nodes"
            )
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
        """The rule of `planning.plan`, told here with all other mistakes."""
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
