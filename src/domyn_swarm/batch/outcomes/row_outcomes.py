"""Rows on their way in and results on their way out."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from domyn_swarm.net.replies import ReplyFacts, worst

ERROR_COLUMN = "_error"

# Created for each row: a msgspec struct costs a fifth of a named tuple, and none of these is ever
# part of a reference cycle.


class Row(msgspec.Struct, frozen=True, gc=False):
    """One pending item."""

    ordinal: int  # position in this input
    digest: bytes  # 16 bytes over id and input columns: see `row_keys`
    item: Any  # the value of the one input column, or a dict of several


class RowValue(msgspec.Struct, array_like=True, frozen=True):
    """The result of a row, as it is kept in the checkpoint."""

    output: bytes  # JSON object of the output columns; empty for a failed row
    error: bytes  # JSON object of `RowError`; empty for an answered row
    attempts: int  # requests sent for it
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    code: int = 0  # the form of its answer: see `verdicts`


class RowError(msgspec.Struct, frozen=True):
    """Why a row has no answer; the `_error` column of the output."""

    type: str
    status: int | None
    message: str
    attempts: int


class Result(msgspec.Struct, frozen=True, gc=False):
    """A settled row."""

    ordinal: int
    digest: bytes
    value: RowValue

    @property
    def failed(self) -> bool:
        """Whether the row carries an error instead of an answer."""
        return bool(self.value.error)


class RowTrace(msgspec.Struct, gc=False, eq=False):
    """The cost so far of the requests of one row (or of one call over several rows)."""

    rows: Sequence[Row] = ()
    finish_reasons: tuple[str | None, ...] = ()  # of the last reply's choices
    code: int = 0  # of all replies together: see `verdicts`
    attempts: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    replica: str | None = None  # the last replica that answered: it has the conversation so far
    asked: int = 0  # requests in flight
    held: int = 0  # requests that wait for an unreachable endpoint

    @property
    def only_waits(self) -> bool:
        """Whether it makes no progress until its endpoint is back."""
        return bool(self.held) and not self.asked

    def note(self, facts: ReplyFacts) -> None:
        """Add one more reply: the worst ending counts, and an empty one."""
        self.prompt_tokens += facts.prompt_tokens
        self.completion_tokens += facts.completion_tokens
        if facts.finish_reasons:
            self.finish_reasons = facts.finish_reasons
        self.code = worst(self.code, facts.code) if self.code else facts.code

    def shares(self, rows: int) -> list[RowTrace]:
        """The part of each of the call's rows: tokens are divided so that they add up."""
        if rows == 1:
            return [self]
        shares = []
        for row in range(rows):
            share = RowTrace(self.rows[row : row + 1])
            share.attempts, share.failures = self.attempts, self.failures
            share.finish_reasons = self.finish_reasons
            share.code = self.code
            share.prompt_tokens = _part(self.prompt_tokens, rows, row)
            share.completion_tokens = _part(self.completion_tokens, rows, row)
            shares.append(share)
        return shares


class OneByOne(Exception):
    """The rows of a call have to be sent in separate calls: one of them ends engines."""


def _part(whole: int, parts: int, at: int) -> int:
    return whole // parts + (at < whole % parts)


current_trace: ContextVar[RowTrace | None] = ContextVar("current_trace", default=None)


def set_aside_replies() -> None:
    """Exclude the row's replies so far from the judgement of its answer: another reply replaces
    them, or the job needs no other.
    """
    trace = current_trace.get()
    if trace is not None:
        trace.code = 0
