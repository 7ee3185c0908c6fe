"""GPU time in numbers: the contents of `usage --json`, and how they are added up."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from domyn_swarm.backends.gpu_time import Span, Use, Watch
from domyn_swarm.backends.ledger import SwarmEntry
from domyn_swarm.model import Record
from domyn_swarm.swarm.snapshot import Usage, UseTime

_ORDER = {use: at for at, use in enumerate(Use)}


class ReplicaUsage(Usage):
    """One replica of a swarm, over all its allocations."""

    replica: int
    allocations: int


class SwarmUsage(Usage):
    """One swarm, over all its replicas; a later swarm of the same name is separate."""

    name: str
    tag: str
    backend: str
    model: str
    user: str
    gpus_per_replica: int
    live: bool
    began_at: datetime
    replicas: tuple[ReplicaUsage, ...] = ()


class JobUsage(Usage):
    """The replica time that a job used, and that waited for it."""

    job_id: str
    name: str
    swarm: str
    user: str


class UserUsage(Usage):
    """One user: the jobs' time is their owners', all other time the swarm's owner's."""

    user: str


class UsageReport(Record):
    """The requested usage, by swarm, job and user."""

    schema_version: Literal[1] = 1
    since: datetime | None  # null: from the beginning
    until: datetime
    total: Usage
    swarms: tuple[SwarmUsage, ...] = ()
    jobs: tuple[JobUsage, ...] = ()
    users: tuple[UserUsage, ...] = ()
    unread: tuple[str, ...] = ()  # swarms whose ledger cannot be read, and why


# -- energy -----------------------------------------------------------------------------------


class Used(NamedTuple):
    """Energy of a replica between two moments."""

    joules: float
    counted_s: float  # of that time, with readings at both ends


class Energy:
    """The energy of a replica from its watchdogs' readings, interpolated linearly between two of
    them.
    """

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._curves: list[tuple[list[float], list[float]]] = []
        for watch in watches:
            known = {one.joules_at: one.joules for one in watch.notes if one.joules is not None}
            if len(known) > 1:
                times = sorted(known)
                self._curves.append((times, [known[at] for at in times]))

    def used(self, begin: float, end: float) -> Used | None:
        """Energy between two moments; None: not measured."""
        found = Used(0.0, 0.0)
        for times, counted in self._curves:
            first, last = max(begin, times[0]), min(end, times[-1])
            if last > first:
                more = _at(times, counted, last) - _at(times, counted, first)
                found = Used(found.joules + more, found.counted_s + last - first)
        return found if found.counted_s else None


def _at(times: Sequence[float], counted: Sequence[float], moment: float) -> float:
    """The value at a moment, on the line through the two nearest readings."""
    at = min(max(1, bisect_right(times, moment)), len(times) - 1)
    share = (moment - times[at - 1]) / (times[at] - times[at - 1])
    return counted[at - 1] + (counted[at] - counted[at - 1]) * share


# -- adding up ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SwarmSpans:
    """The time of a swarm's replicas."""

    entry: SwarmEntry
    spans: Mapping[int, Sequence[Span]]  # of each replica, the time in the queue included
    used: Mapping[int, Sequence[Used | None]]  # energy of each replica
    allocations: Mapping[int, int]  # GPUs of each replica
    jobs: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name and user by id
    live: bool = False


class _Sum:
    """Adds up spans."""

    def __init__(self) -> None:
        self._times: dict[tuple[Use, str], list[float]] = {}
        self._joules: float | None = None
        self._counted_gpu_s = 0.0

    def add(self, one: Span, used: Used | None) -> None:
        times = self._times.setdefault((one.use, one.cause), [0.0, 0.0])
        times[0] += one.seconds
        times[1] += one.seconds * one.gpus
        if used is not None:
            self._joules = (self._joules or 0.0) + used.joules
            self._counted_gpu_s += used.counted_s * one.gpus

    def fields(self) -> dict[str, Any]:
        """The fields of a `Usage`."""
        ordered = sorted(self._times.items(), key=lambda item: (_ORDER[item[0][0]], item[0][1]))
        uses = tuple(
            UseTime(use=use, cause=cause, replica_s=round(spent, 3), gpu_s=round(gpu_s, 3))
            for (use, cause), (spent, gpu_s) in ordered
        )
        held = [times for (use, _), times in ordered if use is not Use.QUEUED]
        return {
            "uses": uses,
            "held_replica_s": round(math.fsum(times[0] for times in held), 3),
            "held_gpu_s": round(math.fsum(times[1] for times in held), 3),
            "energy_kwh": None if self._joules is None else round(self._joules / 3.6e6, 6),
            "energy_gpu_s": round(self._counted_gpu_s, 3),
        }


class UsageSums:
    """All sums of a report."""

    def __init__(self, since: datetime | None) -> None:
        """Of time after `since`; None: of all."""
        self._from = since
        self._since = -math.inf if since is None else since.timestamp()
        self._total = _Sum()
        self._swarms: list[tuple[SwarmSpans, _Sum, dict[int, _Sum]]] = []
        self.jobs: dict[tuple[str, str], tuple[str, str, _Sum]] = {}
        self.users: dict[str, _Sum] = {}

    def add(self, swarm_spans: SwarmSpans, job: str | None, user: str | None) -> None:
        """Add what was spent on `job`, and belongs to `user`; None: any."""
        swarm, replicas = _Sum(), dict[int, _Sum]()
        for replica, spans in swarm_spans.spans.items():
            for one, used in zip(spans, swarm_spans.used[replica], strict=True):
                if one.end <= self._since or (job is not None and one.job != job):
                    continue
                name, owner = swarm_spans.jobs.get(
                    one.job or "", (one.job or "", swarm_spans.entry.user)
                )
                if user is not None and owner != user:
                    continue
                begin = max(one.begin, self._since)
                share = (one.end - begin) / one.seconds
                cut, energy = one._replace(begin=begin), used
                if used is not None:
                    energy = Used(used.joules * share, used.counted_s * share)
                into = [self._total, swarm, replicas.setdefault(replica, _Sum())]
                into.append(self.users.setdefault(owner, _Sum()))
                if one.job is not None:
                    key = (one.job, swarm_spans.entry.tag)
                    into.append(
                        self.jobs.setdefault(key, (name, swarm_spans.entry.name, _Sum()))[2]
                    )
                for each in into:
                    each.add(cut, energy)
        if replicas or (job is None and user is None and swarm_spans.live):
            self._swarms.append((swarm_spans, swarm, replicas))

    def report(self, now: datetime, unread: Sequence[str], *, only: bool) -> UsageReport:
        """The report. `only`: restricted to a job or a user, so a swarm's own numbers are
        incomplete and its allocations are not counted.
        """
        owners = {
            job: user
            for swarm_spans, *_ in self._swarms
            for job, (_, user) in swarm_spans.jobs.items()
        }
        return UsageReport(
            since=self._from,
            until=now,
            total=Usage(**self._total.fields()),
            swarms=tuple(_of_swarm(*one, only=only) for one in self._swarms),
            jobs=tuple(
                JobUsage(
                    job_id=job,
                    name=name,
                    swarm=swarm,
                    user=owners.get(job, ""),
                    **total.fields(),
                )
                for (job, _), (name, swarm, total) in self.jobs.items()
            ),
            users=tuple(UserUsage(user=user, **one.fields()) for user, one in self.users.items()),
            unread=tuple(unread),
        )


def _of_swarm(
    swarm_spans: SwarmSpans, total: _Sum, replicas: Mapping[int, _Sum], *, only: bool
) -> SwarmUsage:
    entry = swarm_spans.entry
    return SwarmUsage(
        name=entry.name,
        tag=entry.tag,
        backend=entry.backend,
        model=entry.model,
        user=entry.user,
        gpus_per_replica=entry.gpus_per_replica,
        live=swarm_spans.live,
        began_at=entry.created_at.astimezone(UTC),
        replicas=tuple(
            ReplicaUsage(
                replica=replica,
                allocations=0 if only else swarm_spans.allocations.get(replica, 0),
                **one.fields(),
            )
            for replica, one in sorted(replicas.items())
        ),
        **total.fields(),
    )
