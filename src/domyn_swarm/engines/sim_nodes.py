"""A simulated server on several nodes: the first serves, the others hold a connection to it.

As with real engines, it is not ready before all nodes have joined, and ends if a node is lost.
"""

from __future__ import annotations

import asyncio
import contextlib

_AGAIN_S = 0.2


class Nodes:
    """The first node's view of the others."""

    def __init__(self, others: int) -> None:
        self._others = others
        self._joined = 0
        self.lost = asyncio.Event()

    @property
    def complete(self) -> bool:
        """Whether every node has joined."""
        return self._joined >= self._others

    async def listen(self, port: int) -> None:
        """Accept connections of the other nodes on every interface. Raises OSError."""
        if self._others:
            await asyncio.start_server(self._hold, "0.0.0.0", port)  # noqa: S104 - other nodes connect

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._joined += 1
        with contextlib.suppress(OSError):
            await reader.read()  # returns when the other node disconnects
        writer.close()
        print("a node of this replica is gone", flush=True)  # noqa: T201 - the engine's log
        self.lost.set()


async def follow(host: str, port: int) -> None:
    """Run as a further node of the replica whose first node is at `host`, until that one ends."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(_AGAIN_S)
            continue
        print(f"joined {host}:{port}", flush=True)  # noqa: T201 - the engine's log
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        return
