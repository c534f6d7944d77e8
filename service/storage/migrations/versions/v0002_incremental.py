"""What a search needs that takes verdicts over from the one before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add how long a verdict's line stays as it is, and what names a record."""
    words = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.add_column("run_verdicts", sa.Column("steady_until", words, nullable=True))
    op.add_column("facts", sa.Column("names", sa.LargeBinary(), nullable=True))
