"""Nodes that take their own name for a loopback address, as Debian's installer leaves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.model import JobStatus
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    Up,
    all_answered,
    ended,
    endpoint_job,
    jobs_of,
    node_of,
    request,
    swarm_paths,
    taking_nothing,
    task,
    until,
)

NAMES_INSTEAD = """#!/bin/sh
{real} "$@" | sed -E 's/NodeAddr=[^ ]+ NodeHostName=([^ ]+)/NodeAddr=\\1 NodeHostName=\\1/'
"""


@pytest.fixture
def named(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmCluster]:
    """Slurm knows its nodes by their names; others resolve them, each node itself to loopback."""
    if not slurm.net:
        pytest.skip("NO TESTS OF NODES' OWN NAMES: all nodes of the cluster are 127.0.0.1")
    folder = tmp_path / "names"
    folder.mkdir()
    scontrol = folder / "scontrol"
    scontrol.write_text(NAMES_INSTEAD.format(real=shutil.which("scontrol")))
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{slurm.env['PATH']}")
    others = (slurm.folder / "etc/hosts").read_text().splitlines()
    for node in slurm.node_names:
        lines = [line for line in others if line.split()[-1] != node]
        hosts = folder / node
        hosts.write_text("\n".join([f"127.0.1.1 {node}", *lines, ""]))
        inside(slurm, node, "mount", "--bind", str(hosts), "/etc/hosts")
    yield slurm
    for node in slurm.node_names:
        inside(slurm, node, "umount", "/etc/hosts")


def address(slurm: SlurmCluster, node: str) -> str:
    shown = (slurm.folder / "etc/hosts").read_text().splitlines()
    return next(line.split()[0] for line in shown if line.split()[-1] == node)


def inside(slurm: SlurmCluster, node: str, *command: str) -> None:
    done = slurm.run(*slurm.network.inside(node, slurm.folder), *command)
    assert done.returncode == 0, done.stderr


def test_a_node_that_takes_its_name_for_loopback_is_reached_by_others(
    up: Up, named: SlurmCluster, tmp_path: Path
) -> None:
    assert named.run("srun", "-w", "n1", "--mem=100M", "getent", "hosts", "n1").stdout[:3] == "127"
    assert Slurm().node_address("n2") == "n2"
    with taking_nothing(named, "n2,n3,n4"):
        up(wait=False, replicas=1)
        until(lambda: node_of(named, endpoint_job(named)) == "n1")
    with taking_nothing(named, "n1"):
        SwarmService().scale("demo", 2)
        until(lambda: len(jobs_of(named)) == 3 and node_of(named, task(named, 1)) not in ("", "n1"))
    until(lambda: SwarmService().status("demo").replicas_ready == 2)
    router = json.loads(swarm_paths().router_manifest.read_text())["workers"]
    assert len(router) == 2
    hosts = [urlsplit(str(one.url)).hostname for one in SwarmService().status("demo").replicas]
    assert hosts == [address(named, node_of(named, task(named, index))) for index in range(2)]
    with taking_nothing(named, "n1,n2"):
        handle = JobService().submit(request(tmp_path / "job", 40))
    assert ended(handle).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path / "job", 40)
