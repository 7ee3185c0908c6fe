"""Alembic's entry: runs on the connection that `state.database` hands over."""

from alembic import context

from domyn_swarm.state.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
)
context.run_migrations()
