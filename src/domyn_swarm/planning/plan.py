"""What is derived from a config, what a job asks of the platform, and how replicas lie on nodes.
Frozen, serialisable, the same for every backend.
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
    """What a job asks for itself; None: what the platform gives when nothing is asked."""

    detached: bool = False  # nobody follows it: it must survive logout
    memory_gb: Annotated[float, Meta(gt=0)] | None = None
    time_limit_s: Annotated[float, Meta(gt=0)] | None = (
        None  # of one run, where it goes on by itself
    )
    stop_after_s: Annotated[float, Meta(gt=0)] | None = (
        None  # from its first run's begin, all runs together
    )

    @property
    def shortest_limit_s(self) -> float | None:
        """The limit of a job that runs once."""
        limits = [one for one in (self.time_limit_s, self.stop_after_s) if one is not None]
        return min(limits, default=None)


class SrunResources(Record):
    """One step inside an allocation. Each value is one word of `srun`'s argv: nothing is quoted,
    split or joined.
    """

    allocation: str  # the job whose resources it shares with whatever else runs there
    name: str
    cpus: Annotated[int, Meta(ge=1)]
    memory_mb: Annotated[int, Meta(ge=1)] | None = None  # None: all of it, shared with others

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


def lay_out(replicas: int, gpus_per_replica: int, gpus_per_node: int) -> Layout:
    """Place the replicas' GPUs on nodes that have `gpus_per_node` each.

    Exactly `replicas` replicas run, whether or not they fill whole nodes. A replica that needs
    more than one node has all GPUs of each: tensor parallel inside a node, pipeline parallel
    across nodes.

    Raises:
        ConfigError: the replica fits no whole number of nodes, or there would be none.
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
            f"gpus_per_replica is {per_replica}, which is no multiple of gpus_per_node "
            f"({gpus_per_node}).",
            hint="A replica that spans nodes takes whole ones.",
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
    """A known cause of an engine's death and how to see it in a log."""

    pattern: str  # regular expression, searched line by line from the end of the log
    cause: str
    hint: str
    retryable: bool  # False: restarting cannot help, the watchdog gives up at once


class StartPhase(Record):
    """A line of an engine's log that tells how far its start is."""

    phase: Literal["pull", "load", "compile", "warm-up"]
    pattern: str  # regular expression


class FirstRequest(Record):
    """The real request that an engine must answer (any status below 500) before `ready`."""

    path: str
    body: dict[str, Any]


class ServingSpec(Record):
    """One replica's server as a command.

    In argv the exact tokens `{python}`, `{host}` and `{port}` are placeholders, replaced by
    `str.replace` and never by `str.format`, so that braces in users' arguments survive:
    `{python}` by the backend from `DeploymentContext.interpreter`, `{replica}`, where it is the
    whole of an argument, by the replica's number, the others on the node.
    Of a replica on several nodes argv runs on the first; `{node_port}` is where the others reach
    it. They run `follower_argv`, with `{head}`, `{port}` and `{rank}` (1, 2, …) filled in.
    """

    argv: tuple[str, ...]
    follower_argv: tuple[str, ...] = ()
    companion_argv: tuple[str, ...] = ()  # beside argv, kept running in the same way
    env: dict[str, str] = field(default_factory=dict)
    key_env: str | None  # environment variable that carries the clients' key into the engine
    health_path: str = "/health"
    metrics_path: str | None = "/metrics"
    running_metric: str | None = None  # gauge: requests being served
    waiting_metric: str | None = None  # gauge: requests queued in the engine
    prompt_tokens_metric: str | None = None  # counter: tokens read
    generated_tokens_metric: str | None = None  # counter: tokens written
    kv_cache_metric: str | None = None  # gauge: how full the KV cache is, 0 to 1
    preemptions_metric: str | None = None  # counter: requests put back for want of KV memory
    progress_metrics: tuple[str, ...] = ()  # counters that move when tokens come out
    first_request: FirstRequest | None = None
    failure_patterns: tuple[FailurePattern, ...] = ()
    start_phases: tuple[StartPhase, ...] = ()  # of several that match a line, the last one counts
    max_num_seqs: int | None = None  # how many requests run at once, when the engine is told

    @property
    def reported_metrics(self) -> dict[str, str]:
        """What a watchdog tells of the engine's metrics: field of its report → name of the metric.

        What the engine does not have is left out.
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
    """Everything a backend needs to launch a plan, beyond the plan itself. No secrets."""

    tag: str  # carried by everything this swarm starts; unique per swarm, not per name
    serving_spec: ServingSpec
    shared_env: dict[str, str] = field(default_factory=dict)  # for all our programs on the nodes
    timeout_s: float
    interpreter: str  # the Python that our programs run with


_KEYS: Mapping[str, str] = {  # of a plan, and the keys of a configuration that they come from
    "layout.replicas": "replicas",  # of an elastic swarm: replicas.max
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
_LONGEST = 60  # characters of a value that are shown


def differences(one: DeploymentPlan, other: DeploymentPlan) -> dict[str, tuple[str, str]]:
    """The keys of the configuration that differ, each with its two values as JSON, cut where they
    are long.
    """
    first, second = dict(_settings(one)), dict(_settings(other))
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
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
