"""The store as the service uses it: one writer at a time, any number of readers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from sqlalchemy import Connection, delete, insert, select, tuple_, update

from service.errors import StoreError, UsageError
from service.fhir.source import Fetched
from service.nightly.model import Outcome, Reject, RunSpec, Statement
from service.nightly.partition import decode_record
from service.storage.changes import Change, Side, changes_between
from service.storage.database import Database, open_database
from service.storage.models import (
    ChangeRow,
    CriterionRow,
    EvidenceRow,
    FactsRow,
    JobRow,
    MaterialRow,
    NoteRow,
    RejectRow,
    RunMaterialRow,
    RunRow,
    RunTrialRow,
    RunVerdictRow,
    StoreKeyRow,
    VerdictRow,
)
from service.storage.subjects import keep_subjects
from service.storage.wording import Wording, line_of, packed, unpacked, worded

_T = TypeVar("_T")
_BATCH = 200
# Rows come from the server as they are used, not all at once.
_STREAMED = {"yield_per": _BATCH}
_INELIGIBLE = "ineligible"
# What a verdict rests on beside the service, its mappings and the record.
_ENVIRONMENT = ("msgspec", "pyyaml", "tzdata")


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the store knows it.

    ``status``: ``running``, ``finished`` or ``abandoned`` (a later run began instead of its
    being taken up again). ``statement``: what it said at its end; after a purge without
    patients. ``fingerprint``: digest over its verdicts. ``previous``: per trial the run its
    changes are against. Instants are in ISO form.
    """

    id: int
    key: str
    status: str
    attempts: int
    started: str
    touched: str
    finished: str | None
    purged: str | None
    spec: RunSpec
    environment: Mapping[str, str]
    complete: bool | None
    statement: Statement | None
    fingerprint: str | None
    previous: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A verdict that a run gave: its line of JSON, as it was written."""

    trial: str
    patient: str
    code: str
    valid_until: str | None
    line: bytes


class Store:
    """A store that is open: reads; writes are made through ``locked``."""

    def __init__(self, database: Database, clock: Callable[[], datetime] | None = None) -> None:
        self.database = database
        self._clock = clock or _now

    @classmethod
    def open(cls, place: str, *, create: bool = True) -> Self:
        """Open a store by URL or file; raises ConfigurationError, StoreError, StoreBusy."""
        return cls(open_database(place, create=create))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def now(self) -> str:
        """Give the instant in ISO form (UTC)."""
        return self._clock().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    @contextmanager
    def locked(self) -> Iterator[Writer]:
        """Hold the store for one run; raises StoreBusy if another run does."""
        with self.database.locked():
            yield Writer(self)

    def busy(self) -> bool:
        """Tell whether a run holds the store now."""
        return self.database.busy()

    def runs(self) -> list[Run]:
        """List all runs, newest first."""
        with self.database.reading() as connection:
            ids = connection.scalars(select(RunRow.id).order_by(RunRow.id.desc())).all()
            return [_run(connection, found) for found in ids]

    def run(self, run_id: int) -> Run:
        """Find a run; raises UsageError."""
        with self.database.reading() as connection:
            return _run(connection, run_id)

    def latest(self, trial: str | None = None) -> Run | None:
        """Find the latest run that is finished and not purged (with a trial, if given).

        That of the latest day; what callers had searched over HTTP counts only if there is
        nothing else, since they may ask for any day and any few patients.
        """
        with self.database.reading() as connection:
            found = _latest(connection, trial, callers=False) or _latest(connection, trial)
            return None if found is None else _run(connection, found)

    def verdicts(
        self,
        run_id: int,
        *,
        trial: str | None = None,
        candidates: bool = False,
        as_of: str | None = None,
    ) -> Iterator[StoredVerdict]:
        """Go through a run's verdicts by patient, then trial in the order asked.

        ``candidates`` leaves out who is ineligible. ``as_of``: the day that the lines are to
        bear, if not the run's, for verdicts that hold on that day.
        """
        query = (
            select(RunVerdictRow.trial, RunVerdictRow.patient, VerdictRow.code,
                   VerdictRow.valid_until, VerdictRow.body, RunRow.as_of)
            .join(VerdictRow, VerdictRow.id == RunVerdictRow.verdict_id)
            .join(RunRow, RunRow.id == RunVerdictRow.run_id)
            .join(RunTrialRow, (RunTrialRow.run_id == RunVerdictRow.run_id)
                  & (RunTrialRow.trial == RunVerdictRow.trial))
            .where(RunVerdictRow.run_id == run_id)
            .order_by(RunVerdictRow.patient, RunTrialRow.position)
        )  # fmt: skip
        if trial is not None:
            query = query.where(RunVerdictRow.trial == trial)
        if candidates:
            query = query.where(VerdictRow.code != _INELIGIBLE)
        with (
            self.database.reading() as connection,
            connection.execute(query, execution_options=_STREAMED) as rows,
        ):
            for trial_id, patient, code, until, body, day in rows:
                line = line_of(body, as_of or day)
                yield StoredVerdict(trial_id, patient, code, until, line)

    def verdict(self, run_id: int, patient: str) -> list[StoredVerdict]:
        """Give a patient's verdicts of a run (``ID`` or ``Patient/ID``), one per trial."""
        query = (
            select(RunVerdictRow.trial, RunVerdictRow.patient, VerdictRow.code,
                   VerdictRow.valid_until, VerdictRow.body, RunRow.as_of)
            .join(VerdictRow, VerdictRow.id == RunVerdictRow.verdict_id)
            .join(RunRow, RunRow.id == RunVerdictRow.run_id)
            .where(RunVerdictRow.run_id == run_id, RunVerdictRow.patient.in_(_keys(patient)))
            .order_by(RunVerdictRow.trial)
        )  # fmt: skip
        with self.database.reading() as connection:
            return [
                StoredVerdict(trial, key, code, until, line_of(body, as_of))
                for trial, key, code, until, body, as_of in connection.execute(query)
            ]

    def facts(self, run_id: int, patient: str) -> Fetched | None:
        """Give the record that a run's verdicts on a patient rest on, if it is kept."""
        query = (
            select(FactsRow.body)
            .join(RunVerdictRow, RunVerdictRow.facts_id == FactsRow.id)
            .where(RunVerdictRow.run_id == run_id, RunVerdictRow.patient.in_(_keys(patient)))
            .limit(1)
        )
        with self.database.reading() as connection:
            body = connection.scalar(query)
        return None if body is None else decode_record(unpacked(body))

    def due(self, run_id: int, trial: str, as_of: str) -> Iterator[str]:
        """Go through a run's patients whose lines may read otherwise on a day.

        Not only outcomes: a reason or an age may have changed although all outcomes hold.
        """
        query = (
            select(RunVerdictRow.patient)
            .where(
                RunVerdictRow.run_id == run_id,
                RunVerdictRow.trial == trial,
                RunVerdictRow.steady_until < as_of,
            )
            .order_by(RunVerdictRow.patient)
        )
        with (
            self.database.reading() as connection,
            connection.execute(query, execution_options=_STREAMED) as rows,
        ):
            for (patient,) in rows:
                yield patient

    def names(self, run_id: int) -> Iterator[tuple[str, bytes | None]]:
        """Go through a run's patients, with what changes of their records are told by.

        By patient; one with verdicts for several trials comes several times. None for a
        record that wasn't kept.
        """
        query = (
            select(RunVerdictRow.patient, FactsRow.names)
            .outerjoin(FactsRow, FactsRow.id == RunVerdictRow.facts_id)
            .where(RunVerdictRow.run_id == run_id)
            .order_by(RunVerdictRow.patient)
        )
        with (
            self.database.reading() as connection,
            connection.execute(query, execution_options=_STREAMED) as rows,
        ):
            yield from ((patient, names) for patient, names in rows)

    def changes(self, run_id: int) -> Iterator[Change]:
        """Go through what changed against the run before, as kept at the run's end."""
        query = (
            select(ChangeRow.trial, ChangeRow.patient, ChangeRow.kind, ChangeRow.criterion,
                   ChangeRow.before, ChangeRow.before_reason, ChangeRow.after,
                   ChangeRow.after_reason)
            .where(ChangeRow.run_id == run_id)
            .order_by(ChangeRow.number)
        )  # fmt: skip
        with (
            self.database.reading() as connection,
            connection.execute(query, execution_options=_STREAMED) as rows,
        ):
            for row in rows:
                yield Change(*row)

    def diff(self, before: int, after: int) -> Iterator[Change]:
        """Go through what is different between two finished runs, for the trials of both.

        Raises UsageError for a run that isn't finished, or whose verdicts were purged.
        """
        with self.database.reading() as connection:
            runs = [_comparable(_run(connection, found)) for found in (before, after)]
            first, second = (Side(run.id, bool(run.complete)) for run in runs)
            shared = [trial for trial in runs[1].spec.trials if trial in runs[0].spec.trials]
            if not shared:
                raise UsageError(f"runs {before} and {after} have no trial in common")
            for trial in shared:
                yield from changes_between(connection, first, second, trial)

    def rejects(self, run_id: int) -> Iterator[Reject]:
        """Go through the input that a run could not use."""
        query = (
            select(RejectRow.file, RejectRow.line, RejectRow.type, RejectRow.reference,
                   RejectRow.problem, RejectRow.patient)
            .where(RejectRow.run_id == run_id)
            .order_by(RejectRow.number)
        )  # fmt: skip
        with (
            self.database.reading() as connection,
            connection.execute(query, execution_options=_STREAMED) as rows,
        ):
            for row in rows:
                yield Reject(*row)

    def subject_key(self) -> bytes:
        """Give the secret that the ids of candidates are made with: this store's own."""
        with self.database.reading() as connection:
            return _subject_key(connection)

    def notes(self, run_id: int) -> dict[str, str]:
        """Give what a run noted for later."""
        with self.database.reading() as connection:
            rows = connection.execute(
                select(NoteRow.name, NoteRow.value).where(NoteRow.run_id == run_id)
            )
            return {row.name: row.value for row in rows}

    def materials(self, run_id: int) -> dict[str, tuple[str, bytes | None]]:
        """Give the files that a run used: digest, and content unless it was purged."""
        query = (
            select(RunMaterialRow.name, RunMaterialRow.digest, MaterialRow.body)
            .outerjoin(MaterialRow, MaterialRow.digest == RunMaterialRow.digest)
            .where(RunMaterialRow.run_id == run_id)
        )
        with self.database.reading() as connection:
            return {
                name: (digest, None if body is None else unpacked(body))
                for name, digest, body in connection.execute(query)
            }


class Writer:
    """The right to write: held by one process at a time."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def begin(
        self, spec: RunSpec, *, key: str, materials: Mapping[str, bytes] | None = None
    ) -> OpenRun:
        """Begin a run, or take up the one that has this key.

        Another run that was left unfinished is thereby abandoned: it stays as it is. A
        finished run is given as it is, too: what is written to it must be what it holds.
        """
        database, now = self.store.database, self.store.now()
        with database.writing() as connection:
            found = connection.execute(
                select(RunRow.id, RunRow.status, RunRow.attempts, RunRow.purged).where(
                    RunRow.key == key
                )
            ).one_or_none()
            if found is not None and found.purged is not None:
                raise StoreError(f"run {found.id} was purged; begin anew with --fresh")
            connection.execute(
                update(RunRow)
                .where(RunRow.status == "running", RunRow.key != key)
                .values(status="abandoned")
            )
            if found is None:
                run_id, attempts = _insert_run(connection, spec, key, now), 1
                _insert_materials(connection, run_id, materials or {})
            else:
                run_id, attempts = found.id, found.attempts
                if found.status != "finished":
                    attempts += 1
                    connection.execute(
                        update(RunRow)
                        .where(RunRow.id == run_id)
                        .values(status="running", attempts=attempts, touched=now)
                    )
            run = _run(connection, run_id)
        if _asked(run.spec) != _asked(spec) or run.spec.versions != spec.versions:
            raise StoreError(f"run {run_id} was begun with other options or versions")
        return OpenRun(self.store, run, attempts)


class OpenRun:
    """A run that is being written; every call is kept whole or not at all, and may be repeated."""

    def __init__(self, store: Store, run: Run, attempts: int) -> None:
        self._store = store
        self._attempts = attempts
        self.run = run

    @property
    def id(self) -> int:
        """Give the run's number."""
        return self.run.id

    @property
    def is_finished(self) -> bool:
        """Tell whether the run was finished before."""
        return self.run.status == "finished"

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Keep verdicts, in batches; raises StoreError for one that contradicts a kept one."""
        for batch in _batches(outcomes):
            try:
                words = [worded(outcome.line) for outcome in batch]
            except msgspec.DecodeError as error:
                raise StoreError("a verdict can't be read") from error
            if any(word.as_of != self.run.spec.as_of for word in words):
                raise StoreError("a verdict is not of the run's day")
            with self._writing() as connection:
                facts = _keep_facts(connection, batch)
                verdicts = _keep_verdicts(connection, words)
                rows = [
                    {
                        "run_id": self.id,
                        "trial": word.trial,
                        "patient": word.patient,
                        "verdict_id": verdicts[word.trial, word.patient, word.digest],
                        "facts_id": None if outcome.record is None else facts[outcome.record],
                        "steady_until": outcome.steady_until,
                    }
                    for outcome, word in zip(batch, words, strict=True)
                ]
                self._keep(connection, rows)

    def carry(self, previous: int, trial: str, patients: Iterable[str]) -> int:
        """Take over the verdicts of another run for patients (keys); give their number.

        Of who has none there, none is taken over.
        """
        kept = 0
        for batch in _batches(patients):
            with self._writing() as connection:
                rows = connection.execute(
                    select(RunVerdictRow.patient, RunVerdictRow.verdict_id,
                           RunVerdictRow.facts_id, RunVerdictRow.steady_until).where(
                        RunVerdictRow.run_id == previous,
                        RunVerdictRow.trial == trial,
                        RunVerdictRow.patient.in_(batch),
                    )
                )  # fmt: skip
                carried = [
                    {"run_id": self.id, "trial": trial, "patient": patient,
                     "verdict_id": verdict, "facts_id": facts, "steady_until": steady}
                    for patient, verdict, facts, steady in rows
                ]  # fmt: skip
                self._keep(connection, carried)
                kept += len(carried)
        return kept

    def rejects(self, rejects: Iterable[Reject]) -> None:
        """Keep the input that could not be used, instead of what was kept of it before."""
        if self.is_finished:
            return
        with self._writing() as connection:
            connection.execute(delete(RejectRow).where(RejectRow.run_id == self.id))
            done = 0
            for batch in _batches(rejects):
                rows = [
                    {
                        "run_id": self.id,
                        "number": number,
                        "file": reject.file,
                        "line": reject.line,
                        "type": reject.type,
                        "reference": reject.reference,
                        "problem": reject.problem,
                        "patient": reject.patient,
                    }
                    for number, reject in enumerate(batch, done + 1)
                ]
                done += len(rows)
                connection.execute(insert(RejectRow), rows)

    def note(self, name: str, value: str) -> None:
        """Note a text for later under a name, instead of what was noted there before."""
        with self._writing() as connection:
            here = (NoteRow.run_id == self.id, NoteRow.name == name)
            connection.execute(delete(NoteRow).where(*here))
            connection.execute(insert(NoteRow), {"run_id": self.id, "name": name, "value": value})

    def finish(self, statement: Statement) -> Run:
        """Finish the run: keep its statement and what changed against the run before.

        A run that is finished already stays as it is.
        """
        if self.is_finished:
            return self.run
        with self._writing() as connection:
            now = self._store.now()
            connection.execute(delete(ChangeRow).where(ChangeRow.run_id == self.id))
            connection.execute(
                update(RunRow)
                .where(RunRow.id == self.id)
                .values(
                    complete=statement.complete,
                    statement=_json(statement),
                    fingerprint=_fingerprint(connection, self.id),
                )
            )
            done = 0
            for trial in self.run.spec.trials:
                found = _latest(connection, trial, like=self.run.spec)
                if found is None:
                    continue
                connection.execute(
                    update(RunTrialRow)
                    .where(RunTrialRow.run_id == self.id, RunTrialRow.trial == trial)
                    .values(previous=found)
                )
                before = Side(found, bool(_run(connection, found).complete))
                after = Side(self.id, statement.complete)
                changes = changes_between(connection, before, after, trial)
                for batch in _batches(changes):
                    rows = [
                        change._asdict() | {"run_id": self.id, "number": number}
                        for number, change in enumerate(batch, done + 1)
                    ]
                    done += len(rows)
                    connection.execute(insert(ChangeRow), rows)
            keep_subjects(connection, self.id, _subject_key(connection))
            connection.execute(
                update(RunRow)
                .where(RunRow.id == self.id)
                .values(status="finished", finished=now, touched=now)
            )
            self.run = _run(connection, self.id)
        return self.run

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Begin a transaction in which this process still is the one that writes the run."""
        with self._store.database.writing() as connection:
            query = select(RunRow.status, RunRow.attempts).where(RunRow.id == self.id)
            status, attempts = connection.execute(query.with_for_update()).one()
            if attempts != self._attempts or status == "abandoned":
                raise StoreError("another process has taken this run over")
            if not self.is_finished:
                connection.execute(
                    update(RunRow).where(RunRow.id == self.id).values(touched=self._store.now())
                )
            yield connection

    def _keep(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Add verdicts to the run; one that is there already must be the same."""
        found: dict[tuple[str, str], int] = {}
        for trial in {row["trial"] for row in rows}:
            if trial not in self.run.spec.trials:
                raise StoreError(f"run {self.id} is not of trial {trial[:64]!r}")
            patients = [row["patient"] for row in rows if row["trial"] == trial]
            there = connection.execute(
                select(RunVerdictRow.patient, RunVerdictRow.verdict_id).where(
                    RunVerdictRow.run_id == self.id,
                    RunVerdictRow.trial == trial,
                    RunVerdictRow.patient.in_(patients),
                )
            )
            found |= {(trial, patient): verdict for patient, verdict in there}
        fresh: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            place = row["trial"], row["patient"]
            if place not in found:
                found[place] = row["verdict_id"]
                fresh[place] = row
            elif found[place] != row["verdict_id"]:
                raise StoreError(
                    f"run {self.id} holds another verdict on a patient, and none is overwritten; "
                    "begin anew with --fresh"
                )
        if not fresh:
            return
        if self.is_finished:
            raise StoreError(f"run {self.id} is finished; begin anew with --fresh")
        connection.execute(insert(RunVerdictRow), list(fresh.values()))


def _now() -> datetime:
    return datetime.now(UTC)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _subject_key(connection: Connection) -> bytes:
    query = select(StoreKeyRow.value).where(StoreKeyRow.name == "subjects")
    return bytes.fromhex(connection.execute(query).scalar_one())


def _keys(patient: str) -> tuple[str, ...]:
    return (patient, f"Patient/{patient}")


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    batch: list[_T] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _asked(spec: RunSpec) -> tuple[object, ...]:
    """Give what a run is about: not with how many workers."""
    return spec.trials, spec.source, spec.as_of, spec.bulk, spec.cohort


def environment() -> dict[str, str]:
    """Give the versions of what verdicts rest on beside the service and its mappings."""
    found = {"python": platform.python_version()}
    for name in _ENVIRONMENT:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _insert_run(connection: Connection, spec: RunSpec, key: str, now: str) -> int:
    run_id = connection.execute(
        insert(RunRow).returning(RunRow.id),
        {
            "key": key,
            "status": "running",
            "attempts": 1,
            "started": now,
            "touched": now,
            "source": spec.source,
            "as_of": spec.as_of,
            "bulk": spec.bulk,
            "cohort": spec.cohort,
            "workers": spec.workers,
            "versions": _json(spec.versions),
            "environment": _json(environment()),
        },
    ).scalar_one()
    trials = [
        {"run_id": run_id, "trial": trial, "position": position}
        for position, trial in enumerate(spec.trials)
    ]
    if trials:
        connection.execute(insert(RunTrialRow), trials)
    return run_id


def _insert_materials(connection: Connection, run_id: int, materials: Mapping[str, bytes]) -> None:
    for name, body in sorted(materials.items()):
        digest = hashlib.sha256(body).hexdigest()
        there = select(MaterialRow.digest).where(MaterialRow.digest == digest)
        if connection.scalar(there) is None:
            connection.execute(insert(MaterialRow), {"digest": digest, "body": packed(body)})
        connection.execute(
            insert(RunMaterialRow), {"run_id": run_id, "name": name, "digest": digest}
        )


def _keep_facts(connection: Connection, batch: Sequence[Outcome]) -> dict[bytes, int]:
    """Keep records that are not kept yet; give the number of each."""
    digests = {
        outcome.record: hashlib.sha256(outcome.record).hexdigest()
        for outcome in batch
        if outcome.record is not None
    }
    names = {digests[each.record]: each.names for each in batch if each.record is not None}

    def kept() -> dict[str, int]:
        rows = connection.execute(
            select(FactsRow.digest, FactsRow.id).where(FactsRow.digest.in_(digests.values()))
        )
        return {row.digest: row.id for row in rows}

    found = kept()
    fresh = {digest: body for body, digest in digests.items() if digest not in found}
    if fresh:
        rows = [
            {"digest": digest, "body": packed(body), "names": names[digest]}
            for digest, body in fresh.items()
        ]
        connection.execute(insert(FactsRow), rows)
        found = kept()
    return {body: found[digest] for body, digest in digests.items()}


_Place = tuple[str, str, str]


def _keep_verdicts(connection: Connection, words: Sequence[Wording]) -> dict[_Place, int]:
    """Keep wordings that are not kept yet; give the number of each."""
    by_place = {(word.trial, word.patient, word.digest): word for word in words}

    def kept() -> dict[_Place, int]:
        rows = connection.execute(
            select(VerdictRow.trial, VerdictRow.patient, VerdictRow.digest, VerdictRow.id).where(
                tuple_(VerdictRow.trial, VerdictRow.patient, VerdictRow.digest).in_(list(by_place))
            )
        )
        return {(trial, patient, digest): number for trial, patient, digest, number in rows}

    found = kept()
    fresh = [word for place, word in by_place.items() if place not in found]
    if not fresh:
        return found
    connection.execute(
        insert(VerdictRow),
        [
            {
                "trial": word.trial,
                "patient": word.patient,
                "digest": word.digest,
                "code": word.code,
                "valid_until": word.valid_until,
                "body": packed(word.body),
            }
            for word in fresh
        ],
    )
    found = kept()
    criteria: list[dict[str, Any]] = []
    evidence: list[dict[str, Any]] = []
    for word in fresh:
        here = {"verdict_id": found[word.trial, word.patient, word.digest]}
        for position, line in enumerate(word.outline()):
            criteria.append(
                here
                | {
                    "position": position,
                    "criterion": line.criterion,
                    "parent": line.parent,
                    "kind": line.kind,
                    "outcome": line.outcome,
                    "reason": line.reason,
                }
            )
            evidence += [
                here | {"position": position, "number": number, "reference": named, "version": of}
                for number, (named, of) in enumerate(line.evidence)
            ]
    for model, rows in ((CriterionRow, criteria), (EvidenceRow, evidence)):
        if rows:
            connection.execute(insert(model), rows)
    return found


def _latest(
    connection: Connection,
    trial: str | None,
    *,
    like: RunSpec | None = None,
    callers: bool = True,
) -> int | None:
    """Find the latest finished run; ``like``: only of those that looked at the same patients.

    Otherwise whoever another search did not look at would seem to have gone.
    """
    query = (
        select(RunRow.id)
        .where(RunRow.status == "finished", RunRow.purged.is_(None))
        .order_by(RunRow.as_of.desc(), RunRow.finished.desc(), RunRow.id.desc())
        .limit(1)
    )
    if like is not None:
        query = query.where(
            RunRow.source == like.source,
            RunRow.bulk.is_not_distinct_from(like.bulk),
            RunRow.cohort.is_not_distinct_from(like.cohort),
            RunRow.as_of <= like.as_of,
        )
    if not callers:
        asked = select(JobRow.run_id).where(JobRow.search.is_(None), JobRow.run_id.is_not(None))
        query = query.where(RunRow.id.not_in(asked))
    if trial is not None:
        query = query.join(RunTrialRow, RunTrialRow.run_id == RunRow.id).where(
            RunTrialRow.trial == trial
        )
    return connection.scalar(query)


def _fingerprint(connection: Connection, run_id: int) -> str:
    """Give a digest over a run's verdicts: per patient and trial, the wording's own digest."""
    digest = hashlib.sha256()
    rows = connection.execute(
        select(RunVerdictRow.patient, RunVerdictRow.trial, VerdictRow.digest)
        .join(VerdictRow, VerdictRow.id == RunVerdictRow.verdict_id)
        .where(RunVerdictRow.run_id == run_id)
        .order_by(RunVerdictRow.patient, RunVerdictRow.trial),
        execution_options=_STREAMED,
    )
    for row in rows:
        digest.update("\t".join(row).encode() + b"\n")
    return digest.hexdigest()


def _run(connection: Connection, run_id: int) -> Run:
    row = connection.execute(select(RunRow.__table__).where(RunRow.id == run_id)).one_or_none()
    if row is None:
        raise UsageError(f"the store has no run {run_id}")
    trials = connection.execute(
        select(RunTrialRow.trial, RunTrialRow.previous)
        .where(RunTrialRow.run_id == run_id)
        .order_by(RunTrialRow.position)
    )
    previous = {found.trial: found.previous for found in trials}
    texts = dict[str, str]
    spec = RunSpec(
        tuple(previous), row.source, row.as_of, row.bulk, row.cohort, row.workers,
        msgspec.json.decode(row.versions, type=texts),
    )  # fmt: skip
    return Run(
        id=row.id,
        key=row.key,
        status=row.status,
        attempts=row.attempts,
        started=row.started,
        touched=row.touched,
        finished=row.finished,
        purged=row.purged,
        spec=spec,
        environment=msgspec.json.decode(row.environment, type=texts),
        complete=row.complete,
        statement=(
            None if row.statement is None
            else msgspec.json.decode(row.statement, type=Statement)
        ),
        fingerprint=row.fingerprint,
        previous=previous,
    )  # fmt: skip


def _comparable(run: Run) -> Run:
    if run.status != "finished":
        raise UsageError(f"run {run.id} is not finished, so nothing can be compared with it")
    if run.purged is not None:
        raise UsageError(f"the verdicts of run {run.id} were purged on {run.purged[:10]}")
    return run
