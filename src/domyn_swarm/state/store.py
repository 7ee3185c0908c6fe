"""`SwarmStore`: the only reader and writer of the state database.

Every method is one transaction. Programs on the nodes never open the database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any, LiteralString

from domyn_swarm.errors import JobNotFound, SwarmExists, SwarmNotFound, SwarmReplaced
from domyn_swarm.model import (
    JOB_TRANSITIONS,
    SWARM_TRANSITIONS,
    JobHandle,
    JobStatus,
    Location,
    SwarmPhase,
    may_become,
    utc_now,
)
from domyn_swarm.paths import database_path
from domyn_swarm.state.database_file import create_private, create_tables, revision_of, transaction
from domyn_swarm.state.records import JobRecord, SwarmRecord
from domyn_swarm.state.tables import NEWEST_REVISION


class SwarmStore:
    """Swarms with their parts, and jobs."""

    def __init__(self, path: Path) -> None:
        """`path` must be a database of the newest revision: see `open`."""
        self._path = path

    @classmethod
    def open(cls, path: Path | None = None) -> SwarmStore:
        """The database at `path` (default: `$DOMYN_SWARM_HOME/swarm.db`), created if missing.

        Raises:
            StateError: the database cannot be used.
        """
        chosen = database_path() if path is None else path
        open_database(chosen)
        return cls(chosen)

    def _transaction(self, *, writes: bool = False) -> AbstractContextManager[Connection]:
        return transaction(self._path, writes=writes)

    # -- swarms --------------------------------------------------------------------------------

    def create_swarm(self, record: SwarmRecord) -> None:
        """Record a new swarm; it replaces a stopped swarm of the same name.

        Raises:
            SwarmExists: a live swarm has the name.
        """
        fields = record.model_dump(mode="json", exclude={"parts", "location"})
        moments = {"created_at": _text(record.created_at), "updated_at": _text(record.updated_at)}
        fields |= {"location_json": _location_json(record.location), **moments}
        with self._transaction(writes=True) as connection:
            old = _swarm_row(connection, "name", record.name)
            if old is not None and SwarmPhase(old["phase"]).live:
                raise SwarmExists(
                    f"A swarm named {record.name!r} is {old['phase']}.",
                    hint=f"Stop it with `domyn-swarm down {record.name}`, or choose another name.",
                )
            if old is not None:
                connection.execute("DELETE FROM swarms WHERE tag = ?", (old["tag"],))
            _insert(connection, "swarms", fields)
            _add_parts(connection, record.tag, record.parts)

    def attach_parts(self, tag: str, parts: Sequence[dict[str, Any]]) -> None:
        """Add parts that the platform runs for the swarm: all of them, or none.

        Raises:
            SwarmReplaced: there is no swarm with this tag.
        """
        with self._transaction(writes=True) as connection:
            self._change(connection, tag)
            _add_parts(connection, tag, parts)

    def set_plan(self, tag: str, plan_json: str) -> None:
        """Replace the plan of a live swarm.

        Raises:
            SwarmReplaced: there is no swarm with this tag.
        """
        with self._transaction(writes=True) as connection:
            self._change(connection, tag, plan_json=plan_json)

    def set_phase(self, tag: str, phase: SwarmPhase, detail: str = "") -> bool:
        """Move a swarm to another phase; a non-empty detail replaces the previous one.

        Returns False, without an error, if the phase cannot follow the recorded one (another
        program was faster), or if a newer swarm has replaced this one.
        """
        with self._transaction(writes=True) as connection:
            row = _swarm_row(connection, "tag", tag)
            if row is None or not may_become(SwarmPhase(row["phase"]), phase, SWARM_TRANSITIONS):
                return False
            self._change(connection, tag, phase=phase.value, detail=detail or row["detail"])
            return True

    def set_stopped(self, tag: str, detail: str = "") -> None:
        """Record that nothing of the swarm runs any more, whatever its phase was.

        Idempotent: several programs may notice it at once. Does nothing for a replaced swarm.
        """
        with self._transaction(writes=True) as connection:
            row = _swarm_row(connection, "tag", tag)
            if row is None or not SwarmPhase(row["phase"]).live:
                return
            stopped = SwarmPhase.STOPPED.value
            self._change(connection, tag, phase=stopped, detail=detail or row["detail"])

    def forget_location(self, tag: str) -> None:
        """Remove the record of where a swarm runs, because that place cannot be reached any more.

        Raises:
            StateError: there is no swarm with this tag.
        """
        with self._transaction(writes=True) as connection:
            self._change(connection, tag, location_json=None)

    def delete_stopped(self, tag: str) -> bool:
        """Delete a stopped swarm and the jobs of its name.

        Returns False if it is not stopped any more, or a newer swarm of its name has replaced it.
        """
        with self._transaction(writes=True) as connection:
            row = _swarm_row(connection, "tag", tag)
            if row is None or SwarmPhase(row["phase"]).live:
                return False
            connection.execute("DELETE FROM swarms WHERE tag = ?", (tag,))
            connection.execute("DELETE FROM jobs WHERE swarm = ?", (row["name"],))
            return True

    @staticmethod
    def _change(connection: Connection, tag: str, **values: str | None) -> Row:
        """Change a swarm's row; the row before the change.

        Raises:
            SwarmReplaced: there is no swarm with this tag.
        """
        row = _swarm_row(connection, "tag", tag)
        if row is None:
            raise SwarmReplaced(
                f"No swarm has the tag {tag!r}.", hint="A newer swarm has replaced it."
            )
        changed = {**values, "updated_at": _text(utc_now())}
        _update(connection, "swarms", ("tag", tag), changed)
        return row

    def swarm(self, name: str) -> SwarmRecord:
        """The swarm named `name`, live or stopped.

        Raises:
            SwarmNotFound: there is none; the hint suggests similar names.
        """
        with self._transaction() as connection:
            records = _swarm_records(connection, "name = ?", name)
            if not records:
                names = connection.execute("SELECT name FROM swarms").fetchall()
                raise SwarmNotFound(name, [row["name"] for row in names])
            return records[0]

    def swarms(self, *, include_stopped: bool = False) -> list[SwarmRecord]:
        """All live swarms, and the stopped ones if asked for, oldest first."""
        with self._transaction() as connection:
            if include_stopped:
                return _swarm_records(connection, "TRUE")
            return _swarm_records(connection, "phase != ?", SwarmPhase.STOPPED.value)

    # -- jobs ------------------------------------------------------------------------------------

    def create_job(
        self, record: JobRecord, check: Callable[[Iterable[JobRecord]], None] | None = None
    ) -> None:
        """Record a new job.

        `check` receives the jobs that have not ended, in the same transaction. If it raises, the
        job is not recorded.
        """
        fields = record.model_dump(mode="json", exclude={"handle", "location"})
        row = {
            **fields,
            "handle_json": record.handle.model_dump_json() if record.handle else None,
            "location_json": _location_json(record.location),
            "submitted_at": _text(record.submitted_at),
            "ended_at": _text(record.ended_at) if record.ended_at else None,
        }
        with self._transaction(writes=True) as connection:
            if check is not None:
                unended = connection.execute("SELECT * FROM jobs WHERE ended_at IS NULL")
                check(map(_job_record, unended))
            _insert(connection, "jobs", row)

    def set_job_handle(self, job_id: str, handle: JobHandle) -> None:
        """Record the handle by which the platform's job can be addressed.

        Raises:
            JobNotFound: there is no such job.
        """
        with self._transaction(writes=True) as connection:
            row = self._job_row(connection, job_id)
            changed = {"handle_json": handle.model_dump_json()}
            _update(connection, "jobs", ("job_id", row["job_id"]), changed)

    def set_job_status(
        self,
        job_id: str,
        status: JobStatus,
        *,
        exit_code: int | None = None,
        ended_at: datetime | None = None,
    ) -> None:
        """Move a job to another status, if that may follow the recorded one.

        A final status is never changed: if two programs judge a job's end differently, the first
        record is kept.

        Raises:
            JobNotFound: there is no such job.
        """
        with self._transaction(writes=True) as connection:
            row = self._job_row(connection, job_id)
            current = JobStatus(row["status"])
            if current.final or not may_become(current, status, JOB_TRANSITIONS):
                return
            changed: dict[str, Any] = {"status": status.value, "exit_code": exit_code}
            if status.final:
                changed["ended_at"] = _text(ended_at or utc_now())
            _update(connection, "jobs", ("job_id", row["job_id"]), changed)

    def job(self, ref: str) -> JobRecord:
        """A job by its id or external id; the newest of several jobs with the same external id.

        Raises:
            JobNotFound: there is none.
        """
        with self._transaction() as connection:
            return _job_record(self._job_row(connection, ref))

    @staticmethod
    def _job_row(connection: Connection, ref: str) -> Row:
        query = """
            SELECT * FROM jobs WHERE job_id = :ref OR external_id = :ref
            ORDER BY job_id != :ref, submitted_at DESC LIMIT 1
        """
        row: Row | None = connection.execute(query, {"ref": ref}).fetchone()
        if row is None:
            raise JobNotFound(f"There is no job {ref!r}.", hint="See `domyn-swarm job list`.")
        return row

    def jobs(self, swarm: str | None = None, *, newest: int | None = None) -> list[JobRecord]:
        """All jobs, or those of one swarm, oldest first; with `newest` only that many newest."""
        query = """
            SELECT * FROM (
                SELECT * FROM jobs WHERE :swarm IS NULL OR swarm = :swarm
                ORDER BY submitted_at DESC, job_id DESC LIMIT :most
            ) ORDER BY submitted_at, job_id
        """
        values = {"swarm": swarm, "most": -1 if newest is None else newest}
        with self._transaction() as connection:
            return [_job_record(row) for row in connection.execute(query, values)]

    def count_jobs(self, swarm: str | None = None) -> int:
        """The number of jobs, or of the jobs of one swarm."""
        query = "SELECT count(*) FROM jobs WHERE :swarm IS NULL OR swarm = :swarm"
        with self._transaction() as connection:
            return int(connection.execute(query, {"swarm": swarm}).fetchone()[0])

    def jobs_of_none(self, before: datetime) -> list[JobRecord]:
        """Jobs without a swarm that were submitted before a moment, oldest first."""
        query = """
            SELECT * FROM jobs WHERE swarm IS NULL AND submitted_at < ?
            ORDER BY submitted_at, job_id
        """
        with self._transaction() as connection:
            return [_job_record(row) for row in connection.execute(query, (_text(before),))]

    def delete_ended_job(self, job_id: str) -> bool:
        """Delete a job that has ended. Returns False if it has not ended, or is already deleted."""
        with self._transaction(writes=True) as connection:
            row = connection.execute(
                "SELECT status FROM jobs WHERE job_id = ?", (job_id,)
            ).fetchone()
            if row is None or not JobStatus(row["status"]).final:
                return False
            connection.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
            return True


def _insert(connection: Connection, table: LiteralString, row: Mapping[str, Any]) -> None:
    names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({values})", row)  # noqa: S608 - columns


def _update(
    connection: Connection,
    table: LiteralString,
    key: tuple[LiteralString, str],
    changed: Mapping[str, Any],
) -> None:
    """Change the row where the column `key[0]` has the value `key[1]`."""
    column, value = key
    settings = ", ".join(f"{name} = ?" for name in changed)
    query = f"UPDATE {table} SET {settings} WHERE {column} = ?"  # noqa: S608 - columns of ours
    connection.execute(query, (*changed.values(), value))


def _add_parts(connection: Connection, tag: str, parts: Iterable[dict[str, Any]]) -> None:
    """Add each part once: the program that starts it and one that reconciles may both record it."""
    rows = connection.execute("SELECT part_json FROM handles WHERE tag = ?", (tag,))
    recorded = {row["part_json"] for row in rows}
    new = dict.fromkeys(map(json.dumps, parts))
    rows_to_add = [(tag, part) for part in new if part not in recorded]
    connection.executemany("INSERT INTO handles (tag, part_json) VALUES (?, ?)", rows_to_add)


def _swarm_row(connection: Connection, column: LiteralString, value: str) -> Row | None:
    query = f"SELECT * FROM swarms WHERE {column} = ?"  # noqa: S608 - a column of ours
    row: Row | None = connection.execute(query, (value,)).fetchone()
    return row


def _swarm_records(connection: Connection, where: LiteralString, *values: str) -> list[SwarmRecord]:
    """Swarms with their parts, oldest first. Two queries, however many swarms there are."""
    chosen = f"FROM swarms WHERE {where}"
    rows = connection.execute(f"SELECT * {chosen} ORDER BY created_at, name", values).fetchall()
    parts: dict[str, list[Any]] = {row["tag"]: [] for row in rows}
    handles = f"SELECT * FROM handles WHERE tag IN (SELECT tag {chosen}) ORDER BY number"  # noqa: S608 - as above
    for row in connection.execute(handles, values):
        parts[row["tag"]].append(json.loads(row["part_json"]))
    return [_swarm_record(row, parts[row["tag"]]) for row in rows]


def _swarm_record(row: Row, parts: list[Any]) -> SwarmRecord:
    fields = dict(row)
    location = _location(fields.pop("location_json"))
    return SwarmRecord.model_validate({**fields, "parts": parts, "location": location})


def _text(moment: datetime) -> str:
    """The moment in UTC, so that texts sort as moments do. A naive moment is local time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _location_json(location: Location | None) -> str | None:
    return None if location is None else location.model_dump_json()


def _location(text: str | None) -> Location | None:
    return None if text is None else Location.model_validate_json(text)


def _job_record(row: Row) -> JobRecord:
    fields = dict(row)
    handle_json = fields.pop("handle_json")
    handle = None if handle_json is None else JobHandle.model_validate_json(handle_json)
    location = _location(fields.pop("location_json"))
    return JobRecord.model_validate({**fields, "handle": handle, "location": location})


def open_database(path: Path) -> None:
    """Create the database at `path`, or upgrade it to the newest revision.

    Raises:
        StateError: the file is not a database, is from a newer version, or cannot be written.
    """
    create_private(path)
    with transaction(path) as connection:
        revision = revision_of(connection)
    revision = revision or create_tables(path)
    if revision != NEWEST_REVISION:  # loading Alembic takes a third of a second
        from domyn_swarm.state.revisions import upgrade

        upgrade(path)
