"""Programs of a task that run in virtual time."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import IO, cast

from domyn_swarm.backends.slurm.task import Child
from virtual_time import FilingClock

Life = tuple[float, int]  # after how long it ends by itself, and its exit code
FOR_EVER: Life = (math.inf, 0)
KILLED = -signal.SIGKILL


class Program:
    """One run of a program. Told to end, it takes its time and ends with 143."""

    pid = 4711

    def __init__(self, clock: FilingClock, life: Life, drains_s: float) -> None:
        self._clock = clock
        self._drains_s = drains_s
        self.told: list[tuple[float, int]] = []  # signals, and when
        self.began = clock.monotonic()
        self._ends, self._code = self.began + life[0], life[1]

    def poll(self) -> int | None:
        return self._code if self._clock.monotonic() >= self._ends else None

    def wait(self) -> int:
        code = self.poll()
        assert code is not None, "nothing else would happen meanwhile"
        return code

    def send_signal(self, number: int, /) -> None:
        self.told.append((self._clock.monotonic(), number))
        ends = self._clock.monotonic() + self._drains_s
        if ends < self._ends:
            self._ends, self._code = ends, 143

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Programs:
    """Starts them for a task. Each name has its lives, one after the other; then it runs on."""

    def __init__(self, clock: FilingClock, drains_s: float = 1.0) -> None:
        self._clock = clock
        self._drains_s = drains_s
        self._lives: dict[str, list[Life]] = {}
        self.runs: dict[str, list[Program]] = {}
        self.on_start: Callable[[str], object] = lambda _name: None

    def child(self, name: str, *lives: Life, again: bool = False, companion: bool = False) -> Child:
        self._lives[name] = list(lives)
        return Child([name], {}, cast("IO[bytes]", None), companion=companion, again=again)

    def start(self, child: Child) -> Program:
        [name] = child.command
        lives = self._lives[name]
        program = Program(self._clock, lives.pop(0) if lives else FOR_EVER, self._drains_s)
        self.runs.setdefault(name, []).append(program)
        self.on_start(name)
        return program
