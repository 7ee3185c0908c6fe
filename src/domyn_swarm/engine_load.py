"""What an engine's own metrics say of its load: Prometheus text to gauges, counters to rates.

One reader for the collector, which knows the names of its engine's metrics, for jobs at a plain
endpoint, which try those of the engines that they may meet, and for what the router has counted so
far. Standard library alone. Others that read such text: the watchdog, which is copied next to
engines; llama.cpp's server program, which may not import this; and `backends.endpoint.smg_figures`,
which wants the router's histograms, and has them from the Prometheus library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LONGEST_RATE_S = 30.0
"""A rate is over no longer than that: what an engine did before is not what it does."""


class EngineLoad(NamedTuple):
    """Requests at an engine, or at several together, and what was done lately."""

    running: float
    waiting: float
    tokens_s: float | None = None  # generated, per second; None: not known
    preemptions_s: float | None = None  # requests put back for want of KV memory, per second
    kv_usage: float | None = None  # share of the KV memory that running requests use, 0 to 1


class Reading(NamedTuple):
    """What one engine said at one moment."""

    at_s: float  # by a monotonic clock
    running: float
    waiting: float
    tokens: float | None  # generated since it began; None: it does not count them
    preemptions: float | None
    kv_usage: float | None

    def load(self, before: Reading | None) -> EngineLoad:
        """The load now, with rates since an earlier reading."""
        if before is None or not 0 < self.at_s - before.at_s <= LONGEST_RATE_S:
            return EngineLoad(self.running, self.waiting, kv_usage=self.kv_usage)
        seconds = self.at_s - before.at_s
        return EngineLoad(
            self.running,
            self.waiting,
            _rate(before.tokens, self.tokens, seconds),
            _rate(before.preemptions, self.preemptions, seconds),
            self.kv_usage,
        )


class MetricsReader:
    """Reads the metrics of these names; several names of one are of several engines. A name may go
    on with the first labels that a sample is to have: `requests{method="POST"`.
    """

    def __init__(self, names: Mapping[str, Sequence[str | None]]) -> None:
        """`names` of what is read: for `read` of `running`, `waiting`, `tokens`, `preemptions`,
        `kv_usage`.
        """
        self._meanings = {
            name.encode(): meaning for meaning, all_ in names.items() for name in all_ if name
        }
        known = b"|".join(map(re.escape, self._meanings)) or b"(?!)"
        self._lines = re.compile(
            rb"^(%s)(?:[{,][^}\n]*\}|\})? +([0-9.eE+-]+)" % known, re.MULTILINE
        )

    def values(self, text: bytes) -> dict[str, list[float]]:
        """The values of each metric that a text has, by what `names` calls it."""
        found: dict[str, list[float]] = {}
        for name, value in self._lines.findall(text):
            try:
                found.setdefault(self._meanings[name], []).append(float(value))
            except ValueError:
                continue
        return found

    def read(self, text: bytes, at_s: float) -> Reading | None:
        """What a text says, summed over labels; of KV memory the fullest counts. None: it has none
        of these metrics.
        """
        found = self.values(text)
        if not found:
            return None

        def counted(meaning: str) -> float | None:
            return sum(found[meaning]) if meaning in found else None

        return Reading(
            at_s,
            counted("running") or 0.0,
            counted("waiting") or 0.0,
            counted("tokens"),
            counted("preemptions"),
            max(found["kv_usage"]) if "kv_usage" in found else None,
        )


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    """What a counter gained per second. None: it is not known, or counts anew since a restart."""
    if before is None or now is None or now < before:
        return None
    return (now - before) / seconds


def together(loads: Sequence[EngineLoad], engines: int) -> EngineLoad:
    """The load of so many engines, of which some are known and stand for all. Raises ValueError:
    none is known.
    """
    if not loads:
        raise ValueError("the load of no engine is known")

    def of_all(known: Sequence[float | None]) -> float | None:
        told = [one for one in known if one is not None]
        return engines * sum(told) / len(told) if told else None

    usages = [one.kv_usage for one in loads if one.kv_usage is not None]
    return EngineLoad(
        of_all([one.running for one in loads]) or 0.0,
        of_all([one.waiting for one in loads]) or 0.0,
        of_all([one.tokens_s for one in loads]),
        of_all([one.preemptions_s for one in loads]),
        max(usages) if usages else None,
    )
