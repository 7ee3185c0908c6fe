"""Which replica gets a request: by what it begins with, and by what each one has."""

from __future__ import annotations

import json
import random
from collections import Counter, deque

import pytest

from domyn_swarm.batch.outcomes.row_outcomes import RowTrace, current_trace
from domyn_swarm.batch.run.dispatch import AtReplica, Capacity, Dispatch, prefixes_of
from domyn_swarm.model import Dispatching
from domyn_swarm.net.http import HttpReply

LETTERS = "abcdefghijklmnop "


def chat(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def letters(number: int, seed: object) -> str:
    return "".join(random.Random(repr(seed)).choices(LETTERS, k=number))


def offered(replicas: int, policy: Dispatching = "auto") -> Dispatch:
    dispatch = Dispatch(policy)
    for number in range(replicas):
        dispatch.offer(f"http://node{number}:1")
    return dispatch


class Load:
    """So many requests in flight, each of which ends when a later one needs its place."""

    def __init__(self, dispatch: Dispatch, in_flight: int) -> None:
        self.dispatch = dispatch
        self.places = in_flight
        self.running: deque[str] = deque()
        self.taken: list[str] = []

    def ask(self, body: bytes) -> str:
        if len(self.running) >= self.places:
            self.dispatch.release(self.running.popleft())
        replica = self.dispatch.take(body)
        assert replica is not None
        self.running.append(replica)
        self.taken.append(replica)
        return replica

    def shares(self) -> list[int]:
        """What each replica has in flight now."""
        running = Counter(self.running)
        return sorted(running[url] for url in self.dispatch.urls)


def hits(taken: list[str], groups: list[int]) -> float:
    """The share of requests that came to a replica which had had their group before."""
    had: set[tuple[str, int]] = set()
    count = 0
    for pair in zip(taken, groups, strict=True):
        count += pair in had
        had.add(pair)
    return count / len(taken)


def shuffled(groups: int, each: int, begin: int, rest: int) -> tuple[list[bytes], list[int]]:
    order = [number % groups for number in range(groups * each)]
    random.Random(7).shuffle(order)
    beginnings = [letters(begin, one) for one in range(groups)]
    bodies = [chat(beginnings[one] + letters(rest, (one, at))) for at, one in enumerate(order)]
    return bodies, order


def test_a_request_is_known_by_its_beginnings_and_not_by_what_stands_before_them() -> None:
    text = letters(3000, 1)
    first, second = chat(text + "x" * 600), chat(text + "y" * 600)
    shared = [one for one in prefixes_of(first) if one in prefixes_of(second)]
    assert [length for length, _ in shared] == [512, 1024, 1536, 2048, 2560]
    other_order = {"temperature": 0.5, **json.loads(first)}
    assert prefixes_of(json.dumps(other_order).encode()) == prefixes_of(first)
    assert prefixes_of(chat("short")) == []
    assert len(prefixes_of(chat("x" * 3_000_000))) < 40


@pytest.mark.parametrize("replicas", [3, 16])
def test_requests_that_begin_alike_go_to_the_same_replica(replicas: int) -> None:
    bodies, groups = shuffled(200, 10, 4000, 100)
    by_load = Load(offered(replicas, "least_load"), 16 * replicas)
    by_prefix = Load(offered(replicas), 16 * replicas)
    for body in bodies:
        by_load.ask(body)
        by_prefix.ask(body)
        assert max(by_prefix.shares()) <= 1.25 * 16 + 3
    possible = 0.9  # each beginning is new once
    assert hits(by_prefix.taken, groups) > 0.8 * possible
    assert hits(by_prefix.taken, groups) > hits(by_load.taken, groups) + 0.1


def test_a_beginning_that_all_have_is_on_all_replicas() -> None:
    template = letters(3000, "template")
    load = Load(offered(4), 64)
    for number in range(1000):
        load.ask(chat(template + letters(300, number)))
    assert load.shares() == pytest.approx([16] * 4, abs=3)
    assert len(set(load.taken)) == 4


def test_what_differs_behind_a_long_template_is_spread_by_what_differs() -> None:
    """Documents behind a template: their rows follow the documents, not the template."""
    template = letters(2600, "template")
    documents = [letters(4000, one) for one in range(60)]
    order = [number % 60 for number in range(600)]
    random.Random(3).shuffle(order)
    load = Load(offered(4), 64)
    for at, one in enumerate(order):
        load.ask(chat(template + documents[one] + letters(200, at)))
        assert max(load.shares()) <= 1.25 * 16 + 3
    assert hits(load.taken, order) > 0.75


def test_the_turns_of_a_conversation_stay_together() -> None:
    load = Load(offered(8), 64)
    histories = [letters(700, one) for one in range(200)]
    first = [load.ask(chat(history)) for history in histories]
    moved = 0
    for turn in range(1, 5):
        for one, history in enumerate(histories):
            histories[one] = history + letters(400, (turn, one))
            moved += load.ask(chat(histories[one])) != first[one]
    assert moved < 0.1 * 800


def test_a_row_stays_with_the_replica_that_has_answered_it() -> None:
    """However loaded that is; where it is gone, its beginning decides."""
    dispatch, trace = offered(8), RowTrace()
    current_trace.set(trace)
    for _ in range(7):  # so that the next one has none
        dispatch.take(chat("short"))
    for _ in range(40):
        busy = dispatch.take(chat("short"))
        assert trace.replica in {None, busy}
        assert dispatch.sent().answered(HttpReply(200, b"", None)).status == 200
        assert trace.replica == busy
    dispatch.sent().answered(HttpReply(503, b"", None))
    assert trace.replica is None
    trace.replica = busy
    dispatch.withdraw(busy or "")
    assert dispatch.take(chat("short")) not in {busy, None}
    current_trace.set(None)


def test_by_load_a_row_stays_nowhere() -> None:
    dispatch = offered(2, "least_load")
    taken = dispatch.take(chat("short"))
    current_trace.set(RowTrace())
    dispatch.take(chat("short"))
    dispatch.sent().answered(HttpReply(200, b"", None))
    dispatch.release(taken or "")
    assert dispatch.take(chat("short")) == taken
    current_trace.set(None)


def test_what_came_of_beginnings_is_counted() -> None:
    dispatch, body = offered(2), chat(letters(2000, 1))
    first = dispatch.take(body)
    assert dispatch.known is False
    dispatch.take(body)
    assert dispatch.known is True
    while dispatch.take(body) == first:  # up to its share
        assert dispatch.known is True
    assert dispatch.known is False
    dispatch.take(chat("short"))
    assert dispatch.known is None
    counts = dispatch.worth.counts
    assert (counts.requests_new, counts.requests_moved) == (1, 1)
    assert counts.requests_known >= 1


def test_processes_that_know_nothing_of_each_other_choose_alike() -> None:
    bodies = [chat(letters(3000, number)) for number in range(100)]
    first, second = offered(5), offered(5)
    chosen = []
    for dispatch in (first, second):
        urls = []
        for body in bodies:
            url = dispatch.take(body)
            assert url is not None
            dispatch.release(url)
            urls.append(url)
        chosen.append(urls)
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 5


def test_a_replica_that_leaves_moves_only_what_it_had() -> None:
    bodies = [chat(letters(3000, number)) for number in range(200)]
    dispatch = offered(5)

    def chosen() -> list[str]:
        found = [dispatch.take(body) or "" for body in bodies[:1]]
        dispatch.release(found[0])
        for body in bodies[1:]:
            url = dispatch.take(body)
            assert url is not None
            dispatch.release(url)
            found.append(url)
        return found

    before = chosen()
    left = before[0]
    dispatch.withdraw(left)
    after = chosen()
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {left}
    assert left not in after


def test_where_nothing_is_alike_most_requests_are_not_looked_at() -> None:
    load = Load(offered(4), 64)
    for number in range(2000):
        load.ask(chat(letters(2000, number)))
    assert load.shares() == pytest.approx([16] * 4, abs=2)
    bodies, groups = shuffled(100, 200, 3000, 100)
    for body in bodies:  # and then they are
        load.ask(body)
    assert hits(load.taken[-5000:], groups[-5000:]) > 0.95


def test_what_is_in_flight_counts_where_it_is_whoever_comes_and_goes() -> None:
    dispatch = offered(2)
    taken = [dispatch.take(b"{}") for _ in range(4)]
    assert sorted(map(str, taken)) == ["http://node0:1"] * 2 + ["http://node1:1"] * 2
    dispatch.withdraw("http://node0:1")
    assert dispatch.in_flight == 4
    assert dispatch.take(b"{}") == "http://node1:1"
    dispatch.offer("http://node0:1")
    more = [dispatch.take(b"{}") for _ in range(3)]
    assert sorted(map(str, more)) == ["http://node0:1"] * 2 + ["http://node1:1"]  # it had two
    for url in [*taken, *more, "http://node1:1"]:
        assert url is not None
        dispatch.release(url)
    assert dispatch.in_flight == 0
    dispatch.keep_only(())
    assert dispatch.take(b"{}") is None


def capacities(*limits: float, firm: bool = False) -> dict[str, Capacity]:
    return {f"http://node{number}:1": Capacity(one, firm) for number, one in enumerate(limits)}


def test_shares_are_in_proportion_to_what_replicas_may_have() -> None:
    dispatch = offered(3, "least_load")
    dispatch.set_capacities(capacities(100, 200, 400))
    load = Load(dispatch, 700)
    for number in range(3000):
        load.ask(f"{number}".encode())
        if number > 700:
            assert load.shares() == pytest.approx([100, 200, 400], abs=2)
    dispatch.set_capacities(capacities(300, 200, 200))
    for number in range(3000):
        load.ask(f"{number}".encode())
    running = Counter(load.running)
    there = [running[f"http://node{number}:1"] for number in range(3)]
    assert there == pytest.approx([300, 200, 200], abs=2)


def test_requests_that_begin_alike_go_to_the_same_replica_within_unequal_shares() -> None:
    bodies, groups = shuffled(200, 20, 4000, 100)
    dispatch = offered(3)
    dispatch.set_capacities(capacities(10, 20, 40))
    load = Load(dispatch, 70)
    for number, body in enumerate(bodies):
        load.ask(body)
        if number > 500:
            assert all(
                has <= 1.25 * may + 3 for has, may in zip(load.shares(), (10, 20, 40), strict=True)
            )
    assert hits(load.taken, groups) > 0.8 * 0.95


def test_a_replica_that_more_makes_slower_gets_no_more_though_requests_begin_alike() -> None:
    bodies, _ = shuffled(50, 40, 4000, 100)
    dispatch = offered(3)
    dispatch.set_capacities({**capacities(40, 40, 40), "http://node0:1": Capacity(40, True)})
    load = Load(dispatch, 115)
    for body in bodies:
        load.ask(body)
        assert Counter(load.running)["http://node0:1"] <= 1.05 * 40 + 1


def test_a_replica_whose_capacity_is_not_known_is_like_the_others() -> None:
    dispatch = offered(3, "least_load")
    dispatch.set_capacities(capacities(30, 50))
    load = Load(dispatch, 120)
    for number in range(500):
        load.ask(f"{number}".encode())
    assert load.shares() == pytest.approx([30, 40, 50], abs=2)


def test_what_was_answered_and_turned_away_is_counted_where_it_was() -> None:
    dispatch = offered(1)
    for status in (200, 200, 429, 503, 400, 500, None):
        url = dispatch.take(b"{}")
        assert url is not None
        if status is not None:
            dispatch.replied(url, status)
        dispatch.release(url)
    dispatch.take(b"{}")
    assert dispatch.at_replicas() == {"http://node0:1": AtReplica(1, 2, 2)}
