"""What a shell is offered for names and ids at a TAB, each with what it is; nothing is created."""

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
        (one.name, one.phase.value) for one in store.swarms() if one.name.startswith(incomplete)
    ]


def jobs(incomplete: str) -> Candidates:
    """Whatever names a job: its id or the id that its user gave it, the newest first."""
    return _ids(incomplete, own=True, external=True)


def external_ids(incomplete: str) -> Candidates:
    """The ids that users gave their jobs, the newest first."""
    return _ids(incomplete, external=True)


def verdicts(incomplete: str) -> Candidates:
    """What rows can be asked again for; behind a comma one more."""
    from domyn_swarm.model import ReplyVerdict

    before, comma, word = incomplete.rpartition(",")
    names = [one.value for one in ReplyVerdict if one is not ReplyVerdict.COMPLETE]
    taken = before.split(",")
    return [
        (before + comma + name, f"rows whose answer is {name}")
        for name in names
        if name.startswith(word) and name not in taken
    ]


def jobs_of_swarm(context: typer.Context, incomplete: str) -> Candidates:
    """Ids of the jobs of the swarm that the command is about, the newest first."""
    # An option without its value ends the reading of the line: the name is still unread then.
    name = context.params.get("name") or next(iter(context.args), None)
    return _ids(incomplete, own=True, swarm=name)


def _ids(
    incomplete: str, *, own: bool = False, external: bool = False, swarm: str | None = None
) -> Candidates:
    store = _store()
    if store is None:
        return []
    found: dict[str, str] = {}  # of jobs with one external id the newest counts
    for job in reversed(store.jobs(swarm)):
        for one in _names(job, own=own, external=external):
            if one.startswith(incomplete):
                found.setdefault(one, f"{job.name}, {job.status.value}")
    return list(found.items())


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
