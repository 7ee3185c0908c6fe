"""The replicas of an array task: `python -m domyn_swarm.backends.slurm.replica_task DIR PER_TASK`.

Starts a watchdog for each replica of the task, inside the container if there is one; for a replica
on several nodes, on the first of them, and the engine's other parts on the others. Before the time
limit the replicas drain, and the task is requeued; likewise when one of its nodes is lost. A
watchdog that is killed, or fails itself, is restarted with its engine. A task that is killed, or
whose watchdogs fail repeatedly, leaves a file: see `recovery`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from domyn_swarm.backends.gpus import visible_gpus
from domyn_swarm.backends.slurm.containers import LIFELINE, inside, loses_signals, whole_share
from domyn_swarm.backends.slurm.node_address import node_address
from domyn_swarm.backends.slurm.recovery import ENDED, LostEndpoint
from domyn_swarm.backends.slurm.task import (
    Child,
    Task,
    begin,
    come_back,
    died,
    open_log,
)
from domyn_swarm.backends.slurm.task_plan import TaskPlan, read_task_plan
from domyn_swarm.errors import SwarmError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, private_file, write_private

_log = get_logger(__name__)

_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - where the other nodes come from
_NODE_PORTS_FROM = 29_500
NODE_PORT = "DOMYN_SWARM_NODE_PORT"  # where a replica's other nodes reach its first one


class ReplicaTask:
    """A task of the array, on the first of its nodes."""

    def __init__(self, paths: SwarmPaths, plan: TaskPlan, group: int, per_task: int) -> None:
        self._paths = paths
        self._plan = plan
        self._group = group
        self._per_task = per_task
        self._job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{group}"
        self._address = node_address()
        self._task = Task()
        self._endpoint = LostEndpoint(paths)
        self._logs = contextlib.ExitStack()

    def run(self) -> int:
        """Run until all replicas have ended; return the exit code."""
        self._note_at_work()
        given = os.environ.get("SLURM_JOB_START_TIME", "")
        began = float(given) if given.isdecimal() else time.time()
        self._note_allocation(began=began, replicas=[*self._replicas])
        try:
            code = self._serve()
        except SwarmError:  # its settings are wrong, and stay so; other errors count as a kill
            self._note_at_work(ENDED)
            raise
        self._note_allocation(ended=time.time())  # a task that is being requeued is killed
        self._come_back()
        self._leave_node(code)
        if not died(code) or self._task.signalled:
            self._note_at_work(ENDED)
        self._note_allocation(ended=time.time())
        return code

    @property
    def _replicas(self) -> range:
        first = self._group * self._per_task
        return range(first, min(first + self._per_task, self._plan.replicas))

    def _note_allocation(self, **line: object) -> None:
        """Record the allocation in the swarm's ledger, beside the records of the replicas'
        watchdogs.
        """
        try:
            spec = json.loads(self._paths.watchdog_spec(self._replicas[0]).read_text("utf-8"))
            file = Path(spec["ledger_file"]).with_name(f"task-{self._group}.jsonl")
            with private_file(file).open("ab") as ledger:
                ledger.write(json.dumps({"job": self._job, **line}).encode() + b"\n")
        except (OSError, LookupError, ValueError) as error:  # the replica serves without it
            _log.warning("the ledger lacks an allocation of task %d: %r", self._group, error)

    def _leave_node(self, code: int) -> None:
        """Leave a file if the engine does not get ready on this node: the endpoint program may try
        another.
        """
        if code in (0, 1) or self._task.signalled:
            return
        from domyn_swarm.watchdog import ELSEWHERE  # here: its imports cost more than a task's

        if code == ELSEWHERE:
            word = f"{self._job} {os.environ['SLURMD_NODENAME']}"
            write_private(self._paths.elsewhere(self._group), word)

    def _serve(self) -> int:
        first = self._group * self._per_task
        with self._logs:
            shared = self._join_nodes(first) if self._plan.nodes_per_replica > 1 else {}
            for index in self._replicas:
                self._start_watchdog(index, {**shared, **self._gpus(index - first)})
            code = self._task.wait(self._look_for_endpoint)
        _log.info("task %d: its watchdogs ended with %d", self._group, code)
        return code

    def _look_for_endpoint(self) -> None:
        """Check on the endpoint: GPUs are not held for one that is not resubmitted."""
        self._endpoint.look()
        if self._endpoint.over:
            self._task.end()

    def _note_at_work(self, how: str = "") -> None:
        try:
            write_private(self._paths.at_work(self._group), f"{self._job}{how}")
        except OSError as error:  # a full disk does not end it
            _log.warning(
                "how task %d ends cannot be recorded, and looks like a kill: %s", self._group, error
            )

    def _gpus(self, place: int) -> dict[str, str]:
        """The GPUs of a replica. The scheduler binds those of the task; its replicas divide
        them.
        """
        if self._per_task == 1:
            return {}
        return visible_gpus(self._plan.gpus_per_replica, place)

    def _start_watchdog(self, index: int, env: dict[str, str]) -> None:
        log = self._logs.enter_context(open_log(self._paths.watchdog_log(index)))
        spec_file = str(self._paths.watchdog_spec(index))
        command = self._inside(str(self._paths.watchdog_program), spec_file, self._address)
        _log.info("replica %d on %s: %s", index, self._address, " ".join(command))
        alone = self._plan.nodes_per_replica == 1  # else its nodes start together
        lifeline = loses_signals(self._plan)
        self._task.start(Child(command, env, log, again=alone, lifeline=lifeline))

    def _join_nodes(self, index: int) -> dict[str, str]:
        """Start the parts on the replica's other nodes, and what the first node needs for them."""
        port = str(self._node_port())
        if self._paths.companion_spec.exists():
            log = self._logs.enter_context(open_log(self._paths.node_log(index, 0)))
            spec_file = str(self._paths.companion_spec)
            command = self._inside(
                str(self._paths.follower_program), spec_file, self._address, port, "0"
            )
            lifeline = loses_signals(self._plan)
            self._task.start(Child(command, {}, log, companion=True, lifeline=lifeline))
        others = self._plan.nodes_per_replica - 1
        step = [
            *("srun", *whole_share(), f"--nodes={others}", f"--ntasks={others}"),
            *("--ntasks-per-node=1", f"--exclude={os.environ['SLURMD_NODENAME']}"),
            *("--kill-on-bad-exit=0", "--wait=0", "--input=none", "--quiet"),
            *(sys.executable, "-m", "domyn_swarm.backends.slurm.node_task"),
            *(str(self._paths.root), str(index), self._address, port),
        ]
        log = self._logs.enter_context(open_log(self._paths.node_log(index, 0)))
        _log.info("replica %d on %d more nodes: %s", index, others, " ".join(step))
        self._task.start(Child(step, {}, log, companion=True))
        return {NODE_PORT: port}

    def _node_port(self) -> int:
        """A port of this node that no other task or watchdog of this user is given while this task
        runs, below the range from which the system assigns ports to connections.
        """
        if self._plan.requires_ray:
            return self._plan.ray_port
        from domyn_swarm.watchdog import Ports  # here: its imports cost more than a task's

        self._ports = Ports(_EVERY_ADDRESS)  # its locks last as long as it does
        return self._ports.pick(_NODE_PORTS_FROM)

    def _inside(self, *program: str) -> list[str]:
        lifeline = [LIFELINE] if loses_signals(self._plan) else []
        return inside(self._plan, [*program, *lifeline], self._paths)

    def _come_back(self) -> None:
        """Return the task to the queue: by requeueing, or by a successor, which the endpoint
        program submits.
        """
        come_back(
            self._task,
            self._job,
            by_requeue=self._plan.requeue,
            successor=lambda: write_private(self._paths.expired(self._group), self._job),
        )


def main(swarm_dir: str, per_task: int) -> int:
    """Run the replicas of this array task; return the exit code."""
    begin()
    paths = SwarmPaths(Path(swarm_dir))
    plan = read_task_plan(paths)
    return ReplicaTask(paths, plan, int(os.environ["SLURM_ARRAY_TASK_ID"]), per_task).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
