"""A swarm as Slurm jobs: one for the endpoint, an array of one task per replica."""

from domyn_swarm.backends.slurm.compute import SlurmCompute
from domyn_swarm.backends.slurm.serving import SlurmServing

__all__ = ["SlurmCompute", "SlurmServing"]
