"""Every compute backend runs these cases; a gap is declared with its reason, and must be one."""

from __future__ import annotations

import inspect
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from domyn_swarm.backends.lepton.lepton_compute import LeptonCompute
from domyn_swarm.backends.lepton.specs import secret_name
from domyn_swarm.backends.local.local_compute import LocalCompute
from domyn_swarm.backends.protocols import ComputeBackend, ComputeSpec
from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute
from domyn_swarm.model import JobHandle, JobStatus, Reach
from domyn_swarm.planning.plan import JobResources
from lepton.fixtures import SECTION
from lepton.workspace import StandIn
from patience import limit_s, until
from slurm.cluster import SlurmCluster


@dataclass(frozen=True)
class BackendUnderTest:
    """How to make one, and what it cannot do (case → reason)."""

    name: str
    make: Callable[[], ComputeBackend]
    asks: Mapping[str, Any] = field(default_factory=dict)  # of every spec
    gaps: Mapping[str, str] = field(default_factory=dict)


SHARED_TAG = "tag-of-a-swarm"
DETACHED = {"resources": JobResources(detached=True)}
BACKENDS = [
    BackendUnderTest("local", LocalCompute),
    BackendUnderTest("slurm", SlurmCompute, DETACHED),
    BackendUnderTest("slurm-step", SlurmCompute, {"tag": SHARED_TAG}),
    BackendUnderTest("lepton", LeptonCompute, {"tag": SHARED_TAG, "platform_options": SECTION}),
]
ASKS: dict[str, Any] = {}  # of the backend under test
SLURM = {"type": "slurm", "partition": "main", "endpoint": {"mem": "1000M", "cpus_per_task": 1}}


@pytest.fixture(params=BACKENDS, ids=lambda one: one.name)
def backend(request: pytest.FixtureRequest) -> ComputeBackend:
    under_test: BackendUnderTest = request.param
    if under_test.name.startswith("slurm"):
        request.getfixturevalue("slurm")
        if under_test.name == "slurm-step":
            request.getfixturevalue("allocation")
    if under_test.name == "lepton":
        lepton: StandIn = request.getfixturevalue("lepton")
        lepton.secrets[secret_name(SHARED_TAG)] = "the-key"
        lepton.grace_s = 2.0
    ASKS.clear()
    ASKS.update(under_test.asks)
    case = request.node.originalname.removeprefix("test_")
    if case in under_test.gaps:
        request.applymarker(pytest.mark.xfail(strict=True, reason=under_test.gaps[case]))
    return under_test.make()


@pytest.fixture(scope="module")
def allocation(slurm_cluster: SlurmCluster) -> Iterator[str]:
    """One endpoint's for all steps of this module."""
    job = start_endpoint(slurm_cluster)
    slurm_cluster.keeps.add(job)
    yield job
    slurm_cluster.keeps.clear()
    slurm_cluster.run("scancel", job)


def start_endpoint(slurm: SlurmCluster) -> str:
    """An allocation as a swarm's endpoint has one; return its id once it runs."""
    size = ["--ntasks=1", "--cpus-per-task=2", "--mem=1000M", "--time=60", "--output=/dev/null"]
    comment = f"--comment=domyn-swarm/{SHARED_TAG}/endpoint"
    command = ["sbatch", "--parsable", *size, comment, "--wrap=exec sleep 3600"]
    job = slurm.run(*command).stdout.strip()
    until(lambda: slurm.run("squeue", "-h", "-j", job, "-o", "%T").stdout.strip() == "RUNNING")
    return job


def make_spec(folder: Path, program: str) -> ComputeSpec:
    job_id = f"job-{secrets.token_hex(4)}"
    job_dir = folder / job_id
    job_dir.mkdir()
    fields: dict[str, Any] = {
        "job_id": job_id,
        "swarm": "s",
        "tag": f"tag-{job_id}",
        "argv": (sys.executable, "-c", program),
        "cwd": str(folder),
        "job_dir": str(job_dir),
        "platform_options": SLURM,  # read by the backend that it is for
    }
    return ComputeSpec(**{**fields, **ASKS})


SLEEP = "import time; time.sleep(600)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
time.sleep(600)
"""
DRAINS = """
import signal, sys, time
def drain(*_):
    print("drained", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, drain)
print("on", flush=True)
time.sleep(600)
"""


def log(backend: ComputeBackend, handle: JobHandle) -> str:
    backend.fetch_log(handle)
    path = Path(handle.log_path)
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("program", "status", "code"),
    [
        ("print('done')", JobStatus.SUCCEEDED, 0),
        ("raise SystemExit(3)", JobStatus.FAILED, 3),
        ("raise SystemExit(7)", JobStatus.PARTIAL, 7),
        ("raise SystemExit(143)", JobStatus.CANCELLED, 143),
    ],
)
def test_the_outcome_is_the_programs_own(
    backend: ComputeBackend, tmp_path: Path, program: str, status: JobStatus, code: int
) -> None:
    handle = backend.submit(make_spec(tmp_path, program))
    assert backend.wait(handle, timeout_s=limit_s()) is status
    assert backend.probe(handle) is status
    assert f'"code": {code}' in Path(handle.exit_path).read_text()


def test_a_killed_program_has_failed(backend: ComputeBackend, tmp_path: Path) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    handle = backend.submit(make_spec(tmp_path, program))
    assert backend.wait(handle, timeout_s=limit_s()) is JobStatus.FAILED
    assert '"signal": 9' in Path(handle.exit_path).read_text()


def test_a_program_that_is_not_there_has_failed(backend: ComputeBackend, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "").model_copy(update={"argv": ("/nowhere/program",)})
    handle = backend.submit(spec)
    assert backend.wait(handle, timeout_s=limit_s()) is JobStatus.FAILED
    assert "cannot start /nowhere/program" in log(backend, handle)


def test_many_are_told_of_at_once(backend: ComputeBackend, tmp_path: Path) -> None:
    programs = (SLEEP, "print('done')", "raise SystemExit(3)")
    handles = [backend.submit(make_spec(tmp_path, program)) for program in programs]
    wanted = (JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED)
    expected = dict(zip((one.job_id for one in handles), wanted, strict=True))
    until(lambda: backend.probe_all(handles) == expected)
    assert backend.probe_all([]) == {}
    backend.cancel(handles[0])


def test_waiting_ends_with_the_time_out(backend: ComputeBackend, tmp_path: Path) -> None:
    handle = backend.submit(make_spec(tmp_path, SLEEP))
    until(lambda: backend.probe(handle) is JobStatus.RUNNING)
    assert backend.wait(handle, timeout_s=0.3) is JobStatus.RUNNING
    backend.cancel(handle)


def test_a_job_whose_time_is_up_finishes_and_says_so(
    backend: ComputeBackend, tmp_path: Path
) -> None:
    spec = make_spec(tmp_path, DRAINS)
    resources = spec.resources.model_copy(update={"time_limit_s": 2.0})
    handle = backend.submit(spec.model_copy(update={"resources": resources}))
    assert backend.wait(handle, timeout_s=limit_s()) is JobStatus.TIMED_OUT
    assert "drained" in log(backend, handle)


def test_cancel_ends_this_job_and_no_other(backend: ComputeBackend, tmp_path: Path) -> None:
    first = backend.submit(make_spec(tmp_path, DRAINS))
    second = backend.submit(make_spec(tmp_path, DRAINS))
    until(lambda: "on" in log(backend, first) and "on" in log(backend, second))
    backend.cancel(first)
    assert backend.probe(first) is JobStatus.CANCELLED
    assert "drained" in log(backend, first)
    assert backend.probe(second) is JobStatus.RUNNING
    backend.cancel(second)
    backend.cancel(second)  # idempotent
    assert backend.probe(second) is JobStatus.CANCELLED


def test_cancel_ends_a_program_that_will_not_listen(
    backend: ComputeBackend, tmp_path: Path
) -> None:
    handle = backend.submit(make_spec(tmp_path, STUBBORN))
    until(lambda: "on" in log(backend, handle))
    backend.cancel(handle, grace_s=1)
    assert backend.probe(handle) is JobStatus.CANCELLED
    assert '"signal": 9' in Path(handle.exit_path).read_text()


def test_cancel_at_once_is_a_cancellation(backend: ComputeBackend, tmp_path: Path) -> None:
    handle = backend.submit(make_spec(tmp_path, SLEEP))
    backend.cancel(handle)
    assert backend.probe(handle) is JobStatus.CANCELLED


def test_a_job_whose_handle_was_lost_is_found(backend: ComputeBackend, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, DRAINS)
    assert backend.find(spec.job_id, spec.job_dir) is None
    handle = backend.submit(spec)
    until(lambda: "on" in log(backend, handle))
    found = backend.find(spec.job_id, spec.job_dir)
    assert found is not None
    assert (found.platform_id, found.step) == (handle.platform_id, handle.step)
    assert found.process == handle.process
    backend.cancel(found)
    ended = backend.find(spec.job_id, spec.job_dir)
    assert ended is not None
    assert backend.probe(ended) is JobStatus.CANCELLED


def test_environment_folder_and_umask_arrive(backend: ComputeBackend, tmp_path: Path) -> None:
    odd = "a b,c $HOME `x` \"q\" 'p' \\ end"
    program = "import os; print(os.environ['ODD']); print(os.getcwd()); print(oct(os.umask(0)))"
    spec = make_spec(tmp_path, program).model_copy(update={"env": {"ODD": odd}})
    before = os.umask(0o026)
    try:
        handle = backend.submit(spec)
        assert backend.wait(handle, timeout_s=limit_s()) is JobStatus.SUCCEEDED
        assert log(backend, handle).splitlines() == [odd, str(tmp_path), "0o26"]
    finally:
        os.umask(before)
    kept = [path for path in Path(spec.job_dir).rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in kept} == {
        path.name: "0o600" for path in kept
    }


def test_a_job_survives_the_process_that_submitted_it(
    backend: ComputeBackend, tmp_path: Path
) -> None:
    spec = make_spec(tmp_path, "import time; time.sleep(0.5); print('still here')")
    program = f"""
import os, signal
from {type(backend).__module__} import {type(backend).__name__}
from domyn_swarm.backends.protocols import ComputeSpec
spec = ComputeSpec.model_validate_json({spec.model_dump_json()!r})
handle = {type(backend).__name__}().submit(spec)
print(handle.model_dump_json(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    handle = JobHandle.model_validate_json(done.stdout)
    assert backend.wait(handle, timeout_s=limit_s()) is JobStatus.SUCCEEDED
    assert "still here" in log(backend, handle)


def test_it_knows_what_was_started_where_it_cannot_ask(
    backend: ComputeBackend, tmp_path: Path
) -> None:
    here = backend.location(make_spec(tmp_path, "").platform_options)
    assert backend.reach(here) is backend.reach(None) is Reach.HERE
    elsewhere = here.model_copy(update={"name": "far", "boot_id": "another"})
    assert backend.reach(elsewhere) is Reach.ELSEWHERE


def test_signatures_are_the_protocols(backend: ComputeBackend) -> None:
    for name in ("submit", "find", "probe", "probe_all", "wait", "fetch_log", "cancel"):
        theirs = inspect.signature(getattr(ComputeBackend, name)).parameters
        ours = inspect.signature(getattr(type(backend), name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


def test_a_lost_wrapper_ends_the_program_and_is_a_failure(tmp_path: Path) -> None:
    """Local only: the wrapper is killed, and with it the record of how the program ended."""
    backend = LocalCompute()
    handle = backend.submit(make_spec(tmp_path, DRAINS))
    until(lambda: "on" in log(backend, handle))
    assert handle.process is not None
    [program] = psutil.Process(handle.process.pid).children()
    os.kill(handle.process.pid, signal.SIGKILL)
    until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE)
    assert "drained" in log(backend, handle)
    assert backend.wait(handle, timeout_s=limit_s()) is JobStatus.FAILED
