"""What is derived from a config. Frozen, serialisable, the same for every backend."""

from pathlib import Path
from typing import Any, Literal

from domyn_swarm.model import Record
from domyn_swarm.record import field


class Layout(Record):
    """Where the replicas' GPUs are."""

    replicas: int
    gpus_per_replica: int
    gpus_per_node: int
    replicas_per_node: int  # 0 where a replica spans several nodes
    nodes_per_replica: int
    nodes: int  # at most; exactly `replicas` replicas run whatever this says
    tensor_parallel: int  # GPUs of one node that serve one replica
    pipeline_parallel: int  # nodes that serve one replica


class ElasticPlan(Record):
    """Of a swarm whose size follows the work: `Layout.replicas` are the most."""

    least: int  # replicas
    keep_s: float | None = None  # None: as long as a start takes here
    hold_s: float = 30.0


class Resources(Record):
    """What one replica asks of the platform."""

    cpus: int | None
    memory_gb: float | None
    gpus: int


class RouterPlan(Record):
    """How the endpoint distributes requests."""

    policy: str
    max_concurrent: int
    queue_size: int
    retries: int
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None = None


class MetricsPlan(Record):
    """Where the endpoint program leaves files for Prometheus beside answering scrapes."""

    textfile_dir: Path | None = None
    discovery_dir: Path | None = None


class RayPlan(Record):
    """How the Ray cluster of a replica on several nodes is watched; seconds throughout."""

    gpus: int  # that it must have
    probe_timeout_s: float
    status_grace_s: float
    probe_interval_s: float


class WatchdogPlan(Record):
    """How each replica is watched; seconds throughout. Same keys as the config's section."""

    probe_interval: float
    http_path: str | None  # None: the engine's own health path
    http_timeout: float
    readiness_timeout: float
    restart_policy: Literal["on-failure", "always", "never"]
    unhealthy_restart_after: float
    max_restarts: int
    restart_backoff_initial: float
    restart_backoff_max: float
    kill_grace_seconds: float
    progress_timeout: float | None
    ray: RayPlan | None = None


class DeploymentPlan(Record):
    """Everything derived from a config. Written to `plan.json`; holds no secret."""

    schema_version: Literal[1] = 1
    name: str
    backend: Literal["local", "slurm", "lepton"]
    engine: str
    model: str
    revision: str | None
    args: tuple[str, ...]  # the user's extra engine arguments
    engine_options: dict[str, Any]
    min_ready: int
    layout: Layout
    elastic: ElasticPlan | None = None  # None: exactly `layout.replicas` run
    resources: Resources
    image: str | None
    port_from: int  # where the search for a free engine port begins
    env: dict[str, str]  # for engines, as the user wrote it
    home_directory: Path
    wait_endpoint_s: float
    idle_timeout_s: float | None = None
    router: RouterPlan
    watchdog: WatchdogPlan
    metrics: MetricsPlan = MetricsPlan()
    backend_options: dict[str, Any] = field(default_factory=dict)  # the validated backend section

    @property
    def launched_replicas(self) -> int:
        """How many `up` starts."""
        return self.layout.replicas if self.elastic is None else self.elastic.least
