"""Removes patients' data of old runs and leaves what an audit asks: that, when, with what."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from service import __version__
from service.nightly.model import Statement
from service.storage.materials import ATTESTATIONS
from service.storage.models import (
    ChangeRow,
    CriterionRow,
    EvidenceRow,
    FactsRow,
    MaterialRow,
    NoteRow,
    PublicationRow,
    PurgeRow,
    RejectRow,
    RunMaterialRow,
    RunRow,
    RunVerdictRow,
    SubjectRow,
    VerdictRow,
)
from service.storage.store import Store


class Purged(NamedTuple):
    """What was removed, or would be: runs emptied, wordings of verdicts, records, rejects."""

    runs: int
    verdicts: int
    facts: int
    rejects: int


def purge(store: Store, before: str, *, rehearse: bool = False) -> Purged:
    """Remove the patients' data of runs that were last written before an instant (ISO, UTC).

    Of such a run remain: when it ran, on which source, with which versions and files (by
    digest), what it counted, the digest over its verdicts, and that it was purged. Verdicts
    and records that a newer run still rests on stay. Raises StoreBusy while a run goes on.
    """
    with store.locked():
        with store.database.writing() as connection:
            attempt = connection.begin_nested()
            done = _purge(connection, before, store.now())
            if rehearse:
                attempt.rollback()
        if not rehearse and done.runs:
            store.database.tidy()
    return done


def _purge(connection: Connection, before: str, now: str) -> Purged:
    rows = connection.execute(
        select(RunRow.id, RunRow.status, RunRow.statement).where(
            RunRow.touched < before, RunRow.purged.is_(None)
        )
    ).all()
    rejects = 0
    for run_id, status, statement in rows:
        rejects += connection.execute(delete(RejectRow).where(RejectRow.run_id == run_id)).rowcount
        for model in (RunVerdictRow, ChangeRow, NoteRow, PublicationRow):
            connection.execute(delete(model).where(model.run_id == run_id))
        connection.execute(
            update(RunRow)
            .where(RunRow.id == run_id)
            .values(
                purged=now,
                statement=_without_patients(statement),
                # What is left of an unfinished run can't be taken up again.
                status="finished" if status == "finished" else "abandoned",
            )
        )
    unused = VerdictRow.id.not_in(select(RunVerdictRow.verdict_id))
    for part in (EvidenceRow, CriterionRow):
        gone = part.verdict_id.in_(select(VerdictRow.id).where(unused))
        connection.execute(delete(part).where(gone))
    verdicts = connection.execute(delete(VerdictRow).where(unused)).rowcount
    _remove_subjects(connection)
    kept = select(RunVerdictRow.facts_id).where(RunVerdictRow.facts_id.is_not(None))
    facts = connection.execute(delete(FactsRow).where(FactsRow.id.not_in(kept))).rowcount
    _remove_attestations(connection)
    done = Purged(len(rows), verdicts, facts, rejects)
    if rows:
        audit = {"at": now, "before": before, "service": __version__}
        connection.execute(insert(PurgeRow), audit | done._asdict())
    return done


def _without_patients(statement: str | None) -> str | None:
    """Take the patients who failed out of a statement; their number stays."""
    if statement is None:
        return None
    found = msgspec.json.decode(statement, type=Statement)
    return msgspec.json.encode(replace(found, failures=())).decode()


def _remove_subjects(connection: Connection) -> None:
    """Remove the meaning of ids of whom no verdict is left."""
    left = select(RunVerdictRow.verdict_id).where(
        RunVerdictRow.trial == SubjectRow.trial, RunVerdictRow.patient == SubjectRow.patient
    )
    connection.execute(delete(SubjectRow).where(~left.exists()))


def _remove_attestations(connection: Connection) -> None:
    """Remove files of attestations, which name patients, that no run still rests on."""
    named = select(RunMaterialRow.digest).where(RunMaterialRow.name == ATTESTATIONS)
    used = (
        select(RunMaterialRow.digest)
        .join(RunRow, RunRow.id == RunMaterialRow.run_id)
        .where(RunRow.purged.is_(None))
    )
    connection.execute(
        delete(MaterialRow).where(MaterialRow.digest.in_(named), MaterialRow.digest.not_in(used))
    )
