"""A site with accounting: what the controller forgot, and who may use what."""

from __future__ import annotations

import getpass
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.test_compute import DETACHED, make_spec, start_endpoint
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.printed import HISTORY, history
from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute
from domyn_swarm.config import dump_yaml
from domyn_swarm.model import JobStatus
from domyn_swarm.services.doctor import examine
from domyn_swarm.services.requests import UpRequest
from domyn_swarm.services.swarms import SwarmService
from patience import limit_s
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.fixtures import Asked, need_programs
from slurm.swarms import config, until


@pytest.fixture(scope="module")
def accounting_cluster() -> Iterator[SlurmCluster]:
    need_programs(accounting=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = SlurmCluster(folder, nodes=1, accounting=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def accounted(accounting_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    for name in CLIENT_VARIABLES:
        monkeypatch.setenv(name, accounting_cluster.env[name])
    return accounting_cluster


def test_the_end_of_a_job_is_known_when_the_controller_forgot_it(
    accounted: SlurmCluster, tmp_path: Path
) -> None:
    compute = SlurmCompute()
    detached = make_spec(tmp_path, "import time; time.sleep(60)").model_copy(update=DETACHED)
    handle = compute.submit(detached)
    until(lambda: compute.probe(handle) is JobStatus.RUNNING)
    accounted.run("scancel", "--signal=KILL", "--full", handle.platform_id)  # no exit record

    def accounted_for() -> bool:
        told = accounted.run("sacct", "-n", "-P", "-j", handle.platform_id, "-o", "State").stdout
        return bool(told.strip()) and "RUNNING" not in told

    until(accounted_for)
    accounted.stop_controller()
    accounted.start_controller(forget=True)
    assert accounted.run("squeue", "-h", "--states=all").stdout == ""
    known = Slurm().jobs([handle.platform_id])[handle.platform_id]
    assert known.over
    assert SlurmCompute().probe(handle).final


def test_accounting_is_asked_once_about_all_that_the_controller_forgot(
    accounted: SlurmCluster, tmp_path: Path, asked: Asked
) -> None:
    compute, handles = SlurmCompute(), []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        spec = make_spec(folder, "import time; time.sleep(60)").model_copy(update=DETACHED)
        handles.append(compute.submit(spec))
    ids = [one.platform_id for one in handles]
    until(lambda: set(compute.probe_all(handles).values()) == {JobStatus.RUNNING})
    accounted.run("scancel", *ids)

    def accounted_for() -> bool:
        told = accounted.run("sacct", "-n", "-P", "-X", "-j", ",".join(ids), "-o", "State").stdout
        return len(told.split()) >= len(ids) and "RUNNING" not in told

    until(accounted_for)
    accounted.stop_controller()
    accounted.start_controller(forget=True)
    for one in handles:  # as if its node had died with it
        Path(one.exit_path).unlink(missing_ok=True)
    asked.clear()
    found = SlurmCompute().probe_all(handles)
    assert found == {one.job_id: JobStatus.CANCELLED for one in handles}
    assert 1 <= len(asked.of("squeue")) <= 2  # a second look is for one that is 5 s old
    assert len(asked.of("sacct")) == 1


def test_the_doctor_knows_accounts_and_qos(accounted: SlurmCluster, tmp_path: Path) -> None:
    user = getpass.getuser()
    for words in (
        ["add", "account", "research"],
        ["add", "qos", "patient"],
        ["add", "user", user, "account=research", "qos=normal,patient"],
    ):
        done = accounted.run("sacctmgr", "-i", *words)
        assert done.returncode == 0, done.stderr + done.stdout
    path = tmp_path / "swarm.yaml"

    def checks(account: str, qos: str, endpoint_qos: str) -> dict[str, tuple[str, str]]:
        backend = {"account": account, "qos": qos, "endpoint": {"qos": endpoint_qos}}
        path.write_text(dump_yaml(config(backend=backend)))
        return {one.name: (one.status, str(one.fix)) for one in examine(path).checks}

    good = checks("research", "patient", "normal")
    asked = ("accounting", "backend.account", "backend.qos", "backend.endpoint.qos")
    assert [good[name][0] for name in asked] == ["ok"] * 4
    wrong = checks("reserch", "hasty", "lazy")
    assert wrong["backend.account"][0] == "failed"
    assert "research" in wrong["backend.account"][1]  # root has one of its own as well
    assert wrong["backend.qos"] == ("failed", "Choose one of: normal, patient")
    assert wrong["backend.endpoint.qos"] == ("failed", "Choose one of: normal, patient")


def test_a_step_is_accounted_under_its_own_name(accounted: SlurmCluster, tmp_path: Path) -> None:
    endpoint, compute = start_endpoint(accounted), SlurmCompute()
    spec = make_spec(tmp_path, "raise SystemExit(3)").model_copy(update={"tag": "tag-of-a-swarm"})
    handle = compute.submit(spec)
    assert compute.wait(handle, timeout_s=limit_s()) is JobStatus.FAILED
    step = f"{endpoint}.0"
    until(lambda: step in (slurm := Slurm()).jobs([step]) and slurm.jobs([step])[step].over)
    assert Slurm().jobs([step])[step].comment == f"job-{spec.job_id}"
    accounted.run("scancel", endpoint)


def test_a_campaign_is_rehearsed_with_what_accounting_says_of_the_past(
    accounted: SlurmCluster, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --mem=100M\nsleep 1\n")
    slurm = Slurm()
    jobs = {slurm.submit(script) for _ in range(3)}
    command = [*HISTORY.split(), "-j", ",".join(jobs)]
    until(lambda: accounted.run(*command).stdout.count("|COMPLETED") == len(jobs))
    past, file = tmp_path / "past", tmp_path / "swarm.yaml"
    past.write_text(accounted.run(*command).stdout)
    assert [job.state for job in history(past.read_text())] == ["COMPLETED"] * len(jobs)
    limit = {"min": "01:00:00", "max": "02:00:00"}
    file.write_text(dump_yaml(config(gpus_per_replica=1, backend={"time_limit": limit})))
    found = SwarmService().rehearse(UpRequest(config=file), {"rows": 10_000}, history=past)
    assert len(found.assumptions.wait_s) == len(jobs)
    assert found.assumptions.limit_s == (3600.0, 7200.0)
    assert found.result.ended == "settled"
