"""The port where workers of other machines call: who gets in, and who does not."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import sys
from dataclasses import replace

import pytest

from domyn_swarm.batch.run.link import Invitation, Limit, Link, Order, Wanted, WorkerListener, call
from patience import limit_s


async def test_an_invited_worker_is_linked_and_heard() -> None:
    async with WorkerListener("127.0.0.1") as listener:
        invitation = listener.invite()
        connection, link = await asyncio.gather(call(invitation), listener.met(invitation, 5))
        theirs: Link[Order] = Link(*connection, Order)  # type: ignore[arg-type]
        theirs.say(Wanted(7))
        link.say(Limit(3))
        assert await anext(link.listen()) == Wanted(7)
        assert await anext(theirs.listen()) == Limit(3)
        await theirs.close()
        assert [report async for report in link.listen()] == []
        await link.close()


async def test_who_does_not_know_the_secret_gets_nothing() -> None:
    async with WorkerListener("127.0.0.1") as listener:
        invitation = listener.invite()
        for wrong in (
            replace(invitation, secret=secrets.token_bytes(32)),
            replace(invitation, worker=secrets.token_bytes(16)),
            Invitation(invitation.host, invitation.port),
        ):
            with pytest.raises(ConnectionError):
                await call(wrong)
        connection, link = await asyncio.gather(call(invitation), listener.met(invitation, 5))
        with pytest.raises(ConnectionError):  # an invitation is for one
            await call(invitation)
        connection[1].close()
        await connection[1].wait_closed()
        await link.close()


async def test_a_worker_finds_out_an_impostor() -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"n" * 32)
        await reader.readexactly(48)
        writer.write(b"p" * 32)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionError, match="another program"):
            await call(Invitation("127.0.0.1", port))
        await gone.wait()  # both ends: a socket that is left open fails some later test


async def test_strangers_keep_nobody_out() -> None:
    async with WorkerListener("127.0.0.1") as listener:
        invitation = listener.invite()
        connections = [
            await asyncio.open_connection(invitation.host, invitation.port) for _ in range(20)
        ]
        for _, writer in connections[:10]:
            writer.write(secrets.token_bytes(10_000))
        connection, link = await asyncio.gather(call(invitation), listener.met(invitation, 5))
        for _, writer in [*connections, connection]:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await link.close()
    await asyncio.sleep(0.1)  # the listener's ends close too


async def test_who_does_not_call_is_not_waited_for_forever() -> None:
    async with WorkerListener("127.0.0.1") as listener:
        with pytest.raises(TimeoutError):
            await listener.met(listener.invite(), 0.05)
    with pytest.raises(ConnectionError, match="no coordinator"):
        await call(Invitation("127.0.0.1", 1))


# In a network of its own, which is then cut.
CUT = """
import asyncio, fcntl, socket, struct
import uvloop
from domyn_swarm.batch.run import link as remote_worker
from domyn_swarm.batch.run.link import Link, Order, Wanted

remote_worker._SILENT_S = 1


def network(*, up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = 0x41 if up else 0  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", flags))  # SIOCSIFFLAGS


async def cut():
    network(up=True)
    async with remote_worker.WorkerListener("127.0.0.1") as listener:
        invitation = listener.invite()
        connection, link = await asyncio.gather(
            remote_worker.call(invitation), listener.met(invitation, 5)
        )
        theirs = Link(*connection, Order)
        network(up=False)
        theirs.say(Wanted(1))  # the coordinator says nothing meanwhile
        for end in (theirs, link):
            assert [message async for message in end.listen()] == []
            await end.close()
    print("noticed")


asyncio.run(cut())
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(cut())
"""


def test_a_machine_that_is_lost_without_a_word_is_noticed_at_both_ends() -> None:
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", CUT]
    if subprocess.run([*command[:4], "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit_s())
    assert done.stdout.split() == ["noticed", "noticed"], done.stderr
