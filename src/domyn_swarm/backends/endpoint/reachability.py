"""Which replicas' ports accept connections: a lost node cannot report that it is lost.

A connection is opened and closed, and nothing is sent: whether an engine is frozen is judged by its
watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence
from urllib.parse import urlsplit

from domyn_swarm import open_files

CHECK_S = 2.0
_TIMEOUT_S = 1.5
_MISSES = 2  # failures in a row; a single one may be a busy moment
_AT_ONCE = 64  # connections that a check has open at a time
# Resources that this machine lacks: files, ports, memory. These errors say nothing about the other
# end.
_OUR_OWN = open_files.EXHAUSTED | {errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}


class Reachability:
    """Counts how many times in a row each URL could not be connected to."""

    def __init__(self) -> None:
        self._misses: dict[str, int] = {}

    def reachable(self, url: str) -> bool:
        """Whether requests may be sent there, by the checks so far."""
        return self._misses.get(url, 0) < _MISSES

    async def check(self, urls: Sequence[str]) -> bool:
        """Check every URL; True if one has become reachable or unreachable."""
        before = {url: self.reachable(url) for url in urls}
        few = asyncio.Semaphore(_AT_ONCE)

        async def look(url: str) -> int:
            async with few:
                answers = await _connects(url)
            known = self._misses.get(url, 0)
            return known if answers is None else 0 if answers else known + 1

        misses = await asyncio.gather(*map(look, urls))
        self._misses = dict(zip(urls, misses, strict=True))
        return any(self.reachable(url) != known for url, known in before.items())


async def _connects(url: str) -> bool | None:
    """Whether a server listens there; None: that cannot be determined from here now."""
    place = urlsplit(url)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(place.hostname, place.port)
    except TimeoutError:  # a subclass of OSError
        return False
    except OSError as error:
        return None if error.errno in _OUR_OWN or open_files.none_left() else False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
