"""The endpoint program with the real router in front of real engines."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil

from domyn_swarm.backends.endpoint import address
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.supervision import Activity
from domyn_swarm.backends.endpoint.view import read_address
from endpoint.bench import API_KEY, COLLECTOR_KEY, Bench, Replica, runs
from patience import limit_s, until
from process_list import running


def ask(url: str, prompt: str, key: str | None = API_KEY) -> tuple[int, str]:
    """One chat request; status 0: no reply."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=limit_s())
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]})
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    except (OSError, HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


def served_by(replica: Replica, prompt: str) -> int:
    return replica.lines("asked").count(prompt)


def burst(url: str) -> set[int]:
    """The statuses of many requests at once."""
    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(lambda n: ask(url, f"burst:{n}")[0], range(24)))


def routed(url: str) -> set[str]:
    """Where the router itself says that it sends requests."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with urlopen(Request(f"{url}/workers", headers=headers), timeout=limit_s()) as reply:
        workers = json.load(reply)["workers"]
    return {worker["url"] for worker in workers if worker["status"] == "ready"}


def start(bench: Bench, replicas: int, **changes: float) -> tuple[str, list[Replica]]:
    bench.start_endpoint()
    url = bench.address().url
    started = [bench.replica(index, **changes).start() for index in range(replicas)]
    for index in range(replicas):
        bench.until_state("ready", index)
        until(lambda one=started[index]: hit(url, one))
    return url, started


def hit(url: str, replica: Replica) -> bool:
    """Whether one of several requests at once arrives at this replica."""
    before = served_by(replica, "slow:0.1:hit")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: ask(url, "slow:0.1:hit"), range(6)))
    return served_by(replica, "slow:0.1:hit") > before


def test_only_with_the_key_and_the_key_is_nowhere_to_be_seen(bench: Bench):
    url, (replica,) = start(bench, 1)
    assert ask(url, "hello")[0] == 200
    assert ask(url, "secret", key=None)[0] == 401
    assert ask(url, "secret", key="wrong")[0] == 401
    assert ask(url, "secret", key=COLLECTOR_KEY)[0] == 401
    direct = bench.view().replicas[0].url
    assert ask(direct, "secret", key=None)[0] == 401
    assert served_by(replica, "secret") == 0
    for process in running():
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        assert API_KEY.encode() not in line
        assert COLLECTOR_KEY.encode() not in line
    secrets = {bench.paths.api_key, bench.paths.collector_key}
    for path in bench.paths.root.rglob("*"):
        if path.is_file() and path not in secrets:
            content = path.read_bytes()
            assert API_KEY.encode() not in content, path
            assert COLLECTOR_KEY.encode() not in content, path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_what_a_row_causes_is_answered_once_and_takes_no_replica_out(bench: Bench):
    url, (replica,) = start(bench, 1)
    for status in (400, 404, 408, 429, 500, 502, 503, 504):
        assert ask(url, f"{status}:once")[0] == status
        assert served_by(replica, f"{status}:once") == 1
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(lambda n: ask(url, f"500:{n}")[0], range(80)))
    assert statuses == {500: 80}
    assert ask(url, "hello")[0] == 200


def test_replicas_join_and_leave_without_a_failed_request(bench: Bench):
    url, replicas = start(bench, 2)
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def load(number: int) -> None:
        count = 0
        while not stop.is_set():
            statuses[ask(url, f"slow:0.05:{number}:{count}")[0]] += 1
            count += 1

    loads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
    for one in loads:
        one.start()
    replicas[0].process.send_signal(signal.SIGTERM)
    assert replicas[0].wait() == 0
    bench.until_state("exited", 0)
    joined = bench.replica(2).start()
    bench.until_state("ready", 2)
    until(lambda: len(joined.lines("asked")) > 20)
    stop.set()
    for one in loads:
        one.join()
    assert set(statuses) == {200}, statuses
    assert statuses[200] > 50


def test_a_killed_replica_leaves_and_only_what_was_at_it_fails(bench: Bench):
    url, replicas = start(bench, 2)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url, f"slow:0.6:{number}") for number in range(8)]
        until(lambda: all(served_by(one, "slow:0.6:0") or one.lines("asked") for one in replicas))
        time.sleep(0.3)
        place = bench.view().replicas[0].url
        replicas[0].process.kill()  # and with it its engine
        outcomes = [one.result() for one in asked]
    lost = [reply for status, reply in outcomes if status != 200]
    assert len(lost) < 8
    assert all("call_upstream" in reply for reply in lost), lost
    executed = Counter(line for one in replicas for line in one.lines("asked"))
    assert max(executed[f"slow:0.6:{number}"] for number in range(8)) <= 2
    until(lambda: place not in bench.paths.router_manifest.read_text())
    until(lambda: place not in routed(url))
    assert burst(url) | burst(url) == {200}


def test_a_killed_router_comes_back_at_the_same_place(bench: Bench):
    url, _ = start(bench, 1)
    program = psutil.Process(bench.programs[0].pid)
    (router,) = program.children()
    router.kill()
    until(lambda: ask(url, "again")[0] == 200)
    assert bench.address().url == url


def test_sigkill_of_the_program_leaves_no_router(bench: Bench):
    bench.start_endpoint()
    bench.address()
    program = psutil.Process(bench.programs[0].pid)
    (router,) = until(program.children)
    bench.programs[0].kill()
    until(lambda: not runs(router.pid))


def activity(bench: Bench) -> Activity:
    """What the router itself says of its use, to whom asks on its own port for that."""
    (router,) = psutil.Process(bench.programs[0].pid).children()
    served = urlsplit(bench.address().url).port
    listening = {one.laddr.port for one in router.net_connections() if one.status == "LISTEN"}
    for port in listening - {served}:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=limit_s()) as reply:
            return SmgRouter().activity(reply.read().decode())
    raise AssertionError(f"no port of its own: {listening}")


def test_the_router_counts_what_is_use_of_the_endpoint_and_nothing_else(bench: Bench):
    url, _ = start(bench, 1)
    until(lambda: activity(bench).in_flight == 0)
    before = activity(bench).requests
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with urlopen(Request(f"{url}/v1/models", headers=headers), timeout=limit_s()) as reply:
        assert reply.status == 200
    assert ask(url, "hello")[0] == 200
    until(lambda: activity(bench).requests == before + 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, url, "slow:2.0")
        until(lambda: activity(bench).in_flight == 1)
        assert asked.result()[0] == 200
    until(lambda: activity(bench)[:2] == (before + 2, 0))


def test_sigterm_lets_requests_finish_and_removes_the_address(bench: Bench):
    url, (replica,) = start(bench, 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, url, "slow:1.5:last")
        until(lambda: served_by(replica, "slow:1.5:last"))
        bench.programs[0].send_signal(signal.SIGTERM)
        assert asked.result()[0] == 200
    assert bench.programs[0].wait(limit_s()) == 0
    assert read_address(bench.paths) is None
    assert bench.view() is not None  # from the file


def test_a_configured_port_is_used_and_a_taken_one_is_one_clear_error(bench: Bench):
    port = address.free_port("127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert bench.start_endpoint(port=port).wait(limit_s()) == 4
    text = (bench.scratch / "endpoint.log").read_text()
    assert f"Port {port} for the endpoint is taken" in text
    assert "Traceback" not in text
    assert read_address(bench.paths) is None
    bench.start_endpoint(port=port)
    assert bench.address().url == f"http://127.0.0.1:{port}"


def test_a_moved_endpoint_is_found_by_its_watchdogs(bench: Bench):
    _, (replica,) = start(bench, 1)
    bench.programs[0].kill()
    bench.programs[0].wait()
    before = bench.address()
    bench.start_endpoint()
    url = until(
        lambda: (now := read_address(bench.paths)) != before and now is not None and now.url
    )
    until(lambda: ask(url, "hello")[0] == 200)
    assert len(replica.starts) == 1


def test_a_folder_without_a_spec_is_one_clear_error(bench: Bench):
    process = bench.start_endpoint()
    process.kill()
    process.wait()
    bench.paths.endpoint_spec.unlink()
    argv = [sys.executable, "-m", "domyn_swarm.backends.endpoint", str(bench.paths.root)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "endpoint.json" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_busy_replica_that_says_late_that_it_is_well_goes_on_to_serve(bench: Bench):
    """Later than the router waited once: two such answers, and it had no replica left."""
    url, (replica,) = start(bench, 1, http_timeout=0.5)
    place = bench.view().replicas[0].url
    replica.tell("tokens_per_s", 1000).tell("health_delay", 6)
    before = len(replica.lines("probed"))
    statuses = set()

    def probed() -> bool:
        statuses.add(ask(url, "hello")[0])
        assert routed(url) == {place}
        return len(replica.lines("probed")) >= before + 8  # the watchdog's are among them

    until(probed, every_s=0.5)
    assert statuses == {200}
    assert bench.state() == "ready"


def test_a_frozen_replica_leaves_the_router(bench: Bench):
    url, replicas = start(bench, 2, unhealthy_restart_after=60.0)
    os.kill(replicas[0].starts[0], signal.SIGSTOP)
    place = bench.view().replicas[0].url
    until(lambda: place not in bench.paths.router_manifest.read_text())
    until(lambda: place not in routed(url))
    assert burst(url) | burst(url) == {200}
