"""`watchdog.db`: the history of the replicas' states. The collector is its only writer; its size is
bounded.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domyn_swarm.logs import get_logger
from domyn_swarm.model import ReplicaReport

_log = get_logger(__name__)

ROWS_KEPT = 20_000
MOST_EVENTS = 2_000  # rows returned to one reader at most
_PRUNE_EVERY = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replica_status (
    id INTEGER PRIMARY KEY,
    reported_at TEXT NOT NULL,
    replica INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    exit_code INTEGER,
    restarts INTEGER NOT NULL,
    http_status INTEGER,
    url TEXT,
    node TEXT,
    watchdog_pid INTEGER,
    engine_pid INTEGER,
    incarnation TEXT NOT NULL
)
"""
_COLUMNS = (
    *("reported_at", "replica", "state", "reason", "exit_code", "restarts", "http_status"),
    *("url", "node", "watchdog_pid", "engine_pid", "incarnation"),
)
_INSERT = (
    f"INSERT INTO replica_status ({', '.join(_COLUMNS)}) "  # noqa: S608 - names of our own
    f"VALUES ({', '.join(':' + name for name in _COLUMNS)})"
)
_READ = (
    f"SELECT {', '.join(_COLUMNS)} FROM replica_status "  # noqa: S608 - names of our own
    "WHERE reported_at >= ? ORDER BY id DESC LIMIT ?"
)
_PRUNE = "DELETE FROM replica_status WHERE id <= (SELECT MAX(id) FROM replica_status) - ?"


class History:
    """Writes state changes. Blocking; never raises: the endpoint must not fail because its history
    does.

    Threads may share it: an `append` that nothing waits for any more still runs when the endpoint
    ends, and SQLite does not survive being closed under it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._since_prune = _PRUNE_EVERY
        self._lock = threading.RLock()

    def append(self, reports: Sequence[ReplicaReport]) -> None:
        """Add these reports in one transaction; what cannot be written is logged and lost."""
        with self._lock:
            self._append(reports)

    def _append(self, reports: Sequence[ReplicaReport]) -> None:
        try:
            connection = self._connection = self._connection or self._open()
            with connection:
                connection.executemany(_INSERT, [one.model_dump(mode="json") for one in reports])
                self._since_prune += len(reports)
                if self._since_prune >= _PRUNE_EVERY:
                    connection.execute(_PRUNE, (ROWS_KEPT,))
                    self._since_prune = 0
        except sqlite3.Error as error:
            _log.warning("cannot write %s: %s", self._path, error)
            self.close()

    def read(self, since: str, most: int) -> list[dict[str, Any]]:
        """The newest changes since a moment (ISO 8601, UTC), the oldest first; none when the file
        cannot be read.
        """
        with self._lock:
            try:
                connection = self._connection = self._connection or self._open()
                rows = connection.execute(_READ, (since, most)).fetchall()
            except sqlite3.Error as error:
                _log.warning("cannot read %s: %s", self._path, error)
                return []
        return [dict(zip(_COLUMNS, row, strict=True)) for row in reversed(rows)]

    def _open(self) -> sqlite3.Connection:
        # One thread at a time, but not always the same. WAL is not safe on network file systems
        connection = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(_SCHEMA)
        return connection

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
