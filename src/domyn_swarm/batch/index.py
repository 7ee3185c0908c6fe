"""Which rows of an input are settled, and where their results lie.

`PositionalIndex` compares ordinals and digests window by window and keeps only the frames' extents
in memory. `IdIndex` finds rows by their ids and inputs wherever they now stand, at 16 bytes a row.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.frames import FrameKeys, FrameRef, read_keys, read_values
from domyn_swarm.batch.results_folder import OpenedFile, ResultsFolder, open_folders
from domyn_swarm.batch.row_keys import Digests, RowKeys, agree, search_keys
from domyn_swarm.batch.rows import RowValue
from domyn_swarm.batch.segments import void_path
from domyn_swarm.batch.verdicts import Reading
from domyn_swarm.model import Fingerprint

_CACHED_FRAMES = 64
_CACHED_VALUES = 12  # decoded, a megabyte or more each
# A place in one number: whether it counts as answered, the frame, the row in it, the outcome.
_ANSWERED = np.uint64(1 << 63)
_FRAME_AT = np.uint64(32)
_ROW_AT = np.uint64(8)
_ROW_MASK = np.uint64((1 << 24) - 1)
_AS_USUAL = Reading()


@dataclass(frozen=True, slots=True)
class Matches:
    """For each row of a window: the frame and the row in it, or -1; what it came to, and whether
    that counts as failed.
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
    """Finds the results of an input's rows."""

    frames: FrameFiles

    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        """The results of the rows `first_ordinal, first_ordinal + 1, …`.

        Windows may come in any order; ascending ones are cheap.
        """


class FrameFiles:
    """Every whole frame of some jobs' folders, weakest claim first, as they were when this was
    opened. Their drivers may go on writing meanwhile.
    """

    @classmethod
    def open(cls, folders: Sequence[ResultsFolder], reading: Reading = _AS_USUAL) -> FrameFiles:
        """The files as they are, the folder with the strongest claim last."""
        return cls(folders, reading)

    def __init__(self, folders: Sequence[ResultsFolder], reading: Reading = _AS_USUAL) -> None:
        self.reading = reading
        self.folders = folders
        self._descriptors: list[int] = []
        self.refs: list[FrameRef] = []
        self._file_of: list[int] = []
        self._ignored: list[NDArray[np.uint8] | None] = []  # per frame: outcomes that do not count
        self._keys: OrderedDict[int, FrameKeys | None] = OrderedDict()
        self._values: OrderedDict[int, list[RowValue] | None] = OrderedDict()
        folder_of: list[int] = []
        for number, opened in enumerate(open_folders(folders)):
            self._add(folders[number], opened)
            folder_of += [number] * (len(self.refs) - len(folder_of))
        self._folder_of = np.array(folder_of, np.int64)
        self.first = np.array([ref.first_ordinal for ref in self.refs], np.int64)
        self.last = np.array([ref.last_ordinal for ref in self.refs], np.int64)

    def _add(self, folder: ResultsFolder, opened: Sequence[OpenedFile]) -> None:
        ignored: dict[int, NDArray[np.uint8] | None] = {}
        frames = []
        for one in opened:
            self._descriptors.append(one.descriptor)
            file = len(self._descriptors) - 1
            frames += [(file, ref) for ref in one.frames if ref.generation > folder.hidden_to]
        if not folder.own:  # the first answer of another job stays the one that counts
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
        """Rows in all frames, those that later frames supersede included."""
        return sum(ref.rows for ref in self.refs)

    @property
    def holds_failures(self) -> bool:
        """Whether any row was ever given up; the input need not be read to know that none was."""
        for frame in range(len(self.refs)):
            keys = self.keys(frame)
            if keys is not None:
                counted = keys.outcomes[keys.digests[:, 0] != 0]
                if self.reading.failed[counted].any():
                    return True
        return False

    def count_by_folder(self, frames: NDArray[np.int64]) -> dict[ResultsFolder, int]:
        """How many of the frames named, each as often as it is, lie in which folder."""
        if not len(frames):
            return {}
        if len(self.folders) == 1:
            return {self.folders[0]: len(frames)}
        numbers = np.bincount(self._folder_of[frames])
        return {self.folders[at]: int(numbers[at]) for at in np.flatnonzero(numbers).tolist()}

    def keys(self, frame: int) -> FrameKeys | None:
        """The keys of a frame; None when they are damaged."""
        if frame not in self._keys:
            keys = read_keys(self._descriptors[self._file_of[frame]], self.refs[frame])
            self._keys[frame] = None if keys is None else self._counted(frame, keys)
            if len(self._keys) > _CACHED_FRAMES:
                self._keys.popitem(last=False)
        return self._keys[frame]

    def _counted(self, frame: int, keys: FrameKeys) -> FrameKeys:
        """The keys of a frame without those of results that do not count."""
        ignored, own = self._ignored[frame], self.folders[int(self._folder_of[frame])].own
        if ignored is None and own:
            return keys
        out = np.zeros(len(keys.outcomes), np.bool_)
        if ignored is not None:
            out |= ignored[keys.outcomes] != 0
        if not own:  # an id or a position names a row of one input only
            out |= keys.digests[:, 1] == 0
        digests = np.where(out[:, None], np.uint64(0), keys.digests)  # zero: no row's digest
        return FrameKeys(keys.ordinals, digests, keys.outcomes)

    def value(self, frame: int, row: int) -> RowValue | None:
        """One result as it counts; None when its frame is damaged."""
        if frame in self._values:
            self._values.move_to_end(frame)
        else:
            descriptor = self._descriptors[self._file_of[frame]]
            self._values[frame] = read_values(descriptor, self.refs[frame])
            if len(self._values) > _CACHED_VALUES:
                self._values.popitem(last=False)
        values = self._values[frame]
        return None if values is None else self.reading.judged(values[row])

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


class PositionalIndex:
    """A row is settled when its ordinal and its digest match."""

    def __init__(self, frames: FrameFiles) -> None:
        self.frames = frames

    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        """See `RowIndex.match`."""
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
            # An answer is never given up for an error; otherwise the later claim wins.
            better = same & (~failed | (found.frame[at] < 0) | found.failed[at])
            # Errors first: of a row that stands twice in a frame the last assignment stays.
            order = np.argsort(~failed[better], kind="stable")
            chosen = np.flatnonzero(better)[order]
            found.frame[at[chosen]] = frame
            found.row[at[chosen]] = inside[chosen]
            found.outcome[at[chosen]] = outcomes[chosen]
            found.failed[at[chosen]] = failed[chosen]
        return found


class IdIndex:
    """A row is settled when its id and its inputs match, wherever it stands.

    In memory a 64-bit key stands for both, and 8 bytes for the place and the outcome; the reader of
    a result compares the whole digest (`agree`).
    """

    def __init__(self, frames: FrameFiles, fingerprint: Fingerprint = "full") -> None:
        self.frames = frames
        self._fingerprint = fingerprint
        keys, places = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for frame in range(len(frames.refs)):
            found = frames.keys(frame)
            if found is not None:
                rows = np.flatnonzero(found.digests[:, 0]).astype(np.uint64)  # void ones: zero
                outcomes = found.outcomes[rows]
                failed = frames.reading.failed[outcomes] != 0
                answered = np.where(failed, np.uint64(0), _ANSWERED)
                keys.append(search_keys(found.digests[rows], fingerprint))
                place = (np.uint64(frame) << _FRAME_AT) | (rows << _ROW_AT) | outcomes
                places.append(answered | place)
        key, place = np.concatenate(keys), np.concatenate(places)
        # By key, answers behind errors, later claims behind earlier ones; the last of each wins.
        order = np.lexsort((place, key))
        key, place = key[order], place[order]
        keep = np.ones(len(key), np.bool_)
        keep[:-1] = key[1:] != key[:-1]
        self._keys, self._places = key[keep], place[keep]

    def match(self, first_ordinal: int, digests: Digests) -> Matches:  # noqa: ARG002 - places do not matter
        """See `RowIndex.match`."""
        found = _no_matches(len(digests))
        if not len(self._keys):
            return found
        at, hit = self._find(search_keys(digests, self._fingerprint))
        # A result that was kept without a look at its inputs stands under the id alone.
        by_id, known = self._find(digests[:, 0])
        rows = np.flatnonzero(hit | known)
        place = self._places[np.where(hit, at, by_id)[rows]]
        found.failed[rows] = place < _ANSWERED
        found.outcome[rows] = place.astype(np.uint8)
        place &= _ANSWERED - np.uint64(1)
        found.frame[rows] = (place >> _FRAME_AT).astype(np.int64)
        found.row[rows] = ((place >> _ROW_AT) & _ROW_MASK).astype(np.int64)
        return found

    def _find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        return at, self._keys[at] == keys


def open_index(
    folders: Sequence[ResultsFolder], keys: RowKeys, reading: Reading = _AS_USUAL
) -> RowIndex:
    """What is settled in some jobs' folders now, whoever holds them. The caller closes `frames`."""
    frames = FrameFiles.open(folders, reading)
    return PositionalIndex(frames) if keys.id_column is None else IdIndex(frames, keys.fingerprint)
