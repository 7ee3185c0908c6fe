"""Revisions of the state database, through Alembic: list, upgrade and stamp."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from domyn_swarm.errors import StateError
from domyn_swarm.state.database_file import connect, revision_of, transaction
from domyn_swarm.state.tables import NEWEST_REVISION

_Shape = dict[str, set[str]]  # table → its columns


def known_revisions() -> list[str]:
    """All revisions, the oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def upgrade(path: Path, *, to: str = NEWEST_REVISION) -> None:
    """Run the missing migrations in one transaction. Safe with several programs at once.

    Raises:
        StateError: the database is from a newer version, has tables without a recorded revision,
            or cannot be used.
    """
    with transaction(path, writes=True) as connection:
        revision = revision_of(connection)
        if revision is None and _shape(connection):
            raise StateError(
                f"{path} has tables, but the revision of its schema is missing.",
                hint="Record it again with `domyn-swarm db stamp`.",
            )
        if revision is not None and revision not in known_revisions():
            raise StateError(
                f"{path} is from a newer domyn-swarm (revision {revision}).",
                hint="Upgrade domyn-swarm, or set DOMYN_SWARM_HOME to another folder.",
            )
        if revision != to:
            with _through_alembic(connection) as config:
                command.upgrade(config, to)


def stamp(path: Path, revision: str | None) -> None:
    """Record the revision of a database (None: the newest) without changing its tables.

    Raises:
        StateError: there is no database, no such revision, or the tables are those of another one.
    """
    revision = revision or NEWEST_REVISION
    if not path.is_file():
        raise StateError(f"There is no state database at {path}.", hint="Nothing to stamp.")
    if revision not in known_revisions():
        raise StateError(
            f"There is no revision {revision!r}.",
            hint=f"There are: {', '.join(known_revisions())}.",
        )
    with transaction(path, writes=True) as connection:
        if _shape(connection) != _shape_of(revision):
            raise StateError(
                f"The tables of {path} are not those of revision {revision}.",
                hint=f"Nothing was changed. The revisions are: {', '.join(known_revisions())}.",
            )
        with _through_alembic(connection) as config:
            command.stamp(config, revision, purge=True)


def _shape_of(revision: str) -> _Shape:
    """The tables of a revision, as Alembic creates them in an empty database."""
    with contextlib.closing(connect(":memory:")) as connection:
        with _through_alembic(connection) as config:
            command.upgrade(config, revision)
        return _shape(connection)


def _shape(connection: sqlite3.Connection) -> _Shape:
    tables = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    return {
        name: {
            column["name"]
            for column in connection.execute("SELECT name FROM pragma_table_info(?)", (name,))
        }
        for (name,) in tables
        if name != "alembic_version"
    }


@contextlib.contextmanager
def _through_alembic(connection: sqlite3.Connection) -> Iterator[Config]:
    """The configuration with which Alembic's commands use `connection` and its transaction, which
    is committed at the end of the block.

    Raises:
        sqlite3.Error: SQLite raised it.
    """
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.connect() as wrapped:
        try:
            yield _config(wrapped)
            wrapped.commit()
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise error.orig from error
            raise


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    scripts = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", scripts.replace("%", "%%"))  # ConfigParser syntax
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
