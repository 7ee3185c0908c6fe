"""A row of a table of metrics becomes a family, as Prometheus has it."""

from __future__ import annotations

from typing import Any

import pytest

from domyn_swarm.backends.endpoint.metric_families import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    MetricRow,
    families,
)
from domyn_swarm.model import Histogram

SIZES = Histogram(bounds=(1.0, 10.0), counts=(1, 2, 3), total=40.0)
THINGS = [(("a",), 3.0), (("b",), None)]


def samples(told: MetricRow[Any], things: list[Any]) -> list[tuple[str, dict[str, str], float]]:
    [family] = families([told], ("thing",), things)
    return [(one.name, one.labels, one.value) for one in family.samples]


def test_what_is_not_known_is_not_told() -> None:
    told = MetricRow[Any](GAUGE, "size", "Its size.", lambda size: size)
    assert samples(told, THINGS) == [("domyn_swarm_size", {"thing": "a"}, 3.0)]


def test_values_of_labels_are_a_string_or_several() -> None:
    one = MetricRow[Any](COUNTER, "asked", "Asked.", lambda _: {"x": 1, "y": None}, ("how",))
    assert samples(one, THINGS[:1]) == [("domyn_swarm_asked_total", {"thing": "a", "how": "x"}, 1)]
    two = MetricRow[Any](COUNTER, "asked", "Asked.", lambda _: {("x", "y"): 1}, ("how", "why"))
    labels = {"thing": "a", "how": "x", "why": "y"}
    assert samples(two, THINGS[:1]) == [("domyn_swarm_asked_total", labels, 1)]


def test_histograms_are_cumulative_and_names_of_opentelemetry_are_left_alone() -> None:
    told = MetricRow[Any](HISTOGRAM, "gen_ai_size", "Sizes.", lambda _: SIZES)
    found = {labels.get("le", name): value for name, labels, value in samples(told, THINGS[:1])}
    assert found == {"1": 1, "10": 3, "+Inf": 6, "gen_ai_size_count": 6, "gen_ai_size_sum": 40}


@pytest.mark.parametrize(("kind", "value"), [(GAUGE, SIZES), (HISTOGRAM, 3.0)])
def test_a_value_of_another_kind_is_a_mistake(kind: Any, value: object) -> None:
    with pytest.raises(TypeError, match="histogram"):
        samples(MetricRow[Any](kind, "size", "Its size.", lambda _: value), THINGS[:1])
