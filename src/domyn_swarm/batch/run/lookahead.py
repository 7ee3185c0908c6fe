"""The order in which rows are sent: a bounded part of the input is read ahead and sorted.

Rows with a common prefix are sent one after the other, so that an engine computes the prefix once,
while it is still in its cache. Their texts are sorted, which visits shared prefixes like the
branches of a tree, depth first: with a prefix cache no order computes less (Zheng et al., "SGLang:
Efficient Execution of Structured Language Model Programs", 2024, section 3). Rows without common
prefixes stay in the order of the input.

Among the last rows of an input those that are expected to take long come first, so that the end
does not wait for a row that started late (Graham, "Bounds on multiprocessing timing anomalies",
1969). A row's expected time depends on its size, and is learned from finished rows.

Guaranteed: every row is handed on once; no more rows and bytes are held than a window and one lot
of the source; a row is handed on before any row that is two windows and a lot behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.histograms import Dispatched
from domyn_swarm.batch.outcomes.row_outcomes import Result
from domyn_swarm.batch.run.pending import PendingRows, joined
from domyn_swarm.batch.run.runner import Sink
from domyn_swarm.model import Dispatching

WINDOW_ROWS = 16 * 1024
WINDOW_BYTES = 64 << 20
LOT_ROWS = 256  # handed on at once: few, since learning changes the order of the rest
_ALIKE = 512  # the shortest common prefix, in characters,
_LIKE = 0.5  # and this part of the shorter one
_WORTH_IT = 0.05  # of the rows in groups; with fewer the order of the input stays
_LARGEST = 64  # rows of a group that stay together
_LEARNED_FROM = 64  # finished rows required before times are learned from them
_EXPLAINED = 0.1  # of the variance of their times at least; else all rows count as equally long
_LAST_KEPT = 4096
_SAMPLE = 4  # one row in this number is learned from
_LONG = 2.0  # times the mean: rows expected to take this long come before the others

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


def text_of(value: Any) -> str:  # noqa: ANN401 - the columns'
    """The text by which a row is sorted: the text itself, or the content of messages."""
    if isinstance(value, str):
        return value
    try:
        return _message_text(value)
    except RecursionError:  # whether it can be sent is decided elsewhere
        return ""


def _message_text(value: Any) -> str:  # noqa: ANN401 - the columns'
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join([_message_text(one) for one in value])
    if isinstance(value, dict) and "content" in value:
        return _message_text(value["content"])
    return str(value)


class Expectation:
    """How much longer than the mean a row takes, by its size: `time = a * size ** b`."""

    def __init__(self) -> None:
        self._finished: deque[tuple[float, float]] = deque(maxlen=_LAST_KEPT)  # size, seconds
        self.learned = 0  # rows

    def learn(self, size: float, seconds: float) -> None:
        """Add a finished row; may be called on another thread."""
        self._finished.append((size, seconds))
        self.learned += 1

    def classes(self, sizes: Floats) -> NDArray[np.int64]:
        """For each row 0, or the number of powers of `_LONG` times the mean that it is expected to
        take.
        """
        exponent = self._exponent()
        logarithms = exponent * np.log2(sizes + 1)
        if not exponent or not len(sizes):
            return np.zeros(len(sizes), np.int64)
        above_mean = logarithms - np.log2(np.mean(np.exp2(logarithms)))
        above: Places = np.floor(above_mean / math.log2(_LONG)).astype(np.int64)
        return np.maximum(above, 0)

    def _exponent(self) -> float:
        """The `b` of least squares; 1 before any row finished, 0 if sizes do not explain times."""
        finished = np.array(list(self._finished))
        if len(finished) < _LEARNED_FROM:
            return 1.0
        sizes = np.log2(finished[:, 0] + 1)
        times = np.log2(np.maximum(finished[:, 1], 1e-6))
        sizes, times = sizes - sizes.mean(), times - times.mean()
        together = float(sizes @ times)
        varies = float(sizes @ sizes) * float(times @ times)
        if not varies or together**2 < _EXPLAINED * varies:
            return 0.0
        return together / float(sizes @ sizes)


@dataclass
class _Lot:
    """Rows that are handed on together, with their sort keys."""

    rows: PendingRows
    sizes: Floats
    groups: Places  # rows of one number stay together

    @property
    def length(self) -> int:
        return len(self.rows.ordinals)

    @cached_property
    def nbytes(self) -> int:
        return 2 * int(self.rows.columns.nbytes)  # once in Arrow, once in Python

    def part(self, at: Places) -> _Lot:
        return _Lot(self.rows.some(at), self.sizes[at], self.groups[at])


class LookAhead:
    """Orders the rows of one run. Use it once."""

    def __init__(
        self,
        policy: Dispatching,
        keys: RowKeys,
        sent_columns: Sequence[str],
        counts: Dispatched,
        *,
        pays: Callable[[], bool] = lambda: True,
        rows: int = WINDOW_ROWS,
        nbytes: int = WINDOW_BYTES,
    ) -> None:
        """Read ahead up to these rows and bytes.

        Args:
            policy: with `least_load` rows stay as they come.
            keys: which columns a job reads.
            sent_columns: those in the order in which requests hold them.
            counts: where groups are counted.
            pays: whether grouping is worth it, as measured; asked for each window under `auto`.
            rows: of a window.
            nbytes: of a window.
        """
        self._policy = policy
        self._keys = keys
        self._sent_columns = sent_columns
        self._counts = counts
        self._pays = pays
        self._most_rows, self._most_bytes = rows, nbytes
        self._expected = Expectation()
        self._sizes: dict[int, float] | None = None  # of rows that were handed on

    # -- learning ------------------------------------------------------------------------------

    def learning(self, sink: Sink) -> Sink:
        """A sink that passes results on, and learns from the times of its rows."""
        self._sizes = {}
        return _Learning(sink, self._settled)

    def _settled(self, results: Sequence[Result]) -> None:
        sizes = self._sizes or {}
        for result in results:
            size = sizes.pop(result.ordinal, None)
            if size is not None and not result.value.error:
                self._expected.learn(size, result.value.latency_s)

    # -- order ---------------------------------------------------------------------------------

    def ordered(self, source: Iterator[PendingRows]) -> Iterator[PendingRows]:
        """All rows of the source."""
        if self._policy == "least_load":
            yield from source
            return
        current, incoming = deque[_Lot](), list[_Lot]()
        ended, learned, held_rows, held_bytes = False, 0, 0, 0
        while True:
            while not ended and self._has_room(held_rows, held_bytes):
                rows = next(source, None)
                if rows is None:
                    ended = True
                    break
                incoming.append(self._taken_in(rows))
                held_rows += incoming[-1].length
                held_bytes += incoming[-1].nbytes
            if incoming and (ended or not current):
                current = self._arranged([*current, *incoming], last=ended)
                incoming.clear()
                learned = self._expected.learned
                held_rows = sum(lot.length for lot in current)
                held_bytes = sum(lot.nbytes for lot in current)
            elif ended and self._expected.learned >= max(_LEARNED_FROM, 2 * learned):
                current, learned = self._ranked(current), self._expected.learned
            if not current:
                return
            lot = current.popleft()
            held_rows -= lot.length
            held_bytes -= lot.nbytes
            yield self._handed_on(lot)

    def _has_room(self, rows: int, nbytes: int) -> bool:
        return rows < self._most_rows and nbytes < self._most_bytes

    def _taken_in(self, rows: PendingRows) -> _Lot:
        if rows.items is None:
            rows = replace(rows, items=self._keys.items(rows.columns))
        length = len(rows.ordinals)
        return _Lot(rows, np.zeros(length), np.zeros(length, np.int64))

    def _handed_on(self, lot: _Lot) -> PendingRows:
        if self._sizes is not None:
            sampled = np.flatnonzero(lot.rows.ordinals % _SAMPLE == 0)
            ordinals, sizes = lot.rows.ordinals[sampled], lot.sizes[sampled]
            self._sizes.update(zip(ordinals.tolist(), sizes.tolist(), strict=True))
        return lot.rows

    def _arranged(self, lots: list[_Lot], *, last: bool) -> deque[_Lot]:
        """A window in the order in which it is sent; the last window is all that is left."""
        texts = [text for lot in lots for text in self._texts(lot.rows.items or [])]
        sizes = np.fromiter(map(len, texts), np.float64, len(texts))
        groups = np.arange(len(texts))
        order = groups
        if self._policy == "affinity" or self._pays():
            order, groups = self._grouped(texts, groups)
        begin = 0
        for lot in lots:
            end = begin + lot.length
            lot.sizes, lot.groups = sizes[begin:end], groups[begin:end]
            begin = end
        arranged = deque(lots) if order is groups and not last else _gathered(lots, order)
        return self._ranked(arranged) if last else arranged

    def _texts(self, items: list[Any]) -> list[str]:
        names = self._sent_columns
        if len(self._keys.input_columns) == 1:
            return [text_of(item) for item in items]
        return ["\n".join([text_of(item[name]) for name in names]) for item in items]

    def _grouped(self, texts: list[str], single: Places) -> tuple[Places, Places]:
        """The rows sorted, and the group of each; in input order if few are in groups."""
        order = sorted(range(len(texts)), key=texts.__getitem__)
        firsts = []
        before = begin_before = ""
        for at in order:
            text, begin = texts[at], texts[at][:_ALIKE]
            # For most pairs the first comparison decides.
            firsts.append(begin != begin_before or not _are_alike(before, text))
            before, begin_before = text, begin
        begins = np.flatnonzero(firsts) if texts else np.zeros(0, np.int64)
        lengths = np.diff(np.append(begins, len(texts)))
        several = lengths[(lengths > 1) & (2 * lengths <= max(2, len(texts)))]
        if several.sum() < max(1, _WORTH_IT * len(texts)):
            return single, single
        self._counts.groups += len(several)
        self._counts.rows_grouped += int(several.sum())
        number = np.repeat(np.arange(len(begins)), lengths)
        alone = np.repeat(lengths > _LARGEST, lengths)
        number[alone] = len(begins) + np.flatnonzero(alone)
        groups = np.empty(len(texts), np.int64)
        groups[order] = number
        return np.array(order, np.int64), groups

    def _ranked(self, lots: deque[_Lot]) -> deque[_Lot]:
        """The remaining rows with the long ones first, and groups kept together."""
        if not lots:
            return lots
        sizes = np.concatenate([lot.sizes for lot in lots])
        classes = self._expected.classes(sizes)
        if not classes.any():
            return lots
        _, at = np.unique(np.concatenate([lot.groups for lot in lots]), return_inverse=True)
        longest = np.zeros(at.max() + 1, np.int64)
        np.maximum.at(longest, at, classes)
        return _gathered(list(lots), np.argsort(-longest[at], kind="stable"))


def _are_alike(before: str, after: str) -> bool:
    """Whether two texts have a common prefix of most of the shorter one."""
    shorter = min(len(before), len(after))
    most = int(_LIKE * shorter)
    return shorter >= _ALIKE and before[:most] == after[:most]


def _gathered(lots: list[_Lot], order: Places) -> deque[_Lot]:
    """The rows of these lots in another order, as new lots."""
    begins = np.cumsum([0, *(lot.length for lot in lots)])
    lot_of = np.searchsorted(begins, order, "right") - 1
    at = order - begins[lot_of]
    found = deque[_Lot]()
    for begin in range(0, len(order), LOT_ROWS):
        found.append(_picked(lots, lot_of[begin : begin + LOT_ROWS], at[begin : begin + LOT_ROWS]))
    return found


def _picked(lots: list[_Lot], lot_of: Places, at: Places) -> _Lot:
    """The rows at these positions of these lots, in this order."""
    sources: list[int] = np.unique(lot_of).tolist()
    parts = [lots[source].part(at[lot_of == source]) for source in sources]
    if len(parts) == 1:
        return parts[0]
    places = np.argsort(np.argsort(lot_of, kind="stable"), kind="stable")
    whole = _Lot(
        joined([part.rows for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.groups for part in parts]),
    )
    return whole.part(places)


class _Learning(Sink):
    """A sink that also reports results to the learner."""

    def __init__(self, sink: Sink, settled: Callable[[Sequence[Result]], None]) -> None:
        self._sink = sink
        self._settled = settled

    @override
    def append(self, results: Sequence[Result]) -> None:
        self._sink.append(results)
        self._settled(results)
