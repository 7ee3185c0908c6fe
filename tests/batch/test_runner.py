"""The runner alone, over a transform in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from domyn_swarm.batch.rows import Result, Row, RowTrace
from domyn_swarm.batch.runner import Events, Runner, RunPolicy
from domyn_swarm.batch.tally import Tally


class Kept(list[Result]):
    """A sink in memory."""

    def append(self, results: Sequence[Result]) -> None:  # type: ignore[override]
        self.extend(results)


@pytest.mark.parametrize("when_s", [0.0, 0.0001, 0.004])
def test_a_limit_that_falls_sends_only_the_surplus_away(when_s: float) -> None:
    most: list[int] = []
    busy = 0

    async def transform(items: list[Any]) -> list[Any]:
        nonlocal busy
        busy += 1
        most.append(busy)
        await asyncio.sleep(0.001)
        busy -= 1
        return items

    async def run() -> Kept:
        kept = Kept()
        runner = Runner(
            transform, kept, RunPolicy(24), encode=repr_bytes, tally=Tally(), events=Events()
        )
        rows = iter([[Row(at, bytes(16), at)] for at in range(400)])
        running = asyncio.create_task(runner.run(rows))
        await asyncio.sleep(when_s)
        runner.set_limit(3)
        await running
        return kept

    kept = asyncio.run(run())
    assert sorted(result.ordinal for result in kept) == list(range(400))
    assert most[-100:].count(3) > 50
    assert max(most[-100:]) == 3


def repr_bytes(value: Any, _trace: RowTrace, _latency_s: float) -> bytes:
    return repr(value).encode()
