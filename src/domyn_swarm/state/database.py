"""Opens the state database: created and upgraded on first use, safe with several programs at once.

The rollback journal is used and not WAL, whose shared memory is not safe on the network file
systems that cluster homes are. Writers queue for up to `BUSY_TIMEOUT_S`.
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
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool, StaticPool

from domyn_swarm.errors import StateError
from domyn_swarm.paths import private_dir
from domyn_swarm.state.tables import METADATA, NEWEST_REVISION

BUSY_TIMEOUT_S = 15.0
_VERSION_TABLE = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)
"""

_creating = threading.Lock()  # no thread connects before the new file's creator has closed it


def open_database(path: Path) -> Engine:
    """An engine over an up-to-date database.

    Raises:
        StateError: the file is no database, is from a newer version, or cannot be written.
    """
    _create_private(path)
    engine = connectable(path)
    with translated(path):
        with engine.connect() as connection:
            revision = revision_of(connection)
        revision = revision or _create_tables(engine)
        if revision != NEWEST_REVISION:  # else Alembic, which is a third of a second, stays out
            from domyn_swarm.state.revisions import upgrade

            upgrade(engine, path)
    return engine


def connectable(path: Path | None) -> Engine:
    """An engine over a file as it is, or over memory: nothing is created or upgraded."""
    url = URL.create("sqlite", database=None if path is None else str(path))
    engine = create_engine(url, poolclass=StaticPool if path is None else NullPool)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


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


def _create_tables(engine: Engine) -> str | None:
    """The newest tables, as the migrations make them, where there are none yet; the revision after
    that. Who comes second finds them there.
    """
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if not connection.execute(text("SELECT 1 FROM sqlite_master")).all():
            METADATA.create_all(connection, checkfirst=False)
            connection.execute(text(_VERSION_TABLE))
            connection.execute(
                text("INSERT INTO alembic_version VALUES (:newest)"), {"newest": NEWEST_REVISION}
            )
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
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite says into what a user can act on; Ctrl-C waits for the end of the block."""
    try:
        with _uninterrupted():
            yield
    except OperationalError as error:
        raise StateError(
            f"The state database {path} cannot be used: {error.orig}.",
            hint="Another program may hold it, or the disk may be full; try again.",
        ) from error
    except DatabaseError as error:
        if type(error) is not DatabaseError:  # a broken constraint is a bug, not a broken file
            raise
        raise StateError(
            f"{path} is not a usable state database: {error.orig}.",
            hint="Move it away; `down` still finds what runs by the swarms' folders and tags.",
        ) from error


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin`, not by the driver
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    # Taking the write lock at once queues writers; a lock taken later could only fail.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def revision_of(connection: Connection) -> str | None:
    """The revision that a database says it has; None: it says none."""
    tables = connection.execute(
        text("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")
    ).all()
    if not tables:
        return None
    row: Any = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])


def read_revision(path: Path) -> str | None:
    """The revision that the database in a file says it has; None: none, or there is no file.

    Raises:
        StateError: it is no database.
    """
    if not path.exists():
        return None
    with translated(path), connectable(path).connect() as connection:
        return revision_of(connection)


def stamp_revision(path: Path, revision: str | None) -> None:
    """Write down of which revision a database is; None: the newest.

    Raises:
        StateError: there is no database, no such revision, or its tables are not those.
    """
    from domyn_swarm.state.revisions import stamp

    if not path.is_file():
        raise StateError(f"There is no state database at {path}.", hint="Nothing to stamp.")
    with translated(path):
        stamp(connectable(path), path, revision or NEWEST_REVISION)
