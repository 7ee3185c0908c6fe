"""Simulated swarms on this machine, for tests of what runs them."""

from __future__ import annotations

from typing import Any

import patience
from domyn_swarm import DomynLLMSwarmConfig
from domyn_swarm.swarm.launch import Launch, prepare


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


def launch_of(name: str = "demo", **keys: Any) -> Launch:
    """Its launch."""
    return prepare(config(name, **keys))
