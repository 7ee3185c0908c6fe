"""What was seen last of something: one look serves everybody who asks meanwhile.

A look is taken when somebody asks and the last one is old enough, so that many tabs cost what one
does, and none of them nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from domyn_swarm.errors import JobNotFound, SwarmError, SwarmNotFound, words_of
from domyn_swarm.logs import get_logger
from domyn_swarm.model import utc_now

_log = get_logger(__name__)

_T = TypeVar("_T")
_WAIT_S = 2.0  # who asks gets what was known before when a look takes longer
_AT_ONCE = 4  # looks, each on a thread
_KEPT = 64  # of those that nobody has asked for, the oldest go
_BUG = "The dashboard failed: its terminal shows why."


@dataclass(frozen=True)
class Seen(Generic[_T]):
    """What is known of something, and since when."""

    value: _T | None = None  # None: nothing yet
    at: datetime | None = None  # when the look began that saw it
    problem: str | None = None  # why nothing newer is known
    gone: bool = False  # there is no such thing


class Look(Generic[_T]):
    """Something that is looked at. The next look begins `every_s` after the last one ended."""

    def __init__(self, take: Callable[[], _T], every_s: float, room: asyncio.Semaphore) -> None:
        self._take = take
        self._every_s = every_s
        self._room = room
        self._seen: Seen[_T] = Seen()
        self._due_at = 0.0
        self._running: asyncio.Task[None] | None = None

    async def seen(self) -> Seen[_T]:
        """What is known now; a look is waited for two seconds at most."""
        loop = asyncio.get_running_loop()
        if self._running is None and loop.time() >= self._due_at:
            self._running = loop.create_task(self._look())
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=_WAIT_S)
        return self._seen

    async def _look(self) -> None:
        async with self._room:
            began = utc_now()
            try:
                self._seen = Seen(await _on_thread(self._take), began)
            except (SwarmNotFound, JobNotFound) as error:
                self._seen = replace(self._seen, problem=str(error), gone=True)
            except SwarmError as error:
                self._seen = replace(self._seen, problem=str(error))
            except OSError as error:
                self._seen = replace(self._seen, problem=words_of(error))
            except Exception:  # noqa: BLE001 - the boundary to a browser
                _log.exception("cannot look")
                self._seen = replace(self._seen, problem=_BUG)
        self._due_at = asyncio.get_running_loop().time() + self._every_s
        self._running = None


class Looks:
    """The looks of a dashboard, by what they are at; a bounded number of them is kept."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._looks: OrderedDict[tuple[str, ...], Look[Any]] = OrderedDict()

    def at(
        self, key: tuple[str, ...], make: Callable[[], Callable[[], _T]], every_s: float
    ) -> Look[_T]:
        """The look of this key; `make` makes what takes it, once."""
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = Look(make(), every_s, self._room)
        self._looks.move_to_end(key)
        if len(self._looks) > _KEPT:
            self._looks.popitem(last=False)
        return look


async def _on_thread(work: Callable[[], _T]) -> _T:
    """As `asyncio.to_thread`, on a thread that the end of the program does not wait for: platforms
    may take a minute to answer.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(give: Callable[[Any], None], what: object) -> None:
        if not future.done():
            give(what)

    def run() -> None:
        give: Callable[[Any], None] = future.set_result
        what: object
        try:
            what = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            give, what = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, give, what)

    threading.Thread(target=run, name="look", daemon=True).start()
    return await future
