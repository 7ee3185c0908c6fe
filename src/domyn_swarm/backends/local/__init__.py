"""The local platform: processes of this machine that outlive the command line."""

from domyn_swarm.backends.local.compute import LocalCompute
from domyn_swarm.backends.local.serving import LocalServing

__all__ = ["LocalCompute", "LocalServing"]
