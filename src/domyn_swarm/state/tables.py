"""The tables, as the newest migration leaves them."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, Integer, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NEWEST_REVISION = "0001"


class Base(DeclarativeBase):
    """All tables of the state database."""

    metadata = MetaData()


class SwarmRow(Base):
    """See `records.SwarmRecord`. Times are ISO 8601 in UTC."""

    __tablename__ = "swarms"

    tag: Mapped[str] = mapped_column(String, primary_key=True)
    name: Mapped[str] = mapped_column(String, unique=True)
    backend: Mapped[str] = mapped_column(String)
    phase: Mapped[str] = mapped_column(String)
    detail: Mapped[str] = mapped_column(Text)
    swarm_dir: Mapped[str] = mapped_column(Text)
    plan_json: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(String)
    updated_at: Mapped[str] = mapped_column(String)


class HandleRow(Base):
    """One thing that the platform runs for a swarm, in the order in which it was started."""

    __tablename__ = "handles"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    tag: Mapped[str] = mapped_column(ForeignKey("swarms.tag", ondelete="CASCADE"), index=True)
    part_json: Mapped[str] = mapped_column(Text)


class JobRow(Base):
    """See `records.JobRecord`."""

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_by_swarm", "swarm"), Index("jobs_by_external_id", "external_id"))

    job_id: Mapped[str] = mapped_column(String, primary_key=True)
    external_id: Mapped[str | None] = mapped_column(String)
    name: Mapped[str] = mapped_column(String)
    swarm: Mapped[str | None] = mapped_column(String)
    platform: Mapped[str] = mapped_column(String)
    status: Mapped[str] = mapped_column(String)
    job_dir: Mapped[str] = mapped_column(Text)
    input: Mapped[str] = mapped_column(Text)
    output: Mapped[str | None] = mapped_column(Text)
    handle_json: Mapped[str | None] = mapped_column(Text)
    submitted_at: Mapped[str] = mapped_column(String, index=True)
    ended_at: Mapped[str | None] = mapped_column(String)
    exit_code: Mapped[int | None] = mapped_column(Integer)
