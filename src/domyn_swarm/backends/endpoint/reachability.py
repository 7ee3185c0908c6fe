"""Which replicas' ports answer: a lost node cannot report that it is lost.

A connection is opened and closed, nothing is asked: whether an engine is frozen is its watchdog's
to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from urllib.parse import urlsplit

CHECK_S = 2.0
_TIMEOUT_S = 1.5
_MISSES = 2  # in a row; one may be a busy moment


class Reachability:
    """Counts how often in a row each URL could not be connected to."""

    def __init__(self) -> None:
        self._misses: dict[str, int] = {}

    def reachable(self, url: str) -> bool:
        """Whether requests may be sent there, as far as is known."""
        return self._misses.get(url, 0) < _MISSES

    async def check(self, urls: Sequence[str]) -> bool:
        """Look at every URL; whether one has become reachable or unreachable."""
        before = {url: self.reachable(url) for url in urls}
        answers = await asyncio.gather(*[_connects(url) for url in urls])
        self._misses = {
            url: 0 if answers[at] else self._misses.get(url, 0) + 1 for at, url in enumerate(urls)
        }
        return any(self.reachable(url) != known for url, known in before.items())


async def _connects(url: str) -> bool:
    place = urlsplit(url)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(place.hostname, place.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
