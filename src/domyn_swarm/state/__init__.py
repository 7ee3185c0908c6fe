"""The state database: an index of swarms and jobs, which `reconcile` can rebuild."""

from domyn_swarm.state.database_file import read_revision
from domyn_swarm.state.records import JobRecord, SwarmRecord
from domyn_swarm.state.store import SwarmStore

__all__ = ["JobRecord", "SwarmRecord", "SwarmStore", "read_revision"]
