"""Sites where the nodes do not see the home, or the login node does not know the nodes: the first
mistakes of most users, named within a minute.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from domyn_swarm.config import dump_yaml
from domyn_swarm.errors import LaunchError
from domyn_swarm.services.doctor import examine
from slurm.cluster import SlurmCluster
from slurm.swarms import bring_up, config, jobs_of

KNOWN_BY_NAME = """#!/bin/sh
case "$*" in
*"show node "*) for word; do node=$word; done; echo "NodeName=$node NodeAddr=$node.invalid" ;;
*) exec {real} "$@" ;;
esac
"""


def test_a_home_that_the_nodes_do_not_see_is_the_cause_that_is_told(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path that means this folder to this process alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOMYN_SWARM_HOME", "/proc/self/cwd/home")
    with pytest.raises(LaunchError) as told:
        bring_up(config())
    assert "could not write its log into /proc/self/cwd/home" in told.value.message
    assert "DOMYN_SWARM_HOME" in told.value.message
    assert told.value.hint == ""  # there is no log to see
    assert jobs_of(slurm) == {}


def test_a_login_node_that_does_not_know_the_nodes_names_says_so(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(KNOWN_BY_NAME.format(real=shutil.which("scontrol")))
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    path = tmp_path / "swarm.yaml"
    path.write_text(dump_yaml(config()))
    [check] = [one for one in examine(path).checks if one.name == "node names"]
    assert (check.status, "n1.invalid" in check.detail) == ("failed", True)
    if not slurm.net:  # there all nodes have this machine's name
        return
    with pytest.raises(
        LaunchError, match=r"cannot resolve n[1-4], the name of the endpoint's node"
    ):
        bring_up(config())
    assert jobs_of(slurm) == {}
