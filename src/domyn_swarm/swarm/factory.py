"""From a record to a live object: the one way back from the database."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from domyn_swarm.backends.base import ComputeBackend, Part, ServingBackend, ServingHandle
from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.state import SwarmRecord

if TYPE_CHECKING:
    from domyn_swarm.backends.slurm.commands import Slurm


@cache
def serving_backend(platform: str) -> ServingBackend:
    """The serving side of a platform; one for the whole process, so that it asks once for all.

    Raises:
        ConfigError: this version has no such platform.
    """
    if platform == "local":
        from domyn_swarm.backends.local.serving import LocalServing

        return LocalServing()
    if platform == "slurm":
        from domyn_swarm.backends.slurm.serving import SlurmServing

        return SlurmServing(scheduler())
    if platform == "lepton":
        from domyn_swarm.backends.lepton.serving import LeptonServing

        return LeptonServing()
    raise _unknown(platform)


@cache
def compute_backend(platform: str) -> ComputeBackend:
    """The compute side of a platform, likewise.

    Raises:
        ConfigError: this version has no such platform.
    """
    if platform == "local":
        from domyn_swarm.backends.local.compute import LocalCompute

        return LocalCompute()
    if platform == "slurm":
        from domyn_swarm.backends.slurm.compute import SlurmCompute

        return SlurmCompute(scheduler())
    if platform == "lepton":
        from domyn_swarm.backends.lepton.compute import LeptonCompute

        return LeptonCompute()
    raise _unknown(platform)


@cache
def scheduler() -> Slurm:
    """Slurm, for whoever in this process asks it."""
    from domyn_swarm.backends.slurm.commands import Slurm

    return Slurm()


def _unknown(platform: str) -> ConfigError:
    return ConfigError(f"There is no backend {platform!r}.", hint="Use local, slurm or lepton.")


@dataclass(frozen=True)
class LiveSwarm:
    """A recorded swarm with everything needed to ask and to change it."""

    record: SwarmRecord
    plan: DeploymentPlan
    paths: SwarmPaths

    @property
    def backend(self) -> ServingBackend:
        """The platform it runs on, ready to be asked; not needed to tell what its record says."""
        return serving_backend(self.record.backend)

    @property
    def handle(self) -> ServingHandle:
        """How the platform knows it; replicas that were taken out are no part of it."""
        parts = [Part.model_validate(part) for part in self.record.parts]
        wanted = self.plan.layout.replicas
        return ServingHandle(
            platform=self.record.backend,
            tag=self.record.tag,
            swarm_dir=self.record.swarm_dir,
            parts=tuple(part for part in parts if part.kind != "replica" or part.index < wanted),
            location=self.record.location,
        )

    def with_record(self, record: SwarmRecord) -> LiveSwarm:
        """The same swarm after its record has changed."""
        return replace(self, record=record)


def rehydrate(record: SwarmRecord) -> LiveSwarm:
    """The live object of a record."""
    return LiveSwarm(
        record=record,
        plan=DeploymentPlan.model_validate_json(record.plan_json),
        paths=SwarmPaths(Path(record.swarm_dir)),
    )
