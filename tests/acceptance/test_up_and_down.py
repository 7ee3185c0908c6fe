"""Bringing swarms up and down: what is printed, what is left behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM, CommandLine, SimConfig, wait_for

SWARM_KEYS = {
    *("schema_version", "name", "phase", "observed", "detail", "backend", "engine", "model"),
    *("endpoint", "replicas_wanted", "min_ready", "replicas", "jobs", "swarm_dir", "created_at"),
}
REPLICA_KEYS = {
    *("index", "state", "stale", "url", "http_status", "last_seen_s", "restarts", "reason"),
    *("requests_running", "requests_waiting", "node"),
}
JOB_KEYS = {
    *("schema_version", "job_id", "external_id", "name", "swarm", "status", "rows_total"),
    *("rows_done", "rows_failed", "rows_per_s", "eta_s", "prompt_tokens", "completion_tokens"),
    *("input", "output", "message", "exit_code", "submitted_at", "ended_at", "log_path"),
}


def call(url: str, key: str | None = None) -> int:
    """The status of a chat request."""
    body = {"model": "sim-model", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return int(refusal.code)


def test_status_is_a_promise_and_the_endpoint_wants_its_key(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    swarm.ok("up", "-c", sim_config(replicas=2).path)
    swarm.ok(
        *("job", "submit", "--input", rows(3), "--output", tmp_path / "out.parquet"),
        *("--input-column", "prompt"),
    )
    seen = wait_for(lambda: _all_ready(swarm.json("status", "demo"), 2))
    assert set(seen) == SWARM_KEYS
    assert seen["schema_version"] == 1
    assert (seen["phase"], seen["observed"]) == ("ready", "ready")
    assert [set(replica) for replica in seen["replicas"]] == [REPLICA_KEYS] * 2
    [job] = seen["jobs"]
    assert set(job) == JOB_KEYS
    assert (job["status"], job["rows_done"], job["rows_total"]) == ("succeeded", 3, 3)

    info = swarm.json("endpoint", "demo")
    assert set(info) == {"schema_version", "name", "url", "model", "key_file"}
    key = Path(info["key_file"]).read_text(encoding="utf-8").strip()
    chat = f"{info['url']}/v1/chat/completions"
    assert call(chat) == 401
    assert call(chat, "wrong") == 401
    assert call(chat, key) == 200
    for replica in seen["replicas"]:
        assert call(f"{replica['url']}/v1/chat/completions") == 401

    exports = swarm.ok("endpoint", "demo", "--env")
    assert key not in exports
    shown = subprocess.run(
        ["bash", "-c", f'{exports}\necho "$OPENAI_API_KEY $OPENAI_BASE_URL"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{key} {info['url']}/v1\n"
    assert "demo" in swarm.ok("status", "demo")
    assert "ready" in swarm.ok("swarm", "list")
    assert swarm.ok("logs", "demo", "0")


def _all_ready(seen: dict[str, Any], wanted: int) -> dict[str, Any] | None:
    ready = [one for one in seen["replicas"] if one["state"] == "ready" and not one["stale"]]
    return seen if len(ready) == wanted else None


def test_keys_stand_in_no_place_that_others_read(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    swarm.ok("up", "-c", sim_config().path)
    submitted = swarm(
        *("job", "submit", "--input", rows(50), "--output", tmp_path / "out.parquet"),
        *("--input-column", "prompt"),
    )
    secrets = swarm.home / "swarms" / "demo" / "secrets"
    keys = [path.read_text(encoding="utf-8").strip().encode() for path in secrets.iterdir()]
    assert len(keys) >= 2
    assert all(len(key) >= 16 for key in keys)
    assert {path.stat().st_mode & 0o777 for path in secrets.iterdir()} == {0o600}
    assert (swarm.home / "swarm.db").stat().st_mode & 0o777 == 0o600

    places = [path for path in swarm.home.rglob("*") if path.is_file() and path.parent != secrets]
    assert len(places) > 5
    told = [b" ".join(word.encode() for word in one.cmdline()) for one in swarm.processes()]
    assert told
    printed = (submitted.stdout + submitted.stderr).encode()
    for key in keys:
        assert [path for path in places if key in path.read_bytes()] == []
        assert [line for line in told if key in line] == []
        assert key not in printed


def test_down_leaves_nothing_and_may_be_repeated_with_a_new_up(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    sim = sim_config(replicas=2)
    swarm.ok("up", "-c", sim.path)
    assert swarm.processes() != []
    assert swarm.ok("down", "-c", sim.path) == "demo stopped\n"
    assert swarm.processes() == []
    assert swarm.ok("up", "-c", sim.path) == "demo\n"


def test_a_dry_run_starts_and_records_nothing(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    sim = sim_config()
    plan = swarm.json("up", "-c", sim.path, "--dry-run", "-r", "3", "--set", "min_ready=2")
    assert (plan["name"], plan["layout"]["replicas"], plan["min_ready"]) == ("demo", 3, 2)
    assert "demo" in swarm.ok("up", "-c", sim.path, "--dry-run")
    assert swarm.json("swarm", "list")["swarms"] == []
    assert swarm.processes() == []


def test_without_waiting_the_name_comes_at_once_and_the_swarm_later(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    sim = sim_config(name=None)
    name = swarm.ok("up", "-c", sim.path, "--no-wait").strip()
    assert name
    wait_for(lambda: swarm.json("status", name)["observed"] == "ready")


@pytest.mark.parametrize("after_s", [0.25, 0.5, 0.75, 1.0, 1.5])
def test_up_killed_at_any_moment_leaves_nothing_unrecorded(
    swarm: CommandLine, sim_config: Callable[..., SimConfig], after_s: float
) -> None:
    up = swarm.start("up", "-c", sim_config(replicas=2).path)
    time.sleep(after_s)  # the moment is the point of this test
    up.kill()
    up.communicate()
    listed = [one["name"] for one in swarm.json("swarm", "list")["swarms"]]
    assert listed == ["demo"] or swarm.processes() == []
    if listed:
        swarm.ok("down", "demo")
    assert swarm.processes() == []


def test_interrupting_up_says_what_keeps_running(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    sim = sim_config()
    sim.path.write_text(sim.path.read_text() + "  # slow\n", encoding="utf-8")
    up = swarm.start("up", "-c", sim.path, "--set", "engine_options.start_s=60")
    wait_for(lambda: swarm.json("swarm", "list", "--no-probe")["swarms"])
    up.send_signal(signal.SIGINT)
    stdout, said = up.communicate(timeout=30)
    assert up.returncode == 130, said
    assert stdout == ""
    assert "domyn-swarm down demo" in said
    assert swarm.processes() != []


def test_a_person_who_interrupts_up_may_have_it_stopped(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    sim = sim_config()
    primary, secondary = pty.openpty()
    up = subprocess.Popen(
        [PROGRAM, "up", "-c", str(sim.path), "--set", "engine_options.start_s=60"],
        stdin=secondary,
        stdout=subprocess.PIPE,
        stderr=secondary,
    )
    os.close(secondary)
    wait_for(lambda: swarm.json("swarm", "list", "--no-probe")["swarms"])
    up.send_signal(signal.SIGINT)
    said = b""
    while b"Stop demo" not in said:
        said += os.read(primary, 4096)
    os.write(primary, b"y\n")
    assert up.wait(60) == 130
    os.close(primary)
    assert up.stdout is not None
    assert up.stdout.read() == b""
    up.stdout.close()
    assert swarm.processes() == []
