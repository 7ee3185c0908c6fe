"""Simulated swarms on this machine, for tests of what runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from domyn_swarm import DomynLLMSwarmConfig


def config(name: str = "demo", **keys: Any) -> DomynLLMSwarmConfig:
    """A swarm of simulators that is quick to judge and to stop."""
    fields = {
        "name": name,
        "model": "m",
        "engine": "sim",
        "backend": "local",
        "watchdog": {"probe_interval": 1, "kill_grace_seconds": 3, "restart_backoff_initial": 0.1},
        **keys,
    }
    return DomynLLMSwarmConfig.model_validate(fields)


def until(condition: Callable[[], Any], within_s: float = 30.0, every_s: float = 0.05) -> Any:
    """Wait for something true and return it; `within_s` is enough for a machine that does nothing
    else.
    """
    deadline = time.monotonic() + 3 * within_s
    while not (seen := condition()):
        assert time.monotonic() < deadline
        time.sleep(every_s)
    return seen
