"""Partitions that a site hides: their jobs are shown to root, and to others only on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patience import limit_s
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.test_without_root import AS_ANOTHER

SCRIPT = """\
#!/bin/sh
#SBATCH --partition=hidden --mem=200M --output=/dev/null --chdir=/tmp
srun --mem=0 sleep 600
"""
PROGRAM = """
import json
import sys
from pathlib import Path
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.site_answers import SiteAnswers
from slurm.swarms import until

slurm = Slurm()
job = slurm.submit(Path(sys.argv[1]))
try:
    until(lambda: any(step.startswith(job) for step in slurm.steps(0)))
    seen = slurm.queue(0)[job]
    print(json.dumps({
        "state": seen.state,
        "address": slurm.node_address(seen.node),
        "outputs": [*slurm.outputs([job]).values()],
        "whole": slurm.gives_whole_nodes("hidden"),
        "whole for doctor": SiteAnswers(slurm).gives_whole_nodes("hidden"),
        "names": sorted(slurm.names("partition")),
    }))
finally:
    slurm.cancel([job])
"""


@pytest.fixture
def hidden(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    made = ["PartitionName=hidden", "Nodes=ALL", "Hidden=YES", "OverSubscribe=EXCLUSIVE"]
    done = slurm.run("scontrol", "create", *made)
    assert done.returncode == 0, done.stderr
    yield slurm
    slurm.tidy()
    done = slurm.run("scontrol", "delete", "PartitionName=hidden")
    assert done.returncode == 0, done.stderr


def as_another(slurm: SlurmCluster, *command: str) -> subprocess.CompletedProcess[str]:
    variables = [f"{name}={slurm.env[name]}" for name in CLIENT_VARIABLES]
    return subprocess.run(
        [*AS_ANOTHER, "env", *variables, *command],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="who started the cluster sees what it hides")
def test_what_runs_in_a_hidden_partition_is_seen(hidden: SlurmCluster, tmp_path: Path) -> None:
    tried = as_another(hidden, "true")
    if tried.returncode != 0:
        pytest.skip(f"nobody else can be here: {tried.stderr}")
    by_itself = as_another(hidden, "scontrol", "show", "partition", "hidden")
    assert by_itself.returncode != 0, by_itself.stdout  # else it is not hidden

    (script := tmp_path / "job.sh").write_text(SCRIPT)
    done = as_another(hidden, sys.executable, "-B", "-c", PROGRAM, str(script))
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen.pop("address")
    assert "hidden" in seen.pop("names")
    assert seen == {
        "state": "RUNNING",
        "outputs": ["/dev/null"],
        "whole": True,
        "whole for doctor": True,
    }
