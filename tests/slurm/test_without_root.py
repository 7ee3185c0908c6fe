"""The cluster of who is not root: where the suite runs as root, somebody else starts one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from patience import limit_s
from process_list import running
from slurm.fixtures import need_programs

USER = "daemon"  # Slurm 26.05 refuses to belong to nobody
# Reading is granted: this Python may lie in root's home.
AS_ANOTHER = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--reset-env"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"),
]
PROGRAM = """
import sys
from pathlib import Path
from slurm.cluster import SlurmCluster
from patience import limit_s
from slurm.fixtures import net_wanted

cluster = SlurmCluster(Path(sys.argv[1]), nodes=2, net=net_wanted())
try:
    cluster.start()
    srun = "srun --nodes=2 --mem=100M sh -c 'id -un; echo $SLURMD_NODENAME'"
    done = cluster.run("sbatch", "--wait", "--nodes=2", "--output=said", f"--wrap={srun}")
    assert done.returncode == 0, done
finally:
    cluster.stop()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets' paths must be short
    shutil.chown(made, USER)
    yield made
    shutil.rmtree(made)


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests of the cluster are this test")
def test_without_root_the_nodes_are_the_loopback(folder: Path) -> None:
    need_programs()
    tried = subprocess.run([*AS_ANOTHER, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"nobody else can be here: {tried.stderr}")
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [*AS_ANOTHER, sys.executable, "-B", "-c", PROGRAM, str(folder)],
        cwd=tests,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "all nodes of the Slurm cluster are 127.0.0.1" in done.stderr
    said = (folder / "said").read_text().split()
    assert sorted(said) == sorted(["n1", "n2", USER, USER])
    assert list(running_in(folder)) == []


def running_in(folder: Path) -> Iterator[psutil.Process]:
    for process in running():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                yield process
