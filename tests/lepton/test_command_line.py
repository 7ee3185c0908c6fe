"""The installed command against a workspace: the whole journey, and nothing secret left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from command_line import CommandLine, Job, write_job
from lepton.fixtures import section
from lepton.workspace import TOKEN, StandIn
from patience import limit_s, until


@pytest.fixture
def cli(lepton: StandIn, swarm_home: Path) -> Iterator[CommandLine]:
    line = CommandLine(swarm_home)
    yield line
    assert line("down", "--all", "-y").returncode == 0


def write_config(folder: Path, **keys: object) -> Path:
    path = folder / "demo.yaml"
    config = {
        "name": "demo",
        "model": "sim-model",
        "engine": "sim",
        "backend": section(folder),
        **keys,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def ready(cli: CommandLine) -> int:
    return sum(one["state"] == "ready" for one in cli.json("status", "demo")["replicas"])


def submit(cli: CommandLine, job: Job, *more: str) -> dict:
    line = cli.ok(*job.submission("--name", "demo", "--detach", *more))
    return json.loads(line.strip().splitlines()[-1])


def test_a_log_is_followed_as_it_grows(cli: CommandLine, tmp_path: Path) -> None:
    cli.ok("up", "-c", write_config(tmp_path))
    go, script = tmp_path / "go", tmp_path / "talks.py"
    script.write_text(
        "import pathlib, time\n"
        "print('before', flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)\n"
        "print('after', flush=True)\n"
    )
    printed = cli.ok("job", "submit-script", script, "--name", "demo", "--detach")
    job_id = json.loads(printed.strip().splitlines()[-1])["job_id"]
    with cli.start("job", "logs", job_id, "-f") as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "before\n"
        go.touch()
        assert following.stdout.read() == "after\n"  # and it ends with the job
    assert following.returncode == 0
    with cli.start("logs", "demo", "0", "-f") as following:
        assert following.stdout is not None
        said = [following.stdout.readline(), following.stdout.readline()]
        assert "simulating sim-model" in "".join(said)
        cli.ok("down", "demo")  # which ends it
    assert following.returncode == 0


def test_up_submit_status_logs_scale_down(
    cli: CommandLine, lepton: StandIn, tmp_path: Path
) -> None:
    config = write_config(tmp_path, replicas=2, min_ready=2)
    assert cli.ok("up", "-c", config) == "demo\n"
    seen = cli.json("status", "demo")
    [deployment] = lepton.deployments.values()
    assert deployment.gateway is not None
    assert seen["endpoint"] == deployment.gateway.url
    assert [one["state"] for one in seen["replicas"]] == ["ready", "ready"]
    assert {one["node"] for one in seen["replicas"]} == {"node-1"}
    [(secret, key)] = lepton.secrets.items()
    assert deployment.document["spec"]["api_tokens"] == [{"value_from": {"token_name_ref": secret}}]

    job = write_job(tmp_path, "in-the-workspace", 20)
    handle = submit(cli, job)
    assert handle["platform"] == "lepton"
    assert cli("job", "wait", handle["job_id"]).returncode == 0
    job.assert_complete()
    assert cli.json("job", "status", handle["job_id"])["status"] == "succeeded"
    [ran] = lepton.jobs.values()
    names = {one["name"]: one for one in ran.document["spec"]["envs"]}
    assert names["DOMYN_SWARM_API_TOKEN"]["value_from"] == {"secret_name_ref": secret}

    script = tmp_path / "greet.py"
    script.write_text("import os; print('hello', os.environ['MODEL'], os.environ['ENDPOINT'])")
    printed = cli.ok("job", "submit-script", script, "--name", "demo", "--detach")
    script_id = json.loads(printed.strip().splitlines()[-1])["job_id"]
    assert cli("job", "wait", script_id).returncode == 0
    said = cli.ok("logs", "demo", "--job", script_id)
    assert said == f"hello sim-model {deployment.gateway.url}\n"

    here = write_job(tmp_path, "from-here", 5)
    assert submit(cli, here, "--run-here")["platform"] == "local"
    until(here.target.exists)
    assert pq.read_table(here.target).num_rows == 5

    logs = cli.ok("logs", "demo")
    assert "[replica 0] simulating sim-model" in logs
    assert "[replica 1] simulating sim-model" in logs

    cli.ok("scale", "demo", "3")
    until(lambda: len(deployment.containers) == 3)
    until(lambda: ready(cli) == 3)
    cli.ok("scale", "demo", "1")
    until(lambda: len(deployment.containers) == 1)

    assert cli.ok("down", "demo") == "demo stopped\n"
    assert cli.ok("down", "demo") == "demo stopped\n"
    assert lepton.deployments == {}
    assert lepton.secrets == {}
    assert_nowhere(tmp_path, [key, TOKEN])


def assert_nowhere(folder: Path, secrets: list[str]) -> None:
    """Files of any kind: home, logs, database, what the containers wrote."""
    files = [one for one in folder.rglob("*") if one.is_file()]
    assert any(one.name == "swarm.db" for one in files)
    found = [
        str(one) for one in files if any(secret.encode() in one.read_bytes() for secret in secrets)
    ]
    assert found == []


def test_while_it_runs_the_key_lies_in_one_private_file(
    cli: CommandLine, lepton: StandIn, tmp_path: Path
) -> None:
    lepton.new_api = True
    cli.ok("up", "-c", write_config(tmp_path, engine_options={"latency_s": 0.5}))
    [key] = lepton.secrets.values()
    holding = [
        one for one in tmp_path.rglob("*") if one.is_file() and key.encode() in one.read_bytes()
    ]
    assert [one.name for one in holding] == ["api_key"]
    assert holding[0].stat().st_mode & 0o777 == 0o600
    assert key not in cli.ok("endpoint", "demo")
    job = write_job(tmp_path, "cancelled", 4000)
    handle = submit(cli, job, "--max-concurrency", "1")
    [ran] = lepton.jobs.values()
    until(lambda: ran.state() in ("Running", "Failed"))
    assert ran.state() == "Running", ran.log.read_text()
    cli.ok("job", "cancel", handle["job_id"])
    assert cli.json("job", "status", handle["job_id"])["status"] == "cancelled"


def test_down_ends_the_jobs_that_still_run(
    cli: CommandLine, lepton: StandIn, tmp_path: Path
) -> None:
    lepton.grace_s = 3.0
    config = write_config(tmp_path, engine_options={"latency_s": 5.0})
    cli.ok("up", "-c", config)
    submit(cli, write_job(tmp_path, "long", 500), "--max-concurrency", "1")
    [job] = lepton.jobs.values()
    until(lambda: job.process is not None or job.state() == "")
    cli.ok("down", "demo")
    assert job.process is not None
    assert job.process.poll() is not None
    assert lepton.deployments == {}


def test_what_cannot_be_is_said_before_anything_is_created(
    cli: CommandLine, lepton: StandIn, tmp_path: Path
) -> None:
    unnamed = {"type": "lepton", "endpoint": {"resource_shape": "cpu.small"}}
    done = cli("up", "-c", write_config(tmp_path, backend=unnamed))
    assert done.returncode == 2
    assert "backend.endpoint.image" in done.stderr
    eight = {"type": "lepton", "endpoint": {"image": "i"}}
    done = cli("up", "-c", write_config(tmp_path, backend=eight, gpus_per_replica=1))
    assert done.returncode == 2
    assert "has 8 GPUs" in done.stderr
    assert lepton.asked == []

    nothing = section(tmp_path)
    nothing["job"] = {"image": "domyn-swarm:1"}
    cli.ok("up", "-c", write_config(tmp_path, backend=nothing))
    job = write_job(tmp_path, "unmounted", 3)
    done = cli(*job.submission("--name", "demo"))
    assert done.returncode == 2
    assert "--run-here" in done.stderr
    done = cli(*job.submission("--name", "demo", "--run-here", "--down-after"))
    assert done.returncode == 2
    assert "--down-after" in done.stderr
    assert lepton.jobs == {}
    assert cli.json("job", "list")["jobs"] == []


def test_a_plan_prints_what_would_be_asked(
    cli: CommandLine, lepton: StandIn, tmp_path: Path
) -> None:
    report = cli.json("plan", "-c", write_config(tmp_path))
    document = json.loads(report["scripts"]["endpoint.json"])
    assert document["spec"]["container"]["image"] == "engines:1"
    assert lepton.asked == []


def test_doctor_looks_at_the_workspace(
    cli: CommandLine, lepton: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path)
    checks = {one["name"]: one for one in cli.json("doctor", "-c", config)["checks"]}
    assert checks["workspace"]["status"] == "ok"
    assert checks["jobs"]["status"] == "ok"
    monkeypatch.setenv("LEPTONAI_API_TOKEN", "expired")
    done = cli("doctor", "-c", config)
    assert done.returncode != 0
    assert "does not accept the token" in done.stdout + done.stderr
    assert "expired" not in (done.stdout + done.stderr).replace("may have expired", "")


def test_an_engine_that_cannot_start_says_why(
    cli: CommandLine, lepton: StandIn, tmp_path: Path
) -> None:
    options = {"fail_start": "simulated failure of the engine"}
    config = write_config(tmp_path, engine_options=options)
    up = cli.start("up", "-c", str(config))
    [deployment] = until(lambda: list(lepton.deployments.values()))
    until(lambda: deployment.containers[0].process.poll() is not None)
    deployment.reasons[0] = ("ConfigError", "the container ends at once")
    _, said = up.communicate(timeout=limit_s())
    assert up.returncode == 5
    assert "the simulator is configured to fail" in said
    assert lepton.deployments == {}
    assert lepton.secrets == {}
