"""The runner alone, over a transform in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from domyn_swarm.batch.outcomes.row_outcomes import Result, Row, RowError, RowTrace, current_trace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.runner import Events, Runner, RunPolicy
from virtual_time import in_virtual_time, now_s


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


class Panic(BaseException):
    """As a library in Rust raises it."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


async def library_cancels() -> None:
    waiting = asyncio.ensure_future(asyncio.Event().wait())
    waiting.cancel()
    await waiting


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


def raises(error: BaseException) -> None:
    raise error


# What user code does with one row, and what that row's error says.
MISDEEDS: dict[str, tuple[Any, str]] = {
    "a cancelled task of a library": (library_cancels, "CancelledError: CancelledError"),
    "its own task cancelled": (cancels_itself, "CancelledError: CancelledError"),
    "sys.exit": (lambda: raises(SystemExit("bye")), "SystemExit: bye"),
    "a panic": (lambda: raises(Panic("index out of bounds")), "Panic: index out of bounds"),
    "no text": (lambda: raises(Unprintable()), "Unprintable: Unprintable, which cannot be printed"),
    "half a character": (lambda: raises(ValueError("\ud800")), r"ValueError: \ud800"),
    "a bug": (lambda: raises(KeyError("answer")), "KeyError: 'answer'"),
}


@pytest.mark.parametrize("where", ["transform", "encode"])
@pytest.mark.parametrize("misdeed", MISDEEDS)
async def test_whatever_user_code_does_with_a_row_is_that_rows_error(
    where: str, misdeed: str
) -> None:
    do, said = MISDEEDS[misdeed]
    if where == "encode" and asyncio.iscoroutinefunction(do):
        pytest.skip("an encoder awaits nothing")

    async def transform(items: list[Any]) -> list[Any]:
        if where == "transform" and items[0] == 7 and (awaited := do()) is not None:
            await awaited
        await asyncio.sleep(0)
        return items

    def encode(value: Any, _trace: RowTrace, _latency_s: float) -> bytes:
        if where == "encode" and value == 7:
            do()
        return b"{}"

    kept = Kept()
    runner = Runner(transform, kept, RunPolicy(4), encode=encode, tally=Tally(), events=Events())
    await runner.run(iter([[Row(at, bytes(16), at)] for at in range(40)]))
    assert sorted(result.ordinal for result in kept) == list(range(40))
    [failed] = [result for result in kept if result.value.error]
    assert failed.ordinal == 7
    error = msgspec.json.decode(failed.value.error, type=RowError)
    assert f"{error.type}: {error.message}".startswith(said)


async def test_a_row_that_was_given_up_as_the_run_ends_has_no_error() -> None:
    """Whatever its code makes of its end: it is asked again by the next run."""

    async def transform(items: list[Any]) -> list[Any]:
        try:
            await asyncio.sleep(3600 if items[0] else 0.05)
        except asyncio.CancelledError:
            raise ValueError("interrupted") from None
        runner.stop()
        return items

    kept = Kept()
    policy = RunPolicy(4, grace_s=0.01)
    runner = Runner(transform, kept, policy, encode=repr_bytes, tally=Tally(), events=Events())
    await runner.run(iter([[Row(at, bytes(16), at)] for at in range(40)]))
    assert [result.ordinal for result in kept] == [0]


@pytest.mark.parametrize(("answered", "lasts_s"), [(False, 0.0), (True, 3.0)])
def test_rows_that_only_wait_for_an_endpoint_have_no_grace(answered: bool, lasts_s: float) -> None:
    @in_virtual_time
    async def run() -> None:
        """With `answered`, one of them has a request in flight."""

        async def transform(items: list[Any]) -> list[Any]:
            trace = current_trace.get()
            assert trace is not None
            trace.held = 1
            if answered and not items[0]:
                trace.asked = 1
                await asyncio.sleep(5.0)
                trace.asked = 0
                return items
            await asyncio.sleep(3600.0)
            return items

        kept = Kept()
        policy = RunPolicy(4, grace_s=20.0)
        runner = Runner(transform, kept, policy, encode=repr_bytes, tally=Tally(), events=Events())
        running = asyncio.create_task(
            runner.run(iter([[Row(at, bytes(16), at)] for at in range(40)]))
        )
        await asyncio.sleep(2.0)
        runner.stop()
        told_at = now_s()
        await running
        assert now_s() - told_at == pytest.approx(lasts_s, abs=0.5)
        assert [result.ordinal for result in kept] == ([0] if answered else [])

    run()


async def test_a_hook_that_fails_as_results_are_handed_over_ends_the_run() -> None:
    class Failing(Events):
        def on_batch(self, _results: Sequence[Result]) -> None:
            raise LookupError("no such handful")

    async def transform(items: list[Any]) -> list[Any]:
        return items

    kept = Kept()
    runner = Runner(
        transform, kept, RunPolicy(4), encode=repr_bytes, tally=Tally(), events=Failing()
    )
    with pytest.raises(LookupError, match="no such handful"):
        await runner.run(iter([[Row(at, bytes(16), at)] for at in range(40)]))
