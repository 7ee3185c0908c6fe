"""`db prune`: what is over goes, and nothing that lives or could not be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from command_line import CommandLine
from domyn_swarm.backends.local.processes import PART, TAG
from domyn_swarm.claims import claim
from domyn_swarm.model import JobStatus, Location, SwarmPhase, utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from local_swarms import launch_of

SLURM = {"type": "slurm", "partition": "main", "container": "none"}
AWAY = Location(kind="host", name="another-machine", boot_id="b", pid_namespace=1)


def recorded(
    home: Path,
    name: str,
    phase: SwarmPhase = SwarmPhase.STOPPED,
    *,
    location: Location | None = None,
    **keys: Any,
) -> Path:
    """A swarm in the database, and its folder."""
    launch = launch_of(name, home_directory=home, **keys)
    plan, context = launch.plan, launch.context
    paths = SwarmPaths.of(home, name)
    SwarmStore.open().create_swarm(
        SwarmRecord(
            name=name,
            tag=f"{name}.{os.urandom(4).hex()}",
            backend=plan.backend,
            phase=phase,
            swarm_dir=str(paths.root),
            plan_json=plan.model_dump_json(),
            location=location,
            created_at=utc_now(),
            updated_at=utc_now(),
        )
    )
    write_private(paths.api_key, context.tag)
    write_private(paths.engine_log(0), "a log")
    return paths.root


def with_job(
    folder: Path, status: JobStatus, output: Path, *, location: Location | None = None
) -> str:
    """A job of the swarm in that folder."""
    job_id = f"job-of-{folder.name}"
    paths = SwarmPaths(folder).job(job_id)
    write_private(paths.spec, "{}")
    SwarmStore.open().create_job(
        JobRecord(
            job_id=job_id,
            name="n",
            swarm=folder.name,
            platform="local",
            status=status,
            location=location,
            job_dir=str(paths.root),
            input="i",
            output=str(output),
            submitted_at=utc_now(),
        )
    )
    return job_id


@contextmanager
def running(tag: str) -> Iterator[None]:
    """A process that carries a swarm's tag."""
    environment = {**os.environ, TAG: tag, PART: "replica-0"}
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    child = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield
    finally:
        child.kill()
        child.communicate()


def names(report: dict[str, Any], which: str) -> set[str]:
    return {swarm["name"] for swarm in report[which]}


def test_a_swarm_that_is_over_goes_with_its_folder_and_its_ended_jobs(
    swarm_home: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.parquet"
    output.write_text("answers")
    folder = recorded(swarm_home, "over")
    job_id = with_job(folder, JobStatus.SUCCEEDED, output)
    checkpoint = swarm_home / "checkpoints" / "some-identity" / "journal"
    write_private(checkpoint, "results")
    cli = CommandLine(swarm_home)

    listing = cli("db", "prune")
    assert listing.returncode == 0
    assert "would be removed" in listing.stdout
    assert "Add --yes" in listing.stderr
    asked = cli.json("db", "prune")
    assert asked["removed"] is False
    assert [(one["name"], one["jobs"]) for one in asked["swarms"]] == [("over", [job_id])]
    assert folder.is_dir()

    done = cli.json("db", "prune", "--yes")
    assert done["removed"] is True
    assert names(done, "swarms") == {"over"}
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []
    store = SwarmStore.open()
    assert store.swarms(include_stopped=True) == []
    assert store.jobs() == []
    assert (output.read_text(), checkpoint.read_text()) == ("answers", "results")
    assert cli.json("db", "prune", "--yes")["swarms"] == []


def test_nothing_goes_that_lives_or_could_not_be_asked(swarm_home: Path, tmp_path: Path) -> None:
    kept = {
        "tagged": recorded(swarm_home, "tagged"),  # stopped, it says, but something carries its tag
        "silent": recorded(swarm_home, "silent", backend=SLURM),
        "silent-live": recorded(swarm_home, "silent-live", SwarmPhase.READY, backend=SLURM),
        "busy": recorded(swarm_home, "busy"),
        "holding": recorded(swarm_home, "holding"),
        "coming": recorded(swarm_home, "coming"),
        "away": recorded(swarm_home, "away", SwarmPhase.READY, location=AWAY),
    }
    recorded(swarm_home, "gone", SwarmPhase.READY)  # ended without a word: it is over, too
    left = SwarmPaths(recorded(swarm_home, "left")).launcher("left.x")  # by an `up` that was killed
    claim(left)
    write_private(left, json.dumps({**json.loads(left.read_text()), "started_at": -1.0}))
    with_job(kept["busy"], JobStatus.RUNNING, tmp_path / "out.parquet")
    with_job(kept["holding"], JobStatus.SUCCEEDED, kept["holding"] / "out.parquet")
    claim(SwarmPaths(kept["coming"]).launcher("another"))  # by this process
    no_slurm = {"PATH": str(tmp_path)}
    tag = SwarmStore.open().swarm("tagged").tag
    with running(tag):
        program = str(Path(sys.executable).with_name("domyn-swarm"))
        done = subprocess.run(
            [program, "db", "prune", "--yes", "--json"],
            env={**os.environ, **no_slurm},
            capture_output=True,
            text=True,
            check=True,
        )
    report = json.loads(done.stdout)
    assert names(report, "swarms") == {"gone", "left"}
    why = {one["name"]: one["why"] for one in report["kept"]}
    assert set(why) == set(kept)
    assert "replica 0" in why["tagged"]
    assert "could not be asked" in why["silent"]
    assert why["silent-live"] == "it is ready"
    assert "job-of-busy" in why["busy"]
    assert "holds the output" in why["holding"]
    assert "is being brought up" in why["coming"]
    assert "another-machine" in why["away"]
    assert all(SwarmPaths(folder).api_key.is_file() for folder in kept.values())
    assert {one.name for one in SwarmStore.open().swarms(include_stopped=True)} == set(kept)


def test_what_came_alive_since_the_listing_stays(swarm_home: Path) -> None:
    from domyn_swarm.services.database import DatabaseService

    folder = recorded(swarm_home, "again")
    listed = DatabaseService().prunable()
    assert [one.name for one in listed.swarms] == ["again"]
    recorded(swarm_home, "again", SwarmPhase.LAUNCHING)
    report = DatabaseService().prune(listed)
    assert [one.why for one in report.kept] == ["it is not stopped any more"]
    assert SwarmPaths(folder).api_key.is_file()
    assert SwarmStore.open().swarm("again").phase is SwarmPhase.LAUNCHING


def alone(home: Path, job_id: str, status: JobStatus, days: float, output: str = "/o") -> Path:
    """A job without a swarm that ended so long ago."""
    folder = home / "jobs" / job_id
    write_private(folder / "job.json", "{}")
    then = utc_now() - timedelta(days=days)
    store = SwarmStore.open()
    store.create_job(
        JobRecord(
            job_id=job_id,
            name="n",
            swarm=None,
            platform="local",
            status=status,
            job_dir=str(folder),
            input="i",
            output=output.format(folder=folder),
            submitted_at=then - timedelta(hours=1),
            ended_at=then if status.final else None,
        )
    )
    return folder


def test_old_jobs_without_a_swarm_go_and_others_stay(swarm_home: Path) -> None:
    old = alone(swarm_home, "old", JobStatus.SUCCEEDED, 40)
    young = alone(swarm_home, "young", JobStatus.FAILED, 20)
    holding = alone(swarm_home, "holding", JobStatus.PARTIAL, 40, "{folder}/out.parquet")
    cli = CommandLine(swarm_home)
    found = cli.json("db", "prune")
    assert [one["job_id"] for one in found["jobs"]] == ["old"]
    assert [(one["job_id"], one["why"].split(" ", 3)[:3]) for one in found["kept_jobs"]] == [
        ("holding", ["its", "folder", "holds"])
    ]
    table = cli("db", "prune")
    assert "would be removed" in table.stdout
    assert "Add --yes" in table.stderr
    done = cli.json("db", "prune", "--yes")
    assert [one["job_id"] for one in done["jobs"]] == ["old"]
    assert [path.exists() for path in (old, young, holding)] == [False, True, True]
    assert [job.job_id for job in SwarmStore.open().jobs()] == ["holding", "young"]
    done = cli.json("db", "prune", "--yes", "--older-than", "10")
    assert [one["job_id"] for one in done["jobs"]] == ["young"]
    assert not young.exists()
