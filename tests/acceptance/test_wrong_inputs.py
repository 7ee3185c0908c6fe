"""One clear message, the right exit code, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from command_line import CommandLine

if TYPE_CHECKING:
    from acceptance.conftest import Standing


def refused(cli: CommandLine, code: int, *args: object) -> str:
    """Run what must fail so; its stderr."""
    done = cli(*args)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr


def test_all_wrong_keys_are_named_with_their_lines(cli: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(
        "name: demo\nmodel: sim-model\nengine: sim\nreplica: 2\nbackend: local\nport: high\n",
        encoding="utf-8",
    )
    said = refused(cli, 2, "up", "-c", config)
    assert "wrong.yaml:4" in said
    assert "replica" in said
    assert "wrong.yaml:6" in said
    assert "port" in said
    assert not cli.home.exists()


def test_a_model_that_is_not_there(cli: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "missing.yaml"
    model = tmp_path / "nothing.gguf"
    config.write_text(f"name: demo\nmodel: {model}\nengine: llamacpp\nbackend: local\n")
    assert str(model) in refused(cli, 2, "up", "-c", config)
    assert not cli.home.exists()


def test_an_engine_that_cannot_run_frees_what_was_started(cli: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text(
        "name: demo\nmodel: m\nengine: command\nbackend: local\n"
        "engine_options:\n  argv: [/bin/sh, -c, 'echo out of luck {port} >&2; exit 3']\n"
        "watchdog: {restart_policy: never}\n",
        encoding="utf-8",
    )
    assert "engine.log" in refused(cli, 5, "up", "-c", config)
    assert cli.processes() == []


def test_a_second_up_of_a_live_name(standing: Standing) -> None:
    before = {one.pid for one in standing.cli.processes()}
    assert standing.cli.ok("up", "-c", standing.sim.path) == "demo\n"
    other = refused(standing.cli, 3, "up", "-c", standing.sim.path, "--set", "revision=other")
    assert "demo" in other
    assert "revision" in other
    assert {one.pid for one in standing.cli.processes()} <= before  # others' jobs may just end
    assert standing.cli.json("status", "demo")["observed"] == "ready"


def test_an_unknown_swarm_suggests_the_close_one(standing: Standing) -> None:
    for command in (["status"], ["down"], ["endpoint"], ["logs"]):
        assert "Did you mean demo" in refused(standing.cli, 3, *command, "demu")


def test_a_job_that_cannot_be(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("impossible", 3)
    before = {one["job_id"] for one in cli.json("job", "list", "-n", "0")["jobs"]}
    right = job.submission("--name", "demo")

    def with_instead(old: str, new: str) -> list[str]:
        return [new if word == old else word for word in right]

    nowhere = str(job.source.with_name("nowhere.parquet"))
    assert "nosuch" in refused(cli, 2, *with_instead("prompt", "nosuch"))
    assert nowhere in refused(cli, 2, *with_instead(str(job.source), nowhere))
    assert "nosuch" in refused(cli, 2, *right, "nosuch:Job")
    assert "ghost" in refused(cli, 3, *with_instead("demo", "ghost"))
    assert "20x" in refused(cli, 2, *right, "--max-failures", "20x")
    unknown = refused(cli, 2, *right, "--job-kwargs", '{"max_tokns": 5}')
    assert "Did you mean 'max_tokens'" in unknown
    assert "{{ prompt }}" in refused(cli, 2, *right, "--system", "{{ promt }}")
    assert "trim" in refused(cli, 2, *right, "--system", "{{ prompt.strip() }}")
    assert standing.sim.asked("impossible") == []
    after = {one["job_id"] for one in cli.json("job", "list", "-n", "0")["jobs"]}
    assert after == before  # jobs of other tests may end meanwhile
    assert not job.target.exists()
