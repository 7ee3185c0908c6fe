"""Families of metrics in the Prometheus library's form, built from tables with one row per
metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from domyn_swarm.model import Histogram

Value = float | Histogram | None
"""None: not known, so there is no sample."""
GAUGE, COUNTER, HISTOGRAM = GaugeMetricFamily, CounterMetricFamily, HistogramMetricFamily
_OURS = "domyn_swarm_"
_T = TypeVar("_T")
_Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily
_Kind = type[GaugeMetricFamily] | type[CounterMetricFamily] | type[HistogramMetricFamily]


@dataclass(frozen=True)
class MetricRow(Generic[_T]):
    """One row: a family and how its value is read from a thing. With `labels` besides those that
    name the thing, `get` returns a value for each value of theirs: a string, or a tuple if there
    are several.
    """

    kind: _Kind
    name: str  # without our prefix, unless it is OpenTelemetry's; a counter's without `_total`
    about: str
    get: Callable[[_T], Value | Mapping[Any, Value]]
    labels: tuple[str, ...] = ()

    def family(
        self, named_by: Sequence[str], things: Iterable[tuple[tuple[str, ...], _T]]
    ) -> Metric:
        """The family with a sample for each of these things, paired with the values of the labels
        that name it.
        """
        ours = "" if self.name.startswith("gen_ai_") else _OURS
        family = self.kind(ours + self.name, self.about, labels=(*named_by, *self.labels))
        for words, thing in things:
            got = self.get(thing)
            for more, value in got.items() if isinstance(got, Mapping) else [((), got)]:
                more = (more,) if isinstance(more, str) else more  # noqa: PLW2901
                if value is not None:
                    _add(family, (*words, *more), value)
        return family


def families(
    table: Iterable[MetricRow[_T]],
    named_by: Sequence[str],
    things: Sequence[tuple[tuple[str, ...], _T]],
) -> Iterator[Metric]:
    """The families of a table; `things` are paired with the values of the labels that name them."""
    for row in table:
        yield row.family(named_by, things)


def _add(family: _Family, words: Sequence[str], value: float | Histogram) -> None:
    if isinstance(family, HistogramMetricFamily):
        if not isinstance(value, Histogram):
            raise TypeError(f"{family.name} is a histogram, not {value!r}")
        family.add_metric(words, _cumulative(value), value.total)
    elif isinstance(value, Histogram):
        raise TypeError(f"{family.name} is no histogram")
    else:
        family.add_metric(words, float(value))


def _cumulative(found: Histogram) -> list[tuple[str, float]]:
    """Cumulative buckets, as the text format demands: each holds the counts of those below it."""
    buckets, so_far = [], 0
    for bound, count in zip((*found.bounds, None), found.counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound is None else f"{bound:.12g}", float(so_far)))
    return buckets
