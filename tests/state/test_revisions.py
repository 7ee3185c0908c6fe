"""Databases of every revision that there ever was, and of ones that are yet to come."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from domyn_swarm.errors import StateError
from domyn_swarm.state import SwarmStore, read_revision
from domyn_swarm.state.revisions import known_revisions, stamp, upgrade
from domyn_swarm.state.tables import NEWEST_REVISION

MOMENT = "2026-01-01T12:00:00.000000+00:00"
ROWS: dict[str, dict[str, Any]] = {  # of the columns that there are, those that a revision has
    "swarms": {
        "tag": "old.1",
        "name": "old",
        "backend": "local",
        "phase": "stopped",
        "detail": "",
        "swarm_dir": "/old",
        "plan_json": "{}",
        "created_at": MOMENT,
        "updated_at": MOMENT,
    },
    "handles": {"tag": "old.1", "part_json": '{"kind": "endpoint"}'},
    "jobs": {
        "job_id": "j1",
        "name": "n",
        "swarm": "old",
        "platform": "local",
        "input": "i",
        "status": "succeeded",
        "job_dir": "/old/jobs/j1",
        "submitted_at": MOMENT,
    },
}


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def made_by_alembic(path: Path, revision: str) -> None:
    """A database as the domyn-swarm of that revision left it, with a row in every table."""
    path.parent.mkdir(mode=0o700)
    upgrade(path, to=revision)
    with opened(path) as connection:
        for table, row in ROWS.items():
            known = {column[1] for column in connection.execute(f"PRAGMA table_info({table})")}
            kept = {name: value for name, value in row.items() if name in known}
            names, places = ", ".join(kept), ", ".join("?" * len(kept))
            if kept:
                values = list(kept.values())
                connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", values)


def statements(path: Path) -> dict[str, str | None]:
    """By what each table and index was made, whatever the spaces."""
    with opened(path) as connection:
        made = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
    return {name: sql and "".join(sql.split()) for name, sql in made}


def test_the_tables_of_a_new_database_are_those_that_the_newest_migration_makes(
    swarm_home: Path, tmp_path: Path
) -> None:
    SwarmStore.open()
    assert known_revisions()[-1] == NEWEST_REVISION
    migrated = tmp_path / "migrated.db"
    upgrade(migrated)
    assert statements(swarm_home / "swarm.db") == statements(migrated)
    assert read_revision(swarm_home / "swarm.db") == NEWEST_REVISION


@pytest.mark.parametrize("revision", known_revisions())
def test_a_database_of_each_revision_is_upgraded_and_keeps_what_it_knew(
    swarm_home: Path, revision: str
) -> None:
    path = swarm_home / "swarm.db"
    made_by_alembic(path, revision)
    assert read_revision(path) == revision
    told = CommandLine(swarm_home).json("db", "upgrade")
    assert (told["before"], told["now"]) == (revision, NEWEST_REVISION)
    store = SwarmStore.open()
    [swarm] = store.swarms(include_stopped=True)
    assert (swarm.name, swarm.tag, swarm.parts) == ("old", "old.1", ({"kind": "endpoint"},))
    assert [job.job_id for job in store.jobs("old")] == ["j1"]


def test_a_database_of_a_newer_version_is_refused_by_every_command_and_left_alone(
    swarm_home: Path,
) -> None:
    path = swarm_home / "swarm.db"
    made_by_alembic(path, NEWEST_REVISION)
    with opened(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from-the-future'")
        connection.execute("ALTER TABLE swarms ADD COLUMN unheard_of TEXT")
    before = path.read_bytes()
    cli = CommandLine(swarm_home)
    for command in (["db", "upgrade"], ["swarm", "list"], ["db", "prune", "--yes"]):
        done = cli(*command)
        assert done.returncode == 3, done
        assert "is from a newer domyn-swarm (revision from-the-future)" in done.stderr
        assert "hint: Upgrade domyn-swarm" in done.stderr
        assert done.stdout == ""
    assert path.read_bytes() == before


def test_a_database_that_forgot_its_revision_is_stamped(swarm_home: Path) -> None:
    path = swarm_home / "swarm.db"
    made_by_alembic(path, NEWEST_REVISION)
    with opened(path) as connection:
        connection.execute("DROP TABLE alembic_version")
    cli = CommandLine(swarm_home)
    refused = cli("swarm", "list")
    assert refused.returncode == 3
    assert "domyn-swarm db stamp" in refused.stderr
    assert cli.json("db", "stamp")["now"] == NEWEST_REVISION
    assert [swarm.name for swarm in SwarmStore.open().swarms(include_stopped=True)] == ["old"]


def test_a_stamp_that_the_tables_belie_is_refused(swarm_home: Path) -> None:
    path = swarm_home / "swarm.db"
    made_by_alembic(path, NEWEST_REVISION)
    with opened(path) as connection:
        connection.execute("ALTER TABLE jobs ADD COLUMN unheard_of TEXT")
    with pytest.raises(StateError, match="are not those of revision"):
        stamp(path, None)
    with pytest.raises(StateError, match="There is no revision 'nonsense'"):
        stamp(path, "nonsense")
    with pytest.raises(StateError, match="no state database"):
        stamp(path.with_name("nothing.db"), None)
