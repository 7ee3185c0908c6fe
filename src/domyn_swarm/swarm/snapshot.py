"""The state of a swarm at one moment: typed, versioned, serialisable. `--json` prints it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from typing_extensions import override

from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.backends.gpu_time import HELD, Use
from domyn_swarm.backends.left_out import LeftOut
from domyn_swarm.model import (
    FINAL_REPLICA_STATES,
    JobAccount,
    JobFigures,
    JobStatus,
    Record,
    ReplicaReport,
    ReplicaState,
    SwarmPhase,
    TimeLeft,
)
from domyn_swarm.probing import Observation, Phase
from domyn_swarm.swarm.readiness import age_s, is_stale, not_ready_yet

FIGURES_FRESH_S = 5.0
"""Figures of an engine or of a running job that are older than this are shown with their age."""


Observed = Literal[
    "ready", "starting", "queued", "failed", "stopped", "unknown", "elsewhere", "not_probed"
]
"""The present state of a swarm, as far as it was asked."""


class Whereabouts(Record):
    """Where a swarm or a job was started, and whether it can be asked from here."""

    kind: Literal["host", "cluster", "workspace"]
    name: str
    elsewhere: bool | None  # false: the last known values are shown; null: not asked
    known_at: datetime | None = None  # time of these values, if it is elsewhere


class ReplicaSnapshot(Record):
    """One replica, with the age of its last report."""

    index: int
    state: ReplicaState
    stale: bool  # the last report is too old to count
    url: str | None = None
    http_status: int | None = None
    last_seen_s: float | None = None  # age of the last report
    restarts: int = 0
    reason: str | None = None
    requests_running: float | None = None
    requests_waiting: float | None = None
    prompt_tokens: float | None = None  # since the engine started; null: it does not report them
    generated_tokens: float | None = None
    tokens_per_s: float | None = None  # generated, between its last two samples
    kv_cache_usage: float | None = None  # 1: full
    figures_age_s: float | None = None  # age of the engine's figures, from requests_running on
    node: str | None = None
    expires_at: datetime | None = None  # when the platform ends it, or restarts it

    @property
    def serving(self) -> bool:
        """Whether it accepts requests: ready, with a recent report."""
        return self.state is ReplicaState.READY and not self.stale

    @property
    def old_figures_s(self) -> float | None:
        """The age of the engine's figures if it should be shown; None: they are current."""
        age_s = self.figures_age_s
        return age_s if age_s is not None and age_s > FIGURES_FRESH_S else None


class NamedJob(Record):
    """A job's identity, and what is known of it wherever it runs."""

    schema_version: Literal[1] = 1
    job_id: str
    external_id: str | None = None
    name: str
    swarm: str | None
    status: JobStatus
    whereabouts: Whereabouts | None = None  # null: not recorded


class JobSnapshot(NamedJob, JobFigures):
    """One job."""

    figures_age_s: float | None = None  # of a running job: when its worker wrote the figures
    input: str
    output: str | None
    # The job's specification, if it is shown by itself; null in lists, and if its files were
    # removed.
    model: str | None = None
    job_class: str | None = None
    prompt: str | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None  # its options and its requests', without secrets
    retry_parameters: dict[str, Any] | None = None  # those that differ for the rows that it retries
    max_gpu_hours: float | None = None  # its budget
    runs: int | None = None  # runs so far, of a job that continues by itself; null: of any other
    began_at: datetime | None = None  # begin of the first run
    account: JobAccount | None = None  # of all its runs, once one has ended
    message: str | None = None  # reason if it waits, is paused or has failed
    remarks: tuple[str, ...] = ()  # remarks on how its rows ended
    exit_code: int | None = None  # exit code of the program
    submitted_at: datetime
    ended_at: datetime | None = None
    log_path: str

    @override
    def __str__(self) -> str:
        total = "?" if self.rows_total is None else self.rows_total
        failed = f", {self.rows_failed} failed" if self.rows_failed else ""
        message = f": {self.message}" if self.message else ""
        rows = "" if self.output is None else f", {self.rows_done}/{total} rows{failed}"
        return f"<job {self.job_id} ({self.name}): {self.status.value}{rows}{message}>"

    @property
    def time_left(self) -> TimeLeft | None:
        """Time until its last row is settled; None: it does not run, or that is not known yet."""
        if self.eta_s is None:
            return None
        low_s = self.eta_s if self.eta_low_s is None else self.eta_low_s
        high_s = self.eta_s if self.eta_high_s is None else self.eta_high_s
        return TimeLeft(self.eta_s, low_s, high_s)

    @property
    def old_figures_s(self) -> float | None:
        """The age of its figures if it should be shown; None: they are current, or final."""
        age_s = self.figures_age_s
        return age_s if age_s is not None and age_s > FIGURES_FRESH_S else None


class UseTime(Record):
    """Time of one use and one cause."""

    use: Use
    cause: str  # phase of a start, reason that rows waited, or reason of unknown; else empty
    replica_s: float
    gpu_s: float  # multiplied by the replica's GPUs


class Usage(Record):
    """The replicas' time by use. Held: time in which they had their GPUs."""

    held_replica_s: float
    held_gpu_s: float  # the sum of all uses but `queued`
    uses: tuple[UseTime, ...] = ()  # those that occurred, in the order of `Use`
    energy_kwh: float | None = None  # by nvidia-smi on the nodes; null: not measured
    energy_gpu_s: float = 0.0  # the held time whose energy was measured

    @override
    def __str__(self) -> str:
        gpus = bool(self.held_gpu_s)
        spent = dict.fromkeys(Use, 0.0)
        for part in self.uses:
            spent[part.use] += part.gpu_s if gpus else part.replica_s
        held_s = self.held_gpu_s if gpus else self.held_replica_s
        shown = ", ".join(
            f"{use.value.replace('_', ' ')} {value / 3600:.3f}"
            for use, value in spent.items()
            if value
        )
        unit = "GPU-hours" if gpus else "replica-hours"
        return f"<{held_s / 3600:.3f} {unit} held: {shown}>"

    def gpu_s(self, *uses: Use) -> float:
        """GPU-seconds of these uses; without any, of all but `queued`."""
        return sum(one.gpu_s for one in self.uses if one.use in (uses or HELD))

    def replica_s(self, *uses: Use) -> float:
        """Replica-seconds, likewise."""
        return sum(one.replica_s for one in self.uses if one.use in (uses or HELD))


class SwarmSnapshot(Record):
    """One swarm."""

    schema_version: Literal[1] = 1
    name: str
    phase: SwarmPhase  # the phase of the record
    observed: Observed
    detail: str = ""
    whereabouts: Whereabouts | None = None  # null: not recorded
    backend: str
    engine: str
    model: str
    endpoint: str | None
    replicas_wanted: int
    replicas_min: int | None = None  # of an elastic swarm, whose size follows the work; null: fixed
    replicas_max: int | None = None
    asleep: bool = False  # it has no replica, and starts one for the first request or job
    min_ready: int
    replicas: tuple[ReplicaSnapshot, ...] = ()
    jobs: tuple[JobSnapshot, ...] = ()
    left_out: tuple[LeftOut, ...] = ()  # nodes on which no replica is started for a while
    expires_at: datetime | None = None  # when the last running replica ends by its limit
    usage: Usage | None = None  # of a swarm that is shown by itself; null: see `usage`
    swarm_dir: str
    created_at: datetime

    @override
    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        ready = f"{self.replicas_ready} of {self.replicas_wanted} replicas ready"
        return f"<swarm {self.name!r}: {ready}, {self.observed}{detail}>"

    @property
    def replicas_ready(self) -> int:
        """How many replicas accept requests."""
        return sum(replica.serving for replica in self.replicas)


class SwarmList(Record):
    """Swarms, the oldest first."""

    schema_version: Literal[1] = 1
    swarms: tuple[SwarmSnapshot, ...]


class JobList(Record):
    """Jobs, the newest first."""

    schema_version: Literal[1] = 1
    jobs: tuple[JobSnapshot, ...]
    left_out: int = 0  # older ones, which were not read


_REPORTED = set(ReplicaSnapshot.field_names()) & set(ReplicaReport.field_names())


def reported(
    view: CollectorView | None,
    report: ReplicaReport | None,
    index: int,
    *,
    unheard: bool = False,
) -> ReplicaSnapshot:
    """A replica from its watchdog's last report. `unheard`: its reports are not accepted any more,
    and no requests are sent there.
    """
    if view is None or report is None:
        return ReplicaSnapshot(index=index, state=ReplicaState.PENDING, stale=False)
    seen_s, sample_s = age_s(view, report), report.sample_age_s
    shown = report.model_copy(update={"reason": not_ready_yet(report)})
    return ReplicaSnapshot(
        index=index,
        stale=unheard or is_stale(view, report),
        last_seen_s=seen_s,
        figures_age_s=None if sample_s is None else seen_s + sample_s,
        **shown.model_dump(include=_REPORTED),
    )


def placed(one: ReplicaSnapshot, place: Observation | None, anew: str) -> ReplicaSnapshot:
    """The replica with its platform's state, unless its watchdog's reports arrive: a platform's
    snapshot may be older than a report. For a replica that failed, the watchdog knows the cause.

    Args:
        one: from its report.
        place: the platform's state of it; None: the platform was not asked.
        anew: the command that starts an ended replica again.
    """
    heard = one.last_seen_s is not None
    ended = one.state in FINAL_REPLICA_STATES
    if place is None or (heard and not one.stale and not ended):
        return one
    if place.phase is Phase.QUEUED:
        return _changed(one, ReplicaState.PENDING, place.detail)
    if place.phase.terminal and one.state is not ReplicaState.FAILED:
        without_a_word = heard and not ended  # its watchdog was killed
        failed = place.phase is Phase.FAILED or without_a_word
        state = ReplicaState.FAILED if failed else ReplicaState.EXITED
        return _changed(one, state, f"{place.detail}; {anew}")
    if place.phase is Phase.READY and not ended:
        silent = "does not report any more" if heard else "has not reported yet"
        return one.model_copy(update={"reason": f"{place.detail}; its watchdog {silent}"})
    return one


def _changed(one: ReplicaSnapshot, state: ReplicaState, reason: str) -> ReplicaSnapshot:
    return one.model_copy(update={"state": state, "reason": reason, "stale": False})
