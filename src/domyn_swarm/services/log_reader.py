"""Lines of several logs in the order of time, and new ones as they come.

Engines write times in their own ways, or none: a line without one belongs to the line before it.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

_EVERY_S = 0.25
_ENDED_EVERY = 8  # looks at the files between two looks whether there will be more
_BLOCK_BYTES = 64 * 1024
_TIME = re.compile(
    r"(?:(?P<year>\d{4})-)?(?P<month>\d\d)-(?P<day>\d\d)[T ]"
    r"(?P<clock>\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,6}))?(?P<zone>Z|[+-]\d\d:?\d\d)?"
)
_LOOKED_AT = 80  # characters of a line among which its time stands


class Line(NamedTuple):
    """A line of a log. Lines sort by time, and keep their order where it is the same."""

    at: float  # seconds since the epoch
    text: str


@dataclass(frozen=True)
class Log:
    """One file to read, and which of its lines to show."""

    path: Path
    label: str  # in front of its lines, unless empty
    group: str = ""  # those of a group share the number of last lines
    wanted: Callable[[str], bool] = lambda _line: True


@dataclass
class _Tail:
    """Where reading of a file has come to."""

    log: Log
    offset: int = 0
    inode: int = 0
    at: float = 0.0  # of the last line
    head: bool = field(default=True)  # nothing has been read of it

    def last(self, lines: int, *, whole: bool) -> list[Line]:
        """The last lines that are wanted; with `whole` one that is still being written waits."""
        try:
            with self.log.path.open("rb") as file:
                self._opened(file.fileno())
                content, self.offset = _end_of(file, lines, self.log.wanted)
        except FileNotFoundError:
            return []
        if whole:
            kept = content[: content.rfind(b"\n") + 1]
            self.offset -= len(content) - len(kept)
            content = kept
        found = self._lines(content)
        return found[-lines:] if lines else []

    def fresh(self) -> list[Line]:
        """Whole lines that were written since; of a file that was made anew, all of them."""
        try:
            with self.log.path.open("rb") as file:
                if self._opened(file.fileno()) or file.seek(0, 2) < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                content = file.read()
        except FileNotFoundError:
            return []
        content = content[: content.rfind(b"\n") + 1]
        self.offset += len(content)
        return self._lines(content)

    def _opened(self, descriptor: int) -> bool:
        """Note which file it is; whether it is another one than before."""
        seen = os.fstat(descriptor)
        before, self.inode = self.inode, seen.st_ino
        self.at = self.at or seen.st_ctime
        return before not in (0, seen.st_ino)

    def _lines(self, content: bytes) -> list[Line]:
        texts = content.decode("utf-8", "replace").splitlines()
        times = [time_of(text) for text in texts]
        at = next((one for one in times if one is not None), self.at)
        if self.head or at > self.at:  # what has no time yet is as old as the first that has one
            self.at = at
        self.head = False
        found = []
        for text, one in zip(texts, times, strict=True):
            self.at = self.at if one is None else one
            if self.log.wanted(text):
                found.append(Line(self.at, text))
        return found


class LogReader:
    """Reads several logs as one; where each of them ends is fixed when this is made.

    With `ended` new lines follow, until it says that there will be no more; `logs` is asked again
    meanwhile, since replicas may join.
    """

    def __init__(
        self,
        logs: Callable[[], Sequence[Log]],
        last_lines: int,
        ended: Callable[[], bool] | None = None,
    ) -> None:
        self._logs = logs
        self._last_lines = last_lines
        self._ended = ended
        self._tails: dict[Path, _Tail] = {}
        self._last = self._first()

    def lines(self) -> Iterator[str]:
        """The last lines, and those that follow."""
        yield from _shown(self._last)
        looks = 0
        while self._ended is not None:
            looks += 1
            over = looks % _ENDED_EVERY == 0 and self._ended()
            yield from _shown(self._fresh())
            if over:
                return
            time.sleep(_EVERY_S)

    def _first(self) -> list[tuple[Line, str]]:
        groups: dict[str, list[tuple[Line, str]]] = {}
        for log in self._logs():
            tail = self._tails[log.path] = _Tail(log)
            lines = tail.last(self._last_lines, whole=self._ended is not None)
            groups.setdefault(log.group, []).extend((line, log.label) for line in lines)
        found: list[tuple[Line, str]] = []
        for own in groups.values():
            found += deque(_in_order(own), self._last_lines)
        return found

    def _fresh(self) -> list[tuple[Line, str]]:
        for log in self._logs():
            if log.path not in self._tails:
                self._tails[log.path] = _Tail(log)
        return [(line, tail.log.label) for tail in self._tails.values() for line in tail.fresh()]


def _shown(found: list[tuple[Line, str]]) -> Iterator[str]:
    for line, label in _in_order(found):
        yield f"[{label}] {line.text}" if label else line.text


def _in_order(lines: Iterable[tuple[Line, str]]) -> list[tuple[Line, str]]:
    return sorted(lines, key=lambda one: one[0].at)


def _end_of(file: BinaryIO, lines: int, wanted: Callable[[str], bool]) -> tuple[bytes, int]:
    """The end of a file with so many wanted lines, and its size; not more is read of it."""
    size = start = file.seek(0, os.SEEK_END)
    blocks: list[bytes] = []  # the last one first; whole lines, looked at once
    rest: list[bytes] = []  # the same of what may be the end of a line that begins further up
    found = 0
    while start > 0 and lines > 0 and found <= lines:
        step = min(_BLOCK_BYTES, start)
        start -= step
        file.seek(start)
        block = file.read(step)
        begins = block.find(b"\n") + 1 if start > 0 else 0
        if start > 0 and not begins:
            rest.append(block)
            continue
        whole = block[begins:] + b"".join(reversed(rest))
        blocks.append(whole)
        rest = [block[:begins]]
        found += _count(whole, wanted)
    return b"".join(reversed(blocks)), size


def _count(content: bytes, wanted: Callable[[str], bool]) -> int:
    return sum(wanted(line) for line in content.decode("utf-8", "replace").splitlines())


def time_of(line: str) -> float | None:
    """When a line was written, by what stands at its beginning: `2026-01-31T10:00:00Z`,
    `2026-01-31 10:00:00,123` or `01-31 10:00:00`; without a zone, in this machine's.
    """
    found = _TIME.search(line[:_LOOKED_AT])
    if found is None:
        return None
    year = found["year"] or str(datetime.now(UTC).astimezone().year)
    fraction = (found["fraction"] or "0").ljust(6, "0")
    zone = "+00:00" if found["zone"] == "Z" else found["zone"] or ""
    text = f"{year}-{found['month']}-{found['day']}T{found['clock']}.{fraction}{zone}"
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
