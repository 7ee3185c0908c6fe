"""Nodes with addresses of their own: what a swarm makes of them, and what the cluster promises."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from domyn_swarm.model import JobStatus
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from patience import limit_s
from process_list import running
from slurm.cluster import SlurmCluster, slurm_version
from slurm.swarms import (
    HeldJob,
    Up,
    all_answered,
    ended,
    endpoint_job,
    node_of,
    ready,
    resumed,
    submit_held,
    taking_nothing,
    task,
    until,
)

SERVER = """
import socket, sys, time
with socket.create_server((sys.argv[1], int(sys.argv[2]))):
    print("on", flush=True)
    time.sleep(600)
"""
PORT = 5001


@pytest.fixture
def apart(slurm: SlurmCluster) -> SlurmCluster:
    """The session's cluster, whose nodes have links."""
    if not slurm.net:
        pytest.skip("NO TESTS OF SLURM'S NETWORK: all nodes of the cluster are 127.0.0.1")
    return slurm


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a cluster of the test's own; sockets' paths must be short."""
    made = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def address(slurm: SlurmCluster, node: str) -> str:
    return slurm.run("scontrol", "show", "node", node).stdout.split("NodeAddr=")[1].split()[0]


def state(slurm: SlurmCluster, node: str) -> str:
    return slurm.run("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").stdout.strip()


def reached(host: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, PORT)) == 0


@contextlib.contextmanager
def serving(slurm: SlurmCluster, node: str, host: str = "0.0.0.0") -> Iterator[None]:
    """A server in a job on a node."""
    log = slurm.folder / "server.log"
    wrapped = f"{sys.executable} -c '{SERVER}' {host} {PORT}"
    size = ["--mem=100M", "--time=5", f"--output={log}", "--parsable"]
    job = slurm.run("sbatch", f"--nodelist={node}", *size, f"--wrap={wrapped}").stdout.strip()
    until(lambda: log.exists() and log.read_text())
    yield
    slurm.run("scancel", job)
    until(lambda: not slurm.steps(node))
    log.unlink()


@contextlib.contextmanager
def cut_off(slurm: SlurmCluster, *nodes: str) -> Iterator[None]:
    """The nodes are away; afterwards they are back, and what had not heard to end has ended."""
    for node in nodes:
        slurm.cut(node)
    try:
        yield
    finally:
        for node in nodes:
            slurm.mend(node)
    for node in nodes:
        until(lambda node=node: is_back(slurm, node))


def is_back(slurm: SlurmCluster, node: str) -> bool:
    """Whether a node is usable and nothing of before is left on it. 24.11 keeps the reason for
    which it was drained once, and does not take it back by itself when it is lost after that.
    """
    if slurm_version() >= (23, 0) and state(slurm, node) == "down":
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    return state(slurm, node) == "idle" and not slurm.steps(node)


def test_nodes_have_names_and_addresses_of_their_own(apart: SlurmCluster) -> None:
    names = apart.run("srun", "--nodes=4", "--mem=100M", "hostname").stdout.split()
    assert sorted(names) == apart.node_names
    addresses = {node: address(apart, node) for node in apart.node_names}
    assert len(set(addresses.values())) == 4
    for name, told in [*addresses.items(), (socket.gethostname(), apart.network.controller)]:
        found = apart.run("srun", "--nodelist=n1", "--mem=100M", "getent", "hosts", name).stdout
        assert found.split()[0] == told


def test_a_server_is_reached_at_its_nodes_address_alone(apart: SlurmCluster) -> None:
    place = address(apart, "n2")
    with serving(apart, "n2"):
        assert reached(place)
        assert not reached(address(apart, "n3"))
        apart.cut("n2")
        try:
            assert not reached(place)
        finally:
            apart.mend("n2")
        until(lambda: reached(place))
    with serving(apart, "n2", "127.0.0.1"):
        assert not reached(place)
        assert not reached("127.0.0.1")


def test_a_node_is_the_same_when_only_its_slurmd_was_killed(apart: SlurmCluster) -> None:
    with serving(apart, "n2"):
        apart.stop_slurmd("n2")
        assert reached(address(apart, "n2"))
        apart.start_node("n2")
        until(lambda: state(apart, "n2") == "mixed")
        assert reached(address(apart, "n2"))


def test_nodes_of_a_swarm_are_cut_off_and_its_jobs_go_on(
    up: Up, apart: SlurmCluster, tmp_path: Path
) -> None:
    """One of a replica and one of a job, then the endpoint's. What is cut off goes on by itself,
    until it is back and is ended.
    """
    up(min_ready=2, gpus_per_replica=4)
    replicas = [node_of(apart, task(apart, index)) for index in range(2)]
    places = [urlsplit(str(one.url)) for one in SwarmService().status("demo").replicas]
    assert [place.hostname for place in places] == [address(apart, node) for node in replicas]
    assert len({place.hostname for place in places}) == 2
    assert len({place.port for place in places}) == 1

    # A replica's node and the node of one of two jobs.
    home = node_of(apart, endpoint_job(apart))
    [replica] = set(replicas) - {home}
    with taking_nothing(apart, f"{home},{replica}"):
        job = submit_held(tmp_path / "goes on", 300)
    with taking_nothing(apart, f"{home},{replica},{node_of(apart, job.handle.platform_id)}"):
        once = JobResources(detached=True, continues=False)
        lost = submit_held(tmp_path / "is cut off", resources=once)
    with cut_off(apart, replica, node_of(apart, lost.handle.platform_id)):
        job.goes_on()
        until(lambda: JobService().status(lost.handle).status is JobStatus.LOST_NODE)
        until(lambda: ready() == 2)
        finished(job)
    healthy()
    (lost.folder / "released").touch()
    done = ended(resumed(lost.handle))
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(lost.folder, lost.rows)

    # The endpoint's.
    home = node_of(apart, endpoint_job(apart))
    with taking_nothing(apart, home):
        job = submit_held(tmp_path / "endpoint", 200)
    with cut_off(apart, home):
        before = job.progress.requests
        until(lambda: endpoint_job(apart) and node_of(apart, endpoint_job(apart)) not in ("", home))
        job.goes_on()
        assert job.progress.requests > before
        until(lambda: ready() == 2)
        finished(job)
    healthy()


def finished(job: HeldJob) -> None:
    done = job.release()
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0), done.message
    assert all_answered(job.folder, job.rows)


def healthy() -> None:
    """As the swarm is, not as the lost ones tell when they are heard again."""
    seen = SwarmService().status("demo")
    assert (seen.observed, seen.replicas_ready) == ("ready", 2)


def links(bridge: str) -> list[str]:
    """A bridge and all that is plugged into it."""
    found = psutil.net_if_addrs()  # dswarm1 is not the family of dswarm12
    return [name for name in found if name == bridge or name.startswith(f"{bridge}n")]


def namespaces(folder: Path | None = None) -> set[str]:
    """The network namespaces of all processes, or of those whose place is in a folder."""
    found = set()
    for process in running():
        with contextlib.suppress(OSError, psutil.Error):
            if folder is None or Path(process.cwd()).is_relative_to(folder):
                found.add(str(Path(f"/proc/{process.pid}/ns/net").readlink()))
    return found - {str(Path("/proc/self/ns/net").readlink())}


def bridge_of(cluster: SlurmCluster) -> str:
    _, high, low, _ = cluster.network.controller.split(".")
    return f"dswarm{(int(high) - 18) * 256 + int(low)}"


def test_nothing_is_left_of_a_cluster_beside_another(apart: SlurmCluster, folder: Path) -> None:
    other = SlurmCluster(folder, nodes=2, net=True)
    try:
        other.start()
        bridge = bridge_of(other)
        assert bridge != bridge_of(apart)
        assert len(links(bridge)) == 3
        made = namespaces(folder)
        assert len(made) == 2
        other.run("sbatch", "--nodelist=n1", "--mem=100M", "--wrap=setsid -f env -i sleep 600")
        other.run("sbatch", "--nodelist=n2", "--mem=100M", "--wrap=sleep 600")
        until(lambda: len(other.steps()) == 1)  # the first one has left its process behind
        other.crash_node("n2")
        assert len(namespaces(folder)) == 1
        other.start_node("n2")
        assert len(namespaces(folder)) == 2  # perhaps under the number of the one that is gone
        made |= namespaces(folder)
        other.crash_node("n2")
    finally:
        other.stop()
    assert links(bridge) == []
    assert not made & namespaces()
    assert apart.run("srun", "--nodelist=n1", "--mem=100M", "hostname").stdout == "n1\n"


def test_nothing_is_left_of_a_start_that_failed(apart: SlurmCluster, folder: Path) -> None:
    (folder / "spool").mkdir()
    (folder / "spool/n2").touch()  # where n2's own folder should be
    other = SlurmCluster(folder, nodes=2, net=True)
    try:
        with pytest.raises(FileExistsError):
            other.start()
        bridge, made = bridge_of(other), namespaces(folder)
        assert (len(links(bridge)), len(made)) == (2, 1)
    finally:
        other.stop()
    assert links(bridge) == []
    assert not made & namespaces()


def test_a_cluster_is_stopped_by_another_process(apart: SlurmCluster, folder: Path) -> None:
    def command(*words: str) -> str:
        program = [sys.executable, "-m", "slurm.cluster", *words]
        tests = Path(__file__).parents[1]
        return subprocess.run(
            program, cwd=tests, capture_output=True, text=True, check=True, timeout=limit_s()
        ).stdout

    try:
        assert f"SLURM_CONF={folder}" in command("up", str(folder), "--net")
        bridge, made = bridge_of(SlurmCluster(folder, net=True)), namespaces(folder)
        assert (len(links(bridge)), len(made)) == (5, 4)
    finally:
        command("down", str(folder))
    assert links(bridge) == []
    assert not made & namespaces()


def test_a_loopback_cluster_has_no_links(folder: Path) -> None:
    cluster = SlurmCluster(folder)
    for change in (cluster.cut, cluster.mend):
        with pytest.raises(RuntimeError, match=r"n1 has no link of its own.*net=True"):
            change("n1")
