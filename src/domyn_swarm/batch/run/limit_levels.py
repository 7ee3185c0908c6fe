"""What a limit of requests in flight was worth, as far as it was tried."""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 1
"""No limit is less."""

_LEVEL = 0.25  # how much the newest window counts at least


@dataclass
class Level:
    """What one limit is worth: its throughput, the newest windows counting most."""

    limit: int
    rate: float = 0.0
    windows: int = 0

    def add(self, rate: float) -> None:
        """Take in a window."""
        self.windows += 1
        self.rate += max(_LEVEL, 1 / self.windows) * (rate - self.rate)
