"""The load of engines from their metrics: parses Prometheus text, and converts counters to rates.

One reader for the collector, which knows the metric names of its engine, for jobs at a plain
endpoint, which try those of all engines, and for the router's counters. Standard library only.
Other readers of such text: the watchdog, which is copied next to engines; llama.cpp's server
program, which may not import this module; and `backends.endpoint.smg_figures`, which reads the
router's histograms with the Prometheus library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

LONGEST_RATE_S = 30.0
"""The longest interval of a rate, so that it describes the present load."""


class EngineLoad(NamedTuple):
    """The load of one engine, or of several together."""

    running: float
    waiting: float
    tokens_s: float | None = None  # generated, per second; None: unknown
    preemptions_s: float | None = None  # requests preempted for lack of KV memory, per second
    kv_usage: float | None = None  # share of the KV memory that running requests use, 0 to 1


class Reading(NamedTuple):
    """The metrics of one engine at one moment."""

    at_s: float  # by a monotonic clock
    running: float
    waiting: float
    tokens: float | None  # generated since its start; None: it has no such counter
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
    """Reads the metrics with these names, which may belong to several engines. A name may include
    the first labels of its samples: `requests{method="POST"`.
    """

    def __init__(self, names: Mapping[str, Sequence[str | None]]) -> None:
        """`names`: what to read → the names of the metric in several engines. For `read` the keys
        are `running`, `waiting`, `tokens`, `preemptions` and `kv_usage`.
        """
        self._meanings = {
            name.encode(): meaning for meaning, all_ in names.items() for name in all_ if name
        }
        known = b"|".join(map(re.escape, self._meanings)) or b"(?!)"
        self._lines = re.compile(rb"^(%s)([{,][^}\n]*\}|\})? +([0-9.eE+-]+)" % known, re.MULTILINE)

    def values(self, text: bytes) -> dict[str, list[float]]:
        """The values of the metrics in a text, by the keys of `names`."""
        values: dict[str, list[float]] = {}
        for meaning, _, value in self._samples(text):
            values.setdefault(meaning, []).append(value)
        return values

    def by_label(self, text: bytes, key: str, label: str) -> dict[str, float]:
        """The values of the metrics of one key of `names` that have this label, by its values."""
        wanted = re.compile(rb'[{,]%s="([^"]*)"' % re.escape(label.encode()))
        samples = [
            (wanted.search(labels), value)
            for one, labels, value in self._samples(text)
            if one == key
        ]
        return {match[1].decode(errors="replace"): value for match, value in samples if match}

    def _samples(self, text: bytes) -> Iterator[tuple[str, bytes, float]]:
        for name, labels, value in self._lines.findall(text):
            try:
                number = float(value)
            except ValueError:
                continue
            yield self._meanings[name], labels, number

    def read(self, text: bytes, at_s: float) -> Reading | None:
        """The metrics in a text, summed over labels; of KV usage the maximum. None: it contains
        none of these metrics.
        """
        values = self.values(text)
        if not values:
            return None

        def counted(meaning: str) -> float | None:
            return sum(values[meaning]) if meaning in values else None

        return Reading(
            at_s,
            counted("running") or 0.0,
            counted("waiting") or 0.0,
            counted("tokens"),
            counted("preemptions"),
            max(values["kv_usage"]) if "kv_usage" in values else None,
        )


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    """The rate of a counter per second. None: it is unknown, or was reset by a restart."""
    if before is None or now is None or now < before:
        return None
    return (now - before) / seconds


def together(loads: Sequence[EngineLoad], engines: int) -> EngineLoad:
    """The load of `engines` engines together, extrapolated from the loads of some of them.

    Raises:
        ValueError: `loads` is empty.
    """
    if not loads:
        raise ValueError("the load of no engine is known")

    def of_all(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return engines * sum(known) / len(known) if known else None

    usages = [load.kv_usage for load in loads if load.kv_usage is not None]
    return EngineLoad(
        of_all([load.running for load in loads]) or 0.0,
        of_all([load.waiting for load in loads]) or 0.0,
        of_all([load.tokens_s for load in loads]),
        of_all([load.preemptions_s for load in loads]),
        max(usages) if usages else None,
    )
