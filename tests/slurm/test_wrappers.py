"""Sites whose `sbatch` prints more than an id, another id, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.test_compute import DETACHED, make_spec
from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute
from domyn_swarm.errors import PlatformUnavailable, SubmissionUnknown, SubmitRejected
from domyn_swarm.model import JobStatus
from domyn_swarm.services.swarms import SwarmService
from slurm.cluster import SlurmCluster
from slurm.swarms import Up, down, jobs_of, until

GREETS = """\
echo '-----------------------------------------------------------------'
echo 'Welcome to Supercomputer 42; 3 messages'
echo '--> Verifying valid submit host (login1)..OK'
{real} "$@" || exit
echo '  --> 17.5 of 4000 hours are used  '
echo 'see https://example.org/quota' >&2
"""
HIDES = "{real} \"$@\" >/dev/null && echo 'Your job was submitted.'"
FILTERS = """\
case "$*" in *--test-only*) exec {real} "$@" ;; esac
echo 'sbatch: error: You must name a project:' >&2
echo 'sbatch: error: add --comment=project:NAME' >&2
echo 'sbatch: error: Batch job submission failed: Unspecified error' >&2
exit 1
"""

Wraps = Callable[[str], None]


@pytest.fixture
def wraps(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wraps:
    """Puts such a script before the real `sbatch`."""
    real = shutil.which("sbatch")

    def put(body: str) -> None:
        program = tmp_path / "bin/sbatch"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{body.format(real=real)}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return put


def test_greetings_are_no_part_of_an_id(
    up: Up, slurm: SlurmCluster, wraps: Wraps, tmp_path: Path
) -> None:
    wraps(GREETS)
    up(min_ready=2)
    assert len(jobs_of(slurm)) == 3
    compute = SlurmCompute()
    spec = make_spec(tmp_path, "import time; time.sleep(600)").model_copy(update=DETACHED)
    handle = compute.submit(spec)
    assert handle.platform_id.isdecimal()
    until(lambda: compute.probe(handle) is JobStatus.RUNNING)
    compute.cancel(handle)
    assert compute.probe(handle) is JobStatus.CANCELLED
    down()
    assert jobs_of(slurm) == {}


def test_a_swarm_whose_ids_are_hidden_leaves_nothing_behind(
    up: Up, slurm: SlurmCluster, wraps: Wraps
) -> None:
    wraps(HIDES)
    with pytest.raises(SubmissionUnknown, match=r"no job id for endpoint\.sh: Your job was sub"):
        up()
    assert jobs_of(slurm) == {}
    [ended] = SwarmService().down(["demo"])
    assert ended.stopped, ended.error


def test_a_job_whose_id_is_hidden_is_found_by_its_tag(
    slurm: SlurmCluster, wraps: Wraps, tmp_path: Path
) -> None:
    wraps(HIDES)
    compute = SlurmCompute()
    spec = make_spec(tmp_path, "import time; time.sleep(600)").model_copy(update=DETACHED)
    with pytest.raises(PlatformUnavailable, match=r"no job id for job\.sh"):
        compute.submit(spec)
    handle = compute.find(spec.job_id, spec.job_dir)
    assert handle is not None
    until(lambda: compute.probe(handle) is JobStatus.RUNNING)
    compute.cancel(handle)
    assert slurm.run("squeue", "-h").stdout == ""


def test_all_that_a_sites_filter_says_is_shown(up: Up, slurm: SlurmCluster, wraps: Wraps) -> None:
    wraps(FILTERS)
    with pytest.raises(SubmitRejected) as refused:
        up()
    for words in ("name a project", "--comment=project:NAME", "Unspecified error"):
        assert words in refused.value.message
    assert "\n" not in refused.value.message
    assert jobs_of(slurm) == {}
