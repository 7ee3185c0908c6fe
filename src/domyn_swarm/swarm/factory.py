"""Builds the live object of a record: the only way back from the database."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from domyn_swarm.backends.platforms import serving_backend
from domyn_swarm.backends.protocols import PlatformPart, ServingBackend, ServingHandle
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.state import SwarmRecord


@dataclass(frozen=True)
class LiveSwarm:
    """A recorded swarm, with everything needed to query and to change it."""

    record: SwarmRecord
    plan: DeploymentPlan
    paths: SwarmPaths

    @property
    def backend(self) -> ServingBackend:
        """The backend of its platform; not needed for what the record says."""
        return serving_backend(self.record.backend)

    @cached_property
    def handle(self) -> ServingHandle:
        """The handle of its recorded parts, without replicas that were removed. The parts of a
        record are validated once, since neither changes.
        """
        parts = [PlatformPart.model_validate(part) for part in self.record.parts]
        wanted = self.plan.layout.replicas if self.plan.elastic is None else 0
        return ServingHandle(
            platform=self.record.backend,
            tag=self.record.tag,
            swarm_dir=self.record.swarm_dir,
            parts=tuple(part for part in parts if part.kind != "replica" or part.index < wanted),
            location=self.record.location,
            least_replicas=None if self.plan.elastic is None else self.plan.elastic.least,
        )

    def handle_now(self) -> ServingHandle:
        """The handle with the current replicas of an elastic swarm, as found on the platform.

        Raises:
            PlatformError: it cannot be asked.
        """
        handle = self.handle
        if self.plan.elastic is None:
            return handle
        parts = dict.fromkeys(handle.parts)
        for found in self.backend.find(handle):
            parts |= dict.fromkeys(part for part in found.parts if part.kind == "replica")
        return handle.model_copy(update={"parts": tuple(parts)})

    def with_record(self, record: SwarmRecord) -> LiveSwarm:
        """The same swarm with a changed record."""
        return replace(self, record=record)


def rehydrate(record: SwarmRecord) -> LiveSwarm:
    """The live object of a record."""
    return LiveSwarm(
        record=record,
        plan=DeploymentPlan.model_validate_json(record.plan_json),
        paths=SwarmPaths(Path(record.swarm_dir)),
    )
