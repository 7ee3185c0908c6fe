"""Opens the state database: created and upgraded on first use, safe with several programs at once.

The rollback journal is used and not WAL, whose shared memory is not safe on the network file
systems that cluster homes are. Writers queue for up to `BUSY_TIMEOUT_S`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from domyn_swarm.errors import StateError
from domyn_swarm.paths import private_dir
from domyn_swarm.state.tables import NEWEST_REVISION

BUSY_TIMEOUT_S = 15.0

_creating = threading.Lock()  # no thread connects before the new file's creator has closed it


def open_database(path: Path) -> Engine:
    """An engine over an up-to-date database.

    Raises:
        StateError: the file is no database, is from a newer version, or cannot be written.
    """
    _create_private(path)
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    with translated(path), engine.connect() as connection:
        revision = _revision(connection)
        connection.rollback()
        if revision != NEWEST_REVISION:
            _upgrade(engine, path)
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


def _not_ours(path: Path, why: str) -> StateError:
    return StateError(
        f"The state database {path} cannot be opened: {why}.",
        hint="Set DOMYN_SWARM_HOME to a folder of yours.",
    )


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite says into what a user can act on."""
    try:
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


def _revision(connection: Connection) -> str | None:
    tables = connection.execute(
        text("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")
    ).all()
    if not tables:
        return None
    row: Any = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])


def _upgrade(engine: Engine, path: Path) -> None:
    """Run the missing migrations in one transaction; who comes second finds nothing to do."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    scripts = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", scripts.replace("%", "%%"))  # it interpolates
    config.set_main_option("path_separator", "os")
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        revision = _revision(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known:
            raise StateError(
                f"{path} is from a newer domyn-swarm (revision {revision}).",
                hint="Upgrade domyn-swarm, or set DOMYN_SWARM_HOME to another folder.",
            )
        if revision != NEWEST_REVISION:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
