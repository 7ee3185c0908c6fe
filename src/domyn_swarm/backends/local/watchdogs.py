"""Starts the watchdogs of a swarm on this machine, and starts killed watchdogs again: here no
scheduler does so.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from domyn_swarm.backends.endpoint.view import last_view
from domyn_swarm.backends.gpus import HeldGpus, held_gpus
from domyn_swarm.backends.local import processes
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import FINAL_REPLICA_STATES, ProcessId, ReplicaState, utc_now
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.probing import Clock
from domyn_swarm.restart_budget import RestartBudget, RestartPolicy

_log = get_logger(__name__)

_RESTARTS = RestartPolicy(most=3, within_s=3600.0)  # of the watchdog of one replica
_ENDS_BY_ITSELF = frozenset({*FINAL_REPLICA_STATES, ReplicaState.DRAINING})


def start_watchdog(
    paths: SwarmPaths, replica: int, gpus: HeldGpus, interpreter: str, env: Mapping[str, str]
) -> ProcessId:
    """Start the watchdog of a replica. Its spec must have been written.

    The watchdog inherits the locks of its GPUs, and the environment of this process with `env`,
    which must contain the swarm's tag.

    Raises:
        PlatformError: the machine cannot start it.
    """
    argv = [interpreter, str(paths.watchdog_program), str(paths.watchdog_spec(replica))]
    env = {**env, **gpus.env, processes.PART: f"replica-{replica}"}
    return processes.spawn(argv, env, paths.watchdog_log(replica), gpus.files)


@contextlib.contextmanager
def turn_to_start(paths: SwarmPaths) -> Iterator[None]:
    """Hold the lock for checking which replicas run and starting others, so that no replica gets
    two watchdogs.

    Raises:
        OSError: the swarm's folder cannot be written to.
    """
    with paths.starting.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def running(tag: str) -> dict[int, ProcessId]:
    """The running watchdogs of a swarm, by replica."""
    watchdogs = {}
    for process, environment in processes.carrying(processes.TAG, tag).items():
        kind, _, index = environment.get(processes.PART, "").partition("-")
        if kind == "replica" and processes.leads_a_session(process):
            watchdogs[int(index)] = process
    return watchdogs


def start_missing(paths: SwarmPaths, tag: str, replicas: Collection[int]) -> None:
    """Start the watchdogs of the replicas that do not run. Their specs must have been written.

    Raises:
        PlatformError: too few GPUs are free, or the machine cannot start a watchdog.
        OSError: the swarm's folder cannot be used.
    """
    gpus_each = gpus_per_replica(paths)
    with turn_to_start(paths):
        missing = sorted(set(replicas) - running(tag).keys())
        for replica in missing:
            with held_gpus(gpus_each, [replica], paths.root.name) as gpus:
                tagged = {processes.TAG: tag}
                start_watchdog(paths, replica, gpus[replica], sys.executable, tagged)


def end_watchdogs(tag: str, replicas: Collection[int]) -> None:
    """Send SIGTERM to the watchdogs of these replicas, which then drain and end."""
    watchdogs = running(tag)
    ending = [watchdogs[replica] for replica in replicas if replica in watchdogs]
    processes.send(ending, signal.SIGTERM)


def gpus_per_replica(paths: SwarmPaths) -> int:
    """The number of GPUs per replica in the swarm's plan."""
    plan = DeploymentPlan.model_validate_json(paths.plan.read_text("utf-8"))
    return plan.layout.gpus_per_replica


class KilledWatchdogs:
    """Restarts watchdogs that were killed or crashed.

    A watchdog that ends as requested, or gives up its engine, reports so to the collector before.
    The collector's view shows that report, if the view was taken after the watchdog's end.
    """

    def __init__(self, paths: SwarmPaths, tag: str, clock: Clock = time) -> None:
        self._paths = paths
        self._tag = tag
        self._clock = clock
        self._missing_since: dict[int, datetime] = {}  # when its watchdog was first missing
        self._restarts: dict[int, RestartBudget] = {}

    def start_again(self, replicas: Collection[int]) -> None:
        """Restart the killed watchdogs of these replicas, after killing what is left of their
        engines. A watchdog that cannot be started now is started by a later call.

        Raises:
            OSError: the swarm's folder cannot be used.
        """
        view = last_view(self._paths)
        if view is None or view.tag != self._tag:
            return
        for report in view.replicas:
            index, pid = report.replica, report.watchdog_pid
            expected = index in replicas and report.state not in _ENDS_BY_ITSELF and pid is not None
            if not expected or processes.carries(pid or 0, processes.TAG, self._tag):
                self._missing_since.pop(index, None)
            elif view.taken_at > self._missing_since.setdefault(index, utc_now()):
                self._missing_since[index] = utc_now()
                with turn_to_start(self._paths):
                    self._start_again(index, pid or 0)

    def _start_again(self, replica: int, killed: int) -> None:
        tagged = processes.carrying(processes.TAG, self._tag)
        part = f"replica-{replica}"
        left = [process for process, env in tagged.items() if env.get(processes.PART) == part]
        if any(processes.leads_a_session(process) for process in left):
            return  # a successor runs that has not reported yet
        processes.send(left, signal.SIGKILL)
        restarts = self._restarts.setdefault(replica, RestartBudget(_RESTARTS))
        if restarts.exhausted(self._clock.monotonic()):
            return
        try:
            with held_gpus(gpus_per_replica(self._paths), [replica], self._paths.root.name) as gpus:
                env = {processes.TAG: self._tag}
                successor = start_watchdog(self._paths, replica, gpus[replica], sys.executable, env)
        except PlatformError as error:
            _log.warning("replica %d has no watchdog: %s", replica, error.message)
            return
        restarts.take(self._clock.monotonic())
        _log.warning(
            "watchdog %d of replica %d was killed; %d follows", killed, replica, successor.pid
        )
