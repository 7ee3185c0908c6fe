"""Platforms by name: one backend of each for the whole process."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from domyn_swarm.backends.protocols import ComputeBackend, ServingBackend
from domyn_swarm.errors import ConfigError

if TYPE_CHECKING:
    from domyn_swarm.backends.slurm.commands import Slurm


@cache
def serving_backend(platform: str) -> ServingBackend:
    """The serving side of a platform; one for the whole process, so that queries are shared.

    Raises:
        ConfigError: this version has no such platform.
    """
    if platform == "local":
        from domyn_swarm.backends.local.local_serving import LocalServing

        return LocalServing()
    if platform == "slurm":
        from domyn_swarm.backends.slurm.slurm_serving import SlurmServing

        return SlurmServing(scheduler())
    if platform == "lepton":
        from domyn_swarm.backends.lepton.lepton_serving import LeptonServing

        return LeptonServing()
    raise _unknown(platform)


@cache
def compute_backend(platform: str) -> ComputeBackend:
    """The compute side of a platform, likewise.

    Raises:
        ConfigError: this version has no such platform.
    """
    if platform == "local":
        from domyn_swarm.backends.local.local_compute import LocalCompute

        return LocalCompute()
    if platform == "slurm":
        from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute

        return SlurmCompute(scheduler())
    if platform == "lepton":
        from domyn_swarm.backends.lepton.lepton_compute import LeptonCompute

        return LeptonCompute()
    raise _unknown(platform)


@cache
def scheduler() -> Slurm:
    """The Slurm scheduler that all parts of this process share."""
    from domyn_swarm.backends.slurm.commands import Slurm

    return Slurm()


def _unknown(platform: str) -> ConfigError:
    return ConfigError(f"There is no backend {platform!r}.", hint="Use local, slurm or lepton.")
