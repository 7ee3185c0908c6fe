"""A webhook is told what happens; what it answers changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import CommandLine, write_job, write_sim_config
from domyn_swarm.backends.notification import LONGEST_S, notify
from patience import scaled, until
from webhook import Webhook

OURS = "the webhook"  # what is logged of a failure; threads of libraries log beside it


def told(path: Path, url: str) -> Path:
    path.write_text(url)
    return path


@pytest.mark.parametrize(
    ("status", "tries", "arrived"), [(204, 1, True), (500, 3, False), (404, 1, False)]
)
def test_it_is_tried_again_only_where_that_may_help(
    tmp_path: Path, status: int, tries: int, arrived: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Webhook(status=status) as hook:
        assert notify(told(tmp_path / "url", hook.url), "x", swarm="s") is arrived
        assert len(hook.taken) == tries
        assert hook.taken[0].keys() == {"schema_version", "event", "at", "swarm"}
    assert "hush" not in caplog.text
    assert (OURS in caplog.text) is not arrived


def test_nobody_there_and_a_url_that_is_none_are_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not notify(tmp_path / "missing", "x")
    assert OURS not in caplog.text
    assert not notify(told(tmp_path / "url", "http://127.0.0.1:1/hush"), "x")
    assert not notify(told(tmp_path / "url", "hush:"), "x")
    assert "hush" not in caplog.text


def test_one_that_hangs_is_left_behind(tmp_path: Path) -> None:
    with Webhook(hangs_s=10 * LONGEST_S) as hook:
        assert not notify(told(tmp_path / "url", hook.url), "x")
        assert 1 <= len(hook.taken) <= 3


def test_ends_of_jobs_and_of_an_idle_swarm_are_told(cli: CommandLine, tmp_path: Path) -> None:
    sim = write_sim_config(tmp_path)
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)\n")
    with Webhook() as hook:
        settings = ("--set", f"notify.url={hook.url}", "--set", "idle_timeout_s=600")
        cli.ok("up", "-c", sim.path, *settings)
        assert cli(*write_job(tmp_path, "refused", 4).submission("--name", "demo")).returncode == 7
        assert cli("job", "submit-script", script, "--name", "demo").returncode == 6
        ends = until(lambda: len(hook.of("job_ended")) == 2 and hook.of("job_ended"))
        rows = [(one["status"], one["rows_done"], one["rows_failed"]) for one in ends]
        assert rows == [("partial", 4, 1), ("failed", None, None)]
        assert [one["exit_code"] for one in ends] == [7, 3]
        assert [one["verdicts"] for one in ends] == [{"complete": 3, "error": 1}, None]
        assert {one["swarm"] for one in ends} == {"demo"}
        described = cli.ok("swarm", "describe", "demo", "--json")
        assert json.loads(described)["config"]["notify"] == {"url": "**********"}
        assert_hidden(cli)

        last = write_job(tmp_path, "last", 2)
        cli.ok(*last.submission("--name", "demo", "--down-after"))
        [ended] = until(lambda: hook.of("swarm_ended"))
        assert "jobs that it was kept for are over" in ended["message"]
        assert hook.of("swarm_failed") == []


def test_a_swarm_that_nobody_uses_any_more_gives_all_back_and_tells(
    cli: CommandLine, tmp_path: Path
) -> None:
    sim = write_sim_config(tmp_path, replicas=2)
    idle_s = round(scaled(8))  # longer than the way from `up` to the job
    with Webhook() as hook:
        settings = ("--set", f"notify.url={hook.url}", "--set", f"idle_timeout_s={idle_s}")
        cli.ok("up", "-c", sim.path, *settings)
        job = write_job(tmp_path, "used", 3)
        cli.ok(*job.submission("--name", "demo"))
        job.assert_complete()
        [ended] = until(lambda: hook.of("swarm_ended"))
        assert ended.keys() == {"schema_version", "event", "at", "swarm", "message"}
        assert (ended["schema_version"], ended["swarm"]) == (1, "demo")
        assert ended["message"] == f"nobody has used it for {idle_s} s"
        until(lambda: cli.processes() == [])
        seen = cli.json("status", "demo")
        assert (seen["phase"], seen["detail"]) == ("stopped", f"ended itself: {ended['message']}")
        assert [one["event"] for one in hook.taken] == ["job_ended", "swarm_ended"]
        assert cli("job", "submit", "--name", "demo", *job.submission()[2:]).returncode == 3


def assert_hidden(cli: CommandLine) -> None:
    """The URL is in two files that only their owner reads, and in no process's arguments."""
    files = [one for one in cli.home.rglob("*") if one.is_file()]
    holding = {one.name for one in files if b"hush-hush" in one.read_bytes()}
    assert holding == {"notify_url", "config.yaml"}
    assert all(one.stat().st_mode & 0o077 == 0 for one in files if one.name in holding)
    assert not [one for one in cli.processes() if "hush-hush" in " ".join(one.cmdline())]


@pytest.mark.parametrize("answers", [{"status": 500}, {"hangs_s": 10 * LONGEST_S}])
def test_a_receiver_that_fails_changes_nothing(
    cli: CommandLine, tmp_path: Path, answers: dict[str, float]
) -> None:
    sim = write_sim_config(tmp_path)
    with Webhook(**answers) as hook:  # type: ignore[arg-type]
        cli.ok("up", "-c", sim.path, "--set", f"notify.url={hook.url}")
        job = write_job(tmp_path, "anyway", 3)
        handle = json.loads(cli.ok(*job.submission("--name", "demo")))
        job.assert_complete()
        assert cli.json("job", "status", handle["job_id"])["status"] == "succeeded"
        until(lambda: hook.of("job_ended"))
        cli.ok("down", "demo", "-y")
        assert cli.processes() == []


def test_a_swarm_that_fails_is_told_by_up_or_by_its_endpoint(
    cli: CommandLine, tmp_path: Path
) -> None:
    sim = write_sim_config(tmp_path)
    fails = (
        *("--set", "engine_options.fail_start=CUDA out of memory"),
        *("--set", "watchdog.max_restarts=0"),
    )
    with Webhook() as hook:
        flags = ("-c", sim.path, "--set", f"notify.url={hook.url}", *fails)
        assert cli("up", *flags).returncode == 5
        assert len(hook.of("swarm_failed")) == 1
        cli.ok("up", *flags, "--no-wait")
        until(lambda: len(hook.of("swarm_failed")) == 2)
        assert {one["swarm"] for one in hook.taken} == {"demo"}
        cli.ok("down", "demo", "-y")
        assert len(hook.taken) == 2
