"""Records of hosts, boots and clusters that cannot be asked from here, and how they go away."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from domyn_swarm.backends.local.processes import TAG, carrying
from domyn_swarm.claims import claim
from domyn_swarm.errors import RunsElsewhere, SwarmExists
from domyn_swarm.model import JobStatus, Location, SwarmPhase
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.process_identity import INITIAL_PID_NAMESPACE, this_host
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.reconcile import being_launched
from local_swarms import launch_of
from other_hosts import OtherHost, need_namespaces
from swarm.test_pruning import SLURM, names, recorded, running, with_job

FAR = Location(kind="host", name="far", boot_id="its own", pid_namespace=1, machine_id="far's")
CLUSTER = Location(kind="cluster", name="alps")


@pytest.mark.parametrize(("location", "backend"), [(FAR, "local"), (CLUSTER, SLURM)])
def test_a_record_of_a_place_that_is_gone_for_good_is_forgotten_and_pruned(
    swarm_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    location: Location,
    backend: Any,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no Slurm here
    folder = recorded(swarm_home, "lost", SwarmPhase.READY, location=location, backend=backend)
    job_id = with_job(folder, JobStatus.RUNNING, tmp_path / "out.parquet", location=FAR)
    cli = CommandLine(swarm_home)

    down = cli("down", "lost", "-y")
    assert down.returncode == 4
    assert f"runs on {location}" in down.stderr
    assert "`domyn-swarm down lost --forget`" in down.stderr
    with pytest.raises(SwarmExists, match=f"ready on {location}"):
        SwarmLifecycle(SwarmStore.open()).up(launch_of("lost"))
    with pytest.raises(RunsElsewhere, match="cannot end it from here"):
        JobService().cancel(job_id)
    assert cli.json("db", "prune", "--yes")["swarms"] == []

    forgotten = cli.json("down", "lost", "--forget", "-y")["swarms"]
    assert [(one["stopped"], one["forgotten"]) for one in forgotten] == [(False, True)]
    assert SwarmStore.open().job(job_id).status is JobStatus.FAILED
    seen = SwarmService().status("lost")
    assert (seen.phase, seen.detail) == (SwarmPhase.STOPPED, f"forgotten: it was on {location}")
    if backend == "local":  # the platform is asked about it here
        assert names(cli.json("db", "prune", "--yes"), "swarms") == {"lost"}


def test_a_stopped_swarm_of_another_host_is_not_pruned(swarm_home: Path) -> None:
    recorded(swarm_home, "over", location=FAR)
    cli = CommandLine(swarm_home)
    report = cli.json("db", "prune", "--yes")
    assert (report["swarms"], "the host far" in report["kept"][0]["why"]) == ([], True)
    cli.ok("down", "over", "--forget", "-y")
    assert names(cli.json("db", "prune", "--yes"), "swarms") == {"over"}


def test_a_job_is_forgotten_by_itself(swarm_home: Path, tmp_path: Path) -> None:
    folder = recorded(swarm_home, "here", location=this_host())
    job_id = with_job(folder, JobStatus.RUNNING, tmp_path / "out.parquet", location=FAR)
    cli = CommandLine(swarm_home)
    refused = cli("job", "cancel", job_id)
    assert refused.returncode == 4
    assert f"`domyn-swarm job cancel {job_id} --forget`" in refused.stderr
    assert cli.json("job", "cancel", job_id, "--forget")["status"] == "failed"
    assert cli.json("job", "status", job_id)["whereabouts"]["elsewhere"] is False


def test_what_can_be_asked_is_not_forgotten(swarm_home: Path) -> None:
    recorded(swarm_home, "here", SwarmPhase.READY, location=this_host())
    cli = CommandLine(swarm_home)
    refused = cli("down", "here", "--forget", "-y")
    assert refused.returncode == 4
    assert "can be asked from here" in refused.stderr
    assert cli("down", "--all", "--forget", "-y").returncode == 2


def test_after_a_restart_of_the_host_its_swarms_and_jobs_are_over(
    swarm_home: Path, tmp_path: Path
) -> None:
    need_namespaces()
    here = this_host()
    folder = recorded(swarm_home, "before", SwarmPhase.READY, location=here)
    job_id = with_job(folder, JobStatus.RUNNING, tmp_path / "out.parquet", location=here)
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("00000000-0000-0000-0000-000000000000\n")
    again = OtherHost(swarm_home, here.name, boot_id, same_processes=True)
    if not here.machine_id or here.pid_namespace != INITIAL_PID_NAMESPACE:
        pytest.skip("this is a container: nobody can know that its host was restarted")
    with running(SwarmStore.open().swarm("before").tag):  # by its tag it is another boot's
        again.visit(["swarm", "list"], ["job", "list", "--refresh"])
    store = SwarmStore.open()
    assert store.swarm("before").phase is SwarmPhase.STOPPED
    assert "its host was restarted" in store.swarm("before").detail
    assert store.job(job_id).status is JobStatus.FAILED


def test_another_container_of_this_hosts_name_is_no_restart(
    swarm_home: Path, tmp_path: Path
) -> None:
    need_namespaces()
    recorded(swarm_home, "before", SwarmPhase.READY, location=this_host())
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("00000000-0000-0000-0000-000000000000\n")
    [listed] = OtherHost(swarm_home, this_host().name, boot_id).visit(["swarm", "list"])
    assert "another container, or before a restart" not in listed.stderr
    assert SwarmStore.open().swarm("before").phase is SwarmPhase.READY


def test_what_is_left_of_a_swarm_that_was_written_off_is_stopped(swarm_home: Path) -> None:
    recorded(swarm_home, "left", location=this_host())
    tag = SwarmStore.open().swarm("left").tag
    with running(tag):
        assert len(carrying(TAG, tag)) == 1
        SwarmLifecycle(SwarmStore.open()).down("left")
        assert carrying(TAG, tag) == {}


def test_a_launcher_on_another_host_may_be_at_work(swarm_home: Path) -> None:
    from domyn_swarm.swarm.factory import rehydrate

    folder = recorded(swarm_home, "coming", SwarmPhase.LAUNCHING)
    swarm = rehydrate(SwarmStore.open().swarm("coming"))
    launcher = SwarmPaths(folder).launcher(swarm.record.tag)
    claim(SwarmPaths(folder).launcher(swarm.record.tag))
    assert being_launched(swarm)
    text = launcher.read_text()
    launcher.write_text(text.replace(f'"pid":{os.getpid()}', '"pid":4194303'))
    assert not being_launched(swarm)
    boot_id = str(this_host().boot_id)
    launcher.write_text(launcher.read_text().replace(boot_id, "another"))
    if sys.platform == "linux" and this_host().machine_id:
        text = launcher.read_text().replace(str(this_host().machine_id), "another")
        launcher.write_text(text)
    assert being_launched(swarm)
