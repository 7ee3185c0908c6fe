"""What a swarm is said to be, from looks of different ages."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from domyn_swarm import DomynLLMSwarm
from domyn_swarm.backends.endpoint.view import read_address
from domyn_swarm.backends.local.local_serving import LocalServing
from domyn_swarm.backends.protocols import ServingHandle
from domyn_swarm.errors import NotReady, PlatformUnavailable
from domyn_swarm.model import ReplicaReport, ReplicaState, SwarmPhase
from domyn_swarm.paths import write_private
from domyn_swarm.probing import Observation, Phase, at_least, endpoint_probe, http_json
from domyn_swarm.services.description import describe
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.swarm import factory
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.readiness import look_at, not_ready_yet, readiness
from domyn_swarm.swarm.survey import take_snapshot
from local_swarms import launch_of
from patience import limit_s, until


class OldLook(LocalServing):
    """A platform whose scheduler still tells of parts that were lost and replaced since."""

    def probe(self, handle: ServingHandle) -> Observation:
        return Observation(Phase.FAILED, f"{len(handle.parts)} jobs lost their nodes")

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        lost = Observation(Phase.FAILED, "lost its node")
        return {part.platform_id: lost for part in handle.parts}


class SilentPlatform(LocalServing):
    """A platform that does not answer for its parts."""

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:  # noqa: ARG002
        raise PlatformUnavailable("no answer")


def test_what_serves_is_ready_whatever_an_old_look_says(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = lifecycle.up(launch_of(replicas=2, min_ready=2))
    with monkeypatch.context() as patch:
        patch.setattr(factory, "serving_backend", lambda _backend: OldLook())
        seen = readiness(swarm)()
        assert (seen.phase, seen.detail) == (Phase.READY, "")
        swarm.paths.endpoint.unlink()  # nobody finds it: then it is as the platform says
        assert readiness(swarm)().phase is Phase.FAILED


def test_a_key_that_cannot_be_read_is_no_end_of_a_swarm(lifecycle: SwarmLifecycle) -> None:
    """`up` goes on to wait for what is not known, and stops what has failed."""
    swarm = lifecycle.up(launch_of())
    key = swarm.paths.api_key.rename(swarm.paths.api_key.with_name("aside"))
    swarm.paths.api_key.mkdir()  # it is there, and cannot be read
    seen = readiness(swarm)()
    assert (seen.phase, "Is a directory" in seen.detail) == (Phase.UNKNOWN, True)
    swarm.paths.api_key.rmdir()
    assert readiness(swarm)().phase is Phase.FAILED
    key.rename(swarm.paths.api_key)
    assert readiness(swarm)().phase is Phase.READY


@pytest.fixture
def asked_of_collector(
    lifecycle: SwarmLifecycle,  # whose swarms it stands before
) -> Iterator[Callable[[LiveSwarm], list[str]]]:
    """Puts a relay before a swarm's collector; what is asked there from then on is in the list."""
    with ExitStack() as relays:

        def relayed(swarm: LiveSwarm) -> list[str]:
            address, asked = read_address(swarm.paths), list[str]()
            assert address is not None

            class Relay(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    asked.append(self.path)
                    key = {"Authorization": self.headers["Authorization"]}
                    request = urllib.request.Request(
                        f"{address.collector_url}{self.path}", None, key
                    )
                    with urllib.request.urlopen(request, timeout=limit_s()) as reply:
                        self.send_response(reply.status)
                        self.end_headers()
                        self.wfile.write(reply.read())

                def log_message(self, *_: object) -> None:
                    """Nothing."""

            server = relays.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Relay))
            relays.callback(server.shutdown)
            threading.Thread(target=server.serve_forever).start()
            url = f"http://127.0.0.1:{server.server_port}"
            moved = address.model_copy(update={"collector_url": url})
            write_private(swarm.paths.endpoint, moved.model_dump_json())
            return asked

        yield relayed


@pytest.mark.parametrize("wait", [True, False])
def test_the_collector_is_asked_once_for_all_that_is_said_of_a_swarm(
    lifecycle: SwarmLifecycle,
    asked_of_collector: Callable[[LiveSwarm], list[str]],
    *,
    wait: bool,
) -> None:
    """Also of one that has just become ready, which its record does not say yet."""
    swarm = lifecycle.up(launch_of(replicas=2, min_ready=2), wait=wait)
    until(lambda: readiness(swarm)().phase is Phase.READY)
    asked = asked_of_collector(swarm)
    seen = SwarmService().status("demo")
    assert (seen.phase, seen.observed, seen.replicas_ready) == (SwarmPhase.READY, "ready", 2)
    assert asked == ["/v1/replicas"]
    assert [one.replicas_ready for one in SwarmService().list()] == [2]
    assert DomynLLMSwarm.attach("demo").snapshot().replicas_ready == 2
    assert asked == ["/v1/replicas"] * 3
    assert describe("demo").swarm.replicas_ready == 2
    assert asked == ["/v1/replicas"] * 4


def test_what_is_not_known_of_the_platform_leaves_what_the_collector_says(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = lifecycle.up(launch_of())
    with monkeypatch.context() as patch:
        patch.setattr(factory, "serving_backend", lambda _backend: SilentPlatform())
        look = look_at(swarm)
        assert (look.together.phase, look.together.detail) == (Phase.UNKNOWN, "no answer")
        shown = take_snapshot(swarm, look=look)
        assert (shown.observed, shown.replicas_ready) == ("unknown", 1)
        assert shown.endpoint is not None
        seen = readiness(swarm)()
        assert (seen.phase, seen.detail) == (Phase.UNKNOWN, "no answer")


class OftenSilent(LocalServing):
    """A platform that answers only when it is asked for its parts for the third time."""

    def __init__(self) -> None:
        self.asked = 0

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        self.asked += 1
        if self.asked < 3:
            raise PlatformUnavailable("no answer")
        return super().probe_parts(handle)


def test_up_waits_for_a_platform_that_does_not_answer_and_says_so(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be asked is not gone: replicas that were paid for are kept."""
    platform, seen = OftenSilent(), list[Observation]()
    monkeypatch.setattr(factory, "serving_backend", lambda _backend: platform)
    swarm = lifecycle.up(launch_of(), on_change=seen.append)
    assert swarm.record.phase is SwarmPhase.READY
    assert (Phase.UNKNOWN, "no answer") in [(one.phase, one.detail) for one in seen]


def test_an_up_whose_time_is_over_while_the_platform_is_silent_says_so(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "serving_backend", lambda _backend: SilentPlatform())
    with pytest.raises(NotReady, match="was not ready in time: no answer"):
        lifecycle.up(launch_of(), timeout_s=0.5)


def test_the_parts_of_a_record_are_validated_once(lifecycle: SwarmLifecycle) -> None:
    swarm = lifecycle.up(launch_of(), wait=False)
    assert swarm.handle is swarm.handle
    nothing = swarm.with_record(swarm.record.model_copy(update={"parts": ()}))
    assert (len(swarm.handle.parts), nothing.handle.parts) == (2, ())


@pytest.mark.parametrize(
    ("state", "status", "reason", "said"),
    [
        (ReplicaState.STARTING, 404, None, "its health path answered HTTP 404"),
        (ReplicaState.STARTING, None, None, None),
        (ReplicaState.READY, 503, None, None),
        (ReplicaState.RESTARTING, None, "the disk is full", "the disk is full"),
    ],
)
def test_what_keeps_a_replica_from_being_ready(
    state: ReplicaState, status: int | None, reason: str | None, said: str | None
) -> None:
    report = ReplicaReport(
        replica=0, state=state, http_status=status, reason=reason, incarnation="i", sequence=1
    )
    assert not_ready_yet(report) == said


def test_how_many_are_ready_is_told_of_all_and_a_start_frightens_nobody() -> None:
    def part() -> Observation:
        return Observation(Phase.STARTING)

    assert at_least(1, part, part)().detail == "0 of 2 ready, 1 needed"
    assert at_least(2, part, part)().detail == "0 of 2 ready"
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert endpoint_probe(url, "key")().detail == f"{url} does not answer yet"


def test_a_connection_is_closed_whatever_was_answered() -> None:
    """Python 3.14 warns of one that is not, and a login node has few files."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended: list[bytes] = []

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 503 no\r\nContent-Length: 9\r\n\r\nwait")
                ended.append(connection.recv(1))

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            http_json(url, timeout_s=limit_s())
        thread.join(limit_s())  # while the error is still held
        assert ended == [b""]
        assert refused.value.code == 503
        assert refused.value.fp is not None
        assert refused.value.fp.closed  # else Python from 3.14 on warns of it


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
    ],
)
def test_whatever_answers_at_the_port_is_no_crash(said: bytes) -> None:
    """A port may be another program's by now."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert endpoint_probe(url, "key", timeout_s=limit_s())().phase is Phase.STARTING
        thread.join()
