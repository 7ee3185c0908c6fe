"""`SwarmStore`: the only reader and writer of the state database.

Every method is one transaction. Nodes never open this file.
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
from domyn_swarm.state.database import open_database, transaction
from domyn_swarm.state.records import JobRecord, SwarmRecord


class SwarmStore:
    """Swarms, what they run, and jobs."""

    def __init__(self, path: Path) -> None:
        """`path`: of an up-to-date database."""
        self._path = path

    @classmethod
    def open(cls, path: Path | None = None) -> SwarmStore:
        """The database at `path` (default: `$DOMYN_SWARM_HOME/swarm.db`), created if need be.

        Raises:
            StateError: it cannot be used.
        """
        chosen = database_path() if path is None else path
        open_database(chosen)
        return cls(chosen)

    def _transaction(self, *, writes: bool = False) -> AbstractContextManager[Connection]:
        return transaction(self._path, writes=writes)

    # -- swarms --------------------------------------------------------------------------------

    def create_swarm(self, record: SwarmRecord) -> None:
        """Record a new swarm; a stopped one of the same name gives way.

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
        """Add things that the platform runs for the swarm: all of them, or none.

        Raises:
            SwarmReplaced: there is no swarm with this tag.
        """
        with self._transaction(writes=True) as connection:
            self._change(connection, tag)
            _add_parts(connection, tag, parts)

    def set_plan(self, tag: str, plan_json: str) -> None:
        """Record another plan of a live swarm.

        Raises:
            SwarmReplaced: there is no swarm with this tag.
        """
        with self._transaction(writes=True) as connection:
            self._change(connection, tag, plan_json=plan_json)

    def set_phase(self, tag: str, phase: SwarmPhase, detail: str = "") -> bool:
        """Move a swarm to another phase; a detail, where given, replaces the last one.

        Whether it is in that phase now: not where another program has moved it on to one from which
        none leads there, or where a newer swarm has its place. No error of whoever comes second.
        """
        with self._transaction(writes=True) as connection:
            row = _swarm_row(connection, "tag", tag)
            if row is None or not may_become(SwarmPhase(row["phase"]), phase, SWARM_TRANSITIONS):
                return False
            self._change(connection, tag, phase=phase.value, detail=detail or row["detail"])
            return True

    def set_stopped(self, tag: str, detail: str = "") -> None:
        """Record that nothing of the swarm runs any more, whatever its phase was. Idempotent, so
        that several programs may find out at once; a swarm that was replaced is no matter.
        """
        with self._transaction(writes=True) as connection:
            row = _swarm_row(connection, "tag", tag)
            if row is None or not SwarmPhase(row["phase"]).live:
                return
            stopped = SwarmPhase.STOPPED.value
            self._change(connection, tag, phase=stopped, detail=detail or row["detail"])

    def forget_location(self, tag: str) -> None:
        """Record no longer where a swarm runs: nobody can be asked there.

        Raises:
            StateError: there is no swarm with this tag.
        """
        with self._transaction(writes=True) as connection:
            self._change(connection, tag, location_json=None)

    def delete_stopped(self, tag: str) -> bool:
        """Forget a swarm that is stopped, and the jobs of its name; False: it is not stopped any
        more, or a newer one of its name has taken its place.
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
        """Change a swarm's row; return it as it was."""
        row = _swarm_row(connection, "tag", tag)
        if row is None:
            raise SwarmReplaced(
                f"No swarm carries the tag {tag!r}.", hint="It was replaced by a newer one."
            )
        changed = {**values, "updated_at": _text(utc_now())}
        _update(connection, "swarms", ("tag", tag), changed)
        return row

    def swarm(self, name: str) -> SwarmRecord:
        """The swarm of that name, live or stopped.

        Raises:
            SwarmNotFound: there is none; close names are suggested.
        """
        with self._transaction() as connection:
            found = _swarm_records(connection, "name = ?", name)
            if not found:
                names = connection.execute("SELECT name FROM swarms").fetchall()
                raise SwarmNotFound(name, [row["name"] for row in names])
            return found[0]

    def swarms(self, *, include_stopped: bool = False) -> list[SwarmRecord]:
        """All swarms, the oldest first."""
        with self._transaction() as connection:
            if include_stopped:
                return _swarm_records(connection, "TRUE")
            return _swarm_records(connection, "phase != ?", SwarmPhase.STOPPED.value)

    # -- jobs ------------------------------------------------------------------------------------

    def create_job(
        self, record: JobRecord, check: Callable[[Iterable[JobRecord]], None] | None = None
    ) -> None:
        """Record a new job. `check` is given those that have not ended, in the same transaction;
        what it raises keeps the new one out.
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
        """Keep how the platform knows the job.

        Raises:
            JobNotFound: there is no such job.
        """
        with self._transaction(writes=True) as connection:
            found = self._job_row(connection, job_id)["job_id"]
            changed = {"handle_json": handle.model_dump_json()}
            _update(connection, "jobs", ("job_id", found), changed)

    def set_job_status(
        self,
        job_id: str,
        status: JobStatus,
        *,
        exit_code: int | None = None,
        ended_at: datetime | None = None,
    ) -> None:
        """Move a job to another status, where that is legal. A job that has ended keeps how it
        ended, whatever a later reader concludes: of two that judge differently the first counts.

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
        """A job by its id or external id; of several with one external id the newest.

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
        """All jobs, or those of one swarm, the oldest first; of them the newest so many."""
        query = """
            SELECT * FROM (
                SELECT * FROM jobs WHERE :swarm IS NULL OR swarm = :swarm
                ORDER BY submitted_at DESC, job_id DESC LIMIT :most
            ) ORDER BY submitted_at, job_id
        """
        asked = {"swarm": swarm, "most": -1 if newest is None else newest}
        with self._transaction() as connection:
            return [_job_record(row) for row in connection.execute(query, asked)]

    def count_jobs(self, swarm: str | None = None) -> int:
        """How many jobs there are, or those of one swarm."""
        query = "SELECT count(*) FROM jobs WHERE :swarm IS NULL OR swarm = :swarm"
        with self._transaction() as connection:
            return int(connection.execute(query, {"swarm": swarm}).fetchone()[0])

    def jobs_of_none(self, before: datetime) -> list[JobRecord]:
        """Jobs without a swarm that were submitted before a moment, the oldest first."""
        query = """
            SELECT * FROM jobs WHERE swarm IS NULL AND submitted_at < ?
            ORDER BY submitted_at, job_id
        """
        with self._transaction() as connection:
            return [_job_record(row) for row in connection.execute(query, (_text(before),))]

    def delete_ended_job(self, job_id: str) -> bool:
        """Forget a job that has ended; False: it has not, or is forgotten already."""
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
    """Change the row whose column has that value."""
    column, value = key
    settings = ", ".join(f"{name} = ?" for name in changed)
    query = f"UPDATE {table} SET {settings} WHERE {column} = ?"  # noqa: S608 - columns of ours
    connection.execute(query, (*changed.values(), value))


def _add_parts(connection: Connection, tag: str, parts: Iterable[dict[str, Any]]) -> None:
    """Each once: whoever starts a part and whoever finds it may record it at the same time."""
    known = connection.execute("SELECT part_json FROM handles WHERE tag = ?", (tag,))
    seen = {row["part_json"] for row in known}
    new = dict.fromkeys(map(json.dumps, parts))
    rows = [(tag, part) for part in new if part not in seen]
    connection.executemany("INSERT INTO handles (tag, part_json) VALUES (?, ?)", rows)


def _swarm_row(connection: Connection, column: LiteralString, value: str) -> Row | None:
    query = f"SELECT * FROM swarms WHERE {column} = ?"  # noqa: S608 - a column of ours
    row: Row | None = connection.execute(query, (value,)).fetchone()
    return row


def _swarm_records(connection: Connection, where: LiteralString, *values: str) -> list[SwarmRecord]:
    """Swarms, the oldest first, with their parts: two questions, however many there are."""
    chosen = f"FROM swarms WHERE {where}"
    rows = connection.execute(f"SELECT * {chosen} ORDER BY created_at, name", values).fetchall()
    parts: dict[str, list[Any]] = {row["tag"]: [] for row in rows}
    handles = f"SELECT * FROM handles WHERE tag IN (SELECT tag {chosen}) ORDER BY number"  # noqa: S608 - as above
    for one in connection.execute(handles, values):
        parts[one["tag"]].append(json.loads(one["part_json"]))
    return [_swarm_record(row, parts[row["tag"]]) for row in rows]


def _swarm_record(row: Row, parts: list[Any]) -> SwarmRecord:
    fields = dict(row)
    location = _location(fields.pop("location_json"))
    return SwarmRecord.model_validate({**fields, "parts": parts, "location": location})


def _text(moment: datetime) -> str:
    """The moment in UTC, so that texts sort as moments do; a naive one is local time."""
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
