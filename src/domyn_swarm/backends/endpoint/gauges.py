"""How busy the engines are, asked of the replicas when a client wants to know.

Watchdogs report too seldom to control concurrency by; so the collector asks the engines itself: at
most twice a second however many jobs ask, and at most a few dozen engines at a time, in turns. The
engines that answer in time stand for all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from zlib import crc32

import aiohttp

from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.engine_load import EngineLoad, MetricsReader, Reading, together
from domyn_swarm.model import Record

_FRESH_S = 0.5
_TIMEOUT_S = 2.0  # busy engines answer late
_ASKED_AT_ONCE = 64
_MOST_BYTES = 4 << 20


class ReplicaGauges(Record):
    """The requests at one replica's engine, and its work between the last two answers."""

    url: str
    look: int  # the round in which it answered: another number means a new answer
    running: float
    waiting: float
    tokens_s: float | None = None
    preemptions_s: float | None = None
    kv_usage: float | None = None


class EndpointGauges(Record):
    """The requests at all engines of a swarm, extrapolated from those that answered."""

    running: float
    waiting: float
    replicas: int  # replicas that accept requests
    answered: int  # of these, engines that answered; 0: nothing is known
    tokens_s: float | None = None  # generated tokens per second; None: not known, or not yet
    preemptions_s: float | None = None  # requests preempted per second for want of KV memory
    kv_usage: float | None = None  # KV cache use of the fullest engine
    each: tuple[ReplicaGauges, ...] = ()  # of the engines that answered


class EngineGauges:
    """Asks the engines' metrics endpoints, where they have one."""

    def __init__(self, spec: EndpointSpec) -> None:
        self._path = spec.metrics_path if spec.running_metric is not None else None
        self._reader = MetricsReader(
            {
                "running": [spec.running_metric],
                "waiting": [spec.waiting_metric],
                "tokens": [spec.generated_tokens_metric],
                "preemptions": [spec.preemptions_metric],
                "kv_usage": [spec.kv_cache_metric],
            }
        )
        self._key_file = spec.api_key_file
        self._session: aiohttp.ClientSession | None = None
        self._asking = asyncio.Lock()
        self._known: EndpointGauges | None = None
        self._known_at = -_FRESH_S
        self._looks = 0
        self._readings: dict[str, tuple[int, Reading, EngineLoad]] = {}

    async def read(self, urls: Sequence[str]) -> EndpointGauges | None:
        """The gauges of the engines at `urls`; None when they have none."""
        if self._path is None:
            return None
        async with self._asking:
            if time.monotonic() - self._known_at >= _FRESH_S:
                await self._look(sorted(urls, key=lambda url: crc32(url.encode())), self._path)
                self._known_at = time.monotonic()
            return self._known

    async def _look(self, urls: list[str], path: str) -> None:
        """Ask the engines whose turn it is."""
        turns = -(-len(urls) // _ASKED_AT_ONCE) or 1
        asked = urls[self._looks % turns :: turns]
        self._looks += 1
        texts = await asyncio.gather(*[self._metrics(url + path) for url in asked])
        now = time.monotonic()
        for url, text in zip(asked, texts, strict=True):
            reading = None if text is None else self._read(text, now)
            if reading is not None:
                before = self._readings.get(url)
                load = reading.load(None if before is None else before[1])
                self._readings[url] = self._looks, reading, load
        self._readings = {url: self._readings[url] for url in urls if url in self._readings}
        each = {
            url: (look, load)
            for url, (look, _, load) in self._readings.items()
            if look > self._looks - turns
        }
        self._known = _of_all(each, len(urls))

    def _read(self, text: bytes, now: float) -> Reading:
        return self._reader.read(text, now) or Reading(now, 0.0, 0.0, None, None, None)

    async def requests_at(self, urls: Sequence[str]) -> dict[str, float] | None:
        """The requests that run or wait at each of these engines, for those that answer; at most
        the first `_ASKED_AT_ONCE` are asked. None: they have no gauges.
        """
        if self._path is None:
            return None
        asked = urls[:_ASKED_AT_ONCE]
        texts = await asyncio.gather(*[self._metrics(url + self._path) for url in asked])
        readings = {
            url: self._read(text, time.monotonic())
            for url, text in zip(asked, texts, strict=True)
            if text is not None
        }
        return {url: one.running + one.waiting for url, one in readings.items()}

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
        """Close the connections to the engines."""
        if self._session is not None:
            await self._session.close()


def _of_all(each: dict[str, tuple[int, EngineLoad]], replicas: int) -> EndpointGauges:
    if not each:
        return EndpointGauges(running=0.0, waiting=0.0, replicas=replicas, answered=0)
    all_ = together([load for _, load in each.values()], replicas)
    return EndpointGauges(
        **all_._asdict(),
        replicas=replicas,
        answered=len(each),
        each=tuple(
            ReplicaGauges(url=url, look=look, **load._asdict())
            for url, (look, load) in each.items()
        ),
    )
