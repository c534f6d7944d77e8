"""Jobs of the service, and the times at which searches of the schedule were due."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _words(name: str, *, null: bool = False) -> sa.Column[str]:
    kind = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=null)


def _whole(name: str, *more: sa.ForeignKey, null: bool = False) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, *more, nullable=null)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "jobs",
        _whole("number"),
        _words("key"),
        _words("state"),
        _words("asked"),
        _words("digest"),
        _words("requester", null=True),
        _words("search", null=True),
        _words("slot", null=True),
        _whole("attempt"),
        _whole("setbacks"),
        _words("worker", null=True),
        _words("created"),
        _words("due"),
        _words("started", null=True),
        _words("touched", null=True),
        _words("finished", null=True),
        _words("stage"),
        _whole("done"),
        _whole("total"),
        _whole("run_id", sa.ForeignKey("runs.id"), null=True),
        sa.Column("complete", sa.Boolean(), nullable=True),
        _words("code", null=True),
        _words("problem", null=True),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("key"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "slots",
        _words("search"),
        _words("slot"),
        _whole("job", sa.ForeignKey("jobs.number"), null=True),
        sa.PrimaryKeyConstraint("search", "slot"),
    )
