"""The watchdogs of a swarm on this machine: starting them, and starting those again that were
killed, which nobody else would do.
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
_TOLD_TO_END = frozenset({*FINAL_REPLICA_STATES, ReplicaState.DRAINING})


def start_watchdog(
    paths: SwarmPaths, replica: int, gpus: HeldGpus, interpreter: str, env: Mapping[str, str]
) -> ProcessId:
    """Start the watchdog of a replica, whose spec has been written. It gets the locks of its GPUs,
    and `env`, in which the swarm's tag is, beside the environment of this process.

    Raises:
        PlatformError: the machine cannot start it.
    """
    argv = [interpreter, str(paths.watchdog_program), str(paths.watchdog_spec(replica))]
    env = {**env, **gpus.env, processes.PART: f"replica-{replica}"}
    return processes.spawn(argv, env, paths.watchdog_log(replica), gpus.files)


@contextlib.contextmanager
def turn_to_start(paths: SwarmPaths) -> Iterator[None]:
    """Whoever looks which replicas run, and starts others, does so while nobody else does: no
    replica has two watchdogs.

    Raises:
        OSError: the swarm's folder cannot be written to.
    """
    with paths.starting.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def running(tag: str) -> dict[int, ProcessId]:
    """The watchdogs of a swarm that run, by their replicas."""
    found = {}
    for process, environment in processes.carrying(processes.TAG, tag).items():
        kind, _, index = environment.get(processes.PART, "").partition("-")
        if kind == "replica" and processes.leads_a_session(process):
            found[int(index)] = process
    return found


def start_missing(paths: SwarmPaths, tag: str, replicas: Collection[int]) -> None:
    """Start the watchdogs of these replicas, but for those that run. Their specs have been written.

    Raises:
        PlatformError: too few GPUs are free, or the machine cannot start one.
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
    """Tell the watchdogs of these replicas to drain and end."""
    found = running(tag)
    processes.send([found[one] for one in replicas if one in found], signal.SIGTERM)


def gpus_per_replica(paths: SwarmPaths) -> int:
    """What the swarm's plan says."""
    plan = DeploymentPlan.model_validate_json(paths.plan.read_text("utf-8"))
    return plan.layout.gpus_per_replica


class KilledWatchdogs:
    """Starts watchdogs again that ended without a word: they were killed, or failed themselves. One
    that was told to end, or gave up its engine, has said so to the collector: its view shows that,
    if it was taken after the end.
    """

    def __init__(self, paths: SwarmPaths, tag: str, clock: Clock = time) -> None:
        self._paths = paths
        self._tag = tag
        self._clock = clock
        self._gone_at: dict[int, datetime] = {}  # when it was first seen that one is gone
        self._restarts: dict[int, RestartBudget] = {}

    def start_again(self, replicas: Collection[int]) -> None:
        """Look at these replicas. What a killed watchdog left of its engine is killed;
        one that cannot be started now is tried again.

        Raises:
            OSError: the swarm's folder cannot be used.
        """
        view = last_view(self._paths)
        if view is None or view.tag != self._tag:
            return
        for report in view.replicas:
            index, pid = report.replica, report.watchdog_pid
            known = index in replicas and report.state not in _TOLD_TO_END and pid is not None
            if not known or processes.carries(pid or 0, processes.TAG, self._tag):
                self._gone_at.pop(index, None)
            elif view.taken_at > self._gone_at.setdefault(index, utc_now()):
                self._gone_at[index] = utc_now()
                with turn_to_start(self._paths):
                    self._start_again(index, pid or 0)

    def _start_again(self, replica: int, killed: int) -> None:
        found = processes.carrying(processes.TAG, self._tag)
        part = f"replica-{replica}"
        left = [one for one, env in found.items() if env.get(processes.PART) == part]
        if any(processes.leads_a_session(one) for one in left):
            return  # its successor, which has not reported yet
        processes.send(left, signal.SIGKILL)
        restarts = self._restarts.setdefault(replica, RestartBudget(_RESTARTS))
        if restarts.exhausted(self._clock.monotonic()):
            return
        try:
            with held_gpus(gpus_per_replica(self._paths), [replica], self._paths.root.name) as gpus:
                tagged = {processes.TAG: self._tag}
                one = start_watchdog(self._paths, replica, gpus[replica], sys.executable, tagged)
        except PlatformError as error:
            _log.warning("replica %d has no watchdog: %s", replica, error.message)
            return
        restarts.take(self._clock.monotonic())
        _log.warning("watchdog %d of replica %d was killed; %d follows", killed, replica, one.pid)
