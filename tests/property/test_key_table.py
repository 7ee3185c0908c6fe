"""A table of keys, in memory and in a file, knows exactly what a plain dictionary knows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domyn_swarm.batch.input import key_table
from domyn_swarm.batch.input.key_table import KeyTable, NumberList, Parts

_MOST = 2**64 - 1
KEYS = st.one_of(
    st.integers(0, 20),  # all in one bucket
    st.integers(_MOST - 20, _MOST),
    st.integers(0, 20).map(lambda n: n * 0x9E3779B97F4A7C15 & _MOST),
    st.integers(0, _MOST),
)


@given(
    lists=st.lists(st.lists(st.tuples(KEYS, st.integers(0, _MOST)), max_size=40), max_size=8),
    asked=st.lists(KEYS, max_size=10),
    in_memory_bytes=st.sampled_from([64, 256, 1 << 20]),
)
@settings(max_examples=150, deadline=None)
def test_of_pairs_with_one_key_the_greatest_counts(
    lists: list[list[tuple[int, int]]], asked: list[int], in_memory_bytes: int
) -> None:
    model: dict[int, int] = {}
    for pairs in lists:
        for key, number in pairs:
            model[key] = max(number, model.get(key, 0))
    columns = [np.array(pairs, np.uint64).reshape(-1, 2) for pairs in lists]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_table, "IN_MEMORY_BYTES", in_memory_bytes)
        table = KeyTable(
            ((pairs[:, 0], pairs[:, 1]) for pairs in columns), sum(map(len, lists)), None
        )
    assert len(table) == len(model)
    asked += list(model)
    numbers, found = table.find(np.array(asked, np.uint64))
    assert found.tolist() == [key in model for key in asked]
    known = [(key, number) for key, number in zip(asked, numbers.tolist(), strict=True)]
    assert [pair for pair in known if pair[0] in model] == [
        (key, model[key]) for key in asked if key in model
    ]


@given(
    lists=st.lists(st.lists(st.tuples(st.integers(0, _MOST), KEYS), max_size=20), max_size=8),
    in_memory_bytes=st.sampled_from([64, 256, 1 << 20]),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_rows_come_back_in_their_order_whole_and_by_parts(
    lists: list[list[tuple[int, int]]], in_memory_bytes: int, data: st.DataObject
) -> None:
    model = [row for rows in lists for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_table, "IN_MEMORY_BYTES", in_memory_bytes)
        whole, parts = NumberList(None, 2), Parts(None, 2, len(model))
    for rows in lists:
        numbers = np.array(rows, np.uint64).reshape(-1, 2)
        whole.append(numbers)
        parts.add(parts.of_key(numbers[:, 0]), numbers)
    assert len(whole) == parts.rows == len(model)
    start = data.draw(st.integers(0, len(model)))
    end = data.draw(st.integers(start, len(model)))
    assert [tuple(row) for row in whole.read(start, end).tolist()] == model[start:end]
    found = [[tuple(row) for row in part.tolist()] for part in parts]
    assert len(found) == parts.count
    assert [row for part in found for row in part] == sorted(
        model, key=lambda row: row[0] * parts.count >> 64
    )
