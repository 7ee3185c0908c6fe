"""Records and enums that every floor uses, and the legal transitions between states."""

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal, TypeVar
from zlib import crc32

from typing_extensions import override

from domyn_swarm.errors import EXIT_BUDGET_SPENT, EXIT_FAILED_ROWS, ConfigError
from domyn_swarm.record import Meta, field
from domyn_swarm.record import Record as Record  # noqa: PLC0414 - others have it from here


def utc_now() -> datetime:
    """The current time, in UTC and aware."""
    return datetime.now(UTC)


# -- swarms ---------------------------------------------------------------------------------


class SwarmPhase(StrEnum):
    """The recorded phase of a swarm. Its *observed* state is an `Observation`."""

    LAUNCHING = "launching"  # recorded before the first submission
    READY = "ready"  # `min_ready` replicas have answered once
    FAILED = "failed"  # did not come up; resources were freed or freeing them failed
    STOPPING = "stopping"  # `down` has begun and is not verified yet
    STOPPED = "stopped"  # verified: nothing of it runs

    @property
    def live(self) -> bool:
        """Whether something of the swarm may still run."""
        return self is not SwarmPhase.STOPPED


SWARM_TRANSITIONS: Mapping[SwarmPhase, frozenset[SwarmPhase]] = {
    SwarmPhase.LAUNCHING: frozenset({SwarmPhase.READY, SwarmPhase.FAILED, SwarmPhase.STOPPING}),
    SwarmPhase.READY: frozenset({SwarmPhase.FAILED, SwarmPhase.STOPPING}),
    SwarmPhase.FAILED: frozenset({SwarmPhase.STOPPING}),
    SwarmPhase.STOPPING: frozenset({SwarmPhase.STOPPED}),
    SwarmPhase.STOPPED: frozenset(),
}


class ReplicaState(StrEnum):
    """What a replica's watchdog reports."""

    PENDING = "pending"  # the platform has not started it
    STARTING = "starting"  # engine process runs, not ready yet
    READY = "ready"  # answered its probe and one real request
    UNHEALTHY = "unhealthy"  # was ready, the probe fails
    RESTARTING = "restarting"  # engine ended, waiting out the back-off
    DRAINING = "draining"  # takes no new request, finishes those in flight
    EXITED = "exited"  # ended on request
    FAILED = "failed"  # ended and will not be restarted


FINAL_REPLICA_STATES = frozenset({ReplicaState.EXITED, ReplicaState.FAILED})

# -- jobs -----------------------------------------------------------------------------------


class JobStatus(StrEnum):
    """What a job is doing, or how it ended."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"  # finished; some rows carry an error
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    PREEMPTED = "preempted"  # the scheduler took its place for another job
    LOST_NODE = "lost_node"

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)

    @property
    def exit_code(self) -> int:
        """The code `job wait` and an attached `job submit` end with."""
        return {JobStatus.SUCCEEDED: 0, JobStatus.PARTIAL: 7}.get(self, 6)


class ReplyVerdict(StrEnum):
    """The class of a row's answer, judged by its replies."""

    COMPLETE = "complete"
    CUT = "cut"  # at a token limit
    EMPTY = "empty"  # it ended as it should, and says nothing
    REFUSED = "refused"  # by the model, or by a filter
    TOOL_CALLS = "tool_calls"
    ERROR = "error"  # there is none: the requests failed, or the job's own code


def verdicts_named(names: str | Sequence[str]) -> tuple[ReplyVerdict, ...]:
    """The verdicts of these names, separated by commas.

    Raises:
        ConfigError: there is none of that name.
    """
    words = names.split(",") if isinstance(names, str) else ",".join(names).split(",")
    known = {one.value: one for one in ReplyVerdict if one is not ReplyVerdict.COMPLETE}
    found = [known.get(word.strip()) for word in words if names]
    if None in found:
        raise ConfigError(
            f"{words[found.index(None)].strip()!r} is no class of rows that can be sent again.",
            hint=f"There are {', '.join(known)}.",
        )
    return tuple(dict.fromkeys(one for one in found if one is not None))


Accept = Literal["complete", "any"]
"""Which answers count. Else: all that say something, and refusals."""

Dedup = Literal["greedy", "always"]
"""When rows of equal values share a request: if decoding is greedy, or always."""

Dispatching = Literal["auto", "affinity", "least_load"]
"""A request's replica is chosen by prefix if rows share prefixes, always by prefix, or by load."""

Fingerprint = Literal["full", "sample", "off"]
"""How many rows' inputs are compared with those of recorded answers: all, one in 64, or none."""

_JOB_ENDS = frozenset(status for status in JobStatus if status.final)
JOB_TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: _JOB_ENDS | {JobStatus.RUNNING},
    JobStatus.RUNNING: _JOB_ENDS | {JobStatus.PENDING},  # back in the queue, for its next run
    **{status: frozenset[JobStatus]() for status in _JOB_ENDS},
}


_S = TypeVar("_S", bound=StrEnum)


def may_become(current: _S, to: _S, table: Mapping[_S, frozenset[_S]]) -> bool:
    """Whether `table` allows the transition. Staying in place is always legal."""
    return to is current or to in table[current]


# -- handles: how to find a thing again ---------------------------------------------------------


class Reach(StrEnum):
    """Whether something that was started at a `Location` can be queried from here."""

    HERE = "here"  # it can be queried
    ELSEWHERE = "elsewhere"  # it cannot: whether it still runs is unknown
    OVER = "over"  # nothing that was started there can still run


class Location(Record):
    """Where something was started, and from where its state can be queried.

    For a host also its boot and PID namespace (container), within which alone its processes are
    visible. None: the system does not provide it.
    """

    kind: Literal["host", "cluster", "workspace"]  # of processes, of Slurm, of Lepton
    name: str
    boot_id: str | None = None
    pid_namespace: int | None = None  # its inode
    machine_id: str | None = None  # a digest of the installation's id

    @override
    def __str__(self) -> str:
        return f"the {self.kind} {self.name}"


class ProcessId(Record):
    """A process of this machine. The start time tells it from a later one with the same pid."""

    pid: int
    started_at: float  # seconds since this machine's boot


class JobHandle(Record):
    """How to find a job again, from any process. A promise: printed as JSON by `job submit`."""

    schema_version: Literal[1] = 1
    job_id: str
    swarm: str | None  # None: the job drives an endpoint that is not ours
    platform: str  # local, slurm, lepton
    platform_id: str  # pid, scheduler job id, job name
    process: ProcessId | None = None
    location: Location | None = None  # None: not recorded, taken for here
    step: str | None = None
    external_id: str | None = None
    job_dir: str
    log_path: str
    exit_path: str
    submitted_at: datetime


class ExitRecord(Record):
    """Written by our wrapper around a job's program when that program ends; the first truth."""

    schema_version: Literal[1] = 1
    code: int | None  # None: ended by a signal
    signal: int | None = None  # the number
    time_limit: bool = False  # its time was up, or the scheduler had warned that it will be
    stopped: bool = False  # it had received a signal to end, whatever it ended by
    started_at: datetime
    ended_at: datetime

    @property
    def status(self) -> JobStatus:
        """The job's status by the program's exit code or signal."""
        if self.code == 0:
            return JobStatus.SUCCEEDED
        if self.code == EXIT_FAILED_ROWS:
            return JobStatus.PARTIAL
        if self.time_limit or self.code == EXIT_BUDGET_SPENT:
            return JobStatus.TIMED_OUT
        stops = {signal.SIGTERM, signal.SIGINT}
        if self.stopped or self.signal in stops or self.code in {128 + number for number in stops}:
            return JobStatus.CANCELLED
        return JobStatus.FAILED

    @property
    def conclusive(self) -> bool:
        """Whether the program ended by itself. Any other end may have a cause that only the
        scheduler knows: preemption and a lost node look like a cancellation from here.
        """
        return self.status in (JobStatus.SUCCEEDED, JobStatus.PARTIAL)


class DispatchAccount(Record):
    """The effect of dispatching rows by shared prefixes."""

    groups: int  # of rows with a shared prefix
    rows_grouped: int  # rows in all groups
    requests_known: int  # sent to a replica that had been sent what they begin with (a hit)
    requests_new: int  # whose beginning no replica had been sent
    requests_moved: int  # sent elsewhere than to those that had been: they had their share
    cached_share: float | None  # of prompt tokens, by the engines' own counters; None: not known
    switched_off: int  # times that it was measured not to pay


class JobAccount(Record):
    """What a job did and cost over all its runs. Seconds throughout; latency is of requests."""

    runs: int
    wall_s: float
    rows_answered: int
    rows_failed: int
    requests: int
    retries: int  # requests repeated after an error
    turned_away: int  # requests repeated because the server was busy
    lost_in_flight: int  # requests in flight when a run was killed, and sent again by the next
    prompt_tokens: int
    completion_tokens: int
    rows_per_s: float | None
    completion_tokens_per_s: float | None
    latency_p50_s: float | None
    latency_p90_s: float | None
    latency_p99_s: float | None
    dispatch: DispatchAccount | None = None  # None: no prefix was examined


class Histogram(Record):
    """Observations by upper bounds, each included; those above the last one are counted last."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]  # one more than there are bounds
    total: float  # of all observations


class FailureGroup(Record):
    """Failed rows whose errors differ only in numbers, or answered rows of one verdict."""

    signature: str
    verdict: ReplyVerdict = ReplyVerdict.ERROR
    kept: bool = False  # the rows count as answered
    rows: int
    status: int | None  # of HTTP, when there was one
    example_row: int  # its position in the input
    example_id: str | None = None  # the row's id, where a column names the rows
    example_input: str | None = None  # how what the job is given begins; null: not read
    example_message: str


@dataclass(frozen=True)
class TimeLeft:
    """Seconds until a job's last row is settled; in four cases of five from `low_s` to `high_s`."""

    expected_s: float
    low_s: float
    high_s: float

    @property
    def between(self) -> str:
        """The interval as text; a single time if both ends print alike."""
        low, high = clock_time(self.low_s), clock_time(self.high_s)
        return low if low == high else f"{low}-{high}"

    @override
    def __str__(self) -> str:
        expected = clock_time(self.expected_s)
        return expected if self.between == expected else f"{expected} ({self.between})"


def clock_time(seconds: float) -> str:
    """A time in few characters: 0:07:31, 2 d 03:10."""
    minutes, left = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}" if days else f"{hours}:{minutes:02}:{left:02}"


class JobFigures(Record):
    """How far a job is."""

    rows_total: int | None = None  # None: not known yet
    rows_done: int = 0  # settled, including those of earlier runs and failed ones
    rows_resumed: int = 0  # of them: before this run, by this or an identical job
    rows_failed: int = 0
    verdicts: dict[ReplyVerdict, int] = field(default_factory=dict)  # settled rows, by answers
    commonest_failure: FailureGroup | None = None  # of the rows that failed in its own run
    rows_per_s: float | None = None
    eta_s: float | None = None  # until the last row is settled
    eta_low_s: float | None = None  # in four cases of five it takes no less,
    eta_high_s: float | None = None  # and no more
    gpu_hours: float | None = None  # so far, over all its runs; null: not known
    prompt_tokens: int = 0
    completion_tokens: int = 0


def time_left_fields(left: TimeLeft | None) -> dict[str, float | None]:
    """The remaining time as fields of `JobFigures`."""
    ends = (None, None, None) if left is None else (left.expected_s, left.low_s, left.high_s)
    return dict(zip(("eta_s", "eta_low_s", "eta_high_s"), ends, strict=True))


class JobProgress(JobFigures):
    """How far a job is; `progress.json`, rewritten by its worker about once a second."""

    schema_version: Literal[1] = 1
    state: Literal["starting", "running", "paused", "publishing", "ended"]
    message: str | None = None
    name: str = ""
    model: str = ""
    checkpoint: str | None = None  # its folder; None: it keeps none
    in_flight: int = 0
    limit: int | None = None  # of requests in flight
    ends_in_s: float | None = None  # it ends then, done or not; None: it has the time that it takes
    # From here on, of this run alone.
    run_answered: int = 0
    run_failed: int = 0
    requests: int = 0
    retries: int = 0
    turned_away: int = 0
    latency_s: Histogram | None = None  # of requests
    prompt_sizes: Histogram | None = None  # tokens
    completion_sizes: Histogram | None = None
    updated_at: datetime


# -- what watchdogs report ----------------------------------------------------------------------


def listing_tag(urls: Iterable[str]) -> str:
    """A digest of a set of replicas: readers that have this set need not list it again."""
    return format(crc32("\n".join(sorted(urls)).encode()), "08x")


class ReplicaReport(Record):
    """The last report of one replica, as stored by the collector and returned to readers."""

    replica: Annotated[int, Meta(ge=0, le=100_000)]
    state: ReplicaState
    url: Annotated[str, Meta(max_length=2048)] | None = None
    http_status: int | None = None
    restarts: Annotated[int, Meta(ge=0)] = 0
    watchdog_pid: int | None = None
    engine_pid: int | None = None
    node: Annotated[str, Meta(max_length=256)] | None = None
    reason: Annotated[str, Meta(max_length=4096)] | None = None
    exit_code: int | None = None
    requests_running: float | None = None
    requests_waiting: float | None = None
    prompt_tokens: Annotated[float, Meta(ge=0)] | None = None  # since the engine started
    generated_tokens: Annotated[float, Meta(ge=0)] | None = None
    kv_cache_usage: Annotated[float, Meta(ge=0)] | None = None  # 1: full
    loading: bool = False  # not ready yet, and its engine prints or reads from its disk
    sampled_at: float | None = None  # when the engine said so; seconds of the watchdog's clock
    sample_age_s: Annotated[float, Meta(ge=0)] | None = None  # how long before the report that was
    tokens_per_s: float | None = None  # generated; set by the collector, from two samples
    incarnation: Annotated[str, Meta(max_length=64)]  # one per watchdog process
    sequence: Annotated[int, Meta(ge=0)]  # counts up within an incarnation
    reported_at: datetime | None = None  # set by the collector, its own clock
