"""A program in a terminal: what it shows, and keys for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import warm
from patience import until

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-9;?<>=]*[a-zA-Z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[P_].*?\x1b\\|.)"
)


class Terminal:
    """A program that has a terminal of its own; killed when the block is left."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, columns: int = 80
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)
        self._said = b""
        self._pressed = 0  # how much it had shown when a key was pressed last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """What it has shown since a key was pressed last, without colours and movements."""
        return _ESCAPES.sub("", self._said[self._pressed :].decode("utf-8", "replace"))

    def until(self, wanted: str) -> None:
        """Read until it has shown this."""
        self._read_until(lambda: wanted in self.text, f"{wanted!r} was not shown")

    def press(self, keys: str) -> None:
        """Type."""
        self._pressed = len(self._said)
        os.write(self._ours, keys.encode())

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        self._read_until(lambda: self.process.poll() is not None, "it did not end")
        return int(self.process.returncode)

    def _read_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        def reached() -> bool:
            return condition() or (self._read() or condition())

        try:
            until(reached, every_s=0.0)
        except AssertionError as error:
            raise AssertionError(f"{otherwise}:\n{self.text}") from error

    def _read(self) -> None:
        if select.select([self._ours], [], [], 0.1)[0]:
            try:
                self._said += os.read(self._ours, 65536)
            except OSError:  # the other end is closed
                time.sleep(0.05)


@contextlib.contextmanager
def _own_terminal(columns: int) -> Iterator[tuple[int, str]]:
    """A terminal of 24 lines: the end that is read, and the file that programs open."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        yield ours, os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def screen(
    words: Sequence[str],
    environment: Mapping[str, str],
    *,
    columns: int = 80,
    entry: str = "domyn_swarm.cli.app:main",
) -> str:
    """What a program prints on a terminal of its own, without colours: `domyn-swarm WORDS`, forked
    from a process that has imported it.
    """
    shown = bytearray()
    with _own_terminal(columns) as (ours, name):
        env = {**environment, "TERM": "xterm-256color"}
        for size in ("COLUMNS", "LINES"):  # they would count for more than the terminal's own
            env.pop(size, None)
        program = warm.Program(entry, [*map(str, words)], env, name, name, name, str(Path.cwd()))
        process = warm.Process(program)

        def ended() -> bool:
            over = process.poll() is not None
            while select.select([ours], [], [], 0.05)[0]:
                shown.extend(os.read(ours, 65536))
            return over

        until(ended, every_s=0.0)
    return _ESCAPES.sub("", shown.decode("utf-8")).replace("\r\n", "\n")
