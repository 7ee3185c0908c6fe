"""In which order rows are asked: what begins alike together, what takes long not at the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.histograms import Dispatched
from domyn_swarm.batch.outcomes.row_outcomes import Result, Row, RowTrace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.dispatch import Dispatch
from domyn_swarm.batch.run.lookahead import LookAhead, text_of
from domyn_swarm.batch.run.pending import PendingRows
from domyn_swarm.batch.run.runner import Events, Runner, RunPolicy
from domyn_swarm.engines.sim_options import VllmOptions
from domyn_swarm.engines.sim_vllm import Sequence as Answer
from domyn_swarm.engines.sim_vllm import VllmModel
from domyn_swarm.model import Dispatching
from virtual_time import in_virtual_time, now_s

KEYS = RowKeys(("text",), None)


def letters(number: int, seed: object) -> str:
    return "".join(random.Random(repr(seed)).choices("abcdefghijklmnop ", k=number))


def grouped(groups: int, each: int, begin: int = 1000) -> list[str]:
    """Rows of so many groups, shuffled."""
    beginnings = [letters(begin, ("group", one)) for one in range(groups)]
    texts = [f"{beginnings[n % groups]} {letters(40, n)}" for n in range(groups * each)]
    random.Random(7).shuffle(texts)
    return texts


def in_lots(texts: Sequence[str], size: int = 100) -> Iterator[PendingRows]:
    for begin in range(0, len(texts), size):
        part = list(texts[begin : begin + size])
        columns = pa.RecordBatch.from_pydict({"text": part})
        ordinals = np.arange(begin, begin + len(part))
        yield PendingRows(ordinals, KEYS.digests(columns, begin, part), columns, part)


def ahead(
    policy: Dispatching = "auto", counts: Dispatched | None = None, **options: Any
) -> LookAhead:
    return LookAhead(policy, KEYS, ("text",), counts or Dispatched(), **options)


def order_of(texts: Sequence[str], look: LookAhead, lot_rows: int = 100) -> list[int]:
    found: list[int] = []
    for rows in look.ordered(in_lots(texts, lot_rows)):
        made = rows.rows(KEYS)
        assert [row.item for row in made] == [texts[row.ordinal] for row in made]
        whole = pa.RecordBatch.from_pydict({"text": [row.item for row in made]})
        assert rows.columns.equals(whole)  # what a worker is given is what a runner is
        assert all(row.digest == digest_of(texts, row.ordinal) for row in made)
        found += [row.ordinal for row in made]
    return found


def digest_of(texts: Sequence[str], ordinal: int) -> bytes:
    batch = pa.RecordBatch.from_pydict({"text": [texts[ordinal]]})
    return KEYS.digests(batch, ordinal).tobytes()


def neighbours_alike(texts: Sequence[str], order: Sequence[int]) -> int:
    return sum(texts[a][:512] == texts[b][:512] for a, b in pairwise(order))


def test_rows_that_begin_alike_are_asked_one_after_the_other() -> None:
    texts, counts = grouped(60, 10), Dispatched()
    order = order_of(texts, ahead(counts=counts))
    assert sorted(order) == list(range(600))
    assert neighbours_alike(texts, order) == 600 - 60
    assert (counts.rows_grouped, counts.groups) == (600, 60)


def test_what_several_levels_share_is_visited_like_a_tree() -> None:
    """Each document in one piece, and in it each of its chapters."""
    texts = [
        letters(2000, ("document", one)) + letters(2000, ("chapter", one, two)) + letters(30, n)
        for n in range(4)
        for one in range(6)
        for two in range(5)
    ]
    random.Random(3).shuffle(texts)
    order = order_of(texts, ahead())
    for length, parts in ((2000, 6), (4000, 30)):
        changes = sum(texts[a][:length] != texts[b][:length] for a, b in pairwise(order))
        assert changes == parts - 1


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        ([letters(1000, n) for n in range(500)], {}),  # nothing in common
        ([letters(900, "template") + letters(300, n) for n in range(500)], {}),  # all have it
        (grouped(50, 10), {"policy": "least_load"}),
        (grouped(50, 10), {"pays": lambda: False}),
        ([f"row {n}" for n in range(500)], {}),
    ],
)
def test_the_order_stays_where_none_is_better(texts: list[str], options: dict[str, Any]) -> None:
    assert order_of(texts, ahead(**options)) == list(range(500))


def test_affinity_groups_whatever_was_measured() -> None:
    texts = grouped(50, 10)
    order = order_of(texts, ahead("affinity", pays=lambda: False))
    assert neighbours_alike(texts, order) == 450


class Counted:
    """A source that knows how many of its rows are held."""

    def __init__(self, texts: Sequence[str], lot_rows: int) -> None:
        self.read = 0
        self._lots = in_lots(texts, lot_rows)

    def __iter__(self) -> Iterator[PendingRows]:
        for lot in self._lots:
            self.read += len(lot.ordinals)
            yield lot


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(0, 700),
    groups=st.integers(1, 80),
    lot_rows=st.integers(1, 120),
    window=st.integers(1, 300),
    policy=st.sampled_from(["auto", "affinity"]),
)
def test_each_row_once_within_a_bounded_window_and_none_starves(  # noqa: PLR0917 - drawn
    data: st.DataObject,
    rows: int,
    groups: int,
    lot_rows: int,
    window: int,
    policy: Dispatching,
) -> None:
    of = data.draw(st.lists(st.integers(0, groups), min_size=rows, max_size=rows))
    long = data.draw(st.sets(st.integers(0, max(0, rows - 1)), max_size=20))
    texts = [
        letters(600, one) + f" {n}" + (" long" * 2000 if n in long else "")
        for n, one in enumerate(of)
    ]
    source = Counted(texts, lot_rows)
    order: list[int] = []
    for lot in ahead(policy, rows=window).ordered(iter(source)):
        order += lot.ordinals.tolist()
        assert source.read - len(order) <= window + lot_rows
    assert sorted(order) == list(range(rows))
    for place, row in enumerate(order):
        assert place - row <= 2 * (window + lot_rows)  # rows that went before it and came after it


def test_no_more_bytes_are_held_than_allowed() -> None:
    texts = [letters(1000, n % 50) + str(n) for n in range(1000)]
    source, given_out = Counted(texts, 20), 0
    for lot in ahead(nbytes=2 * 100 * 1020).ordered(iter(source)):
        given_out += len(lot.ordinals)
        assert source.read - given_out <= 125
    assert given_out == 1000


def test_what_a_row_is_compared_by() -> None:
    said = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"text": "b"}]}]
    assert text_of("x") == "x"
    assert text_of(said) == "a\n{'text': 'b'}"
    assert text_of(None) == "None"
    assert text_of({"x": 1}) == "{'x': 1}"
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert text_of(deep) == ""


def test_rows_that_come_one_by_one_are_each_weighed_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a job of which rows are left here and there; not each time that another one comes."""
    weighed = Counter[str]()

    def nbytes(lot: Any) -> int:
        weighed["lots"] += 1
        return int(lot.rows.columns.nbytes)

    monkeypatch.setattr("domyn_swarm.batch.run.lookahead._Lot.nbytes", property(nbytes))
    texts = [f"row {number}" for number in range(2000)]
    assert len(order_of(texts, ahead(), lot_rows=1)) == 2000
    assert weighed["lots"] < 4 * 2000


def test_columns_are_compared_in_the_order_of_the_request() -> None:
    documents = [letters(1000, n) for n in range(20)]
    rows = [{"question": letters(1000, (n, "q")), "document": documents[n % 20]} for n in range(80)]
    keys = RowKeys(("document", "question"), None)
    columns = pa.RecordBatch.from_pylist(
        rows, schema=pa.schema(dict.fromkeys(rows[0], pa.string()))
    )
    pending = PendingRows(np.arange(80), keys.digests(columns, 0), columns)
    by = {}
    for first in (("document", "question"), ("question", "document")):
        look = LookAhead("auto", keys, first, Dispatched())
        found = [row.item for lot in look.ordered(iter([pending])) for row in lot.rows(keys)]
        by[first[0]] = sum(a["document"] == b["document"] for a, b in pairwise(found))
    assert by == {"document": 60, "question": 0}


# -- in virtual time -----------------------------------------------------------------------------


@pytest.fixture
def virtual_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the runner measure what passes in the test's loop."""
    clock = SimpleNamespace(perf_counter=now_s, monotonic=now_s)
    monkeypatch.setattr("domyn_swarm.batch.run.runner.time", clock)


class Kept(list[Result]):
    """A sink in memory that knows when rows came."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def append(self, results: Sequence[Result]) -> None:  # type: ignore[override]
        self.extend(results)
        self.at += [now_s()] * len(results)


async def ends_of(
    texts: Sequence[str], policy: Dispatching, seconds: Callable[[str], float], slots: int
) -> list[float]:
    """When each row of a job was done, in seconds since it began."""

    async def transform(items: list[Any]) -> list[Any]:
        await asyncio.sleep(seconds(items[0]))
        return items

    def encode(value: Any, _trace: RowTrace, _latency_s: float) -> bytes:
        return str(len(value)).encode()

    kept, look, began = Kept(), ahead(policy, rows=1500), now_s()
    rows = (pending.rows(KEYS) for pending in look.ordered(in_lots(texts)))
    runner = Runner(
        transform,
        look.learning(kept),
        RunPolicy(slots),
        encode=encode,
        tally=Tally(),
        events=Events(),
    )
    await runner.run(rows)
    assert sorted(result.ordinal for result in kept) == list(range(len(texts)))
    return [at - began for at in kept.at]


def tail_s(ends: list[float]) -> float:
    """From 95 % of the rows to all."""
    ends = sorted(ends)
    return ends[-1] - ends[len(ends) * 95 // 100 - 1]


def lognormal(rows: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    sizes = [int(20 * draw.lognormvariate(0, 1.2) + 1) for _ in range(rows)]
    return [letters(size, (seed, row)) for row, size in enumerate(sizes)]


@pytest.mark.usefixtures("virtual_latencies")
@in_virtual_time
async def test_long_rows_do_not_come_last() -> None:
    """Over three windows; only the last of them is in another order."""
    tails = dict.fromkeys(("auto", "least_load"), 0.0)
    for seed in range(2):
        texts = lognormal(4000, seed)
        for policy in ("auto", "least_load"):
            ends = await ends_of(texts, policy, lambda text: len(text) / 10, 64)
            tails[policy] += tail_s(ends)
    assert tails["auto"] <= 0.6 * tails["least_load"]


@pytest.mark.usefixtures("virtual_latencies")
@in_virtual_time
async def test_how_long_rows_take_is_learned() -> None:
    """Here short texts take long; by sizes alone the long texts would come first."""
    texts = lognormal(1490, 5)

    def seconds(text: str) -> float:
        return 2000 / len(text)

    learned = tail_s(await ends_of(texts, "auto", seconds, 64))
    assert learned <= 0.6 * tail_s(await ends_of(texts, "least_load", seconds, 64))


@pytest.mark.usefixtures("virtual_latencies")
@in_virtual_time
async def test_where_sizes_say_nothing_the_order_is_soon_that_of_the_input() -> None:
    texts = lognormal(1490, 6)
    asked: list[str] = []

    def seconds(text: str) -> float:
        asked.append(text)
        return random.Random(text + str(len(asked))).lognormvariate(0, 0.5)

    await ends_of(texts, "auto", seconds, 16)
    places = {id(text): place for place, text in enumerate(texts)}
    rest = [places[id(text)] for text in asked[1000:]]
    assert sum(a < b for a, b in pairwise(rest)) > 0.95 * len(rest)


def rows_per_s(texts: Sequence[str], policy: Dispatching, options: VllmOptions) -> float:
    """Of three modelled engines, with 192 requests in flight."""
    urls = [f"http://node{number}:1" for number in range(3)]
    engines = {url: VllmModel(options, 256, 1.0) for url in urls}
    dispatch = Dispatch(policy)
    for url in urls:
        dispatch.offer(url)
    waiting = deque(
        text for lot in ahead(policy).ordered(in_lots(texts)) for text in lot.items or ()
    )
    now, in_flight, done = 0.0, Counter[str](), list[Answer]()
    while waiting or in_flight.total():
        while waiting and in_flight.total() < 192:
            text = waiting.popleft()
            replica = dispatch.take(b'{"messages": "%s"}' % text.encode())
            assert replica is not None
            engines[replica].submit(now, text + "x" * 64, len(text) // 4, 16)
            in_flight[replica] += 1
        now = min(one.next_s for one in engines.values() if one.next_s is not None)
        for url, engine in engines.items():
            for answer in engine.advance(now):
                done.append(answer)
                dispatch.release(url)
                in_flight[url] -= 1
    assert len(done) == len(texts)
    return len(texts) / now


def test_shared_beginnings_are_read_about_once() -> None:
    """Memory holds a third of them; sent by load, most prompts are read as a whole."""
    texts = grouped(120, 10, begin=4000)
    options = VllmOptions(kv_tokens=40_000)
    by_load = rows_per_s(texts, "least_load", options)
    once = rows_per_s(sorted(texts), "affinity", VllmOptions(kv_tokens=2_000_000))
    found = rows_per_s(texts, "auto", options)
    assert found >= 3 * by_load
    assert found >= 0.75 * once


def test_a_runner_is_given_rows_of_the_order() -> None:
    texts = grouped(5, 4)
    rows: list[Row] = [row for lot in ahead().ordered(in_lots(texts)) for row in lot.rows(KEYS)]
    assert Counter(row.ordinal for row in rows) == Counter(range(20))
    assert all(row.item == texts[row.ordinal] for row in rows)
