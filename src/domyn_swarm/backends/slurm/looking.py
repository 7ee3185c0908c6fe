"""One look at the queue serves all who ask: every swarm, every job, every thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from domyn_swarm.backends.slurm.states import SlurmJob
from domyn_swarm.errors import PlatformError
from domyn_swarm.probing import Clock

_FIRST_S = 1.0
LONGEST_S = 15.0
_GROWS = 1.5

Jobs = dict[str, SlurmJob]


class Look:
    """What was seen last, asked again once it is too old.

    While nothing changes it may grow older, from 1 s to `longest_s`: a scheduler that thousands
    share is asked 4 times a minute by a process that waits. A refusal is remembered alike.
    """

    def __init__(
        self, ask: Callable[[], Jobs], longest_s: float = LONGEST_S, clock: Clock = time
    ) -> None:
        self._ask = ask
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: Jobs | PlatformError = {}
        self._asked_at = -math.inf
        self._good_for_s = _FIRST_S

    def now(self, at_most_s: float = math.inf) -> Jobs:
        """What is known, by a look that is not older than that.

        Raises:
            PlatformError: the scheduler cannot be asked.
        """
        with self._lock:
            age_s = self._clock.monotonic() - self._asked_at
            if age_s >= min(self._good_for_s, at_most_s):
                self._look()
            if isinstance(self._seen, PlatformError):
                raise self._seen
            return self._seen

    def _look(self) -> None:
        before = self._seen
        try:
            self._seen = self._ask()
        except PlatformError as error:
            self._seen = error
        same = isinstance(before, PlatformError) == isinstance(self._seen, PlatformError) and (
            isinstance(before, PlatformError) or before == self._seen
        )
        self._good_for_s = min(self._longest_s, self._good_for_s * _GROWS) if same else _FIRST_S
        self._asked_at = self._clock.monotonic()

    def expect_change(self) -> None:
        """Something was submitted or ended: what is known is too old, and look often."""
        with self._lock:
            self._asked_at = -math.inf
            self._good_for_s = _FIRST_S
