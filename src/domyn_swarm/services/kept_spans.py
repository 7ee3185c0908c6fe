"""The replicas' time of a swarm that is over, as stored: a line of JSON with the swarm and the
number of spans, then one line per span.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from domyn_swarm.backends.gpu_time import Span, Use
from domyn_swarm.backends.ledger import SwarmEntry
from domyn_swarm.paths import write_private
from domyn_swarm.services.usage_report import SwarmSpans, Used

_VERSION = 1
_WRONG = (ValueError, TypeError, KeyError, AttributeError, IndexError)


def keep_spans(path: Path, swarm_spans: SwarmSpans) -> None:
    """Write the spans of a swarm that is over, atomically.

    Raises:
        OSError: it cannot be written.
    """
    head = {
        "version": _VERSION,
        "jobs": swarm_spans.jobs,
        "allocations": swarm_spans.allocations,
        # Their number, so that a truncated file is recognized.
        "spans": sum(map(len, swarm_spans.spans.values())),
    }
    lines = [json.dumps(head)]
    for replica, spans in swarm_spans.spans.items():
        for one, used in zip(spans, swarm_spans.used[replica], strict=True):
            fields = [one.begin, one.end, one.use.value, one.cause, one.job, one.gpus]
            lines.append(json.dumps([replica, *fields, used]))
    write_private(path, "\n".join(lines) + "\n")


def read_spans(entry: SwarmEntry, path: Path) -> SwarmSpans:
    """The contents of a file written by `keep_spans`.

    Raises:
        OSError, ValueError: it cannot be read; a ValueError says where, and what to do.
    """
    kept = _Kept()
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                kept.take(json.loads(text))
                kept.lines += 1
        kept.check_whole()
    except _WRONG as error:
        raise ValueError(
            f"{path}, line {kept.lines + 1}: {error}. Remove that file: what the swarm's programs "
            f"wrote is read anew as long as {entry.swarm_dir} is there"
        ) from error
    return SwarmSpans(entry, kept.spans, kept.used, kept.allocations, kept.jobs)


class _Kept:
    """The lines of such a file."""

    def __init__(self) -> None:
        self.lines = 0
        self.spans: dict[int, list[Span]] = {}
        self.used: dict[int, list[Used | None]] = {}
        self.allocations: dict[int, int] = {}
        self.jobs: dict[str, tuple[str, str]] = {}
        self._promised: int | None = None  # spans; earlier versions did not write this

    def take(self, line: Any) -> None:  # noqa: ANN401 - JSON
        """Add a line."""
        if not self.lines:
            if not isinstance(line, dict) or line.get("version") != _VERSION:
                raise ValueError("it is of another version of domyn-swarm")
            self.jobs = {job: (str(name), str(user)) for job, (name, user) in line["jobs"].items()}
            self.allocations = {int(one): int(count) for one, count in line["allocations"].items()}
            self._promised = line.get("spans")
            return
        replica, begin, end, use, cause, job, gpus, energy = line
        span = Span(float(begin), float(end), Use(use), str(cause), job, int(gpus))
        self.spans.setdefault(int(replica), []).append(span)
        used = None if energy is None else Used(*map(float, energy))
        self.used.setdefault(int(replica), []).append(used)

    def check_whole(self) -> None:
        """Refuse a truncated file.

        Raises:
            ValueError: it is truncated.
        """
        if not self.lines or self._promised not in (None, self.lines - 1):
            raise ValueError("the file ends too soon")
