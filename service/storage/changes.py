"""What is different between two runs: per patient, and per criterion of a patient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Row, and_, select

from service.storage.models import CriterionRow, RunVerdictRow, VerdictRow

_CHUNK = 1_000
# More ids in one query than a database takes as parameters would be refused.
_IDS = 400


class Change(NamedTuple):
    """One difference.

    ``kind``: ``entered`` or ``left`` the population; ``not-evaluated-before`` or
    ``not-evaluated-now``, where a run was incomplete, so that nothing can be said of the
    patient; ``verdict``; ``criterion`` (or part), whose id is in ``criterion``. ``before``
    and ``after`` are verdicts or outcomes, with the reasons of a criterion's.
    """

    trial: str
    patient: str
    kind: str
    criterion: str | None = None
    before: str | None = None
    before_reason: str | None = None
    after: str | None = None
    after_reason: str | None = None


class Side(NamedTuple):
    """One of two runs to compare, and whether it evaluated everyone it had to."""

    run: int
    complete: bool


class _Given(NamedTuple):
    """A patient's verdicts of the two runs: row and code, or None."""

    patient: str
    before: tuple[int, str] | None
    after: tuple[int, str] | None


def changes_between(
    connection: Connection, before: Side, after: Side, trial: str
) -> Iterator[Change]:
    """Go through the differences for a trial, by patient, then in the protocol's order.

    Verdicts are kept once per wording, so that who is unchanged costs next to nothing.
    """
    start = ""
    while True:
        found = sorted(
            [
                *_of_one_side(connection, after, before, trial, start, new=True),
                *_of_one_side(connection, before, after, trial, start, new=False),
            ]
        )[:_CHUNK]
        if not found:
            return
        yield from _described(connection, trial, found, before, after)
        start = found[-1].patient


def _of_one_side(
    connection: Connection, here: Side, there: Side, trial: str, start: str, *, new: bool
) -> list[_Given]:
    """List patients after ``start`` of one run that differ from, or are not in, the other.

    The differing ones are listed on the newer side only.
    """
    mine, other = RunVerdictRow.__table__.alias("mine"), RunVerdictRow.__table__.alias("other")
    verdict, previous = VerdictRow.__table__.alias("v"), VerdictRow.__table__.alias("p")
    same_patient = and_(
        other.c.run_id == there.run,
        other.c.trial == mine.c.trial,
        other.c.patient == mine.c.patient,
    )
    query = (
        select(mine.c.patient, verdict.c.id, verdict.c.code, previous.c.id, previous.c.code)
        .select_from(
            mine.join(verdict, verdict.c.id == mine.c.verdict_id)
            .outerjoin(other, same_patient)
            .outerjoin(previous, previous.c.id == other.c.verdict_id)
        )
        .where(mine.c.run_id == here.run, mine.c.trial == trial, mine.c.patient > start)
        .order_by(mine.c.patient)
        .limit(_CHUNK)
    )
    missing = other.c.verdict_id.is_(None)
    if new:
        query = query.where(missing | (other.c.verdict_id != mine.c.verdict_id))
    else:
        query = query.where(missing)
    return [_given(row, new=new) for row in connection.execute(query)]


def _given(row: Row[str, int, str, int | None, str | None], *, new: bool) -> _Given:
    patient, verdict, code, previous, previous_code = row
    mine = (verdict, code)
    other = None if previous is None or previous_code is None else (previous, previous_code)
    return _Given(patient, other, mine) if new else _Given(patient, mine, other)


def _described(
    connection: Connection, trial: str, found: Sequence[_Given], before: Side, after: Side
) -> Iterator[Change]:
    criteria = _criteria(
        connection,
        [side[0] for given in found if given.before and given.after
         for side in (given.before, given.after)],
    )  # fmt: skip
    for patient, old, new in found:
        if old is None:
            assert new is not None
            kind = "entered" if before.complete else "not-evaluated-before"
            yield Change(trial, patient, kind, after=new[1])
        elif new is None:
            kind = "left" if after.complete else "not-evaluated-now"
            yield Change(trial, patient, kind, before=old[1])
        else:
            if old[1] != new[1]:
                yield Change(trial, patient, "verdict", before=old[1], after=new[1])
            yield from _of_criteria(trial, patient, criteria[old[0]], criteria[new[0]])


_Outcomes = dict[str, tuple[str, str]]


def _of_criteria(trial: str, patient: str, old: _Outcomes, new: _Outcomes) -> Iterator[Change]:
    for name in dict.fromkeys((*new, *old)):
        was, now = old.get(name, (None, None)), new.get(name, (None, None))
        if was != now:
            yield Change(trial, patient, "criterion", name, *was, *now)


def _criteria(connection: Connection, verdicts: Sequence[int]) -> dict[int, _Outcomes]:
    """Read outcome and reason of each criterion and part of some verdicts, in order."""
    found: dict[int, _Outcomes] = {verdict: {} for verdict in verdicts}
    wanted = sorted(found)
    for place in range(0, len(wanted), _IDS):
        rows = connection.execute(
            select(
                CriterionRow.verdict_id,
                CriterionRow.criterion,
                CriterionRow.outcome,
                CriterionRow.reason,
            )
            .where(CriterionRow.verdict_id.in_(wanted[place : place + _IDS]))
            .order_by(CriterionRow.verdict_id, CriterionRow.position)
        )
        for verdict, criterion, outcome, reason in rows:
            found[verdict][criterion] = (outcome, reason)
    return found
