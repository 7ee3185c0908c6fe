"""The file of the state database: connections and transactions, safe between concurrent programs.

It uses the rollback journal instead of WAL, whose shared memory is not safe on the network file
systems of cluster homes. Writers queue for up to `BUSY_TIMEOUT_S`. Commands are short-lived, so it
uses the standard library's driver, and loads Alembic only if a migration has to be run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from domyn_swarm.errors import StateError
from domyn_swarm.paths import private_dir
from domyn_swarm.state.tables import NEWEST_REVISION, STATEMENTS

BUSY_TIMEOUT_S = 15.0

_creating = threading.Lock()  # a thread must not connect before the creating one closes the file


@contextlib.contextmanager
def transaction(path: Path, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
    """A transaction: committed at the end of the block, rolled back if the block raises.

    Raises:
        StateError: the file is not a database, or cannot be used.
    """
    with _translated(path), contextlib.closing(connect(str(path))) as connection:
        # IMMEDIATE queues writers; upgrading a read lock later fails if another program writes.
        connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            yield connection
            if connection.in_transaction:  # Alembic commits by itself
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # after some errors SQLite rolls back by itself
                connection.execute("ROLLBACK")
            raise


def connect(database: str) -> sqlite3.Connection:
    """A connection to a file or `:memory:`, without implicit transactions."""
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def create_private(path: Path) -> None:
    """Create the file with mode 0600, unless it exists.

    An existing file is not opened here: closing it would drop every lock that this process holds on
    it, including those of another thread's transaction.
    """
    try:
        private_dir(path.parent)
        with _creating, contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise _cannot_open(path, str(error.strerror)) from error
    if not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        raise _cannot_open(path, "it is not a file that you may read and write")


def create_tables(path: Path) -> str | None:
    """Create the newest tables, unless there are tables; the database's revision afterwards.

    The check and the creation are one transaction: of two programs, one creates the tables.
    """
    with transaction(path, writes=True) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            for statement in STATEMENTS:
                connection.execute(statement)
            connection.execute("INSERT INTO alembic_version VALUES (?)", (NEWEST_REVISION,))
        return revision_of(connection)


def _cannot_open(path: Path, why: str) -> StateError:
    return StateError(
        f"The state database {path} cannot be opened: {why}.",
        hint="Set DOMYN_SWARM_HOME to a folder that you own.",
    )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block.

    An interrupted transaction may leave a connection that holds the lock until the interruption has
    been handled. Meanwhile this program itself could not write.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # the signal is handled in another thread, or raises nothing
        return
    delayed: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _number, frame: delayed.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if delayed:
            handler(signal.SIGINT, delayed[0])


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as `StateError`; delay Ctrl-C to the end of the block."""
    try:
        with _uninterrupted():
            yield
    except sqlite3.OperationalError as error:
        raise StateError(
            f"The state database {path} cannot be used: {error}.",
            hint="Another program may have locked it, or the disk may be full. Try again.",
        ) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a broken constraint is a bug
            raise
        raise StateError(
            f"{path} is not a usable state database: {error}.",
            hint="Move it away. `domyn-swarm down NAME` still stops swarms, by their folders and "
            "tags.",
        ) from error


def revision_of(connection: sqlite3.Connection) -> str | None:
    """The revision that a database records; None if it records none."""
    tables = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
    if connection.execute(tables).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def read_revision(path: Path) -> str | None:
    """The revision that the database at `path` records; None if it records none or does not exist.

    Raises:
        StateError: the file is not a database.
    """
    if not path.exists():
        return None
    with transaction(path) as connection:
        return revision_of(connection)
