"""Sites that change what jobs are known by: comments, and even names."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import CommandLine
from domyn_swarm.backends.rehearsal import Rehearsal
from domyn_swarm.model import JobStatus, utc_now
from domyn_swarm.services.doctor import examine
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.pruning import survey_prunable
from patience import limit_s
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    REPLICA_TASK,
    Up,
    all_answered,
    down,
    ended,
    endpoint_job,
    jobs_of,
    observed,
    program,
    ready,
    request,
    task,
    until,
)
from slurm.test_looking_first import written

FILTER = """#!/bin/sh
for script; do :; done
copy=$(mktemp)
sed {edits} "$script" > "$copy"
head=
for word; do
    [ "$word" = "$script" ] || head="$head $word"
done
{real} $head "$copy"
code=$?
rm "$copy"
{then}
exit $code
"""
KILLS = """\
case "$*" in
    *--test-only*) ;;
    */{script}) kill -9 $PPID ;;  # who submits hears no answer
esac
"""
TAKES = "-e '/^#SBATCH --comment=/d'"
WRITES = "-e '/^#SBATCH --comment=/a #SBATCH --comment=billed-to-us'"
RENAMES = "-e 's/^#SBATCH --job-name=.*/#SBATCH --job-name=demo-anonymous/'"


@dataclass(frozen=True)
class Site:
    """`edit` has a filter of the site's change each script."""

    edit: Callable[..., None]
    logged: pytest.LogCaptureFixture


@pytest.fixture
def site(
    slurm: SlurmCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Site:
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    real = shutil.which("sbatch", path=slurm.env["PATH"])
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{slurm.env['PATH']}")

    def put(edits: str, then: str = "") -> None:
        sbatch.write_text(FILTER.format(edits=edits, real=real, then=then))
        sbatch.chmod(0o755)

    return Site(put, caplog)


def comments(slurm: SlurmCluster) -> set[str]:
    return set(slurm.run("squeue", "-h", "-r", "-t", "R,PD", "-o", "%k").stdout.splitlines())


@pytest.mark.parametrize("edits", [TAKES, WRITES])
def test_where_comments_are_changed_names_do_as_well(
    up: Up,
    slurm: SlurmCluster,
    site: Site,
    tmp_path: Path,
    edits: str,
) -> None:
    site.edit(edits)
    service = up(min_ready=2, backend={"requeue": False})
    assert not any("domyn-swarm" in one for one in comments(slurm))
    assert "this site changes comments" in site.logged.text
    before = task(slurm, 0)
    program(REPLICA_TASK, before).kill()  # its successor has an id that nobody recorded
    until(lambda: (after := task_or_none(slurm, 0)) and after != before)
    until(lambda: ready() == 2)
    service.scale("demo", 3)
    until(lambda: ready() == 3)
    for name, resources in (("step", {}), ("job", {"detached": True})):
        asked = request(tmp_path / name, 20, resources={"detached": False, **resources})
        assert ended(JobService().submit(asked)).status is JobStatus.SUCCEEDED
        assert all_answered(tmp_path / name, 20)
    service.scale("demo", 1)
    until(lambda: len(jobs_of(slurm)) == 2)
    assert observed() == "ready"
    down()
    assert jobs_of(slurm) == {}


def task_or_none(slurm: SlurmCluster, index: int) -> str | None:
    return next((one for one in jobs_of(slurm) if one.endswith(f"_{index}")), None)


def test_where_names_are_changed_too_what_runs_is_not_written_off(
    up: Up,
    slurm: SlurmCluster,
    site: Site,
    tmp_path: Path,
) -> None:
    site.edit(f"{TAKES} {RENAMES}")
    up(min_ready=2)
    assert "it changes names too" in site.logged.text
    assert "no lost replica or endpoint is replaced" in site.logged.text
    asked = request(tmp_path / "job", 20, resources={"detached": True})
    assert ended(JobService().submit(asked)).status is JobStatus.SUCCEEDED
    assert observed() == "ready"
    slurm.run("scancel", endpoint_job(slurm))
    until(lambda: observed() == "failed")
    report = survey_prunable(SwarmStore.open(), jobs_before=utc_now())
    assert [one.name for one in report.swarms] == []
    down()
    assert jobs_of(slurm) == {}


@pytest.mark.parametrize("script", ["endpoint.sh", "replicas.sh"])
def test_what_was_submitted_as_up_was_killed_is_found_without_comments_and_names(
    slurm: SlurmCluster, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    home = tmp_path / "home %j é"
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(home))
    site.edit(f"{TAKES} {RENAMES}", KILLS.format(script=script))
    path = written(tmp_path)
    with CommandLine(home).start("up", "-c", path) as process:
        assert process.wait(limit_s()) == -signal.SIGKILL
    site.edit(f"{TAKES} {RENAMES}")
    kinds = {"_" in one for one in until(lambda: jobs_of(slurm))}
    assert (script == "replicas.sh") in kinds
    SwarmService().list()  # as anybody looks
    parts = SwarmStore.open().swarm("demo").parts
    assert {str(part["platform_id"]) for part in parts} == {*jobs_of(slurm)}
    down()
    assert jobs_of(slurm) == {}


def test_a_site_may_ask_for_a_comment_of_its_own(up: Up, slurm: SlurmCluster) -> None:
    up(replicas=1, backend={"comment": "project=x; 'y'"})
    found = comments(slurm)
    assert len(found) == 2
    assert all(one.startswith("domyn-swarm/demo.") for one in found)
    assert all(one.endswith(" project=x; 'y'") for one in found)
    assert observed() == "ready"


def test_a_rehearsal_notices_what_a_site_changes(site: Site, tmp_path: Path) -> None:
    for edits, status, word in (
        ("-e ''", "ok", "as they were written"),
        (TAKES, "warning", "takes away the comments"),
        (f"{WRITES} {RENAMES}", "warning", "comments and names"),
    ):
        site.edit(edits)
        wish = Rehearsal(gpus=False, within_s=limit_s(), say=print)
        checks = {one.name: one for one in examine(written(tmp_path), wish).checks}
        assert checks["job comments"].status == status
        assert word in checks["job comments"].detail
