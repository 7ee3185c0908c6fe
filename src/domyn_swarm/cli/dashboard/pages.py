"""Converts snapshots to the dashboard's pages, with the cells of `top`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from urllib.parse import quote

from domyn_swarm.cli.top import cells
from domyn_swarm.model import FailureGroup, Record
from domyn_swarm.swarm.snapshot import JobList, JobSnapshot, SwarmSnapshot

JOBS_SHOWN = 50  # the newest; `job list` has all
_JOB_COLUMNS = (*cells.JOB_COLUMNS, "id")
_FAILURE_COLUMNS = ("rows", "answers", "status", "example row", "example")
_NO_HISTORY = "The history of the replicas is not available here."
_MESSAGE_CHARACTERS = 400


class Row(Record):
    """A row of a table. Its first cell links to `href`, a path of the dashboard."""

    cells: tuple[str, ...]
    href: str | None = None


class Table(Record):
    """A table. `figures` are the indices of numeric columns; the second column has states."""

    title: str
    note: str = ""
    columns: tuple[str, ...]
    figures: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()


class Page(Record):
    """The data of a page's script. A private format, which may change with the script."""

    schema_version: Literal[1] = 1
    title: str
    lines: tuple[str, ...] = ()
    links: tuple[Row, ...] = ()
    tables: tuple[Table, ...] = ()  # the last one is shown after the plots
    charts: tuple[str, ...] = ()  # HTML, escaped


def overview(swarms: Sequence[SwarmSnapshot], jobs: JobList, now: datetime) -> Page:
    """All live swarms, and the newest jobs."""
    table = tuple(
        Row(cells=cells.swarm_row(swarm, now), href=swarm_path(swarm.name)) for swarm in swarms
    )
    note = "" if table else "No swarm is live. Start one with: domyn-swarm up -c FILE"
    return Page(
        title="All swarms",
        tables=(
            Table(
                title="Swarms",
                note=note,
                columns=cells.SWARM_COLUMNS,
                figures=(2, 3, 4, 5),
                rows=table,
            ),
            _jobs(jobs.jobs, jobs.left_out),
        ),
    )


def swarm_page(swarm: SwarmSnapshot, charts: Sequence[str], now: datetime) -> Page:
    """One swarm, with its replicas and its newest jobs."""
    states = Counter(cells.replica_row(replica)[1] for replica in swarm.replicas)
    table = Table(
        title="Replicas",
        note=", ".join(f"{count} {state}" for state, count in states.most_common()),
        columns=cells.REPLICA_COLUMNS,
        figures=(2, 3, 4, 5, 6),
        rows=tuple(Row(cells=cells.replica_row(replica)) for replica in swarm.replicas),
    )
    newest = tuple(reversed(swarm.jobs))
    jobs = _jobs(newest[:JOBS_SHOWN], len(newest[JOBS_SHOWN:]))
    return Page(
        title=swarm.name,
        lines=(*cells.summary(swarm, now), *([] if charts else [_NO_HISTORY])),
        tables=(jobs, table),
        charts=tuple(charts),
    )


def job_page(
    job: JobSnapshot, groups: Sequence[FailureGroup], charts: Sequence[str], note: str
) -> Page:
    """One job: its progress, its course over time, and its failures."""
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
            Row(cells=(*cells.job_row(job), job.job_id), href=f"/jobs/{_word(job.job_id)}")
            for job in jobs
        ),
    )


def _failure(group: FailureGroup) -> tuple[str, ...]:
    return (
        cells.number(group.rows),
        f"{group.verdict.value}, kept" if group.kept else group.verdict.value,
        "-" if group.status is None else str(group.status),
        str(group.example_row) if group.example_row >= 0 else "-",
        " ".join(group.example_message.split())[:_MESSAGE_CHARACTERS],
    )


def swarm_path(name: str) -> str:
    """The path of a swarm's page."""
    return f"/swarms/{_word(name)}"


def _word(name: str) -> str:
    return quote(name, safe="")
