"""What a swarm is said to be, from looks of different ages."""

from __future__ import annotations

import socket
import threading
import urllib.error

import pytest

from domyn_swarm.backends.base import ServingHandle
from domyn_swarm.backends.local.serving import LocalServing
from domyn_swarm.model import ReplicaReport, ReplicaState
from domyn_swarm.probing import Observation, Phase, at_least, endpoint_probe, http_json
from domyn_swarm.swarm import factory
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.readiness import not_ready_yet, readiness
from local_swarms import launch_of
from patience import limit_s


class OldLook(LocalServing):
    """A platform whose scheduler still tells of parts that were lost and replaced since."""

    def probe(self, handle: ServingHandle) -> Observation:
        return Observation(Phase.FAILED, f"{len(handle.parts)} jobs lost their nodes")

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        lost = Observation(Phase.FAILED, "lost its node")
        return {part.platform_id: lost for part in handle.parts}


def test_what_serves_is_ready_whatever_an_old_look_says(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = lifecycle.up(launch_of(replicas=2, min_ready=2))
    with monkeypatch.context() as patch:
        patch.setattr(factory, "serving_backend", lambda _backend: OldLook())
        seen = readiness(swarm)()
        assert (seen.phase, seen.detail) == (Phase.READY, "platform")
        swarm.paths.endpoint.unlink()  # nobody finds it: then it is as the platform says
        assert readiness(swarm)().phase is Phase.FAILED


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
