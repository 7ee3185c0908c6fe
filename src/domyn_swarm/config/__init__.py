"""What the user wrote: models, loading, defaults, provenance."""

from domyn_swarm.config.loading import LoadedConfig, dump_yaml, load
from domyn_swarm.config.models import DomynLLMSwarmConfig

__all__ = ["DomynLLMSwarmConfig", "LoadedConfig", "dump_yaml", "load"]
