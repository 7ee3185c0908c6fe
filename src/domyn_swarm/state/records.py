"""The database's records of swarms and jobs."""

from datetime import datetime
from typing import Any

from domyn_swarm.model import JobHandle, JobStatus, Location, Record, SwarmPhase


class SwarmRecord(Record):
    """One swarm. `tag` is unique for all time, `name` among live swarms."""

    name: str
    tag: str
    backend: str
    phase: SwarmPhase
    detail: str = ""
    swarm_dir: str
    plan_json: str
    parts: tuple[dict[str, Any], ...] = ()  # `backends.protocols.PlatformPart`, as JSON
    location: Location | None = None  # None: not recorded
    created_at: datetime
    updated_at: datetime


class JobRecord(Record):
    """One job. It outlives its swarm."""

    job_id: str
    external_id: str | None = None
    name: str
    swarm: str | None
    platform: str
    status: JobStatus
    job_dir: str
    input: str
    output: str | None
    handle: JobHandle | None = None
    location: Location | None = None  # None: not recorded
    submitted_at: datetime
    ended_at: datetime | None = None
    exit_code: int | None = None
