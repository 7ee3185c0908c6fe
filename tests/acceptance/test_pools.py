"""Several swarms from one file: up, status and down, and what happens when it does not go well."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine, write_sim_config
from patience import limit_s, until
from schemas import fits

SLOW_S = 3


def write_pool(folder: Path, *lines: str) -> Path:
    write_sim_config(folder, "alpha")
    write_sim_config(folder, None)  # unnamed.yaml
    path = folder / "pool.yaml"
    path.write_text("\n".join(["name: fleet", *lines]) + "\n", encoding="utf-8")
    return path


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["outcome"] for one in report["swarms"]}


def recorded(cli: CommandLine) -> set[str]:
    return {one["name"] for one in cli.json("swarm", "list", "--no-probe")["swarms"]}


def test_up_status_down(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = write_pool(
        tmp_path,
        "max_parallel: 2",
        "swarms:",
        "  - config: alpha.yaml",
        "    overrides: {engine_options: {latency_s: 0.01}, min_ready: 2, env: {A: 1.10}}",
        "    replicas: 2",
        "  - {config: unnamed.yaml}",
        "  - {config: alpha.yaml, name: beta}",
    )
    monkeypatch.chdir("/")  # its configurations are found beside it
    report = cli.json("pool", "up", pool)
    fits(report, "pool up")
    assert (report["schema_version"], report["pool"], report["interrupted"]) == (1, "fleet", False)
    assert outcomes(report) == {"alpha": "up", "fleet-2": "up", "beta": "up"}
    plan = json.loads((cli.home / "swarms" / "alpha" / "plan.json").read_text())
    assert plan["engine_options"]["latency_s"] == 0.01
    assert (plan["layout"]["replicas"], plan["min_ready"], plan["env"]["A"]) == (2, 2, "1.10")

    status = cli.json("pool", "status", pool)
    fits(status, "pool status")
    assert [one["name"] for one in status["swarms"]] == ["alpha", "fleet-2", "beta"]
    assert {one["snapshot"]["observed"] for one in status["swarms"]} == {"ready"}
    endpoints = [one["snapshot"]["endpoint"] for one in status["swarms"]]
    assert endpoints == [one["endpoint"] for one in report["swarms"]]
    assert len(set(endpoints)) == 3

    cli.ok("down", "beta")
    pool.write_text(pool.read_text().replace("replicas: 2", "replicas: 3"))
    again = cli.json("pool", "up", pool)
    assert outcomes(again) == {"alpha": "already_up", "fleet-2": "already_up", "beta": "up"}
    assert "as it was launched" in again["swarms"][0]["note"]
    assert again["swarms"][1]["note"] is None

    assert cli.ok("pool", "down", pool, "-y").splitlines() == [
        "alpha stopped",
        "fleet-2 stopped",
        "beta stopped",
    ]
    assert cli.processes() == []
    again = cli.json("pool", "down", pool)
    fits(again, "pool down")
    assert again["swarms"][0]["stopped"]


def test_what_came_up_stays_when_another_fails_unless_all_or_nothing(
    cli: CommandLine, tmp_path: Path
) -> None:
    pool = write_pool(
        tmp_path,
        "swarms:",
        "  - config: alpha.yaml",
        "  - config: unnamed.yaml",
        "    name: broken",
        "    overrides: {engine_options: {fail_start: out of luck}, watchdog: {max_restarts: 0}}",
    )
    done = cli("pool", "up", pool, "--json")
    assert done.returncode == 5
    report = json.loads(done.stdout)
    assert outcomes(report) == {"alpha": "up", "broken": "failed"}
    assert report["swarms"][1]["error"]
    assert "broken failed; up: alpha" in done.stderr
    status = cli.json("pool", "status", pool)["swarms"]
    assert [one["snapshot"]["observed"] for one in status] == ["ready", "stopped"]

    cli.ok("pool", "down", pool)
    nothing = cli("pool", "up", pool, "--json", "--all-or-nothing")
    assert nothing.returncode == 5
    taken_back = outcomes(json.loads(nothing.stdout))
    assert taken_back["broken"] == "failed"
    assert taken_back["alpha"] in ("stopped", "not_started")
    assert cli.processes() == []


def test_killed_in_the_middle_it_is_found_completed_and_stopped(
    cli: CommandLine, tmp_path: Path
) -> None:
    slow = f"overrides: {{engine_options: {{start_s: {SLOW_S}}}}}"
    pool = write_pool(
        tmp_path,
        "max_parallel: 2",
        "swarms:",
        f"  - {{config: alpha.yaml, {slow}}}",
        f"  - {{config: unnamed.yaml, name: second, {slow}}}",
        "  - {config: unnamed.yaml, name: third}",
    )
    up = cli.start("pool", "up", pool)
    until(lambda: recorded(cli) >= {"alpha", "second"})
    up.kill()
    up.communicate()
    found = {one["name"]: one["snapshot"] for one in cli.json("pool", "status", pool)["swarms"]}
    assert found["alpha"]["phase"] in ("launching", "ready", "stopped")
    assert found["third"] is None
    completed = outcomes(cli.json("pool", "up", pool))
    assert set(completed) == {"alpha", "second", "third"}
    assert set(completed.values()) <= {"up", "already_up"}
    now = cli.json("pool", "status", pool)["swarms"]
    assert {one["snapshot"]["observed"] for one in now} == {"ready"}

    up = cli.start("pool", "down", pool)  # and the same for an end that is cut short
    up.kill()
    up.communicate()
    cli.ok("pool", "down", pool)
    assert cli.processes() == []


def test_interrupted_it_says_what_runs_and_starts_nothing_more(
    cli: CommandLine, tmp_path: Path
) -> None:
    pool = write_pool(
        tmp_path,
        "max_parallel: 1",
        "swarms:",
        "  - {config: alpha.yaml, overrides: {engine_options: {start_s: 600}}}",
        "  - {config: unnamed.yaml, name: second}",
    )
    up = cli.start("pool", "up", pool, "--json")
    until(lambda: "alpha" in recorded(cli))
    up.send_signal(signal.SIGINT)
    stdout, said = up.communicate(timeout=limit_s())
    assert up.returncode == 130, said
    report = json.loads(stdout)
    assert report["interrupted"]
    assert outcomes(report) == {"alpha": "interrupted", "second": "not_started"}
    assert "keep running: alpha" in said
    assert "pool down" in said
    assert recorded(cli) == {"alpha"}
    cli.ok("pool", "down", pool)
    assert cli.processes() == []


def test_every_mistake_of_every_file_is_told_and_nothing_starts(
    cli: CommandLine, tmp_path: Path
) -> None:
    pool = write_pool(
        tmp_path,
        "swarms:",
        "  - config: alpha.yaml",
        "    overrides: {prot: 1, watchdog: {max_restarts: many}}",
        "  - config: nowhere.yaml",
        "  - config: bad.yaml",
    )
    (tmp_path / "bad.yaml").write_text("model: m\nbackend: lcoal\n")
    done = cli("pool", "up", pool)
    assert (done.returncode, done.stdout) == (2, "")
    for words in (
        "4 mistakes",
        f"{pool}:4: prot: unknown key; did you mean port?",
        f"{pool}:4: watchdog.max_restarts: must be a whole number",
        f"{pool}:5: swarms.1.config: there is no file {tmp_path / 'nowhere.yaml'}",
        f"{tmp_path / 'bad.yaml'}:2: backend.type: must be one of local, slurm, lepton",
    ):
        assert words in done.stderr
    assert not cli.home.exists()
