"""What serving, writing back and telling of results needs: ids of candidates, what was sent."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def _words(name: str, *, null: bool = False) -> sa.Column[str]:
    kind = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=null)


def _whole(name: str, *more: sa.ForeignKey) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, *more, nullable=False)


def upgrade() -> None:
    """Make the tables, and the store's own key."""
    keys = op.create_table(
        "store_keys", _words("name"), _words("value"), sa.PrimaryKeyConstraint("name")
    )
    op.bulk_insert(keys, [{"name": "subjects", "value": secrets.token_hex(32)}])
    op.create_table(
        "subjects",
        _words("id"),
        _words("trial"),
        _words("patient"),
        _whole("first_run", sa.ForeignKey("runs.id")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("trial", "patient"),
    )
    op.create_index("ix_subjects_trial_id", "subjects", ["trial", "id"])
    op.create_table(
        "publications",
        _words("target"),
        _words("trial"),
        _words("kind"),
        _words("name"),
        _words("resource_id", null=True),
        _words("version", null=True),
        sa.Column("sent", sa.LargeBinary(), nullable=True),
        sa.Column("seen", sa.LargeBinary(), nullable=True),
        sa.Column("pending", sa.LargeBinary(), nullable=True),
        _whole("run_id", sa.ForeignKey("runs.id")),
        _words("at"),
        sa.PrimaryKeyConstraint("target", "trial", "kind", "name"),
    )
    op.create_table(
        "digests",
        _whole("run_id", sa.ForeignKey("runs.id")),
        _words("channel"),
        _words("status"),
        _whole("attempts"),
        _words("at"),
        _words("problem", null=True),
        sa.PrimaryKeyConstraint("run_id", "channel"),
    )
