"""What the live view shows, from the services or a recording of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol

from domyn_swarm.errors import quantity
from domyn_swarm.model import FailureGroup, ReplyVerdict, clock_time
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.logs import swarm_logs
from domyn_swarm.services.requests import LogRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.swarm.snapshot import JobSnapshot, ReplicaSnapshot, SwarmSnapshot

_LOG_LINES = 500


class Source(Protocol):
    """One swarm, as the view needs it. Methods block; the view calls them on threads."""

    def look(self) -> SwarmSnapshot:
        """The swarm as it is now.

        Raises:
            SwarmError: it cannot be looked at.
        """

    def failures(self, job_id: str) -> tuple[FailureGroup, ...]:
        """A job's failed rows by signature, the commonest first.

        Raises:
            SwarmError: its files cannot be read.
        """

    def log(self, replica: int | None) -> list[str]:
        """The last lines of a replica's log, or of the endpoint's.

        Raises:
            SwarmError: there is none.
        """

    def scale(self, replicas: int) -> None:
        """Have it run so many replicas.

        Raises:
            SwarmError: it cannot.
        """

    def cancel(self, job_id: str) -> None:
        """Stop one job.

        Raises:
            SwarmError: it still runs.
        """


class Services:
    """The swarm of that name, through the services."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._swarms = SwarmService()
        self._jobs = JobService()

    def look(self) -> SwarmSnapshot:
        """See `Source`."""
        return self._swarms.status(self._name)

    def failures(self, job_id: str) -> tuple[FailureGroup, ...]:
        """See `Source`."""
        return self._jobs.failures(job_id).groups

    def log(self, replica: int | None) -> list[str]:
        """See `Source`."""
        request = LogRequest(
            name=self._name,
            source="endpoint" if replica is None else "replica",
            replica=replica,
            last_lines=_LOG_LINES,
        )
        return list(swarm_logs(request))

    def scale(self, replicas: int) -> None:
        """See `Source`."""
        self._swarms.scale(self._name, replicas)

    def cancel(self, job_id: str) -> None:
        """See `Source`."""
        self._jobs.cancel(job_id)


REPLICA_COLUMNS = ("replica", "state", "run", "wait", "tok/s", "KV", "restarts", "node, cause")
SWARM_COLUMNS = ("swarm", "state", "replicas", "run", "wait", "tok/s", "model", "on", "cause, end")
JOB_COLUMNS = ("job", "status", "rows", "failed", "rows/s", "left", "tokens", "answers")
_NONE = "-"
_MESSAGE_CHARACTERS = 200


def summary(swarm: SwarmSnapshot, now: datetime) -> list[str]:
    """The lines above the tables: what serves, where, how busy."""
    serving = [one for one in swarm.replicas if one.serving]
    running, waiting, tokens_per_s = _busy(serving)
    busy = [
        f"{swarm.replicas_ready} of {quantity(swarm.replicas_wanted, 'replica')} ready",
        f"{running} running",
        f"{waiting} waiting",
        f"{tokens_per_s} tokens/s",
    ]
    if (age_s := max((one.old_figures_s or 0.0 for one in serving), default=0.0)) > 0:
        busy.append(f"as of up to {age_s:.0f} s ago")
    if swarm.expires_at is not None:
        busy.append(f"ends in {clock_time((swarm.expires_at - now).total_seconds())}")
    phase = _phase(swarm)
    lines = [
        f"{phase}  {swarm.endpoint or 'no endpoint'}",
        f"{swarm.model} ({swarm.engine} on {swarm.backend}{_where(swarm, now)})",
        ", ".join(busy),
    ]
    return [*lines, swarm.detail] if swarm.detail and phase != "ready" else lines


def swarm_row(swarm: SwarmSnapshot, now: datetime) -> tuple[str, ...]:
    """A line of the table of swarms, by `SWARM_COLUMNS`."""
    phase = _phase(swarm)
    ends_s = None if swarm.expires_at is None else (swarm.expires_at - now).total_seconds()
    rest = [
        *([swarm.detail] if swarm.detail and phase != "ready" else []),
        *([] if ends_s is None else [f"ends in {clock_time(ends_s)}"]),
    ]
    return (
        swarm.name,
        phase,
        f"{swarm.replicas_ready}/{swarm.replicas_wanted}",
        *_busy([one for one in swarm.replicas if one.serving]),
        swarm.model,
        swarm.backend + _where(swarm, now),
        ", ".join(rest),
    )


def _phase(swarm: SwarmSnapshot) -> str:
    """What was seen just now, where something was; else what the record says."""
    unseen = swarm.observed in ("unknown", "not_probed", "elsewhere")
    return swarm.phase.value if unseen else swarm.observed


def _busy(serving: Sequence[ReplicaSnapshot]) -> tuple[str, str, str]:
    """Requests that run and that wait, and tokens per second, of all replicas that serve."""
    return (
        number(total(one.requests_running for one in serving)),
        number(total(one.requests_waiting for one in serving)),
        number(total(one.tokens_per_s for one in serving)),
    )


def _where(swarm: SwarmSnapshot, now: datetime) -> str:
    where = swarm.whereabouts
    if where is None or not where.elsewhere:
        return ""
    known = "" if where.known_at is None else clock_time((now - where.known_at).total_seconds())
    return f", {where.kind} {where.name}: not asked from here, known {known} ago"


def replica_row(one: ReplicaSnapshot) -> tuple[str, ...]:
    """A line of the table of replicas, by `REPLICA_COLUMNS`."""
    return (
        str(one.index),
        f"{one.state.value} (stale)" if one.stale else one.state.value,
        number(one.requests_running) + _age(one),
        number(one.requests_waiting),
        number(one.tokens_per_s),
        _NONE if one.kv_cache_usage is None else f"{one.kv_cache_usage:.0%}",
        str(one.restarts),
        one.reason or one.node or "",
    )


def _age(one: ReplicaSnapshot) -> str:
    """What follows the first of an engine's figures where they are not live."""
    known = one.old_figures_s is not None and one.requests_running is not None
    return f" ({one.old_figures_s:.0f} s ago)" if known else ""


def job_row(job: JobSnapshot) -> tuple[str, ...]:
    """A line of the table of jobs, by `JOB_COLUMNS`."""
    total_rows = "?" if job.rows_total is None else str(job.rows_total)
    return (
        job.external_id or job.name,
        f"{job.status.value}{_elsewhere(job)}{_silence(job)}",
        f"{job.rows_done}/{total_rows}",
        str(job.rows_failed),
        _NONE if job.rows_per_s is None or job.status.final else f"{job.rows_per_s:.1f}",
        _NONE if job.time_left is None else str(job.time_left),
        number(job.prompt_tokens + job.completion_tokens),
        _incomplete(job),
    )


def _silence(job: JobSnapshot) -> str:
    """How old a job's figures are, where they are not live."""
    return "" if job.old_figures_s is None else f" ({clock_time(job.old_figures_s)} ago)"


def _incomplete(job: JobSnapshot) -> str:
    """Answers that are not complete, in few words; those that failed otherwise have a column."""
    left_out = (ReplyVerdict.COMPLETE, ReplyVerdict.ERROR)
    found = {name: rows for name, rows in job.verdicts.items() if rows and name not in left_out}
    return ", ".join(f"{number(found[name])} {name.value}" for name in sorted(found)) or _NONE


def _elsewhere(job: JobSnapshot) -> str:
    where = job.whereabouts
    return f" on {where.name}" if where is not None and where.elsewhere else ""


def failure_lines(job: JobSnapshot, groups: Sequence[FailureGroup], most: int = 4) -> list[str]:
    """What stands under the tables about the chosen job."""
    lines = [f"{job.job_id}: {job.message}"] if job.message else []
    for group in groups[:most]:
        status = "" if group.status is None else f"{group.status} "
        said = " ".join(group.example_message.split())[:_MESSAGE_CHARACTERS]
        lines.append(f"{group.rows} x {status}{said} (row {group.example_row})")
    if len(groups) > most:
        rest = sum(group.rows for group in groups[most:])
        lines.append(f"{rest} more of {quantity(len(groups) - most, 'other kind')}")
    return lines or [f"{job.job_id}: no failed rows"]


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def number(value: float | None) -> str:
    """A count in few characters: 950, 12.3k, 4.5M."""
    if value is None:
        return _NONE
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.0f}"
