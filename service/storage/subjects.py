"""Candidates by opaque ids: who was one, and what a run says of them now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, true

from service.results.group import DROPPED, STATUS, subject_id
from service.storage.database import Database
from service.storage.models import RunVerdictRow, SubjectRow, VerdictRow

_BATCH = 200
_INELIGIBLE = "ineligible"


class Subject(NamedTuple):
    """A patient who is, or was, a candidate for a trial; ``status`` as of a run."""

    id: str
    trial: str
    patient: str
    status: str


class Shown(NamedTuple):
    """A trial and the run that is shown of it; ``complete`` if that evaluated everyone."""

    trial: str
    run: int
    complete: bool


class Filter(NamedTuple):
    """What is looked for; None: anything."""

    ids: Collection[str] | None = None
    patients: Collection[str] | None = None
    statuses: Collection[str] | None = None


class Place(NamedTuple):
    """Where a page begins: after an id, or (going back) before one."""

    id: str = ""
    back: bool = False


ANY = Filter()


def keep_subjects(connection: Connection, run_id: int, key: bytes) -> None:
    """Give ids to those of a run's candidates that have none yet."""
    named = select(SubjectRow.id).where(
        SubjectRow.trial == RunVerdictRow.trial, SubjectRow.patient == RunVerdictRow.patient
    )
    query = (
        select(RunVerdictRow.trial, RunVerdictRow.patient)
        .join(VerdictRow, VerdictRow.id == RunVerdictRow.verdict_id)
        .where(
            RunVerdictRow.run_id == run_id,
            VerdictRow.code != _INELIGIBLE,
            ~named.exists(),
        )
    )
    fresh = [
        {
            "id": subject_id(trial, patient, key),
            "trial": trial,
            "patient": patient,
            "first_run": run_id,
        }
        for trial, patient in connection.execute(query)
    ]
    for start in range(0, len(fresh), _BATCH):
        connection.execute(insert(SubjectRow), fresh[start : start + _BATCH])


def subjects(
    database: Database,
    shown: Sequence[Shown],
    wanted: Filter = ANY,
    *,
    place: Place | None = None,
    limit: int | None = None,
) -> list[Subject]:
    """List those who were candidates up to the runs shown, by id, from a place on.

    Of whom an incomplete run says nothing, nothing new is known: they stay what they were.
    """
    found: list[Subject] = []
    back = place is not None and place.back
    with database.reading() as connection:
        for one in shown:
            query = (
                select(SubjectRow.id, SubjectRow.trial, SubjectRow.patient, VerdictRow.code)
                .select_from(SubjectRow)
                .outerjoin(RunVerdictRow, _same_patient(one))
                .outerjoin(VerdictRow, VerdictRow.id == RunVerdictRow.verdict_id)
                .where(*_conditions(one, wanted))
                .order_by(SubjectRow.id.desc() if back else SubjectRow.id)
            )
            if place is not None and place.id:
                query = query.where(SubjectRow.id < place.id if back else SubjectRow.id > place.id)
            if limit is not None:
                query = query.limit(limit)
            found += [
                Subject(name, trial, patient, _status(code, complete=one.complete))
                for name, trial, patient, code in connection.execute(query)
            ]
    # Each trial's ids are in order; a page takes the nearest of all.
    found.sort(reverse=back)
    return sorted(found[:limit])


def count_subjects(database: Database, shown: Sequence[Shown], wanted: Filter = ANY) -> int:
    """Count what ``subjects`` would list without place and limit."""
    with database.reading() as connection:
        return sum(
            connection.scalar(
                select(func.count())
                .select_from(SubjectRow)
                .outerjoin(RunVerdictRow, _same_patient(one))
                .outerjoin(VerdictRow, VerdictRow.id == RunVerdictRow.verdict_id)
                .where(*_conditions(one, wanted))
            )
            or 0
            for one in shown
        )


def trial_of(database: Database, subject: str) -> str | None:
    """Find the trial of a candidate's id; None if there is no such id."""
    with database.reading() as connection:
        return connection.scalar(select(SubjectRow.trial).where(SubjectRow.id == subject))


def last_runs(
    database: Database, trial: str, patients: Collection[str], before: int
) -> dict[str, int]:
    """Find the last run before one that gave a verdict on each of some patients."""
    query = (
        select(RunVerdictRow.patient, func.max(RunVerdictRow.run_id))
        .where(
            RunVerdictRow.trial == trial,
            RunVerdictRow.patient.in_(patients),
            RunVerdictRow.run_id < before,
        )
        .group_by(RunVerdictRow.patient)
    )
    with database.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _same_patient(shown: Shown) -> ColumnElement[bool]:
    return and_(
        RunVerdictRow.run_id == shown.run,
        RunVerdictRow.trial == SubjectRow.trial,
        RunVerdictRow.patient == SubjectRow.patient,
    )


def _conditions(shown: Shown, wanted: Filter) -> list[ColumnElement[bool]]:
    conditions = [SubjectRow.trial == shown.trial, SubjectRow.first_run <= shown.run]
    if wanted.ids is not None:
        conditions.append(SubjectRow.id.in_(wanted.ids))
    if wanted.patients is not None:
        conditions.append(SubjectRow.patient.in_(wanted.patients))
    if wanted.statuses is not None:
        conditions.append(_has_status(shown, wanted.statuses))
    return conditions


def _has_status(shown: Shown, statuses: Collection[str]) -> ColumnElement[bool]:
    fails = VerdictRow.code == _INELIGIBLE
    absent = VerdictRow.code.is_(None)
    dropped = or_(fails, absent) if shown.complete else and_(~absent, fails)
    kept = VerdictRow.code != _INELIGIBLE if shown.complete else or_(~fails, absent)
    parts = [part for part, name in ((kept, STATUS), (dropped, DROPPED)) if name in statuses]
    return or_(*parts) if parts else ~true()


def _status(code: str | None, *, complete: bool) -> str:
    """Give the status of who has this verdict, or none, in a run."""
    if code is None:
        return DROPPED if complete else STATUS
    return DROPPED if code == _INELIGIBLE else STATUS
