"""How many requests of one session are in flight at most: a request that waits for its turn holds
no connection, and its time-out has not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from domyn_swarm import open_files

_ONCE_S = 2.0  # within so long, connections that fail fail for one cause
_REST_S = 30.0  # until turns that were taken away come back,
_REST_MOST_S = 960.0  # twice as long each time that was too many


class Connections:
    """As many turns as this process can have connections, or the endpoint takes requests; fewer
    once files run out.
    """

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
        self.most = own  # now
        self._in_use = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken_away = 0
        self._lowered_at = 0.0
        self._rest_s = _REST_S
        self._notice: Callable[[str], None] | None = notice
        self._lowered_notice: Callable[[str], None] | None = notice

    async def __aenter__(self) -> None:
        """Wait for a turn; who came first gets the next one.

        Not a semaphore of asyncio's: as a rule nobody waits, and with one that costs each row more
        than all else between it and its client.
        """
        if self._in_use < self.most and not self._waiting:
            self._in_use += 1
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
                self._in_use -= 1
                self._pass_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Let the next one have it."""
        self._in_use -= 1
        if (
            self._taken_away
            and asyncio.get_running_loop().time() >= self._lowered_at + self._rest_s
        ):
            self._taken_away -= 1
            self.most += 1
        if self._waiting:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._in_use < self.most:
            turn = self._waiting.popleft()
            if not turn.done():  # else who waited for it was cancelled
                self._in_use += 1
                turn.set_result(None)

    def lower(self) -> None:
        """No connection could be opened for want of files: have fewer turns from now on. Each
        request that ends after a rest gives one back; the rest is longer each time.
        """
        now = asyncio.get_running_loop().time()
        if self._lowered_at and now - self._lowered_at < _ONCE_S:  # one cause fails many
            return
        self._rest_s = min(_REST_MOST_S, 2 * self._rest_s) if self._lowered_at else _REST_S
        self._lowered_at = now
        most = max(1, min(self.most, self._in_use) * 9 // 10)
        self._taken_away += self.most - most
        self.most = most
        if self._lowered_notice is not None:
            notice, self._lowered_notice = self._lowered_notice, None
            notice(
                "no connection could be opened: this process, or its machine, has no open file "
                f"left; no more than {most} requests are in flight at a time for now"
            )
