"""A router that ends is started again, in virtual time: `program.RouterProcess`'s rules."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from domyn_swarm.backends.endpoint import address
from domyn_swarm.backends.endpoint.announcement import Announcement
from domyn_swarm.backends.endpoint.endpoint_program import SHUTDOWN_GRACE_S, RouterProcess
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.view import read_address
from endpoint.bench import Bench
from virtual_time import in_virtual_time, now_s


class Process:
    """A router that lives for so long, and ends on SIGTERM as late as it likes."""

    def __init__(self, lives_s: float, obeys_after_s: float | None = 0.0) -> None:
        self.pid = 1
        self.signals: list[str] = []
        self._obeys_after_s = obeys_after_s
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._end_in(lives_s, 1)

    def _end_in(self, seconds: float, code: int) -> None:
        def end() -> None:
            if not self._ended.done():
                self._ended.set_result(code)

        asyncio.get_running_loop().call_later(seconds, end)

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        self.signals.append("TERM")
        if self._obeys_after_s is not None:
            self._end_in(self._obeys_after_s, 0)

    def kill(self) -> None:
        self.signals.append("KILL")
        self._end_in(0, -9)


@dataclass
class Kept:
    """A router that is kept running, and its starts."""

    bench: Bench
    make: Callable[[int], Process]
    port: int | None = None
    starts: list[tuple[float, list[str]]] = field(default_factory=list)
    made: list[Process] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.bench.endpoint_spec(port=self.port)
        paths = self.bench.paths
        self.process = RouterProcess(SmgRouter(), spec, paths, self.moved.append, self._start)

    async def _start(self, argv: Sequence[str], _log: Path) -> Process:
        self.starts.append((now_s(), list(argv)))
        self.made.append(self.make(len(self.made)))
        return self.made[-1]

    async def run(self, seconds: float) -> None:
        running = asyncio.create_task(self.process.run())
        await asyncio.sleep(seconds)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def pauses(self, lived_s: float) -> list[float]:
        at = [began for began, _ in self.starts]
        return [round(later - earlier - lived_s, 3) for earlier, later in pairwise(at)]


@in_virtual_time
async def test_a_router_that_dies_at_once_is_started_with_growing_pauses_for_ever(
    bench: Bench,
) -> None:
    kept = Kept(bench, lambda _nth: Process(lives_s=0.25))
    await kept.run(3600)
    assert kept.pauses(0.25)[:8] == [0.5, 1, 2, 4, 8, 10, 10, 10]
    assert len(kept.starts) == pytest.approx(3600 / 10.25, abs=5)
    assert len(kept.moved) == len(kept.starts)
    assert len(set(kept.moved)) == 1  # clients find it where it was


@pytest.mark.parametrize(("lived_s", "forgiven"), [(59.0, False), (61.0, True)])
def test_a_router_that_served_for_a_minute_has_its_past_forgiven(
    bench: Bench, lived_s: float, forgiven: bool
) -> None:
    @in_virtual_time
    async def run() -> None:
        lives = [0.25] * 5 + [lived_s] + [0.25] * 100
        kept = Kept(bench, lambda nth: Process(lives[nth]))
        await kept.run(300)
        at = [began for began, _ in kept.starts]
        assert round(at[6] - at[5] - lived_s, 3) == (0.5 if forgiven else 10)

    run()


@in_virtual_time
async def test_a_port_that_was_taken_meanwhile_is_given_up_unless_it_is_configured(
    bench: Bench,
) -> None:
    kept = Kept(bench, lambda _nth: Process(lives_s=10.0))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asyncio.get_running_loop().call_later(
            5, lambda: (other.bind(("127.0.0.1", kept.moved[0])), other.listen())
        )
        await kept.run(30)
    assert kept.moved[1] != kept.moved[0]
    assert kept.moved[2] == kept.moved[1]

    port = address.free_port("127.0.0.1")
    kept = Kept(bench, lambda _nth: Process(lives_s=10.0), port=port)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        await kept.run(30)
    assert set(kept.moved) == {port}


@pytest.mark.parametrize(
    ("obeys_after_s", "at_work", "took_s", "signals"),
    [
        (0.5, True, 0.5, ["TERM"]),
        (SHUTDOWN_GRACE_S + 1.0, True, SHUTDOWN_GRACE_S + 1.0, ["TERM"]),
        (None, True, SHUTDOWN_GRACE_S + 2.0, ["TERM", "KILL"]),
        (None, False, 0.0, ["TERM", "KILL"]),
    ],
)
def test_how_long_it_may_take_to_end(
    bench: Bench, obeys_after_s: float | None, at_work: bool, took_s: float, signals: list[str]
) -> None:
    @in_virtual_time
    async def run() -> None:
        kept = Kept(bench, lambda _nth: Process(3600.0, obeys_after_s))
        await kept.run(10)
        began = now_s()
        await kept.process.stop(at_work=at_work)
        assert now_s() - began == took_s
        assert kept.made[0].signals == signals
        await kept.process.stop(at_work=at_work)  # it has ended: nobody is killed twice
        assert kept.made[0].signals == signals

    run()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
@in_virtual_time
async def test_what_a_full_disk_keeps_from_starting_is_started_later(
    bench: Bench, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = itertools.count()

    def make(_nth: int) -> Process:
        if next(attempts) < 3:
            raise OSError(number, os.strerror(number), "router.log")
        return Process(lives_s=3600.0)

    kept = Kept(bench, make)
    await kept.run(60)
    assert kept.pauses(0.0) == [0.5, 1, 2]
    assert os.strerror(number) in caplog.text


@in_virtual_time
async def test_a_router_that_is_not_installed_ends_the_endpoint(bench: Bench) -> None:
    def make(_nth: int) -> Process:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "python")

    with pytest.raises(FileNotFoundError):
        await Kept(bench, make).process.run()


async def test_metrics_of_another_version_are_no_metrics(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """smg renames a label: what it says is not read, and nothing ends for it."""

    async def metrics(_: RouterProcess) -> str:
        return '# TYPE smg_worker_requests_active gauge\nsmg_worker_requests_active{peer="x"} 1\n'

    monkeypatch.setattr(RouterProcess, "_metrics", metrics)
    kept = Kept(bench, lambda _nth: Process(3600.0))
    assert await kept.process.figures() is None


@in_virtual_time
async def test_an_address_that_cannot_be_written_is_written_as_soon_as_it_can(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    paths = bench.paths
    announcement = Announcement(paths, bench.endpoint_spec())
    paths.endpoint.mkdir(parents=True)  # a file cannot take the place of a folder
    keeping = asyncio.create_task(announcement.keep(4000))
    announcement.moved(5000)
    await asyncio.sleep(60)
    assert "cannot write" in caplog.text
    announcement.moved(5001)
    paths.endpoint.rmdir()
    await asyncio.sleep(5)
    assert read_address(paths).url.endswith(":5001")
    keeping.cancel()
    announcement.withdraw()
    assert not paths.endpoint.exists()
