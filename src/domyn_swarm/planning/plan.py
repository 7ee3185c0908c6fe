"""Records of a deployment: the plan derived from a configuration, the layout of replicas on nodes,
and the resources of a job. Frozen, serialisable, the same for every backend.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from domyn_swarm.errors import ConfigError
from domyn_swarm.model import Record
from domyn_swarm.record import After, Meta, about, field


def _positive_hours(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError("must be a number above 0, such as 100 or 0.5")
    return value


class PlatformOptions(Record):
    """What of it users write as programs hold it."""

    placement: Annotated[
        Literal["step", "job", "here"] | None,
        about(
            "Share the endpoint's Slurm allocation (followed jobs do), or get one of its own. "
            "here: a process of the submitting machine.",
            flag_help="Share the endpoint's Slurm allocation (followed jobs do), or get one of its "
            "own.",
        ),
    ] = None
    cpus: Annotated[Annotated[int, Meta(ge=1)] | None, about("CPUs for the job.")] = None
    max_gpu_hours: Annotated[
        float | None,
        After(_positive_hours),
        about(
            "End it once it has cost so many GPU-hours, all its runs together; answers are kept.",
            metavar="HOURS",
        ),
    ] = None
    continues: Annotated[  # over the limits of its allocation; None: where that can be
        bool | None,
        about(
            "False: on Slurm, end with the first run.",
            flag="--no-continue",
            flag_help="Slurm: end with its first run, at its time limit or when its node is lost.",
        ),
    ] = None
    mail_user: Annotated[
        str | None, about("Slurm mails there when it has ended.", metavar="ADDRESS")
    ] = None


class JobResources(PlatformOptions):
    """The resources that a job requests for itself; None: the platform's default."""

    detached: bool = False  # no process follows it: it must survive logout
    memory_gb: Annotated[float, Meta(gt=0)] | None = None
    time_limit_s: Annotated[float, Meta(gt=0)] | None = None  # of one run, if it is continued
    stop_after_s: Annotated[float, Meta(gt=0)] | None = (
        None  # counted from the start of its first run
    )

    @property
    def shortest_limit_s(self) -> float | None:
        """The time limit of a job that runs once; None: none."""
        limits = [limit for limit in (self.time_limit_s, self.stop_after_s) if limit is not None]
        return min(limits, default=None)


class SrunResources(Record):
    """One step inside an allocation. Each value is one word of `srun`'s argv: nothing is quoted,
    split or joined.
    """

    allocation: str  # id of the Slurm job whose resources the step shares
    name: str
    cpus: Annotated[int, Meta(ge=1)]
    memory_mb: Annotated[int, Meta(ge=1)] | None = None  # None: the job's memory, shared

    def argv(self) -> list[str]:
        """`srun` and its options, up to the program."""
        return [
            "srun",
            f"--jobid={self.allocation}",
            f"--job-name={self.name}",
            "--overlap",
            "--exact",
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={self.cpus}",
            f"--mem={0 if self.memory_mb is None else f'{self.memory_mb}M'}",
            "--input=none",
        ]


class Layout(Record):
    """How the GPUs of replicas are placed on nodes."""

    replicas: int
    gpus_per_replica: int
    gpus_per_node: int
    replicas_per_node: int  # 0 if a replica spans several nodes
    nodes_per_replica: int
    nodes: int  # at most: exactly `replicas` replicas run, also if they do not fill the nodes
    tensor_parallel: int  # GPUs of one node that serve one replica
    pipeline_parallel: int  # nodes that serve one replica


class ElasticPlan(Record):
    """The bounds and times of an elastic swarm. `Layout.replicas` is its largest size."""

    least: int  # replicas
    keep_s: float | None = None  # None: as long as a start of a replica takes
    hold_s: float = 30.0


class Resources(Record):
    """Resources of one replica; None: the platform's default."""

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
    """Folders in which the endpoint program writes files for Prometheus."""

    textfile_dir: Path | None = None
    discovery_dir: Path | None = None


class RayPlan(Record):
    """Supervision of the Ray cluster of a replica on several nodes. Times are in seconds."""

    gpus: int  # that the Ray cluster must have
    probe_timeout_s: float
    status_grace_s: float
    probe_interval_s: float


class WatchdogPlan(Record):
    """Supervision of each replica. Same keys as the configuration; times are in seconds."""

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
    """Everything derived from a configuration. Written to `plan.json`; contains no secret."""

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
    port_from: int  # first port that is tried for an engine
    env: dict[str, str]  # of the engines, as the user wrote it
    home_directory: Path
    wait_endpoint_s: float
    idle_timeout_s: float | None = None
    router: RouterPlan
    watchdog: WatchdogPlan
    metrics: MetricsPlan = MetricsPlan()
    backend_options: dict[str, Any] = field(default_factory=dict)  # the validated backend section

    @property
    def launched_replicas(self) -> int:
        """The number of replicas that `up` starts."""
        return self.layout.replicas if self.elastic is None else self.elastic.least


def lay_out(replicas: int, gpus_per_replica: int, gpus_per_node: int) -> Layout:
    """Place the replicas' GPUs on nodes with `gpus_per_node` GPUs each.

    Exactly `replicas` replicas run, whether or not they fill whole nodes. A replica that needs
    more than one node uses all GPUs of each: tensor parallel inside a node, pipeline parallel
    across nodes.

    Raises:
        ConfigError: a replica does not fit on whole nodes, or `replicas` is less than 1.
    """
    if not isinstance(replicas, int) or replicas < 1:
        raise ConfigError(
            f"replicas is {replicas!r}, and must be a whole number of 1 or more.",
            hint="`domyn-swarm down` stops a swarm.",
        )
    per_replica = gpus_per_replica
    if per_replica <= gpus_per_node or per_replica == 0:
        fits = gpus_per_node // per_replica if per_replica else replicas
        per_node = max(1, min(replicas, fits))
        return Layout(
            replicas=replicas,
            gpus_per_replica=per_replica,
            gpus_per_node=gpus_per_node,
            replicas_per_node=per_node,
            nodes_per_replica=1,
            nodes=-(-replicas // per_node),
            tensor_parallel=max(1, per_replica),
            pipeline_parallel=1,
        )
    if gpus_per_node == 0 or per_replica % gpus_per_node:
        raise ConfigError(
            f"gpus_per_replica is {per_replica}, which is not a multiple of gpus_per_node "
            f"({gpus_per_node}).",
            hint="A replica that spans nodes uses whole nodes.",
        )
    nodes_per_replica = per_replica // gpus_per_node
    return Layout(
        replicas=replicas,
        gpus_per_replica=per_replica,
        gpus_per_node=gpus_per_node,
        replicas_per_node=0,
        nodes_per_replica=nodes_per_replica,
        nodes=replicas * nodes_per_replica,
        tensor_parallel=gpus_per_node,
        pipeline_parallel=nodes_per_replica,
    )


class FailurePattern(Record):
    """A known cause of an engine's end, and the line of its log that reports it."""

    pattern: str  # regular expression, searched line by line from the end of the log
    cause: str
    hint: str
    retryable: bool  # False: a restart cannot help, the watchdog fails the replica at once


class StartPhase(Record):
    """A phase of an engine's start, and the line of its log with which the phase begins."""

    phase: Literal["pull", "load", "compile", "warm-up"]
    pattern: str  # regular expression


class FirstRequest(Record):
    """The request that an engine must answer (any status below 500) before it counts as ready."""

    path: str
    body: dict[str, Any]


class ServingSpec(Record):
    """The server of one replica as a command.

    Placeholders in argv are replaced with `str.replace`, never with `str.format`, so that other
    braces in users' arguments are kept. The backend replaces `{python}` by
    `DeploymentContext.interpreter`, and `{replica}`, if it is a whole argument, by the replica's
    number. The node replaces `{host}` and `{port}`.

    If a replica spans several nodes, argv runs on the first, where `{node_port}` is the port for
    the others. They run `follower_argv` with `{head}`, `{port}` and `{rank}` (1, 2, …).
    """

    argv: tuple[str, ...]
    follower_argv: tuple[str, ...] = ()
    companion_argv: tuple[str, ...] = ()  # runs beside argv, and is restarted like it
    env: dict[str, str] = field(default_factory=dict)
    key_env: str | None  # environment variable from which the engine reads the clients' key
    health_path: str = "/health"
    metrics_path: str | None = "/metrics"
    running_metric: str | None = None  # gauge: requests being served
    waiting_metric: str | None = None  # gauge: requests queued in the engine
    prompt_tokens_metric: str | None = None  # counter: tokens read
    generated_tokens_metric: str | None = None  # counter: tokens written
    kv_cache_metric: str | None = None  # gauge: used share of the KV cache, 0 to 1
    preemptions_metric: str | None = None  # counter: requests preempted for lack of KV memory
    progress_metrics: tuple[str, ...] = ()  # counters that grow while tokens are generated
    first_request: FirstRequest | None = None
    failure_patterns: tuple[FailurePattern, ...] = ()
    start_phases: tuple[StartPhase, ...] = ()  # if several match a line, the last one applies
    max_num_seqs: int | None = None  # requests that the engine runs at once, if a flag sets it

    @property
    def reported_metrics(self) -> dict[str, str]:
        """The engine's metrics in a watchdog's report: field of the report → name of the metric.

        Metrics that the engine does not have are missing.
        """
        fields = {
            "requests_running": self.running_metric,
            "requests_waiting": self.waiting_metric,
            "prompt_tokens": self.prompt_tokens_metric,
            "generated_tokens": self.generated_tokens_metric,
            "kv_cache_usage": self.kv_cache_metric,
        }
        return {field: name for field, name in fields.items() if name is not None}


class DeploymentContext(Record):
    """Everything that a backend needs to launch a plan, beyond the plan. Contains no secret."""

    tag: str  # marks everything that this swarm starts; unique per swarm, not per name
    serving_spec: ServingSpec
    shared_env: dict[str, str] = field(default_factory=dict)  # of all our programs on the nodes
    timeout_s: float
    interpreter: str  # the Python that our programs run with


_KEYS: Mapping[str, str] = {  # key of a plan → key of the configuration
    "layout.replicas": "replicas",  # for an elastic swarm: replicas.max
    "elastic.least": "replicas.min",
    "elastic.keep_s": "replicas.keep_s",
    "elastic.hold_s": "replicas.hold_s",
    "elastic": "replicas.min",
    "layout.gpus_per_replica": "gpus_per_replica",
    "layout.gpus_per_node": "gpus_per_node",
    "resources.cpus": "cpus_per_task",
    "resources.memory_gb": "memory_gb",
    "port_from": "port",
}
_DERIVED = ("layout.", "resources.", "schema_version")
_MAX_SHOWN = 60  # characters of a value


def differences(before: DeploymentPlan, after: DeploymentPlan) -> dict[str, tuple[str, str]]:
    """The keys of the configuration in which two plans differ, each with both values as JSON, which
    is truncated if it is long.
    """
    first, second = dict(_settings(before)), dict(_settings(after))
    return {
        key: (_shown(first.get(key)), _shown(second.get(key)))
        for key in dict.fromkeys((*first, *second))
        if first.get(key) != second.get(key)
    }


def _settings(plan: DeploymentPlan) -> Iterator[tuple[str, Any]]:
    for key, value in _leaves(plan.model_dump(mode="json"), ""):
        if key in _KEYS:
            yield _KEYS[key], value
        elif not key.startswith(_DERIVED):
            yield key.replace("backend_options.", "backend.", 1), value


def _leaves(values: Any, at: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{at}.{key}" if at else key)
    elif values != {}:
        yield at, values


def _shown(value: Any) -> str:  # noqa: ANN401 - JSON
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"
