"""The one file format of the checkpoint: frames of results, one after the other.

A journal is a file of many small frames, appended as rows are settled; a segment is a file of
large frames, each sorted by ordinal. A frame is

    header   magic, codec, row count, lengths and checksums of both parts, length of the values when
             unpacked, the generation that wrote it, smallest and largest ordinal
    keys     ordinals (8 bytes each), digests (16 each), outcomes (1 each)
    values   MessagePack list of `RowValue`, compressed in segments

so that keys are read without touching values, and a file cut at any byte loses only the frames
from the cut on.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
from domyn_swarm.batch.outcomes.verdicts import outcome_of

_MAGIC = b"DSF2"
_HEADER = struct.Struct("<4sBxxxIIIIIIIQQ")
_HEADER_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _HEADER_CRC.size
_KEY_BYTES = 8 + 16 + 1
_PLAIN, _ZSTD = 0, 1
_MAX_PART_BYTES = 1 << 31
_FRAME_BYTES = 1 << 20  # of values in a large frame, unless one has more

_Value = TypeVar("_Value")
_encoder = msgspec.msgpack.Encoder()
_values_decoder = msgspec.msgpack.Decoder(list[RowValue])
_raw_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])


def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=1)


@dataclass(frozen=True, slots=True)
class FrameRef:
    """The location of a whole frame."""

    offset: int
    rows: int
    keys_bytes: int
    values_bytes: int
    keys_crc: int
    values_crc: int
    unpacked_bytes: int  # of the values; 0: they are not compressed
    generation: int  # of the driver that wrote it, in whichever file it is now
    first_ordinal: int
    last_ordinal: int

    @property
    def end(self) -> int:
        """Byte offset just past the frame."""
        return self.offset + HEADER_BYTES + self.keys_bytes + self.values_bytes


@dataclass(frozen=True, slots=True)
class FrameKeys:
    """The rows of a frame."""

    ordinals: NDArray[np.uint64]
    digests: NDArray[np.uint64]  # shape (rows, 2); zeros: void
    outcomes: NDArray[np.uint8]  # see `verdicts`


def encode_frame(results: Sequence[Result], generation: int, *, compress: bool = False) -> bytes:
    """One frame with the results in the given order; at least one.

    Args:
        results: results of rows.
        generation: of the driver that sent the rows.
        compress: whether to compress the values.
    """
    ordinals = array("Q", [result.ordinal for result in results])
    digests = b"".join([result.digest for result in results])
    outcomes = bytes([outcome_of(result.value) for result in results])
    values = _encoder.encode([result.value for result in results])
    span = min(ordinals), max(ordinals)
    keys = ordinals.tobytes() + digests + outcomes
    return _frame(keys, values, span, generation, compress=compress)


def _frame(
    keys: bytes, values: bytes, span: tuple[int, int], generation: int, *, compress: bool
) -> bytes:
    unpacked_bytes = len(values)
    if compress:
        values = _codec().compress(values, asbytes=True)
    header = _HEADER.pack(
        _MAGIC,
        _ZSTD if compress else _PLAIN,
        len(keys) // _KEY_BYTES,
        len(keys),
        len(values),
        zlib.crc32(keys),
        zlib.crc32(values),
        unpacked_bytes,
        generation,
        *span,
    )
    return b"".join((header, _HEADER_CRC.pack(zlib.crc32(header)), keys, values))


class SortedFrames:
    """The results of a whole file, to be rewritten as few large frames sorted by ordinal.

    Values are moved as they are, not decoded. The file is of one generation.
    """

    def __init__(self, path: Path) -> None:
        keys: list[FrameKeys] = []
        self._values: list[msgspec.Raw] = []
        self._generation = 0
        with path.open("rb") as file:
            for ref in scan_frames(path):
                found, values = read_keys(file.fileno(), ref), read_raw_values(file.fileno(), ref)
                if found is not None and values is not None:
                    keys.append(found)
                    self._values += values
                    self._generation = ref.generation
        self.rows = len(self._values)
        if keys:
            self._ordinals = np.concatenate([one.ordinals for one in keys])
            self._digests = np.concatenate([one.digests for one in keys])
            self._outcomes = np.concatenate([one.outcomes for one in keys])
            self._order = np.argsort(self._ordinals, kind="stable")

    def frames(self, frame_rows: int) -> Iterator[bytes]:
        """The frames, compressed, of at most `frame_rows` rows each, and of about a megabyte: a
        reader of the rows of many writers in order has a frame of each in memory.
        """
        start = 0
        while start < self.rows:
            at = self._order[start : start + frame_rows]
            sizes = np.cumsum([memoryview(self._values[row]).nbytes for row in at.tolist()])
            at = at[: max(1, int(np.searchsorted(sizes, _FRAME_BYTES, "right")))]
            start += len(at)
            ordinals = self._ordinals[at]
            parts = (ordinals, self._digests[at], self._outcomes[at])
            values = _encoder.encode([self._values[row] for row in at.tolist()])
            span = int(ordinals[0]), int(ordinals[-1])
            keys = b"".join(part.tobytes() for part in parts)
            yield _frame(keys, values, span, self._generation, compress=True)


def scan_frames(path: Path) -> Iterator[FrameRef]:
    """The whole frames from the start of a file, up to the first that is cut or damaged."""
    with path.open("rb", buffering=1 << 16) as file:
        yield from _scan(file)


def scan_descriptor(descriptor: int) -> list[FrameRef]:
    """The same for an open file, whatever its path refers to by now."""
    with os.fdopen(os.dup(descriptor), "rb", buffering=1 << 16) as file:
        return list(_scan(file))


def _scan(file: BinaryIO) -> Iterator[FrameRef]:
    size = os.fstat(file.fileno()).st_size
    offset = 0
    while (ref := _read_header(file, offset)) is not None and ref.end <= size:
        yield ref
        offset = ref.end
        file.seek(offset)


def _read_header(file: BinaryIO, offset: int) -> FrameRef | None:
    raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        return None
    header, crc = raw[: _HEADER.size], _HEADER_CRC.unpack(raw[_HEADER.size :])[0]
    if zlib.crc32(header) != crc:
        return None
    magic, codec, rows, keys, values, *rest = _HEADER.unpack(header)
    keys_crc, values_crc, unpacked, generation, first, last = rest
    if magic != _MAGIC or keys != rows * _KEY_BYTES or values > _MAX_PART_BYTES:
        return None
    packed = unpacked if codec == _ZSTD else 0
    return FrameRef(
        offset, rows, keys, values, keys_crc, values_crc, packed, generation, first, last
    )


def read_keys(descriptor: int, ref: FrameRef) -> FrameKeys | None:
    """The frame's keys, or None when they are damaged."""
    raw = os.pread(descriptor, ref.keys_bytes, ref.offset + HEADER_BYTES)
    if len(raw) != ref.keys_bytes or zlib.crc32(raw) != ref.keys_crc:
        return None
    rows = ref.rows
    return FrameKeys(
        np.frombuffer(raw, "<u8", rows, 0),
        np.frombuffer(raw, "<u8", rows * 2, rows * 8).reshape(rows, 2),
        np.frombuffer(raw, np.uint8, rows, rows * 24),
    )


def packed_values(values: Sequence[msgspec.Raw]) -> tuple[bytes, int]:
    """Values in their stored form, as one piece of bytes; and their size unpacked, in bytes."""
    whole = _encoder.encode(values)
    return _codec().compress(whole, asbytes=True), len(whole)


def unpacked_values(packed: bytes, size: int) -> list[RowValue]:
    """The decoded result of `packed_values`."""
    return _values_decoder.decode(_codec().decompress(packed, size, asbytes=True))


def read_values(descriptor: int, ref: FrameRef) -> list[RowValue] | None:
    """The frame's values, or None when they are damaged."""
    return _decoded(descriptor, ref, _values_decoder)


def read_raw_values(descriptor: int, ref: FrameRef) -> list[msgspec.Raw] | None:
    """The frame's values in their stored form, or None when they are damaged."""
    return _decoded(descriptor, ref, _raw_decoder)


def _decoded(
    descriptor: int, ref: FrameRef, decoder: msgspec.msgpack.Decoder[list[_Value]]
) -> list[_Value] | None:
    start = ref.offset + HEADER_BYTES + ref.keys_bytes
    raw = os.pread(descriptor, ref.values_bytes, start)
    if len(raw) != ref.values_bytes or zlib.crc32(raw) != ref.values_crc:
        return None
    try:
        if ref.unpacked_bytes:
            raw = _codec().decompress(raw, ref.unpacked_bytes, asbytes=True)
        values = decoder.decode(raw)
    except (OSError, ValueError):
        return None
    return values if len(values) == ref.rows else None


def read_results(descriptor: int, ref: FrameRef) -> list[Result]:
    """The frame's results; none of them when any part is damaged."""
    keys, values = read_keys(descriptor, ref), read_values(descriptor, ref)
    if keys is None or values is None:
        return []
    digests = keys.digests.tobytes()
    return [
        Result(ordinal, digests[at * 16 : at * 16 + 16], value)
        for at, (ordinal, value) in enumerate(zip(keys.ordinals.tolist(), values, strict=True))
    ]
