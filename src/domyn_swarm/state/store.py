"""`SwarmStore`: the only reader and writer of the state database.

Every method is one transaction. Nodes never open this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, or_, select
from sqlalchemy.orm import Session

from domyn_swarm.errors import JobNotFound, StateError, SwarmExists, SwarmNotFound
from domyn_swarm.model import (
    JOB_TRANSITIONS,
    SWARM_TRANSITIONS,
    JobHandle,
    JobStatus,
    SwarmPhase,
    check_transition,
    utc_now,
)
from domyn_swarm.paths import database_path
from domyn_swarm.state.database import open_database, translated
from domyn_swarm.state.records import JobRecord, SwarmRecord
from domyn_swarm.state.tables import HandleRow, JobRow, SwarmRow


class SwarmStore:
    """Swarms, what they run, and jobs."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path

    @classmethod
    def open(cls, path: Path | None = None) -> SwarmStore:
        """The database at `path` (default: `$DOMYN_SWARM_HOME/swarm.db`), created if need be.

        Raises:
            StateError: it cannot be used.
        """
        chosen = database_path() if path is None else path
        return cls(open_database(chosen), chosen)

    @contextmanager
    def _session(self, *, writes: bool = False) -> Iterator[Session]:
        with translated(self._path):
            engine = self._engine.execution_options(writes=writes)
            with Session(engine) as session, session.begin():
                yield session

    # -- swarms --------------------------------------------------------------------------------

    def create_swarm(self, record: SwarmRecord) -> None:
        """Record a new swarm; a stopped one of the same name gives way.

        Raises:
            SwarmExists: a live swarm has the name.
        """
        with self._session(writes=True) as session:
            old = session.scalars(select(SwarmRow).where(SwarmRow.name == record.name)).first()
            if old is not None and SwarmPhase(old.phase).live:
                raise SwarmExists(
                    f"A swarm named {record.name!r} is {old.phase}.",
                    hint=f"Stop it with `domyn-swarm down {record.name}`, or choose another name.",
                )
            if old is not None:
                session.execute(delete(SwarmRow).where(SwarmRow.tag == old.tag))
            fields = record.model_dump(exclude={"parts", "created_at", "updated_at", "phase"})
            session.add(
                SwarmRow(
                    **fields,
                    phase=record.phase.value,
                    created_at=_text(record.created_at),
                    updated_at=_text(record.updated_at),
                )
            )
            session.flush()
            session.add_all(
                HandleRow(tag=record.tag, part_json=json.dumps(part)) for part in record.parts
            )

    def attach_part(self, tag: str, part: dict[str, Any]) -> None:
        """Add one thing that the platform runs for the swarm.

        Raises:
            StateError: there is no swarm with this tag.
        """
        with self._session(writes=True) as session:
            row = self._by_tag(session, tag)
            row.updated_at = _text(utc_now())
            session.add(HandleRow(tag=tag, part_json=json.dumps(part)))

    def set_plan(self, tag: str, plan_json: str) -> None:
        """Record another plan of a live swarm.

        Raises:
            StateError: there is no swarm with this tag.
        """
        with self._session(writes=True) as session:
            row = self._by_tag(session, tag)
            row.plan_json = plan_json
            row.updated_at = _text(utc_now())

    def set_phase(self, tag: str, phase: SwarmPhase, detail: str = "") -> None:
        """Move a swarm to another phase; a detail, where given, replaces the last one.

        Raises:
            StateError: the transition is not legal, or there is no such swarm.
        """
        with self._session(writes=True) as session:
            row = self._by_tag(session, tag)
            current = SwarmPhase(row.phase)
            check_transition(f"The swarm {row.name!r}", current, phase, SWARM_TRANSITIONS)
            row.phase = phase.value
            row.detail = detail or row.detail
            row.updated_at = _text(utc_now())

    def set_stopped(self, tag: str, detail: str = "") -> None:
        """Record that nothing of the swarm runs any more, whatever its phase was. Idempotent, so
        that several programs may find out at once; a swarm that was replaced is no matter.
        """
        with self._session(writes=True) as session:
            row = session.get(SwarmRow, tag)
            if row is None or not SwarmPhase(row.phase).live:
                return
            row.phase = SwarmPhase.STOPPED.value
            row.detail = detail or row.detail
            row.updated_at = _text(utc_now())

    @staticmethod
    def _by_tag(session: Session, tag: str) -> SwarmRow:
        row = session.get(SwarmRow, tag)
        if row is None:
            raise StateError(
                f"No swarm carries the tag {tag!r}.", hint="It was replaced by a newer one."
            )
        return row

    def swarm(self, name: str) -> SwarmRecord:
        """The swarm of that name, live or stopped.

        Raises:
            SwarmNotFound: there is none; close names are suggested.
        """
        with self._session() as session:
            row = session.scalars(select(SwarmRow).where(SwarmRow.name == name)).first()
            if row is None:
                raise SwarmNotFound(name, session.scalars(select(SwarmRow.name)).all())
            return self._swarm_record(session, row)

    def swarms(self, *, include_stopped: bool = False) -> list[SwarmRecord]:
        """All swarms, the oldest first."""
        query = select(SwarmRow).order_by(SwarmRow.created_at, SwarmRow.name)
        if not include_stopped:
            query = query.where(SwarmRow.phase != SwarmPhase.STOPPED.value)
        with self._session() as session:
            return [self._swarm_record(session, row) for row in session.scalars(query).all()]

    @staticmethod
    def _swarm_record(session: Session, row: SwarmRow) -> SwarmRecord:
        query = select(HandleRow).where(HandleRow.tag == row.tag).order_by(HandleRow.number)
        return SwarmRecord(
            name=row.name,
            tag=row.tag,
            backend=row.backend,
            phase=SwarmPhase(row.phase),
            detail=row.detail,
            swarm_dir=row.swarm_dir,
            plan_json=row.plan_json,
            parts=tuple(json.loads(one.part_json) for one in session.scalars(query).all()),
            created_at=datetime.fromisoformat(row.created_at),
            updated_at=datetime.fromisoformat(row.updated_at),
        )

    # -- jobs ------------------------------------------------------------------------------------

    def create_job(self, record: JobRecord) -> None:
        """Record a new job."""
        with self._session(writes=True) as session:
            fields = record.model_dump(exclude={"handle", "submitted_at", "ended_at", "status"})
            session.add(
                JobRow(
                    **fields,
                    status=record.status.value,
                    handle_json=record.handle.model_dump_json() if record.handle else None,
                    submitted_at=_text(record.submitted_at),
                    ended_at=_text(record.ended_at) if record.ended_at else None,
                )
            )

    def set_job_handle(self, job_id: str, handle: JobHandle) -> None:
        """Keep how the platform knows the job.

        Raises:
            JobNotFound: there is no such job.
        """
        with self._session(writes=True) as session:
            self._job_row(session, job_id).handle_json = handle.model_dump_json()

    def set_job_status(
        self,
        job_id: str,
        status: JobStatus,
        *,
        exit_code: int | None = None,
        ended_at: datetime | None = None,
    ) -> None:
        """Move a job to another status. A job that has ended keeps how it ended.

        Raises:
            JobNotFound: there is no such job.
            StateError: the transition is not legal.
        """
        with self._session(writes=True) as session:
            row = self._job_row(session, job_id)
            current = JobStatus(row.status)
            if current.final and status is current:
                return
            check_transition(f"The job {job_id}", current, status, JOB_TRANSITIONS)
            row.status = status.value
            row.exit_code = exit_code
            if status.final:
                row.ended_at = _text(ended_at or utc_now())

    def job(self, ref: str) -> JobRecord:
        """A job by its id or external id; of several with one external id the newest.

        Raises:
            JobNotFound: there is none.
        """
        with self._session() as session:
            return _job_record(self._job_row(session, ref))

    @staticmethod
    def _job_row(session: Session, ref: str) -> JobRow:
        query = (
            select(JobRow)
            .where(or_(JobRow.job_id == ref, JobRow.external_id == ref))
            .order_by(JobRow.job_id != ref, JobRow.submitted_at.desc())
        )
        row = session.scalars(query).first()
        if row is None:
            raise JobNotFound(f"There is no job {ref!r}.", hint="See `domyn-swarm job list`.")
        return row

    def jobs(self, swarm: str | None = None) -> list[JobRecord]:
        """All jobs, or those of one swarm, the oldest first."""
        query = select(JobRow).order_by(JobRow.submitted_at, JobRow.job_id)
        if swarm is not None:
            query = query.where(JobRow.swarm == swarm)
        with self._session() as session:
            return [_job_record(row) for row in session.scalars(query).all()]


def _text(moment: datetime) -> str:
    """The moment in UTC, so that texts sort as moments do; a naive one is local time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _job_record(row: JobRow) -> JobRecord:
    handle = None if row.handle_json is None else JobHandle.model_validate_json(row.handle_json)
    return JobRecord(
        job_id=row.job_id,
        external_id=row.external_id,
        name=row.name,
        swarm=row.swarm,
        platform=row.platform,
        status=JobStatus(row.status),
        job_dir=row.job_dir,
        input=row.input,
        output=row.output,
        handle=handle,
        submitted_at=datetime.fromisoformat(row.submitted_at),
        ended_at=None if row.ended_at is None else datetime.fromisoformat(row.ended_at),
        exit_code=row.exit_code,
    )
