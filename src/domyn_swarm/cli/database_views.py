"""What the commands about the state database print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domyn_swarm.cli.options import Format
from domyn_swarm.cli.rendering import Column, moment, print_pairs, print_record, print_table

if TYPE_CHECKING:
    from domyn_swarm.services.database import DatabaseRevision
    from domyn_swarm.swarm.pruning import PruneReport


def show_revision(found: DatabaseRevision, output: Format) -> None:
    """Of which revision the database was, and is."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    print_pairs(
        [("database", found.path), ("was", found.before or "none"), ("revision", found.now)]
    )


def show_prune(report: PruneReport, output: Format) -> None:
    """What is forgotten, or would be, and what stays."""
    if output is not Format.TABLE:
        print_record(report, output)
        return
    going = "removed" if report.removed else "would be removed"
    rows = [
        (
            swarm.name,
            going,
            f"stopped {moment(swarm.stopped_at)}, {len(swarm.jobs)} ended jobs, {swarm.swarm_dir}",
        )
        for swarm in report.swarms
    ]
    kept = [(one.name, "kept", one.why) for one in report.kept]
    if rows or kept:
        print_table((Column("swarm", whole=True), "", "what"), [*rows, *kept])
    jobs = [
        (job.job_id, going, f"{job.name}, ended {moment(job.ended_at)}, {job.job_dir}")
        for job in report.jobs
    ]
    kept_jobs = [(one.job_id, "kept", one.why) for one in report.kept_jobs]
    if jobs or kept_jobs:
        columns = (Column("job without a swarm", whole=True), "", "what")
        print_table(columns, [*jobs, *kept_jobs])
