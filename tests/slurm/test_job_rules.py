"""What became of a job, from its record and what Slurm says; how it is waited for and ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from domyn_swarm.backends.slurm.reasons import advice, advice_for_job
from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute
from domyn_swarm.errors import PlatformError, PlatformUnavailable
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, write_private
from slurm.scripted_swarm import TAG, ScriptedSwarm


class ScriptedJob:
    """A job of a swarm that runs, as one process sees it."""

    def __init__(self, swarm: ScriptedSwarm, name: str = "j", *, step: bool = False) -> None:
        self.swarm = swarm
        self.cluster = swarm.cluster
        self.clock = swarm.clock
        self.paths = JobPaths(swarm.paths.jobs / name)
        self.paths.log.parent.mkdir(parents=True)
        self.compute = SlurmCompute(swarm.cluster.process(), swarm.clock)
        if step:
            self.id, _, number = self.cluster.start_step(swarm.endpoint, f"job-{name}").partition(
                "."
            )
        else:
            number = ""
            self.paths.script.write_text(f"#SBATCH --comment=domyn-swarm/{TAG}/job/{name}\n")
            self.id = swarm.cluster.process().submit(self.paths.script)
            swarm.clock.until(lambda: self.cluster.live()[self.id] == "RUNNING")
        self.handle = JobHandle(
            job_id=name,
            swarm="demo",
            platform="slurm",
            platform_id=self.id,
            step=number or None,
            job_dir=str(self.paths.root),
            log_path=str(self.paths.log),
            exit_path=str(self.paths.exit),
            submitted_at=utc_now(),
        )

    def record(self, code: int | None, **more: object) -> None:
        """What its wrapper writes at its end."""
        now = datetime.fromtimestamp(self.clock.time(), UTC)
        ended = {"code": code, "started_at": now, "ended_at": now, **more}
        write_private(self.paths.exit, ExitRecord.model_validate(ended).model_dump_json())

    def end(self, state: str, code: int | None = None, **more: object) -> None:
        self.cluster.end(self.id, state)
        if code is not None:
            self.record(code, **more)


@pytest.fixture
def job(swarm: ScriptedSwarm) -> ScriptedJob:
    return ScriptedJob(swarm)


@pytest.mark.parametrize(
    ("state", "reason", "why"),
    [
        ("PENDING", "Priority", "waits in the queue (Priority)"),
        ("CONFIGURING", "", "waits in the queue (CONFIGURING)"),
        (
            *("PENDING", "PartitionTimeLimit"),
            "Slurm will not run it (PartitionTimeLimit: --time is above the partition's MaxTime)",
        ),
        (
            *("PENDING", "QOSMaxMemoryPerJob"),
            "Slurm will not run it (QOSMaxMemoryPerJob: a limit of the QoS or the account for one "
            "job: change --mem)",
        ),
        (
            *("PENDING", "QOSMaxCpuPerJobLimit"),
            "Slurm will not run it (QOSMaxCpuPerJobLimit: a limit of the QoS or the account for "
            "one job: change --cpus)",
        ),
        (
            "PENDING",
            "InvalidAccount",
            "Slurm will not run it (InvalidAccount: the swarm's backend.account cannot be used)",
        ),
        (
            "PENDING",
            "JobHeldUser",
            "waits in the queue (JobHeldUser: it is held, `scontrol release {job}` lets it run)",
        ),
        ("RUNNING", "", None),
    ],
)
def test_why_a_job_waits_is_said_with_its_flags(
    job: ScriptedJob, state: str, reason: str, why: str | None
) -> None:
    seen = job.cluster.jobs[job.id]
    seen.state, seen.reason = state, reason
    job.clock.sleep(60.0)
    expected = {} if why is None else {"j": why.format(job=job.id)}
    assert job.compute.why_waiting([job.handle]) == expected
    job.cluster.away(60.0)
    job.clock.sleep(30.0)
    assert job.compute.why_waiting([job.handle]) == {}


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Requested time limit is invalid (missing or exceeds some limit)", "--time"),
        ("Requested node configuration is not available", "--cpus or --mem"),
        ("CPU count per node can not be satisfied", "--cpus"),
        ("Memory specification can not be satisfied", "--mem"),
        ("Job violates accounting/QOS policy (job submit limit, ...)", "backend.endpoint"),
    ],
)
def test_what_slurm_refuses_of_a_job_names_its_flags(said: str, advice: str) -> None:
    assert advice in advice_for_job(said)


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ("invalid partition specified: gpu; Invalid partition name specified", "backend.partition"),
        ("Invalid account or account/partition combination specified", "backend.account"),
        ("Invalid qos specification", "backend.qos"),
        ("Invalid generic resource (gres) specification", "backend.gres"),
    ],
)
def test_what_slurm_refuses_of_a_swarm_names_its_keys(said: str, keys: str) -> None:
    assert advice(said).startswith(keys)


@pytest.mark.parametrize(
    ("state", "code", "said", "status", "within_s"),
    [
        # its own record is the first truth
        ("COMPLETED", 0, "", JobStatus.SUCCEEDED, 0),
        ("FAILED", 0, "", JobStatus.SUCCEEDED, 0),
        ("FAILED", 7, "", JobStatus.PARTIAL, 0),
        ("CANCELLED", 143, "", JobStatus.CANCELLED, 0),
        # but of a failure Slurm may know the reason
        ("FAILED", 1, "", JobStatus.FAILED, 0),
        ("COMPLETED", 1, "", JobStatus.FAILED, 0),
        ("OUT_OF_MEMORY", 137, "", JobStatus.OUT_OF_MEMORY, 0),
        ("TIMEOUT", 137, "", JobStatus.TIMED_OUT, 0),
        ("PREEMPTED", 1, "", JobStatus.PREEMPTED, 0),
        # or of a stop, which has one look whoever asked for it
        ("PREEMPTED", 143, "", JobStatus.PREEMPTED, 0),
        ("NODE_FAIL", 143, "", JobStatus.LOST_NODE, 0),
        ("TIMEOUT", 143, "", JobStatus.TIMED_OUT, 0),
        ("FAILED", 143, "", JobStatus.CANCELLED, 0),  # as `job cancel` ends it
        ("FAILED", 137, "slurmstepd: error: Step 1.0 exceeded memory limit", "out", 0),
        # without a record Slurm's word holds, where it says more than that it is over
        ("TIMEOUT", None, "", JobStatus.TIMED_OUT, 0),
        ("CANCELLED", None, "", JobStatus.CANCELLED, 0),
        ("OUT_OF_MEMORY", None, "", JobStatus.OUT_OF_MEMORY, 0),
        ("FAILED", None, "slurmstepd: error: Detected 1 oom_kill event", "out", 0),
        # else the record may not be visible here yet
        ("COMPLETED", None, "", JobStatus.FAILED, 10),
        ("FAILED", None, "", JobStatus.FAILED, 10),
        ("NODE_FAIL", None, "", JobStatus.LOST_NODE, 0),
        ("PREEMPTED", None, "", JobStatus.PREEMPTED, 0),
    ],
)
def test_what_became_of_a_job(
    job: ScriptedJob,
    *,
    state: str,
    code: int | None,
    said: str,
    status: JobStatus | str,
    within_s: float,
) -> None:
    job.paths.log.write_text(said)
    job.end(state, code)
    began = job.clock.monotonic()
    assert job.compute.probe(job.handle) is (JobStatus.OUT_OF_MEMORY if said else status)
    assert within_s <= job.clock.monotonic() - began <= within_s + 0.5
    assert job.compute.probe_all([job.handle]) == {"j": job.compute.probe(job.handle)}


def test_a_failure_is_judged_once_slurm_has_ended_the_job_and_says_why(job: ScriptedJob) -> None:
    job.record(None, signal=9)  # the kernel killed its program: the job is completing
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    assert job.compute.probe_all([job.handle]) == {"j": JobStatus.RUNNING}
    job.clock.after(3.0, lambda: job.cluster.end(job.id, "OUT_OF_MEMORY"))
    began = job.clock.monotonic()
    assert job.compute.wait(job.handle) is JobStatus.OUT_OF_MEMORY
    assert job.clock.monotonic() - began < 6.0


def test_slurm_has_two_minutes_to_say_why(job: ScriptedJob) -> None:
    job.record(1)
    began = job.clock.monotonic()
    assert job.compute.wait(job.handle) is JobStatus.FAILED
    assert 119 <= job.clock.monotonic() - began <= 122


def test_one_that_was_stopped_for_its_memory_was_not_cancelled(job: ScriptedJob) -> None:
    job.end("FAILED")
    job.record(None, signal=15, stopped=True)
    assert job.compute.probe(job.handle) is JobStatus.CANCELLED
    job.paths.srun_log.write_text(
        "[2026-11-29T22:10:29.169] error: StepId=8.0 exceeded memory limit (9 > 1), being killed"
    )
    assert job.compute.probe(job.handle) is JobStatus.OUT_OF_MEMORY
    assert job.compute.probe_all([job.handle]) == {"j": JobStatus.OUT_OF_MEMORY}


DUE = "slurmstepd: error: *** {} ON n1 CANCELLED AT 2026-11-30T10:00:00 DUE TO {} ***\n"


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize(
    ("due", "status"),
    [
        ("PREEMPTION", JobStatus.PREEMPTED),
        ("TIME LIMIT", JobStatus.TIMED_OUT),
        ("NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", JobStatus.LOST_NODE),
        ("JOB REQUEUE", JobStatus.CANCELLED),  # its own record is all that is known
    ],
)
def test_what_slurm_has_forgotten_stands_in_the_jobs_log(
    swarm: ScriptedSwarm, *, due: str, status: JobStatus, step: bool
) -> None:
    job = ScriptedJob(swarm, step=step)
    other = DUE.format("JOB 999", "PREEMPTION")  # as rows may have it
    own = f"STEP {job.id}.{job.handle.step}" if step else f"JOB {job.id}"
    log = job.paths.srun_log if step else job.paths.log
    log.write_text(DUE.format(own, due) + other)
    job.record(143)
    if step:
        job.cluster.end_step(f"{job.id}.{job.handle.step}")
    else:
        job.end("COMPLETED")
    job.clock.sleep(job.cluster.min_job_age_s + 1)
    assert job.compute.probe(job.handle) is status


@pytest.mark.parametrize(
    ("log", "code", "status"),
    [
        ("*** STEP {} ON n1 CANCELLED AT 2026-11-30T10:00:00 ***", None, JobStatus.CANCELLED),
        ("*** STEP {} ON n1 CANCELLED AT 2026-11-30T10:00:00 ***", 3, JobStatus.FAILED),
        (
            "*** STEP {} ON n1 CANCELLED AT 2026-11-30T10:00:00 DUE to SIGNAL Killed ***",
            None,
            JobStatus.CANCELLED,
        ),
        ("srun: forcing job termination", None, JobStatus.FAILED),
        ("srun: forcing job termination", 143, JobStatus.FAILED),  # nobody cancelled it
    ],
)
def test_a_step_that_was_ended_is_what_its_srun_wrote(
    swarm: ScriptedSwarm, log: str, code: int | None, status: JobStatus
) -> None:
    job = ScriptedJob(swarm, step=True)
    step = f"{job.id}.{job.handle.step}"
    job.paths.srun_log.write_text(f"slurmstepd-n1: error: {log.format(step)}")
    job.cluster.end_step(step)
    if code is not None:
        job.record(code)
    assert job.compute.probe(job.handle) is status


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("PREEMPTED", JobStatus.PREEMPTED),
        ("TIMEOUT", JobStatus.TIMED_OUT),
        ("CANCELLED", JobStatus.CANCELLED),
        ("FAILED", JobStatus.CANCELLED),
    ],
)
def test_a_job_is_judged_when_it_is_over_not_as_it_completes(
    job: ScriptedJob, state: str, status: JobStatus
) -> None:
    """Its program has ended, and Slurm's last word on it is yet to come."""
    for _ in range(20):  # so that looks have become rare
        assert job.compute.probe(job.handle) is JobStatus.RUNNING
        job.clock.sleep(5.0)
    job.end("COMPLETING")
    job.record(143, ended_at=datetime.fromtimestamp(job.clock.time(), UTC))
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    assert job.compute.probe_all([job.handle]) == {"j": JobStatus.RUNNING}
    job.clock.after(8.0, lambda: job.end(state))
    began = job.clock.monotonic()
    assert job.compute.wait(job.handle) is status
    assert job.clock.monotonic() - began <= 10


def test_a_job_that_never_completes_is_what_it_wrote(job: ScriptedJob) -> None:
    job.end("COMPLETING")
    job.record(143, ended_at=datetime.fromtimestamp(job.clock.time(), UTC))
    began = job.clock.monotonic()
    assert job.compute.wait(job.handle) is JobStatus.CANCELLED
    assert 118 <= job.clock.monotonic() - began <= 125


def test_a_job_that_waits_or_runs_is_not_judged(job: ScriptedJob) -> None:
    job.paths.log.write_text("slurmstepd: error: Detected 1 oom_kill event")  # of a child's
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    assert job.cluster.requeue(job.id)
    job.clock.sleep(20.0)
    assert job.compute.probe(job.handle) is JobStatus.PENDING


@pytest.mark.parametrize(("appears_s", "status"), [(8.0, "succeeded"), (12.0, "failed")])
def test_a_record_on_another_node_has_ten_seconds_to_be_seen(
    job: ScriptedJob, appears_s: float, status: str
) -> None:
    job.end("COMPLETED")
    job.clock.after(appears_s, lambda: job.record(0))
    assert job.compute.probe(job.handle).value == status


def test_a_hundred_jobs_without_a_record_are_waited_for_once(swarm: ScriptedSwarm) -> None:
    jobs = [ScriptedJob(swarm, f"j{number}") for number in range(100)]
    for one in jobs:
        one.end("FAILED")
    before, began = len(swarm.cluster.looks), swarm.clock.monotonic()
    found = jobs[0].compute.probe_all([one.handle for one in jobs])
    assert set(found.values()) == {JobStatus.FAILED}
    assert len(found) == 100
    assert swarm.clock.monotonic() - began <= 10.5
    assert len(swarm.cluster.looks) - before == 1


def test_a_job_that_slurm_forgot_is_what_it_wrote(job: ScriptedJob) -> None:
    job.end("COMPLETED", 0)
    job.clock.sleep(job.cluster.min_job_age_s + 1)
    assert job.compute.probe(job.handle) is JobStatus.SUCCEEDED
    job.paths.exit.unlink()
    assert job.compute.probe(job.handle) is JobStatus.FAILED


def test_a_job_whose_record_of_its_end_cannot_be_read_is_unknown_and_others_are_not(
    swarm: ScriptedSwarm,
) -> None:
    """A folder in the place of a file: it is there, and cannot be read."""
    job, other = ScriptedJob(swarm), ScriptedJob(swarm, name="other")
    for one in (job, other):
        one.end("COMPLETED", 0)
    written = job.paths.exit.rename(job.paths.root / "aside")
    job.paths.exit.mkdir()
    with pytest.raises(PlatformUnavailable, match=r"exit\.json: Is a directory"):
        job.compute.probe(job.handle)
    assert job.compute.probe_all([job.handle, other.handle]) == {"other": JobStatus.SUCCEEDED}
    job.paths.exit.rmdir()
    written.rename(job.paths.exit)
    assert job.compute.probe(job.handle) is JobStatus.SUCCEEDED


def test_a_controller_that_is_away_is_no_end_of_a_job(job: ScriptedJob) -> None:
    job.cluster.away(600.0)
    with pytest.raises(PlatformUnavailable):
        job.compute.probe(job.handle)
    assert job.compute.probe_all([job.handle]) == {}
    job.record(0)  # which needs no controller
    assert job.compute.probe(job.handle) is JobStatus.SUCCEEDED


def test_waiting_goes_on_while_the_controller_is_away(job: ScriptedJob) -> None:
    job.clock.after(30.0, lambda: job.cluster.away(600.0))
    job.clock.after(900.0, lambda: job.end("TIMEOUT"))
    began = job.clock.monotonic()
    assert job.compute.wait(job.handle) is JobStatus.TIMED_OUT
    assert 900 <= job.clock.monotonic() - began <= 920


def test_waiting_for_a_controller_that_is_away_ends_with_its_time_out(job: ScriptedJob) -> None:
    job.cluster.away(3 * 3600.0)
    began = job.clock.monotonic()
    with pytest.raises(PlatformUnavailable):
        job.compute.wait(job.handle, timeout_s=50.0)
    assert job.clock.monotonic() - began < 60.0


def test_who_waits_is_told_what_was_known_before_the_controller_went_away(job: ScriptedJob) -> None:
    job.clock.after(20.0, lambda: job.cluster.away(3 * 3600.0))
    began = job.clock.monotonic()
    assert job.compute.wait(job.handle, timeout_s=50.0) is JobStatus.RUNNING
    assert job.clock.monotonic() - began < 60.0


def test_waiting_for_hours_asks_four_times_a_minute(job: ScriptedJob) -> None:
    before = len(job.cluster.looks)
    job.clock.after(3 * 3600.0, lambda: job.end("COMPLETED", 0))
    assert job.compute.wait(job.handle) is JobStatus.SUCCEEDED
    assert len(job.cluster.looks) - before < 3 * 60 * 4 + 20


def test_waiting_ends_with_its_time_out_and_the_job_does_not(job: ScriptedJob) -> None:
    began = job.clock.monotonic()
    assert job.compute.wait(job.handle, timeout_s=50.0) is JobStatus.RUNNING
    assert 50 <= job.clock.monotonic() - began <= 52
    assert job.id in job.cluster.live()


def obeys(job: ScriptedJob, after: int, takes_s: float = 3.0) -> Callable[[str, str], None]:
    """Its wrapper: ends once it was told so many times."""
    told = 0

    def on_signal(one: str, _signal: str) -> None:
        nonlocal told
        told += one.startswith(job.id)
        if told == after:
            job.clock.after(takes_s, lambda: job.end("COMPLETED", 143))

    return on_signal


@pytest.mark.parametrize(
    ("told", "within_s", "state"),
    [(1, (3, 5), "COMPLETED"), (2, (33, 36), "COMPLETED"), (9, (40, 44), "CANCELLED")],
)
def test_a_cancelled_job_is_told_then_told_again_then_ended(
    job: ScriptedJob, told: int, within_s: tuple[float, float], state: str
) -> None:
    job.cluster.on_signal = obeys(job, told)
    began = job.clock.monotonic()
    job.compute.cancel(job.handle)
    assert within_s[0] <= job.clock.monotonic() - began <= within_s[1]
    assert job.cluster.signals == [(job.id, "TERM")] * min(told, 2)
    assert job.cluster.jobs[job.id].state == state
    assert job.compute.probe(job.handle) is JobStatus.CANCELLED


def test_a_job_that_waits_is_cancelled_at_once_and_says_so(job: ScriptedJob) -> None:
    job.cluster.room = False
    job.cluster.lose(job.id)
    began = job.clock.monotonic()
    job.compute.cancel(job.handle)
    assert job.clock.monotonic() == began
    job.clock.sleep(job.cluster.min_job_age_s + 1)
    assert job.compute.probe(job.handle) is JobStatus.CANCELLED  # though Slurm has forgotten it


def test_a_job_that_goes_back_into_the_queue_as_it_is_told_is_cancelled_there(
    job: ScriptedJob,
) -> None:
    job.cluster.room = False
    job.cluster.on_signal = lambda *_: job.cluster.lose(job.id)
    began = job.clock.monotonic()
    job.compute.cancel(job.handle)
    assert job.clock.monotonic() - began < 2
    assert job.id not in job.cluster.live()


def test_a_node_that_does_not_let_go_is_reported(job: ScriptedJob) -> None:
    job.cluster.stubborn.add(job.id)
    job.cluster.kill_wait_s = 600.0
    with pytest.raises(PlatformError, match=f"still has the job j as {job.id}"):
        job.compute.cancel(job.handle)


def test_cancelling_what_is_over_changes_nothing(job: ScriptedJob) -> None:
    job.end("COMPLETED", 0)
    job.compute.cancel(job.handle)
    assert job.cluster.signals == []
    assert job.compute.probe(job.handle) is JobStatus.SUCCEEDED


def test_a_step_is_not_taken_for_another_of_its_number(swarm: ScriptedSwarm) -> None:
    """An allocation that was requeued numbers its steps anew."""
    first = ScriptedJob(swarm, "first", step=True)
    assert first.compute.probe(first.handle) is JobStatus.RUNNING
    swarm.cluster.lose(swarm.endpoint)
    swarm.clock.sleep(200.0)
    second = ScriptedJob(swarm, "second", step=True)
    assert (first.handle.platform_id, first.handle.step) == (
        second.handle.platform_id,
        second.handle.step,
    )
    assert first.compute.probe(first.handle) is JobStatus.FAILED
    first.compute.cancel(first.handle)
    assert second.compute.probe(second.handle) is JobStatus.RUNNING
    assert swarm.cluster.signals == []


def test_a_job_is_found_again_by_its_number_in_any_process(swarm: ScriptedSwarm) -> None:
    job = ScriptedJob(swarm, "own")
    step = ScriptedJob(swarm, "shared", step=True)
    anew = SlurmCompute(swarm.cluster.process(), swarm.clock)
    for one in (job, step):
        found = anew.find(one.handle.job_id, one.handle.job_dir)
        assert found is not None
        assert (found.platform_id, found.step) == (one.id, one.handle.step)
    assert anew.find("neither", str(swarm.paths.jobs / "neither")) is None
    job.end("COMPLETED", 0)
    swarm.clock.sleep(swarm.cluster.min_job_age_s + 1)
    assert anew.find("own", job.handle.job_dir) is not None  # its record is there
