"""Where jobs run, and what they came to, on the real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from command_line import PROGRAM
from domyn_swarm.errors import ConfigError, SwarmError
from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.planning.resources import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from slurm.cluster import SlurmCluster
from slurm.fixtures import Asked
from slurm.test_swarm import Up, all_answered, jobs_of, request, task, until, up

__all__ = ["up"]  # a fixture

ATTACHED = JobResources()


def endpoint_job(slurm: SlurmCluster) -> str:
    return next(one for one in jobs_of(slurm) if "_" not in one)


def test_a_followed_job_is_a_step_of_the_endpoint(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 400, resources=ATTACHED))
    assert (handle.platform_id, handle.step) == (endpoint_job(slurm), "0")
    assert len(jobs_of(slurm)) == 3  # no job of its own
    assert jobs.wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 400)


def test_steps_and_jobs_side_by_side_and_one_step_is_cancelled(up: Up, tmp_path: Path) -> None:
    up(min_ready=2)
    jobs = JobService()
    folders = {name: tmp_path / name for name in ("step", "other step", "job")}
    for folder in folders.values():
        folder.mkdir()
    asked = {name: JobResources(detached=name == "job") for name in folders}
    handles = {
        name: jobs.submit(request(folder, 1000, checkpoint_tag=name, resources=asked[name]))
        for name, folder in folders.items()
    }
    until(lambda: all(jobs.status(handle).rows_done > 20 for handle in handles.values()))
    assert jobs.cancel(handles["step"]).status is JobStatus.CANCELLED
    for name in ("other step", "job"):
        assert jobs.wait(handles[name], timeout_s=240).status is JobStatus.SUCCEEDED
        assert all_answered(folders[name], 1000)
    again = jobs.wait(jobs.resume(handles["step"]), timeout_s=240)
    assert again.status is JobStatus.SUCCEEDED
    assert again.account is not None
    assert again.account.requests == 1000


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cpus": 3}, "asks for 3 CPUs, but the endpoint's allocation has 1"),
        ({"memory_gb": 2}, "asks for 2048 MB of memory, but the endpoint's allocation has 1000"),
        ({"time_limit_s": 7200}, "asks for 7200 s of time, but the endpoint's allocation has 3"),
    ],
)
def test_what_does_not_fit_the_endpoint_is_refused_with_the_numbers(
    up: Up, tmp_path: Path, asked: dict[str, float], told: str
) -> None:
    up()
    jobs = JobService()
    with pytest.raises(ConfigError, match=told) as refused:
        jobs.submit(request(tmp_path, 10, resources=JobResources.model_validate(asked)))
    assert "--placement job" in refused.value.hint
    assert jobs.list() == []


def test_what_no_node_has_is_refused_by_slurm_in_its_words(up: Up, tmp_path: Path) -> None:
    up()
    jobs = JobService()
    with pytest.raises(SwarmError, match=r"Slurm refused job\.sh: .*not available"):
        jobs.submit(request(tmp_path, 10, resources=JobResources(detached=True, cpus=64)))
    assert jobs.list() == []


def test_flags_reach_slurm(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    up()
    asked = request(tmp_path, 5000)
    flags = ["--cpus", "3", "--mem", "900M", "--time", "30", "--mail-user", "me@here"]
    command = [PROGRAM, "job", "submit", "--name", "demo", "--input", asked.input]
    command += ["--output", asked.output, "--input-column", "prompt", "-d", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    handle = JobHandle.model_validate_json(done.stdout)
    shown = slurm.run("scontrol", "-o", "show", "job", handle.platform_id).stdout
    for expected in ("NumCPUs=3 ", "TRES=cpu=3,mem=900M", "TimeLimit=00:30:00", "MailUser=me@here"):
        assert expected in shown
    JobService().cancel(handle)


@pytest.mark.parametrize(
    ("asked", "step"),
    [
        (JobResources(placement="job"), None),
        (JobResources(detached=True, placement="step"), "0"),
    ],
    ids=["followed, as a job", "detached, as a step"],
)
def test_placement_overrides_either(
    up: Up, slurm: SlurmCluster, tmp_path: Path, asked: JobResources, step: str | None
) -> None:
    up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 100, resources=asked))
    assert handle.step == step
    assert (handle.platform_id == endpoint_job(slurm)) is (step is not None)
    assert jobs.wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 100)


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
    up: Up, slurm: SlurmCluster, tmp_path: Path, how: tuple[str, ...]
) -> None:
    up(min_ready=1)
    program = tmp_path / "my 'own' $(program).py"
    program.write_text(SCRIPT)
    words = ["a b,c", "$HOME `id` $(id)", "--flag=\"x\" 'y'", "two\nlines", ""]
    command = [PROGRAM, "job", "submit-script", str(program), "--name", "demo", *how, "--", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if how else 6), done.stderr
    handle = JobHandle.model_validate_json(done.stdout.splitlines()[0])
    assert (handle.step is None) is bool(how)
    seen = JobService().wait(handle, timeout_s=240)
    assert (seen.status, seen.exit_code) == (JobStatus.FAILED, 3)
    told = Path(handle.log_path).read_text().strip().splitlines()[-1]
    assert json.loads(told) == {"status": 200, "argv": words}


def test_a_list_of_jobs_asks_slurm_once_about_all_of_them(
    up: Up, slurm: SlurmCluster, tmp_path: Path, asked: Asked
) -> None:
    up()
    jobs, handles = JobService(), []
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        how = JobResources(detached=number % 2 == 0)  # jobs and steps
        handles.append(
            jobs.submit(request(folder, 5000, checkpoint_tag=folder.name, resources=how))
        )
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
        assert told.stdout.count('"running"') == (6 if command[0] == "list" else 1)
        queue = asked.of("squeue")
        steps = [one for one in queue if "--steps" in one]
        assert (len(queue) - len(steps), len(steps)) == calls
        assert asked.of("sacct") == asked.of("scontrol") == []
    for one in handles:
        jobs.cancel(one)


def test_mail_goes_where_it_was_asked_for(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_MAIL_USER", "ops@here")
    up(min_ready=2)
    jobs = JobService()
    handles = {}
    for who in (None, "me@here"):  # the second is no step: Slurm mails about jobs only
        folder = tmp_path / str(who)
        folder.mkdir()
        asked = JobResources(detached=who is None, mail_user=who)
        handles[who] = jobs.submit(request(folder, 20, resources=asked))
        assert jobs.wait(handles[who], timeout_s=240).status is JobStatus.SUCCEEDED
    slurm.run("scontrol", "requeue", task(slurm, 0))
    slurm.run("scontrol", "requeue", endpoint_job(slurm))
    box = slurm.folder / "log/mail"
    expected = [
        ("ops@here", f"job-{handles[None].job_id} Ended"),
        ("me@here", f"job-{handles['me@here'].job_id} Ended"),
        ("ops@here", "demo-replicas"),
        ("ops@here", "demo-endpoint"),
    ]
    for who, what in expected:

        def arrived(who: str = who, what: str = what) -> bool:
            lines = box.read_text().splitlines() if box.exists() else []
            return any(line.startswith(f"{who}: ") and what in line for line in lines)

        until(arrived)
    until(lambda: SwarmService().status("demo").observed == "ready", 60)


def test_mail_of_every_command_that_submits_goes_to_whom_it_names(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_MAIL_USER", "nobody@here")  # the swarm's own is stronger
    up(backend={"mail_user": "ops@here"})
    asked = request(tmp_path, 5)
    program = tmp_path / "program.py"
    program.write_text("print('done')")

    def submit(*words: str) -> str:
        command = [PROGRAM, "job", *words, "--no-progress"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return JobHandle.model_validate_json(done.stdout.splitlines()[0]).job_id

    rows = ["--name", "demo", "--input", asked.input, "--output", asked.output]
    mail = "--mail-user"
    first = submit("submit", *rows, "--input-column", "prompt", mail, "rows@here")
    sent = {
        first: "rows@here",
        submit("resume", first): "rows@here",  # as the job that it goes on with
        submit("resume", first, mail, "again@here"): "again@here",
        submit("retry-failed", first, mail, "failed@here"): "failed@here",
        submit("submit-script", str(program), mail, "script@here"): "script@here",
        submit("submit-script", str(program), "--placement", "job"): "ops@here",
    }
    box = slurm.folder / "log/mail"
    for job_id, who in sent.items():
        until(lambda: box.exists() and f"job-{job_id} " in box.read_text())  # noqa: B023
        [line] = [one for one in box.read_text().splitlines() if f"job-{job_id} " in one]
        assert line.startswith(f"{who}: ")


def test_how_to_log_reaches_the_nodes_where_the_environment_does_not(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_LOG_FORMAT", "json")
    needed = {name: slurm.env[name] for name in ("SLURM_CONF", "PATH", "HWLOC_COMPONENTS")}
    up(backend={"preamble": ["--export=NONE"], "env": needed})
    jobs = JobService()
    for detached in (False, True):
        folder = tmp_path / str(detached)
        folder.mkdir()
        how = JobResources(detached=detached)
        handle = jobs.submit(request(folder, 5, input_columns=("prompt",), resources=how))
        assert jobs.wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
        script = JobPaths(Path(handle.job_dir)).script.read_text()
        assert ("#SBATCH --export=NONE" in script) is detached
    swarm = SwarmStore.open().swarm("demo")
    paths = SwarmPaths(Path(swarm.swarm_dir))
    for log in (paths.endpoint_log, paths.slurm_logs / "replica-0.log"):
        lines = log.read_text().splitlines()
        ours = [json.loads(line) for line in lines if line.startswith("{")]
        assert "info" in {one["level"] for one in ours}
        assert not [line for line in lines if " INFO domyn_swarm" in line]


def test_the_callers_own_slurm_variables_change_nothing(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SBATCH_PARTITION": "nowhere",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_MEM_PER_NODE": "1",
        "SRUN_CPUS_PER_TASK": "64",
        "SLURM_NTASKS": "7",
        "SQUEUE_FORMAT": "x",
    }.items():
        monkeypatch.setenv(name, value)
    up(min_ready=2)
    jobs = JobService()
    for number, detached in enumerate((True, False)):
        folder = tmp_path / str(number)
        folder.mkdir()
        asked = request(folder, 20, resources=JobResources(detached=detached))
        assert jobs.wait(jobs.submit(asked), timeout_s=240).status is JobStatus.SUCCEEDED


def test_a_step_outlives_the_command_that_follows_it(up: Up, tmp_path: Path) -> None:
    up(min_ready=2)
    asked = request(tmp_path, 800)
    command = [PROGRAM, "job", "submit", "--name", "demo", "--input", asked.input]
    command += ["--output", asked.output, "--input-column", "prompt", "--no-progress"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as following:
        assert following.stdout is not None
        handle = JobHandle.model_validate(json.loads(following.stdout.readline()))
        until(lambda: JobService().status(handle).rows_done > 20)
        os.killpg(following.pid, signal.SIGKILL)
    assert handle.step is not None
    assert JobService().wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 800)


@pytest.mark.parametrize("event", ["moves", "down"])
def test_a_step_ends_with_the_endpoint_and_loses_nothing(
    up: Up, slurm: SlurmCluster, tmp_path: Path, event: str
) -> None:
    up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1500, resources=ATTACHED))
    until(lambda: jobs.status(handle).rows_done > 100)
    if event == "moves":
        slurm.run("scancel", "--batch", "--signal=USR1", endpoint_job(slurm))
    else:
        SwarmLifecycle(SwarmStore.open()).down("demo")
        up(min_ready=2)
    ended = jobs.wait(handle, timeout_s=240).status
    assert ended is (JobStatus.TIMED_OUT if event == "moves" else JobStatus.CANCELLED)
    until(lambda: jobs_of(slurm).get(endpoint_job(slurm)) == "RUNNING")
    again = jobs.wait(until(lambda: _resumed(jobs, handle)), timeout_s=240)
    assert again.status is JobStatus.SUCCEEDED, again.message
    assert again.account is not None
    assert again.account.rows_answered == 1500
    assert again.account.requests <= 1500 + 2 * 16  # those in flight, at most
    assert all_answered(tmp_path, 1500)


def _resumed(jobs: JobService, handle: JobHandle) -> JobHandle | None:
    try:
        return jobs.resume(handle)
    except SwarmError:  # the endpoint is not back yet
        return None


FAILING = """
from domyn_swarm import SwarmJob

class Ends(SwarmJob):
    input_columns = ["prompt"]
    output_schema = ["out"]
    async def transform_item(self, item):
        import os, time
        if self.params["how"] == "memory":
            self.kept = b"x" * 1_500_000_000
            time.sleep(60)
        os._exit(3)
"""


@pytest.mark.parametrize("detached", [True, False], ids=["job", "step"])
def test_each_wait_tells_the_truth_about_its_own_job(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    up(min_ready=2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends.py").write_text(FAILING)
    jobs = JobService()
    handles = {}
    for how in ("memory", "exit", "good"):
        folder = tmp_path / how
        folder.mkdir()
        job = {} if how == "good" else {"job": "ends:Ends", "job_kwargs": {"how": how}}
        asked = request(folder, 200, resources=JobResources(detached=detached), **job)
        handles[how] = jobs.submit(asked)
    ends = {how: jobs.wait(handle, timeout_s=240) for how, handle in handles.items()}
    assert ends["good"].status is JobStatus.SUCCEEDED
    assert (ends["exit"].status, ends["exit"].exit_code) == (JobStatus.FAILED, 3)
    assert ends["memory"].status is JobStatus.OUT_OF_MEMORY
