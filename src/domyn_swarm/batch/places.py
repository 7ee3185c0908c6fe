"""Where the result of each row of an input lies, from one reading of its keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.index import Matches, RowIndex
from domyn_swarm.batch.row_keys import Digests, RowKeys
from domyn_swarm.batch.spilled import NumberList

_NOWHERE = np.uint64(2**64 - 1)
_FRAME_AT = np.uint64(24)
_ROW_MASK = np.uint64((1 << 24) - 1)


class Places:
    """For each row its frame, its place there and the first half of its digest.

    Memory: 64 MB for the rows, which are in an unnamed file beyond that, and 16 bytes a frame.
    """

    def __init__(self, dataset: Dataset, keys: RowKeys, index: RowIndex, limit: int | None) -> None:
        """Read the input's keys.

        Raises:
            InvalidInput: they cannot be read.
            JobError: no disk takes the file.
        """
        self.rows_failed = 0
        frames = len(index.frames.refs)
        self.first = np.full(frames, -1, np.int64)  # row that each frame has, -1: it has none
        self.last = np.full(frames, -1, np.int64)
        self._list = NumberList(index.frames.folder, 2)
        for batch in dataset.batches(keys.columns, limit=limit):
            start = len(self._list)
            digests = keys.digests(batch, start)
            self._take_in(start, index.match(start, digests), digests)

    def _take_in(self, start: int, matches: Matches, digests: Digests) -> None:
        known = np.flatnonzero(matches.found)
        frame = matches.frame[known]
        self.rows_failed += int(matches.failed[known].sum())
        self.last[frame] = start + known  # of rows of one frame the last assignment stays
        new = self.first[frame] < 0
        self.first[frame[new][::-1]] = (start + known[new])[::-1]
        rows = np.full((len(digests), 2), _NOWHERE, np.uint64)
        place = frame.astype(np.uint64) << _FRAME_AT
        rows[known, 0] = place | matches.row[known].astype(np.uint64)
        rows[:, 1] = digests[:, 0]
        self._list.append(rows)

    def __len__(self) -> int:
        return len(self._list)

    def of(
        self, start: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """Of the rows from `start` up to `end`: the frame, -1 where there is none, the row in it,
        and the first half of the digest.

        Raises:
            JobError: the disk does not give them back.
        """
        rows = self._list.read(start, end)
        place = rows[:, 0]
        frame = np.where(place == _NOWHERE, -1, (place >> _FRAME_AT).astype(np.int64))
        return frame, (place & _ROW_MASK).astype(np.int64), rows[:, 1]
