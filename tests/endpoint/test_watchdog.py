"""Watchdogs as they run: real processes around a real HTTP server."""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from domyn_swarm import engines, watchdog
from domyn_swarm.backends.watchdog_spec import copy_watchdog
from endpoint.bench import API_KEY, ENGINE, Bench, Replica, runs
from open_file_limits import highest, soft_limit
from patience import limit_s, scaled, until
from process_list import words_of

FILES = ["restart_budget.py", "watchdog.py", "watchdog_ledger.py", "watchdog_rules.py"]


@pytest.mark.parametrize("name", [*FILES, "follower.py"])
def test_it_is_python_3_8_and_the_standard_library(name: str):
    source = Path(watchdog.__file__).with_name(name)
    tree = ast.parse(source.read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    beside = {"domyn_swarm", *(Path(one).stem for one in FILES)}
    assert imported - beside <= set(sys.stdlib_module_names)


def test_it_runs_wherever_its_files_lie_together(bench: Bench, tmp_path: Path):
    """As in an image: nothing else of ours is there, and the path does not name the folder."""
    folder = tmp_path / "alone"
    folder.mkdir()
    copy_watchdog(folder / "watchdog.py")
    argv = [sys.executable, "-I", str(folder / "watchdog.py"), str(bench.scratch / "none.json")]
    ended = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)
    assert ended.returncode == watchdog.UNUSABLE
    assert "cannot start: FileNotFoundError" in ended.stderr
    assert sorted(one.name for one in folder.glob("*.py")) == FILES


def test_an_engine_becomes_ready_after_a_real_request(bench: Bench):
    bench.start_collector()
    replica = bench.replica().tell("first", 503).start()
    until(lambda: len(replica.lines("asked")) > 2)
    assert bench.state() == "starting"
    replica.tell("first", 404)
    bench.until_state("ready")
    report = bench.view().replicas[0]
    assert report.url is not None
    assert report.http_status == 200
    assert report.engine_pid == replica.starts[0]
    assert report.watchdog_pid == replica.process.pid


def test_an_engine_that_crashes_is_restarted_with_growing_pauses_and_then_given_up(bench: Bench):
    bench.start_collector()
    replica = bench.replica(max_restarts=2).tell("die", 3).start()
    assert replica.wait() == 1
    times = [float(line.split()[1]) for line in replica.lines("starts")]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == 3
    assert pauses[0] >= 0.1
    assert pauses[1] >= 0.2
    assert bench.state() == "failed"
    report = bench.view().replicas[0]
    assert (report.exit_code, report.restarts) == (3, 2)
    assert "code 3" in report.reason


@pytest.mark.parametrize(
    ("policy", "code", "starts", "state"),
    [
        ("on-failure", 0, 1, "exited"),
        ("never", 1, 1, "failed"),
        ("always", 0, 2, "exited"),
    ],
)
def test_policies(bench: Bench, policy: str, code: int, starts: int, state: str):
    bench.start_collector()
    replica = bench.replica(restart_policy=policy, max_restarts=1).tell("die", code).start()
    assert replica.wait() == (state == "failed")
    assert len(replica.starts) == starts
    assert bench.state() == state


def test_a_killed_engine_is_restarted_and_serves_again(bench: Bench):
    bench.start_collector()
    replica = bench.replica().start()
    bench.until_state("ready")
    os.kill(replica.starts[0], signal.SIGKILL)
    until(lambda: len(replica.starts) == 2)
    bench.until_state("ready")
    assert bench.view().replicas[0].restarts == 1


def test_a_hopeless_cause_in_the_log_ends_it_at_once(bench: Bench):
    bench.start_collector()
    known = [
        {"pattern": "out of m[ea]mory", "cause": "too large", "hint": "", "retryable": True},
        {"pattern": "no such model", "cause": "model not found", "hint": "", "retryable": False},
    ]
    replica = bench.replica(failure_patterns=known).tell("die", 1)
    replica.tell("last_words", "boom: no such model x").start()
    assert replica.wait() == 1
    assert len(replica.starts) == 1
    assert bench.state() == "failed"
    assert bench.view().replicas[0].reason == "model not found"


def test_an_engine_that_never_gets_ready_is_restarted(bench: Bench):
    bench.start_collector()
    replica = bench.replica(readiness_timeout=0.6, max_restarts=9).tell("health", 503).start()
    assert replica.wait() == 1
    report = bench.view().replicas[0]
    assert report.restarts == 1  # the second one ran into the same limit
    assert "neither prints nor reads" in report.reason
    assert "set watchdog.readiness_timeout: 1.2" in report.reason
    assert not any(runs(pid) for pid in replica.starts)


@pytest.mark.parametrize("what", ["prints", "reads"])
def test_an_engine_that_still_loads_is_waited_for(bench: Bench, what: str):
    bench.start_collector()
    # A busy machine may let an engine wait seconds before it prints or reads for the first time
    times = {"readiness_timeout": scaled(8), "quiet_seconds": scaled(15)}
    replica = bench.replica(**times).tell(what, 1).start()
    until(lambda: replica.starts)
    time.sleep(scaled(18))
    assert len(replica.starts) == 1, replica.log.read_text()
    report = bench.view().replicas[0]
    assert (report.state, report.loading) == ("starting", True)
    assert "it still loads, and has" in str(report.reason)
    replica.tell(what, "")
    bench.until_state("ready")
    assert len(replica.starts) == 1
    report = bench.view().replicas[0]
    assert (report.loading, report.reason) == (False, None)


def test_another_program_at_the_port_of_an_engine_that_loads_is_not_taken_for_it(bench: Bench):
    """That of another user, say, whose locks lie elsewhere."""
    bench.start_collector()
    replica = bench.replica(quiet_seconds=limit_s()).tell("prints", 1).start()
    url = until(lambda: bench.view().replicas and bench.view().replicas[0].url)
    other = bench.scratch / "other"
    other.mkdir()
    argv = [sys.executable, str(ENGINE), "127.0.0.1", url.rpartition(":")[2], str(other)]
    server = subprocess.Popen(argv, env={**os.environ, "ENGINE_KEY": "another"})
    try:
        until(lambda: bench.view().replicas[0].http_status == 200)
        time.sleep(scaled(0.5))  # some probes
        assert bench.view().replicas[0].state == "starting"
    finally:
        server.kill()
        server.wait()
    (replica.control / "prints").unlink()
    bench.until_state("ready")
    assert len(replica.starts) == 1


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ("ERROR No module named 'x'", "not ready after "),
        ("ERROR ncclSystemError: no", "the GPUs could not communicate (NCCL) (not ready "),
    ],
)
def test_a_hang_is_not_blamed_on_what_makes_programs_give_up(bench: Bench, notes: str, reason: str):
    bench.start_collector()
    known = [one.model_dump() for one in engines.get("vllm").failure_patterns]
    replica = bench.replica(readiness_timeout=1.0, max_restarts=9, failure_patterns=known)
    replica.tell("notes", notes).tell("health", 503)
    assert replica.start().wait() == 1
    report = bench.view().replicas[0]
    assert report.restarts == 1
    assert str(report.reason).startswith(reason)
    assert "set watchdog.readiness_timeout: 2" in str(report.reason)


def test_an_engine_that_prints_for_ever_is_given_up(bench: Bench):
    bench.start_collector()
    # An engine that has not printed yet as its time is up is another case, and restarted.
    options = {"readiness_timeout": scaled(0.5), "quiet_seconds": limit_s(), "max_restarts": 99}
    replica = bench.replica(**options).tell("prints", 1)
    assert replica.start().wait() == 1
    assert len(replica.starts) > 1
    assert "it still loads" in str(bench.view().replicas[0].reason)


def test_what_an_engine_prints_before_it_is_killed_is_not_the_cause(bench: Bench):
    bench.start_collector()
    known = [one.model_dump() for one in engines.get("command").failure_patterns]
    missing = "ModuleNotFoundError: No module named 'x'"
    replica = bench.replica(failure_patterns=known)
    replica.tell("notes", f"WARNING Failed to import x: {missing}\nx: Permission denied")
    replica.tell("echoes", 1).start()
    bench.until_state("ready")
    url = f"{bench.view().replicas[0].url}/v1/chat/completions"
    body = json.dumps({"messages": [{"content": f"why is there\n{missing}"}]})
    key = f"Authorization: Bearer {API_KEY}"
    subprocess.run(["curl", "-sS", "-H", key, "-d", body, url], check=True, capture_output=True)
    assert missing in bench.paths.engine_log(0).read_text()
    os.kill(replica.starts[0], signal.SIGKILL)
    until(lambda: len(replica.starts) == 2)
    bench.until_state("ready")
    until(lambda: ("restarting", "the engine was killed by SIGKILL") in history(bench))


def test_a_frozen_engine_is_found_and_replaced(bench: Bench):
    bench.start_collector()
    replica = bench.replica(kill_grace_seconds=0.3, unhealthy_restart_after=4.0).start()
    bench.until_state("ready")
    os.kill(replica.starts[0], signal.SIGSTOP)
    bench.until_state("unhealthy")
    until(lambda: len(replica.starts) == 2)
    bench.until_state("ready")
    assert not runs(replica.starts[0])


def test_an_engine_that_answers_late_but_writes_tokens_stays_in_the_router(bench: Bench):
    """As vLLM does under thousands of requests."""
    bench.start_collector()
    replica = bench.replica(http_timeout=0.2).tell("tokens_per_s", 1000).start()
    bench.until_state("ready")
    until(lambda: (bench.view().replicas[0].tokens_per_s or 0) > 0)
    replica.tell("metrics_delay", 0.4).tell("health_delay", 0.4)
    before = len(replica.lines("probed"))
    until(lambda: len(replica.lines("probed")) > before + 4)
    report = bench.view().replicas[0]
    assert report.http_status is None  # it was late
    assert report.state == "ready"
    replica.tell("tokens_per_s", 0)  # it stands
    bench.until_state("unhealthy")
    assert bench.view().replicas[0].reason == "/health did not answer within 0.2 s"
    seen = {"starting", "ready", "unhealthy"}  # written down after it is shown
    until(lambda: {state for state, _ in history(bench)} == seen)
    replica.tell("health_delay", 0)
    bench.until_state("ready")
    assert bench.view().replicas[0].reason is None


def history(bench: Bench) -> list[tuple[str, str | None]]:
    found = sqlite3.connect(bench.paths.watchdog_db)
    try:
        return found.execute("SELECT state, reason FROM replica_status").fetchall()
    finally:
        found.close()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [("503", "/health answered 503"), ("gone", "/health: [Errno 111] Connection refused")],
)
def test_what_an_unhealthy_replica_has_is_told(bench: Bench, wrong: str, reason: str):
    bench.start_collector()
    replica = bench.replica(unhealthy_restart_after=limit_s()).start()
    bench.until_state("ready")
    if wrong == "gone":
        replica.tell("deaf", 1)
    else:
        replica.tell("health", wrong)
    bench.until_state("unhealthy")
    assert bench.view().replicas[0].reason == reason


def test_figures_are_as_old_as_the_report_says(bench: Bench):
    bench.start_collector()
    replica = bench.replica(probe_interval=limit_s(), heartbeat_seconds=0.3).start()
    bench.until_state("ready")
    for tokens in (10, 20):  # between two probes
        replica.tell("tokens", tokens)
        until(lambda tokens=tokens: bench.view().replicas[0].generated_tokens == tokens)
    assert bench.view().replicas[0].sample_age_s < 0.3
    replica.tell("die", 1)
    os.kill(replica.starts[0], signal.SIGKILL)
    bench.until_state("restarting")
    report = bench.view().replicas[0]
    assert (report.requests_running, report.generated_tokens, report.sample_age_s) == (None,) * 3


def test_an_engine_may_have_as_many_files_open_as_the_system_lets_it(bench: Bench):
    bench.start_collector()
    with soft_limit(highest() + 200):
        replica = bench.replica().start()
        bench.until_state("ready")
    limits = Path(f"/proc/{replica.starts[0]}/limits").read_text()
    [files] = [line.split()[3:5] for line in limits.splitlines() if "open files" in line]
    assert int(files[0]) == min(int(files[1]), watchdog.MOST_FILES)


def test_a_lock_folder_that_somebody_else_made_first_is_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(tmp_path))
    name = tmp_path / f"domyn-swarm-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    name.symlink_to(tmp_path / "elsewhere")
    open_to_all = Path(f"{name}-1")
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    Path(f"{name}-2").write_text("")
    if os.getuid() == 0:
        Path(f"{name}-3").mkdir(mode=0o700)
        os.chown(f"{name}-3", 65534, 65534)
        usable = f"{name}-4"
    else:
        usable = f"{name}-3"
    assert watchdog.lock_folder() == usable == watchdog.lock_folder()


def test_a_port_is_given_once_on_a_machine_also_where_each_job_has_its_own_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An engine that loads has not bound its port yet."""
    first, second = watchdog.Ports("127.0.0.1"), watchdog.Ports("127.0.0.1")
    port = first.pick(22_000)
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(tmp_path))
    assert second.pick(port) != port
    assert first.pick(22_000) == port
    program = f"from domyn_swarm.watchdog import Ports; print(Ports('127.0.0.1').pick({port}))"
    argv, env = [sys.executable, "-c", program], {**os.environ, "TMPDIR": str(tmp_path)}
    other = subprocess.run(argv, env=env, capture_output=True, check=True)
    assert int(other.stdout) > port


def test_an_engine_without_progress_while_requests_wait_is_restarted(bench: Bench):
    bench.start_collector()
    replica = bench.replica(progress_timeout=1.0).tell("waiting", 5).start()
    bench.until_state("ready")
    until(lambda: len(replica.starts) == 2)
    history = sqlite3.connect(bench.paths.watchdog_db)
    until(
        lambda: history.execute(
            "SELECT 1 FROM replica_status WHERE reason LIKE 'no progress%'"
        ).fetchall()
    )
    history.close()


def test_sigterm_drains_then_ends_the_engine(bench: Bench):
    bench.start_collector()
    replica = bench.replica(drain_seconds=30.0).start()
    bench.until_state("ready")
    url = bench.view().replicas[0].url
    body = '{"messages": [{"content": "slow:2.5"}]}'
    argv = [
        "curl",
        "-sS",
        "-m",
        str(int(limit_s())),
        "-H",
        f"Authorization: Bearer {API_KEY}",
        "-d",
        body,
    ]
    asked = subprocess.Popen([*argv, f"{url}/v1/chat/completions"], stdout=subprocess.PIPE)
    until(lambda: "slow:2.5" in replica.lines("asked"))
    replica.process.send_signal(signal.SIGTERM)
    bench.until_state("draining")
    until(lambda: url not in bench.paths.router_manifest.read_text())
    answer, _ = asked.communicate(timeout=limit_s())
    assert b"slow:2.5" in answer
    assert replica.wait() == 0
    assert replica.lines("terms")
    assert bench.state() == "exited"


def test_a_sigterm_that_is_repeated_at_once_does_not_end_requests_in_flight(bench: Bench):
    """Schedulers send it again, and so does whoever hands it on."""
    bench.start_collector()
    replica = bench.replica(drain_seconds=limit_s()).start()
    bench.until_state("ready")
    url = f"{bench.view().replicas[0].url}/v1/chat/completions"
    body = '{"messages": [{"content": "slow:4"}]}'
    argv = ["curl", "-sS", "-m", str(int(limit_s())), "-H", f"Authorization: Bearer {API_KEY}"]
    asked = subprocess.Popen([*argv, "-d", body, url], stdout=subprocess.PIPE)
    until(lambda: "slow:4" in replica.lines("asked"))
    for _ in range(3):
        replica.process.send_signal(signal.SIGTERM)
        bench.until_state("draining")
    answer, _ = asked.communicate(timeout=limit_s())
    assert b"slow:4" in answer
    assert replica.wait() == 0


def test_sigterm_to_a_stubborn_engine_ends_within_the_grace_periods(bench: Bench):
    replica = bench.replica(kill_grace_seconds=0.5, drain_seconds=0.5).tell("stubborn", 1)
    replica.tell("child", 1).start()
    until(lambda: "first" in replica.lines("asked"))
    replica.process.send_signal(signal.SIGTERM)
    assert replica.wait() == 0  # with no collector to tell: bounded as well
    assert replica.lines("terms")
    left = replica.starts + [int(pid) for pid in replica.lines("children")]
    until(lambda: not any(runs(pid) for pid in left))


def test_sigterm_during_the_first_request_is_obeyed_at_once(bench: Bench):
    never_s = 4 * limit_s()
    slow = f"slow:{never_s:.0f}"
    first = {"path": "/v1/chat/completions", "body": {"messages": [{"content": slow}]}}
    bench.start_collector()
    replica = bench.replica(first_request=first, readiness_timeout=never_s).start()
    until(lambda: slow in replica.lines("asked"))
    replica.process.send_signal(signal.SIGTERM)
    assert replica.wait() == 0
    assert bench.state() == "exited"


def test_sigkill_of_the_watchdog_ends_the_engine_and_its_children(bench: Bench):
    replica = bench.replica().tell("child", 1).start()
    until(lambda: "first" in replica.lines("asked"))
    replica.process.kill()
    left = replica.starts + [int(pid) for pid in replica.lines("children")]
    assert len(left) == 2
    until(lambda: not any(runs(pid) for pid in left))


def guard_of(replica: Replica) -> int:
    """The watchdog's own child, once there is one."""

    def found() -> int | None:
        children = psutil.Process(replica.process.pid).children()
        watching = [one.pid for one in children if "watchdog.py" in " ".join(words_of(one))]
        return watching[0] if watching else None

    pid: int = until(found)
    return pid


def test_a_guard_that_is_killed_starts_again_and_guards(bench: Bench):
    bench.start_collector()
    replica = bench.replica().tell("child", 1).start()
    bench.until_state("ready")
    first = guard_of(replica)
    os.kill(first, signal.SIGKILL)
    until(lambda: not runs(first))
    assert guard_of(replica) != first
    assert len(replica.starts) == 1
    replica.process.kill()
    left = replica.starts + [int(pid) for pid in replica.lines("children")]
    until(lambda: not any(runs(pid) for pid in left))


def test_a_guard_that_is_killed_with_its_engine_costs_one_restart(bench: Bench):
    """As by the system's OOM killer: it takes what it finds."""
    bench.start_collector()
    replica = bench.replica().start()
    bench.until_state("ready")
    os.kill(replica.process.pid, signal.SIGSTOP)  # it finds out about both at once
    for pid in (guard_of(replica), replica.starts[0]):
        os.kill(pid, signal.SIGKILL)
    os.kill(replica.process.pid, signal.SIGCONT)
    until(lambda: len(replica.starts) == 2)
    bench.until_state("ready")
    assert replica.process.poll() is None


def test_a_watchdog_that_fails_says_so_and_ends_with_its_engine(bench: Bench):
    """Whoever started it tells that from an engine that failed."""
    bench.start_collector()
    replica = bench.replica(http_timeout="soon").start()  # a bug, where it is first used
    assert replica.wait() == watchdog.BROKEN
    until(lambda: not any(runs(pid) for pid in replica.starts))
    assert bench.state() == "restarting"
    assert "the watchdog failed: TypeError" in str(bench.view().replicas[0].reason)
    assert "Traceback" in replica.log.read_text()


def test_a_watchdog_ends_with_any_of_its_threads(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gpus = fake_ray(tmp_path, monkeypatch)
    gpus.write_text("8.0")
    ray = {"gpus": "eight", "probe_timeout_s": 5, "status_grace_s": 1, "probe_interval_s": 1}
    bench.start_collector()
    replica = bench.replica(ray=ray).start()
    assert replica.wait() == watchdog.BROKEN
    assert "the watchdog failed" in replica.log.read_text()


def test_a_replica_whose_port_another_one_has_is_not_taken_for_ready(bench: Bench):
    bench.start_collector()
    lost = bench.replica(0).start()
    bench.until_state("ready", 0)
    url = bench.view().replicas[0].url
    lost.process.kill()
    until(lambda: not runs(lost.starts[0]))
    until(lambda: url not in bench.paths.router_manifest.read_text())
    bench.replica(1, port_from=urlsplit(url).port).start()
    bench.until_state("ready", 1)
    first, second = bench.view().replicas
    assert second.url == url
    assert (first.state, first.url) == ("unhealthy", None)
    assert "replica 1 has its port" in str(first.reason)
    until(lambda: url in bench.paths.router_manifest.read_text())
    until(lambda: {("ready", 1), ("unhealthy", 0)} <= {*changes(bench)})
    after = changes(bench)
    assert after[after.index(("unhealthy", 0)) :].count(("ready", 0)) == 0


def changes(bench: Bench) -> list[tuple[str, int]]:
    """What the history says, in order: a state, and whose."""
    found = sqlite3.connect(bench.paths.watchdog_db)
    try:
        return found.execute("SELECT state, replica FROM replica_status ORDER BY id").fetchall()
    finally:
        found.close()


def test_it_ends_with_its_input_where_it_is_told_to(bench: Bench):
    """Inside a container that a setuid program starts, no signal tells of its parent's death."""
    bench.start_collector()
    replica = bench.replica()
    argv = [sys.executable, watchdog.__file__, str(replica.spec_path), "", "lifeline"]
    replica.process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    bench.until_state("ready")
    assert replica.process.stdin is not None
    replica.process.stdin.close()
    assert replica.wait() == 0
    assert replica.lines("terms")
    assert bench.state() == "exited"


def test_watchdogs_of_one_machine_never_share_a_port(bench: Bench):
    bench.start_collector()
    replicas = [bench.replica(index).start() for index in range(3)]
    for index in range(3):
        bench.until_state("ready", index)
    assert len({report.url for report in bench.view().replicas}) == 3
    assert all(len(replica.starts) == 1 for replica in replicas)


def test_a_late_collector_loses_no_final_state(bench: Bench):
    replica = bench.replica(max_restarts=0).tell("die", 9).start()
    until(lambda: replica.starts and not runs(replica.starts[0]))
    time.sleep(0.5)
    assert replica.process.poll() is None
    bench.start_collector()
    assert replica.wait() == 1
    assert bench.state() == "failed"
    assert bench.view().replicas[0].exit_code == 9


def test_a_command_that_is_not_there_fails_with_its_name(bench: Bench):
    bench.start_collector()
    replica = bench.replica(argv=["/nowhere/engine"]).start()
    assert replica.wait() == 1
    assert bench.state() == "failed"
    assert "/nowhere/engine" in bench.view().replicas[0].reason


def test_a_spec_that_cannot_be_used_is_one_line(bench: Bench):
    path = bench.scratch / "spec.json"
    path.write_text('{"replica": 1, "bogus": 2}')
    argv = [sys.executable, watchdog.__file__, str(path)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "bogus" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


RAY = """#!/bin/sh
[ "$1" = status ] || exit 9
echo asked >>{gpus}-asked
gpus=$(cat {gpus}) && printf 'Total Usage:\\n 0.0/16.0 CPU\\n 0.0/%s GPU\\n' "$gpus"
"""


def fake_ray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `ray` on PATH that says what a file holds; the file."""
    gpus, program = folder / "gpus", folder / "ray"
    program.write_text(RAY.format(gpus=gpus))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return gpus


def test_an_engine_waits_for_rays_nodes_and_a_lost_one_is_no_reason_to_restart_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gpus = fake_ray(tmp_path, monkeypatch)
    gpus.write_text("4.0")
    ray = {"gpus": 8, "probe_timeout_s": 5, "status_grace_s": 0.5, "probe_interval_s": 0.2}
    bench.start_collector()
    replica = bench.replica(ray=ray).start()
    asked = gpus.with_name("gpus-asked")
    until(lambda: asked.exists() and len(asked.read_text().splitlines()) > 4)
    assert not replica.lines("starts")  # it would fail without its nodes
    gpus.write_text("8.0")
    bench.until_state("ready")
    gpus.write_text("4.0")
    assert replica.wait() == watchdog.LOST_NODE
    assert len(replica.starts) == 1
    assert not runs(replica.starts[0])
    assert bench.state() == "restarting"
    assert "4 of 8 GPUs" in str(bench.view().replicas[0].reason)


def test_nodes_that_never_join_ray_are_given_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_ray(tmp_path, monkeypatch)  # it says nothing
    ray = {"gpus": 8, "probe_timeout_s": 5, "status_grace_s": 0.5, "probe_interval_s": 0.2}
    bench.start_collector()
    replica = bench.replica(ray=ray, readiness_timeout=1.0).start()
    assert replica.wait() == watchdog.LOST_NODE
    assert "did not join" in str(bench.view().replicas[0].reason)


def test_a_disk_that_takes_no_log_ends_neither_the_engine_nor_its_reports(bench: Bench):
    replica = bench.replica()
    replica.log = Path("/dev/full")  # as stderr on a full disk: each write to it fails
    replica.start()
    until(lambda: replica.lines("asked"))  # no collector yet: that was complained of
    bench.start_collector()
    bench.until_state("ready")
    os.kill(replica.starts[0], signal.SIGKILL)
    until(lambda: len(replica.starts) > 1)
