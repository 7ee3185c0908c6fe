"""Results in the order of the rows: each frame is decoded once for each reading, whoever wrote it,
whatever the order of the input, and in bounded memory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from domyn_swarm.batch.checkpoint import index as index_module
from domyn_swarm.batch.checkpoint.frames import FrameRef, encode_frame
from domyn_swarm.batch.checkpoint.index import RowIndex, open_index
from domyn_swarm.batch.checkpoint.job_store import ResultsFolder
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.segments import checkpoint_files
from domyn_swarm.batch.input.dataset import TableDataset
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.batch.output import ordered_results as ordered_module
from domyn_swarm.batch.output import routed_values
from domyn_swarm.batch.output.ordered_results import OrderedResults, ordered_results

FRAME_ROWS = 64
BY_POSITION = RowKeys(["prompt"], None)
BY_ID = RowKeys(["prompt"], "id")


def columns(numbers: Sequence[int]) -> dict[str, list[str]]:
    return {name: [f"{name[0]}{number}" for number in numbers] for name in ("id", "prompt")}


def rows(numbers: Sequence[int]) -> TableDataset:
    return TableDataset(pa.table(columns(numbers)))


def value(number: int, size: int = 0) -> RowValue:
    return RowValue(b'{"a":"%d%s"}' % (number, b"x" * size), b"", 1, 2, 3, 0.5)


def results(keys: RowKeys, numbers: Sequence[int], size: int = 0) -> list[Result]:
    """Answers to rows that stand in this order."""
    whole = pa.record_batch(columns(numbers))
    digests = keys.digests(whole, 0)
    return [
        Result(at, digests[at].tobytes(), value(number, size)) for at, number in enumerate(numbers)
    ]


def write(folder: Path, answered: Sequence[Result], writers: int, handful: int = 1) -> None:
    """As writers do that take handfuls in turn: a segment each."""
    for writer in range(writers):
        own = [one for one in answered if one.ordinal // handful % writers == writer]
        frames = [
            encode_frame(own[at : at + FRAME_ROWS], 1, compress=True)
            for at in range(0, len(own), FRAME_ROWS)
        ]
        (folder / f"000001-{writer:03d}-00000000.segment").write_bytes(b"".join(frames))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each frame was decoded, by file and offset."""
    times: Counter[tuple[str, int]] = Counter()

    def counted(read: Callable[[int, FrameRef], object]) -> Callable[[int, FrameRef], object]:
        def reading(descriptor: int, ref: FrameRef) -> object:
            times[os.readlink(f"/proc/self/fd/{descriptor}"), ref.offset] += 1  # noqa: PTH115
            return read(descriptor, ref)

        return reading

    for name in ("read_values", "read_raw_values"):
        monkeypatch.setattr(index_module, name, counted(getattr(index_module, name)))
    return times


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two frames or so, and for parts and writings of a few rows."""
    frame_bytes = FRAME_ROWS * 400
    for module in (index_module, ordered_module):
        monkeypatch.setattr(module, "DECODED_BYTES", 2 * frame_bytes)
    monkeypatch.setattr(routed_values, "_PART_BYTES", frame_bytes)
    monkeypatch.setattr(routed_values, "_WAITING_BYTES", 3 * frame_bytes)
    monkeypatch.setattr(routed_values, "_ROWS_AT_ONCE", 100)


def read(source: OrderedResults, dataset: TableDataset) -> Iterator[RowValue | None]:
    start = 0
    for batch in dataset.batches():
        yield from source.of(start, batch)
        start += batch.num_rows


def opened(folder: Path, keys: RowKeys) -> RowIndex:
    return open_index([ResultsFolder(folder)], keys, Reading())


@pytest.mark.parametrize("keys", [BY_POSITION, BY_ID], ids=["position", "id"])
@pytest.mark.parametrize("writers", [1, 13, 32, 256])
def test_each_result_is_decoded_once_however_many_wrote_them(
    tmp_path: Path, decoded: Counter[tuple[str, int]], writers: int, keys: RowKeys
) -> None:
    numbers = list(range(writers * FRAME_ROWS * 2))
    write(tmp_path, results(keys, numbers), writers)
    index, dataset = opened(tmp_path, keys), rows(numbers)
    source = ordered_results(dataset, keys, index, None)
    for reading in (1, 2):
        assert list(read(source, dataset)) == [value(number) for number in numbers]
        assert len(decoded) == writers * 2
        assert set(decoded.values()) == {reading}
    index.frames.close()


@pytest.mark.parametrize("keys", [BY_POSITION, BY_ID], ids=["position", "id"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_with_little_memory_each_frame_is_decoded_once_all_the_same(
    tmp_path: Path,
    decoded: Counter[tuple[str, int]],
    little_memory: None,
    keys: RowKeys,
    shuffled: bool,
) -> None:
    """A part of the rows is new, and some answers are to rows that are gone."""
    numbers = list(range(3_000))
    write(tmp_path, results(keys, numbers), writers=13)
    gone, kept = numbers[::10], [number for number in numbers if number % 10]
    asked = [*kept, *range(5_000, 5_100)] if keys is BY_ID else numbers
    if shuffled and keys is BY_ID:
        asked = np.random.default_rng(0).permutation(asked).tolist()
    index, dataset = opened(tmp_path, keys), rows(asked)
    source = ordered_results(dataset, keys, index, None)
    known = set(numbers) - (set(gone) if keys is BY_ID else set())
    expected = [value(number) if number in known else None for number in asked]
    for _ in range(2):
        assert list(read(source, dataset)) == expected
    assert set(decoded.values()) == {1}
    index.frames.close()


def test_a_shuffled_input_gets_its_own_answers(
    tmp_path: Path, decoded: Counter[tuple[str, int]]
) -> None:
    numbers = list(range(5_000))
    write(tmp_path, results(BY_ID, numbers), writers=3)
    asked = np.random.default_rng(1).permutation(numbers).tolist()
    index, dataset = opened(tmp_path, BY_ID), rows(asked)
    source = ordered_results(dataset, BY_ID, index, None)
    assert list(read(source, dataset)) == [value(number) for number in asked]
    assert set(decoded.values()) == {1}
    index.frames.close()


@pytest.mark.parametrize("memory", ["enough", "little"])
def test_a_row_whose_key_is_alike_gets_nothing(
    tmp_path: Path, memory: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table knows 64 bits of a row; the other 64 are compared before a result is anybody's."""
    if memory == "little":
        request.getfixturevalue("little_memory")
    numbers = list(range(1_000))
    write(tmp_path, results(BY_ID, numbers), writers=4)
    index, dataset = opened(tmp_path, BY_ID), rows(numbers)
    true_digests = RowKeys.digests
    mixer = np.uint64(0x9E3779B97F4A7C15)

    def alike(keys: RowKeys, batch: pa.RecordBatch, start: int, items: object = None) -> object:
        digests = true_digests(keys, batch, start)
        key = digests[::2, 0] ^ (digests[::2, 1] * mixer)
        digests[::2, 0] += np.uint64(1)
        inverse = np.uint64(pow(int(mixer), -1, 2**64))
        digests[::2, 1] = (key ^ digests[::2, 0]) * inverse
        return digests

    monkeypatch.setattr(RowKeys, "digests", alike)
    assert index.match(0, BY_ID.digests(next(dataset.batches()), 0)).found.all()
    source = ordered_results(dataset, BY_ID, index, None)
    found = list(read(source, dataset))
    assert found == [None if number % 2 == 0 else value(number) for number in numbers]
    index.frames.close()


def test_large_answers_make_frames_of_fewer_rows(tmp_path: Path) -> None:
    """Who joins the results of many writers has a frame of each in memory."""
    numbers = list(range(600))
    journal = Journal(tmp_path, 1)
    answered = results(BY_POSITION, numbers, size=10_000)
    for at in range(0, 600, 50):
        journal.append(answered[at : at + 50])
    journal.close()
    [_] = checkpoint_files(tmp_path)
    index, dataset = opened(tmp_path, BY_POSITION), rows(numbers)
    assert max(ref.unpacked_bytes for ref in index.frames.refs) <= 1 << 20
    assert max(ref.rows for ref in index.frames.refs) > 50
    source = ordered_results(dataset, BY_POSITION, index, None)
    assert list(read(source, dataset)) == [value(number, 10_000) for number in numbers]
    index.frames.close()


def test_what_is_damaged_is_nobodys(tmp_path: Path, little_memory: None) -> None:
    numbers = list(range(1_000))
    write(tmp_path, results(BY_ID, numbers), writers=1)
    [segment] = checkpoint_files(tmp_path)
    whole = bytearray(segment.read_bytes())
    whole[-1] ^= 1  # the last frame's values
    segment.write_bytes(whole)
    asked = numbers[::-1]
    index, dataset = opened(tmp_path, BY_ID), rows(asked)
    source = ordered_results(dataset, BY_ID, index, None)
    first_of_last = 1_000 // FRAME_ROWS * FRAME_ROWS
    assert list(read(source, dataset)) == [
        value(number) if number < first_of_last else None for number in asked
    ]
    index.frames.close()
