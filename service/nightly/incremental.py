"""A search that reads what changed since an earlier one, and takes the other verdicts over.

A verdict is taken over only if the same search of everything would give the same line today,
but for its day: nothing that its record is made of changed, and its texts hold on this day.
Whatever makes that doubtful makes the search read everything, and say why.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from service.errors import ConfigurationError, SourceError
from service.fhir.bulk import BulkClient, BulkRequest, Export, deleted_references
from service.fhir.bundles import head_of
from service.fhir.crawl import Unread
from service.fhir.index import subject_key
from service.fhir.manifest import read_manifest
from service.fhir.record import Item
from service.fhir.source import Fetched
from service.nightly.changed import Changes, aliases_of, changes_in, deleted, joined
from service.nightly.directory import listing
from service.nightly.engine import Engine, Searched
from service.nightly.fetching import Part, incomplete, lines_of
from service.nightly.model import Failure, Night, Outcome, Reject, RunSpec
from service.nightly.names import digest_of, hits, own_names, owners_in
from service.nightly.partition import REFERRED, decode_record, encode_record
from service.nightly.population import interest_of, local
from service.nightly.tally import Tally
from service.nightly.work import Work, write_whole
from service.storage.store import Run, Store, environment

__all__ = [
    "NOTE",
    "Base",
    "Chosen",
    "Exported",
    "Incremental",
    "Incrementally",
    "Kept",
    "NotIncremental",
    "base_for",
    "base_of",
    "kept_of",
]

NOTE = "incremental"
# The server's clock and what it had not written yet when it took the time.
_MARGIN = timedelta(minutes=10)
# Beyond this share of the population, or this many, reading everything is the simpler way.
_TOO_MANY = 0.5
_MOST_NEWCOMERS = 5_000
# Patients whose records are read in one step.
_CHUNK = 50


class NotIncremental(Exception):
    """Why a search has to read everything; the text is for the statement."""


class Kept(msgspec.Struct):
    """What a search notes for the next one, in the store.

    ``mode``: ``bulk`` or ``search``. ``since``: the instant whose state was read (ISO).
    ``full``: the day of the last search that read everything; ``seen``: how many patients
    it saw. ``types``: what was exported; ``base``: the server's address. ``outside``:
    patients outside a population (key, last day on which that is certain); ``strangers``,
    ``links``: of ``Searched``; ``again``: keys of patients to be read again in any case.
    ``otherwise``: records of others than the members name their patients otherwise than by
    id, if at all: an export of single patients may leave them out.
    """

    mode: str
    since: str
    full: str
    seen: int
    types: tuple[str, ...] = ()
    base: str | None = None
    outside: tuple[tuple[str, str | None], ...] = ()
    strangers: tuple[str, ...] = ()
    links: tuple[tuple[str, str, str], ...] = ()
    again: tuple[str, ...] = ()
    otherwise: bool = False


@dataclass(frozen=True, slots=True)
class Base:
    """The run whose verdicts are taken over, what it noted, and its rejected input."""

    run: Run
    kept: Kept
    rejects: tuple[Reject, ...]

    @property
    def since(self) -> str:
        """Give the instant from which changes are asked for, a little early."""
        then = datetime.fromisoformat(self.kept.since) - _MARGIN
        return then.isoformat(timespec="seconds").replace("+00:00", "Z")


class Chosen(msgspec.Struct):
    """The run that a search goes on from (kept as its checkpoint), or why it reads all."""

    run: int | None
    why: str = ""


def base_of(store: Store, run: int) -> Base:
    """Read what a run left to go on from."""
    kept = msgspec.json.decode(store.notes(run)[NOTE], type=Kept)
    return Base(store.run(run), kept, tuple(store.rejects(run)))


def base_for(store: Store, spec: RunSpec, mode: str, every: int, own: int) -> int:
    """Find the run to go on from; raises NotIncremental with the reason if there is none.

    ``every``: after how many days everything is read, whatever changed; ``own``: the run of
    this search.
    """
    why = "nothing was searched before"
    for run in store.runs():
        if run.id == own or run.status != "finished" or run.purged is not None:
            continue
        asked = run.spec.trials, run.spec.source, run.spec.bulk, run.spec.cohort
        if asked != (spec.trials, spec.source, spec.bulk, spec.cohort):
            continue
        if run.spec.versions != spec.versions or run.environment != environment():
            changed = _changed(run.spec.versions, spec.versions) or "its environment"
            raise NotIncremental(f"{changed} changed since the last search")
        try:
            _judge(store.notes(run.id).get(NOTE), run, spec, mode, every)
            return run.id
        except NotIncremental as reason:
            why = str(reason) if why.startswith("nothing") else why
    raise NotIncremental(why)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    return ", ".join(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))


def _judge(noted: str | None, run: Run, spec: RunSpec, mode: str, every: int) -> None:
    if noted is None:
        raise NotIncremental("the last search noted nothing to go on from")
    kept = msgspec.json.decode(noted, type=Kept)
    if kept.mode != mode:
        raise NotIncremental("the last search read the source in another way")
    if run.spec.as_of > spec.as_of:
        raise NotIncremental("the last search was of a later day")
    age = (date.fromisoformat(spec.as_of) - date.fromisoformat(kept.full)).days
    if age >= every:
        raise NotIncremental(f"everything was last read {age} days ago")
    assert run.statement is not None
    if run.statement.problems:
        raise NotIncremental("the last search was not complete")


def kept_of(
    mode: str,
    searched: Searched,
    as_of: str,
    since: str,
    types: Sequence[str] = (),
    base: str | None = None,
) -> Kept | None:
    """Make the note of a search that read everything; None if nothing can go on from it."""
    if searched.everyone or searched.problems:
        return None
    return Kept(
        mode,
        since,
        as_of,
        searched.seen,
        tuple(types),
        base,
        searched.outside,
        searched.strangers,
        searched.links,
        _again(mode, searched),
        any("nobody" in count.skipped for count in searched.types.values()),
    )


def _again(mode: str, searched: Searched) -> tuple[str, ...]:
    """List whom to read again whatever changes: who failed, or wasn't read completely.

    An export is incomplete for everybody alike, which its problems say.
    """
    partly = searched.partial if mode == "search" else ()
    return tuple(sorted({*(each.patient for each in searched.failures), *partly}))


class _Said(msgspec.Struct):
    """What a manifest on disk says of its request, and of types that the server lacks."""

    request: str
    extension: dict[str, object] = {}


@dataclass(frozen=True, slots=True)
class Exported:
    """An export on disk: its types and the server's address, as its manifest's request says."""

    export: Export
    types: tuple[str, ...]
    base: str | None
    request: str
    extension: dict[str, object]

    @classmethod
    def of(cls, export: Export) -> Exported:
        """Read its manifest; raises SourceError."""
        raw = (export.folder / "manifest.json").read_bytes()
        manifest = read_manifest(raw, "manifest.json")
        if manifest is None:
            raise SourceError("the export's manifest can't be read")
        said = msgspec.json.decode(raw, type=_Said)
        types = tuple(sorted(manifest.types or ()))
        return cls(export, types, manifest.base, said.request, said.extension)

    def kept(self, searched: Searched, as_of: str) -> Kept | None:
        """Make the note of a search of an export of everything."""
        if self.export.problems:
            return None
        time = self.export.transaction_time
        return kept_of("bulk", searched, as_of, time, self.types, self.base)


class _Plan(msgspec.Struct):
    """Who is to be evaluated (kept as a checkpoint).

    ``known``: names of the touched Patients whose records the base keeps; ``needed``: keys
    of whom to read anew; ``left``: who is no longer in the cohort; ``beside``: other ids of
    the cohort that the records of those touched name, who may no longer be one with them.
    """

    touched: tuple[str, ...]
    lapsed: tuple[str, ...]
    needed: tuple[str, ...]
    known: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


class _Planner:
    """Works out whom changes touch, and who must be read anew."""

    def __init__(self, store: Store, base: Base, changes: Changes, as_of: str) -> None:
        self.store = store
        self.base = base
        self.changes = changes
        self.as_of = as_of
        self.links = changes.linked(base.kept.links)
        self.aliases = aliases_of(changes.patients)
        self.touched: set[str] = set()
        self.known: set[str] = set()
        self.members: set[str] = set()

    def plan(self) -> _Plan:
        """Give the plan; raises NotIncremental."""
        newcomers = self._newcomers()
        needed = set(newcomers)
        self._touch(self.changes.touched | set(map(digest_of, newcomers)))
        while True:
            wanted = {self._key(name) for name in (*self.changes.named, *newcomers)} - self.known
            # Who is merged with one of them belongs to the same record.
            wanted |= joined({*wanted, *self.known}, self.links) - self.known
            fresh = wanted - needed
            needed = wanted
            if not self._touch(set(map(digest_of, fresh))):
                break
        needed -= self.changes.gone
        if any(not name.startswith("Patient/") for name in needed):
            raise NotIncremental("changed records name patients in a way that can't be asked for")
        lapsed = self._lapsed()
        self._judge(needed)
        return _Plan(
            tuple(sorted(self.touched)),
            tuple(sorted(lapsed - self.touched)),
            tuple(sorted(needed)),
            tuple(sorted(self.known)),
        )

    def plan_among(self, cohort: Iterable[str]) -> _Plan:
        """Give the plan of a search among a cohort (ids); raises NotIncremental.

        Records are read whole, so that only whom to read must be known.
        """
        kept = self.base.kept
        keys = {digest_of(f"Patient/{each}"): f"Patient/{each}" for each in cohort}
        again = set(map(digest_of, kept.again))
        outside = {key for key, until in kept.outside if until is None or until >= self.as_of}
        found: set[int] = set()
        beside: set[str] = set()
        left: set[str] = set()
        for patient, names in self.store.names(self.base.run.id):
            self.members.add(patient)
            if names is None:
                raise NotIncremental("the last search kept no records")
            here = hits(names, keys.keys())
            found |= here
            if not here:
                left.add(patient)
            elif hits(names, self.changes.touched | again):
                self.touched.add(patient)
                beside.update(keys[digest] for digest in here)
        needed = {
            key
            for digest, key in keys.items()
            if digest not in found
            and (key not in outside or digest in self.changes.touched or digest in again)
        }
        lapsed = self._lapsed() - left
        self._judge(needed)
        return _Plan(
            tuple(sorted(self.touched)),
            tuple(sorted(lapsed - self.touched)),
            tuple(sorted(needed)),
            left=tuple(sorted(left)),
            beside=tuple(sorted(beside - self.touched)),
        )

    def _key(self, name: str) -> str:
        return self.aliases.get(name, name)

    def _newcomers(self) -> set[str]:
        """List who may be in the population now, and wasn't."""
        kept = self.base.kept
        outside = {key for key, until in kept.outside if until is not None and until < self.as_of}
        watched = {key for key, _ in kept.outside} | set(kept.strangers)
        outside |= {key for key in watched if digest_of(key) in self.changes.touched}
        names = {
            key for key, names in self.changes.patients.items() if not watched.isdisjoint(names)
        }
        return {self._key(name) for name in {*outside, *names, *kept.again}}

    def _touch(self, digests: set[int]) -> bool:
        """Find the members whose records have one of these names; tells whether there are more."""
        fresh = []
        for patient, names in self.store.names(self.base.run.id):
            self.members.add(patient)
            if names is None:
                raise NotIncremental("the last search kept no records")
            if patient not in self.touched and hits(names, digests):
                self.touched.add(patient)
                fresh.append(patient)
        for patient in fresh:
            names_ = _names_in(_record(self.store, self.base, patient))
            # Who was merged with them is in the same record, be it only by an id.
            self.known |= names_ | joined(names_, self.base.kept.links)
        return bool(fresh)

    def _lapsed(self) -> set[str]:
        found: set[str] = set()
        for trial in self.base.run.spec.trials:
            found.update(self.store.due(self.base.run.id, trial, self.as_of))
        # Who is outside the population of one trial may be in that of another.
        for key, until in self.base.kept.outside:
            if until is not None and until < self.as_of and key in self.members:
                found.add(key)
        return found

    def _judge(self, needed: set[str]) -> None:
        count = len(self.touched) + len(needed)
        if len(needed) > _MOST_NEWCOMERS or count > max(20, _TOO_MANY * len(self.members)):
            raise NotIncremental("too much changed since the last search")
        nobody = {each.patient for each in self.base.rejects} - self.members
        if nobody - set(self.base.kept.again):
            raise NotIncremental("the last search could not use records of nobody it knows")


def _record(store: Store, base: Base, patient: str) -> Fetched:
    found = store.facts(base.run.id, patient)
    if found is None:
        raise NotIncremental("the last search kept no records")
    return found


def _names_in(fetched: Fetched) -> set[str]:
    """Give the keys of the Patients that a record holds, and their other names."""
    found: set[str] = set()
    for item in fetched.items:
        head = head_of(item.raw)
        if head is not None and head.resource_type == "Patient":
            found.update(own_names(head, item.full_url))
    return found


@dataclass(frozen=True, slots=True)
class Incrementally:
    """What an incremental search gave: the result, the note for the next, what was done.

    ``parts``: what was read of a live server.
    """

    searched: Searched
    kept: Kept
    night: Night
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Incremental:
    """An incremental search: what it goes on from and where it works."""

    engine: Engine
    store: Store
    base: Base
    as_of: str

    @property
    def work(self) -> Work:
        """Give the working folder."""
        return self.engine.work

    def planned(self, changes: Callable[[], Changes]) -> _Plan:
        """Give the plan: that of an earlier attempt, if there was one."""
        plan = self.work.load("plan", _Plan)
        if plan is None:
            plan = _Planner(self.store, self.base, changes(), self.as_of).plan()
            self.work.save("plan", plan)
        return plan

    # An export of what changed

    def by_export(self, client: BulkClient, request: BulkRequest) -> Incrementally:
        """Search by exports of what ``request`` asks for of everybody.

        Raises NotIncremental, SourceError, SourceTimeout, NotWritten.
        """
        kept, level = self.base.kept, request.level
        asked = replace(request, since=self.base.since)
        since = self._exported(client, asked, "since", "the server exports no changes")
        if since.export.problems or since.export.notes or since.types != kept.types:
            raise NotIncremental("the export of changes is not complete")
        changes = self._changes(since)
        plan = self.planned(lambda: changes)
        exports = []
        if plan.needed and (kept.otherwise or changes.otherwise):
            raise NotIncremental("records of who joined may name them otherwise than by id")
        if plan.needed:
            ids = tuple(key.removeprefix("Patient/") for key in plan.needed)
            own = "patient" if level == "system" else level
            exports.append(
                self._exported(
                    client,
                    BulkRequest(own, kept.types, patients=ids),
                    "newcomers",
                    "the server exports no single patients",
                )
            )
        records = _Records(self, plan, changes, since)
        folder = self.work.path("records/manifest.json").parent
        if not self.work.has("records"):
            missing = records.write(folder, exports)
            if missing:
                kinds = tuple(kind for kind in REFERRED if kind in kept.types)
                asked = BulkRequest(level, kinds)
                found = self._exported(client, asked, "referred", "the server exports no others")
                records.add_referred(folder, found, missing)
            self.work.save("records", len(plan.touched))
        searched = self.engine.search_directory(folder)
        before = self.base.run.statement
        if before is None or set(searched.problems) != set(before.problems):
            raise NotIncremental("what changed could not be read completely")
        return self.joined(plan, changes, searched, since.export.transaction_time)

    def _exported(self, client: BulkClient, asked: BulkRequest, name: str, why: str) -> Exported:
        folder = self.work.path(f"{name}/manifest.json").parent
        try:
            found = Exported.of(client.export(asked, folder))
        except ConfigurationError as error:
            raise NotIncremental(f"{why} ({error.message})") from error
        if found.export.problems:
            raise NotIncremental("an export is not complete")
        return found

    def _changes(self, since: Exported) -> Changes:
        apart = {path.name for path in since.export.deleted}
        entries = [
            entry._replace(number=number)
            for number, entry in enumerate(
                each for each in listing(since.export.folder) if each.name not in apart
            )
        ]
        evaluation = self.engine.evaluation
        interest = interest_of(evaluation.trials, evaluation.screening.terms)
        if not interest.sets:
            raise NotIncremental("every patient may be in the population of a trial")
        bases = (since.base,) if since.base else ()
        harmless = evaluation.screening.site.search.harmless_outcomes
        changes = changes_in(since.export.folder, entries, harmless, interest, bases)
        try:
            deleted(changes, deleted_references(since.export))
        except SourceError as error:
            raise NotIncremental(error.message) from error
        if changes.problem is not None:
            raise NotIncremental(changes.problem)
        return changes

    # Searches at a live server

    def by_records(
        self,
        changes: Changes,
        now: str,
        cohort: Sequence[str],
        read: Callable[[Sequence[str]], Iterator[Fetched | Unread]],
        unseen: Sequence[str] = (),
        expected: Mapping[str, str] | None = None,
    ) -> Incrementally:
        """Search among a cohort (patients' ids), found anew.

        ``now``: the instant at which the changes were asked for; ``read`` reads whole
        records. ``expected``: by type what can't be read of any patient. Who is new in the
        cohort is read, who is no longer in it is left out. Raises NotIncremental, and what
        ``read`` raises.
        """
        if changes.problem is not None:
            raise NotIncremental(changes.problem)
        plan = self.work.load("plan", _Plan)
        if plan is None:
            plan = _Planner(self.store, self.base, changes, self.as_of).plan_among(cohort)
            self.work.save("plan", plan)
        keys = (*plan.touched, *plan.needed, *plan.beside)
        ids = tuple(key.removeprefix("Patient/") for key in keys)
        files: dict[Path, None] = {}
        parts: list[Part] = []
        for number, chunk in enumerate(_chunks(ids)):
            name = f"read/{number:06}"
            if not self.work.has(name):
                self._read(name, read(chunk), expected or {})
            files[self.work.path(f"{name}.records")] = None
            parts.append(self.engine.done_step(name, Part))
        unread = [
            Failure(f"Patient/{who}", None, problem)
            for part in parts
            for who, problem, _ in part.unread
        ]
        for number, chunk in enumerate(_chunks(plan.lapsed)):
            path = self.work.path(f"stored/{number:06}.records")
            stored = (_record(self.store, self.base, patient) for patient in chunk)
            write_whole(path, (encode_record(fetched) + b"\n" for fetched in stored))
            files[path] = None
        paths = _together(list(files), self.work.path("read/together.records"))
        searched = self.engine.search_records(paths, seen=0)
        for tally in searched.tallies:
            tally.failed += len(unread)
        searched = replace(
            searched,
            failures=tuple(sorted((*searched.failures, *unread), key=lambda each: each.patient)),
            problems=tuple(incomplete(parts)),
            members=searched.members + len(unread),
        )
        read_ = {f"Patient/{who}" for part in parts for who in part.survivors}
        read_.update(each.patient for each in unread)
        outside = {key for key, _ in self.base.kept.outside} & {f"Patient/{who}" for who in cohort}
        seen = {*read_, *plan.lapsed, *(outside - set(keys))}
        night = self.joined(plan, changes, searched, now, seen)
        told = replace(night.night, unseen=tuple(unseen))
        return replace(night, night=told, parts=tuple(parts))

    def _read(
        self, name: str, records: Iterator[Fetched | Unread], expected: Mapping[str, str]
    ) -> None:
        """Keep what was read of some patients, and who could not be."""
        part = Part([], [], {}, {}, {})
        path = self.work.path(f"{name}.records")
        write_whole(path, lines_of(records, part, set(), expected))
        self.work.save(name, part)

    # The result

    def joined(
        self,
        plan: _Plan,
        changes: Changes,
        searched: Searched,
        since: str,
        seen: Set[str] = frozenset(),
    ) -> Incrementally:
        """Join what was evaluated with what is taken over.

        ``seen``: patients (keys) of a live search's cohort beside those taken over.
        """
        fresh = {*plan.touched, *plan.lapsed, *plan.needed, *plan.left, *plan.beside}
        # With one patient others are evaluated who share the record, by a link to each other.
        fresh.update(outcome.patient for outcome in searched.outcomes())
        run = self.base.run.id
        order = {trial: number for number, trial in enumerate(self.base.run.spec.trials)}

        def carried() -> Iterator[Outcome]:
            for each in self.store.verdicts(run, as_of=self.as_of):
                if each.patient not in fresh:
                    yield Outcome(each.patient, each.trial, each.line, each.code, each.valid_until)

        def patients_of(trial: str) -> Iterator[str]:
            return (each.patient for each in carried() if each.trial == trial)

        def outcomes() -> Iterator[Outcome]:
            return heapq.merge(
                searched.outcomes(), carried(), key=lambda each: (each.patient, order[each.trial])
            )

        tallies = [Tally() for _ in order]
        patients: dict[str, None] = {}
        for outcome in carried():
            tallies[order[outcome.trial]].add_line(outcome.line)
            patients[outcome.patient] = None
        for tally, other in zip(tallies, searched.tallies, strict=True):
            tally.join(other)
        rejects = [each for each in self.base.rejects if each.patient not in fresh]
        # Where it stood in what was only put together for this search helps nobody.
        rejects += [replace(each, file=None, line=None) for each in searched.rejects]
        base = self.base.kept
        outside = dict(each for each in base.outside if each[0] not in fresh)
        outside |= dict(searched.outside)
        found = {*fresh, *changes.patients}
        kept = msgspec.structs.replace(
            base,
            since=since,
            outside=tuple(sorted(outside.items())),
            strangers=tuple(sorted({*base.strangers} - found | {*searched.strangers})),
            links=tuple(changes.linked(base.links)),
            again=_again(base.mode, searched),
            otherwise=base.otherwise or changes.otherwise,
        )
        whole = replace(
            searched,
            outcomes=outcomes,
            tallies=tuple(tallies),
            rejects=tuple(rejects),
            seen=base.seen if base.mode == "bulk" else len({*seen, *patients}),
            members=searched.members + len(patients),
            evaluated=searched.evaluated + len(patients),
            fresh=searched.outcomes,
            carried={trial: partial(patients_of, trial) for trial in order},
        )
        night = Night(
            since=self.base.since,
            base=run,
            evaluated=searched.records,
            touched=len(plan.touched),
            joined=len(plan.needed),
            lapsed=len(plan.lapsed),
            carried=len(patients),
        )
        return Incrementally(whole, kept, night)


class _Records:
    """Puts the records together that are to be evaluated, as a directory of files.

    Of a resource that is there several times the newest is taken: that of an export of whole
    patients, else the changed one, else the stored one.
    """

    def __init__(self, night: Incremental, plan: _Plan, changes: Changes, since: Exported) -> None:
        self.night = night
        self.plan = plan
        self.changes = changes
        self.since = since
        self.known = set(plan.known)
        self.needed = set(plan.needed)
        self.bases = (since.base,) if since.base else ()
        self.written: set[int] = set()
        self.referred: set[str] = set()

    def write(self, folder: Path, exports: Sequence[Exported]) -> set[str]:
        """Write the directory; gives what its resources refer to that isn't there."""
        for path in folder.iterdir():
            path.unlink()
        with contextlib.ExitStack() as stack:
            files: dict[str, BinaryIO] = {}

            def put(kind: str, raw: bytes) -> None:
                if kind not in files:
                    name = f"{kind}.ndjson"
                    files[kind] = stack.enter_context((folder / name).open("wb"))
                files[kind].write(raw.replace(b"\n", b" ").strip() + b"\n")

            for export in exports:
                self._changed(export, put, self.needed, whole=True)
            self._changed(self.since, put, self.known, whole=False)
            missing = {name for name in self.referred if digest_of(name) not in self.written}
            for patient in (*self.plan.touched, *self.plan.lapsed):
                record = _record(self.night.store, self.night.base, patient)
                for item in record.items:
                    missing.discard(self._stored(item, put))
        self._manifest(folder)
        return missing

    def _changed(
        self, export: Exported, put: Callable[[str, bytes], None], owners: set[str], *, whole: bool
    ) -> None:
        """Write what of an export is of some patients, or may be referred to."""
        for raw in _lines(export.export):
            head = head_of(raw)
            if head is None or not head.id:
                raise NotIncremental("a changed resource can't be read")
            kind, name = head.resource_type, f"{head.resource_type}/{head.id}"
            if kind == "Patient":
                names = {name}
            else:
                names = {local(each, self.bases) for each in owners_in(head)}
            if kind not in REFERRED and names.isdisjoint(owners):
                continue
            digest = digest_of(name)
            if digest in self.written:
                continue
            self.written.add(digest)
            put(kind, raw)
            for refers in (head.medication_reference, head.study):
                if refers is not None and refers.reference and refers.reference[0] != "#":
                    self.referred.add(local(subject_key(refers), self.bases))

    def _stored(self, item: Item, put: Callable[[str, bytes], None]) -> str:
        """Write a stored resource unless it changed; gives its name."""
        head = head_of(item.raw)
        if head is None or not head.id:
            raise NotIncremental("a stored resource can't be read")
        name = f"{head.resource_type}/{head.id}"
        digest = digest_of(name)
        if digest not in self.changes.replaced and digest not in self.written:
            self.written.add(digest)
            put(head.resource_type, item.raw)
        return name

    def add_referred(self, folder: Path, export: Exported, missing: set[str]) -> None:
        """Add what the records refer to, as far as the server has it."""
        files: dict[str, list[bytes]] = {}
        for raw in _lines(export.export):
            head = head_of(raw)
            if head is not None and f"{head.resource_type}/{head.id}" in missing:
                files.setdefault(head.resource_type, []).append(raw + b"\n")
        for kind, lines in files.items():
            write_whole(folder / f"{kind}.more.ndjson", lines)
        self._manifest(folder)

    def _manifest(self, folder: Path) -> None:
        """Say of the directory what the manifest of a whole export says."""
        request = _without(self.since.request, "_since")
        names = sorted(path.name for path in folder.glob("*.ndjson"))
        manifest: dict[str, object] = {
            "transactionTime": self.since.export.transaction_time,
            "request": request,
            "requiresAccessToken": False,
            "output": [{"type": name.split(".")[0], "url": name} for name in names],
            "error": [],
            "extension": self.since.extension,
        }
        write_whole(folder / "manifest.json", [msgspec.json.encode(manifest)])


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Share patients out, so that little is read again by a search that is taken up."""
    return (ids[place : place + _CHUNK] for place in range(0, len(ids), _CHUNK))


def _together(files: Sequence[Path], beside: Path) -> list[Path]:
    """Bring records of patients merged with each other into one file, ``beside``.

    They may give the same survivor's verdict, which is noticed within a file only.
    """
    owners: dict[str, int] = {}
    shared: set[str] = set()
    for number, path in enumerate(files):
        for line in path.read_bytes().splitlines():
            for name in _patients_in(decode_record(line)):
                if owners.setdefault(name, number) != number:
                    shared.add(name)
    if not shared:
        return list(files)
    moved: list[bytes] = []
    given: list[Path] = []
    for path in files:
        lines = path.read_bytes().splitlines(keepends=True)
        apart = [_patients_in(decode_record(line)).isdisjoint(shared) for line in lines]
        moved += [line for line, alone in zip(lines, apart, strict=True) if not alone]
        rest = path.with_suffix(".rest")
        write_whole(rest, (line for line, alone in zip(lines, apart, strict=True) if alone))
        given.append(rest)
    write_whole(beside, moved)
    return [*given, beside]


def _patients_in(fetched: Fetched) -> set[str]:
    return {name for name in _names_in(fetched) if name.startswith("Patient/")}


def _lines(export: Export) -> Iterator[bytes]:
    """Go through the resources of an export's files."""
    apart = {path.name for path in export.deleted}
    for entry in listing(export.folder):
        if entry.by_lines and entry.name not in apart:
            with (export.folder / entry.name).open("rb") as file:
                for line in file:
                    if (raw := line.strip()) and not raw.startswith(
                        b'{"resourceType":"OperationOutcome"'
                    ):
                        yield raw


def _without(url: str, parameter: str) -> str:
    """Leave a parameter out of an address."""
    address, _, query = url.partition("?")
    parts = [each for each in query.split("&") if each.split("=")[0] != parameter]
    return f"{address}?{'&'.join(parts)}"
