"""The swarm's metrics as Prometheus text: the collector's state, the router's counters, and the
progress files of the jobs' workers. OpenTelemetry's names (`gen_ai.*`) where it defines one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector as MetricsSource
from typing_extensions import override

from domyn_swarm import __version__
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.job_metrics import job_families
from domyn_swarm.backends.endpoint.metric_families import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    MetricRow,
    families,
)
from domyn_swarm.backends.endpoint.supervision import RouterFigures
from domyn_swarm.backends.endpoint.use_meter import FollowedJob
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.model import FINAL_REPLICA_STATES, ReplicaReport, ReplicaState

STALE = "stale"  # added to the states that replicas report: the last report is too old
_STATES = (*(state.value for state in ReplicaState), STALE)


@dataclass(frozen=True, eq=False)
class Readings(MetricsSource):
    """All values at one moment."""

    swarm: str
    spec: EndpointSpec
    replicas_wanted: int
    view: CollectorView
    router: RouterFigures | None  # None: the router cannot be asked
    jobs: Sequence[FollowedJob] = ()
    uses: Mapping[tuple[int, Use], float] = field(default_factory=dict)  # seconds of replicas

    @override
    def collect(self) -> Iterator[Metric]:
        """All families, as a collector of `prometheus_client` yields them."""
        swarm, view = self.swarm, self.view
        yield from families(_OF_SWARM, ("swarm",), [((swarm,), self)])
        reported = [((swarm, str(one.replica)), _Reported(one, view)) for one in view.replicas]
        yield from families(_OF_REPLICAS, ("swarm", "replica"), reported)
        yield _USE.family(("swarm",), [((swarm,), self)])
        if self.router is not None:
            yield from families(_OF_ROUTER, ("swarm",), [((swarm,), _Routed(self.router, view))])
        yield from job_families(swarm, self.jobs)


def exposition(readings: Readings) -> bytes:
    """The metrics in text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(readings)
    return generate_latest(registry)


def state_of(view: CollectorView, report: ReplicaReport) -> str:
    """The state of a replica: that of its last report, unless it is too old."""
    age = timedelta() if report.reported_at is None else view.taken_at - report.reported_at
    if report.state not in FINAL_REPLICA_STATES and age.total_seconds() > view.stale_after_s:
        return STALE
    return report.state.value


def sampled(report: ReplicaReport) -> datetime | None:
    """When an engine reported the gauges in its replica's report; None: it reported none."""
    if report.reported_at is None or report.sample_age_s is None:
        return None
    return report.reported_at - timedelta(seconds=report.sample_age_s)


class _Reported(NamedTuple):
    """A replica's last report, and the view that it is a part of."""

    report: ReplicaReport
    view: CollectorView


class _Routed(NamedTuple):
    """The router's counters, and the replicas by their URLs."""

    router: RouterFigures
    view: CollectorView

    def by_replica(self, values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
        """Values with the number of each replica before its URL."""
        indices = {one.url: str(one.replica) for one in self.view.replicas}
        return {(indices.get(url, ""), url): value for url, value in values.items()}


def _timestamp(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


_OF_SWARM: tuple[MetricRow[Readings], ...] = (
    MetricRow(
        GAUGE,
        "info",
        "What the swarm is.",
        lambda now: {(__version__, now.spec.model, now.spec.engine, now.spec.backend): 1},
        ("version", "model", "engine", "backend"),
    ),
    MetricRow(
        GAUGE,
        "replicas_wanted",
        "Replicas that the swarm should have.",
        lambda now: now.replicas_wanted,
    ),
    MetricRow(
        GAUGE,
        "replicas_serving",
        "Replicas that accept requests now.",
        lambda now: sum(
            state_of(now.view, one) == ReplicaState.READY.value for one in now.view.replicas
        ),
    ),
    MetricRow(
        GAUGE,
        "router_up",
        "Whether the router answers.",
        lambda now: now.router is not None,
    ),
    MetricRow(
        GAUGE,
        "gpus_per_replica",
        "GPUs that each replica has.",
        lambda now: now.spec.gpus_per_replica,
    ),
)
_USE: MetricRow[Readings] = MetricRow(
    COUNTER,
    "replica_use_seconds",
    "A replica's time by use, from the reports since the collector began.",
    lambda now: {(str(one), use.value): seconds for (one, use), seconds in now.uses.items()},
    ("replica", "use"),
)
_OF_REPLICAS: tuple[MetricRow[_Reported], ...] = (
    MetricRow(
        GAUGE,
        "replica_state",
        "1 for the state that a replica is in, 0 for the others.",
        lambda one: {state: state_of(one.view, one.report) == state for state in _STATES},
        ("state",),
    ),
    MetricRow(
        COUNTER,
        "replica_restarts",
        "How often a replica's watchdog started its engine again.",
        lambda one: one.report.restarts,
    ),
    MetricRow(
        GAUGE,
        "replica_last_report_timestamp_seconds",
        "When a replica's watchdog reported last, by the collector's clock.",
        lambda one: _timestamp(one.report.reported_at),
    ),
    MetricRow(
        GAUGE,
        "replica_sampled_timestamp_seconds",
        "When a replica's engine reported the following metrics, by the collector's clock.",
        lambda one: _timestamp(sampled(one.report)),
    ),
    MetricRow(
        GAUGE,
        "replica_requests_running",
        "Requests that a replica's engine works on, as of its last report.",
        lambda one: one.report.requests_running,
    ),
    MetricRow(
        COUNTER,
        "replica_tokens",
        "Tokens that a replica's engine has read and written since it started.",
        lambda one: {"input": one.report.prompt_tokens, "output": one.report.generated_tokens},
        ("gen_ai_token_type",),
    ),
    MetricRow(
        GAUGE,
        "replica_kv_cache_usage_ratio",
        "How full a replica's KV cache is; 1: full.",
        lambda one: one.report.kv_cache_usage,
    ),
    MetricRow(
        GAUGE,
        "replica_requests_waiting",
        "Requests that wait in a replica's engine, as of its last report.",
        lambda one: one.report.requests_waiting,
    ),
)
_OF_ROUTER: tuple[MetricRow[_Routed], ...] = (
    MetricRow(
        COUNTER,
        "replica_requests",
        "Requests that the router sent to a replica.",
        lambda now: now.by_replica(now.router.given),
        ("replica", "url"),
    ),
    MetricRow(
        GAUGE,
        "replica_requests_in_flight",
        "Requests that the router has sent to a replica and waits for.",
        lambda now: now.by_replica(now.router.in_flight),
        ("replica", "url"),
    ),
    MetricRow(
        COUNTER,
        "router_responses",
        "Replies of the router to its clients.",
        lambda now: now.router.responses,
        ("path", "status_code"),
    ),
    MetricRow(
        HISTOGRAM,
        "gen_ai_server_request_duration_seconds",
        "From a request to its whole reply, at the router.",
        lambda now: now.router.durations,
        ("gen_ai_operation_name", "gen_ai_request_model"),
    ),
)
