"""Whose fault it is that a request was turned away or got no reply: judged by what was answered.

What breaks for every row (a key that stops working, a model that is gone, a server that got stuck)
looks like what one row causes. The difference is whether others of the same kind are answered at
the same time, by the same replica: an answer to a request that was sent before the other one was
turned away says nothing of the time after it.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

_KINDS_KEPT = 16  # of requests: a job asks one or two paths and models as a rule
_PAIRS_KEPT = 4096  # of kinds and replicas; beyond it evidence is gathered anew
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_GENERATING = ("/v1/chat/completions", "/v1/completions")


class Fault(Enum):
    """Whose it is."""

    ROW = "row"
    REPLICA = "replica"  # others are answered, but not by the replica that failed this one
    ALL = "all"


class Kind(NamedTuple):
    """What requests have in common that a key or a model opens the same door for."""

    path: str
    model: str | None


def kind_of(path: str, body: dict[str, Any]) -> Kind:
    """The kind of a request."""
    model = body.get("model")
    return _kind(path, model if type(model) is str else None)


_kind = lru_cache(_KINDS_KEPT)(Kind)


class Standing:
    """What was answered lately. Times are the event loop's."""

    def __init__(self) -> None:
        self._good: dict[Kind, bytes] = {}
        self._served: dict[tuple[Kind, str | None], float] = {}
        self.last_answer_at: float | None = None

    def answered(
        self, kind: Kind, server: str | None, sent_at: float, now: float, body: bytes
    ) -> None:
        """A request was answered; `server` is the replica, where a router tells."""
        self.last_answer_at = now
        self._served[kind, server] = sent_at
        if kind not in self._good:
            self._first_of(kind, body)

    def _first_of(self, kind: Kind, body: bytes) -> None:
        if len(self._good) < _KINDS_KEPT:
            self._good[kind] = body
        if len(self._served) > _PAIRS_KEPT:
            self._served.clear()

    @property
    def proven(self) -> bool:
        """Whether anything was answered in this run."""
        return self.last_answer_at is not None

    @property
    def routed(self) -> bool:
        """Whether a router stands between: then a connection that breaks is the router's."""
        return any(server is not None for _, server in self._served)

    def known(self, kind: Kind) -> bytes | None:
        """The body of a request of this kind that was answered."""
        return self._good.get(kind)

    def serves(self, kind: Kind, server: str | None, since: float) -> bool:
        """Whether this server has answered such a request that was sent since then."""
        return self._served.get((kind, server), float("-inf")) >= since

    def alive_since(self, server: str | None, moment: float) -> bool:
        """Whether a request was answered by this server that was sent after a moment."""
        return any(sent_at > moment for (_, one), sent_at in self._served.items() if one == server)

    def answered_since(self, moment: float) -> bool:
        """Whether any answer came since then."""
        return self.last_answer_at is not None and self.last_answer_at >= moment


def brief(path: str, body: bytes) -> bytes:
    """The same request for as little as there can be: one token, in one piece."""
    asked = msgspec.json.decode(body)
    for name in [name for name in _LIMITS if name in asked] or ["max_tokens"]:
        if path in _GENERATING or name in asked:
            asked[name] = 1
    for name in ("stream", "stream_options", "n", "best_of", "min_tokens"):
        asked.pop(name, None)
    return msgspec.json.encode(asked)
