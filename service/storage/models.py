"""The tables of the store.

A verdict is kept once per wording: a night on which nothing changed adds one row of
``run_verdicts`` per patient and nothing else. Nothing but ``purge`` ever removes or changes a
verdict. Instants are text in ISO form (UTC), which both databases compare alike.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only in a column of its type INTEGER.
_ID = BigInteger().with_variant(Integer(), "sqlite")


class Words(TypeDecorator[str]):
    """Text of any origin, compared by code point in both databases.

    PostgreSQL has no NUL in text, and no database has half a surrogate pair (which a file's
    name may hold): both are replaced, in what is kept and in what is looked for.
    """

    impl = Text().with_variant(Text(collation="C"), "postgresql")
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what a database can't hold."""
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {str: Words, int: _ID, bytes: LargeBinary}  # noqa: RUF012 - SQLAlchemy's


class RunRow(Base):
    """A search: what was asked, with which versions, and what was said at its end.

    ``key`` names it to the search that resumes it; ``attempts`` counts how often it was taken
    up, and keeps a process that lost its lock from writing on. ``status`` is ``running``,
    ``finished`` or ``abandoned``; ``versions``, ``environment`` and ``statement`` are JSON.
    ``fingerprint`` is a digest over all verdicts, which outlives them.
    """

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str]
    attempts: Mapped[int]
    started: Mapped[str]
    touched: Mapped[str]
    finished: Mapped[str | None]
    source: Mapped[str]
    as_of: Mapped[str]
    bulk: Mapped[str | None]
    cohort: Mapped[str | None]
    workers: Mapped[int]
    versions: Mapped[str]
    environment: Mapped[str]
    complete: Mapped[bool | None]
    statement: Mapped[str | None]
    fingerprint: Mapped[str | None]
    purged: Mapped[str | None]


class RunTrialRow(Base):
    """A trial of a run, in the order asked; ``previous`` is the run its changes are against."""

    __tablename__ = "run_trials"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    trial: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    previous: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))


class MaterialRow(Base):
    """A file that verdicts rest on (trial, code sets, site, attestations), compressed."""

    __tablename__ = "materials"

    digest: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[bytes]


class RunMaterialRow(Base):
    """A file that a run used; the digest outlives the file."""

    __tablename__ = "run_materials"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(index=True)


class NoteRow(Base):
    """What a search wants to find again: a name and a text, of one run."""

    __tablename__ = "run_notes"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class FactsRow(Base):
    """A patient's record as it was read (a line of a partition), compressed.

    ``names``: digests of what changes of it are told by (``service.nightly.names``).
    """

    __tablename__ = "facts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(unique=True)
    body: Mapped[bytes]
    names: Mapped[bytes | None]


class VerdictRow(Base):
    """One wording of a patient's verdict for a trial; never changed.

    ``body`` is the compressed line of JSON without its day of evaluation, which is the run's.
    """

    __tablename__ = "verdicts"
    __table_args__ = (UniqueConstraint("trial", "patient", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    trial: Mapped[str]
    patient: Mapped[str]
    digest: Mapped[str]
    code: Mapped[str]
    valid_until: Mapped[str | None]
    body: Mapped[bytes]


class CriterionRow(Base):
    """Outcome of a criterion or part within a verdict; ``parent`` is the id it is part of."""

    __tablename__ = "criteria"
    __table_args__ = (Index("ix_criteria_criterion_outcome", "criterion", "outcome"),)

    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    criterion: Mapped[str]
    parent: Mapped[str | None]
    kind: Mapped[str]
    outcome: Mapped[str]
    reason: Mapped[str]


class EvidenceRow(Base):
    """A resource that bears on a criterion of a verdict; what it says is in the verdict."""

    __tablename__ = "evidence"

    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(index=True)
    version: Mapped[str | None]


class RunVerdictRow(Base):
    """The verdict that a run gave on a patient, and the record it rests on if that is kept.

    ``steady_until``: the last day on which the same record gives the same line, but for its
    day; None: until the record changes.
    """

    __tablename__ = "run_verdicts"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    trial: Mapped[str] = mapped_column(primary_key=True)
    patient: Mapped[str] = mapped_column(primary_key=True)
    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id"), index=True)
    facts_id: Mapped[int | None] = mapped_column(ForeignKey("facts.id"), index=True)
    steady_until: Mapped[str | None]


class ChangeRow(Base):
    """What is different from the run before: of a patient (no criterion), or of a criterion.

    ``kind`` is that of ``service.storage.changes.Change``.
    """

    __tablename__ = "changes"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    trial: Mapped[str]
    patient: Mapped[str]
    kind: Mapped[str]
    criterion: Mapped[str | None]
    before: Mapped[str | None]
    before_reason: Mapped[str | None]
    after: Mapped[str | None]
    after_reason: Mapped[str | None]


class RejectRow(Base):
    """Input that a run could not use; holds no text of it."""

    __tablename__ = "rejects"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    file: Mapped[str | None]
    line: Mapped[int | None]
    type: Mapped[str | None]
    reference: Mapped[str | None]
    problem: Mapped[str]
    patient: Mapped[str | None]


class PurgeRow(Base):
    """That something was removed: when, of runs before which instant, and how much."""

    __tablename__ = "purges"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[str]
    before: Mapped[str]
    service: Mapped[str]
    runs: Mapped[int]
    verdicts: Mapped[int]
    facts: Mapped[int]
    rejects: Mapped[int]


class StoreKeyRow(Base):
    """A secret of this store, by name; made with the store and never changed."""

    __tablename__ = "store_keys"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class SubjectRow(Base):
    """Whom an id of a ResearchSubject means: a patient who was a candidate for a trial once.

    The id can't be computed without the store's key, so that it says nothing to others.
    """

    __tablename__ = "subjects"
    __table_args__ = (
        UniqueConstraint("trial", "patient"),
        Index("ix_subjects_trial_id", "trial", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    trial: Mapped[str]
    patient: Mapped[str]
    first_run: Mapped[int] = mapped_column(ForeignKey("runs.id"))


class PublicationRow(Base):
    """A resource that was written to a FHIR server; ``name`` is the patient of a ResearchSubject.

    ``sent`` is what was written last, ``seen`` how the server showed it then, with its
    ``version``; ``pending`` is what is about to be written: after a crash it tells this
    program's own change from a person's. ``run_id`` is the last run that asked for it.
    """

    __tablename__ = "publications"

    target: Mapped[str] = mapped_column(primary_key=True)
    trial: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    resource_id: Mapped[str | None]
    version: Mapped[str | None]
    sent: Mapped[bytes | None]
    seen: Mapped[bytes | None]
    pending: Mapped[bytes | None]
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    at: Mapped[str]


class DigestRow(Base):
    """What became of a run's digest on a channel (``mail``, ``webhook``).

    ``status``: ``sending`` (also after a crash), ``sent``, ``nothing`` (there was nothing to
    say), ``failed`` (to be sent later), ``uncertain`` (may have arrived; not sent again).
    """

    __tablename__ = "digests"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    channel: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    attempts: Mapped[int]
    at: Mapped[str]
    problem: Mapped[str | None]


class JobRow(Base):
    """A search that somebody asked the service for, or that its schedule did.

    ``key`` names it to callers; ``state`` is that of ``service.jobs.model.State``. ``asked``
    is JSON, ``digest`` one over it, by which the same request is known again. ``attempt``
    counts how often it was taken up, and keeps a worker that lost it from writing on;
    ``setbacks`` how often it was cut short by a fault or its worker's death. ``touched`` is
    the worker's last sign of life, ``due`` the instant before which it is not taken up.
    ``search`` and ``slot`` are the schedule's, ``requester`` is the caller's name.
    """

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(index=True)
    asked: Mapped[str]
    digest: Mapped[str]
    requester: Mapped[str | None]
    search: Mapped[str | None]
    slot: Mapped[str | None]
    attempt: Mapped[int]
    setbacks: Mapped[int]
    worker: Mapped[str | None]
    created: Mapped[str]
    due: Mapped[str]
    started: Mapped[str | None]
    touched: Mapped[str | None]
    finished: Mapped[str | None]
    stage: Mapped[str]
    done: Mapped[int]
    total: Mapped[int]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    complete: Mapped[bool | None]
    code: Mapped[str | None]
    problem: Mapped[str | None]


class SlotRow(Base):
    """A time at which a search of the schedule was due, and the job that it became.

    The first row of a search has no job: it notes when the search was first seen, so that
    no time before that is made up for.
    """

    __tablename__ = "slots"

    search: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[int | None] = mapped_column(ForeignKey("jobs.number"))
