"""How a task keeps its programs, heeds a warning, and comes back: in virtual time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from domyn_swarm import watchdog
from domyn_swarm.backends.slurm import replica_task
from domyn_swarm.backends.slurm.endpoint_task import end_jobs, keep_running
from domyn_swarm.backends.slurm.replica_task import ReplicaTask
from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.backends.slurm.task import Task, come_back, open_log
from domyn_swarm.backends.slurm.task_plan import TaskPlan
from domyn_swarm.errors import CommandMissing
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.watchdog import LOST_NODE
from patience import limit_s, until
from slurm.programs import FOR_EVER, KILLED, Life, Programs
from slurm.scripted import ScriptedCluster, ScriptedSlurm
from slurm.scripted_swarm import ScriptedSwarm
from virtual_time import FilingClock

HOUR_S = 3600.0
LONG = """
import sys, threading, traceback
from pathlib import Path
from domyn_swarm.backends.slurm.task import Child, Task
from domyn_swarm.probing import comes_true

def before_end():
    handler = any(one.name == "_on_signal" for one in traceback.extract_stack())
    with open({folder!r} + "/begun", "a") as file:
        where = "in a handler" if handler else "in no handler"
        file.write(f"once\\n{{threading.current_thread().name}}, {{where}}\\n")
    comes_true(lambda: task.cancelled, within_s={limit_s!r}, every_s=0.1)

task = Task(before_end)
task.start(Child({child!r}, {{}}, sys.stderr.buffer))
sys.exit(task.wait())
"""


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def programs(clock: FilingClock) -> Programs:
    return Programs(clock)


@pytest.fixture
def task(clock: FilingClock, programs: Programs) -> Task:
    return Task(clock=clock, start=programs.start)


def warn() -> None:
    """Slurm's, some time before the time limit."""
    signal.raise_signal(signal.SIGUSR1)


def cancel() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_tasks_of_one_node_never_hand_out_one_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other nodes are told where the first one will listen, before it does."""
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(replica_task, "node_address", lambda: "n1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    plan = TaskPlan("m", None, 2, 1, 2, "none", (), {}, True, False, 6379)
    paths = SwarmPaths(tmp_path / "swarm")
    tasks = [ReplicaTask(paths, plan, group, 1) for group in range(3)]
    ports = [task._node_port() for task in tasks]
    assert len(set(ports)) == 3
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < low  # no connection of anybody's gets one
    assert ReplicaTask(paths, replace(plan, requires_ray=True), 0, 1)._node_port() == 6379


def test_a_task_that_itself_fails_looks_like_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of the engine: it has successors, a few."""
    monkeypatch.setattr(replica_task, "node_address", lambda: "n1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = TaskPlan("m", "image", 1, 1, 1, "apptainer", (), {}, True, False, 6379)
    paths = SwarmPaths(tmp_path / "swarm")
    with pytest.raises(FileNotFoundError):  # that program, on this node
        ReplicaTask(paths, plan, 0, 1).run()
    assert paths.at_work(0).read_text() == "1_0"


# -- programs ------------------------------------------------------------------------------------


def killed_after(*lives_s: float) -> list[Life]:
    return [(life_s, KILLED) for life_s in lives_s]


@pytest.mark.parametrize(
    ("lives", "again", "runs", "code"),
    [
        ([(60.0, 0)], True, 1, 0),
        ([(60.0, 3)], True, 1, 3),  # it failed, which is not to be killed
        ([(60.0, -signal.SIGTERM)], True, 1, 143),
        ([(60.0, watchdog.BROKEN), (60.0, 1)], True, 2, 1),  # it said that it failed itself
        ([(1.0, watchdog.BROKEN)] * 4, True, 4, watchdog.BROKEN),
        ([(60.0, -signal.SIGSEGV), (60.0, 0)], True, 2, 0),
        (killed_after(60), False, 1, 137),  # of several nodes, which begin together
        ([*killed_after(1), (60.0, 0)], True, 2, 0),
        ([*killed_after(1, 1, 1), (60.0, 0)], True, 4, 0),
        (killed_after(1, 1, 1, 1), True, 4, 137),
        (killed_after(1000, 1000, 1000, 599), True, 4, 137),  # within an hour of the first
        ([*killed_after(1000, 1000, 1000, 1601), (60.0, 0)], True, 5, 0),
        ([*killed_after(*[1201.0] * 10), (60.0, 0)], True, 11, 0),
        ([*killed_after(HOUR_S, 1, 1, 1, 1)], True, 4, 137),  # the hour counts from death to death
    ],
)
def test_a_program_that_is_killed_starts_again_three_times_within_an_hour(
    task: Task, programs: Programs, *, lives: list[Life], again: bool, runs: int, code: int
) -> None:
    task.start(programs.child("watchdog", *lives, again=again))
    assert task.wait() == code
    assert len(programs.runs["watchdog"]) == runs


def test_its_neighbours_run_on_meanwhile(task: Task, programs: Programs) -> None:
    task.start(programs.child("one", *killed_after(10), (50.0, 0), again=True))
    task.start(programs.child("other", (100.0, 0), again=True))
    assert task.wait() == 0
    assert [len(programs.runs[name]) for name in ("one", "other")] == [2, 1]
    assert programs.runs["other"][0].told == []


@pytest.mark.parametrize("told", [warn, cancel])
def test_what_is_killed_once_the_task_was_told_to_end_stays_down(
    task: Task, programs: Programs, clock: FilingClock, told: Callable[[], None]
) -> None:
    task.start(programs.child("watchdog", (10.05, KILLED), again=True))
    clock.after(9.95, told)
    assert task.wait() == 137
    assert len(programs.runs["watchdog"]) == 1


def test_a_program_that_starts_again_as_the_task_is_told_to_end_is_told_too(
    task: Task, programs: Programs
) -> None:
    programs.on_start = lambda _name: cancel() if len(programs.runs["watchdog"]) == 2 else None
    task.start(programs.child("watchdog", *killed_after(10), again=True))
    assert task.wait() == 143
    [_, second] = programs.runs["watchdog"]
    assert [number for _, number in second.told] == [signal.SIGTERM]


def test_a_companion_that_ends_is_the_end_of_all_and_a_lost_node(
    task: Task, programs: Programs
) -> None:
    task.start(programs.child("watchdog"))
    task.start(programs.child("srun", (30.0, 0), companion=True))
    assert task.wait() == 143
    assert task.goes_back
    assert 30 <= programs.runs["watchdog"][0].told[0][0] - programs.runs["srun"][0].began < 31


def test_companions_end_after_what_they_serve(task: Task, programs: Programs) -> None:
    task.start(programs.child("srun", companion=True))
    task.start(programs.child("watchdog", (30.0, 0)))
    assert task.wait() == 0
    assert not task.goes_back
    assert [number for _, number in programs.runs["srun"][0].told] == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("code", "signals", "back"),
    [
        (0, [], False),
        (1, [], False),
        (LOST_NODE, [], True),
        (0, [warn], True),
        (0, [warn, warn], True),
        (0, [cancel], False),
        (0, [warn, cancel], False),
        (LOST_NODE, [cancel], False),
    ],
)
def test_a_task_goes_back_for_its_time_limit_or_a_lost_node_alone(
    task: Task,
    programs: Programs,
    clock: FilingClock,
    *,
    code: int,
    signals: Sequence[Callable[[], None]],
    back: bool,
) -> None:
    task.start(programs.child("watchdog", (10.0, code)))
    for number, told in enumerate(signals):
        clock.after(9.0 + number / 10, told)
    task.wait()
    assert task.goes_back == back


# -- the warning ---------------------------------------------------------------------------------


class BeforeEnd:
    """Takes ten seconds, and remembers when it began."""

    def __init__(self, clock: FilingClock) -> None:
        self._clock = clock
        self.began: list[float] = []

    def __call__(self) -> None:
        self.began.append(self._clock.monotonic())
        self._clock.sleep(10.0)


def test_what_is_to_be_done_before_the_end_is_done_once_and_before_programs_are_told(
    clock: FilingClock, programs: Programs
) -> None:
    before_end = BeforeEnd(clock)
    task = Task(before_end, clock=clock, start=programs.start)
    task.start(programs.child("endpoint"))
    warned_at = clock.monotonic() + 50.0
    for seconds in (50.0, 53.0, 57.0):
        clock.after(seconds, warn)
    task.wait()
    [began] = before_end.began
    told_at, number = programs.runs["endpoint"][0].told[0]
    assert (number, len(programs.runs["endpoint"][0].told)) == (signal.SIGTERM, 1)
    assert warned_at <= began <= warned_at + 0.3
    assert told_at == began + 10.0


def test_the_signal_interrupts_nothing_for_long(clock: FilingClock, programs: Programs) -> None:
    """A handler that waits holds up whatever it interrupts, and the next signal."""
    before_end = BeforeEnd(clock)
    task = Task(before_end, clock=clock, start=programs.start)
    warn()
    assert before_end.began == []
    assert task.signalled
    task.heed()
    assert len(before_end.began) == 1


def test_real_signals_are_handed_on_while_the_task_does_what_takes_long(tmp_path: Path) -> None:
    """The warning begins that, in no signal handler: whoever cancels the task meanwhile is heard by
    its program at once, and what takes long ends with it.
    """
    traps = f"trap 'touch {tmp_path}/told; exit 0' TERM; touch {tmp_path}/runs"
    child = f"{traps}; while :; do sleep 0.1; done"
    program = tmp_path / "task.py"
    program.write_text(
        LONG.format(folder=str(tmp_path), child=["/bin/sh", "-c", child], limit_s=limit_s())
    )
    with subprocess.Popen([sys.executable, program]) as task:
        until((tmp_path / "runs").exists)
        for _ in range(3):
            task.send_signal(signal.SIGUSR1)
        until((tmp_path / "begun").exists)
        assert not (tmp_path / "told").exists()
        task.send_signal(signal.SIGTERM)
        assert task.wait(limit_s()) == 0
    assert (tmp_path / "told").exists()
    assert (tmp_path / "begun").read_text() == "once\nMainThread, in no handler\n"


def test_a_task_that_ends_itself_tells_its_programs_once_and_does_not_come_back(
    task: Task, programs: Programs, clock: FilingClock
) -> None:
    """As one whose endpoint nobody brings back: it is found out again and again."""
    task.start(programs.child("watchdog"))
    began = clock.monotonic()

    def meanwhile() -> None:
        if clock.monotonic() >= began + 50.0:
            task.end()

    task.wait(meanwhile)
    [(told_at, number)] = programs.runs["watchdog"][0].told
    assert (round(told_at - began), number) == (50, signal.SIGTERM)
    assert not task.goes_back


def test_who_ends_the_task_meanwhile_is_heard_at_once(
    clock: FilingClock, programs: Programs
) -> None:
    task = Task(BeforeEnd(clock), clock=clock, start=programs.start)
    task.start(programs.child("endpoint"))
    clock.after(50.0, warn)
    clock.after(53.0, cancel)
    began = clock.monotonic()
    task.wait()
    assert programs.runs["endpoint"][0].told[0] == (began + 53.0, signal.SIGTERM)
    assert not task.goes_back


def test_replicas_are_told_of_their_time_limit_at_once(
    task: Task, programs: Programs, clock: FilingClock
) -> None:
    """Whatever their task is doing: it may be looking for a lost endpoint."""
    task.start(programs.child("watchdog"))
    clock.after(50.0, warn)
    began = clock.monotonic()
    task.wait(lambda: clock.sleep(60.0))
    assert programs.runs["watchdog"][0].told[0] == (began + 50.0, signal.SIGTERM)


def test_a_warning_between_two_runs_of_the_endpoint_is_heeded(
    clock: FilingClock, programs: Programs
) -> None:
    before_end = BeforeEnd(clock)
    task = Task(before_end, clock=clock, start=programs.start)
    child = programs.child("endpoint", *killed_after(*[0.1] * 6), FOR_EVER)
    clock.after(40.0, warn)  # in the pause of 32 s after the sixth
    began = clock.monotonic()
    assert keep_running(task, child, clock) == 137
    [heeded] = before_end.began
    assert 40.0 <= heeded - began <= 40.3
    assert len(programs.runs["endpoint"]) == 6
    assert task.goes_back


# -- the endpoint, in its job ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lives", "runs", "code"),
    [
        ([(60.0, 0)], 1, 0),
        ([(60.0, 3)], 1, 3),  # it says what is wrong: nothing that starting again would mend
        ([(1.0, KILLED), (60.0, 0)], 2, 0),
        ([(1.0, -signal.SIGSEGV), (60.0, 0)], 2, 0),
        ([(1.0, 1), (60.0, 0)], 2, 0),  # a traceback
        ([(1.0, KILLED)] * 10, 10, 137),
        ([*([(1.0, KILLED)] * 9), (301.0, KILLED), *([(1.0, KILLED)] * 9)], 19, 137),
        ([*([(301.0, KILLED)] * 20), (60.0, 0)], 21, 0),
    ],
)
def test_an_endpoint_that_dies_starts_again_until_it_died_ten_times_in_a_row(
    task: Task,
    programs: Programs,
    clock: FilingClock,
    *,
    lives: list[Life],
    runs: int,
    code: int,
) -> None:
    assert keep_running(task, programs.child("endpoint", *lives), clock) == code
    assert len(programs.runs["endpoint"]) == runs


def test_its_pauses_double_up_to_a_minute_and_a_stable_one_is_forgiven(
    task: Task, programs: Programs, clock: FilingClock
) -> None:
    lives = [*killed_after(*[1.0] * 8), *killed_after(400.0, 1.0), (60.0, 0)]
    keep_running(task, programs.child("endpoint", *lives), clock)
    began = [one.began for one in programs.runs["endpoint"]]
    pauses = [
        round(later - earlier - life_s)
        for earlier, later, (life_s, _) in zip(began, began[1:], lives, strict=False)
    ]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 1, 2]


@pytest.mark.parametrize("told", [warn, cancel])
def test_a_job_that_is_told_to_end_starts_no_endpoint_again(
    task: Task, programs: Programs, clock: FilingClock, told: Callable[[], None]
) -> None:
    clock.after(30.0, told)
    began = clock.monotonic()
    assert keep_running(task, programs.child("endpoint"), clock) == 143
    assert clock.monotonic() - began < 31.6  # with no pause for a next one
    assert len(programs.runs["endpoint"]) == 1


@pytest.mark.parametrize(("drains_s", "within_s"), [(4.0, (4, 6)), (300.0, (30, 31))])
def test_jobs_in_an_allocation_that_ends_are_told_and_waited_for(
    swarm: ScriptedSwarm, drains_s: float, within_s: tuple[float, float]
) -> None:
    cluster, clock = swarm.cluster, swarm.clock
    job = cluster.start_step(swarm.endpoint, "job-a")
    shell = cluster.start_step(swarm.endpoint, "bash")
    cluster.on_signal = lambda step, _signal: (
        clock.after(drains_s, lambda: cluster.end_step(step)) if step == job else None
    )
    began = clock.monotonic()
    end_jobs(cluster.process(), swarm.endpoint, swarm.paths, clock)
    assert within_s[0] <= clock.monotonic() - began <= within_s[1]
    assert swarm.paths.endpoint_leaves.read_text() == swarm.endpoint  # from now on none begins
    assert cluster.signals == [(job, "USR1"), (shell, "USR1")]


def test_an_allocation_that_is_cancelled_meanwhile_waits_for_no_job(swarm: ScriptedSwarm) -> None:
    clock = swarm.clock
    swarm.cluster.start_step(swarm.endpoint, "job-a")
    began = clock.monotonic()
    gone = began + 5.0
    end_jobs(
        swarm.cluster.process(),
        swarm.endpoint,
        swarm.paths,
        clock,
        cancelled=lambda: clock.monotonic() >= gone,
    )
    assert 5.0 <= clock.monotonic() - began <= 6.0


def test_an_endpoint_whose_jobs_cannot_be_told_goes_all_the_same(swarm: ScriptedSwarm) -> None:
    swarm.cluster.start_step(swarm.endpoint, "job-a")
    swarm.cluster.away(600.0)
    end_jobs(swarm.cluster.process(), swarm.endpoint, swarm.paths, swarm.clock)
    assert swarm.paths.endpoint_leaves.exists()
    assert swarm.cluster.signals == []


# -- the way back ----------------------------------------------------------------------------------


class ComingBack:
    """A task of a swarm that was warned, and asks for its way back."""

    def __init__(self, swarm: ScriptedSwarm, slurm: ScriptedSlurm, job: str) -> None:
        self.swarm = swarm
        self.successors = 0
        self.refusals: list[Exception] = []  # before there is one
        self.slurm = slurm
        self.job = job
        self.task = Task(clock=swarm.clock)
        warn()

    def go(self, *, by_requeue: bool = True) -> float:
        """How long it took; Slurm ends what it puts back into the queue."""
        began = self.swarm.clock.monotonic()
        self._end_with_job()
        come_back(
            self.task,
            self.job,
            by_requeue=by_requeue,
            successor=self._succeed,
            slurm=self.slurm,
        )
        return self.swarm.clock.monotonic() - began

    def _succeed(self) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.successors += 1

    def _end_with_job(self) -> None:
        live = self.swarm.live(self.job)
        if live is None or not live.seen.runs_on:
            cancel()
        else:
            self.swarm.clock.after(0.5, self._end_with_job)


def coming_back(swarm: ScriptedSwarm, slurm: ScriptedSlurm | None = None) -> ComingBack:
    return ComingBack(swarm, slurm or swarm.cluster.process(), swarm.task(0))


def restarted(one: ComingBack) -> bool:
    """Whether Slurm runs its job once more; this takes its two minutes."""
    one.swarm.clock.sleep(150.0)
    live = one.swarm.live(one.job)
    return live is not None and live.state == "RUNNING"


def test_a_task_goes_back_into_the_queue_which_ends_it(swarm: ScriptedSwarm) -> None:
    one = coming_back(swarm)
    assert one.go() < 5
    assert (restarted(one), one.successors) == (True, 0)


@pytest.mark.parametrize("by_requeue", [True, False])
def test_it_comes_back_also_while_its_warning_is_under_way(
    swarm: ScriptedSwarm, by_requeue: bool
) -> None:
    """Its programs may end before Slurm has heard from all nodes that the signal arrived."""
    one = coming_back(swarm)
    swarm.cluster.jobs[one.job].state = "SIGNALING"
    one.go(by_requeue=by_requeue)
    assert (restarted(one), one.successors) == ((True, 0) if by_requeue else (False, 1))


def test_one_that_was_not_warned_asks_nothing(swarm: ScriptedSwarm) -> None:
    task = Task(clock=swarm.clock)
    before = len(swarm.cluster.looks)
    come_back(
        task,
        swarm.task(0),
        by_requeue=True,
        successor=lambda: pytest.fail("it has none"),
        slurm=swarm.cluster.process(),
    )
    assert len(swarm.cluster.looks) == before


def test_where_requeueing_is_not_wanted_a_successor_is(swarm: ScriptedSwarm) -> None:
    one = coming_back(swarm)
    assert one.go(by_requeue=False) == 0
    assert (one.successors, swarm.cluster.jobs[one.job].state) == (1, "RUNNING")


def test_where_slurm_refuses_to_requeue_there_is_a_successor(swarm: ScriptedSwarm) -> None:
    one = coming_back(swarm)
    swarm.cluster.jobs[one.job].requeues = False  # as some sites do
    assert one.go() == 0
    assert one.successors == 1


@pytest.mark.parametrize("by_requeue", [True, False])
def test_one_that_is_being_cancelled_does_not_come_back(
    swarm: ScriptedSwarm, by_requeue: bool
) -> None:
    """It loses its steps first, and Slurm would requeue it even then."""
    one = coming_back(swarm)
    swarm.cluster.cancel(one.job)
    one.go(by_requeue=by_requeue)
    assert (restarted(one), one.successors) == (False, 0)


def test_what_is_known_of_it_may_be_too_old(swarm: ScriptedSwarm) -> None:
    one = coming_back(swarm)
    for _ in range(10):  # rarer by now
        one.slurm.queue()
        swarm.clock.sleep(16.0)
    one.slurm.queue()
    swarm.cluster.end(one.job, "CANCELLED")
    one.go()
    assert (restarted(one), one.successors) == (False, 0)


@pytest.mark.parametrize("by_requeue", [True, False])
def test_a_controller_that_is_away_is_asked_for_as_long_as_the_task_lives(
    swarm: ScriptedSwarm, by_requeue: bool
) -> None:
    one = coming_back(swarm)
    swarm.cluster.away(600.0)
    before = len(swarm.cluster.looks)
    assert 600 <= one.go(by_requeue=by_requeue) < 610
    assert 150 < len(swarm.cluster.looks) - before <= 210
    assert (restarted(one), one.successors) == (True, 0 if by_requeue else 1)


def test_it_is_not_asked_by_a_task_that_was_ended(swarm: ScriptedSwarm) -> None:
    one = coming_back(swarm)
    swarm.cluster.away(600.0)
    swarm.clock.after(60.0, cancel)
    assert 60 <= one.go() < 65
    assert one.successors == 0


class Refuses(ScriptedSlurm):
    """Somebody else puts the job back into the queue just before."""

    def __init__(self, cluster: ScriptedCluster) -> None:
        super().__init__(cluster)

    def requeue(self, job: str) -> bool:
        self._cluster.requeue(job)
        self._cluster.clock.sleep(1.5)
        return super().requeue(job)


def test_what_somebody_else_put_back_meanwhile_needs_no_successor(swarm: ScriptedSwarm) -> None:
    one = coming_back(swarm, Refuses(swarm.cluster))
    one.go()
    assert (restarted(one), one.successors) == (True, 0)


class Missing(ScriptedSlurm):
    """No `squeue` on this node's PATH."""

    def jobs(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        assert ids
        raise CommandMissing("squeue is not on PATH", hint="")


def test_a_node_without_slurms_commands_leaves_word_for_a_successor(swarm: ScriptedSwarm) -> None:
    one = coming_back(swarm, Missing(swarm.cluster))
    assert one.go() == 0
    assert one.successors == 1


@pytest.mark.parametrize("commands", [True, False])
def test_a_full_disk_that_does_not_take_the_word_for_a_successor_is_asked_again(
    swarm: ScriptedSwarm, commands: bool
) -> None:
    one = coming_back(swarm, None if commands else Missing(swarm.cluster))
    one.refusals = [OSError(errno.ENOSPC, "No space left on device")] * 3
    assert 9.0 <= one.go(by_requeue=False) <= 15.0
    assert one.successors == 1


def test_a_log_that_cannot_be_opened_is_the_tasks_own(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()  # no folder
    with open_log(tmp_path / "logs" / "watchdog.log") as log:
        assert os.path.samestat(os.fstat(log.fileno()), os.fstat(2))
