"""A real vLLM on the CPU beside the simulator's model of it: `make test-vllm`.

Two replicas of each get the same requests, one after the other. What vLLM itself counts as hits of
its prefix cache is what the model counts.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.test_servers import Running, running, sim
from patience import limit_s, scaled, until
from slurm.test_real_vllm import make_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(scaled(900))]

BLOCK_TOKENS = 128  # vLLM's own on a CPU
BLOCKS = 80  # of 30 beginnings of four blocks a replica holds about half
VLLM_OWN_BLOCKS = 1  # kept empty
PREFIXES, ROWS_OF_EACH = 30, 4
QUERIES, HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"


@contextlib.contextmanager
def vllm(folder: Path, model: Path) -> Iterator[Running]:
    flags = ("--model", str(model), "--served-model-name", "m", "--enforce-eager")
    sizes = ("--max-model-len", "2048", "--max-num-seqs", "16", "--block-size", str(BLOCK_TOKENS))
    cache = ("--enable-prefix-caching", "--num-gpu-blocks-override", str(BLOCKS))
    module = "vllm.entrypoints.openai.api_server"
    with running(module, "VLLM_API_KEY", folder, *flags, *sizes, *cache) as server:
        yield server
        server.process.terminate()  # killed, it would leave its engine behind
        server.process.wait(limit_s())


def rows(seed: int) -> list[tuple[int, list[int]]]:
    """Groups of prompts, as ids of tokens, shuffled: those of a group begin alike."""
    chance = random.Random(seed)
    beginnings = [ids(chance, 4 * BLOCK_TOKENS) for _ in range(PREFIXES)]
    made = [
        (group, beginning + ids(chance, 40))
        for group, beginning in enumerate(beginnings)
        for _ in range(ROWS_OF_EACH)
    ]
    chance.shuffle(made)
    return made


def ids(chance: random.Random, many: int) -> list[int]:
    return [chance.randrange(10, 250) for _ in range(many)]


def hits(servers: list[Running], asked: list[tuple[int, list[int]]], to: list[int]) -> float:
    """The share of the tokens that were not read again, as the servers count."""
    before = [sum(one.metric(name) for one in servers) for name in (QUERIES, HITS)]
    for (_, prompt), place in zip(asked, to, strict=True):
        body: dict[str, Any] = {"model": "m", "prompt": prompt, "max_tokens": 2}
        assert servers[place].ask("/v1/completions", body)[0] == 200
    tokens = sum(len(prompt) for _, prompt in asked)
    until(lambda: sum(one.metric(QUERIES) for one in servers) - before[0] == tokens)
    return (sum(one.metric(HITS) for one in servers) - before[1]) / tokens


def test_its_prefix_cache_is_hit_as_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    folders = [tmp_path / name for name in ("vllm-0", "vllm-1", "sim-0", "sim-1")]
    for folder in folders:
        folder.mkdir()
    model = make_model(tmp_path / "model")
    memory = {
        "block_tokens": BLOCK_TOKENS,
        "kv_tokens": (BLOCKS - VLLM_OWN_BLOCKS) * BLOCK_TOKENS,
    }
    with contextlib.ExitStack() as stack:
        real = [stack.enter_context(vllm(folder, model)) for folder in folders[:2]]
        simulated = [
            stack.enter_context(sim(folder, vllm={"speed": 50, **memory})) for folder in folders[2:]
        ]
        share = {}
        for seed, policy in enumerate(("in turn", "by prefix")):
            asked = rows(seed)
            in_turn = [place % 2 for place in range(len(asked))]
            to = in_turn if policy == "in turn" else [group % 2 for group, _ in asked]
            share[policy] = hits(real, asked, to), hits(simulated, asked, to)
        print(f"hits of vLLM and of the model: {share}")
    for of_vllm, of_model in share.values():
        assert of_vllm == pytest.approx(of_model, rel=0.05)
    assert share["by prefix"][0] > 1.5 * share["in turn"][0]
