"""Simulated swarms on this machine, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import patience
from domyn_swarm import DomynLLMSwarmConfig


def config(name: str = "demo", **keys: Any) -> DomynLLMSwarmConfig:
    """A swarm of simulators that is quick to judge and to stop."""
    fields = {
        "name": name,
        "model": "m",
        "engine": "sim",
        "backend": "local",
        "watchdog": {
            "probe_interval": 1,
            "kill_grace_seconds": patience.scaled(3),
            "restart_backoff_initial": 0.1,
        },
        **keys,
    }
    return DomynLLMSwarmConfig.model_validate(fields)


def until(condition: Callable[[], Any], within_s: float = 0.0, every_s: float = 0.05) -> Any:
    """`patience.until`, for callers that still pass a limit, which is not heeded."""
    return patience.until(condition, every_s=every_s)
