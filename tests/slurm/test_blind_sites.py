"""Sites where the nodes do not see the home, or the login node does not know the nodes: the first
mistakes of most users, named within a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from command_line import PROGRAM
from domyn_swarm.config import dump_yaml
from domyn_swarm.errors import LaunchError
from domyn_swarm.services.doctor import examine
from other_hosts import need_namespaces
from patience import limit_s
from slurm.cluster import SlurmCluster
from slurm.swarms import bring_up, config, jobs_of

KNOWN_BY_NAME = """#!/bin/sh
{real} "$@" | sed -E 's/^NodeName=([^ ]+) (.*)NodeAddr=[^ ]+/NodeName=\\1 \\2NodeAddr=\\1.invalid/'
"""


def test_a_home_that_the_nodes_do_not_see_is_the_cause_that_is_told(
    slurm: SlurmCluster, tmp_path: Path, swarm_home: Path
) -> None:
    need_namespaces()
    path = tmp_path / "swarm.yaml"
    path.write_text(dump_yaml(config()))
    swarm_home.mkdir()
    inside = f"mount -t tmpfs none '{swarm_home}' && exec '{PROGRAM}' up -c '{path}'"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside],
        capture_output=True,
        text=True,
        timeout=2 * limit_s(),
        check=False,
    )
    assert done.returncode == 5, done.stderr
    said = " ".join(done.stderr.split())
    assert f"could not write its log into {swarm_home}" in said
    assert "DOMYN_SWARM_HOME" in said
    assert "endpoint.log" not in said.split("could not write its log into")[1]  # there is none
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
