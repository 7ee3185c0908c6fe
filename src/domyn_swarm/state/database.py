"""Opens the state database: created and upgraded on first use, safe with several programs at once.

The rollback journal is used and not WAL, whose shared memory is not safe on the network file
systems that cluster homes are. Writers queue for up to `BUSY_TIMEOUT_S`. Commands are short: the
standard library's driver is used as it is, and Alembic only where a migration has to be run.
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
from domyn_swarm.state.schema import NEWEST_REVISION, STATEMENTS

BUSY_TIMEOUT_S = 15.0

_creating = threading.Lock()  # no thread connects before the new file's creator has closed it


def open_database(path: Path) -> None:
    """Have an up-to-date database at `path`.

    Raises:
        StateError: the file is no database, is from a newer version, or cannot be written.
    """
    _create_private(path)
    with transaction(path) as connection:
        revision = revision_of(connection)
    revision = revision or _create_tables(path)
    if revision != NEWEST_REVISION:  # else Alembic, which is a third of a second, stays out
        from domyn_swarm.state.revisions import upgrade

        upgrade(path)


@contextlib.contextmanager
def transaction(path: Path, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
    """One transaction on the database as it is: committed at the end of the block, taken back
    where that raises.

    Raises:
        StateError: the file is no database, or cannot be used.
    """
    with _translated(path), contextlib.closing(connect(str(path))) as connection:
        # Taking the write lock at once queues writers; a lock taken later could only fail.
        connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            yield connection
            if connection.in_transaction:  # else Alembic has committed it
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # else SQLite has taken it back itself
                connection.execute("ROLLBACK")
            raise


def connect(database: str) -> sqlite3.Connection:
    """A connection to a file, or to memory; whoever uses it begins its transactions."""
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _create_private(path: Path) -> None:
    """Make the file private before it has content; leave one that exists alone.

    A file that SQLite may have open is never opened here: closing it would drop every lock that
    this process holds on it, another thread's transaction included.
    """
    try:
        private_dir(path.parent)
        with _creating, contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise _not_ours(path, str(error.strerror)) from error
    if not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        raise _not_ours(path, "it is no file that you may read and write")


def _create_tables(path: Path) -> str | None:
    """The newest tables, as the migrations make them, where there are none yet; the revision after
    that. Who comes second finds them there.
    """
    with transaction(path, writes=True) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            for statement in STATEMENTS:
                connection.execute(statement)
            connection.execute("INSERT INTO alembic_version VALUES (?)", (NEWEST_REVISION,))
        return revision_of(connection)


def _not_ours(path: Path, why: str) -> StateError:
    return StateError(
        f"The state database {path} cannot be opened: {why}.",
        hint="Set DOMYN_SWARM_HOME to a folder of yours.",
    )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait for the end of the block: a transaction that it breaks off may leave a
    connection that holds the lock for as long as the interruption is handled, in which others, and
    we ourselves, want to write.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield  # it does not come here, or raises nothing
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            usual(signal.SIGINT, came[0])


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what SQLite says into what a user can act on; Ctrl-C waits for the end of the block."""
    try:
        with _uninterrupted():
            yield
    except sqlite3.OperationalError as error:
        raise StateError(
            f"The state database {path} cannot be used: {error}.",
            hint="Another program may hold it, or the disk may be full; try again.",
        ) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a broken constraint is a bug
            raise
        raise StateError(
            f"{path} is not a usable state database: {error}.",
            hint="Move it away; `down` still finds what runs by the swarms' folders and tags.",
        ) from error


def revision_of(connection: sqlite3.Connection) -> str | None:
    """The revision that a database says it has; None: it says none."""
    tables = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
    if connection.execute(tables).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def read_revision(path: Path) -> str | None:
    """The revision that the database in a file says it has; None: none, or there is no file.

    Raises:
        StateError: it is no database.
    """
    if not path.exists():
        return None
    with transaction(path) as connection:
        return revision_of(connection)


def stamp_revision(path: Path, revision: str | None) -> None:
    """Write down of which revision a database is; None: the newest.

    Raises:
        StateError: there is no database, no such revision, or its tables are not those.
    """
    from domyn_swarm.state.revisions import stamp

    if not path.is_file():
        raise StateError(f"There is no state database at {path}.", hint="Nothing to stamp.")
    stamp(path, revision or NEWEST_REVISION)
