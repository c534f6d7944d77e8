"""Whose verdicts will soon no longer hold, told once."""

from __future__ import annotations

from datetime import date, timedelta

from sqlalchemy import and_, select

from service.storage.models import RunVerdictRow, VerdictRow
from service.storage.store import Run, Store

_INELIGIBLE = "ineligible"


def lapsing(store: Store, run: Run, trial: str, days: int) -> list[str]:
    """List a run's candidates whose verdicts lapse within some days, and did not before.

    Left out is who had the same last day in the run before, and had come that near then.
    """
    mine, old = RunVerdictRow.__table__.alias("mine"), RunVerdictRow.__table__.alias("old")
    verdict, before = VerdictRow.__table__.alias("v"), VerdictRow.__table__.alias("p")
    previous = run.previous.get(trial)
    query = (
        select(mine.c.patient)
        .join(verdict, verdict.c.id == mine.c.verdict_id)
        .where(
            mine.c.run_id == run.id,
            mine.c.trial == trial,
            verdict.c.code != _INELIGIBLE,
            verdict.c.valid_until.is_not(None),
            verdict.c.valid_until <= _later(run.spec.as_of, days),
        )
        .order_by(mine.c.patient)
    )
    if previous is not None:
        told = (
            select(old.c.verdict_id)
            .join(before, before.c.id == old.c.verdict_id)
            .where(
                and_(
                    old.c.run_id == previous,
                    old.c.trial == trial,
                    old.c.patient == mine.c.patient,
                    before.c.code != _INELIGIBLE,
                    before.c.valid_until == verdict.c.valid_until,
                    before.c.valid_until <= _later(store.run(previous).spec.as_of, days),
                )
            )
        )
        query = query.where(~told.exists())
    with store.database.reading() as connection:
        return list(connection.scalars(query))


def _later(day: str, days: int) -> str:
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()
