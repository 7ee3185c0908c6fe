"""The last lines of log files, and new ones as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_EVERY_S = 0.25
_BLOCK_BYTES = 64 * 1024


class LogReader:
    """Reads several logs; lines carry their log's label when there is more than one.

    Where each log ends is fixed when this is made: what comes later is new.
    """

    def __init__(self, files: Mapping[str, Path], last_lines: int) -> None:
        self._prefixes = {
            path: f"[{label}] " if len(files) > 1 else "" for label, path in files.items()
        }
        self._tails = {path: _tail(path, last_lines) for path in files.values()}

    def lines(self, *, follow: bool) -> Iterator[str]:
        """The last lines; with `follow` new whole lines too, without end."""
        for path, (tail, _) in self._tails.items():
            yield from self._labelled(path, tail)
        ends = {path: end for path, (_, end) in self._tails.items()}
        while follow:
            for path, end in ends.items():
                fresh = _whole_lines_from(path, end)
                ends[path] = end + len(fresh)
                yield from self._labelled(path, fresh)
            time.sleep(_EVERY_S)

    def _labelled(self, path: Path, content: bytes) -> Iterator[str]:
        for line in content.decode("utf-8", "replace").splitlines():
            yield self._prefixes[path] + line


def _tail(path: Path, lines: int) -> tuple[bytes, int]:
    """The last lines of a file, and its size; read from its end, however large it is."""
    try:
        with path.open("rb") as file:
            size = start = file.seek(0, 2)
            content = b""
            while start > 0 and content.count(b"\n") <= lines and lines > 0:
                step = min(_BLOCK_BYTES, start)
                start -= step
                file.seek(start)
                content = file.read(step) + content
    except FileNotFoundError:
        return b"", 0
    kept = content.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept), size


def _whole_lines_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
