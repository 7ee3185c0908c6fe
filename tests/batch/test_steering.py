"""Gauges out of Prometheus texts."""

from __future__ import annotations

import pytest

from domyn_swarm.batch.steering import Gauges, parse_gauges


@pytest.mark.parametrize(
    ("text", "gauges"),
    [
        (
            b'# HELP vllm:num_requests_running x\nvllm:num_requests_running{engine="0"} 3.0\n'
            b'vllm:num_requests_running{engine="1"} 4.0\nvllm:num_requests_waiting{a="b"} 1e1\n',
            Gauges(7.0, 10.0),
        ),
        (
            b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n",
            Gauges(2.0, 5.0),
        ),
        (
            b'sglang:num_running_reqs{m="x"} 4\nsglang:num_queue_reqs{m="x"} 1\n',
            Gauges(4.0, 1.0),
        ),
        (b"python_gc_objects_collected_total 3\n", None),
        (b"", None),
    ],
)
def test_gauges_are_summed(text: bytes, gauges: Gauges | None) -> None:
    assert parse_gauges(text) == gauges
