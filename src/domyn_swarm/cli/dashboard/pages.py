"""From snapshots to what a page of the dashboard shows: the words of `top`, cell by cell. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from urllib.parse import quote

from domyn_swarm.cli.top import rows
from domyn_swarm.model import FailureGroup, Record
from domyn_swarm.swarm.snapshot import JobList, JobSnapshot, SwarmSnapshot

JOBS_SHOWN = 50  # the newest; `job list` has all
_JOB_COLUMNS = (*rows.JOB_COLUMNS, "id")
_FAILURE_COLUMNS = ("rows", "answers", "status", "example row", "example")
_NO_HISTORY = "How many replicas were ready over time is not known here."
_MESSAGE_CHARACTERS = 400


class Row(Record):
    """A line of a table; its first cell leads to `href`, a path of the dashboard."""

    cells: tuple[str, ...]
    href: str | None = None


class Table(Record):
    """A table; in the columns of these numbers stand figures, in the second one states."""

    title: str
    note: str = ""
    columns: tuple[str, ...]
    figures: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()


class Page(Record):
    """What the page's script shows; its own format, which may change with it."""

    schema_version: Literal[1] = 1
    title: str
    lines: tuple[str, ...] = ()
    links: tuple[Row, ...] = ()
    tables: tuple[Table, ...] = ()  # those before the plots, and the one after them
    charts: tuple[str, ...] = ()  # HTML, escaped


def overview(swarms: Sequence[SwarmSnapshot], jobs: JobList, now: datetime) -> Page:
    """All live swarms, and the newest jobs."""
    found = tuple(Row(cells=rows.swarm_row(one, now), href=swarm_path(one.name)) for one in swarms)
    note = "" if found else "No swarm is live. Bring one up: domyn-swarm up -c FILE"
    return Page(
        title="All swarms",
        tables=(
            Table(
                title="Swarms",
                note=note,
                columns=rows.SWARM_COLUMNS,
                figures=(2, 3, 4, 5),
                rows=found,
            ),
            _jobs(jobs.jobs, jobs.left_out),
        ),
    )


def swarm_page(swarm: SwarmSnapshot, charts: Sequence[str], now: datetime) -> Page:
    """One swarm, with its replicas and its newest jobs."""
    states = Counter(rows.replica_row(one)[1] for one in swarm.replicas)
    table = Table(
        title="Replicas",
        note=", ".join(f"{count} {state}" for state, count in states.most_common()),
        columns=rows.REPLICA_COLUMNS,
        figures=(2, 3, 4, 5, 6),
        rows=tuple(Row(cells=rows.replica_row(one)) for one in swarm.replicas),
    )
    newest = tuple(reversed(swarm.jobs))
    jobs = _jobs(newest[:JOBS_SHOWN], len(newest[JOBS_SHOWN:]))
    return Page(
        title=swarm.name,
        lines=(*rows.summary(swarm, now), *([] if charts else [_NO_HISTORY])),
        tables=(jobs, table),
        charts=tuple(charts),
    )


def job_page(
    job: JobSnapshot, groups: Sequence[FailureGroup], charts: Sequence[str], note: str
) -> Page:
    """One job: how far it is, how it went, what failed."""
    reports = [Row(cells=("The report of this job",), href=f"/reports/{_word(job.job_id)}")]
    swarm = [] if job.swarm is None else [Row(cells=(job.swarm,), href=swarm_path(job.swarm))]
    failures = Table(
        title="Failures",
        note=note or ("" if groups else "No row failed."),
        columns=_FAILURE_COLUMNS,
        figures=(0, 3),
        rows=tuple(Row(cells=_failure(group)) for group in groups),
    )
    return Page(
        title=job.external_id or job.name,
        lines=(
            *([job.message] if job.message else []),
            f"input {job.input}",
            f"output {job.output or '-'}",
            f"log {job.log_path}",
            *job.remarks,
        ),
        links=(*swarm, *reports) if job.output is not None else tuple(swarm),
        tables=(_jobs((job,), 0, "Progress"), failures),
        charts=tuple(charts),
    )


def _jobs(jobs: Sequence[JobSnapshot], left_out: int, title: str = "Jobs") -> Table:
    older = f"and {left_out} older ones: domyn-swarm job list" if left_out else ""
    return Table(
        title=title,
        note=older if jobs else "No job has been submitted.",
        columns=_JOB_COLUMNS,
        figures=(2, 3, 4, 5, 6),
        rows=tuple(
            Row(cells=(*rows.job_row(job), job.job_id), href=f"/jobs/{_word(job.job_id)}")
            for job in jobs
        ),
    )


def _failure(group: FailureGroup) -> tuple[str, ...]:
    return (
        rows.number(group.rows),
        f"{group.verdict.value}, kept" if group.kept else group.verdict.value,
        "-" if group.status is None else str(group.status),
        str(group.example_row) if group.example_row >= 0 else "-",
        " ".join(group.example_message.split())[:_MESSAGE_CHARACTERS],
    )


def swarm_path(name: str) -> str:
    """Where the page of a swarm is."""
    return f"/swarms/{_word(name)}"


def _word(name: str) -> str:
    return quote(name, safe="")
