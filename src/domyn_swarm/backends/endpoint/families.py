"""Families of metrics as the Prometheus library has them, made of what is known at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from domyn_swarm.model import Histogram

Labelled = Iterable[tuple[Sequence[str], float | None]]
"""Values by the values of their labels; None: not known, so not told."""
_OURS = "domyn_swarm_"


def gauge(name: str, about: str, labels: Sequence[str], values: Labelled) -> Metric:
    """Values that go up and down; `name` without our prefix."""
    family = GaugeMetricFamily(_OURS + name, about, labels=labels)
    for words, value in values:
        if value is not None:
            family.add_metric(words, float(value))
    return family


def counter(name: str, about: str, labels: Sequence[str], values: Labelled) -> Metric:
    """Values that only grow; `name` without our prefix and without `_total`."""
    family = CounterMetricFamily(_OURS + name, about, labels=labels)
    for words, value in values:
        if value is not None:
            family.add_metric(words, float(value))
    return family


def histogram(
    name: str,
    about: str,
    labels: Sequence[str],
    values: Iterable[tuple[Sequence[str], Histogram | None]],
) -> Metric:
    """Histograms under a name of OpenTelemetry's."""
    family = HistogramMetricFamily(name, about, labels=labels)
    for words, value in values:
        if value is not None:
            family.add_metric(words, _cumulative(value), value.total)
    return family


def _cumulative(found: Histogram) -> list[tuple[str, float]]:
    """As the text format wants it: each bucket holds what those below it do."""
    buckets, so_far = [], 0
    for bound, count in zip((*found.bounds, None), found.counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound is None else f"{bound:.12g}", float(so_far)))
    return buckets
