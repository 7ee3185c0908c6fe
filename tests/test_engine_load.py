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


def test_the_routers_use_is_its_posts_and_what_its_replicas_work_on() -> None:
    text = (
        'smg_http_requests_total{method="POST",path="/v1/chat/completions"} 3\n'
        'smg_http_requests_total{method="GET",path="/health"} 900\n'
        'smg_worker_requests_active{worker="http://a"} 2\n'
        'smg_worker_requests_active{worker="http://b"} 1\n'
    )
    assert SmgRouter().activity(text) == Activity(requests=3, in_flight=3)
    assert SmgRouter().activity("") == Activity(requests=0, in_flight=0)
