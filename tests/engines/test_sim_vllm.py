"""The simulator's model of vLLM: its clock is a number that the tests move."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from statistics import median

import pytest

from domyn_swarm.engines.sim_openai import ModelTokens
from domyn_swarm.engines.sim_options import OutputTokens, VllmOptions
from domyn_swarm.engines.sim_vllm import Sequence as Running
from domyn_swarm.engines.sim_vllm import VllmModel

Row = tuple[str, int]  # a prompt, and how many tokens are written to it

# a step takes 10 ms and reads 100 tokens in another 10 ms, whoever writes
PLAIN = VllmOptions(
    kv_tokens=16_000, step_s=0.01, sequence_step_s=0.0, prefill_tokens_per_s=10_000.0
)


def tokens(text: str) -> int:
    return ModelTokens(4, None).of(text)


class Engine:
    """A model with its clock, and when its answers were written."""

    def __init__(self, options: VllmOptions = PLAIN, slots: int = 256, speed: float = 1.0) -> None:
        self.model, self.now_s = VllmModel(options, slots, speed), 0.0
        self.done_s: dict[Running, float] = {}

    def ask(self, prompt: str, write: int, answer: str = "") -> Running:
        text = prompt + (answer or "x" * 4 * write)
        return self.model.submit(self.now_s, text, tokens(prompt), write)

    def until(self, now_s: float) -> list[Running]:
        self.now_s = now_s
        done = self.model.advance(now_s)
        self.done_s |= dict.fromkeys(done, now_s)
        return done

    def finish(self) -> float:
        """Let everything be written; when that is."""
        while (next_s := self.model.next_s) is not None:
            self.until(next_s)
        return self.now_s

    def answer(self, rows: Iterable[Row], at_once: int) -> float:
        """Seconds for all rows, of which so many are asked at once: the next when one is done."""
        left = iter(rows)
        asked = [self.ask(*row) for row in islice(left, at_once)]
        while (next_s := self.model.next_s) is not None:
            for _ in self.until(next_s):
                asked += [self.ask(*row) for row in islice(left, 1)]
        assert set(asked) == set(self.done_s)
        assert not list(left)
        return self.now_s


def prompt(name: str, length: int) -> str:
    """So many tokens, which begin like no other name's."""
    return (f"{name} " * (4 * length))[: 4 * length]


def test_a_prompt_is_read_then_each_step_writes_a_token() -> None:
    engine = Engine()
    asked = engine.ask(prompt("a", 200), 4)  # read in 20 ms beside the first of four steps
    assert engine.finish() == pytest.approx(0.02 + 4 * 0.01)
    assert engine.model.written(asked, engine.now_s) == 4
    twice = Engine(speed=2.0)
    twice.ask(prompt("a", 200), 4)
    assert twice.finish() == pytest.approx((0.02 + 4 * 0.01) / 2)


def test_a_long_prompt_is_read_in_several_steps_while_others_write() -> None:
    engine = Engine(replace(PLAIN, batched_tokens=100))
    first = engine.ask(prompt("a", 10), 50)
    engine.until(0.025)
    second = engine.ask(prompt("b", 250), 1)  # 99 beside one that writes, 99, 52
    engine.finish()
    steps = 0.031 + (2 * (0.01 + 0.0099) + 0.01 + 0.0052)
    assert engine.done_s[second] == pytest.approx(steps)
    assert engine.done_s[first] == pytest.approx(0.011 + 49 * 0.01 + 0.025)


def test_each_sequence_makes_a_step_longer_and_slots_bound_how_many_there_are() -> None:
    engine = Engine(replace(PLAIN, sequence_step_s=0.005), slots=2)
    for name in "abc":
        engine.ask(prompt(name, 10), 100)
    engine.until(0.5)
    assert (engine.model.running, engine.model.waiting) == (2, 1)
    before, step_s = engine.model.generated(0.5), 0.01 + 2 * 0.005
    engine.until(0.5 + 10 * step_s)
    assert engine.model.generated(engine.now_s) - before == 20
    engine.finish()
    assert engine.model.generated(engine.now_s) == 300
    assert engine.model.prompt_tokens == 30


def test_the_beginning_that_prompts_share_is_read_once() -> None:
    engine = Engine()
    for name in ("a", "b", "b"):
        engine.ask(prompt("shared", 64) + prompt(name, 32), 1)
        engine.finish()
    # of the third all but the last block: its last token has to be read to have the next one
    assert engine.model.hit_tokens == 64 + (64 + 16)
    assert engine.model.queried_tokens == 3 * 96
    off = Engine(replace(PLAIN, prefix_cache=False))
    off.answer([(prompt("a", 64), 1)] * 3, at_once=1)
    assert (off.model.queried_tokens, off.model.hit_tokens) == (0, 0)


def test_a_turn_begins_with_what_was_written_in_the_one_before() -> None:
    engine = Engine()
    said = ModelTokens(4, None).text("hello", 64)
    engine.ask(prompt("a", 32), 64, said)
    engine.finish()
    engine.ask(prompt("a", 32) + said + prompt("b", 32), 1)
    engine.finish()
    assert engine.model.hit_tokens == 32 + 64 - 16  # the last token that is written is not read
    engine.ask(prompt("c", 32), 640, said * 10)
    engine.until(engine.now_s + 0.5)  # it still writes
    before = engine.model.hit_tokens
    engine.ask(prompt("c", 32) + said[: 4 * 40], 1)
    engine.until(engine.now_s + 0.1)
    assert engine.model.hit_tokens - before == 32 + 32


@pytest.mark.parametrize(
    ("asked", "hits"),
    [
        ("ABA", 48),  # both are there
        ("ABCA", 16),  # for C went what had no content, and the end of A
        ("ABACB", 64),  # A was used again, the end of B went for C
        ("ABACA", 96),
    ],
)
def test_what_was_used_longest_ago_makes_room(asked: str, hits: int) -> None:
    engine = Engine(replace(PLAIN, kv_tokens=128))  # of two prompts of 64, each with one answer
    for name in asked:
        engine.ask(prompt(name, 63), 1)
        engine.finish()
    assert engine.model.hit_tokens == hits


def test_of_a_prompt_the_end_is_forgotten_before_the_beginning() -> None:
    engine = Engine(replace(PLAIN, kv_tokens=160))
    for name, length in (("a", 96), ("b", 95), ("a", 96)):  # of ten blocks b takes two of a's six
        engine.ask(prompt(name, length), 1)
        engine.finish()
    assert engine.model.hit_tokens == 64


def test_of_sequences_that_outgrow_memory_the_last_starts_anew() -> None:
    engine = Engine(replace(PLAIN, kv_tokens=160))
    first, second = (engine.ask(prompt(name, 32), 100) for name in "ab")
    while not engine.model.preemptions:
        assert engine.model.next_s is not None
        engine.until(engine.model.next_s)
    assert (engine.model.running, engine.model.waiting) == (1, 1)
    kept = engine.model.written(second, engine.now_s)
    assert 0 < kept < engine.model.written(first, engine.now_s) + 2
    engine.finish()
    assert engine.done_s[first] == pytest.approx(0.0132 + 99 * 0.01 + 0.0032)
    assert engine.done_s[second] > engine.done_s[first] + (100 - kept) * 0.01
    assert engine.model.generated(engine.now_s) == 200  # what was written before is not again
    assert engine.model.prompt_tokens == 64
    assert engine.model.queried_tokens == 64  # nor is what is computed again asked for
    assert engine.model.kv_usage == 0


def test_the_gauge_of_memory_counts_what_sequences_use() -> None:
    engine = Engine(replace(PLAIN, kv_tokens=320))
    engine.ask(prompt("a", 79), 30)
    engine.until(0.05)
    assert engine.model.kv_usage == pytest.approx(6 / 20)
    engine.finish()
    assert engine.model.kv_usage == 0  # although five blocks keep what they hold


def test_one_that_leaves_frees_its_slot_and_its_memory() -> None:
    engine = Engine(replace(PLAIN, kv_tokens=480), slots=1)
    first, second, third = (engine.ask(prompt(name, 200), 100) for name in "abc")
    engine.until(0.5)
    engine.model.abort(0.5, second)  # waits
    engine.model.abort(0.5, first)  # writes
    engine.finish()
    assert list(engine.done_s) == [third]
    assert engine.model.kv_usage == 0


def test_nothing_longer_than_memory_is_taken() -> None:
    engine = Engine(replace(PLAIN, kv_tokens=100))
    engine.ask(prompt("a", 64), 32)
    with pytest.raises(ValueError, match="more than 96 tokens"):
        engine.ask(prompt("a", 64), 33)


def work(seed: int, rows: int) -> list[Row]:
    chance = random.Random(seed)
    shared = [prompt(f"shared {n}", 40) for n in range(5)]
    return [
        (chance.choice(shared) + prompt(str(n), chance.randint(1, 90)), chance.randint(1, 120))
        for n in range(rows)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_it_does_not_matter_how_often_time_is_looked_at(seed: int) -> None:
    """Steps that are alike are taken at once; all the same it is as if each had been."""
    tight = replace(PLAIN, kv_tokens=800, sequence_step_s=0.001)
    ends = []
    for looks in (0, 3):
        engine, chance = Engine(tight, slots=8), random.Random(seed)
        for at_s, row in sorted((chance.uniform(0, 5), row) for row in work(seed, 60)):
            between = sorted(random.Random(at_s).uniform(engine.now_s, at_s) for _ in range(looks))
            for now_s in (*between, at_s):
                engine.until(now_s)
            engine.ask(*row)
        engine.finish()
        model = engine.model
        assert model.preemptions
        assert model.kv_usage == 0
        assert model.generated(engine.now_s) == sum(write for _, write in work(seed, 60))
        ends.append((engine.now_s, model.preemptions, model.hit_tokens, model.queried_tokens))
    assert ends[0] == pytest.approx(ends[1])


def split(rows: Sequence[Row], replicas: int, to: list[int]) -> list[list[Row]]:
    return [
        [row for row, place in zip(rows, to, strict=True) if place == n] for n in range(replicas)
    ]


def test_rows_with_one_beginning_at_one_replica_are_read_less_and_answered_sooner() -> None:
    chance = random.Random(1)
    groups = [n % 60 for n in range(600)]
    chance.shuffle(groups)
    rows = [
        (prompt(f"prefix {group}", 1000) + prompt(str(n), 20), 8) for n, group in enumerate(groups)
    ]
    small = VllmOptions(kv_tokens=40_000)  # of 60 prefixes 20 fit, and a third is each replica's
    took, hits = {}, {}
    turns = {"in turn": [n % 3 for n in range(600)], "by prefix": [one % 3 for one in groups]}
    for name, to in turns.items():
        engines = [Engine(small) for _ in range(3)]
        parts = split(rows, 3, to)
        took[name] = max(one.answer(part, 4) for one, part in zip(engines, parts, strict=True))
        read = sum(one.model.queried_tokens for one in engines)
        hits[name] = sum(one.model.hit_tokens for one in engines) / read
    assert hits["by prefix"] > 0.85  # 9 of 10 rows, of 1,000 tokens of 1,020
    assert hits["in turn"] < 0.6
    assert took["by prefix"] < 0.7 * took["in turn"]


def test_throughput_has_its_peak_where_memory_is_full() -> None:
    """An engine whose memory holds 48 of its 256 slots: what docs/explanation/simulator.md says."""
    full = VllmOptions(kv_tokens=12_288, prefill_tokens_per_s=500.0, sequence_step_s=0.00003)
    rows = [(prompt(f"{n}", 16), 240) for n in range(600)]
    at_once, per_s, preempted = (12, 24, 48, 96, 256), {}, {}
    for many in at_once:
        engine = Engine(full, speed=8.0)
        per_s[many] = len(rows) / engine.answer(rows, many)
        preempted[many] = engine.model.preemptions
    assert max(per_s, key=per_s.__getitem__) == 48
    assert per_s[48] == pytest.approx(110, rel=0.1)
    assert per_s[256] == pytest.approx(23, rel=0.1)
    assert preempted[24] == 0
    assert preempted[48] == 0
    assert preempted[256] > len(rows)


def test_the_defaults_repeat_the_run_that_they_were_taken_from() -> None:
    """1,000 requests of ShareGPT at once: 229,711 tokens read, 203,068 written, 30.85 s."""
    chance = random.Random(1)
    lengths = [
        (min(1000.0, chance.lognormvariate(4.6, 1.2)), min(1000.0, chance.lognormvariate(5.0, 1.0)))
        for _ in range(1000)
    ]
    read, written = (sum(column) for column in zip(*lengths, strict=True))
    rows = [
        (prompt(str(n), max(1, round(p * 229_711 / read))), max(1, round(w * 203_068 / written)))
        for n, (p, w) in enumerate(lengths)
    ]
    engine = Engine(VllmOptions())
    assert engine.answer(rows, 1000) == pytest.approx(30.85, rel=0.1)
    assert engine.model.generated(engine.now_s) / engine.now_s == pytest.approx(6583, rel=0.1)


def test_answers_are_as_long_as_their_distribution_says() -> None:
    prompts = [f"prompt {n}" for n in range(2000)]
    drawn = ModelTokens(4, OutputTokens(median=200, sigma=1.2))
    lengths = [drawn.wanted(one) for one in prompts]
    assert median(lengths) == pytest.approx(200, rel=0.1)
    assert sum(lengths) / len(lengths) == pytest.approx(200 * 2.054, rel=0.2)  # exp(sigma² / 2)
    assert lengths == [drawn.wanted(one) for one in prompts]
    assert lengths != [
        replace(drawn, output=OutputTokens(200, 1.2, 1)).wanted(one) for one in prompts
    ]
    for length in (1, 2, 333):
        assert drawn.of(drawn.text("x", length)) == length
