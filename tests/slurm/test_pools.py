"""A pool of which a part cannot be stopped: from where Slurm cannot be asked."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from command_line import PROGRAM, CommandLine, write_sim_config
from domyn_swarm.config import dump_yaml
from schemas import fits
from slurm.cluster import SlurmCluster
from slurm.swarms import config, jobs_of


def test_what_cannot_be_stopped_is_told_and_keeps_no_other(
    slurm: SlurmCluster, swarm_home: Path, tmp_path: Path
) -> None:
    cli = CommandLine(swarm_home)
    write_sim_config(tmp_path, "here")
    (tmp_path / "demo.yaml").write_text(dump_yaml(config(replicas=1)))
    pool = tmp_path / "pool.yaml"
    pool.write_text("name: fleet\nswarms: [{config: demo.yaml}, {config: here.yaml}]\n")

    def without_slurm(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, "pool", "down", str(pool), *words],
            capture_output=True,
            text=True,
            check=False,
            env={**cli.environment, "PATH": str(Path(PROGRAM).parent)},
        )

    try:
        cli.ok("pool", "up", pool)
        done = without_slurm("--json")
        assert done.returncode == 4, done.stderr
        report = json.loads(done.stdout)
        fits(report, "pool down")
        demo, here = report["swarms"]
        assert (demo["name"], demo["stopped"]) == ("demo", False)
        assert "runs on the cluster test" in demo["error"]
        assert "on a login node of the cluster test" in demo["hint"]
        assert (here["name"], here["stopped"], here["error"]) == ("here", True, None)
        assert "error: demo: " in done.stderr
        assert "hint: " in done.stderr
        assert jobs_of(slurm)  # as before
        [left] = cli.json("swarm", "list", "--no-probe")["swarms"]
        assert left["name"] == "demo"

        again = without_slurm("-y")
        assert again.returncode == 4
        assert again.stdout.splitlines() == ["demo NOT stopped", "here stopped"]
    finally:
        assert cli("pool", "down", pool, "-y").returncode == 0
    assert not jobs_of(slurm)
    assert cli.processes() == []
