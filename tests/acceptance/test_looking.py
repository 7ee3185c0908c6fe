"""Commands that look, through the installed program: describe, --watch, --refresh, logs."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from command_line import PROGRAM, CommandLine, worker_of, write_sim_config
from patience import limit_s, until
from schemas import fits
from terminal import Terminal

if TYPE_CHECKING:
    from acceptance.conftest import Standing


class Running:
    """A command in the background, and what it has printed so far; killed with the block."""

    def __init__(self, cli: CommandLine, *arguments: object) -> None:
        self.process = cli.start(*arguments)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self._reader.join(limit_s())
        self.process.communicate()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def until(self, *wanted: str) -> str:
        """Wait for a line that holds all of this, and return it."""
        found: str = until(
            lambda: next((one for one in self.lines if all(word in one for word in wanted)), None)
        )
        return found

    def ended(self) -> int:
        """Its exit code, once it has ended and everything is read."""
        code = self.process.wait(limit_s())
        self._reader.join(limit_s())
        return code

    def interrupted(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.ended()


@pytest.fixture
def changing(cli: CommandLine, tmp_path: Path) -> CommandLine:
    """A swarm `demo` of one replica that a test may change."""
    cli.ok("up", "-c", write_sim_config(tmp_path, latency_s=0.2).path)
    return cli


def test_describe_tells_everything_about_one_swarm(standing: Standing) -> None:
    found = standing.cli.json("swarm", "describe", "demo")
    assert found["swarm"]["name"] == "demo"
    assert found["config"]["engine_options"]["slots"] == 8
    assert found["plan"]["layout"]["replicas"] == 2
    assert "domyn_swarm.engines.sim_server" in found["engine_command"]
    kinds = sorted((one["kind"], one["index"]) for one in found["parts"])
    assert kinds == [("endpoint", 0), ("replica", 0), ("replica", 1)]
    for part in found["parts"]:
        assert part["observed"] == "ready"
        os.kill(int(part["platform_id"]), 0)  # it runs
    for name in ("folder", "configuration", "plan", "scripts", "logs", "key_file", "endpoint"):
        assert Path(found["paths"][name]).exists(), name
    key = Path(found["paths"]["key_file"]).read_text().strip()
    shown = standing.cli.ok("swarm", "describe", "demo")
    assert key not in shown + json.dumps(found)
    for word in ("replica 1", "asked: engine_options.slots", found["tag"], found["paths"]["logs"]):
        assert word in shown


def test_a_watched_swarm_and_its_logs_from_one_replica_to_the_end(changing: CommandLine) -> None:
    watched = ("status", "demo", "--watch", "--every", "0.2")
    with (
        Running(changing, *watched) as lines,
        Running(changing, *watched, "--json") as documents,
        Running(changing, "logs", "demo", "-f") as logs,
    ):
        lines.until("1 of 1 ready (0 ready)")
        documents.until('"state": "ready"')
        logs.until("[replica 0] simulating")
        logs.until("[replica 0 watchdog]", " ready")
        changing.ok("scale", "demo", 2)
        lines.until("2 of 2 ready (0 ready, 1 ready)")
        documents.until('"replicas_wanted": 2')
        logs.until("[replica 1] simulating")  # one that joined later
        logs.until("[replica 1 watchdog]", " ready")
        changing.ok("down", "demo", "-y")
        assert [one.ended() for one in (lines, documents, logs)] == [0, 0, 0]  # with the swarm
    logs.until("[replica 0 watchdog]", "exited")
    assert lines.lines[-1] == "demo stopped: 0 of 2 ready"
    changes = list(zip(lines.lines, lines.lines[1:], strict=False))
    assert all(before != after for before, after in changes)
    seen = [json.loads(line) for line in documents.lines]
    for document in seen:
        fits(document, "status")
    assert seen[-1]["phase"] == "stopped"


def test_watching_is_live_in_a_terminal_and_ctrl_c_ends_it(standing: Standing) -> None:
    command = [PROGRAM, "status", "demo", "--watch"]
    with Terminal(command, standing.cli.environment, columns=120) as terminal:
        terminal.until("2 of 2 ready")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 130
        assert "Traceback" not in terminal.text
    with Running(standing.cli, "status", "demo", "--watch") as piped:
        piped.until("demo ready")
        assert piped.interrupted() == 130
    refused = standing.cli("status", "demo", "--watch", "--yaml")
    assert refused.returncode == 2
    assert "--watch goes with tables" in refused.stderr


def test_job_status_watch_follows_it_to_its_end(standing: Standing) -> None:
    job = standing.job("watched", 100)
    submitted = standing.cli.ok(*job.submission("--name", "demo", "-d", "--max-concurrency", "2"))
    ref = json.loads(submitted)["job_id"]
    watch = standing.cli("job", "status", ref, "--watch", "--every", "0.3")
    assert watch.returncode == 0
    lines = watch.stdout.splitlines()
    assert len(lines) > 2
    assert lines[-1] == f"{ref} succeeded: 100/100 rows"
    last = standing.cli.ok("job", "status", ref, "--watch", "--json")
    assert json.loads(last)["status"] == "succeeded"
    assert last.count("\n") == 1


def test_a_job_that_was_killed_is_seen_with_and_without_asking(standing: Standing) -> None:
    job = standing.job("held killed", 20)
    with standing.sim.held():
        submitted = standing.cli.ok(*job.submission("--name", "demo", "-d"))
        handle = json.loads(submitted)
        worker = worker_of(handle)
        worker.parent().kill()  # the wrapper, which would have written down the end
        until(lambda: not Path(f"/proc/{worker.pid}").exists())
    listed = until(
        lambda: [
            one
            for one in standing.cli.json("job", "list", "--refresh")["jobs"]
            if one["job_id"] == handle["job_id"] and one["status"] not in ("pending", "running")
        ]
    )
    assert listed[0]["status"] == "failed"
    assert standing.cli.json("job", "status", handle["job_id"])["status"] == "failed"


def test_job_logs_are_followed_to_the_jobs_end(standing: Standing) -> None:
    job = standing.job("logged", 30)
    arguments = ("--name", "demo", "-d", "--max-concurrency", "2", "--external-id", "by-my-id")
    handle = json.loads(standing.cli.ok(*job.submission(*arguments)))
    followed = standing.cli("job", "logs", "by-my-id", "-f")
    assert followed.returncode == 0
    ended = standing.cli.json("job", "status", handle["job_id"])
    assert ended["status"] == "succeeded"
    text = Path(handle["log_path"]).read_text()
    assert followed.stdout == text
    for shown in (
        ("job", "logs", handle["job_id"]),
        ("job", "logs", "--external-id", "by-my-id"),
        ("logs", "demo", "--job", "by-my-id"),
        ("logs", "--job", handle["job_id"]),
    ):
        assert standing.cli.ok(*shown) == text
    assert standing.cli.ok("job", "logs", "by-my-id", "-n", "1").count("\n") == min(1, len(text))
    assert standing.cli("job", "logs", "nobody").returncode == 3


def test_logs_refuse_what_does_not_go_together(standing: Standing) -> None:
    for flags in (("--endpoint", "--watchdog"), ("0", "--endpoint"), ("0", "--job", "x")):
        assert standing.cli("logs", "demo", *flags).returncode == 2, flags
    assert standing.cli("logs", "demo", "7").returncode == 3
    assert standing.cli("logs", "nobody").returncode == 3


def test_following_logs_ends_with_ctrl_c(standing: Standing) -> None:
    with Running(standing.cli, "swarm", "logs", "demo", "--endpoint", "-f") as logs:
        logs.until("the router")
        assert logs.interrupted() == 130
        assert logs.process.stderr is not None
        assert logs.process.stderr.read() == ""


def test_states_stand_between_the_lines_of_an_engine(standing: Standing) -> None:
    lines = standing.cli.ok("logs", "demo", "0").splitlines()
    states = [line for line in lines if line.startswith("[watchdog] ")]
    assert any(" starting " in line for line in states)
    assert any(" ready" in line for line in states)
    assert any(line.startswith("simulating") for line in lines)
    of_all = standing.cli.ok("logs", "demo", "-n", "2").splitlines()
    assert len(of_all) == 4
