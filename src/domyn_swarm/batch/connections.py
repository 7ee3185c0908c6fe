"""How many requests of one session are in flight at most: a request that waits for its turn holds
no connection, and its time-out has not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from domyn_swarm import open_files


class Connections:
    """As many turns as this process can have connections, or the endpoint takes requests."""

    def __init__(self, admits: int | None, notice: Callable[[str], None]) -> None:
        """`admits`: requests that the endpoint takes from this process; None: it does not say.
        `notice` is called once, when the first request has to wait.
        """
        own = open_files.connections()
        self._text = (
            f"no more than {own} requests are in flight at a time: this process may have "
            f"{open_files.limits().soft} files open; raise the hard limit (ulimit -Hn) for more"
        )
        if admits is not None and admits < own:
            own = max(1, admits)
            self._text = (
                f"no more than {own} requests are in flight at a time: the endpoint takes no more, "
                "by router.max_concurrent and queue_size, or for its node's limit of open files "
                "(see its log)"
            )
        self._free = asyncio.Semaphore(own)
        self._notice: Callable[[str], None] | None = notice

    async def __aenter__(self) -> None:
        """Wait for a turn."""
        if self._notice is not None and self._free.locked():
            notice, self._notice = self._notice, None
            notice(self._text)
        await self._free.acquire()

    async def __aexit__(self, *_: object) -> None:
        """Let the next one have it."""
        self._free.release()
