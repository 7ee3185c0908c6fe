"""`DatabaseService`: looking after the state database, without printing."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from domyn_swarm.model import Record, utc_now
from domyn_swarm.paths import database_path
from domyn_swarm.state import SwarmStore, read_revision, stamp_revision
from domyn_swarm.swarm.pruning import PruneReport, prune, survey_prunable

OLD_JOBS_DAYS = 30.0
"""How long ago a job without a swarm ended that `prune` forgets, unless it is told otherwise."""


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

    def prunable(self, *, jobs_older_than_days: float = OLD_JOBS_DAYS) -> PruneReport:
        """What `prune` would forget, and what it would keep and why. Removes nothing.

        Args:
            jobs_older_than_days: of jobs without a swarm, those that ended so long ago.
        """
        before = utc_now() - timedelta(days=jobs_older_than_days)
        return survey_prunable(SwarmStore.open(), jobs_before=before)

    def prune(self, wanted: PruneReport) -> PruneReport:
        """Forget what `prunable` found; what lives by now, or cannot be removed, stays. What the
        swarms' GPUs were used for is kept.

        Raises:
            OSError: that cannot be kept; nothing was removed.
        """
        from domyn_swarm.services.usage import UsageService

        store = SwarmStore.open()
        for swarm in wanted.swarms:
            UsageService(store).settle(swarm.tag)
        return prune(store, wanted)
