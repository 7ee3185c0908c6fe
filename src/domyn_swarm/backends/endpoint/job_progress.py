"""How far the swarm's jobs are, read from the files that their workers rewrite every second."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from domyn_swarm.model import JobProgress, Record
from domyn_swarm.paths import JobPaths

_LOOKED_AT = 500  # the newest jobs; ids sort by time
_TOLD_FOR = timedelta(minutes=15)  # after its last word; scrapers surely came by meanwhile


class FollowedJob(Record):
    """One job that said something lately."""

    job_id: str
    progress: JobProgress


class JobsFolder:
    """Reads little: a job that has ended is not looked at again. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._over: set[str] = set()

    def read(self, now: datetime) -> list[FollowedJob]:
        """The jobs that said something in the last quarter of an hour, the oldest first."""
        try:
            names = sorted((one.name for one in self._folder.iterdir()), reverse=True)
        except OSError:  # there was no job yet
            return []
        found = []
        for name in names[:_LOOKED_AT]:
            job = None if name in self._over else self._read(name)
            if job is None:
                continue
            if now - job.progress.updated_at <= _TOLD_FOR:
                found.append(job)
            elif job.progress.state == "ended":
                self._over.add(name)
        self._over.intersection_update(names)
        return found[::-1]

    def _read(self, name: str) -> FollowedJob | None:
        path = JobPaths(self._folder / name).progress
        try:
            progress = JobProgress.model_validate_json(path.read_text("utf-8"))
        except (OSError, ValueError):  # not begun, a script, or of another version
            return None
        return FollowedJob(job_id=name, progress=progress)
