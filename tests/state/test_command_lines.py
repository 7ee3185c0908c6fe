"""Several command lines and other programs on one database at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from command_line import CommandLine
from domyn_swarm.model import SwarmPhase, utc_now
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.launch import prepare
from local_swarms import config
from patience import limit_s

SWARMS, JOBS = 40, 60

ADD_JOBS = """
import sys
from domyn_swarm.model import JobStatus, utc_now
from domyn_swarm.state import JobRecord, SwarmStore
store = SwarmStore.open()
for number in range(int(sys.argv[1])):
    store.create_job(JobRecord(job_id=f"j{number}", name="n", swarm=None, platform="local",
        status=JobStatus.SUCCEEDED, job_dir="/x", input="i", output="o", submitted_at=utc_now()))
"""

NO_JOB_YET = (
    "No such job yet: domyn-swarm job submit --help\n"  # listed before the first is written
)


def test_command_lines_that_find_the_same_out_at_once_neither_fail_nor_lose_anything(
    swarm_home: Path,
) -> None:
    """Swarms whose processes have gone: whoever looks writes that down, and all look at once."""
    store = SwarmStore.open()
    plan = prepare(config("any", home_directory=swarm_home)).plan
    for number in range(SWARMS):
        name = f"swarm-{number}"
        store.create_swarm(
            SwarmRecord(
                name=name,
                tag=f"{name}.x",
                backend="local",
                phase=SwarmPhase.READY,
                swarm_dir=str(swarm_home / "swarms" / name),
                plan_json=plan.model_dump_json(),
                created_at=utc_now(),
                updated_at=utc_now(),
            )
        )
    cli = CommandLine(swarm_home)
    looking = [cli.start("swarm", "list", "--json") for _ in range(2)]
    reading = [
        cli.start("swarm", "list", "--no-probe", "--json"),
        cli.start("job", "list", "-n", "0"),
    ]
    writing = subprocess.Popen(
        [sys.executable, "-c", ADD_JOBS, str(JOBS)],
        stderr=subprocess.PIPE,
        text=True,
        env=cli.environment,
    )
    for child in [*looking, *reading, writing]:
        _, errors = child.communicate(timeout=limit_s())
        assert child.returncode == 0, errors
        assert errors in ("", NO_JOB_YET)
    assert store.swarms() == []
    assert len(store.swarms(include_stopped=True)) == SWARMS
    assert len(store.jobs()) == JOBS
