"""`DatabaseService`: looking after the state database, without printing."""

from __future__ import annotations

from typing import Literal

from domyn_swarm.model import Record
from domyn_swarm.paths import database_path
from domyn_swarm.state import SwarmStore, read_revision, stamp_revision
from domyn_swarm.swarm.pruning import PruneReport, prune, survey_prunable


class DatabaseRevision(Record):
    """Of which revision the database was, and is."""

    schema_version: Literal[1] = 1
    path: str
    before: str | None  # None: there was none, or it did not say
    now: str


class DatabaseService:
    """What the `db` commands call."""

    def upgrade(self) -> DatabaseRevision:
        """Bring the database to the newest revision; it is created when there is none.

        Raises:
            StateError: it is from a newer version, or cannot be used.
        """
        path = database_path()
        before = read_revision(path)
        SwarmStore.open(path)
        return DatabaseRevision(path=str(path), before=before, now=str(read_revision(path)))

    def stamp(self, revision: str | None) -> DatabaseRevision:
        """Write down of which revision the database is; None: the newest. Tables stay as they are.

        Raises:
            StateError: there is no database, no such revision, or its tables are not those.
        """
        path = database_path()
        before = read_revision(path)
        stamp_revision(path, revision)
        return DatabaseRevision(path=str(path), before=before, now=str(read_revision(path)))

    def prunable(self) -> PruneReport:
        """What `prune` would forget, and what it would keep and why. Removes nothing."""
        return survey_prunable(SwarmStore.open())

    def prune(self, wanted: PruneReport) -> PruneReport:
        """Forget what `prunable` found; what lives by now, or cannot be removed, stays."""
        return prune(SwarmStore.open(), wanted)
