"""What differs between two plans, as a configuration calls it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from domyn_swarm.planning.plan import DeploymentPlan

_KEYS: Mapping[str, str] = {  # of a plan, and the keys of a configuration that they come from
    "layout.replicas": "replicas",  # of an elastic swarm: replicas.max
    "elastic.least": "replicas.min",
    "elastic.keep_s": "replicas.keep_s",
    "elastic.hold_s": "replicas.hold_s",
    "elastic": "replicas.min",
    "layout.gpus_per_replica": "gpus_per_replica",
    "layout.gpus_per_node": "gpus_per_node",
    "resources.cpus": "cpus_per_task",
    "resources.memory_gb": "memory_gb",
    "port_from": "port",
}
_DERIVED = ("layout.", "resources.", "schema_version")
_LONGEST = 60  # characters of a value that are shown


def differences(one: DeploymentPlan, other: DeploymentPlan) -> dict[str, tuple[str, str]]:
    """The keys of the configuration that differ, each with its two values as JSON, cut where they
    are long.
    """
    first, second = dict(_settings(one)), dict(_settings(other))
    return {
        key: (_shown(first.get(key)), _shown(second.get(key)))
        for key in dict.fromkeys((*first, *second))
        if first.get(key) != second.get(key)
    }


def _settings(plan: DeploymentPlan) -> Iterator[tuple[str, Any]]:
    for key, value in _leaves(plan.model_dump(mode="json"), ""):
        if key in _KEYS:
            yield _KEYS[key], value
        elif not key.startswith(_DERIVED):
            yield key.replace("backend_options.", "backend.", 1), value


def _leaves(values: Any, at: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{at}.{key}" if at else key)
    elif values != {}:
        yield at, values


def _shown(value: Any) -> str:  # noqa: ANN401 - JSON
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
