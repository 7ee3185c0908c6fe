"""The tables, as the newest migration leaves them. Plain tables: an object mapper would double what
reading them costs a command.
"""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, MetaData, String, Table, Text

NEWEST_REVISION = "0001"

METADATA = MetaData()

SWARMS = Table(  # see `records.SwarmRecord`; times are ISO 8601 in UTC
    "swarms",
    METADATA,
    Column("tag", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("backend", String, nullable=False),
    Column("phase", String, nullable=False),
    Column("detail", Text, nullable=False),
    Column("swarm_dir", Text, nullable=False),
    Column("plan_json", Text, nullable=False),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
)

HANDLES = Table(  # what the platform runs for a swarm, in the order in which it was started
    "handles",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("tag", String, ForeignKey("swarms.tag", ondelete="CASCADE"), nullable=False, index=True),
    Column("part_json", Text, nullable=False),
)

JOBS = Table(  # see `records.JobRecord`
    "jobs",
    METADATA,
    Column("job_id", String, primary_key=True),
    Column("external_id", String),
    Column("name", String, nullable=False),
    Column("swarm", String),
    Column("platform", String, nullable=False),
    Column("status", String, nullable=False),
    Column("job_dir", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("output", Text),
    Column("handle_json", Text),
    Column("submitted_at", String, nullable=False, index=True),
    Column("ended_at", String),
    Column("exit_code", Integer),
    Index("jobs_by_swarm", "swarm"),
    Index("jobs_by_external_id", "external_id"),
)
