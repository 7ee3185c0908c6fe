"""Alembic's scripts, run by `state.database_file`."""
