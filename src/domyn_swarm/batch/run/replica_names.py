"""Reports a swarm's ready replicas to a job: from its collector, or its last view on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import msgspec

from domyn_swarm.errors import JobError
from domyn_swarm.model import listing_tag
from domyn_swarm.net.http import HttpClient
from domyn_swarm.net.request_errors import NOT_JSON, RequestError

_ASK_TIMEOUT_S = 5.0
_AS_KNOWN = 204


class _Replica(msgspec.Struct):
    state: str
    reported_at: datetime
    url: str | None = None


class _View(msgspec.Struct):
    replicas: list[_Replica]
    taken_at: datetime
    stale_after_s: float
    elastic: bool = False

    def ready(self) -> frozenset[str]:
        """The URLs to which requests may be sent."""
        return frozenset(
            one.url
            for one in self.replicas
            if one.state == "ready"
            and one.url is not None
            and (self.taken_at - one.reported_at).total_seconds() <= self.stale_after_s
        )


class Named(NamedTuple):
    """The collector's report."""

    urls: frozenset[str]  # of the replicas that are ready
    asleep: bool  # no replica is ready, and the swarm starts one on demand


@dataclass(frozen=True)
class Names:
    """Requests the replica listing of one swarm."""

    collector: HttpClient  # with its key
    locate: Callable[[], str]  # its present address
    recorded: Callable[[], bytes | None] = lambda: None  # its last view, as stored on disk

    async def asked(self, known: frozenset[str]) -> Named | None:
        """The ready replicas by the collector, which omits a listing that is `known`; None: it does
        not answer.
        """
        question = f"/v1/replicas?for=requests&known={listing_tag(known)}"
        try:
            url = self.locate() + question
            reply = await self.collector.request("GET", url, None, _ASK_TIMEOUT_S)
            if reply.status == _AS_KNOWN:
                return Named(known, asleep=False)
            view = msgspec.json.decode(reply.body, type=_View)
        except (RequestError, JobError, *NOT_JSON):
            return None
        ready = view.ready()
        return Named(ready, asleep=view.elastic and not ready)

    def written(self) -> frozenset[str]:
        """The replicas that were ready when the collector wrote its last view."""
        try:
            text = self.recorded()
            view = None if text is None else msgspec.json.decode(text, type=_View)
        except (OSError, ValueError):
            view = None
        return frozenset() if view is None else view.ready()
