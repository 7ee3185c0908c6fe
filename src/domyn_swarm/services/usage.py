"""`UsageService`: what GPUs were used for, by swarm, replica, job and user.

For a running swarm this is computed from the records of its programs, its jobs and its scheduler.
Once it is over the spans are stored outside its folder, and stay when that is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from domyn_swarm.backends import gpu_time, ledger, ledger_files
from domyn_swarm.backends.gpu_time import Span
from domyn_swarm.backends.job_end import read_exit
from domyn_swarm.backends.ledger import SwarmEntry
from domyn_swarm.backends.ledger_files import PlatformTimes, Written
from domyn_swarm.backends.platforms import scheduler
from domyn_swarm.backends.slurm.queue import any_replicas_name
from domyn_swarm.errors import (
    JobNotFound,
    PlatformError,
    PlatformUnavailable,
    StateError,
    SwarmNotFound,
)
from domyn_swarm.logs import get_logger
from domyn_swarm.model import utc_now
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.services.kept_spans import keep_spans, read_spans
from domyn_swarm.services.usage_report import Energy, SwarmSpans, UsageReport, UsageSums, Used
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.snapshot import Usage
from domyn_swarm.swarm.swarm_folder import user_name
from domyn_swarm.swarm.whereabouts import is_elsewhere

_log = get_logger(__name__)

_KEPT = "spans.jsonl"
_QUICK_BYTES = 4_000_000  # bytes of a ledger that are read for a display


class UsageService:
    """The operations that `usage`, `status`, reports and Python use."""

    def __init__(
        self, store: SwarmStore | None = None, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._given = store
        self._clock = clock

    @property
    def _store(self) -> SwarmStore:
        if self._given is None:
            self._given = SwarmStore.open()
        return self._given

    def usage(
        self,
        *,
        swarm: str | None = None,
        job: str | None = None,
        user: str | None = None,
        since: datetime | None = None,
        tag: str | None = None,
    ) -> UsageReport:
        """What GPUs of this home's swarms were used for, including swarms that were removed.

        Args:
            swarm: only swarms that had this name at any time.
            job: only time spent on this job, or waiting for it; by its id or external id.
            user: only this user's: see `UserUsage`.
            since: only time after that moment.
            tag: only the swarm that carries it.

        Raises:
            SwarmNotFound: no swarm ever had that name, or none since the ledger is kept.
            JobNotFound: no swarm worked for such a job.
            StateError: the ledger has no entry of that user.
        """
        now = self._clock()
        unread: list[str] = []
        chosen = self._chosen(swarm, tag, unread)
        wanted = None if job is None else self._job_id(job)
        swarms = []
        for entry in chosen:
            try:
                swarms.append(self.swarm_spans(entry, now))
            except (OSError, ValueError) as error:
                unread.append(f"{entry.name}: {error}")
        sums = UsageSums(since)
        for swarm_spans in swarms:
            sums.add(swarm_spans, wanted, user)
        if job is not None and not sums.jobs and not unread:
            raise JobNotFound(
                f"No swarm has worked for a job {job!r} yet.", hint="See `domyn-swarm job list`."
            )
        if user is not None and not sums.users and not unread:
            raise StateError(
                f"The ledger has no entry of the user {user!r}.",
                hint="`domyn-swarm usage --json` names them under `users`.",
            )
        return sums.report(now, unread, only=wanted is not None or user is not None)

    def _chosen(
        self, swarm: str | None, tag: str | None, unread: list[str] | None = None
    ) -> list[SwarmEntry]:
        entries = ledger.entries(unread)
        if tag is not None:
            return [one for one in entries if one.tag == tag]
        if swarm is None:
            return entries
        chosen = [one for one in entries if one.name == swarm]
        if not chosen:
            known = self._store.swarms(include_stopped=True)
            if any(one.name == swarm for one in known):
                raise StateError(
                    f"There is no ledger of {swarm!r}: an earlier version brought it up, or it "
                    "runs on Lepton.",
                    hint="Elsewhere than on Lepton it is kept from its next `domyn-swarm up` on.",
                )
            raise SwarmNotFound(swarm, {one.name for one in entries})
        return chosen

    def _job_id(self, ref: str) -> str:
        try:
            return self._store.job(ref).job_id
        except JobNotFound:  # removed with its swarm: the ledger has its id
            return ref

    def quick(self, tag: str) -> Usage | None:
        """The sum of one swarm, without asking a scheduler; None: there is too much to read,
        nothing, or it cannot be read.
        """
        try:
            for entry in self._chosen(None, tag):
                if not self._is_small(entry):
                    return None
                sums = UsageSums(None)
                sums.add(self.swarm_spans(entry, ask=False), None, None)
                return sums.report(self._clock(), (), only=False).total
        except (OSError, ValueError) as error:
            _log.info("the ledger of %s cannot be read: %s", tag, error)
        return None

    @staticmethod
    def _is_small(entry: SwarmEntry) -> bool:
        """Whether the records of its programs are read in no noticeable time."""
        folder = ledger.written_folder(SwarmPaths(Path(entry.swarm_dir)), entry.tag)
        return ledger_files.size_bytes(folder) <= _QUICK_BYTES

    def spans(self, swarm: str, begin: float, end: float) -> dict[int, list[Span]]:
        """The time of replicas of swarms of a name between two moments; empty if no ledger can be
        read. No scheduler is asked.
        """
        found: dict[int, list[Span]] = {}
        for entry in ledger.entries():
            if entry.name != swarm or entry.created_at.timestamp() > end:
                continue
            try:
                swarm_spans = self.swarm_spans(entry, ask=False)
            except (OSError, ValueError) as error:
                _log.info("the ledger of %s cannot be read: %s", swarm, error)
                continue
            for replica, spans in swarm_spans.spans.items():
                for one in spans:
                    cut = one._replace(begin=max(begin, one.begin), end=min(end, one.end))
                    if cut.end > cut.begin:
                        found.setdefault(replica, []).append(cut)
        return found

    # -- one swarm -----------------------------------------------------------------------------

    def swarm_spans(
        self, entry: SwarmEntry, now: datetime | None = None, *, ask: bool = True
    ) -> SwarmSpans:
        """The time of a swarm's replicas; once it is over that is stored. Without `ask` no
        scheduler is asked.

        Raises:
            OSError, ValueError: the stored spans cannot be read.
        """
        kept = ledger.entry_folder(entry.tag) / _KEPT
        if kept.exists():
            return read_spans(entry, kept)
        moment = now or self._clock()
        record = self._record(entry)
        live = record is not None and record.phase.live
        swarm_spans, settled = self._gathered(entry, record, moment.timestamp(), live=live, ask=ask)
        if ask and settled and not live:
            keep_spans(kept, swarm_spans)
        return swarm_spans

    def keep(self, tag: str) -> None:
        """Store the spans of a swarm that has just ended, if they are complete, and quick to read;
        otherwise the next caller does. Never raises: the swarm has ended.
        """
        try:
            for entry in self._chosen(None, tag):
                if self._is_small(entry):
                    self.swarm_spans(entry)
        except (OSError, ValueError) as error:
            _log.warning("the usage of %s is not stored yet: %s", tag, error)

    def settle(self, tag: str) -> None:
        """Store what is known of a swarm that is over and about to be removed, unless it is stored.

        Raises:
            OSError: it cannot be written.
        """
        for entry in self._chosen(None, tag):
            kept = ledger.entry_folder(tag) / _KEPT
            if not kept.exists():
                now = self._clock().timestamp()
                record = self._record(entry)
                swarm_spans, _ = self._gathered(entry, record, now, live=False, ask=True)
                keep_spans(kept, swarm_spans)

    def _record(self, entry: SwarmEntry) -> SwarmRecord | None:
        try:
            record = self._store.swarm(entry.name)
        except SwarmNotFound:
            return None
        return record if record.tag == entry.tag else None

    def _gathered(
        self, entry: SwarmEntry, record: SwarmRecord | None, now: float, *, live: bool, ask: bool
    ) -> tuple[SwarmSpans, bool]:
        """The spans known now, and whether they are complete."""
        written = ledger_files.read(
            ledger.written_folder(SwarmPaths(Path(entry.swarm_dir)), entry.tag)
        )
        reported, sure = _told(entry, record, written) if ask else (ledger_files.NOTHING, False)
        runs = ledger_files.allocations(written, now, reported)
        goes_on = any(one.end is None for spans in runs.values() for one in spans)
        over_at = None
        if not live:
            ends = [one.end or now for spans in runs.values() for one in spans]
            ended = record.updated_at.timestamp() if record else entry.created_at.timestamp()
            over_at = now if goes_on else max([ended, *ends])
        wanted = ledger.wanted(entry.tag, now if over_at is None else over_at)
        jobs = self._jobs(entry, over_at)
        asking = [one for job in jobs for one in _asking(job, entry, now)]
        together = gpu_time.demand(asking)
        spans: dict[int, list[Span]] = {}
        used: dict[int, list[Used | None]] = {}
        for replica in sorted({*runs, *wanted}):
            own, watches = runs.get(replica, []), written.watches.get(replica, ())
            failed = bool(watches) and watches[-1].over
            gpus = written.gpus.get(replica, entry.gpus_per_replica)
            waits = gpu_time.queued(wanted.get(replica, []), own, failed=failed or not live)
            held = gpu_time.classify(own, watches, together, now)
            energy = Energy(watches)
            both = [*(one._replace(gpus=gpus) for one in waits), *held]
            whole = sorted(both, key=lambda one: one.begin)
            spans[replica] = whole
            used[replica] = [energy.used(one.begin, one.end) for one in whole]
        owners = {job.job_id: (job.name, _owner(job, entry)) for job in jobs}
        counted = {replica: len(own) for replica, own in runs.items()}
        swarm_spans = SwarmSpans(entry, spans, used, counted, owners, live or goes_on)
        return swarm_spans, sure and not goes_on

    def _jobs(self, entry: SwarmEntry, over_at: float | None) -> list[JobRecord]:
        """The jobs of a swarm, without those of other swarms that had its name."""
        return [
            job
            for job in self._store.jobs(entry.name)
            if ((ended_at := _ended_at(job)) is None or ended_at >= entry.created_at)
            and (over_at is None or job.submitted_at.timestamp() <= over_at)
            and JobPaths(Path(job.job_dir)).spec.exists()  # a script has no rows
        ]


def _told(
    entry: SwarmEntry, record: SwarmRecord | None, written: Written
) -> tuple[PlatformTimes, bool]:
    """The scheduler's times of the swarm's tasks, and whether they are final."""
    arrays = {one.job.partition("_")[0] for one in written.tasks}
    if record is not None:
        ids = [str(part["platform_id"]) for part in record.parts if part["kind"] == "replica"]
        arrays |= {one.partition("_")[0] for one in ids}
    if entry.backend != "slurm" or not arrays:
        return ledger_files.NOTHING, True
    if record is not None and is_elsewhere(record):
        return ledger_files.NOTHING, False
    slurm = scheduler()
    live = None
    try:
        tasks = {one.job for one in written.tasks}
        known = slurm.jobs([*tasks])
        live = frozenset(one for one, job in known.items() if job.going)
    except PlatformError as error:
        _log.info("the queue does not answer: %s", error.message)
    try:
        runs = slurm.runs(sorted(arrays), any_replicas_name(entry.tag))
    except PlatformError as error:
        _log.info("accounting does not answer: %s", error.message)
        return PlatformTimes({}, live), live is not None
    ends = [end for spans in runs.values() for _, end in spans]
    whole = all(one.job in runs for one in written.tasks) and None not in ends
    return PlatformTimes(runs, live), whole


def _ended_at(job: JobRecord) -> datetime | None:
    """When a job ended, even if nothing has updated its record since."""
    if job.ended_at is not None or job.handle is None:
        return job.ended_at
    try:
        ended = read_exit(Path(job.handle.exit_path))
    except (PlatformUnavailable, ValueError):  # unreadable or damaged: its end is not known
        return None
    return ended.ended_at if ended is not None and ended.conclusive else None


def _asking(job: JobRecord, entry: SwarmEntry, now: float) -> list[gpu_time.Asking]:
    """The demand of a job on a swarm. A job of an earlier swarm of the name may have died with it;
    it has none before it reported again.
    """
    from domyn_swarm.services.time_series import (  # here: `down` and `list` need neither
        asking_of,
        read_trace,
    )

    ended_at, created = _ended_at(job), entry.created_at.timestamp()
    ended = None if ended_at is None else ended_at.timestamp()
    runs = [run for run in read_trace(Path(job.job_dir)) if run]
    if job.submitted_at < entry.created_at and not any(run[-1].at >= created for run in runs):
        return []
    return asking_of(job.job_id, runs, job.submitted_at.timestamp(), ended, now)


def _owner(job: JobRecord, entry: SwarmEntry) -> str:
    try:
        return user_name(Path(job.job_dir).stat().st_uid)
    except OSError:
        return entry.user
