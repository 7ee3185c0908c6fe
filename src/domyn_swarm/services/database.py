"""`DatabaseService`: the operations of the `db` commands, without printing."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from domyn_swarm.model import Record, utc_now
from domyn_swarm.paths import database_path
from domyn_swarm.state import SwarmStore, read_revision
from domyn_swarm.swarm.pruning import PruneReport, prune, survey_prunable

OLD_JOBS_DAYS = 30.0
"""By default `prune` removes jobs without a swarm that ended this long ago."""


class DatabaseRevision(Record):
    """The database's revision before and after an operation."""

    schema_version: Literal[1] = 1
    path: str
    before: str | None  # None: there was no database, or it recorded no revision
    now: str


class DatabaseService:
    """The operations on the state database."""

    def upgrade(self) -> DatabaseRevision:
        """Upgrade the database to the newest revision, or create it.

        Raises:
            StateError: the database is from a newer version, or cannot be used.
        """
        path = database_path()
        before = read_revision(path)
        SwarmStore.open(path)
        return DatabaseRevision(path=str(path), before=before, now=str(read_revision(path)))

    def stamp(self, revision: str | None) -> DatabaseRevision:
        """Record the revision of the database (None: the newest), without changing its tables.

        Raises:
            StateError: there is no database or no such revision, or the tables are of another one.
        """
        path = database_path()
        before = read_revision(path)
        from domyn_swarm.state.revisions import stamp  # here: Alembic is a third of a second

        stamp(path, revision)
        return DatabaseRevision(path=str(path), before=before, now=str(read_revision(path)))

    def prunable(self, *, jobs_older_than_days: float = OLD_JOBS_DAYS) -> PruneReport:
        """What `prune` would remove, and what it would keep and why. Removes nothing.

        Args:
            jobs_older_than_days: minimum age of jobs without a swarm, counted from their end.
        """
        before = utc_now() - timedelta(days=jobs_older_than_days)
        return survey_prunable(SwarmStore.open(), jobs_before=before)

    def prune(self, wanted: PruneReport) -> PruneReport:
        """Remove what `prunable` returned, except what is live by now or cannot be removed. The
        record of GPU time is kept.

        Raises:
            OSError: the record of GPU time cannot be written; nothing was removed.
        """
        from domyn_swarm.services.usage import UsageService

        store = SwarmStore.open()
        for swarm in wanted.swarms:
            UsageService(store).settle(swarm.tag)
        return prune(store, wanted)
