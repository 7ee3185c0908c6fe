"""Completion candidates for names and ids, each with a description. Creates no database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from domyn_swarm.state import JobRecord, SwarmStore

Candidates = list[tuple[str, str]]


def swarms(incomplete: str) -> Candidates:
    """Names of live swarms."""
    store = _store()
    if store is None:
        return []
    return [
        (swarm.name, swarm.phase.value)
        for swarm in store.swarms()
        if swarm.name.startswith(incomplete)
    ]


def jobs(incomplete: str) -> Candidates:
    """Ids and external ids of jobs, newest first."""
    return _ids(incomplete, own=True, external=True)


def external_ids(incomplete: str) -> Candidates:
    """External ids of jobs, newest first."""
    return _ids(incomplete, external=True)


def verdicts(incomplete: str) -> Candidates:
    """Verdicts of rows that can be sent again; after a comma the ones not named yet."""
    from domyn_swarm.model import ReplyVerdict

    before, comma, word = incomplete.rpartition(",")
    names = [verdict.value for verdict in ReplyVerdict if verdict is not ReplyVerdict.COMPLETE]
    taken = before.split(",")
    return [
        (before + comma + name, f"rows whose answer is {name}")
        for name in names
        if name.startswith(word) and name not in taken
    ]


def jobs_of_swarm(context: typer.Context, incomplete: str) -> Candidates:
    """Ids of the jobs of the swarm in the command line, newest first."""
    # Typer stops parsing at an option without a value, so the name may still be unparsed.
    name = context.params.get("name") or next(iter(context.args), None)
    return _ids(incomplete, own=True, swarm=name)


def _ids(
    incomplete: str, *, own: bool = False, external: bool = False, swarm: str | None = None
) -> Candidates:
    store = _store()
    if store is None:
        return []
    matches: dict[str, str] = {}  # of jobs with the same external id the newest is described
    for job in reversed(store.jobs(swarm)):
        for name in _names(job, own=own, external=external):
            if name.startswith(incomplete):
                matches.setdefault(name, f"{job.name}, {job.status.value}")
    return list(matches.items())


def _names(job: JobRecord, *, own: bool, external: bool) -> Iterator[str]:
    if own:
        yield job.job_id
    if external and job.external_id is not None:
        yield job.external_id


def _store() -> SwarmStore | None:
    from domyn_swarm.paths import database_path

    if not database_path().exists():
        return None
    from domyn_swarm.state import SwarmStore

    return SwarmStore.open()
