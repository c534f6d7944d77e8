"""A search of a live server: whom to read, their records in files, then as any search.

Two kinds of steps are kept: the cohort once it is found, and a file of records per part of
it once it is read. A search taken up again reads only the parts that are not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path

import msgspec

from service.criteria.trial import Trial
from service.errors import ConfigurationError, UsageError
from service.fhir.cohort import (
    Cohort,
    Member,
    by_code,
    by_file,
    by_reference,
    everyone,
    is_reference,
)
from service.fhir.crawl import CHUNK, Unread, read_records
from service.fhir.server import ServerSource
from service.fhir.since import ChangesNotOffered
from service.fhir.source import Fetched, Wanted
from service.nightly.changed import changes_of, deleted
from service.nightly.engine import Engine, Searched, in_order
from service.nightly.fetching import Part, incomplete, lines_of, types_read
from service.nightly.incremental import Incremental, Incrementally, NotIncremental
from service.nightly.model import Failure, Reject
from service.nightly.partition import REFERRED
from service.nightly.sought import sought_of
from service.nightly.work import Work, write_whole

# More files than this are not merged at once; the parts grow instead.
_FILES = 400


class Found(msgspec.Struct, frozen=True):
    """The cohort, and what finding it took (kept as a checkpoint).

    ``expected``: by type what can't be read of any patient.
    """

    cohort: Cohort
    requests: dict[str, int]
    expected: dict[str, str]


def mark_of(cohort: str | None) -> str | None:
    """Tell cohorts apart: a file by what it holds. Raises UsageError."""
    if cohort is None or is_reference(cohort):
        return cohort
    try:
        return hashlib.sha256(Path(cohort).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"--cohort is neither Group/ID nor List/ID, nor a file that can be read "
            f"({error.strerror})"
        ) from error


def named_openly(cohort: str | None) -> str | None:
    """Name a cohort in what is written: a file without its folder."""
    return cohort if cohort is None or is_reference(cohort) else Path(cohort).name


def wanted_of_all(trials: Sequence[Trial]) -> Wanted:
    """Join what several trials need of a record."""
    codes: dict[str, frozenset[tuple[str, str]] | None] = {}
    for trial in trials:
        for kind, own in trial.wanted.codes.items():
            other = codes.get(kind, frozenset())
            codes[kind] = None if own is None or other is None else own | other
    return Wanted(codes)


@dataclass(frozen=True)
class LiveSearch:
    """One search of a server; ``cohort``: None if it is to be found by code."""

    engine: Engine
    source: ServerSource
    cohort: str | None
    as_of: date

    def asked_at(self) -> str:
        """Give the instant (ISO) before which nothing was asked, also by an earlier attempt.

        By the earlier clock, ours or the server's: it tells by its own what changed later.
        Raises SourceError.
        """
        asked = self._work.load("asked", str)
        if asked is None:
            now = datetime.now(UTC)
            asked = min(now, self.source.clock() or now).isoformat(timespec="seconds")
            self._work.save("asked", asked)
        return asked

    def run(self) -> Searched:
        """Find the cohort, read it, evaluate it.

        Raises ConfigurationError for what the server refuses, UsageError, SourceError.
        """
        wanted = wanted_of_all(self.engine.evaluation.trials)
        found = self._found(wanted)
        parts = self._parts(found.cohort.members)
        self._read(parts, wanted, found.expected)
        names = [_name(number) for number in range(len(parts))]
        done = [self.engine.done_step(name, Part) for name in names]
        files = [self._work.path(f"{name}.records") for name in names]
        lines = {member.id: member.line for member in found.cohort.members}
        failures = self._failures(done, lines)
        seen = len({who for part in done for who in part.survivors}) + len(failures)
        searched = self.engine.search_records(files, seen=seen)
        # As those who can't be evaluated, they may be in the population.
        for tally in searched.tallies:
            tally.failed += len(failures)
        joined = sorted((*searched.failures, *failures), key=lambda each: each.patient)
        types = types_read([found.requests, *(part.requests for part in done)], done)
        return replace(
            searched,
            failures=tuple(joined),
            rejects=in_order((*searched.rejects, *self._rejects(found.cohort, done, lines))),
            problems=(*found.cohort.problems, *incomplete(done)),
            notes=(*found.cohort.limits, *_limits(found.expected)),
            types=types,
            members=searched.members + len(failures),
            bytes=sum(count.bytes for count in types.values()),
        )

    def run_on(self, incremental: Incremental, now: str) -> Incrementally:
        """Find the cohort anew, and of it read whom changes since an earlier search touch.

        ``now``: the instant before which nothing was asked. Raises NotIncremental, and what
        ``run`` raises.
        """
        wanted = wanted_of_all(self.engine.evaluation.trials)
        found = self._found(wanted)
        if found.cohort.problems or found.cohort.rejected:
            raise NotIncremental("the cohort could not be found completely")
        client = self.source.hospital.client
        before = client.sent()
        kinds = dict.fromkeys(("Patient", *wanted.codes, *REFERRED))
        try:
            told = self.source.changed_since(kinds, incremental.base.since)
        except ChangesNotOffered as error:
            raise NotIncremental(error.message) from error
        changes = changes_of(told.resources, (self.source.base_url,))
        deleted(changes, told.deleted)

        def read(ids: Sequence[str]) -> Iterator[Fetched | Unread]:
            for each in read_records(self.source, ids, wanted):
                if isinstance(each, Unread) and each.unknown:
                    raise NotIncremental("the server does not know all patients of the cohort")
                yield each

        members = [member.id for member in found.cohort.members]
        night = incremental.by_records(changes, now, members, read, told.unseen, found.expected)
        searched = night.searched
        sent = (found.requests, dict(client.sent() - before))
        types = types_read(sent, night.parts)
        searched = replace(
            searched,
            notes=(*found.cohort.limits, *_limits(found.expected)),
            types=types,
            bytes=sum(count.bytes for count in types.values()),
        )
        return replace(night, searched=searched)

    @property
    def _work(self) -> Work:
        return self.engine.work

    def _found(self, wanted: Wanted) -> Found:
        found = self._work.load("cohort", Found)
        if found is None:
            self.engine.progress("finding the population", 0, 1)
            cohort = self._cohort()
            expected = _expected(self.source, wanted)
            found = Found(cohort, dict(self.source.hospital.client.sent()), expected)
            self._work.save("cohort", found)
        self.engine.progress("finding the population", 1, 1)
        return found

    def _cohort(self) -> Cohort:
        if self.cohort is None:
            evaluation = self.engine.evaluation
            sought = sought_of(evaluation.trials, evaluation.screening.terms)
            return by_code(self.source, sought) if sought else everyone(self.source)
        if is_reference(self.cohort):
            return by_reference(self.source, self.cohort, self.as_of)
        return by_file(self.source, Path(self.cohort))

    def _parts(self, members: Sequence[Member]) -> list[Sequence[Member]]:
        size = CHUNK * max(1, -(-len(members) // (CHUNK * _FILES)))
        return [members[start : start + size] for start in range(0, len(members), size)]

    def _read(
        self, parts: Sequence[Sequence[Member]], wanted: Wanted, expected: Mapping[str, str]
    ) -> None:
        """Read the parts that are not there yet, one after the other."""
        known: set[str] = set()
        todo: list[int] = []
        for number in range(len(parts)):
            done = self._work.load(_name(number), Part)
            if done is None:
                todo.append(number)
            else:
                known.update(done.survivors)
        total = sum(map(len, parts))
        left = sum(len(parts[number]) for number in todo)
        ids = [member.id for number in todo for member in parts[number]]
        records = read_records(self.source, ids, wanted)
        for number in todo:
            self.engine.progress("fetching records", total - left, total)
            part = Part([], [], {}, {}, {})
            before = self.source.hospital.client.sent()
            own = islice(records, len(parts[number]))
            path = self._work.path(f"{_name(number)}.records")
            write_whole(path, lines_of(own, part, known, expected))
            if part.refused == len(parts[number]):
                raise ConfigurationError(
                    f"the FHIR server refuses to give the patients "
                    f"({part.unread[0][1]}): grant the scope system/Patient.rs"
                )
            part.requests = dict(self.source.hospital.client.sent() - before)
            self._work.save(_name(number), part)
            self._work.note_time()
            left -= len(parts[number])
        self.engine.progress("fetching records", total, total)

    def _failures(self, parts: Sequence[Part], lines: Mapping[str, int | None]) -> list[Failure]:
        return [
            Failure(f"Patient/{who}", None, problem)
            for part in parts
            for who, problem, unknown in part.unread
            if not unknown or lines[who] is None
        ]

    def _rejects(
        self, cohort: Cohort, parts: Sequence[Part], lines: Mapping[str, int | None]
    ) -> Iterator[Reject]:
        file = named_openly(self.cohort)
        for each in cohort.rejected:
            where = file if each.line is not None else None
            yield Reject(where, each.line, "Patient", each.reference, each.problem)
        for part in parts:
            for who, problem, unknown in part.unread:
                if unknown and lines[who] is not None:
                    yield Reject(file, lines[who], "Patient", None, problem)


def _name(number: int) -> str:
    return f"live/{number:06}"


def _limits(expected: Mapping[str, str]) -> Iterator[str]:
    return (f"{kind}: {problem}" for kind, problem in expected.items())


def _expected(source: ServerSource, wanted: Wanted) -> dict[str, str]:
    """List what can't be read of any patient, since the server does not offer it."""
    plans = source.prepare(wanted).plans
    return {
        kind: problem
        for kind, plan in plans.items()
        if (problem := plan.problem or plan.narrowed) is not None and not plan.none_kept
    }
