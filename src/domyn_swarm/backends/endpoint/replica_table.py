"""The state of each replica as the collector sees it. Pure: no clock, no file, no socket."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from domyn_swarm.model import FINAL_REPLICA_STATES, ReplicaReport, ReplicaState

_INCARNATIONS_KEPT = 16
_PORT_TAKEN = "its watchdog ended without a report, and replica {0} has its port"


class Verdict(StrEnum):
    """How the collector judged a report."""

    TAKEN = "taken"
    LATE = "late"  # a newer report of the same watchdog came first
    SUPERSEDED = "superseded"  # another watchdog has taken over this replica
    UNKNOWN = "unknown"  # the plan has no such replica


class ReplicaTable:
    """The last report of each replica. `now` is in seconds of the caller's monotonic clock."""

    def __init__(self, replicas: int, stale_after_s: float) -> None:
        self.wanted = frozenset(range(replicas))
        self._replicas = replicas
        self._stale_after_s = stale_after_s
        self._reports: dict[int, ReplicaReport] = {}
        self._heard_at: dict[int, float] = {}
        self._incarnations: dict[int, list[str]] = {}  # incarnations, the newest last
        self._sequences: dict[int, int] = {}  # of the newest incarnation

    def want(self, replicas: Iterable[int]) -> None:
        """Set the replicas that are wanted from now on. Others receive no request, but their
        reports are accepted until they have ended. How a replica ended that was not wanted says
        nothing of its next start.
        """
        wanted = frozenset(replicas)
        for one in wanted - self.wanted:
            if one in self._reports and self._reports[one].state in FINAL_REPLICA_STATES:
                del self._reports[one]
        self.wanted = wanted
        self._replicas = max(self._replicas, *(one + 1 for one in self.wanted), 0)

    def take(self, report: ReplicaReport, now: float, at: datetime) -> Verdict:
        """Accept a report unless it is older than the last one; `at` is recorded as its time."""
        index = report.replica
        if index >= self._replicas:
            return Verdict.UNKNOWN
        known = self._incarnations.setdefault(index, [])
        if report.incarnation in known[:-1]:
            return Verdict.SUPERSEDED
        if not known or known[-1] != report.incarnation:
            known.append(report.incarnation)
            del known[:-_INCARNATIONS_KEPT]
        elif report.sequence <= self._sequences[index]:
            return Verdict.LATE
        self._sequences[index] = report.sequence
        rate = tokens_per_s(self._reports.get(index), report)
        changes = {"reported_at": at, "tokens_per_s": rate}
        self._reports[index] = report.model_copy(update=changes)
        self._heard_at[index] = now
        self._displace(report)
        return Verdict.TAKEN

    def _displace(self, report: ReplicaReport) -> None:
        """A watchdog holds its port as long as it lives. So another replica that is listed with
        this port has ended, and must not be taken for the server that answers there now.
        """
        for index, other in self._reports.items():
            if index != report.replica and report.url is not None and other.url == report.url:
                gone: dict[str, object] = {"url": None, "http_status": None}
                if other.state not in FINAL_REPLICA_STATES:
                    gone["state"] = ReplicaState.UNHEALTHY
                    gone["reason"] = _PORT_TAKEN.format(report.replica)
                self._reports[index] = other.model_copy(update=gone)

    def give_up(self, replica: int) -> None:
        """Mark a replica as failed permanently: nothing starts it any more. The reason is that of
        its last report.
        """
        last = self._reports.get(replica)
        if last is not None:
            changed = {"state": ReplicaState.FAILED}
            self._reports[replica] = last.model_copy(update=changed)

    def restore(self, reports: Iterable[ReplicaReport], now: float) -> None:
        """Restore the state that an earlier collector of this swarm wrote, until it is stale."""
        for report in reports:
            if report.replica < self._replicas:
                self._reports[report.replica] = report
                self._heard_at[report.replica] = now
                self._incarnations[report.replica] = [report.incarnation]
                self._sequences[report.replica] = report.sequence

    def last(self, replica: int) -> ReplicaReport | None:
        """The last report of one replica."""
        return self._reports.get(replica)

    def reports(self) -> tuple[ReplicaReport, ...]:
        """The last report of every replica that has reported, ordered by replica."""
        return tuple(
            report
            for index, report in sorted(self._reports.items())
            if index in self.wanted or report.state not in FINAL_REPLICA_STATES
        )

    def serving(self, now: float) -> dict[int, str]:
        """The replicas that requests may be sent to: wanted, ready and with a recent report; with
        their URLs.
        """
        return {
            report.replica: report.url
            for report in self.reports()
            if report.state is ReplicaState.READY
            and report.replica in self.wanted
            and report.url is not None
            and now - self._heard_at[report.replica] <= self._stale_after_s
        }


def tokens_per_s(before: ReplicaReport | None, now: ReplicaReport) -> float | None:
    """Tokens per second of an engine between two samples of its counter, by its watchdog's clock;
    None if there are no two samples of one engine. A report that repeats a sample repeats the rate.
    """
    if before is None or before.incarnation != now.incarnation:
        return None
    earlier, later = before.sampled_at, now.sampled_at
    if earlier is None or later is None or before.engine_pid != now.engine_pid:
        return None
    if later == earlier:
        return before.tokens_per_s
    if before.generated_tokens is None or now.generated_tokens is None:
        return None
    written = now.generated_tokens - before.generated_tokens
    return written / (later - earlier) if written >= 0 and later > earlier else None
