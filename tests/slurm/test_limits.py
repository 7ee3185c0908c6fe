"""What limits do to what a swarm asks for: text in, findings out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from domyn_swarm.backends.slurm.allowance import (
    ASSOCIATION_FIELDS,
    QOS_FIELDS,
    Limits,
    Request,
    account_limits,
    findings,
    findings_together,
    left_by,
    partition_findings,
    partition_limits,
    qos_limits,
    tres,
)

REPLICA = Request(
    what="a replica",
    tres={"node": 1.0, "gres/gpu": 4.0, "cpu": 8.0, "mem": 64_000.0},
    keys={"gres/gpu": "gpus_per_replica", "cpu": "cpus_per_task", "wall": "backend.time_limit"},
    wall_s=3600.0,
    most=4,
)
ENDPOINT = Request(
    what="the endpoint", tres={"node": 1.0, "gres/gpu": 0.0, "cpu": 2.0}, keys={}, wall_s=3600.0
)


def qos(**columns: str) -> Limits:
    return qos_limits({**dict.fromkeys(QOS_FIELDS, ""), "Name": "q", **columns})


def test_resources_as_slurm_writes_them() -> None:
    assert tres("cpu=4,gres/gpu:a100=1,gres/gpu=2,mem=1.50G,node=3") == {
        "cpu": 4.0,
        "gres/gpu:a100": 1.0,
        "gres/gpu": 2.0,
        "mem": 1536.0,
        "node": 3.0,
    }
    assert tres("") == {}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, None),
        ({"MaxTRES": "gres/gpu=4,cpu=8"}, None),
        ({"MaxTRES": "gres/gpu=2"}, "4 GPUs, and the QoS q gives a job 2 GPUs at most"),
        ({"MaxTRESPU": "gres/gpu=2"}, "gives a job 2 GPUs at most"),
        ({"GrpTRES": "cpu=4"}, "8 CPUs, and the QoS q gives a job 4 CPUs at most"),
        ({"MaxTRESPerNode": "gres/gpu=1"}, "gives a job 1 GPU at most"),
        ({"MaxTRES": "mem=32G"}, "64000 MB of memory"),
        ({"MinTRES": "gres/gpu=8"}, "less than the QoS q demands (8 GPUs)"),
        ({"MaxWall": "00:30:00"}, "60 minutes, and the QoS q gives a job 30 minutes at most"),
        ({"MaxWall": "1-00:00:00"}, None),
        ({"MaxWall": "UNLIMITED"}, None),
        ({"MaxTRESPA": "gres/gpu=2"}, "gives a job 2 GPUs at most"),
        ({"MaxTRESMins": "gres/gpu=240"}, None),
        (
            {"MaxTRESMins": "gres/gpu=239"},
            "4 GPUs for 60 minutes, and the QoS q gives a job 239 GPU-m",
        ),
        (
            {"GrpTRESRunMins": "cpu=479,node=60"},
            "8 CPUs for 60 minutes, and the QoS q gives a job 4",
        ),
        ({"GrpTRESRunMins": "billing=1"}, None),  # how a job is billed is the site's affair
    ],
)
def test_one_job_against_a_qos(columns: dict[str, str], said: str | None) -> None:
    found = [*findings(REPLICA, qos(**columns))]
    assert all(one.never for one in found)
    words = [one.words for one in found]
    assert words == [] if said is None else len(words) == 1 and said in words[0], words


def test_the_key_is_that_of_the_limit() -> None:
    partition = partition_limits("PartitionName=p MaxTime=00:30:00 MaxNodes=UNLIMITED")
    for limits, key in ((partition, "backend.partition"), (qos(MaxWall="00:30:00"), "backend.qos")):
        [found] = findings(REPLICA, limits)
        assert f"choose another {key}" in found.fix


def test_no_time_limit_is_above_any() -> None:
    [found] = findings(replace(REPLICA, wall_s=math.inf), qos(MaxWall="10:00"))
    assert "no time limit" in found.words
    assert "backend.time_limit" in found.fix
    [found] = findings(replace(REPLICA, wall_s=math.inf), qos(MaxTRESMins="cpu=1000000"))
    assert "8 CPUs for no limited time" in found.words
    assert "backend.time_limit" in found.fix


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("MaxMemPerNode=UNLIMITED", None),
        ("MaxMemPerCPU=100", None),
        ("MaxMemPerNode=64000", None),
        ("MaxMemPerNode=63999", "64000 MB of memory, and the partition p gives a job 63999 MB"),
    ],
)
def test_the_memory_of_a_partitions_node(shown: str, said: str | None) -> None:
    found = [*findings(REPLICA, partition_limits(f"PartitionName=p MaxTime=UNLIMITED {shown}"))]
    assert (said is None) is (found == [])
    assert all(one.never and str(said) in one.words for one in found)
    two = replace(REPLICA, tres={**REPLICA.tres, "node": 2.0})  # 32 GB on each
    assert [*findings(two, partition_limits("PartitionName=p MaxMemPerNode=32000"))] == []


@pytest.mark.parametrize(
    ("columns", "never"),
    [
        ({"MaxJobsPU": "9"}, None),
        ({"MaxJobsPU": "3"}, False),  # two replicas serve
        ({"MaxJobsPU": "1"}, True),  # none does
        ({"GrpJobs": "1"}, True),
        ({"MaxJobsPA": "1"}, True),
        ({"MaxSubmitPA": "4"}, True),
        ({"MaxTRESPA": "gres/gpu=8"}, False),
        ({"MaxSubmitPU": "5"}, None),
        ({"MaxSubmitPU": "4"}, True),
        ({"GrpTRES": "gres/gpu=8"}, False),
        ({"GrpTRES": "gres/gpu=16"}, None),
        ({"MaxTRESPU": "cpu=9"}, True),  # the endpoint takes two of them
    ],
)
def test_all_jobs_against_a_qos(columns: dict[str, str], never: bool | None) -> None:
    found = [*findings_together((REPLICA, ENDPOINT), qos(**columns))]
    assert [one.never for one in found] == ([] if never is None else [never])


@pytest.mark.parametrize(
    ("first", "left"),
    [
        ({}, {"MaxTRES": "cpu=8,gres/gpu=2", "MaxWall": "10:00", "MaxJobs": "3", "GrpJobs": "5"}),
        (
            {"MaxTRES": "gres/gpu=8", "MaxWall": "20:00"},
            {"MaxTRES": "cpu=8", "MaxJobs": "3", "GrpJobs": "5"},
        ),
        (
            {"MaxJobsPU": "9"},
            {"MaxTRES": "cpu=8,gres/gpu=2", "MaxWall": "10:00", "GrpJobs": "5"},
        ),
    ],
)
def test_each_limit_is_taken_where_it_is_defined_first(
    first: dict[str, str], left: dict[str, str]
) -> None:
    blank = dict.fromkeys(ASSOCIATION_FIELDS, "")
    row = {"MaxTRES": "cpu=8,gres/gpu=2", "MaxWall": "10:00", "MaxJobs": "3", "GrpJobs": "5"}
    qos = {**dict.fromkeys(QOS_FIELDS, ""), "Name": "q", **first}
    assert left_by([qos], {**blank, "Account": "a", **row}) == {**blank, "Account": "a", **left}


def test_what_an_account_gives_to_all_beneath_it() -> None:
    row = {"Account": "top", "ParentName": "root", "GrpJobs": "", "GrpSubmit": "4"}
    row["GrpTRESRunMins"] = ""
    limits = account_limits({**row, "GrpTRES": "gres/gpu=6"})
    assert [*findings(REPLICA, limits)] == []
    found = [*findings_together((REPLICA, ENDPOINT), limits)]
    assert [one.never for one in found] == [True, False]
    assert all(one.words.startswith("the account top lets you") for one in found[:1])
    assert all("backend.account" in one.fix for one in found)


PARTITION = "PartitionName=p AllowAccounts={} AllowQos={} MaxNodes={} MaxTime={} State={}"


@pytest.mark.parametrize(
    ("values", "never"),
    [
        (("ALL", "ALL", "UNLIMITED", "UNLIMITED", "UP"), []),
        (("a,mine", "ALL", "UNLIMITED", "UNLIMITED", "UP"), []),
        (("a,b", "ALL", "UNLIMITED", "UNLIMITED", "UP"), [True]),
        (("ALL", "other", "UNLIMITED", "UNLIMITED", "UP"), [True]),
        (("ALL", "ALL", "UNLIMITED", "UNLIMITED", "DOWN"), [False]),  # jobs wait for it
        (("ALL", "ALL", "UNLIMITED", "UNLIMITED", "DRAIN"), [True]),
    ],
)
def test_a_partition_by_its_line(values: tuple[str, ...], never: list[bool]) -> None:
    shown = PARTITION.format(*values)
    assert [one.never for one in partition_findings(shown, "mine", "q")] == never
    assert [*partition_findings(shown, None, None)] == [
        one for one in partition_findings(shown, "mine", "q") if "is D" in one.words
    ]


def test_the_longest_time_of_a_partition() -> None:
    limits = partition_limits(PARTITION.format("ALL", "ALL", "1", "00:05:00", "UP"))
    assert limits.wall_s == 300.0
    words = [one.words for one in findings(replace(REPLICA, tres={"node": 2.0}), limits)]
    assert len(words) == 2
