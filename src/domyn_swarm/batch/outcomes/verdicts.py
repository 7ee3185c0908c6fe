"""Which answers count: the form of the replies is kept with each row, and judged when it is read.

An answer is kept whatever the judgement, so that another judgement later sends nothing again.

    code      of an answer: how its replies ended (its place among `ENDINGS`), and whether one of
              them said nothing, in the lowest bit; 0: it is complete
    outcome   of a row, one byte: its code above one bit that says that it has an error
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from domyn_swarm.batch.outcomes.row_outcomes import RowError, RowValue
from domyn_swarm.model import Accept, ReplyVerdict
from domyn_swarm.net.replies import ENDINGS

_OUTCOMES = 256
_WORDS = {
    ReplyVerdict.CUT: (
        "AnswerCut",
        "the answer was cut at its token limit (finish_reason length); max_tokens sets it",
    ),
    ReplyVerdict.EMPTY: ("AnswerEmpty", "the answer is empty"),
    ReplyVerdict.REFUSED: ("AnswerRefused", "the model refused to answer, or a filter took it"),
    ReplyVerdict.TOOL_CALLS: ("AnswerIsToolCalls", "the answer is calls of tools"),
}
_SAID_NOTHING = "nothing was said up to the token limit (finish_reason length); max_tokens sets it"


def accepted(code: int, accept: Accept | None) -> bool:
    """Whether an answer counts."""
    if accept is None:
        return not code & 1 or _ending(code) is ReplyVerdict.REFUSED
    return accept == "any" or not code


def _ending(code: int) -> ReplyVerdict:
    place = code >> 1
    return ENDINGS[place] if place < len(ENDINGS) else ReplyVerdict.COMPLETE


def outcome_of(value: RowValue) -> int:
    """The byte that encodes a row's outcome."""
    return bool(value.error) | value.code << 1


def verdict_of(outcome: int) -> ReplyVerdict:
    """The verdict of an outcome."""
    code = outcome >> 1
    if not code:
        return ReplyVerdict.ERROR if outcome & 1 else ReplyVerdict.COMPLETE
    ending = _ending(code)
    return ReplyVerdict.EMPTY if ending is ReplyVerdict.COMPLETE else ending


def count_verdicts(outcomes: NDArray[np.uint8]) -> dict[ReplyVerdict, int]:
    """The number of rows by verdict; without verdicts of no row."""
    counted: dict[ReplyVerdict, int] = {}
    for outcome, rows in enumerate(np.bincount(outcomes).tolist()):
        if rows:
            verdict = verdict_of(outcome)
            counted[verdict] = counted.get(verdict, 0) + rows
    return counted


def error_of(code: int, attempts: int) -> RowError:
    """The error of a row whose answer does not count."""
    verdict = verdict_of(code << 1)
    kind, words = _WORDS[verdict]
    if verdict is ReplyVerdict.CUT and code & 1:
        words = _SAID_NOTHING
    return RowError(kind, None, words, attempts)


@dataclass(frozen=True)
class Reading:
    """Which of a job's results count when they are read."""

    accept: Accept | None = None
    again: frozenset[ReplyVerdict] | None = None  # earlier results that do not count; empty: failed
    before: int = 0  # the generation that sends them again
    void_counts: bool = False  # errors of a run that gave up after too many of them count

    def judged(self, value: RowValue) -> RowValue:
        """A result as it counts: an answer that is not accepted becomes an error."""
        if value.error or accepted(value.code, self.accept):
            return value
        error = msgspec.json.encode(error_of(value.code, value.attempts))
        return msgspec.structs.replace(value, output=b"", error=error)

    @property
    def as_asked(self) -> Reading:
        """The same job's results including those that are to be sent again."""
        errors = not self.again or ReplyVerdict.ERROR in self.again
        return Reading(self.accept, void_counts=errors)

    @cached_property
    def failed(self) -> NDArray[np.uint8]:
        """By outcome, shape (256,): 1 if such a row counts as failed."""
        return _failed(self.accept)

    @cached_property
    def errors(self) -> NDArray[np.uint8]:
        """By outcome, shape (256,): 1 if there is no answer at all, whichever answers are
        accepted.
        """
        return np.arange(_OUTCOMES, dtype=np.uint8) & np.uint8(1)

    @cached_property
    def asked_again(self) -> NDArray[np.uint8]:
        """By outcome, shape (256,): 1 if a row of an earlier generation is to be sent again."""
        if not self.again:
            return self.failed if self.again is not None else np.zeros(_OUTCOMES, np.uint8)
        chosen = [verdict_of(outcome) in self.again for outcome in range(_OUTCOMES)]
        return np.array(chosen, np.uint8)


class AsKept(Reading):
    """Chooses among the results of a row as any reading does, and returns them in their stored
    form.
    """

    @override
    def judged(self, value: RowValue) -> RowValue:
        return value


@lru_cache
def _failed(accept: Accept | None) -> NDArray[np.uint8]:
    outcomes = range(_OUTCOMES)
    return np.array([one & 1 or not accepted(one >> 1, accept) for one in outcomes], np.uint8)
