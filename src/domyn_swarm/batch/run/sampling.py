"""The lengths of an input's prompts, and a sample of its rows.

The input is read lot by lot, and some rows of each stretch are examined. From the rows without a
result a sample is taken, stratified by the lengths of their prompts: each stratum (`strata`)
contributes rows in proportion to its work, as far as that is known before anything is sent
(Neyman's allocation, Cochran, *Sampling Techniques*, 3rd edition, 1977, section 5.5, with the
length for the deviation of the cost).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from domyn_swarm.batch.background import in_thread
from domyn_swarm.batch.checkpoint.index import RowIndex
from domyn_swarm.batch.column_values import rows_at
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.row_keys import RowKeys, encoded_value
from domyn_swarm.batch.outcomes.strata import Census, Strata, characters_of, stratum_of
from domyn_swarm.batch.run.pending import PendingRows, named_rows
from domyn_swarm.errors import SwarmError
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

_STRETCHES = 128  # of a small input; a larger one has one per lot
_LOOKED_AT = 64  # examined rows per stretch
_MOST_ROWS = 1_000_000  # of an input that is examined beside a run
_MOST_S = 60.0  # total time for examining it, in seconds
_REST = 3.0  # pause after each lot, as a multiple of its time: the run needs the processor


class Stretch(NamedTuple):
    """Neighbouring rows, some of which were examined."""

    start: int
    rows: int
    at: Sequence[int]  # positions of the examined rows
    characters: Sequence[int]  # of their prompts
    pending: Sequence[bool]  # whether they have no result
    values: Sequence[bytes]  # their input values, if requested


def stretches(
    dataset: Dataset,
    keys: RowKeys,
    limit: int | None,
    index: RowIndex | None = None,
    *,
    with_values: bool = False,
) -> Iterator[Stretch]:
    """The whole input as stretches, in order.

    Args:
        dataset: the input.
        keys: what a row is.
        limit: only the first so many rows.
        index: the results so far; None: there are none.
        with_values: whether rows of one value are to be known.
    """
    rows = dataset.rows if limit is None else min(limit, dataset.rows)
    most, start = max(1, -(-rows // _STRETCHES)), 0
    for batch in dataset.batches(keys.columns, limit=limit):
        for first in range(0, batch.num_rows, most):
            part = batch.slice(first, min(most, batch.num_rows - first))
            step = max(1, part.num_rows // _LOOKED_AT)
            at = np.arange(0, part.num_rows, step)
            items = keys.items(part if step == 1 else rows_at(part, at))
            pending = np.ones(len(at), np.bool_)
            if index is not None:
                pending = ~index.match(start, keys.digests(part, start)).found[at]
            yield Stretch(
                start,
                part.num_rows,
                (start + at).tolist(),
                [characters_of(item) for item in items],
                pending.tolist(),
                [encoded_value(item) for item in items] if with_values else (),
            )
            start += part.num_rows


async def take_census(census: Census, dataset: Dataset, keys: RowKeys, limit: int | None) -> None:
    """Fill a census beside a run; it stays empty if the input takes too long to examine."""
    if (dataset.rows if limit is None else min(limit, dataset.rows)) > _MOST_ROWS:
        return
    found, now = stretches(dataset, keys, limit), asyncio.get_running_loop().time
    whole, looked_s = Census(), 0.0
    try:
        while looked_s < _MOST_S:
            began = now()
            stretch = await in_thread(next, found, None)
            if stretch is None:
                census.take(whole)
                return
            whole.add(stretch.start, stretch.rows, stretch.characters)
            looked_s += now() - began
            await asyncio.sleep(_REST * (now() - began))
    except (SwarmError, OSError) as error:  # the run meets the same error and reports it
        _log.warning("how long the prompts are is not known: %s", error)


@dataclass(frozen=True)
class Sample:
    """A sample of the rows without a result."""

    rows: Sequence[PendingRows]  # one row each, in random order
    left: dict[int, float]  # rows without a result by stratum, including the sample

    def rest(self, done: Strata) -> dict[int, float]:
        """The rows left by stratum once some are finished."""
        return {
            name: rows - done[name].rows if name in done else rows
            for name, rows in self.left.items()
            if name not in done or rows > done[name].rows
        }


def take_sample(
    dataset: Dataset,
    keys: RowKeys,
    limit: int | None,
    index: RowIndex | None,
    size: int,
    *,
    alike_once: bool = False,
    seed: int = 0,
) -> Sample:
    """Choose rows without a result by the lengths of their prompts; deterministic for the same
    input.

    Args:
        dataset: the input.
        keys: what a row is.
        limit: only the first so many rows.
        index: the results so far.
        size: how many rows, or all that are left if those are fewer.
        alike_once: of rows of one value choose no more than one.
        seed: of what is left to chance.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    left: dict[int, float] = {}
    found: dict[int, list[int]] = {}
    known: set[bytes] = set()
    for one in stretches(dataset, keys, limit, index, with_values=alike_once):
        share = one.rows / max(1, len(one.at))
        values = one.values or [b""] * len(one.at)
        for at, characters, pending, value in zip(
            one.at, one.characters, one.pending, values, strict=True
        ):
            if not pending:
                continue
            stratum = stratum_of(characters)
            left[stratum] = left.get(stratum, 0.0) + share
            if not alike_once or value not in known:
                known.add(value)
                found.setdefault(stratum, []).append(at)
    for candidates in found.values():
        chance.shuffle(candidates)
    chosen = {
        at
        for stratum, count in _allocated(left, found, size).items()
        for at in found[stratum][:count]
    }
    rows = [
        batch.some(np.array([at]))
        for batch in (named_rows(dataset, keys, limit, chosen) if chosen else ())
        for at in range(len(batch.ordinals))
    ]
    chance.shuffle(rows)
    return Sample(rows, left)


def _allocated(left: dict[int, float], found: dict[int, list[int]], size: int) -> dict[int, int]:
    """The rows per stratum: at least two if it has them, the rest in proportion to its work."""
    taken = {stratum: min(2, len(found[stratum])) for stratum in found}
    work = {stratum: left[stratum] * 2.0 ** (stratum / 4) for stratum in found}
    room = size - sum(taken.values())
    while room > 0:
        open_ = {name: one for name, one in work.items() if taken[name] < len(found[name])}
        whole = sum(open_.values())
        if not whole:
            break
        given = {
            name: min(len(found[name]) - taken[name], int(room * one / whole))
            for name, one in open_.items()
        }
        if not any(given.values()):  # less than one each: the most work first
            given = dict.fromkeys(sorted(open_, key=lambda name: -open_[name])[:room], 1)
        for name, more in given.items():
            taken[name] += more
        room = size - sum(taken.values())
    return taken
