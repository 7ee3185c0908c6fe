"""Revisions of the state database, through Alembic: which there are, and moving between them."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from domyn_swarm.errors import StateError
from domyn_swarm.state.database import connectable, revision_of
from domyn_swarm.state.tables import NEWEST_REVISION

_Shape = dict[str, set[str]]  # table → its columns


def known_revisions() -> list[str]:
    """All revisions, the oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def upgrade(engine: Engine, path: Path, *, to: str = NEWEST_REVISION) -> None:
    """Run the missing migrations in one transaction; who comes second finds nothing to do.

    Raises:
        StateError: the database is from a newer version, or holds tables and says no revision.
    """
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        revision = revision_of(connection)
        if revision is None and _shape(connection):
            raise StateError(
                f"{path} holds tables but does not say of which revision they are.",
                hint="Somebody took that out: `domyn-swarm db stamp` writes it down again.",
            )
        if revision is not None and revision not in known_revisions():
            raise StateError(
                f"{path} is from a newer domyn-swarm (revision {revision}).",
                hint="Upgrade domyn-swarm, or set DOMYN_SWARM_HOME to another folder.",
            )
        if revision != to:
            command.upgrade(_config(connection), to)


def stamp(engine: Engine, path: Path, revision: str) -> None:
    """Write down of which revision a database is, without changing its tables.

    Raises:
        StateError: there is no such revision, or its tables are not those of this database.
    """
    if revision not in known_revisions():
        raise StateError(
            f"There is no revision {revision!r}.",
            hint=f"There are: {', '.join(known_revisions())}.",
        )
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if _shape(connection) != _shape_of(revision):
            raise StateError(
                f"The tables of {path} are not those of revision {revision}.",
                hint=f"Try another one of {', '.join(known_revisions())}; nothing was changed.",
            )
        command.stamp(_config(connection), revision, purge=True)


def _shape_of(revision: str) -> _Shape:
    """What Alembic makes of nothing."""
    engine = connectable(None)
    upgrade(engine, Path(":memory:"), to=revision)
    with engine.connect() as connection:
        found = _shape(connection)
    engine.dispose()
    return found


def _shape(connection: Connection) -> _Shape:
    seen = inspect(connection)
    return {
        table: {column["name"] for column in seen.get_columns(table)}
        for table in seen.get_table_names()
        if table != "alembic_version"
    }


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    scripts = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", scripts.replace("%", "%%"))  # it interpolates
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
