"""What each version of Slurm printed, and what is read from it.

`recorded/` is what `slurm/recording.py` kept of each: one cluster of each version, the same jobs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from domyn_swarm.backends.slurm import printed
from domyn_swarm.backends.slurm.allowance import (
    ACCOUNT_FIELDS,
    ASSOCIATION_FIELDS,
    QOS_FIELDS,
    account_limits,
    association_limits,
    goes_first,
    partition_findings,
    partition_limits,
    qos_limits,
)
from domyn_swarm.backends.slurm.invocation import _UNREACHABLE
from domyn_swarm.backends.slurm.reasons import (
    explained,
    limits_the_group,
    limits_the_user,
    never_runs,
)
from domyn_swarm.backends.slurm.slurm_states import (
    OwnEnd,
    SlurmJob,
    latest,
    parse_allocation,
    parse_queue,
)

RECORDED = Path(__file__).parent / "recorded"
VERSIONS = ("20.11", "22.05", "24.11", "26.05")
ENDS = {
    "t/ok": "COMPLETED",
    "t/bad": "FAILED",
    "t/stopped": "CANCELLED",
    "t/late": "TIMEOUT",
    "t/lost": "NODE_FAIL",
    "t/taken": "PREEMPTED",
}
WAITS = {
    "t/own-hold": "JobHeldUser",
    "t/held": "JobHeldAdmin",
    "t/later": "BeginTime",
    "t/after": "DependencyNeverSatisfied",
    "t/too-long": "PartitionTimeLimit",
}
SHOWN = ("preempted", "running", "node-failed", "time-limit")


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Path:
    return RECORDED / str(request.param)


def text(recorded: Path, name: str) -> str:
    return (recorded / f"{name}.txt").read_text(encoding="utf-8")


def by_comment(recorded: Path) -> dict[str, SlurmJob]:
    return {job.comment: job for job in parse_queue(text(recorded, "queue"))}


def test_the_queue_shows_how_each_job_ended_or_why_it_waits(recorded: Path) -> None:
    jobs = by_comment(recorded)
    assert {one: jobs[one].state for one in ENDS} == ENDS
    assert all(jobs[one].over and not jobs[one].going for one in ENDS)
    assert {one: jobs[one].reason for one in WAITS} == WAITS
    assert all(jobs[one].waiting for one in [*WAITS, "t/waits"])
    assert jobs["t/too-long"].hopeless
    running = jobs["t/running"]
    assert (running.runs_on, running.node, running.reason) == (True, "n1", "")
    assert running.limit is not None


def test_a_job_that_is_taken_for_another_one_shows_since_when(recorded: Path) -> None:
    shown = {one: printed.own_end(text(recorded, f"job-{one}")) for one in SHOWN}
    assert [one for one, end in shown.items() if end.preempted] == ["preempted"]
    assert shown["preempted"] == OwnEnd("PREEMPTED", preempted=True, restarts=0)
    assert (shown["running"].state, shown["running"].has_grace) == ("RUNNING", False)


def test_each_task_of_an_array_is_a_job_of_its_own(recorded: Path) -> None:
    tasks = [job for job in parse_queue(text(recorded, "queue")) if job.comment == "t/array"]
    assert sorted(job.id.partition("_")[2] for job in tasks) == ["0", "1", "2", "3"]
    assert {job.state for job in tasks} <= {"RUNNING", "PENDING"}


def test_steps_are_known_by_their_names(recorded: Path) -> None:
    steps = latest(parse_queue(text(recorded, "steps")))
    assert {step.comment for step in steps.values()} >= {"job-one", "job-two"}
    assert all(step.runs_on and step.node == "n1" for step in steps.values())


def test_accounting_shows_the_same_ends(recorded: Path) -> None:
    ended = {job.id: job for job in by_comment(recorded).values()}
    accounted = latest(parse_queue(text(recorded, "sacct")))
    for job in ended.values():
        if job.comment in ENDS:
            assert accounted[job.id].state == job.state
    steps = latest(parse_queue(text(recorded, "sacct-steps")))
    names = {step.comment: step.state for step in steps.values() if "." in step.id}
    assert names["job-one"] == names["job-two"] == "CANCELLED"


def test_what_an_allocation_has(recorded: Path) -> None:
    allocation = parse_allocation(text(recorded, "job-running"))
    assert (allocation.cpus, allocation.memory_mb) == (2, 500)
    assert allocation.ends_at is not None
    assert parse_allocation(text(recorded, "job-pending")).cpus == 1


def test_which_partitions_give_whole_nodes(recorded: Path) -> None:
    names = printed.names("partition", text(recorded, "partitions"))
    assert names == {"main", "urgent", "whole", "short", "mine"}
    whole = {one for one in names if printed.gives_whole_nodes(text(recorded, f"partition-{one}"))}
    assert whole == {"whole"}  # `mine` keeps other users out, and packs its own jobs


def test_a_partition_that_there_is_not_is_told_from_one_that_is_not_shown(recorded: Path) -> None:
    assert printed.has_no_partition(text(recorded, "partition-none"))
    assert not printed.has_no_partition(text(recorded, "partitions"))
    assert not printed.has_no_partition(text(recorded, "unreachable-scontrol-show"))


@pytest.mark.parametrize(
    ("shown", "whole"),
    [
        ("OverSubscribe=EXCLUSIVE", True),
        ("Exclusive=NODE OverSubscribe=NO", True),
        ("Exclusive=TOPO OverSubscribe=NO", True),
        ("ExclusiveUser=NO ExclusiveTopo=YES OverSubscribe=NO", True),
        ("Exclusive=USER OverSubscribe=NO", False),
        ("Exclusive=NO OverSubscribe=FORCE:4", False),
        ("ExclusiveUser=YES ExclusiveTopo=NO OverSubscribe=NO", False),
    ],
)
def test_every_way_to_give_whole_nodes_is_known(shown: str, *, whole: bool) -> None:
    line = f"PartitionName=main AllowGroups=ALL {shown} State=UP"
    assert printed.gives_whole_nodes(line) is whole


def test_nodes_and_the_cluster(recorded: Path) -> None:
    assert printed.cluster_name(text(recorded, "config")) == "test"
    assert printed.names("node", text(recorded, "nodes")) == {"n1", "n2", "n3"}
    assert printed.node_address(text(recorded, "nodes")) == "127.0.0.1"
    assert printed.nodes_away(text(recorded, "sinfo")) == 0
    assert printed.nodes_away(text(recorded, "sinfo-lost")) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("partition", "Invalid partition name specified"),
        ("gpus", "Requested node configuration is not available"),
        ("array", "Invalid job array specification"),
        ("option", "--no-such-option"),
        (
            "unpaid",
            "You must name an account: add --account=PROJECT,; see the site's page; "
            "Batch job submission failed: Unspecified error",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["refused", "untestable"])
def test_a_refusal_is_told_with_all_that_was_said(
    recorded: Path, kind: str, name: str, said: str
) -> None:
    refusal = printed.refusal(text(recorded, f"{kind}-{name}"))
    if kind == "untestable":
        said = said.replace("Batch job submission failed", "allocation failure")
    assert said in refusal
    assert "\n" not in refusal
    assert "sbatch:" not in refusal


def test_a_submission_and_a_rehearsal(recorded: Path) -> None:
    [warned] = printed.warnings(text(recorded, "warned"))
    assert warned == "can't run 1 processes on 2 nodes, setting nnodes to 1"
    assert printed.warnings(text(recorded, "testable")) == ()
    submitted = printed.submitted(text(recorded, "submitted"))
    assert submitted is not None
    assert (submitted[0].isdecimal(), submitted[1]) == (True, "")
    said = printed.start_of(text(recorded, "testable"))
    assert " to start at 20" in said
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d", str(printed.start_time(said)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memory", "Memory required by task is not available"),
        ("cpus", "More processors requested than permitted"),
        ("unknown", "Invalid job id specified"),
    ],
)
def test_a_step_that_cannot_start_is_refused_in_sruns_words(
    recorded: Path, name: str, said: str
) -> None:
    refusal = printed.refusal(text(recorded, f"srun-{name}"))
    assert said in refusal
    assert "srun: error" not in refusal


def test_a_kill_for_memory_is_seen_in_the_logs_of_jobs_and_steps(recorded: Path) -> None:
    for how in ("", "-by-cgroup"):
        for name in (f"log-out-of-memory{how}", f"srun-out-of-memory{how}"):
            assert printed.memory_kill(text(recorded, name)), name
    for name in ("log-cancelled", "log-time-limit", "log-preempted", "srun-program"):
        assert printed.memory_kill(text(recorded, name)) is None, name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("log-cancelled", r"\*\*\* JOB \d+ ON n[12] CANCELLED AT"),
        ("log-time-limit", "DUE TO TIME LIMIT"),
        ("log-preempted", "DUE TO PREEMPTION"),
        ("log-out-of-memory", "exceeded memory limit"),
        ("log-out-of-memory-by-cgroup", "oom.kill event"),
    ],
)
def test_why_slurm_ended_a_job_stands_in_its_log(recorded: Path, name: str, said: str) -> None:
    line = printed.end_by_slurm(f"of the program\n{text(recorded, name)}and more\n")
    assert line is not None
    assert re.search(said, line)


@pytest.mark.parametrize(
    ("name", "cancelled"),
    [
        ("log-cancelled", True),
        ("log-time-limit", False),
        ("log-preempted", False),
        ("srun-program", False),
    ],
)
def test_what_somebody_cancelled_is_told_from_what_ended_for_another_reason(
    recorded: Path, name: str, *, cancelled: bool
) -> None:
    log = text(recorded, name)
    [job] = re.findall(r"\*\*\* (?:JOB|STEP) (\d+)", log) or ["1"]
    assert printed.cancelled(log, job) is cancelled
    assert not printed.cancelled(log, f"{job}1")


@pytest.mark.parametrize(
    ("line", "killed"),
    [
        ("slurmstepd: error: Exceeded job memory limit", True),
        ("slurmstepd: error: Step 5.0 exceeded memory limit (900 > 100), being killed", True),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=1.batch.", True),
        ("slurmstepd-n1: error: Detected 2 oom_kill events in StepId=8.batch. Some of", True),
        ("[2026-11-29T22:10:29.169] error: Detected 1 oom_kill event in StepId=8.batch.", True),
        ("[2026-11-29T22:10:29] error: StepId=5.batch exceeded memory limit (9 > 1)", True),
        ("srun: error: n1: task 0: Out Of Memory", True),
        ("[2026-11-29T22:10:29.169] error: the request exceeded memory limit of its tenant", False),
        ("error: Detected 1 oom_kill event", False),
        ("the answer: slurmstepd: error: Detected 1 oom_kill event", False),
        ("srun: error: n1: task 0: Killed", False),
    ],
)
def test_every_form_of_it_and_nothing_that_programs_write(line: str, *, killed: bool) -> None:
    assert bool(printed.memory_kill(f"before\n{line}\nafter\n")) is killed


def test_a_controller_that_is_away_is_known_by_every_command(recorded: Path) -> None:
    files = sorted(recorded.glob("unreachable-*.txt"))
    assert len(files) == 5
    unknown = [one.name for one in files if not _UNREACHABLE.search(one.read_text("utf-8"))]
    assert unknown == []


def row_of(fields: tuple[str, ...], recorded: Path, name: str) -> dict[str, str]:
    [line] = text(recorded, name).splitlines()
    return dict(zip(fields, line.split("|"), strict=True))


def test_what_sacctmgr_tells_of_limits(recorded: Path) -> None:
    bound = row_of(QOS_FIELDS, recorded, "qos-limits")
    assert bound["Flags"] == "OverPartQOS"
    qos = qos_limits(bound)
    assert qos.job == {"gres/gpu": 2.0, "mem": 8192.0}
    assert qos.least == {"cpu": 2.0}
    assert qos.shared == ({}, {"cpu": 30.0}, {"cpu": 40.0})
    assert qos.minutes == ({"cpu": 600.0}, {"cpu": 900.0})
    assert (qos.wall_s, qos.jobs, qos.submitted) == (5400.0, 2.0, 8.0)
    assert not qos.over_partition
    user = association_limits(row_of(ASSOCIATION_FIELDS, recorded, "association-limits"))
    assert (user.name, user.wall_s, user.jobs) == ("your account research", 86_400.0, 4.0)
    assert user.minutes == ({"cpu": 5000.0}, {})
    account = account_limits(row_of(ACCOUNT_FIELDS, recorded, "account-limits"))
    assert account.shared == ({"gres/gpu": 8.0},)
    assert account.minutes == ({}, {"cpu": 90_000.0})
    assert account.jobs is None


def test_every_limit_that_slurm_names_is_known_for_what_it_is(recorded: Path) -> None:
    """Of one job, which never runs; of the user's jobs; or of those of a group."""
    names = [one for one in text(recorded, "reasons").split() if "Submit" not in one]
    kinds = (never_runs, limits_the_user, limits_the_group)
    found = {one: [kind for kind in kinds if kind(one)] for one in names}
    assert {one for one, known in found.items() if len(known) != 1} == set()
    assert len(names) > 100
    for name in ("QOSMaxGRESPerJob", "AssocMaxCpuPerNode", "QOSMinGRES", "MaxMemPerLimit"):
        assert found[name] == [never_runs]
    for name in ("QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser", "AssocMaxJobsLimit"):
        assert found[name] == [limits_the_user]
    for name in ("QOSGrpGRES", "AssocGrpGRESRunMinutes", "MaxJobsPerAccount", "MaxGRESPerAccount"):
        assert found[name] == [limits_the_group]
    assert "change backend.time_limit" in explained("QOSMaxGRESMinutesPerJob", "7")


def test_what_scontrol_tells_of_partitions_against_jobs(recorded: Path) -> None:
    short, main = (text(recorded, f"partition-{one}") for one in ("short", "main"))
    assert partition_limits(short).wall_s == 60.0
    assert partition_limits(main).wall_s is None
    for shown in (short, main):
        assert list(partition_findings(shown, "research", "normal")) == []
        assert goes_first(shown) is None


def test_what_the_site_has_configured(recorded: Path) -> None:
    settings = printed.settings(text(recorded, "config"))
    assert settings["ClusterName"] == "test"
    assert settings["MaxArraySize"] == "1001"
    assert settings["AccountingStorageType"] == "accounting_storage/slurmdbd"
    assert settings["AccountingStorageEnforce"] == "none"


def test_where_jobs_print_to_and_when_they_ran(recorded: Path) -> None:
    [(job, file)] = printed.outputs(text(recorded, "outputs")).items()
    assert (job.isdecimal(), file) == (True, "/cluster/log/t-past.out")
    [(began, ended)] = printed.runs(text(recorded, "runs"), "past")[job]
    assert ended is not None
    assert ended > began
    assert printed.runs(text(recorded, "runs"), "another") == {}
    [past] = printed.history(text(recorded, "history"))
    assert (past.state, past.waited_s >= 0, past.lasted_s > 0) == ("COMPLETED", True, True)


def test_an_answer_without_words_is_told_as_such() -> None:
    assert printed.refusal("", "") == printed.start_of("") == "it printed nothing"
    assert printed.start_time("it printed nothing") is None
    assert printed.refusal("", "--> Rejected: no budget\n") == "--> Rejected: no budget"


PAST = """\
Submit|Start|ElapsedRaw|State
2026-11-01T10:00:00|2026-11-01T10:05:00|3600|COMPLETED
2026-11-01T10:00:00|2026-11-01T10:00:00|60|CANCELLED by 1000
2026-11-01T10:00:00|Unknown|0|PENDING
2026-11-01T10:00:00|None|0|CANCELLED
"""


def test_what_past_jobs_tell() -> None:
    assert printed.history(PAST) == (
        printed.PastJob(300.0, 3600.0, "COMPLETED"),
        printed.PastJob(0.0, 60.0, "CANCELLED"),
    )
    wider = (
        "JobID|State|Start|Submit|ElapsedRaw\n7|TIMEOUT|2026-11-01T10:05:00|2026-11-01T10:00:00|5\n"
    )
    assert printed.history(wider) == (printed.PastJob(300.0, 5.0, "TIMEOUT"),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1 names no column Submit, Start, ElapsedRaw, State"),
        ("Submit|Start|State\n", "line 1 names no column ElapsedRaw"),
        (PAST + "2026-11-01T10:00:00|2026-11-01T10:05:00|soon|COMPLETED\n", "line 6 is no job"),
        (PAST + "2026-11-01T10:00:00|2026-11-01T10:05:00\n", "line 6 is no job"),
        (PAST + "yesterday|2026-11-01T10:05:00|5|COMPLETED\n", "line 6 is no job"),
    ],
)
def test_a_history_that_is_none_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        printed.history(text)
