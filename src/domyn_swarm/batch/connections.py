"""How many requests of one session are in flight at most: a request that waits for its turn holds
no connection, and its time-out has not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
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
        self._free = own  # none while somebody waits: a turn that is over goes to who is first
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._notice: Callable[[str], None] | None = notice

    async def __aenter__(self) -> None:
        """Wait for a turn; who came first gets the next one.

        Not a semaphore of asyncio's: as a rule nobody waits, and with one that costs each row more
        than all else between it and its client.
        """
        if self._free:
            self._free -= 1
            return
        if self._notice is not None:
            notice, self._notice = self._notice, None
            notice(self._text)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had come just before
                self._pass_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Let the next one have it."""
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else who waited for it was cancelled
                turn.set_result(None)
                return
        self._free += 1
