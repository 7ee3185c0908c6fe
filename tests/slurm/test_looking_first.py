"""Looking before leaping: plan, doctor, and what Slurm would say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.config import dump_yaml
from domyn_swarm.errors import LaunchError, SubmitRejected
from domyn_swarm.services.doctor import examine
from domyn_swarm.services.requests import UpRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from patience import limit_s
from slurm.cluster import SlurmCluster
from slurm.swarms import config, jobs_of, until


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "swarm.yaml"
    path.write_text(dump_yaml(config(**keys)))
    return path


def test_the_plan_shows_scripts_and_what_slurm_says(slurm: SlurmCluster, tmp_path: Path) -> None:
    file = written(tmp_path, replicas=5, gpus_per_replica=2)
    done = subprocess.run(
        [PROGRAM, "plan", "-c", str(file), "--test", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert (report["gpus"], report["gpu_hours"]) == (10, 10.0)
    assert "#SBATCH --array=0-4" in report["scripts"]["replicas.sh"]
    assert [said.split(":")[0] for said in report["test"]] == ["endpoint.sh", "replicas.sh"]
    assert all("to start at" in said for said in report["test"])
    assert SwarmStore.open().swarms() == []
    assert jobs_of(slurm) == {}
    table = subprocess.run(
        [PROGRAM, "plan", "-c", str(file)], capture_output=True, text=True, check=True
    ).stdout
    assert "10 GPU-hours" in table
    assert "#SBATCH --gres=gpu:2" in table


def test_more_than_any_node_has_is_refused_before_anything_runs(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    file = written(
        tmp_path, gpus_per_replica=8, gpus_per_node=8, backend={"partition": "whole,main"}
    )
    launch = SwarmService.prepare(UpRequest(config=file))
    said = r"replicas\.sh.*not available.* \(partitions tried: whole,main\)"
    with pytest.raises(SubmitRejected, match=said):
        SwarmService.report(launch, test=True)
    with pytest.raises(SubmitRejected, match=r"replicas\.sh.*not available"):
        SwarmService().up(launch)
    assert jobs_of(slurm) == {}
    assert SwarmStore.open().swarms() == []


def test_nodes_that_are_away_for_a_while_refuse_nothing(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    possible = written(tmp_path)
    nodes = f"nodename={','.join(slurm.node_names)}"
    slurm.run("scontrol", "update", nodes, "state=drain", "reason=maintenance")
    try:
        launch = SwarmService.prepare(UpRequest(config=possible))
        report = SwarmService.report(launch, test=True)
        assert report.test is not None
        assert "waits: 4 nodes are drained or down" in report.test[0]
        checks = [one for one in examine(possible).checks if one.name == "rehearsal"]
        assert [one.status for one in checks] == ["warning", "warning"]
        SwarmService().up(launch, wait=False)
        until(lambda: SwarmService().status("demo").observed == "queued")
        SwarmService().down(["demo"])
        (tmp_path / "other").mkdir()
        never = written(tmp_path / "other", cpus_per_task=64)
        impossible = SwarmService.prepare(UpRequest(config=never))
        # sbatch takes it all the same, from 24.11 on it does not
        refused = "Slurm will not run it|CPU count per node can not be satisfied"
        with pytest.raises((LaunchError, SubmitRejected), match=refused):
            SwarmService().up(impossible, timeout_s=limit_s())
        assert jobs_of(slurm) == {}
    finally:
        slurm.run("scontrol", "update", nodes, "state=resume")
        until(lambda: set(slurm.run("sinfo", "-h", "-o", "%T").stdout.split()) == {"idle"})


def found(path: Path) -> dict[str, str]:
    return {check.name: check.status for check in examine(path).checks}


def test_doctor_is_content(slurm: SlurmCluster, tmp_path: Path) -> None:
    checks = examine(written(tmp_path)).checks
    assert {check.status for check in checks} <= {"ok", "warning"}
    assert sum(check.name == "rehearsal" for check in checks) == 2
    assert all((check.status == "ok") == (check.fix is None) for check in checks)


def test_doctor_names_each_problem_and_its_fix(slurm: SlurmCluster, tmp_path: Path) -> None:
    backend = {
        "partition": "nowhere",
        "container": "apptainer",
        "venv_path": str(tmp_path / "no venv"),
    }
    path = written(tmp_path, model="/no/such/model", image="/no/image.sif", backend=backend)
    wrong = {check.name: check for check in examine(path).checks if check.status == "failed"}
    assert set(wrong) == {
        "backend.partition",
        "backend.endpoint.partition",
        "model",
        "image",
        "venv_path",
    }
    assert sum(one.name == "venv_path" for one in examine(path).checks) == 1
    assert "main, urgent, whole" in str(wrong["backend.partition"].fix)
    done = subprocess.run(
        [PROGRAM, "doctor", "-c", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "there is no 'nowhere'" in done.stdout


def test_doctor_names_what_only_a_container_would_take(slurm: SlurmCluster, tmp_path: Path) -> None:
    path = written(tmp_path, backend={"mounts": {"/scratch": "/scratch"}})
    [one] = [one for one in examine(path).checks if one.name == "container"]
    assert (one.status, one.detail.split(":")[0]) == ("warning", "backend.mounts")


def test_doctor_knows_each_of_several_partitions(slurm: SlurmCluster, tmp_path: Path) -> None:
    several = {"partition": "whole,main", "endpoint": {"partition": "urgent,main"}}
    seen = found(written(tmp_path, gpus_per_replica=2, backend=several))
    assert seen["backend.partition"] == seen["backend.endpoint.partition"] == "ok"
    assert seen["rehearsal"] == "ok"
    assert not Slurm().gives_whole_nodes("whole,main")  # it may come to either
    assert not Slurm().gives_whole_nodes("nowhere")  # of which `sbatch` says what is wrong
    launch = SwarmService.prepare(UpRequest(config=tmp_path / "swarm.yaml"))
    said = SwarmService.report(launch, test=True).test or ()
    tried = [one.partition("tried: ")[2] for one in said]
    assert tried == ["urgent,main)", "whole,main)"]
    several["partition"] = "main,nowhere"
    wrong = [one for one in examine(written(tmp_path, backend=several)).checks if one.fix]
    told = {one.name: one.detail for one in wrong if one.status == "failed"}
    assert told["backend.partition"] == "there is no 'nowhere'"
    assert "backend.endpoint.partition" not in told


def test_doctor_warns_where_nothing_keeps_accounts(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (few := tmp_path / "bin").mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo"):
        (few / name).symlink_to(str(shutil.which(name)))
    path = written(tmp_path)
    monkeypatch.setenv("PATH", str(few))
    seen = found(path)
    assert (seen["commands"], seen["accounting"]) == ("ok", "warning")
    assert "failed" not in seen.values()


def test_doctor_away_from_slurm(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    [wrong] = [check for check in examine(path).checks if check.status == "failed"]
    assert wrong.name == "commands"
    assert "login node" in str(wrong.fix)


def test_doctor_reads_slurms_refusal(slurm: SlurmCluster, tmp_path: Path) -> None:
    path = written(tmp_path, gpus_per_replica=8, gpus_per_node=8)
    [wrong] = [check for check in examine(path).checks if check.status == "failed"]
    assert wrong.name == "rehearsal"
    assert "not available" in wrong.detail
    assert "backend.gres" in str(wrong.fix)
    assert "The script is" not in str(wrong.fix)  # it was a temporary one


def test_the_doctor_of_a_laptop(tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text("model: m\nengine: vllm\nreplicas: 64\nbackend: local\n")
    wrong = {check.name: check for check in examine(path).checks if check.status == "failed"}
    assert set(wrong) == {"engine", "GPUs"}
    assert "pip install vllm" in str(wrong["engine"].fix)
    assert found(path)["ports"] == "ok"
    assert examine(None).well
    assert sys.executable in examine(None).checks[0].detail
