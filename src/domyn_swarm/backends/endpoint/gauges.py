"""How busy the engines are, asked of the replicas at once when somebody wants to know.

Watchdogs report too seldom to steer by; so the collector asks the engines itself, at most twice a
second however many jobs want to know, and a few dozen of them however many there are, always the
same ones: those that answer in time stand for all.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import aiohttp

from domyn_swarm.backends.endpoint.spec import EndpointSpec
from domyn_swarm.model import Record

_FRESH_S = 0.5
_TIMEOUT_S = 2.0  # busy engines answer late
_MOST_ASKED = 64
_MOST_BYTES = 4 << 20
_SINCE_S = 30.0  # a rate is over no longer than that


class EndpointGauges(Record):
    """Requests at all engines of one swarm, as those have them that answered."""

    running: float
    waiting: float
    replicas: int  # that take requests
    answered: int  # of them; 0: nothing is known
    tokens_s: float | None = None  # generated, per second; None: not known, or not yet
    preemptions_s: float | None = None  # requests put back for want of KV memory, per second


class _Reading(NamedTuple):
    """What one engine said."""

    at: float  # by the monotonic clock
    running: float
    waiting: float
    tokens: float | None  # counted since it began
    preemptions: float | None


class EngineGauges:
    """Asks the engines' metrics, where they have them."""

    def __init__(self, spec: EndpointSpec) -> None:
        self._path = spec.metrics_path
        self._running = _pattern(spec.running_metric)
        self._waiting = _pattern(spec.waiting_metric)
        self._tokens = _pattern(spec.generated_tokens_metric)
        self._preemptions = _pattern(spec.preemptions_metric)
        self._key_file = spec.api_key_file
        self._session: aiohttp.ClientSession | None = None
        self._asking = asyncio.Lock()
        self._known: EndpointGauges | None = None
        self._known_at = -_FRESH_S
        self._last: dict[str, _Reading] = {}

    async def read(self, urls: Sequence[str]) -> EndpointGauges | None:
        """The gauges of the engines at `urls`; None when they have none."""
        if self._path is None or self._running is None:
            return None
        async with self._asking:
            if time.monotonic() - self._known_at >= _FRESH_S:
                asked = sorted(urls, key=lambda url: crc32(url.encode()))[:_MOST_ASKED]
                texts = await asyncio.gather(*[self._metrics(url + self._path) for url in asked])
                now = time.monotonic()
                readings = {
                    url: self._reading(text, now)
                    for url, text in zip(asked, texts, strict=True)
                    if text is not None
                }
                self._known = self._summed(readings, len(urls))
                kept = self._last.keys() & set(asked)
                self._last = {url: self._last[url] for url in kept} | readings
                self._known_at = now
            return self._known

    def _reading(self, text: bytes, now: float) -> _Reading:
        return _Reading(
            now,
            _sum(self._running, text) or 0.0,
            _sum(self._waiting, text) or 0.0,
            _sum(self._tokens, text),
            _sum(self._preemptions, text),
        )

    def _summed(self, readings: dict[str, _Reading], replicas: int) -> EndpointGauges:
        share = replicas / max(1, len(readings))
        pairs = [
            (self._last[url], now)
            for url, now in readings.items()
            if url in self._last and now.at - self._last[url].at <= _SINCE_S
        ]
        return EndpointGauges(
            running=share * sum(one.running for one in readings.values()),
            waiting=share * sum(one.waiting for one in readings.values()),
            replicas=replicas,
            answered=len(readings),
            tokens_s=_rate([(a.tokens, b.tokens, b.at - a.at) for a, b in pairs], replicas),
            preemptions_s=_rate(
                [(a.preemptions, b.preemptions, b.at - a.at) for a, b in pairs], replicas
            ),
        )

    async def requests_at(self, urls: Sequence[str]) -> dict[str, float] | None:
        """The requests that run or wait at each of these engines, as far as they answer; of many a
        few are asked. None: they have no gauges.
        """
        if self._path is None or self._running is None:
            return None
        asked = urls[:_MOST_ASKED]
        texts = await asyncio.gather(*[self._metrics(url + self._path) for url in asked])
        return {
            url: (_sum(self._running, text) or 0.0) + (_sum(self._waiting, text) or 0.0)
            for url, text in zip(asked, texts, strict=True)
            if text is not None
        }

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


def _rate(counts: list[tuple[float | None, float | None, float]], replicas: int) -> float | None:
    """What counters gain per second, of all replicas, as those have it that count it; one that
    counts anew has begun again.
    """
    rates = [
        max(0.0, after - before if after >= before else after) / seconds
        for before, after, seconds in counts
        if before is not None and after is not None and seconds > 0
    ]
    return replicas * sum(rates) / len(rates) if rates else None


def _pattern(name: str | None) -> re.Pattern[bytes] | None:
    """Lines of the Prometheus text format that hold this metric, whatever its labels."""
    if name is None:
        return None
    return re.compile(rb"^%s(?:\{[^}\n]*\})? +([0-9.eE+-]+)" % re.escape(name.encode()), re.M)


def _sum(pattern: re.Pattern[bytes] | None, text: bytes) -> float | None:
    """The sum over all labels; None: there is no such metric."""
    found = [] if pattern is None else pattern.findall(text)
    try:
        return sum(map(float, found)) if found else None
    except ValueError:
        return None
