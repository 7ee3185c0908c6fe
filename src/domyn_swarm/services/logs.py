"""Which logs there are, and their lines: what `logs` and `job logs` show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from domyn_swarm.errors import JobNotFound, StateError
from domyn_swarm.model import JobHandle
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.services.log_reader import Log, LogReader
from domyn_swarm.services.requests import LogRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import rehydrate
from domyn_swarm.swarm.submitter import JobSubmitter
from domyn_swarm.swarm.whereabouts import is_elsewhere

# As `watchdog.log` has it; other lines of a watchdog are about its own work.
_STATE = re.compile(
    r"\S+Z (starting|ready|unhealthy|restarting|draining|exited|failed)( \w+=|\s*$)"
)


def swarm_logs(request: LogRequest, store: SwarmStore | None = None) -> Iterator[str]:
    """The last lines of a swarm's logs; with `follow` new ones until the swarm has ended.

    Raises:
        SwarmNotFound, JobNotFound: there is none of that name.
        StateError: there is no such log; or no swarm was named, and not exactly one is live.
        PlatformError: the platform has it and does not give it.
    """
    store = store or SwarmStore.open()
    if request.source == "job":
        job = store.job(request.job_id or "")
        if request.name not in (None, job.swarm):
            record = store.swarm(request.name)
            raise JobNotFound(
                f"The job {job.job_id} is not one of {record.name}.",
                hint=f"It is of {job.swarm or 'no swarm'}: domyn-swarm job logs {job.job_id}",
            )
        return job_log(job.job_id, last_lines=request.last_lines, follow=request.follow)
    record = store.swarm(request.name or SwarmService(store).only_live())
    swarm = rehydrate(record)
    paths = swarm.paths
    if request.source == "replica" and record.phase.live and not is_elsewhere(record):
        whole = range(swarm.plan.layout.replicas)
        wanted = whole if request.replica is None else [request.replica]
        swarm.backend.fetch_logs(swarm.handle, wanted, follow=request.follow)

    def logs() -> Sequence[Log]:
        return _logs_of(paths, request)

    if not request.follow and not any(log.path.exists() for log in logs()):
        raise _no_log(f"of {record.name}", paths.logs)
    ended = _until_over(store, record) if request.follow else None
    return LogReader(logs, request.last_lines, ended).lines()


def job_log(
    ref: str | JobHandle, *, last_lines: int, follow: bool = False, store: SwarmStore | None = None
) -> Iterator[str]:
    """The last lines of a job's log; with `follow` new ones until the job has ended.

    Raises:
        JobNotFound: there is none of that id.
        StateError: it has written none yet (without `follow`).
    """
    store = store or SwarmStore.open()
    record = store.job(ref.job_id if isinstance(ref, JobHandle) else ref)
    path = JobPaths(Path(record.job_dir)).log
    JobSubmitter(store).fetch_log(record.job_id, follow=follow)
    if not follow and not path.exists():
        raise _no_log(f"of the job {record.job_id}", path)
    ended = _until_ended(store, record) if follow else None
    return LogReader(lambda: [Log(path, "")], last_lines, ended).lines()


def _until_over(store: SwarmStore, record: SwarmRecord) -> Callable[[], bool]:
    def over() -> bool:
        """Whether it has ended, or its name is another swarm's."""
        now = store.swarm(record.name)
        return now.tag != record.tag or not now.phase.live

    return over


def _until_ended(store: SwarmStore, record: JobRecord) -> Callable[[], bool]:
    submitter = JobSubmitter(store)
    return lambda: submitter.refresh(store.job(record.job_id)).status.final


def _no_log(whose: str, place: Path) -> StateError:
    return StateError(f"There is no such log {whose}.", hint=f"See what there is at {place}.")


def _logs_of(paths: SwarmPaths, request: LogRequest) -> list[Log]:
    if request.source == "endpoint":
        return [Log(paths.endpoint_log, "endpoint"), Log(paths.router_log, "router", "router")]
    known = _replicas(paths)
    wanted = known if request.replica is None else [request.replica]
    several = len(wanted) > 1 or (request.replica is None and request.follow)
    found = []
    for index in wanted:
        name = f"replica {index}" if several else ""
        if request.source == "watchdog":
            found.append(Log(paths.watchdog_log(index), name, str(index)))
            continue
        watchdog = f"{name} watchdog".strip()
        found.append(Log(paths.engine_log(index), name, str(index)))
        found.append(Log(paths.watchdog_log(index), watchdog, str(index), _tells_state))
    return found


def _tells_state(line: str) -> bool:
    return _STATE.match(line) is not None


def _replicas(paths: SwarmPaths) -> list[int]:
    """Those that have written something, also the ones that were taken out meanwhile."""
    folders = paths.replica_logs(0).parent.glob("*")
    return sorted(int(one.name) for one in folders if one.name.isdecimal())
