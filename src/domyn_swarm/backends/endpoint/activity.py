"""Whether anybody uses the endpoint."""

from __future__ import annotations

from typing import NamedTuple


class Activity(NamedTuple):
    """What a router has done since it started, and does now. Looking at the list of models, as
    `status` does, is no use of the endpoint.
    """

    requests: float
    in_flight: float


class Idleness:
    """For how long nobody has used the endpoint; `now` is the caller's monotonic clock."""

    def __init__(self, now: float) -> None:
        self._used_at = now
        self._requests: float | None = None

    def saw(self, activity: Activity | None, now: float) -> float:
        """Take in what the router says (None: it cannot be asked, which is no sign of idleness);
        return the seconds without use.
        """
        if activity is None or activity.in_flight or activity.requests != self._requests:
            self._used_at = now
        self._requests = None if activity is None else activity.requests
        return now - self._used_at
