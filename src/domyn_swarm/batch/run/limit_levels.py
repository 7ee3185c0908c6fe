"""The measured throughput of a concurrency limit."""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 1
"""The lowest limit."""

_LEVEL = 0.25  # the least weight of the newest window


@dataclass
class Level:
    """A limit and its throughput over the windows it was used in, the newest weighing most."""

    limit: int
    rate: float = 0.0
    windows: int = 0

    def add(self, rate: float) -> None:
        """Add a window's throughput."""
        self.windows += 1
        self.rate += max(_LEVEL, 1 / self.windows) * (rate - self.rate)
