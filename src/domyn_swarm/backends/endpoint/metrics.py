"""The swarm's metrics as Prometheus text: what the collector believes, what the router counts, and
what the jobs' workers wrote down. OpenTelemetry's names (`gen_ai.*`) where it has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector as MetricsSource

from domyn_swarm import __version__
from domyn_swarm.backends.endpoint.job_metrics import counter, gauge, histogram, job_families
from domyn_swarm.backends.endpoint.router import RouterFigures
from domyn_swarm.backends.endpoint.spec import EndpointSpec
from domyn_swarm.backends.endpoint.use_meter import FollowedJob
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.model import FINAL_REPLICA_STATES, ReplicaReport, ReplicaState

STALE = "stale"  # beside the states that replicas report: the last word is too old
_STATES = (*(state.value for state in ReplicaState), STALE)


@dataclass(frozen=True, eq=False)
class Readings(MetricsSource):
    """All that is known at one moment."""

    swarm: str
    spec: EndpointSpec
    replicas_wanted: int
    view: CollectorView
    router: RouterFigures | None  # None: it cannot be asked
    jobs: Sequence[FollowedJob] = ()
    uses: Mapping[tuple[int, Use], float] = field(default_factory=dict)  # seconds of replicas

    def collect(self) -> Iterator[Metric]:
        """Every family; what `prometheus_client` asks of a collector."""
        yield from _swarm(self)
        yield from _replicas(self.swarm, self.view)
        yield counter(
            "replica_use_seconds",
            "What a replica's time went to, as the collector heard it since its program began.",
            ("swarm", "replica", "use"),
            (((self.swarm, str(one), use.value), told) for (one, use), told in self.uses.items()),
        )
        if self.router is not None:
            yield from _router(self.swarm, self.router, self.view)
        yield from job_families(self.swarm, self.jobs)


def exposition(readings: Readings) -> bytes:
    """The text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(readings)
    return generate_latest(registry)


def state_of(view: CollectorView, report: ReplicaReport) -> str:
    """What is believed of a replica: its last word, unless that is too old."""
    age = timedelta() if report.reported_at is None else view.taken_at - report.reported_at
    if report.state not in FINAL_REPLICA_STATES and age.total_seconds() > view.stale_after_s:
        return STALE
    return report.state.value


def sampled(report: ReplicaReport) -> datetime | None:
    """When an engine gave the figures of its replica's report; None: it gave none."""
    if report.reported_at is None or report.sample_age_s is None:
        return None
    return report.reported_at - timedelta(seconds=report.sample_age_s)


def _swarm(readings: Readings) -> Iterator[Metric]:
    spec, view = readings.spec, readings.view
    facts = {
        "swarm": readings.swarm,
        "version": __version__,
        "model": spec.model,
        "engine": spec.engine,
        "backend": spec.backend,
    }
    yield gauge("info", "What the swarm is.", list(facts), [(list(facts.values()), 1)])
    serving = sum(state_of(view, one) == ReplicaState.READY.value for one in view.replicas)
    for name, about, value in (
        ("replicas_wanted", "Replicas that the swarm shall have.", readings.replicas_wanted),
        ("replicas_serving", "Replicas that take requests now.", serving),
        ("router_up", "Whether the router answers.", readings.router is not None),
        ("gpus_per_replica", "GPUs that each replica has.", spec.gpus_per_replica),
    ):
        yield gauge(name, about, ["swarm"], [([readings.swarm], value)])


def _replicas(swarm: str, view: CollectorView) -> Iterator[Metric]:
    labels = ("swarm", "replica")
    reported = [((swarm, str(one.replica)), one) for one in view.replicas]
    yield gauge(
        "replica_state",
        "1 for the state that a replica is in, 0 for the others.",
        (*labels, "state"),
        (
            ((*words, state), state_of(view, one) == state)
            for words, one in reported
            for state in _STATES
        ),
    )
    yield counter(
        "replica_restarts",
        "How often a replica's watchdog started its engine again.",
        labels,
        ((words, one.restarts) for words, one in reported),
    )
    yield gauge(
        "replica_last_report_timestamp_seconds",
        "When a replica's watchdog reported last, by the collector's clock.",
        labels,
        ((words, one.reported_at.timestamp()) for words, one in reported if one.reported_at),
    )
    yield gauge(
        "replica_sampled_timestamp_seconds",
        "When a replica's engine said what the next metrics tell, by the collector's clock.",
        labels,
        ((words, when.timestamp()) for words, one in reported if (when := sampled(one))),
    )
    yield gauge(
        "replica_requests_running",
        "Requests that a replica's engine works on, as of its last report.",
        labels,
        ((words, one.requests_running) for words, one in reported),
    )
    yield counter(
        "replica_tokens",
        "Tokens that a replica's engine has read and written since it started.",
        (*labels, "gen_ai_token_type"),
        (
            ((*words, kind), tokens)
            for words, one in reported
            for kind, tokens in (("input", one.prompt_tokens), ("output", one.generated_tokens))
        ),
    )
    yield gauge(
        "replica_kv_cache_usage_ratio",
        "How full a replica's KV cache is; 1: full.",
        labels,
        ((words, one.kv_cache_usage) for words, one in reported),
    )
    yield gauge(
        "replica_requests_waiting",
        "Requests that wait in a replica's engine, as of its last report.",
        labels,
        ((words, one.requests_waiting) for words, one in reported),
    )


def _router(swarm: str, router: RouterFigures, view: CollectorView) -> Iterator[Metric]:
    indices = {one.url: str(one.replica) for one in view.replicas}
    labels = ("swarm", "replica", "url")

    def by_replica(values: Mapping[str, float]) -> Iterator[tuple[Sequence[str], float]]:
        return (((swarm, indices.get(url, ""), url), value) for url, value in values.items())

    yield counter(
        "replica_requests",
        "Requests that the router gave to a replica.",
        labels,
        by_replica(router.given),
    )
    yield gauge(
        "replica_requests_in_flight",
        "Requests that the router has given to a replica and waits for.",
        labels,
        by_replica(router.in_flight),
    )
    yield counter(
        "router_responses",
        "Replies of the router to its clients.",
        ("swarm", "path", "status_code"),
        (((swarm, *key), value) for key, value in router.responses.items()),
    )
    yield histogram(
        "gen_ai_server_request_duration_seconds",
        "From a request to its whole reply, at the router.",
        ("swarm", "gen_ai_operation_name", "gen_ai_request_model"),
        (((swarm, *key), value) for key, value in router.durations.items()),
    )
