"""The state database: an index of swarms and jobs that `reconcile` can rebuild."""

from domyn_swarm.state.records import JobRecord, SwarmRecord
from domyn_swarm.state.store import SwarmStore

__all__ = ["JobRecord", "SwarmRecord", "SwarmStore"]
