"""Restart policies: how often a program that ended is started again, and after what pause.

One rule for all programs that restart others, each with a `RestartPolicy` of its own. Pure: times
are the caller's, in seconds of any one clock. Standard library only and Python 3.8 syntax: it is
copied next to `watchdog.py` and `follower.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

MOST_DOUBLINGS = 64  # beyond it a pause is the longest, and 2.0 ** n would overflow


class RestartPolicy(NamedTuple):
    """How many restarts there are, within how long, after which pauses, and what clears the count.

    Pauses double from the first to the longest. What ran for `progress_s` has made progress: it
    ended for another reason than that it cannot run, and restarts before it count no more.
    """

    most: int | None = None  # restarts before the program stays down; None: any number
    within_s: float = math.inf  # restarts that are as old as that do not count
    first_pause_s: float = 0.0
    longest_pause_s: float = 0.0
    progress_s: float = math.inf

    def allows(self, restarts: int) -> bool:
        """Whether another restart is allowed after this number of counted restarts."""
        return self.most is None or restarts < self.most

    def is_progress(self, ran_s: float) -> bool:
        """Whether a run of that length clears the count."""
        return ran_s >= self.progress_s

    def pause_s(self, restarts: int) -> float:
        """The pause in seconds before the next restart, after this number of restarts without
        progress.
        """
        doubled = self.first_pause_s * 2.0 ** min(restarts, MOST_DOUBLINGS)
        return float(min(doubled, self.longest_pause_s))


class RestartBudget:
    """The remaining restarts of one program under a policy."""

    def __init__(self, policy: RestartPolicy, restarted_at: Iterable[float] = ()) -> None:
        """`restarted_at`: when it was started again before, in any order."""
        times = sorted(restarted_at)
        self._policy = policy
        self._since_progress = len(times)
        self._counted = deque(times, maxlen=policy.most or 0)  # no more than decide

    def ran(self, seconds: float) -> None:
        """The program has run for so long: clears the count if that is progress."""
        if self._policy.is_progress(seconds):
            self.clear()

    def clear(self) -> None:
        """It has made progress in some other way than by running for long."""
        self._since_progress = 0
        self._counted.clear()

    def exhausted(self, now: float = 0.0) -> bool:
        """Whether the program stays down if it ends now. `now` matters with `within_s` alone."""
        counted = sum(now - one < self._policy.within_s for one in self._counted)
        return not self._policy.allows(counted)

    def take(self, now: float = 0.0) -> float | None:
        """Take one restart; returns the pause before it in seconds, or None if none is left."""
        if self.exhausted(now):
            return None
        pause_s = self._policy.pause_s(self._since_progress)
        self._since_progress += 1
        self._counted.append(now)
        return pause_s
