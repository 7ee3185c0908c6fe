"""Where jobs run, and what they came to, on the real cluster: beside a swarm that stands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from command_line import PROGRAM
from domyn_swarm.errors import ConfigError, SubmissionUnknown, SwarmError
from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from patience import limit_s
from process_list import running
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.fixtures import Asked
from slurm.swarms import (
    Standing,
    Up,
    all_answered,
    ended,
    endpoint_job,
    jobs_of,
    ready,
    request,
    standing_swarm,
    submit_held,
    taking_nothing,
    unanswered,
    until,
    warn,
)

STEP, JOB = JobResources(), JobResources(detached=True)

CALLERS_OWN = {
    "SBATCH_PARTITION": "nowhere",
    "SLURM_MEM_PER_CPU": "1",
    "SLURM_MEM_PER_NODE": "1",
    "SRUN_CPUS_PER_TASK": "64",
    "SLURM_NTASKS": "7",
    "SQUEUE_FORMAT": "x",
}


@pytest.fixture(scope="module")
def standing_one(
    slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standing]:
    """Brought up by a caller with Slurm variables of their own, into a home of an odd name."""
    home = tmp_path_factory.mktemp("standing") / "a 'b' \"c\" $(id) `d` %j %% é, {x}"
    with pytest.MonkeyPatch.context() as caller:
        for name, value in {**CALLERS_OWN, "DOMYN_SWARM_MAIL_USER": "ops@here"}.items():
            caller.setenv(name, value)
        with standing_swarm(slurm_cluster, home, min_ready=2) as standing:
            yield standing


@pytest.fixture
def standing(
    standing_one: Standing, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Standing]:
    """The swarm, as this process' own; what a test leaves of its jobs is ended."""
    for name, value in CALLERS_OWN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(standing_one.home))
    until(lambda: ready() == 2)
    yield standing_one
    jobs = JobService()
    for job in jobs.list(refresh=False):
        if not job.status.final:
            jobs.cancel(job.job_id)


def test_the_files_of_a_swarm_are_in_its_home_whatever_that_is_called(standing: Standing) -> None:
    logs = [path.name for path in (standing.home / "swarms/demo/logs/slurm").iterdir()]
    assert sorted(logs) == ["replica-0.log", "replica-1.log"]


def test_the_keys_of_a_swarm_are_in_no_script_log_process_or_answer_of_slurm(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path
) -> None:
    handle = JobService().submit(request(tmp_path, 20))
    assert ended(handle).status is JobStatus.SUCCEEDED
    secrets = set(standing.home.rglob("secrets/*"))
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    keys = {path.read_text().strip() for path in secrets}
    shown = {
        str(path): path.read_text(errors="replace")
        for folder in (standing.home, tmp_path, slurm.folder / "log")
        for path in folder.rglob("*")
        if path.is_file() and path not in secrets
    }
    shown |= arguments()
    for job in jobs_of(slurm):
        shown[f"scontrol of {job}"] = slurm.run("scontrol", "-d", "show", "job", job).stdout
        shown[f"script of {job}"] = slurm.run("scontrol", "write", "batch_script", job, "-").stdout
    assert {"plan.json", "job.json"} <= {Path(name).name for name in shown}
    assert any("endpoint_task" in text for name, text in shown.items() if name.startswith("script"))
    assert [name for name, text in shown.items() if any(key in text for key in keys)] == []


def arguments() -> dict[str, str]:
    """What any user of the machine sees of its processes."""
    seen = {}
    for process in running():
        with contextlib.suppress(psutil.Error):
            seen[f"arguments of {process.pid}"] = " ".join(process.cmdline())
    return seen


def test_a_followed_job_is_a_step_of_the_endpoint_unless_it_is_placed_elsewhere(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path
) -> None:
    placed = {
        "followed": (STEP, True),
        "detached": (JOB, False),
        "followed, as a job": (JobResources(placement="job"), False),
        "detached, as a step": (JobResources(detached=True, placement="step"), True),
    }
    jobs = JobService()
    for how, (resources, is_step) in placed.items():
        before = set(jobs_of(slurm))
        folder = tmp_path / how
        handle = jobs.submit(request(folder, 20, resources=resources))
        assert (handle.step is not None) is is_step, how
        assert (handle.platform_id == endpoint_job(slurm)) is is_step, how
        if is_step:
            assert set(jobs_of(slurm)) <= before, how  # no job of its own
        placed[how] = handle
    for how, handle in placed.items():
        assert ended(handle).status is JobStatus.SUCCEEDED, how
        assert all_answered(tmp_path / how, 20), how


def test_steps_and_jobs_side_by_side_end_each_for_itself(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path
) -> None:
    jobs = JobService()
    once = JobResources(detached=True, continues=False)
    kinds = {"cancelled step": STEP, "other step": STEP, "warned job": once}
    held = {
        name: submit_held(tmp_path / name, resources=asked, max_concurrency=4)
        for name, asked in kinds.items()
    }
    assert jobs.cancel(held["cancelled step"].handle).status is JobStatus.CANCELLED
    warn(slurm, held["warned job"].handle.platform_id)  # near its time limit
    assert ended(held["warned job"].handle).status is JobStatus.TIMED_OUT
    again = {name: jobs.resume(held[name].handle) for name in ("cancelled step", "warned job")}
    for one in held.values():
        (one.folder / "released").touch()
    assert ended(held["other step"].handle).status is JobStatus.SUCCEEDED
    for name, handle in again.items():
        done = ended(handle)
        assert done.status is JobStatus.SUCCEEDED, name
        assert done.account is not None, name
        # Over both runs: what was in flight was finished, and what was done stayed done.
        assert done.account.requests == held[name].rows, name
    assert all(all_answered(one.folder, one.rows) for one in held.values())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cpus": 3}, "asks for 3 CPUs, but the endpoint's allocation has 1"),
        ({"memory_gb": 2}, "asks for 2048 MB of memory, but the endpoint's allocation has 1000"),
        ({"time_limit_s": 7200}, "asks for 7200 s of time, but the endpoint's allocation has 3"),
    ],
)
def test_what_does_not_fit_the_endpoint_is_refused_with_the_numbers(
    standing: Standing, tmp_path: Path, asked: dict[str, float], told: str
) -> None:
    jobs = JobService()
    before = jobs.list(refresh=False)
    with pytest.raises(ConfigError, match=told) as refused:
        jobs.submit(request(tmp_path, 10, resources=JobResources.model_validate(asked)))
    assert "--placement job" in refused.value.hint
    assert jobs.list(refresh=False) == before


def test_what_no_node_has_is_refused_by_slurm_in_its_words(
    standing: Standing, tmp_path: Path
) -> None:
    jobs = JobService()
    before = jobs.list(refresh=False)
    with pytest.raises(SwarmError, match=r"Slurm refused job\.sh: .*not available") as refused:
        jobs.submit(request(tmp_path, 10, resources=JobResources(detached=True, cpus=64)))
    assert "lower --cpus or --mem" in refused.value.hint
    assert jobs.list(refresh=False) == before


def test_a_job_that_waits_says_why(standing: Standing, slurm: SlurmCluster, tmp_path: Path) -> None:
    jobs, said = JobService(), []
    with taking_nothing(slurm, ",".join(slurm.node_names)):
        handle = jobs.submit(request(tmp_path, 5, resources=JOB))
        until(lambda: str(jobs.status(handle).message).startswith("waits in the queue ("))
        assert jobs.status(handle).status is JobStatus.PENDING
        told = jobs.status(handle).message
        [listed] = [one for one in jobs.list() if one.job_id == handle.job_id]
        shown = SwarmService().status("demo").jobs
        assert [one.message for one in shown if one.job_id == handle.job_id] == [told]
        jobs.wait(handle, timeout_s=0, on_progress=lambda seen: said.append(seen.message))
        assert said[-1] == listed.message == told
    assert jobs.wait(handle).status is JobStatus.SUCCEEDED
    assert jobs.status(handle).message is None


def test_flags_reach_slurm(standing: Standing, slurm: SlurmCluster, tmp_path: Path) -> None:
    asked = request(tmp_path, 1000)
    flags = ["--cpus", "3", "--mem", "900M", "--time", "30", "--mail-user", "me@here"]
    command = [PROGRAM, "job", "submit", "--name", "demo", "--input", asked.input]
    command += ["--output", asked.output, "--input-column", "prompt", "-d", *flags]
    command += ["--max-concurrency", "1", "--checkpoint-tag", "flags"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    handle = JobHandle.model_validate_json(done.stdout)
    shown = slurm.run("scontrol", "-o", "show", "job", handle.platform_id).stdout
    for expected in ("NumCPUs=3 ", "TRES=cpu=3,mem=900M", "TimeLimit=00:30:00", "MailUser=me@here"):
        assert expected in shown
    JobService().cancel(handle)


SCRIPT = """
import json, os, sys, urllib.request
key = open(os.environ["DOMYN_SWARM_API_KEY_FILE"]).read().strip()
body = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": "hi"}]}
ask = urllib.request.Request(
    os.environ["ENDPOINT"] + "/v1/chat/completions",
    json.dumps(body).encode(),
    {"Authorization": "Bearer " + key, "Content-Type": "application/json"},
)
with urllib.request.urlopen(ask, timeout=60) as reply:
    print(json.dumps({"status": reply.status, "argv": sys.argv[1:]}))
sys.exit(3)
"""


@pytest.mark.parametrize("how", [(), ("-d",)], ids=["step", "job"])
def test_a_users_own_program_gets_its_words_and_its_outcome_is_told(
    standing: Standing, tmp_path: Path, how: tuple[str, ...]
) -> None:
    program = tmp_path / "my 'own' $(program).py"
    program.write_text(SCRIPT)
    words = ["a b,c", "$HOME `id` $(id)", "--flag=\"x\" 'y'", "two\nlines", ""]
    command = [PROGRAM, "job", "submit-script", str(program), "--name", "demo", *how, "--", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if how else 6), done.stderr
    handle = JobHandle.model_validate_json(done.stdout.splitlines()[0])
    assert (handle.step is None) is bool(how)
    seen = ended(handle)
    assert (seen.status, seen.exit_code) == (JobStatus.FAILED, 3)
    told = Path(handle.log_path).read_text().strip().splitlines()[-1]
    assert json.loads(told) == {"status": 200, "argv": words}


def test_a_list_of_jobs_asks_slurm_once_about_all_of_them(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path, asked: Asked
) -> None:
    jobs, handles = JobService(), []
    for number in range(4):  # jobs and steps
        how = STEP if number % 2 else JOB
        folder = tmp_path / str(number)
        handles.append(jobs.submit(request(folder, 1000, resources=how, max_concurrency=1)))
    until(lambda: all(jobs.status(one).status is JobStatus.RUNNING for one in handles))
    for command, calls in (
        (["list", "--refresh"], (1, 1)),
        (["list", "--name", "demo"], (0, 0)),  # the records and files alone
        (["status", handles[0].job_id, "--refresh"], (1, 0)),
    ):
        asked.clear()
        told = subprocess.run(
            [PROGRAM, "job", *command, "--json"], capture_output=True, text=True, check=True
        )
        assert told.stdout.count('"running"') == (4 if command[0] == "list" else 1)
        queue = asked.of("squeue")
        steps = [one for one in queue if "--steps" in one]
        assert (len(queue) - len(steps), len(steps)) == calls
        assert asked.of("sacct") == []
        named = ["show config"] if "--refresh" in command else []  # which cluster is it?
        assert asked.of("scontrol") == named
    for one in handles:
        jobs.cancel(one)


def test_a_second_cluster_with_the_same_home_leaves_all_as_it_is(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path
) -> None:
    asked = request(tmp_path, 1000, max_concurrency=1)
    handle = JobService().submit(asked)
    until(lambda: JobService().status(handle).status is JobStatus.RUNNING)
    (other := tmp_path / "other-cluster").mkdir()
    for name, body in {  # it has jobs of its own
        "scontrol": "echo 'ClusterName = other'",
        "squeue": f"echo '{handle.platform_id}|COMPLETED||n1|N/A|'",
        "sacct": f"echo '{handle.platform_id}|CANCELLED||n1|N/A|'",
        "scancel": "touch cancelled",
        "sbatch": "echo 99",
    }.items():
        (other / name).write_text(f"#!/bin/sh\n{body}\n")
        (other / name).chmod(0o755)
    there = {**os.environ, "PATH": f"{other}:{os.environ['PATH']}"}

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [PROGRAM, *words], capture_output=True, text=True, check=False, env=there, cwd=tmp_path
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    where = {"kind": "cluster", "name": "test", "elsewhere": True}
    [listed] = json.loads(run("swarm", "list", "--json"))["swarms"]
    assert (listed["phase"], listed["observed"]) == ("ready", "elsewhere")
    assert where.items() <= listed["whereabouts"].items()
    [seen] = [
        one
        for one in json.loads(run("job", "list", "--refresh", "--json"))["jobs"]
        if one["job_id"] == handle.job_id
    ]
    assert seen["status"] == "running"
    assert where.items() <= seen["whereabouts"].items()
    assert "the cluster test" in run("down", "demo", "-y", code=4)
    assert "the cluster test" in run("job", "cancel", handle.job_id, code=4)
    rows = ["--input", asked.input, "--output", str(tmp_path / "another.parquet")]
    submit = ["job", "submit", "--name", "demo", *rows, "--input-column", "prompt", "--limit", "3"]
    assert "the cluster test" in run(*submit, code=4)
    if slurm.net:  # the endpoint listens on its node's address, which is reached from here, too
        run(*submit, "--run-here", "--no-progress")
        assert pq.read_table(tmp_path / "another.parquet").num_rows == 3
    assert not (tmp_path / "cancelled").exists()
    assert JobService().status(handle, refresh=True).status is JobStatus.RUNNING
    assert JobService().cancel(handle).status is JobStatus.CANCELLED
    assert ready() == 2


def test_mail_of_every_command_that_submits_goes_to_whom_it_names(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_MAIL_USER", "nobody@here")  # the swarm's own is stronger
    asked = request(tmp_path, 5)
    program = tmp_path / "program.py"
    program.write_text("print('done')")

    def submit(*words: str) -> str:
        command = [PROGRAM, "job", *words, "--no-progress"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return JobHandle.model_validate_json(done.stdout.splitlines()[0]).job_id

    rows = ["--name", "demo", "--input", asked.input, "--output", asked.output]
    rows += ["--checkpoint-tag", "mail"]
    mail = "--mail-user"
    short = ["--job-kwargs", '{"max_tokens": 1}']  # so that there is something to ask again
    first = submit("submit", *rows, "--input-column", "prompt", *short, mail, "rows@here")
    sent = {
        first: "rows@here",
        submit("resume", first): "rows@here",  # as the job that it goes on with
        submit("resume", first, mail, "again@here"): "again@here",
        submit("retry-failed", first, "--class", "cut", mail, "failed@here"): "failed@here",
        submit("submit-script", str(program), mail, "script@here"): "script@here",
        submit("submit-script", str(program), "--placement", "job"): "ops@here",
    }
    box = slurm.folder / "log/mail"
    for job_id, who in sent.items():
        until(lambda: box.exists() and f"job-{job_id}." in box.read_text())  # noqa: B023
        [line] = [one for one in box.read_text().splitlines() if f"job-{job_id}." in one]
        assert line.startswith(f"{who}: ")


def test_a_step_outlives_the_command_that_follows_it(standing: Standing, tmp_path: Path) -> None:
    asked = request(tmp_path, 100)
    command = [PROGRAM, "job", "submit", "--name", "demo", "--input", asked.input]
    command += ["--output", asked.output, "--input-column", "prompt", "--no-progress"]
    command += ["--checkpoint-tag", "outlives"]
    with subprocess.Popen(
        [*command, "--max-concurrency", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as following:
        assert following.stdout is not None
        handle = JobHandle.model_validate(json.loads(following.stdout.readline()))
        os.killpg(following.pid, signal.SIGKILL)
    assert handle.step is not None
    assert ended(handle).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 100)


def test_what_the_router_refuses_reaches_the_replicas_from_any_node(
    standing: Standing, tmp_path: Path
) -> None:
    jobs, refused = JobService(), {"job_kwargs": {"top_k": 0}}  # by the router, not by engines
    asked = {
        name: request(tmp_path / name, 20, resources=where, **refused)
        for name, where in {"job": JOB, "step": STEP}.items()
    }
    handles = {name: jobs.submit(one) for name, one in asked.items()}
    for name, handle in handles.items():
        done = ended(handle)
        assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0), name
        assert all_answered(tmp_path / name, 20)


FAILING = """
from domyn_swarm import SwarmJob

class Ends(SwarmJob):
    input_columns = ["prompt"]
    output_schema = ["out"]
    def __init__(self, *, how, **options):
        super().__init__(**options)
        self.how = how
    async def transform_item(self, item):
        import os, time
        if self.how == "memory":
            self.kept = b"x" * 1_500_000_000
            time.sleep(600)
        os._exit(3)
"""


def test_each_wait_tells_the_truth_about_its_own_job(standing: Standing, tmp_path: Path) -> None:
    jobs, handles = JobService(), {}
    for kind, resources in {"job": JOB, "step": STEP}.items():
        for how in ("memory", "exit"):
            ends = {"job": "source:Ends", "job_source": FAILING, "job_kwargs": {"how": how}}
            asked = request(tmp_path / f"{kind} {how}", 20, resources=resources, **ends)
            handles[kind, how] = jobs.submit(asked)
    good = submit_held(tmp_path / "good", 60, resources=STEP)
    ends = {name: ended(handle) for name, handle in handles.items()}
    for kind in ("job", "step"):
        assert ends[kind, "memory"].status is JobStatus.OUT_OF_MEMORY, kind
        failed = ends[kind, "exit"]
        assert (failed.status, failed.exit_code) == (JobStatus.FAILED, 3), kind
    assert good.release().status is JobStatus.SUCCEEDED


def test_how_to_log_reaches_the_nodes_where_the_environment_does_not(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_LOG_FORMAT", "json")
    needed = {name: slurm.env[name] for name in CLIENT_VARIABLES}
    up(name="logs", replicas=1, backend={"preamble": ["--export=NONE"], "env": needed})
    jobs = JobService()
    for detached in (False, True):
        how = JobResources(detached=detached)
        handle = jobs.submit(request(tmp_path / str(detached), 5, swarm="logs", resources=how))
        assert jobs.wait(handle, timeout_s=limit_s()).status is JobStatus.SUCCEEDED
        script = JobPaths(Path(handle.job_dir)).script.read_text()
        assert ("#SBATCH --export=NONE" in script) is detached
    paths = SwarmPaths(Path(SwarmStore.open().swarm("logs").swarm_dir))
    for log in (paths.endpoint_log, paths.slurm_logs / "replica-0.log"):
        lines = log.read_text().splitlines()
        ours = [json.loads(line) for line in lines if line.startswith("{")]
        assert "info" in {one["level"] for one in ours}
        assert not [line for line in lines if " INFO domyn_swarm" in line]


def test_a_job_that_slurm_took_without_an_answer_is_found_again(
    standing: Standing, tmp_path: Path
) -> None:
    jobs = JobService()
    with (
        unanswered(tmp_path, "job.sh") as taken,
        pytest.raises(SubmissionUnknown, match="Socket timed out") as caught,
    ):
        jobs.submit(request(tmp_path / "job", 20, external_id="unanswered"))
    assert "may have been submitted" in caught.value.hint
    known = SwarmStore.open().job("unanswered")
    assert (known.status, known.handle) == (JobStatus.PENDING, None)
    taken.touch()
    assert jobs.wait("unanswered", timeout_s=limit_s()).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path / "job", 20)
