"""The tables of the newest revision."""

from __future__ import annotations

NEWEST_REVISION = "0001"

# Exactly the statements that Alembic runs. A row of `swarms` is a `records.SwarmRecord`, of `jobs`
# a `records.JobRecord`, of `handles` a part that the platform runs for a swarm, in the order of
# their start. Times are ISO 8601 in UTC.
STATEMENTS = (
    """
    CREATE TABLE alembic_version (
        version_num VARCHAR(32) NOT NULL,
        CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    )
    """,
    """
    CREATE TABLE swarms (
        tag VARCHAR NOT NULL,
        name VARCHAR NOT NULL,
        backend VARCHAR NOT NULL,
        phase VARCHAR NOT NULL,
        detail TEXT NOT NULL,
        swarm_dir TEXT NOT NULL,
        plan_json TEXT NOT NULL,
        location_json TEXT,
        created_at VARCHAR NOT NULL,
        updated_at VARCHAR NOT NULL,
        PRIMARY KEY (tag),
        UNIQUE (name)
    )
    """,
    """
    CREATE TABLE handles (
        number INTEGER NOT NULL,
        tag VARCHAR NOT NULL,
        part_json TEXT NOT NULL,
        PRIMARY KEY (number),
        FOREIGN KEY(tag) REFERENCES swarms (tag) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX ix_handles_tag ON handles (tag)",
    """
    CREATE TABLE jobs (
        job_id VARCHAR NOT NULL,
        external_id VARCHAR,
        name VARCHAR NOT NULL,
        swarm VARCHAR,
        platform VARCHAR NOT NULL,
        status VARCHAR NOT NULL,
        job_dir TEXT NOT NULL,
        input TEXT NOT NULL,
        output TEXT,
        handle_json TEXT,
        location_json TEXT,
        submitted_at VARCHAR NOT NULL,
        ended_at VARCHAR,
        exit_code INTEGER,
        PRIMARY KEY (job_id)
    )
    """,
    "CREATE INDEX jobs_by_swarm ON jobs (swarm)",
    "CREATE INDEX jobs_by_external_id ON jobs (external_id)",
    "CREATE INDEX ix_jobs_submitted_at ON jobs (submitted_at)",
)
