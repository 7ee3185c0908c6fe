"""The decisions of a watchdog over time: pure, without a clock, a file or a socket of its own.

Standard library only and Python 3.8 syntax: it is copied next to `watchdog.py`, with
`restart_budget.py`.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, NamedTuple, Sequence

if TYPE_CHECKING or __package__:
    from domyn_swarm.restart_budget import RestartBudget, RestartPolicy
else:  # it is copied next to this file
    from restart_budget import RestartBudget, RestartPolicy

Json = Dict[str, Any]

COLLECTOR_ENDED_S = 2.0  # a server that has not listened for so long has ended
STALE_S = 10.0  # shortest silence after which a collector removes a replica from the router
ROUTER_FOLLOWS_S = 3.0  # until the router is certain to have followed the collector
STABLE_S = 600.0  # an engine that was ready for so long has its restarts forgiven
ANSWERING = 4  # times `max_restarts`: limit for engines that answer requests in between
OWN_TOKENS = 32  # the watchdog's own request accounts for so many at most
LONGEST_START = 6  # times `readiness_timeout`: whatever it prints or reads
LAST_LINES = 10
RECHECK_S = 1.0  # pause before a failed probe is repeated, and interval for an unhealthy engine
BUSY_S = 20.0  # tokens, or work, this recent excuse a late health reply


class Spec(NamedTuple):
    """The settings of a watchdog; the fields are described in `backends.watchdog_spec`."""

    replica: int
    host: str
    port_from: int
    argv: list[str]
    env: dict[str, str]
    key_env: str | None
    key_file: str
    collector_key_file: str
    endpoint_file: str
    engine_log: str
    health_path: str
    metrics_path: str | None
    running_metric: str | None
    waiting_metric: str | None
    progress_metrics: list[str]
    reported_metrics: dict[str, str]
    first_request: Json | None
    failure_patterns: list[Json]
    probe_interval: float
    startup_probe_interval: float
    http_timeout: float
    readiness_timeout: float
    quiet_seconds: float
    restart_policy: str
    unhealthy_restart_after: float
    max_restarts: int
    early_deaths: int | None
    restart_backoff_initial: float
    restart_backoff_max: float
    kill_grace_seconds: float
    drain_seconds: float
    progress_timeout: float | None
    ray: Json | None
    heartbeat_seconds: float
    final_report_seconds: float
    orphaned_seconds: float | None
    ledger_file: str = ""
    gpus: int = 0
    power_gpus: int = 0
    start_phases: Sequence[Json] = ()


class Restarts:
    """Decides when an engine that ended is restarted. `total` counts every restart."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        pauses_s = (spec.restart_backoff_initial, spec.restart_backoff_max)
        most = spec.max_restarts
        self._unanswered = RestartBudget(RestartPolicy(most, math.inf, *pauses_s, STABLE_S))
        self._unstable = RestartBudget(RestartPolicy(ANSWERING * most, progress_s=STABLE_S))
        self._slow = False
        self.total = 0

    def served(self, seconds: float, answered: bool) -> None:
        """Record that the engine has been ready for so long and has answered requests: an engine
        that a request kills is able to run, and after some time the past does not count.
        """
        if answered:
            self._unanswered.clear()
        for budget in (self._unanswered, self._unstable):
            budget.ran(seconds)

    def next_delay(self, clean: bool, slow: bool = False) -> float | None:
        """Seconds to wait before the next start; None: it is not restarted. `slow`: it was not
        ready in time, which an engine that never was will not be either.
        """
        slow, self._slow = slow and self._slow, slow
        policy = self._spec.restart_policy
        wanted = policy == "always" or (policy == "on-failure" and not clean)
        if slow or not wanted or self._unstable.exhausted():
            return None
        delay_s = self._unanswered.take()
        if delay_s is not None:
            self._unstable.take()
            self.total += 1
        return delay_s


class Health:
    """Judges one engine's probes over time."""

    def __init__(self, spec: Spec, now: float) -> None:
        self._spec = spec
        self._started = now
        self._failing_since: float | None = None
        self._failures = 0
        self._stuck_since: float | None = None
        self._progress: float | None = None
        self._counted: float | None = None
        self._at_first: float | None = None
        self._moved_at: float | None = None
        self._working = False
        self._why = ""
        self._refused = False
        self.loaded_at = now  # when it last printed, or read from its disk
        self.ready_since: float | None = None
        self.answered = False  # requests, by its counters

    @property
    def state(self) -> str:
        """`starting`, `ready` or `unhealthy`. A single failed probe does not make it unhealthy."""
        if self.ready_since is None:
            return "starting"
        return "unhealthy" if self._failures > 1 else "ready"

    @property
    def well(self) -> bool:
        """Whether the last probe succeeded."""
        return self.ready_since is not None and self._failures == 0

    @property
    def reason(self) -> str | None:
        """What is wrong with an unhealthy engine."""
        return self._why if self.state == "unhealthy" else None

    def loads(self, now: float) -> bool:
        """Whether an engine that is not ready yet makes progress. Log lines about requests for
        missing paths are no progress.
        """
        moved = now - self.loaded_at < self._spec.quiet_seconds
        return self.ready_since is None and moved and not self._refused

    def sampled(self, now: float, progress: float | None, running: float) -> None:
        """Add a sample of the engine's counters, and of its requests; None: not known."""
        if progress is None:
            return
        began = running > 0 and not self._working
        if began or (self._counted is not None and progress != self._counted):
            self._moved_at = now
        self._counted, self._working = progress, running > 0
        self._at_first = progress if self._at_first is None else self._at_first
        self.answered = self.answered or progress - self._at_first > OWN_TOKENS

    def busy(self, now: float) -> bool:
        """Whether tokens came recently, or requests for some."""
        return self._moved_at is not None and now - self._moved_at <= BUSY_S

    def late(self, now: float, why: str) -> None:
        """Add a probe without a reply in time: no failure while tokens come, since an engine that
        serves thousands of requests answers late.
        """
        if self.ready_since is not None and self.busy(now):
            self._failures, self._failing_since = 0, None
        else:
            self.failed(now, why)

    def failed(self, now: float, why: str, *, refused: bool = False) -> None:
        """Add a probe that failed; `refused`: the engine rejected the request itself."""
        self._why, self._refused = why, refused
        self._failures += 1
        self._failing_since = now if self._failing_since is None else self._failing_since

    def alive(self, now: float, waiting: float, progress: float | None) -> None:
        """Add a successful probe (the first time: with a reply)."""
        self._failures, self._failing_since = 0, None
        self.ready_since = now if self.ready_since is None else self.ready_since
        stuck = waiting > 0 and progress is not None and progress == self._progress
        self._stuck_since = (self._stuck_since or now) if stuck else None
        self._progress = progress

    def overtime(self, now: float) -> str | None:
        """What an engine does that is not ready in time, and may take longer."""
        took_s, limit_s = now - self._started, self._spec.readiness_timeout
        if self.ready_since is not None or took_s < limit_s:
            return None
        times = (limit_s, LONGEST_START * limit_s)
        return "not ready after %g s; it still loads, and has %g s" % times

    def reason_to_restart(self, now: float) -> str | None:
        """Why waiting longer is pointless, or None."""
        spec = self._spec
        if self.ready_since is None:
            took_s, limit_s = now - self._started, spec.readiness_timeout
            if took_s < limit_s or (self.loads(now) and took_s < LONGEST_START * limit_s):
                return None
            doing = "it still loads" if self.loads(now) else "it neither prints nor reads any more"
            more = "if it needs longer, set watchdog.readiness_timeout: %g" % (2 * limit_s)
            wrong = " (%s)" % self._why if self._why else ""
            return "not ready after %.0f s%s, and %s; %s" % (took_s, wrong, doing, more)
        if self._failing_since is not None and self._failures > 1:
            late = now - self._failing_since >= spec.unhealthy_restart_after
            said = "unhealthy for %g s: %s" % (spec.unhealthy_restart_after, self._why)
            return said if late else None
        if spec.progress_timeout and self._stuck_since is not None:
            late = now - self._stuck_since >= spec.progress_timeout
            said = "no progress for %g s while requests wait" % spec.progress_timeout
            return said if late else None
        return None

    def next_probe_s(self) -> float:
        """Seconds until the next probe is due."""
        spec = self._spec
        if self.ready_since is None:
            return spec.startup_probe_interval
        if self._failures:
            return min(RECHECK_S, spec.probe_interval)
        return min(spec.probe_interval, (spec.progress_timeout or 3 * spec.probe_interval) / 3)


class Contact:
    """Judges over time whether the collector, and with it the router, may still send requests here.
    The router ends with the collector's program; a router that cannot be reached from here may be
    alive, and removes a replica that does not report.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._silence_s = max(STALE_S, 3 * heartbeat_s) + ROUTER_FOLLOWS_S
        self._failing_since: float | None = None
        self._ended_since: float | None = None

    def answered(self) -> None:
        """Record that it accepted a report."""
        self._failing_since = self._ended_since = None

    def failed(self, now: float, ended: bool) -> None:
        """Record that it did not; `ended`: nothing listens there, it reported that it has shut
        down, or that it knows no such replica.
        """
        self._failing_since = now if self._failing_since is None else self._failing_since
        if not ended:
            self._ended_since = None
        elif self._ended_since is None:
            self._ended_since = now

    def gone(self, now: float) -> bool:
        """Whether nothing sends requests here any more, as far as can be determined from here."""
        if self._failing_since is None:
            return False
        return self.ended(now, COLLECTOR_ENDED_S) or now - self._failing_since >= self._silence_s

    def ended(self, now: float, for_s: float) -> bool:
        """Whether no server that knows this replica has listened for so long."""
        return self._ended_since is not None and now - self._ended_since >= for_s


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus text to name → sum over its labels."""
    found = {}  # type: dict[str, float]
    for line in text.splitlines():
        match = re.match(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)", line)
        if match:
            try:
                found[match.group(1)] = found.get(match.group(1), 0.0) + float(match.group(2))
            except ValueError:
                continue
    return found


def ray_gpus(text: str) -> float | None:
    """How many GPUs `ray status` reports for the cluster; None: it does not."""
    found = re.search(r"[\d.]+/([\d.]+) GPU\b", text)
    return float(found.group(1)) if found else None


class RayNodes:
    """Judges Ray's reports of its nodes over time: whether all were ever there, and still are."""

    def __init__(self, ray: Json) -> None:
        self._ray = ray
        self._missing_since: float | None = None
        self.complete = False
        self.lost: str | None = None

    def saw(self, gpus: float | None, now: float) -> None:
        """Add one answer; None: Ray did not answer."""
        enough = gpus is not None and gpus >= self._ray["gpus"]
        self.complete = self.complete or enough
        self._missing_since = (self._missing_since or now) if self.complete and not enough else None
        if self._missing_since and now - self._missing_since >= self._ray["status_grace_s"]:
            has = "none" if gpus is None else "%g" % gpus
            self.lost = "Ray lost nodes: %s of %d GPUs are left" % (has, self._ray["gpus"])

    def next_question_s(self) -> float:
        """Seconds until Ray is asked again."""
        hurry = not self.complete or self._missing_since is not None
        every_s = float(self._ray["probe_interval_s"])
        return min(1.0, every_s) if hurry else every_s

    def joined(self, stopped: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for all nodes, because an engine that starts without them fails; or for a stop."""
        deadline = time.monotonic() + timeout_s
        while not self.complete and not stopped() and time.monotonic() < deadline:
            time.sleep(0.2)
        return self.complete or stopped()


_BEGINS = r"^\W*(?:\([^)]*\)\W*)?(?:[\w:.,/+-]*\d[\w:.,/+-]*\W+){0,4}"  # process, date, time, rank
_NOTES = re.compile(
    _BEGINS + r"(?:(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?)\b|[DIW]\d{4} )"
    r"|^[\d.]+ [DIW] |^\S+:\d+: \w*Warning: "
)
_ERRORS = re.compile(
    _BEGINS
    + r"(?:(?:ERROR|CRITICAL|FATAL)\b|[EF]\d{4} )|^[\d.]+ [EF] |Traceback \(most recent call"
)


def diagnose(patterns: list[Json], tail: str, served: bool, killed: bool) -> Json | None:
    """The first known cause of an engine's end in the log's tail, with its `line`.

    Errors and tracebacks count, but not information or warnings. For an engine that never served
    (otherwise they may belong to its requests) the very last lines count, whatever they look like;
    if a signal ended it, only causes of a kill count, not those that make programs give up.
    """
    lines = tail.splitlines()
    errors, failing = [], False
    for line in lines:
        failing = not _NOTES.match(line) and (failing or bool(_ERRORS.search(line)))
        errors += [line] if failing else []
    last = [] if served else [line for line in lines[-LAST_LINES:] if not _NOTES.match(line)]
    mild = [known for known in patterns if known["retryable"] or not killed]
    for known, telling in [(one, errors) for one in patterns] + [(one, last) for one in mild]:
        found = [line for line in telling if re.search(known["pattern"], line)]
        if found:
            return dict(known, line=found[-1].strip()[:500])
    return None
