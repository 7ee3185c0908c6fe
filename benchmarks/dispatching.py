"""Measures what it is worth to send rows by what they begin with, and long ones before the end.

    python benchmarks/dispatching.py [--quick] [--write] [CASE ...]

Cases: shared (whole jobs over a swarm of three simulated vLLM engines), modelled (the same engines
in virtual time), turns, nothing, tail; all of them without a name. `--quick` divides the rows by
ten; `--write` appends the table to `RESULTS.md`. Figures of one run may be compared.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mock_host import scratch
from run import Line, write_table

from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.histograms import Dispatched
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowTrace, RowValue, current_trace
from domyn_swarm.batch.run.dispatch import Dispatch
from domyn_swarm.batch.run.lookahead import LookAhead
from domyn_swarm.batch.run.pending import PendingRows
from domyn_swarm.engines.sim_options import VllmOptions
from domyn_swarm.engines.sim_vllm import Sequence as Answer
from domyn_swarm.engines.sim_vllm import VllmModel
from domyn_swarm.model import Dispatching

PROGRAM = Path(sys.executable).with_name("domyn-swarm")
KEYS = RowKeys(("prompt",), None)
LETTERS = "abcdefghijklmnopqrstuvwxyz "
LOT_ROWS = 1000
ROUNDS = 1  # of each whole job, in turns; the best counts
# Sent by load, such engines have a third of the tokens in their caches, as those of the first
# measurement had; the defaults of the model have half of them.
KV_TOKENS = 250_000
SPEED = 0.25  # of the model's defaults: its simulators and the driver share two cores


def letters(number: int, seed: object) -> str:
    """Text that nothing else begins with."""
    return "".join(random.Random(repr(seed)).choices(LETTERS, k=number))


_LONG_TEXT = letters(1 << 18, "long")


def some_text(number: int, draw: random.Random) -> str:
    """So many letters, which begin like nothing else."""
    begin = draw.randrange(len(_LONG_TEXT))
    return (_LONG_TEXT[begin:] + _LONG_TEXT)[:number]


def shared_beginnings(rows: int, beginnings: int) -> list[str]:
    """Prompts of about 4,060 characters, of which 4,000 are one of so many beginnings, shuffled."""
    begins = [letters(4000, one) for one in range(beginnings)]
    texts = [f"{begins[row % beginnings]} {letters(60, ('row', row))}" for row in range(rows)]
    random.Random(1).shuffle(texts)
    return texts


def in_lots(texts: Sequence[str]) -> Iterator[PendingRows]:
    """The rows as an input gives them."""
    for begin in range(0, len(texts), LOT_ROWS):
        part = list(texts[begin : begin + LOT_ROWS])
        columns = pa.RecordBatch.from_pydict({"prompt": part})
        ordinals = np.arange(begin, begin + len(part))
        digests = np.ones((len(part), 2), np.uint64)
        yield PendingRows(ordinals, digests, columns, part)


def ahead(policy: Dispatching) -> LookAhead:
    """The look-ahead of a job."""
    return LookAhead(policy, KEYS, KEYS.input_columns, Dispatched())


def body_of(messages: list[dict[str, str]]) -> bytes:
    """A request."""
    return json.dumps({"model": "m", "messages": messages}).encode()


class Engines:
    """Modelled engines in virtual time, and who sends to them."""

    def __init__(self, replicas: int, options: VllmOptions, policy: Dispatching | None) -> None:
        """Without a policy the replica of a request is drawn by chance."""
        self.now_s = 0.0
        self.in_flight = 0
        self.dispatch = None if policy is None else Dispatch(policy)
        self._draw = random.Random(2)
        self.models: dict[str, VllmModel] = {}
        for number in range(replicas):
            url = f"http://node{number}:1"
            self.models[url] = VllmModel(options, 256, 1.0)
            if self.dispatch is not None:
                self.dispatch.offer(url)
        self._then: dict[Answer, Callable[[str], None]] = {}

    def ask(
        self, body: bytes, prompt: str, answer: str, then: Callable[[str], None], stay: str | None
    ) -> None:
        """Send a request; `then` is given the replica that has answered it."""
        if self.dispatch is None:
            url = self._draw.choice([*self.models])
        else:
            trace = RowTrace()
            trace.replica = stay
            current_trace.set(trace)
            url = self.dispatch.take(body) or ""
        tokens = len(prompt) // 4, len(answer) // 4
        sequence = self.models[url].submit(self.now_s, prompt + answer, *tokens)
        self._then[sequence] = then
        self.in_flight += 1

    def advance(self) -> None:
        """Let time pass until something is done."""
        self.now_s = min(one.next_s for one in self.models.values() if one.next_s is not None)
        for url, model in self.models.items():
            for done in model.advance(self.now_s):
                if self.dispatch is not None:
                    self.dispatch.release(url)
                self.in_flight -= 1
                self._then.pop(done)(url)

    def share_cached(self) -> float:
        """Of the tokens of all prompts."""
        asked = sum(one.queried_tokens for one in self.models.values())
        return sum(one.hit_tokens for one in self.models.values()) / asked

    def computed(self) -> int:
        """Tokens of prompts."""
        models = self.models.values()
        return sum(one.queried_tokens - one.hit_tokens for one in models)


def rows_per_s(
    texts: Sequence[str], policy: Dispatching, options: VllmOptions, at_once: int
) -> tuple[float, float]:
    """Of three modelled engines; and the share of the prompts' tokens that was cached."""
    engines = Engines(3, options, policy)
    rows = (text for lot in ahead(policy).ordered(in_lots(texts)) for text in lot.items or ())
    waiting = deque(rows)
    while waiting or engines.in_flight:
        while waiting and engines.in_flight < at_once:
            text = waiting.popleft()
            body = body_of([{"role": "user", "content": text}])
            engines.ask(body, text, "x" * 64, lambda _: None, None)
        engines.advance()
    return len(texts) / engines.now_s, engines.share_cached()


def ideal_rows_per_s(texts: Sequence[str], options: VllmOptions, at_once: int) -> float:
    """Each beginning is read once, at one engine, and all have the same number of rows."""
    ordered = sorted(texts)
    third = -(-len(ordered) // 3)
    took_s = []
    for begin in range(0, len(ordered), third):
        engine, now_s = VllmModel(options, 256, 1.0), 0.0
        waiting, in_flight = deque(ordered[begin : begin + third]), 0
        while waiting or in_flight:
            while waiting and in_flight < at_once // 3:
                text = waiting.popleft()
                engine.submit(now_s, text + "x" * 64, len(text) // 4, 16)
                in_flight += 1
            now_s = engine.next_s or now_s
            in_flight -= len(engine.advance(now_s))
        took_s.append(now_s)
    return len(texts) / max(took_s)


def modelled(scale: float) -> list[Line]:
    """6,000 rows over 600 beginnings in virtual time, at two sizes of KV memory."""
    texts = shared_beginnings(int(6000 * scale), int(600 * scale))
    lines = []
    for kv_tokens in (KV_TOKENS, 400_000, 150_000):
        options = VllmOptions(kv_tokens=int(kv_tokens * scale))
        by_load, cached = rows_per_s(texts, "least_load", options, 600)
        found, more_cached = rows_per_s(texts, "auto", options, 600)
        ideal = ideal_rows_per_s(texts, options, 600)
        what = f"modelled, KV memory of {kv_tokens:,} tokens: auto, against least_load / the ideal"
        figure = (
            f"{found:.0f} rows/s ({more_cached:.0%} cached) against {by_load:.0f} ({cached:.0%}): "
            f"{found / by_load:.2f} x; {found / ideal:.0%} of {ideal:.0f}"
        )
        lines.append(Line(what, figure, "≥ 3.5 x; ≥ 75 %"))
    return lines


def turns(scale: float) -> list[Line]:
    """Conversations of 6 turns over 64 replicas, 512 at once."""
    computed = []
    policies: tuple[Dispatching | None, ...] = (None, "least_load", "auto")
    for policy in policies:
        engines = Engines(64, VllmOptions(), policy)
        waiting = deque(range(max(512, int(3000 * scale))))
        while waiting or engines.in_flight:
            while waiting and engines.in_flight < 512:
                _converse(engines, waiting.popleft())
            engines.advance()
        computed.append(engines.computed())
    by_chance, by_load, found = computed
    figure = (
        f"{found / by_chance:.3f} x of {by_chance:,} tokens by chance (least_load: {by_load:,})"
    )
    what = "6 turns, 64 replicas: prompt tokens computed, against no affinity"
    return [Line(what, figure, "≤ 0.35 x")]


def _converse(engines: Engines, number: int, turns: int = 6) -> None:
    said: list[dict[str, str]] = []

    def turn(replica: str | None) -> None:
        if len(said) == 2 * turns:
            return
        said.append({"role": "user", "content": letters(800, (number, len(said)))})
        answer = letters(256, (number, len(said), "answer"))
        prompt = "".join(one["content"] for one in said)
        body = body_of(said)
        said.append({"role": "assistant", "content": answer})
        engines.ask(body, prompt, answer, turn, replica)

    turn(None)


class Heard:
    """A sink that keeps nothing."""

    def append(self, results: Sequence[Result]) -> None:
        """See `runner.Sink`."""


def tail(scale: float) -> list[Line]:
    """From 95 % of the rows to all; a row takes as long as its text is, over 256 slots."""
    lines = []
    policies: tuple[Dispatching, ...] = ("least_load", "auto")
    for rows in (int(12_000 * scale), int(40_000 * scale)):
        draw = random.Random(5)
        sizes = [int(100 * draw.lognormvariate(0, 1.2) + 1) for _ in range(rows)]
        texts = [some_text(size, draw) for size in sizes]
        tails = {policy: _tail_s(texts, policy) for policy in policies}
        shorter = 1 - tails["auto"] / tails["least_load"]
        figure = f"{tails['auto']:.1f} against {tails['least_load']:.1f} s: {shorter:.0%} shorter"
        what = f"tail, 95 % to 100 % of {rows:,} rows, lognormal (sigma 1.2), 256 slots, modelled"
        lines.append(Line(what, figure, "≥ 40 % shorter than in input order"))
    return lines


def _tail_s(texts: Sequence[str], policy: Dispatching) -> float:
    look = ahead(policy)
    sink = look.learning(Heard())
    running: list[tuple[float, float, int]] = []
    ends = []

    def finish() -> float:
        end, took_s, row = heapq.heappop(running)
        sink.append([Result(row, b"", RowValue(b"{}", b"", 1, 0, 0, took_s))])
        ends.append(end)
        return end

    now_s = 0.0
    for lot in look.ordered(in_lots(texts)):
        for row in lot.ordinals.tolist():
            if len(running) == 256:
                now_s = finish()
            took_s = len(texts[row]) / 100
            heapq.heappush(running, (now_s + took_s, took_s, row))
    while running:
        finish()
    return ends[-1] - ends[len(ends) * 95 // 100 - 1]


def nothing(scale: float) -> list[Line]:
    """Rows of 4,000 characters with nothing in common: what looking costs."""
    rows = int(40_000 * scale)
    texts = [letters(200, row) * 20 for row in range(rows)]
    bodies = [body_of([{"role": "user", "content": text}]) for text in texts[:10_000]]
    spent: dict[str, float] = {}
    policies: tuple[Dispatching, ...] = ("least_load", "auto")
    for policy in policies * 3:
        began = time.process_time()
        for lot in ahead(policy).ordered(in_lots(texts)):
            lot.rows(KEYS)
        ordered_s = (time.process_time() - began) / rows
        dispatch = Dispatch(policy)
        for number in range(3):
            dispatch.offer(f"http://node{number}:1")
        began = time.process_time()
        for body in bodies:
            dispatch.release(dispatch.take(body) or "")
        took_us = 1e6 * (ordered_s + (time.process_time() - began) / len(bodies))
        spent[policy] = min(took_us, spent.get(policy, took_us))
    more = spent["auto"] - spent["least_load"]
    figure = f"{more:.1f} µs more than least_load's {spent['least_load']:.1f} µs (reading included)"
    return [
        Line("nothing in common, 4,000 characters: CPU a row, order and choice", figure, "≤ 5 µs")
    ]


# -- whole jobs ----------------------------------------------------------------------------------


def call(*words: object) -> str:
    """Run the command; what it prints."""
    done = subprocess.run(
        [PROGRAM, *map(str, words)], capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shared(scale: float) -> list[Line]:
    """Whole jobs over three simulators on this machine, by `job submit`, in turns."""
    rows = int(6000 * scale)
    options = {
        "slots": 256,
        "vllm": {"kv_tokens": int(KV_TOKENS * scale), "speed": SPEED},
    }
    alike, single = (
        shared_beginnings(rows, int(600 * scale)),
        [letters(1000, n) for n in range(rows)],
    )
    what = f"{rows:,} rows over {int(600 * scale)} beginnings of 4,000 characters"
    cases: list[tuple[str, list[str], tuple[str, ...]]] = [
        (what, alike, ()),
        (f"{what}, 600 in flight", alike, ("--max-concurrency", "600")),
        (f"{rows:,} rows of 1,000 characters, nothing in common", single, ()),
    ]
    lines = []
    with scratch() as folder, _swarm(folder, options) as name:
        for number, (what, texts, flags) in enumerate(cases):
            best = {"least_load": (0.0, 0.0), "auto": (0.0, 0.0)}
            for turn in range(ROUNDS):
                for policy, before in best.items():
                    sent = ("--dispatch", policy, *flags)
                    done = _job(folder, name, texts, f"{number}-{turn}-{policy}", sent)
                    best[policy] = max(before, done)
            [(by_load, cached), (found, more_cached)] = best.values()
            figure = (
                f"{found:.0f} rows/s ({more_cached:.0%} cached) against {by_load:.0f} "
                f"({cached:.0%}): {found / by_load:.2f} x"
            )
            lines.append(Line(f"whole jobs, {what}: auto against least_load", figure))
    return lines


class _swarm:  # noqa: N801 - a context manager
    """A swarm of three simulators while the block runs."""

    def __init__(self, folder: Path, options: dict[str, object]) -> None:
        self._folder, self._options = folder, options

    def __enter__(self) -> str:
        os.environ["DOMYN_SWARM_HOME"] = str(self._folder / "home")
        config = {
            "name": "dispatching",
            "model": "m",
            "engine": "sim",
            "replicas": 3,
            "min_ready": 3,
            "backend": "local",
            "engine_options": self._options,
        }
        path = self._folder / "swarm.yaml"
        path.write_text(json.dumps(config))
        return call("up", "-c", path).strip()

    def __exit__(self, *_: object) -> None:
        call("down", "dispatching", "--yes")


def _job(
    folder: Path, swarm: str, texts: Sequence[str], number: str, flags: Sequence[str]
) -> tuple[float, float]:
    """Rows per second over the time of the rows, and the share of tokens that was cached."""
    source = folder / f"in-{number}.parquet"
    pq.write_table(pa.table({"prompt": list(texts)}), source)
    handle = call(
        *("job", "submit", "--name", swarm, "--input", source, "--input-column", "prompt"),
        *("--output", folder / f"out-{number}.parquet", "--checkpoint-tag", number, *flags),
    )
    job_id = json.loads(handle)["job_id"]
    account = json.loads(call("job", "status", job_id, "--json"))["account"]
    dispatch = account["dispatch"]
    share = dispatch["cached_share"] if dispatch else None
    return account["rows_per_s"], share or 0.0


CASES = {
    "modelled": modelled,
    "turns": turns,
    "tail": tail,
    "nothing": nothing,
    "shared": shared,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES])
    given = parser.parse_args()
    lines = []
    for name in given.cases or CASES:
        found = CASES[name](0.1 if given.quick else 1.0)
        for line in found:
            print(line.what, "|", line.figure, "|", line.goal, flush=True)
        lines += found
    if given.write:
        write_table("Rows by what they begin with", lines)


if __name__ == "__main__":
    main()
