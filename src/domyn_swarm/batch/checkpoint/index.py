"""Which rows of an input are settled, and where their results are stored."""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from domyn_swarm.batch.checkpoint.frames import (
    FrameKeys,
    FrameRef,
    read_keys,
    read_raw_values,
    read_values,
)
from domyn_swarm.batch.checkpoint.job_store import OpenedFile, ResultsFolder, open_folders
from domyn_swarm.batch.checkpoint.segments import void_path
from domyn_swarm.batch.input.key_table import KeyTable
from domyn_swarm.batch.input.row_keys import Digests, RowKeys, agree, search_keys
from domyn_swarm.batch.outcomes.row_outcomes import RowValue
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.model import Fingerprint

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class ByteCache(Generic[_Key, _Value]):
    """The most recently used values, up to a total size, and always at least one."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()

    def get(self, key: _Key, make: Callable[[_Key], tuple[_Value, int]]) -> _Value:
        """The value of a key; if it is not cached, `make` creates it and its size in bytes."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept[0]
        value, size = self._kept[key] = make(key)
        self._bytes += size
        while self._bytes > self._most and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1][1]
        return value

    def __iter__(self) -> Iterator[_Key]:
        return iter(list(self._kept))

    def forget(self, keys: Iterable[_Key]) -> None:
        """Remove values that are no longer needed."""
        for key in keys:
            self._bytes -= self._kept.pop(key)[1]


_KEYS_BYTES = 64 << 20  # of cached keys of frames
DECODED_BYTES = 256 << 20  # of cached values of frames
_VALUE_BYTES = 300  # size of a decoded value beside its text
# A place in one number: whether it counts as answered, the frame, the row in it, the outcome.
_ANSWERED = np.uint64(1 << 63)
_FRAME_AT = np.uint64(32)
_ROW_AT = np.uint64(8)
_ROW_MASK = np.uint64((1 << 24) - 1)
_AS_USUAL = Reading()


@dataclass(frozen=True, slots=True)
class Matches:
    """For each row of a window: its frame and the row in it, or -1; its outcome, and whether it
    counts as failed. Each has shape (rows,).
    """

    frame: NDArray[np.int64]
    row: NDArray[np.int64]
    outcome: NDArray[np.uint8]
    failed: NDArray[np.bool_]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which rows of the window are settled."""
        return self.frame >= 0


class RowIndex(Protocol):
    """Maps an input's rows to their results."""

    frames: FrameFiles
    in_order: bool  # whether a frame's extent limits which rows it may contain

    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        """The results of the rows `first_ordinal, first_ordinal + 1, …`.

        Windows may come in any order; ascending ones are cheap.
        """


class _Decoded(NamedTuple):
    values: list[RowValue] | None  # None: damaged
    names: array[int]  # the first half of each row's digest


class FrameFiles:
    """Every whole frame of some jobs' folders, weakest claim first, as of opening. The drivers may
    go on writing meanwhile.
    """

    @classmethod
    def open(cls, folders: Sequence[ResultsFolder], reading: Reading = _AS_USUAL) -> FrameFiles:
        """Open the present files; the folder with the strongest claim comes last."""
        return cls(folders, reading)

    def __init__(self, folders: Sequence[ResultsFolder], reading: Reading = _AS_USUAL) -> None:
        self.reading = reading
        self.folders = folders
        self.folder = folders[-1].path  # has room for output files, too
        self._descriptors: list[int] = []
        self.refs: list[FrameRef] = []
        self._file_of: list[int] = []
        self._ignored: list[NDArray[np.uint8] | None] = []  # per frame: outcomes that do not count
        self._keys: ByteCache[int, FrameKeys | None] = ByteCache(_KEYS_BYTES)
        self._decoded: ByteCache[int, _Decoded] = ByteCache(DECODED_BYTES)
        folder_of: list[int] = []
        for number, opened in enumerate(open_folders(folders)):
            self._add(folders[number], opened)
            folder_of += [number] * (len(self.refs) - len(folder_of))
        self._folder_of = np.array(folder_of, np.int64)
        self.first = np.array([ref.first_ordinal for ref in self.refs], np.int64)
        self.last = np.array([ref.last_ordinal for ref in self.refs], np.int64)
        self.decoded_bytes = np.array([_decoded_bytes(ref) for ref in self.refs], np.int64)

    def _add(self, folder: ResultsFolder, opened: Sequence[OpenedFile]) -> None:
        ignored: dict[int, NDArray[np.uint8] | None] = {}
        frames = []
        for one in opened:
            self._descriptors.append(one.descriptor)
            file = len(self._descriptors) - 1
            frames += [(file, ref) for ref in one.frames if ref.generation > folder.hidden_to]
        if not folder.own:  # the first answer of another job is the one that counts
            frames.reverse()
        for file, ref in frames:
            if ref.generation not in ignored:
                ignored[ref.generation] = self._ignored_of(folder, ref.generation)
            self.refs.append(ref)
            self._file_of.append(file)
            self._ignored.append(ignored[ref.generation])

    def _ignored_of(self, folder: ResultsFolder, generation: int) -> NDArray[np.uint8] | None:
        reading = self.reading
        again = reading.again is not None
        if not folder.own:
            return reading.errors | reading.asked_again if again else reading.errors
        void = not reading.void_counts and void_path(folder.path, generation).exists()
        again = again and generation < reading.before
        if void and again:
            return reading.failed | reading.asked_again
        if void:
            return reading.failed
        return reading.asked_again if again else None

    @property
    def rows(self) -> int:
        """Rows in all frames, including superseded ones."""
        return sum(ref.rows for ref in self.refs)

    @property
    def holds_failures(self) -> bool:
        """Whether any row ever failed; the input need not be read to know that none did."""
        failed = self.reading.failed
        return any(
            failed[keys.outcomes[keys.digests[:, 0] != 0]].any() for _, keys in self.all_keys()
        )

    def all_keys(self) -> Iterator[tuple[int, FrameKeys]]:
        """Each frame with intact keys, and its keys."""
        for frame in range(len(self.refs)):
            keys = self._read_keys(frame)
            if keys is not None:
                yield frame, keys

    def count_by_folder(self, frames: NDArray[np.int64]) -> dict[ResultsFolder, int]:
        """How often each folder occurs among these frames."""
        if not len(frames):
            return {}
        if len(self.folders) == 1:
            return {self.folders[0]: len(frames)}
        numbers = np.bincount(self._folder_of[frames])
        return {self.folders[at]: int(numbers[at]) for at in np.flatnonzero(numbers).tolist()}

    def keys(self, frame: int) -> FrameKeys | None:
        """The keys of a frame; None when they are damaged."""
        return self._keys.get(
            frame, lambda _: (self._read_keys(frame), self.refs[frame].keys_bytes)
        )

    def _read_keys(self, frame: int) -> FrameKeys | None:
        keys = read_keys(self._descriptors[self._file_of[frame]], self.refs[frame])
        return None if keys is None else self._counted(frame, keys)

    def _counted(self, frame: int, keys: FrameKeys) -> FrameKeys:
        """The keys of a frame without those of results that do not count."""
        ignored, own = self._ignored[frame], self.folders[int(self._folder_of[frame])].own
        if ignored is None and own:
            return keys
        out = np.zeros(len(keys.outcomes), np.bool_)
        if ignored is not None:
            out |= ignored[keys.outcomes] != 0
        if not own:  # an id or a position identifies a row of one input only
            out |= keys.digests[:, 1] == 0
        digests = np.where(out[:, None], np.uint64(0), keys.digests)  # zero: no row's digest
        return FrameKeys(keys.ordinals, digests, keys.outcomes)

    def value(self, frame: int, row: int, name: int | None = None) -> RowValue | None:
        """One result with its counting outcome; None when its frame is damaged.

        `name`: the first half of the row's digest; if it differs, the result is of another row. The
        most recent frames are cached, up to `DECODED_BYTES`; see `let_go`.
        """
        values, names = self._decoded.get(frame, self._decode)
        if values is None or (name is not None and names[row] != name):
            return None
        return self.reading.judged(values[row])

    def _decode(self, frame: int) -> tuple[_Decoded, int]:
        values = read_values(self._descriptors[self._file_of[frame]], self.refs[frame])
        keys = self.keys(frame)
        if values is None or keys is None:
            return _Decoded(None, array("Q")), 0
        names = array("Q", keys.digests[:, 0].tobytes())
        return _Decoded(values, names), int(self.decoded_bytes[frame])

    def let_go(self, needed_up_to: NDArray[np.int64], row: int) -> None:
        """Drop cached frames that no row from `row` on needs; `needed_up_to`: the last row for each
        frame.
        """
        self._decoded.forget([frame for frame in self._decoded if needed_up_to[frame] < row])

    def undecoded(self, frame: int) -> list[msgspec.Raw] | None:
        """The results of a frame in their stored form; None when they are damaged."""
        return read_raw_values(self._descriptors[self._file_of[frame]], self.refs[frame])

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def _no_matches(rows: int) -> Matches:
    return Matches(
        np.full(rows, -1, np.int64),
        np.full(rows, -1, np.int64),
        np.zeros(rows, np.uint8),
        np.zeros(rows, np.bool_),
    )


def _decoded_bytes(ref: FrameRef) -> int:
    return (ref.unpacked_bytes or ref.values_bytes) + ref.rows * _VALUE_BYTES


class PositionalIndex(RowIndex):
    """A row is settled when its ordinal and its digest match."""

    in_order = True

    def __init__(self, frames: FrameFiles) -> None:
        self.frames = frames

    @override
    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        rows = len(digests)
        found = _no_matches(rows)
        last = first_ordinal + rows - 1
        overlapping = np.flatnonzero(
            (self.frames.first <= last) & (self.frames.last >= first_ordinal)
        )
        for frame in overlapping.tolist():
            keys = self.frames.keys(frame)
            if keys is None:
                continue
            at = keys.ordinals.astype(np.int64) - first_ordinal
            inside = np.flatnonzero((at >= 0) & (at < rows))
            at = at[inside]
            same = agree(keys.digests[inside], digests[at])
            outcomes = keys.outcomes[inside]
            failed = self.frames.reading.failed[outcomes] != 0
            # An error never supersedes an answer; otherwise the later claim wins.
            better = same & (~failed | (found.frame[at] < 0) | found.failed[at])
            # Errors first: for a row that occurs twice in a frame the last assignment stays.
            order = np.argsort(~failed[better], kind="stable")
            chosen = np.flatnonzero(better)[order]
            found.frame[at[chosen]] = frame
            found.row[at[chosen]] = inside[chosen]
            found.outcome[at[chosen]] = outcomes[chosen]
            found.failed[at[chosen]] = failed[chosen]
        return found


class IdIndex(RowIndex):
    """A row is settled when its id and its inputs match, wherever it is.

    A 64-bit key represents both; the reader of a result compares the digest's first half as well,
    and so all of it: two rows with one key and one id have equal inputs, too.
    """

    in_order = False

    def __init__(self, frames: FrameFiles, fingerprint: Fingerprint = "full") -> None:
        """Reads the keys of all frames.

        Raises:
            JobError: no disk has room for the table.
        """
        self.frames = frames
        self._fingerprint = fingerprint
        self._some_by_id = False  # results that were kept without comparing inputs
        self._table = KeyTable(self._rows(), frames.rows, frames.folder)

    def _rows(self) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
        """Keys and places. Answers are greater than errors, later claims than earlier ones."""
        for frame, keys in self.frames.all_keys():
            rows = np.flatnonzero(keys.digests[:, 0]).astype(np.uint64)  # void ones: zero
            digests, outcomes = keys.digests[rows], keys.outcomes[rows]
            failed = self.frames.reading.failed[outcomes] != 0
            answered = np.where(failed, np.uint64(0), _ANSWERED)
            place = (np.uint64(frame) << _FRAME_AT) | (rows << _ROW_AT) | outcomes
            self._some_by_id |= bool((digests[:, 1] == 0).any())
            yield search_keys(digests, self._fingerprint), answered | place

    @override
    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        found = _no_matches(len(digests))
        place, hit = self._table.find(search_keys(digests, self._fingerprint))
        if self._some_by_id and self._fingerprint != "off":  # they are stored under the id alone
            missed = np.flatnonzero(~hit)
            place[missed], hit[missed] = self._table.find(digests[missed, 0])
        rows = np.flatnonzero(hit)
        place = place[rows]
        found.failed[rows] = place < _ANSWERED
        found.outcome[rows] = place.astype(np.uint8)
        place &= _ANSWERED - np.uint64(1)
        found.frame[rows] = (place >> _FRAME_AT).astype(np.int64)
        found.row[rows] = ((place >> _ROW_AT) & _ROW_MASK).astype(np.int64)
        return found


def open_index(
    folders: Sequence[ResultsFolder], keys: RowKeys, reading: Reading = _AS_USUAL
) -> RowIndex:
    """The settled rows of some jobs' folders now, whichever drivers hold them. The caller closes
    `frames`.

    Raises:
        JobError: there is no room for a table of the rows.
    """
    frames = FrameFiles.open(folders, reading)
    return PositionalIndex(frames) if keys.id_column is None else IdIndex(frames, keys.fingerprint)
