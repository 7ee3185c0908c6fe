"""Limits of a site that a swarm meets, on a real cluster that enforces them: reported before
anything is submitted, and where nobody asked, the end of `up`, with what to change.
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM
from domyn_swarm.config import dump_yaml
from domyn_swarm.errors import SwarmError
from domyn_swarm.services.doctor import examine
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.swarm.snapshot import ReplicaSnapshot
from patience import limit_s
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.fixtures import need_programs
from slurm.swarms import bring_up, config, down, jobs_of, until

SETTINGS = """\
AccountingStorageEnforce=associations,limits,qos
MaxArraySize=6
PartitionName=short Nodes=ALL MaxTime=5
PartitionName=theirs Nodes=ALL AllowAccounts=others
PartitionName=closed Nodes=ALL State=INACTIVE
PartitionName=fenced Nodes=ALL
PartitionName=lean Nodes=ALL MaxMemPerNode=200
"""
QOS = {
    "onegpu": ["MaxTRESPerJob=gres/gpu=1"],
    "fewgpus": ["MaxTRESPerUser=gres/gpu=2"],
    "nogpus": ["GrpTRES=gres/gpu=1"],
    "brief": ["MaxWall=5"],
    "onejob": ["MaxJobsPerUser=1"],
    "twosubmitted": ["MaxSubmitJobsPerUser=2"],
    "large": ["MinTRESPerJob=gres/gpu=4"],
    "fewtogether": ["MaxTRESPerAccount=gres/gpu=1"],
    "onetogether": ["MaxJobsPerAccount=1"],
    "shortgpus": ["MaxTRESMinsPerJob=gres/gpu=60"],
    "runminutes": ["GrpTRESRunMins=gres/gpu=60"],
    "fence": ["MaxTRESPerJob=gres/gpu=1"],
    "overfence": ["MaxTRESPerJob=gres/gpu=4", "Flags=OverPartQOS"],
}


@pytest.fixture(scope="module")
def limiting() -> Iterator[SlurmCluster]:
    need_programs(accounting=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = SlurmCluster(folder, nodes=2, accounting=True, settings=SETTINGS)
    try:
        cluster.start()
        names = ",".join(["normal", *QOS])
        user = getpass.getuser()
        for words in (
            *(["add", "account", name] for name in ("research", "others", "faculty")),
            ["add", "account", "grants", "parent=faculty"],
            ["modify", "account", "faculty", "set", "GrpTRES=gres/gpu=1"],
            *(["add", "qos", name, *limits] for name, limits in QOS.items()),
            ["add", "user", user, "account=research", f"qos={names}"],
            ["add", "user", user, "account=grants", f"qos={names}"],
            ["modify", "user", user, "set", "defaultaccount=research"],
        ):
            done = cluster.run("sacctmgr", "-i", *words)
            assert done.returncode == 0, done.stderr + done.stdout
        until(lambda: fenced(cluster))  # the controller hears of a QoS a moment later
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def fenced(cluster: SlurmCluster) -> bool:
    update = ["scontrol", "update", "PartitionName=fenced", "QoS=fence"]
    return cluster.run(*update).returncode == 0


@pytest.fixture
def site(limiting: SlurmCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SlurmCluster:
    for name in CLIENT_VARIABLES:
        monkeypatch.setenv(name, limiting.env[name])
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(tmp_path / "home"))
    return limiting


BRIEF = {"drain_before_end_s": 30}
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "onegpu": (
        {"qos": "onegpu"},
        "a replica asks for 2 GPUs, and the QoS onegpu gives a job 1 GPU at most",
        "gpus_per_replica",
        "QOSMaxGRESPerJob",
    ),
    "nogpus": (
        {"qos": "nogpus"},
        "a replica asks for 2 GPUs, and the QoS nogpus gives a job 1 GPU at most",
        "gpus_per_replica",
        "QOSGrpGRES",
    ),
    "brief": (
        {"qos": "brief"},
        "a replica asks for 60 minutes, and the QoS brief gives a job 5 minutes at most",
        "backend.time_limit",
        "QOSMaxWallDurationPerJobLimit",
    ),
    "onejob": (
        {"qos": "onejob"},
        "the QoS onejob lets your jobs have 1 job running at a time",
        "backend.endpoint.qos",
        "QOSMaxJobsPerUserLimit",
    ),
    "lean": (
        {"partition": "lean", "endpoint": {"mem": "1000M", "cpus_per_task": 1}},
        "the endpoint asks for 1000 MB of memory, and the partition lean gives a job 200 MB",
        "backend.endpoint.mem",
        "(MaxMemPerLimit|PartitionConfig)",  # the second once it was scheduled
    ),
    "fewtogether": (
        {"qos": "fewtogether"},
        "a replica asks for 2 GPUs, and the QoS fewtogether gives a job 1 GPU at most",
        "gpus_per_replica",
        "MaxGRESPerAccount",
    ),
    "onetogether": (
        {"qos": "onetogether"},
        "the QoS onetogether lets your jobs have 1 job running at a time",
        "backend.endpoint.qos",
        "MaxJobsPerAccount",
    ),
    "shortgpus": (
        {"qos": "shortgpus"},
        "a replica asks for 2 GPUs for 60 minutes, and the QoS shortgpus gives a job 60 GPU-min",
        "backend.time_limit",
        "QOSMaxGRESMinutesPerJob",
    ),
    "runminutes": (
        {"qos": "runminutes"},
        "a replica asks for 2 GPUs for 60 minutes, and the QoS runminutes gives a job 60 GPU-min",
        "backend.time_limit",
        "QOSGrpGRESRunMinutes",
    ),
    "large": (
        {"qos": "large"},
        "a replica asks for 2 GPUs, less than the QoS large demands (4 GPUs)",
        "gpus_per_replica",
        "QOSMinGRES",
    ),
    "grants": (
        {"account": "grants"},
        "a replica asks for 2 GPUs, and the account faculty gives a job 1 GPU at most",
        "gpus_per_replica",
        "AssocGrpGRES",
    ),
    "fenced": (
        {"partition": "fenced"},
        "a replica asks for 2 GPUs, and the QoS fence of the partition fenced gives a job 1 GPU",
        "gpus_per_replica",
        "QOSMaxGRESPerJob",
    ),
    "short": (
        {"partition": "short"},
        "a replica asks for 60 minutes, and the partition short gives a job 5 minutes at most",
        "backend.time_limit",
        "will not run it",  # PartitionTimeLimit, or PartitionConfig
    ),
    "between two": (
        {"qos": "brief", "time_limit": {"min": "00:04:00", "max": "01:00:00"}, **BRIEF},
        "a replica asks for 60 minutes, and the QoS brief gives a job 5 minutes at most",
        "backend.time_limit",
        "QOSMaxWallDurationPerJobLimit",
    ),
    "theirs": (
        {"partition": "theirs"},
        "the partition theirs does not take the account research, but others",
        "backend.account",
        "backend.partition",  # PartitionConfig, or the controller's own words
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "twosubmitted": (
        {"backend": {"qos": "twosubmitted"}},
        "the QoS twosubmitted lets you have 2 jobs in the queue, and the swarm is 3",
        "replicas",
    ),
    "array": (
        {"replicas": 8},
        "the replicas are an array of 8 tasks, and the site's MaxArraySize is 6",
        "replicas",
    ),
    "closed": (
        {"backend": {"partition": "closed"}},
        "the partition closed is INACTIVE",
        "backend.partition",
    ),
}


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "swarm.yaml"
    path.write_text(dump_yaml(config(gpus_per_replica=2, **keys)))
    return path


def check_reported(path: Path, words: str, key: str) -> None:
    """By `doctor` and by `plan --test`, which start nothing."""
    found = [one for one in examine(path).checks if one.name == "limits"]
    [one] = [one for one in found if words in one.detail]
    assert one.status == "failed"
    assert key in str(one.fix)
    done = subprocess.run(
        [PROGRAM, "plan", "-c", str(path), "--test"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "Slurm would accept it and never run it" in done.stderr


@pytest.mark.parametrize("case", CASES)
def test_what_can_never_run_is_reported_beforehand(
    site: SlurmCluster, tmp_path: Path, case: str
) -> None:
    backend, words, key, _ = CASES[case]
    check_reported(written(tmp_path, backend=backend), words, key)


@pytest.mark.parametrize("case", REFUSED)
def test_what_slurm_refuses_is_reported_beforehand(
    site: SlurmCluster, tmp_path: Path, case: str
) -> None:
    keys, words, key = REFUSED[case]
    check_reported(written(tmp_path, **keys), words, key)
    with pytest.raises(SwarmError):
        bring_up(config(gpus_per_replica=2, **keys))
    assert jobs_of(site) == {}


def test_of_several_partitions_each_says_why_none_takes_it(
    site: SlurmCluster, tmp_path: Path
) -> None:
    path = written(tmp_path, backend={"partition": "closed,short"})
    words = (
        "none of closed,short accepts it: the partition closed is INACTIVE: it takes no jobs; a "
        "replica asks for 60 minutes, and the partition short gives a job 5 minutes at most"
    )
    check_reported(path, words, "backend.partition")


def test_a_partition_that_is_down_for_a_while_is_waited_for_whatever_others_refuse(
    site: SlurmCluster, tmp_path: Path
) -> None:
    path = written(tmp_path, backend={"partition": "closed,main"})
    site.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        [one] = [one for one in examine(path).checks if one.name == "limits"]
        assert (one.status, one.detail) == (
            "warning",
            "the partition main is DOWN: jobs wait until it is UP",
        )
    finally:
        site.run("scontrol", "update", "partitionname=main", "state=up")


@pytest.mark.parametrize("case", CASES)
def test_what_can_never_run_ends_up_with_the_reason_and_nothing_is_left(
    site: SlurmCluster, tmp_path: Path, case: str
) -> None:
    backend, _, key, reason = CASES[case]
    path = written(tmp_path, backend=backend)
    done = subprocess.run(
        [PROGRAM, "up", "-c", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s() + 60.0,  # a limit that the endpoint uses up is waited for so long
    )
    assert done.returncode == 5, done.stderr
    assert re.search(reason, done.stderr), done.stderr
    assert key in done.stderr or case in ("theirs",)
    assert "endpoint.log" not in done.stderr  # where nothing is to be read of it
    assert jobs_of(site) == {}


def test_a_qos_may_go_before_that_of_its_partition(site: SlurmCluster, tmp_path: Path) -> None:
    path = written(tmp_path, backend={"partition": "fenced", "qos": "overfence"})
    [one] = [one for one in examine(path).checks if one.name == "limits"]
    assert one.status == "ok"
    bring_up(config(gpus_per_replica=2, backend={"partition": "fenced", "qos": "overfence"}))
    down()


def test_an_endpoint_that_takes_a_whole_node_is_pointed_out(
    site: SlurmCluster, tmp_path: Path
) -> None:
    path = written(tmp_path, backend={"partition": "whole"})
    [one] = [one for one in examine(path).checks if one.name == "limits"]
    assert (one.status, "takes a whole node of whole" in one.detail) == ("warning", True)
    assert "backend.endpoint.partition" in str(one.fix)


def test_what_may_run_later_is_waited_for_and_says_why(site: SlurmCluster, tmp_path: Path) -> None:
    path = written(tmp_path, backend={"qos": "fewgpus"})
    [one] = [one for one in examine(path).checks if one.name == "limits"]
    assert (one.status, one.detail) == (
        "warning",
        "the QoS fewgpus lets your jobs have 2 GPUs at a time: the others wait",
    )
    bring_up(config(gpus_per_replica=2, min_ready=1, backend={"qos": "fewgpus"}))
    try:
        waiting = until(lambda: [one for one in rows() if "QOSMaxGRESPerUser" in str(one.reason)])
        assert [one.state for one in waiting] == ["pending"]
        seen = SwarmService().status("demo")
        assert (seen.observed, seen.replicas_ready) == ("ready", 1)
    finally:
        down()


def rows() -> list[ReplicaSnapshot]:
    return list(SwarmService().status("demo").replicas)
