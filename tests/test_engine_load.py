"""The one reader of Prometheus text: which samples have a name."""

from __future__ import annotations

import pytest

from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.supervision import Activity
from domyn_swarm.engine_load import MetricsReader

TEXT = b"""\
# HELP asked Requests.
# TYPE asked counter
asked 1
asked{model="m"} 2
asked{method="POST"} 4
asked{method="POST",path="/v1"} 8
asked{method="POSTED"} 16
asked{path="/v1",method="POST"} 32
asked_total{method="POST"} 64
  asked 128
"""


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("asked", [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
        ('asked{method="POST"', [4.0, 8.0]),  # those whose first label is that
        ("ask", []),
        ("asked_total", [64.0]),
    ],
)
def test_a_name_stands_for_its_samples_and_for_no_others(name: str, values: list[float]) -> None:
    assert MetricsReader({"it": (name,)}).values(TEXT).get("it", []) == values


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("method", {"GET": 2.0, "POST": 4.0}),
        ("path", {"/v1": 4.0, "": 8.0}),
        ("hod", {}),  # no part of a name is a name
    ],
)
def test_samples_of_a_name_by_one_of_their_labels(label: str, values: dict[str, float]) -> None:
    text = (
        b"asked 1\n"
        b'asked{method="GET"} 2\n'
        b'asked{method="POST",path="/v1"} 4\n'
        b'asked{path=""} 8\n'
        b'told{method="HEAD"} 16\n'
    )
    reader = MetricsReader({"it": ("asked",), "other": ("told",)})
    assert reader.by_label(text, "it", label) == values


def test_the_router_uses_the_replicas_that_it_found_healthy() -> None:
    text = (
        'smg_worker_health{worker="http://a"} 1\n'
        'smg_worker_health{worker="http://b"} 0\n'
        'smg_worker_health{model="m",worker="http://c"} 1.0\n'
        'smg_worker_health_checks_total{worker="http://d"} 1\n'
    )
    assert SmgRouter().activity(text).usable == {"http://a", "http://c"}


def test_the_routers_use_is_its_posts_and_what_its_replicas_work_on() -> None:
    text = (
        'smg_http_requests_total{method="POST",path="/v1/chat/completions"} 3\n'
        'smg_http_requests_total{method="GET",path="/health"} 900\n'
        'smg_worker_requests_active{worker="http://a"} 2\n'
        'smg_worker_requests_active{worker="http://b"} 1\n'
    )
    assert SmgRouter().activity(text) == Activity(requests=3, in_flight=3)
    assert SmgRouter().activity("") == Activity(requests=0, in_flight=0)
