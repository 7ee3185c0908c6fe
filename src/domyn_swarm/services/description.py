"""All information about a swarm at once: `swarm describe`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from domyn_swarm import engines
from domyn_swarm.config import read_dump
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.probing import Observation, Phase
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm, rehydrate
from domyn_swarm.swarm.snapshot import SwarmSnapshot
from domyn_swarm.swarm.whereabouts import is_elsewhere


class PartDescription(Record):
    """A process, job or deployment that the platform runs for a swarm."""

    kind: str
    index: int
    platform_id: str
    observed: str  # its state on the platform now
    detail: str = ""
    expires_at: datetime | None = None


class SwarmDescription(Record):
    """A swarm's configuration, plan, running parts and files."""

    schema_version: Literal[1] = 1
    swarm: SwarmSnapshot
    tag: str
    config: dict[str, Any]  # as configured, with defaults filled in; empty: its file was removed
    plan: DeploymentPlan
    engine_command: tuple[str, ...]
    parts: tuple[PartDescription, ...]
    paths: dict[str, Path]  # keyed by their contents; for keys only the paths of their files


def describe(name: str | None, store: SwarmStore | None = None) -> SwarmDescription:
    """All information about a swarm; the only live one if no name is given.

    Raises:
        SwarmNotFound: there is none of that name.
        StateError: no name was given, and not exactly one swarm is live.
    """
    store = store or SwarmStore.open()
    snapshot = SwarmService(store).status(name)
    swarm = rehydrate(store.swarm(snapshot.name))
    return SwarmDescription(
        swarm=snapshot,
        tag=swarm.record.tag,
        config=read_dump(swarm.paths.config),
        plan=swarm.plan,
        engine_command=engines.get(swarm.plan.engine).serving_spec(swarm.plan).argv,
        parts=_parts(swarm),
        paths=_paths(swarm.paths),
    )


def _parts(swarm: LiveSwarm) -> tuple[PartDescription, ...]:
    seen: dict[str, Observation] = {}
    ends: dict[str, datetime] = {}
    if is_elsewhere(swarm.record):
        nobody = Observation(Phase.UNKNOWN, "it cannot be asked from here")
        seen = {part.platform_id: nobody for part in swarm.handle.parts}
    elif swarm.record.phase.live:
        try:
            seen = swarm.backend.probe_parts(swarm.handle)
            ends = swarm.backend.expiries(swarm.handle)
        except PlatformError as error:
            unknown = Observation(Phase.UNKNOWN, error.message)
            seen = {part.platform_id: unknown for part in swarm.handle.parts}
    stopped = Observation(Phase.STOPPED)
    return tuple(
        PartDescription(
            kind=part.kind,
            index=part.index,
            platform_id=part.platform_id,
            observed=seen.get(part.platform_id, stopped).phase.name.lower(),
            detail=seen.get(part.platform_id, stopped).detail,
            expires_at=ends.get(part.platform_id),
        )
        for part in swarm.handle.parts
    )


def _paths(paths: SwarmPaths) -> dict[str, Path]:
    return {
        "folder": paths.root,
        "configuration": paths.config,
        "plan": paths.plan,
        "scripts": paths.scripts,
        "logs": paths.logs,
        "jobs": paths.jobs,
        "endpoint": paths.endpoint,
        "history": paths.watchdog_db,
        "key_file": paths.api_key,
    }
