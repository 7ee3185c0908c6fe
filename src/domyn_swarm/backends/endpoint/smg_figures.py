"""The counters in the smg router's own metrics, read with the Prometheus library's parser."""

from __future__ import annotations

import math
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from domyn_swarm.backends.endpoint.supervision import RouterFigures
from domyn_swarm.model import Histogram

_GIVEN = "smg_worker_requests_total"
_ACTIVE = "smg_worker_requests_active"
_RESPONSES = "smg_http_responses_total"
_DURATION = "smg_router_request_duration_seconds"
_WANTED = (_GIVEN, _ACTIVE, _RESPONSES, _DURATION)
_Key = tuple[str, str]


def read_figures(metrics: str) -> RouterFigures:
    """The counters in the router's Prometheus text: a few of its hundreds of metrics."""
    given: dict[str, float] = {}
    in_flight: dict[str, float] = {}
    responses: defaultdict[_Key, float] = defaultdict(float)
    buckets: defaultdict[_Key, dict[float, float]] = defaultdict(dict)
    totals: dict[_Key, float] = {}
    for family in text_string_to_metric_families(_of_interest(metrics)):
        for sample in family.samples:
            labels, value = sample.labels, float(sample.value)
            if sample.name == _GIVEN:
                given[labels["worker"]] = value
            elif sample.name == _ACTIVE:
                in_flight[labels["worker"]] = value
            elif sample.name == _RESPONSES:
                responses[labels["path"], labels["status_code"]] += value
            elif sample.name == f"{_DURATION}_bucket":
                buckets[_operation(labels)][float(labels["le"])] = value
            elif sample.name == f"{_DURATION}_sum":
                totals[_operation(labels)] = value
    durations = {key: _histogram(found, totals.get(key, 0.0)) for key, found in buckets.items()}
    return RouterFigures(
        given=given, in_flight=in_flight, responses=dict(responses), durations=durations
    )


def _of_interest(metrics: str) -> str:
    """The lines of these metrics, with their types: the parser recognizes a histogram by its
    type.
    """
    lines = metrics.splitlines()
    return "".join(
        f"{line}\n" for line in lines if line.removeprefix("# TYPE ").startswith(_WANTED)
    )


def _operation(labels: dict[str, str]) -> _Key:
    return labels["endpoint"], labels["model"]


def _histogram(buckets: dict[float, float], total: float) -> Histogram:
    bounds, counts, below = [], [], 0.0
    for bound in sorted(buckets):
        counts.append(int(buckets[bound] - below))
        below = buckets[bound]
        if not math.isinf(bound):
            bounds.append(bound)
    return Histogram(bounds=tuple(bounds), counts=tuple(counts), total=total)
