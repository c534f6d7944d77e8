"""The first form of the store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _words(name: str, *, null: bool = False) -> sa.Column[str]:
    kind = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=null)


def _whole(name: str, *more: sa.ForeignKey, null: bool = False) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, *more, nullable=null)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary(), nullable=False)


def _run() -> sa.Column[int]:
    return _whole("run_id", sa.ForeignKey("runs.id"))


def _verdict() -> sa.Column[int]:
    return _whole("verdict_id", sa.ForeignKey("verdicts.id"))


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "runs",
        _whole("id"),
        _words("key"),
        _words("status"),
        _whole("attempts"),
        _words("started"),
        _words("touched"),
        _words("finished", null=True),
        _words("source"),
        _words("as_of"),
        _words("bulk", null=True),
        _words("cohort", null=True),
        _whole("workers"),
        _words("versions"),
        _words("environment"),
        sa.Column("complete", sa.Boolean(), nullable=True),
        _words("statement", null=True),
        _words("fingerprint", null=True),
        _words("purged", null=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
    )
    op.create_table(
        "run_trials",
        _run(),
        _words("trial"),
        _whole("position"),
        _whole("previous", sa.ForeignKey("runs.id"), null=True),
        sa.PrimaryKeyConstraint("run_id", "trial"),
    )
    op.create_table(
        "materials", _words("digest"), _bytes("body"), sa.PrimaryKeyConstraint("digest")
    )
    op.create_table(
        "run_materials",
        _run(),
        _words("name"),
        _words("digest"),
        sa.PrimaryKeyConstraint("run_id", "name"),
    )
    op.create_index("ix_run_materials_digest", "run_materials", ["digest"])
    op.create_table(
        "run_notes",
        _run(),
        _words("name"),
        _words("value"),
        sa.PrimaryKeyConstraint("run_id", "name"),
    )
    op.create_table(
        "facts",
        _whole("id"),
        _words("digest"),
        _bytes("body"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "verdicts",
        _whole("id"),
        _words("trial"),
        _words("patient"),
        _words("digest"),
        _words("code"),
        _words("valid_until", null=True),
        _bytes("body"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("trial", "patient", "digest"),
    )
    op.create_table(
        "criteria",
        _verdict(),
        _whole("position"),
        _words("criterion"),
        _words("parent", null=True),
        _words("kind"),
        _words("outcome"),
        _words("reason"),
        sa.PrimaryKeyConstraint("verdict_id", "position"),
    )
    op.create_index("ix_criteria_criterion_outcome", "criteria", ["criterion", "outcome"])
    op.create_table(
        "evidence",
        _verdict(),
        _whole("position"),
        _whole("number"),
        _words("reference"),
        _words("version", null=True),
        sa.PrimaryKeyConstraint("verdict_id", "position", "number"),
    )
    op.create_index("ix_evidence_reference", "evidence", ["reference"])
    op.create_table(
        "run_verdicts",
        _run(),
        _words("trial"),
        _words("patient"),
        _verdict(),
        _whole("facts_id", sa.ForeignKey("facts.id"), null=True),
        sa.PrimaryKeyConstraint("run_id", "trial", "patient"),
    )
    op.create_index("ix_run_verdicts_verdict_id", "run_verdicts", ["verdict_id"])
    op.create_index("ix_run_verdicts_facts_id", "run_verdicts", ["facts_id"])
    op.create_table(
        "changes",
        _run(),
        _whole("number"),
        _words("trial"),
        _words("patient"),
        _words("kind"),
        _words("criterion", null=True),
        _words("before", null=True),
        _words("before_reason", null=True),
        _words("after", null=True),
        _words("after_reason", null=True),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_table(
        "rejects",
        _run(),
        _whole("number"),
        _words("file", null=True),
        _whole("line", null=True),
        _words("type", null=True),
        _words("reference", null=True),
        _words("problem"),
        _words("patient", null=True),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_table(
        "purges",
        _whole("id"),
        _words("at"),
        _words("before"),
        _words("service"),
        _whole("runs"),
        _whole("verdicts"),
        _whole("facts"),
        _whole("rejects"),
        sa.PrimaryKeyConstraint("id"),
    )
