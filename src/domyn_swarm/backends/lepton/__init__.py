"""NVIDIA DGX Cloud Lepton: the endpoint and the jobs are the platform's own."""

from domyn_swarm.backends.lepton.compute import LeptonCompute
from domyn_swarm.backends.lepton.serving import LeptonServing

__all__ = ["LeptonCompute", "LeptonServing"]
