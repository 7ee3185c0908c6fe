"""How busy the engines are, asked of the replicas at once when somebody wants to know.

Watchdogs report too seldom to steer by; so the collector asks the engines itself, at most twice a
second however many jobs want to know, and a few dozen of them however many there are: those that
answer in time stand for all.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from domyn_swarm.model import Record

_FRESH_S = 0.5
_TIMEOUT_S = 2.0  # busy engines answer late
_MOST_ASKED = 64
_MOST_BYTES = 4 << 20


class EndpointGauges(Record):
    """Requests at all engines of one swarm, as those have them that answered."""

    running: float
    waiting: float
    replicas: int  # that take requests
    answered: int  # of them; 0: nothing is known


class EngineGauges:
    """Asks the engines' metrics; `path` None: they have none."""

    def __init__(
        self, path: str | None, running: str | None, waiting: str | None, key_file: Path
    ) -> None:
        self._path = path
        self._running = _pattern(running)
        self._waiting = _pattern(waiting)
        self._key_file = key_file
        self._session: aiohttp.ClientSession | None = None
        self._asking = asyncio.Lock()
        self._known: EndpointGauges | None = None
        self._known_at = -_FRESH_S

    async def read(self, urls: Sequence[str]) -> EndpointGauges | None:
        """The gauges of the engines at `urls`; None when they have none."""
        if self._path is None or self._running is None:
            return None
        async with self._asking:
            if time.monotonic() - self._known_at >= _FRESH_S:
                asked = random.sample(urls, min(len(urls), _MOST_ASKED))
                texts = await asyncio.gather(*[self._metrics(url + self._path) for url in asked])
                answers = [text for text in texts if text is not None]
                share = len(urls) / max(1, len(answers))
                self._known = EndpointGauges(
                    running=share * sum(_sum(self._running, text) for text in answers),
                    waiting=share * sum(_sum(self._waiting, text) for text in answers),
                    replicas=len(urls),
                    answered=len(answers),
                )
                self._known_at = time.monotonic()
            return self._known

    async def _metrics(self, url: str) -> bytes | None:
        if self._session is None:
            key = self._key_file.read_text("utf-8").strip()
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {key}"},
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            )
        try:
            async with self._session.get(url, allow_redirects=False) as reply:
                text = await reply.content.read(_MOST_BYTES)
                return text if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()


def _pattern(name: str | None) -> re.Pattern[bytes] | None:
    """Lines of the Prometheus text format that hold this metric, whatever its labels."""
    if name is None:
        return None
    return re.compile(rb"^%s(?:\{[^}\n]*\})? +([0-9.eE+-]+)" % re.escape(name.encode()), re.M)


def _sum(pattern: re.Pattern[bytes] | None, text: bytes) -> float:
    if pattern is None:
        return 0.0
    try:
        return sum(float(value) for value in pattern.findall(text))
    except ValueError:
        return 0.0
