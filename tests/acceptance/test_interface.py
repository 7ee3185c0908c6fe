"""The commands that users know: each is there with its flags, and does what it is known for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from command_line import CommandLine, write_sim_config
from patience import until
from schemas import fits

if TYPE_CHECKING:
    from acceptance.conftest import Standing

PRINTS = "--format --json --yaml"
ATTACH = "--detach -d --no-progress --mail-user --cpus --mem --time --placement --run-here"
REF = "--external-id --handle-json"
FLAGS = {
    "up": "-c --config -r --replicas -n --name --set --dry-run --no-wait --timeout",
    "plan": f"-c --config --test {PRINTS}",
    "wait": f"--timeout {PRINTS}",
    "status": f"--watch {PRINTS}",
    "down": "--all -c --config -y",
    "logs": "--endpoint --watchdog --job -f -n",
    "swarm logs": "--endpoint --watchdog --job -f -n",
    "endpoint": f"--env --show-key {PRINTS}",
    "scale": PRINTS,
    "top": "--every",
    "swarm list": f"--no-probe {PRINTS}",
    "swarm describe": PRINTS,
    "job submit": f"-f --file --prompt-file --system-file --temperature --max-tokens --print-job "
    "--overwrite --name -c --config --input --output --input-column --output-column --id-column "
    "--output-mode --job-kwargs --prompt --system --limit --job-name --max-concurrency --retries "
    "--timeout --max-failures --accept --checkpoint-dir --checkpoint-tag --checkpoint-interval "
    "--checkpoint-seconds --no-resume --no-checkpointing --workers --shard-output --data-backend "
    "--backend-read-kwargs --backend-write-kwargs --ray-address --fingerprint --dedup --dispatch "
    "--down-after "
    f"{ATTACH}",
    "job preview": f"-f --input --output --prompt -n -y {ATTACH} {PRINTS}",
    "job submit-script": ATTACH,
    "job list": f"--refresh {PRINTS}",
    "job status": f"--watch --refresh {REF} {PRINTS}",
    "job wait": f"{REF} {PRINTS}",
    "job cancel": f"{REF} {PRINTS}",
    "job logs": f"-f -n {REF}",
    "job resume": f"--accept {REF}",
    "job results": f"--partial {REF} {PRINTS}",
    "job retry-failed": f"--class --accept {REF}",
    "job failures": f"--export {REF} {PRINTS}",
    "job verify": f"{REF} {PRINTS}",
    "job report": REF,
    "pool up": PRINTS,
    "pool status": PRINTS,
    "pool down": f"-y {PRINTS}",
    "init config": "--platform --output",
    "init defaults": "",
    "config schema": "--job",
    "config check": PRINTS,
    "doctor": f"-c --config {PRINTS}",
    "checkpoints list": PRINTS,
    "checkpoints rm": "-y",
    "db upgrade": "",
    "db stamp": "",
    "db prune": "",
    "version": f"--short {PRINTS}",
}


# The whole program, asked forty times in one process: forty that start anew cost a minute.
ASK_ALL = """
import contextlib, io, json, sys
from domyn_swarm.cli.app import main

told = {}
for command in sys.argv[1:]:
    sys.argv = ["domyn-swarm", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as ended:
            told[command] = [ended.code, out.getvalue()]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The exit code and the help of each command."""
    home = tmp_path_factory.mktemp("help") / "home"
    asked = subprocess.run(
        [sys.executable, "-c", ASK_ALL, *FLAGS],
        env={**os.environ, "DOMYN_SWARM_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stderr == ""
    assert not home.exists()  # help touches nothing
    told: dict[str, tuple[int, str]] = json.loads(asked.stdout)
    return told


@pytest.mark.parametrize("command", list(FLAGS))
def test_a_command_has_its_flags_and_an_example(
    command: str, helped: dict[str, tuple[int, str]]
) -> None:
    code, told = helped[command]
    assert code == 0
    there = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", told))
    assert [flag for flag in FLAGS[command].split() if flag not in there] == []
    assert "Example:" in told


def test_up_prints_the_name_alone_and_down_leaves_nothing(cli: CommandLine, tmp_path: Path) -> None:
    sim = write_sim_config(tmp_path)
    planned = cli.json("up", "-c", sim.path, "-r", 2, "--dry-run")
    assert planned["plan"]["layout"]["replicas"] == 2
    assert cli.json("swarm", "list")["swarms"] == []
    flags = ("--name", "other", "-r", 2, "--set", "min_ready=2", "--no-wait")
    assert cli.ok("up", "-c", sim.path, *flags) == "other\n"
    until(lambda: cli.json("status", "other")["observed"] == "ready")
    assert len(cli.json("status")["replicas"]) == 2  # the only one that lives needs no name
    taken = cli("up", "-c", sim.path, "--name", "other")
    assert taken.returncode == 3
    assert "domyn-swarm down other" in taken.stderr
    assert cli.json("scale", "other", 1)["replicas_wanted"] == 1
    assert cli.ok("down", "other", "-y").split() == ["other", "stopped"]
    assert cli.ok("down", "other", "-y").split() == ["other", "stopped"]  # again: nothing to do
    assert cli("down", "--all", "-y").returncode == 0
    assert cli.processes() == []


def test_a_replica_that_has_no_log_is_answered_with_those_that_have(standing: Standing) -> None:
    done = standing.cli("logs", "demo", 77)
    assert done.returncode == 3
    assert "There is no such log of demo." in done.stderr
    assert "Replicas with a log: 0" in done.stderr


def test_endpoint_tells_how_to_be_asked(standing: Standing) -> None:
    told = standing.cli.json("endpoint", "demo")
    key = Path(told["key_file"]).read_text().strip()
    assert key not in standing.cli.ok("endpoint", "demo")
    exports = standing.cli.ok("endpoint", "demo", "--env")
    assert f"OPENAI_BASE_URL={told['url']}/v1" in exports
    assert key not in exports
    assert key in standing.cli.ok("endpoint", "demo", "--env", "--show-key")


def test_a_job_by_each_of_its_names(standing: Standing) -> None:
    job, cli = standing.job("names", 12), standing.cli
    flags = ("--external-id", "by-name", "--job-name", "mine", "-d", "--max-concurrency", "4")
    handle = cli.ok(*job.submission(*flags))
    job_id = json.loads(handle)["job_id"]
    for which in ([job_id], ["by-name"], ["--external-id", "by-name"]):
        assert cli("job", "wait", *which).returncode == 0
        assert cli.json("job", "status", *which)["job_id"] == job_id
    piped = cli("job", "wait", "--handle-json", "-", "--json", stdin=handle)
    assert (piped.returncode, json.loads(piped.stdout)["name"]) == (0, "mine")
    assert job_id in [one["job_id"] for one in cli.json("job", "list", "--refresh")["jobs"]]
    job.assert_complete()
    assert cli.json("job", "results", "by-name", "--partial")["rows"] == 12
    assert cli.json("job", "verify", "by-name")["whole"] is True
    assert cli.json("job", "failures", "by-name")["rows_failed"] == 0
    again = json.loads(cli.installed("job", "resume", job_id, "--no-progress").stdout)
    assert again["job_id"] != job_id
    done = cli.json("job", "status", again["job_id"])
    assert (done["status"], done["rows_done"]) == ("succeeded", 12)
    logs = cli.installed("logs", "demo", "--job", job_id, "-n", 5).stdout
    assert logs == cli.installed("job", "logs", job_id, "-n", 5).stdout


def test_failed_rows_are_told_and_asked_again(standing: Standing, tmp_path: Path) -> None:
    job, cli = standing.job("refused", 6), standing.cli
    done = cli(*job.submission("--limit", "4", "--external-id", "some", "--max-failures", "50%"))
    assert done.returncode == 7, done.stderr
    assert pq.read_table(job.target).num_rows == 4
    exported = tmp_path / "failed.parquet"
    found = cli.json("job", "failures", "some", "--export", exported)
    assert (found["rows_failed"], found["groups"][0]["status"]) == (1, 400)
    assert pq.read_table(exported).num_rows == 1
    asked = len(standing.sim.asked("refused"))
    again = cli("job", "retry-failed", "some", "--job-kwargs", '{"temperature": 0.5}')
    assert again.returncode == 7  # it is refused for good
    fits(json.loads(again.stdout), "job retry-failed")
    assert len(standing.sim.asked("refused")) == asked + 1


def test_a_run_that_is_to_forget_everything(standing: Standing) -> None:
    job, cli = standing.job("forgotten", 3), standing.cli
    cli.ok(*job.submission("--no-checkpointing"))
    cli.ok(*job.submission())
    cli.ok(*job.submission())  # is kept: asks nothing
    cli.ok(*job.submission("--no-resume"))
    assert len(standing.sim.asked("forgotten")) == 9
