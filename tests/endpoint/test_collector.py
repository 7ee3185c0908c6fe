"""The collector against good and hostile clients, over real sockets."""

from __future__ import annotations

import json
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from domyn_swarm.backends.endpoint import history
from domyn_swarm.backends.endpoint.connections import LIFETIME_S, MAX_CONNECTIONS
from domyn_swarm.backends.endpoint.history import History
from domyn_swarm.backends.endpoint.view import read_view
from domyn_swarm.model import ReplicaReport, ReplicaState, listing_tag, utc_now
from domyn_swarm.paths import write_private
from endpoint.bench import API_KEY, COLLECTOR_KEY, Bench, CollectorThread
from patience import limit_s, until


def report(replica: int = 0, **changes: Any) -> dict[str, Any]:
    fields = {"replica": replica, "state": "ready", "url": f"http://127.0.0.1:{9000 + replica}"}
    return {**fields, "incarnation": "a", "sequence": 1, **changes}


class Client:
    def __init__(self, collector: CollectorThread) -> None:
        parts = urlsplit(collector.url)
        self.place = (parts.hostname, parts.port)

    def send(
        self, method: str, path: str, body: bytes | None = None, key: str | None = COLLECTOR_KEY
    ) -> tuple[int, Any]:
        connection = HTTPConnection(*self.place, timeout=limit_s())
        try:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read() or b"null")
        finally:
            connection.close()

    def report(self, replica: int = 0, **changes: Any) -> tuple[int, Any]:
        return self.send("POST", "/v1/report", json.dumps(report(replica, **changes)).encode())

    def socket(self) -> socket.socket:
        return socket.create_connection(self.place, timeout=limit_s())


@pytest.fixture
def client(bench: Bench) -> Client:
    return Client(bench.start_collector())


def manifest(bench: Bench) -> list[str]:
    try:
        document = json.loads(bench.paths.router_manifest.read_text())
    except OSError:
        return []
    return [worker["url"] for worker in document["workers"]]


@pytest.mark.parametrize("key", [None, "", "wrong", API_KEY, COLLECTOR_KEY + "x", "schlüssel"])
def test_without_its_key_it_tells_and_takes_nothing(bench: Bench, client: Client, key: str | None):
    header = None if key is None else key.encode("utf-8").decode("latin-1")
    body = json.dumps(report()).encode()
    assert client.send("POST", "/v1/report", body, header)[0] == 401
    assert client.send("GET", "/v1/replicas", key=header)[0] == 401
    assert client.send("GET", "/health", key=header) == (200, {"status": "ok"})
    view = read_view(bench.paths)
    assert view is not None
    assert view.replicas == ()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (json.dumps(report(state="dancing")).encode(), 400),
        (json.dumps(report(extra=1)).encode(), 400),
        (json.dumps(report(replica=-1)).encode(), 400),
        (json.dumps(report(reason="x" * 5000)).encode(), 400),
        (json.dumps(report(replica=3)).encode(), 404),
        (json.dumps(report(reason="x" * 70_000)).encode(), 413),
    ],
)
def test_what_is_no_report_is_refused(bench: Bench, client: Client, body: bytes, status: int):
    assert client.send("POST", "/v1/report", body)[0] == status
    assert client.send("GET", "/v1/replicas")[1]["replicas"] == []


def test_a_compressed_body_is_not_unpacked(client: Client):
    connection = client.socket()
    head = f"POST /v1/report HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {COLLECTOR_KEY}\r\n"
    connection.sendall(f"{head}Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc".encode())
    assert b" 400 " in connection.recv(100)
    connection.close()


def test_reports_of_the_past_are_ignored(client: Client):
    assert client.report(sequence=5)[1]["verdict"] == "taken"
    assert client.report(sequence=4, state="failed")[1]["verdict"] == "late"
    assert client.report(sequence=5, state="failed")[1]["verdict"] == "late"
    assert client.report(incarnation="b", sequence=0, state="starting")[1]["verdict"] == "taken"
    assert client.report(sequence=99, state="failed")[0] == 409
    replicas = client.send("GET", "/v1/replicas")[1]["replicas"]
    assert [one["state"] for one in replicas] == ["starting"]
    assert replicas[0]["reported_at"] is not None


def test_a_driver_is_told_of_the_replicas_that_take_requests(client: Client) -> None:
    for replica, state in enumerate(("ready", "starting", "draining")):
        assert client.report(replica, state=state)[0] == 200
    told = client.send("GET", "/v1/replicas?for=requests")[1]
    assert [(one["replica"], one["url"]) for one in told["replicas"]] == [
        (0, "http://127.0.0.1:9000")
    ]
    assert len(client.send("GET", "/v1/replicas")[1]["replicas"]) == 3
    known = f"/v1/replicas?for=requests&known={listing_tag(['http://127.0.0.1:9000'])}"
    assert client.send("GET", known)[0] == 204
    assert client.report(1, state="ready", url="http://127.0.0.1:9001", sequence=2)[0] == 200
    assert len(client.send("GET", known)[1]["replicas"]) == 2


def test_the_manifest_lists_who_is_ready(bench: Bench, client: Client):
    client.report(0)
    client.report(1)
    client.report(2, state="starting")
    until(lambda: len(manifest(bench)) == 2)
    client.report(0, sequence=2, state="unhealthy")
    until(lambda: manifest(bench) == ["http://127.0.0.1:9001"])


def test_drained_is_said_only_after_the_router_had_time_to_follow(bench: Bench, client: Client):
    client.report(0)
    until(lambda: manifest(bench))
    first = client.report(0, sequence=2, state="draining")[1]
    assert first["drained"] is False
    assert manifest(bench) == []  # it waited for the file
    asked: Callable[[], bool] = lambda: client.report(  # noqa: E731
        0, sequence=int(time.monotonic() * 1000), state="draining"
    )[1]["drained"]
    until(asked)
    assert client.report(1, state="draining")[1]["drained"] is True  # was never in


def test_views_over_http_and_from_the_file_agree(bench: Bench, client: Client):
    client.report(1, reason="r")
    asked = read_view(bench.paths)
    assert asked is not None
    assert [one.replica for one in asked.replicas] == [1]
    until(lambda: bench.paths.replicas.exists() and "ready" in bench.paths.replicas.read_text())
    bench.collectors.pop().end()
    written = read_view(bench.paths)
    assert written is not None
    assert written.replicas == asked.replicas
    for path in (bench.paths.replicas, bench.paths.router_manifest):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_restarted_collector_keeps_replicas_of_its_own_swarm_only(bench: Bench, client: Client):
    client.report(1)
    until(lambda: manifest(bench))
    bench.collectors.pop().end()
    again = bench.start_collector()
    until(lambda: manifest(bench) == ["http://127.0.0.1:9001"])
    assert Client(again).report(1, sequence=2)[1]["verdict"] == "taken"
    bench.collectors.pop().end()
    bench.start_collector(tag="another")
    until(lambda: manifest(bench) == [])


def test_hostile_clients_do_not_keep_good_ones_waiting(bench: Bench, client: Client):
    idle = [client.socket() for _ in range(200)]
    slow = [client.socket() for _ in range(4)]
    head = f"POST /v1/report HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {COLLECTOR_KEY}\r\n"
    slow[0].sendall(b"POST /v1/rep")
    slow[1].sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    slow[2].sendall(f"{head}Content-Length: 500\r\n\r\n{{".encode())
    slow[3].sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode())
    for sequence in range(50):
        sent = time.monotonic()
        assert client.report(0, sequence=sequence + 1)[0] == 200
        assert time.monotonic() - sent < LIFETIME_S  # not until the others are gone
        slow[1].sendall(b"x")
    for one in [*slow, *idle[:5], *idle[-5:]]:
        one.settimeout(limit_s())
        with pytest.raises(ConnectionError):
            raise ConnectionError if one.recv(1000) == b"" else AssertionError("answered")
    for one in [*slow, *idle]:
        one.close()


def test_more_connections_than_allowed_push_out_the_oldest(client: Client):
    idle = [client.socket() for _ in range(MAX_CONNECTIONS + 40)]
    for sequence in range(20):
        assert client.report(0, sequence=sequence + 1)[0] == 200
    with pytest.raises(ConnectionError):
        raise ConnectionError if idle[0].recv(10) == b"" else AssertionError("answered")
    for one in idle:
        one.close()


def test_many_watchdogs_report_at_once(bench: Bench):
    client = Client(bench.start_collector(replicas=64))
    statuses: list[int] = []

    def beat(replica: int) -> None:
        statuses.extend(client.report(replica, sequence=number)[0] for number in range(1, 6))

    threads = [threading.Thread(target=beat, args=(replica,)) for replica in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * (64 * 5)
    assert len(client.send("GET", "/v1/replicas")[1]["replicas"]) == 64


def test_history_holds_changes_and_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    client = Client(bench.start_collector())
    for sequence in range(1, 20):
        client.report(0, sequence=sequence, requests_running=sequence)
    client.report(0, sequence=30, state="failed", reason="why", exit_code=4)
    bench.collectors.pop().end()
    database = sqlite3.connect(bench.paths.watchdog_db)
    rows = database.execute("SELECT state, reason, exit_code FROM replica_status").fetchall()
    assert rows == [("ready", None, None), ("failed", "why", 4)]

    monkeypatch.setattr(history, "ROWS_KEPT", 100)
    log = History(bench.paths.watchdog_db)
    one = ReplicaReport(
        replica=0, state=ReplicaState.READY, incarnation="a", sequence=1, reported_at=utc_now()
    )
    for _ in range(6):
        log.append([one] * 250)
    log.close()
    assert database.execute("SELECT COUNT(*) FROM replica_status").fetchone()[0] <= 600
    database.close()


def test_a_disk_that_refuses_does_not_end_it(bench: Bench, client: Client):
    bench.paths.watchdog_db.unlink(missing_ok=True)
    bench.paths.watchdog_db.mkdir()  # no database can be there
    assert client.report(0)[0] == 200
    until(lambda: manifest(bench))


def test_a_view_that_cannot_be_read_is_none(bench: Bench):
    assert read_view(bench.paths) is None
    write_private(bench.paths.replicas, "{")
    assert read_view(bench.paths) is None


def test_the_history_may_be_closed_while_another_thread_writes(bench: Bench):
    log = History(bench.paths.watchdog_db)
    report = ReplicaReport(
        replica=0, state=ReplicaState.READY, incarnation="a", sequence=1, reported_at=utc_now()
    )
    writing = threading.Event()

    def write():
        for _ in range(300):
            log.append([report])
            writing.set()

    thread = threading.Thread(target=write)
    thread.start()
    writing.wait(limit_s())
    while thread.is_alive():
        log.close()
    thread.join()
    with sqlite3.connect(bench.paths.watchdog_db) as connection:
        [[rows]] = connection.execute("SELECT count(*) FROM replica_status")
    connection.close()
    assert rows == 300
