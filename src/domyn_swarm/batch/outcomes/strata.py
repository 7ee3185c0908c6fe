"""Rows by the length of their prompts, which is known before they are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec


def characters_of(value: Any) -> int:  # noqa: ANN401 - JSON
    """The length of a row's input to the job: the characters of all its texts."""
    if isinstance(value, str):
        return len(value)
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    return sum(map(characters_of, inner))


def stratum_of(characters: int) -> int:
    """The stratum of a prompt; each stratum has prompts up to 1.41 times as long as the one
    before.
    """
    return (characters * characters).bit_length()


class StratumSums(msgspec.Struct):
    """The sums over the rows of one stratum. Seconds are those for which finished rows held a
    slot.
    """

    begun: int = 0  # rows, including those in flight
    rows: int = 0
    seconds: float = 0.0
    seconds_squared: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def finish(self, seconds: float, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Count a finished row, failed or not: either way it held a slot."""
        self.rows += 1
        self.seconds += seconds
        self.seconds_squared += seconds * seconds
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def add(self, now: StratumSums, before: StratumSums) -> None:
        """Add the difference between two snapshots."""
        self.begun += now.begun - before.begun
        self.rows += now.rows - before.rows
        self.seconds += now.seconds - before.seconds
        self.seconds_squared += now.seconds_squared - before.seconds_squared
        self.prompt_tokens += now.prompt_tokens - before.prompt_tokens
        self.completion_tokens += now.completion_tokens - before.completion_tokens


_NOTHING = StratumSums()


class Strata(dict[int, StratumSums]):
    """Started rows by stratum."""

    def __missing__(self, stratum: int) -> StratumSums:
        found = self[stratum] = StratumSums()
        return found

    def begin(self, characters: int) -> StratumSums:
        """Count a row that is started now, if its end will be counted, too."""
        one = self[stratum_of(characters)]
        one.begun += 1
        return one

    def copied(self) -> dict[int, StratumSums]:
        """A copy of the present state."""
        return {stratum: msgspec.structs.replace(one) for stratum, one in self.items()}

    def add(
        self, now: Mapping[int, StratumSums], before: Mapping[int, StratumSums] | None = None
    ) -> None:
        """Add the difference between two snapshots."""
        for stratum, one in now.items():
            self[stratum].add(one, (before or {}).get(stratum, _NOTHING))

    @property
    def rows(self) -> int:
        """Finished rows."""
        return sum(one.rows for one in self.values())

    @property
    def seconds(self) -> float:
        """For which finished rows held a slot, in total."""
        return sum(one.seconds for one in self.values())

    @property
    def in_flight(self) -> dict[int, float]:
        """Rows that were started and are not finished."""
        return {name: one.begun - one.rows for name, one in self.items() if one.begun > one.rows}


class Census:
    """The lengths of an input's prompts by position, sampled in each stretch of rows."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int, Mapping[int, float]]] = []

    def add(self, start: int, rows: int, characters: Sequence[int]) -> None:
        """Add a stretch of rows, and the lengths of some of them."""
        counted = Counter(map(stratum_of, characters))
        share = rows / max(1, len(characters))
        scaled = {stratum: count * share for stratum, count in counted.items()}
        self._stretches.append((start, rows, scaled))

    def take(self, other: Census) -> None:
        """Add the lengths that another census has."""
        self._stretches = list(other._stretches)

    def beyond(self, position: int, rows: int) -> dict[int, float]:
        """`rows` rows by stratum, distributed as those from a position on, or as all of them."""
        found: Counter[int] = Counter()
        for start, there, counted in self._stretches:
            share = min(1.0, (start + there - position) / there) if there else 0.0
            if share > 0:
                for stratum, count in counted.items():
                    found[stratum] += count * share  # type: ignore[assignment]
        if not found and position > 0:
            return self.beyond(0, rows)
        whole = sum(found.values())
        return {stratum: count * rows / whole for stratum, count in found.items()} if whole else {}
