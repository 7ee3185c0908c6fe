"""The first tables: swarms, their handles, jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "swarms",
        sa.Column("tag", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("backend", sa.String, nullable=False),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("swarm_dir", sa.Text, nullable=False),
        sa.Column("plan_json", sa.Text, nullable=False),
        sa.Column("location_json", sa.Text),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("updated_at", sa.String, nullable=False),
    )
    op.create_table(
        "handles",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column(
            "tag", sa.String, sa.ForeignKey("swarms.tag", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("part_json", sa.Text, nullable=False),
    )
    op.create_index("ix_handles_tag", "handles", ["tag"])
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("external_id", sa.String),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("swarm", sa.String),
        sa.Column("platform", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("job_dir", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("output", sa.Text),
        sa.Column("handle_json", sa.Text),
        sa.Column("location_json", sa.Text),
        sa.Column("submitted_at", sa.String, nullable=False),
        sa.Column("ended_at", sa.String),
        sa.Column("exit_code", sa.Integer),
    )
    op.create_index("jobs_by_swarm", "jobs", ["swarm"])
    op.create_index("jobs_by_external_id", "jobs", ["external_id"])
    op.create_index("ix_jobs_submitted_at", "jobs", ["submitted_at"])


def downgrade() -> None:
    """Take back."""
    for table in ("jobs", "handles", "swarms"):
        op.drop_table(table)
