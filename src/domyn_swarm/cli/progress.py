"""Progress on stderr: a bar or a spinner on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domyn_swarm.cli.console import say

if TYPE_CHECKING:
    from rich.console import Console

    from domyn_swarm.probing import Observation
    from domyn_swarm.swarm.snapshot import JobSnapshot

PhaseHook = Callable[["Observation"], None]
JobHook = Callable[["JobSnapshot"], None]


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def phases(name: str) -> Iterator[PhaseHook]:
    """Show what a swarm waits for; yields the hook that is told each change."""
    if not sys.stderr.isatty():
        yield lambda seen: say(f"{name}: {_words(seen)}")
        return
    with _stderr().status(f"{name}: starting") as spinner:
        yield lambda seen: spinner.update(f"{name}: {_words(seen)}")


def _words(seen: Observation) -> str:
    phase = seen.phase.name.lower()
    return f"{phase}: {seen.detail}" if seen.detail else phase


@contextmanager
def rows(*, bar: bool) -> Iterator[JobHook]:
    """Show a job's rows; yields the hook that is told how far it is.

    Without a bar, or without a terminal, only messages (a pause and its cause) are printed,
    each once.
    """
    if not (bar and sys.stderr.isatty()):
        yield _messages_only()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=_stderr(),
    ) as progress:
        task = progress.add_task("waiting", total=None, speed="")

        def update(job: JobSnapshot) -> None:
            progress.update(
                task,
                description=job.message or job.status.value,
                total=job.rows_total,
                completed=job.rows_done,
                speed=_speed(job),
            )

        yield update


def _messages_only() -> JobHook:
    last: str | None = None

    def update(job: JobSnapshot) -> None:
        nonlocal last
        if job.message and job.message != last and not job.status.final:  # else the end tells it
            say(f"{job.job_id}: {job.message}")
        last = job.message

    return update


def _speed(job: JobSnapshot) -> str:
    parts = [f"{job.rows_failed} failed"] if job.rows_failed else []
    if job.rows_per_s is not None:
        parts.append(f"{job.rows_per_s:.1f} rows/s")
    if job.time_left is not None:
        parts.append(f"{job.time_left} left")
    return ", ".join(parts)
