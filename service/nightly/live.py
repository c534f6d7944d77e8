"""A search of a live server: whom to read, their records in files, then as any search.

Two kinds of steps are kept: the cohort once it is found, and a file of records per part of
it once it is read. A search taken up again reads only the parts that are not there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from pathlib import Path

import msgspec

from service.criteria.trial import Trial
from service.errors import ConfigurationError, UsageError
from service.fhir.bundles import kind_of
from service.fhir.cohort import (
    Cohort,
    Member,
    by_code,
    by_file,
    by_reference,
    everyone,
    is_reference,
)
from service.fhir.crawl import CHUNK, Unread, read_records, survivor_of
from service.fhir.server import ServerSource
from service.fhir.source import Fetched, Wanted
from service.nightly.engine import Engine, Searched, in_order
from service.nightly.model import Failure, Reject, TypeCount
from service.nightly.partition import encode_record
from service.nightly.sought import sought_of
from service.nightly.work import Work, write_whole

# More files than this are not merged at once; the parts grow instead.
_FILES = 400
# What is asked for that is no type of a record, by what it answers with.
_ANSWERS = {"": "Bundle", "metadata": "CapabilityStatement"}


class Found(msgspec.Struct, frozen=True):
    """The cohort, and what finding it took (kept as a checkpoint).

    ``expected``: by type what can't be read of any patient.
    """

    cohort: Cohort
    requests: dict[str, int]
    expected: dict[str, str]


class Part(msgspec.Struct):
    """What reading a part of the cohort gave, beside the records (kept as its checkpoint).

    ``survivors``: whom its records are about. ``unread``: ids with the problem, and whether
    there is no such patient. ``incomplete``: patients by what was not read completely.
    ``types``: resources and bytes; ``requests`` by what was asked for.
    """

    survivors: list[str] = []
    unread: list[tuple[str, str, bool]] = []
    incomplete: dict[str, int] = {}
    types: dict[str, tuple[int, int]] = {}
    requests: dict[str, int] = {}
    refused: int = 0


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
        types = _types([found.requests, *(part.requests for part in done)], done)
        return replace(
            searched,
            failures=tuple(joined),
            rejects=in_order((*searched.rejects, *self._rejects(found.cohort, done, lines))),
            problems=(*found.cohort.problems, *_incomplete(done)),
            notes=(*found.cohort.limits, *_limits(found.expected)),
            types=types,
            members=searched.members + len(failures),
            bytes=sum(count.bytes for count in types.values()),
        )

    @property
    def _work(self) -> Work:
        return self.engine.work

    def _found(self, wanted: Wanted) -> Found:
        found = self._work.load("cohort", Found)
        if found is None:
            self.engine.progress("finding the population", 0, 1)
            before = self.source.hospital.client.sent()
            cohort = self._cohort()
            expected = _expected(self.source, wanted)
            spent = self.source.hospital.client.sent() - before
            found = Found(cohort, dict(spent), expected)
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
            write_whole(path, _lines(own, part, known, expected))
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


def _lines(
    records: Iterator[Fetched | Unread],
    part: Part,
    known: set[str],
    expected: Mapping[str, str],
) -> Iterator[bytes]:
    """Write records, and count; of merged patients the first."""
    incomplete: Counter[str] = Counter()
    types: dict[str, list[int]] = {}
    for got in records:
        if isinstance(got, Unread):
            part.unread.append((got.patient, got.problem, got.unknown))
            part.refused += got.refused
            continue
        survivor = survivor_of(got)
        if survivor in known:
            continue
        known.add(survivor)
        part.survivors.append(survivor)
        for kind, reading in got.readings.items():
            if reading.problem is not None and reading.problem != expected.get(kind):
                incomplete[f"{kind}: {reading.problem}"] += 1
        for item in got.items:
            counted = types.setdefault(kind_of(item.raw) or "", [0, 0])
            counted[0] += 1
            counted[1] += len(item.raw)
        yield encode_record(got) + b"\n"
    part.incomplete = dict(incomplete)
    part.types = {kind: (count, size) for kind, (count, size) in types.items()}


def _incomplete(parts: Sequence[Part]) -> Iterator[str]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.incomplete)
    for text, count in sorted(counts.items()):
        patients = "1 patient" if count == 1 else f"{count} patients"
        yield f"not read completely of {patients}: {text}"


def _types(requests: Sequence[Mapping[str, int]], parts: Sequence[Part]) -> dict[str, TypeCount]:
    sent: Counter[str] = Counter()
    for each in requests:
        for asked, count in each.items():
            sent[_ANSWERS.get(asked, asked)] += count
    read: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for part in parts:
        for kind, (count, length) in part.types.items():
            read[kind] += count
            size[kind] += length
    return {
        kind: TypeCount(bytes=size[kind], lines=read[kind], read=read[kind], requests=sent[kind])
        for kind in sorted({*sent, *read})
    }
