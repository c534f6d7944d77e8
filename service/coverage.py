"""Site readiness: what a source has of what a trial's criteria read, and what isn't mapped.

Run before any screening. It counts patients, draws no clinical conclusion and names nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from service.criteria.trial import Trial, reads_of
from service.errors import EligibilityError
from service.fhir.record import Located, PatientRecord
from service.fhir.resources import (
    AllergyIntolerance,
    CodeableConcept,
    Condition,
    Immunization,
    Medication,
    MedicationAdministration,
    MedicationDispense,
    MedicationRequest,
    MedicationStatement,
    Observation,
    ObservationComponent,
    Procedure,
    Quantity,
)
from service.fhir.source import Source, Wanted, record_of
from service.terms import Concept, Role, Terms

_Key = TypeVar("_Key")


class SetCoverage(NamedTuple):
    """A code set and the patients who have a record in it."""

    name: str
    title: str
    patients: int


class UnmappedCode(NamedTuple):
    """A code no set and no standard system knows, or whose text names a class of the trial.

    ``may_belong_to``: the sets whose words its text holds.
    """

    type: str
    system: str
    code: str
    display: str
    may_belong_to: tuple[str, ...]
    patients: int


class UnknownUnit(NamedTuple):
    """A unit that doesn't convert, or none at all (empty), in results of a code set."""

    set: str
    unit: str
    patients: int


class MissingRange(NamedTuple):
    """Results of a code set without reference range, though the limit of normal is needed."""

    set: str
    patients: int


class Incomplete(NamedTuple):
    """A resource type that could not be read completely, and why."""

    type: str
    problem: str
    patients: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a survey found; each list with the most patients first."""

    patients: int
    failed: int
    sets: tuple[SetCoverage, ...]
    unmapped: tuple[UnmappedCode, ...]
    units: tuple[UnknownUnit, ...]
    ranges: tuple[MissingRange, ...]
    incomplete: tuple[Incomplete, ...]


@dataclass(slots=True)
class _Counts:
    """Patients per finding; each patient counts once for each."""

    sets: Counter[str] = field(default_factory=Counter)
    unmapped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    described: dict[tuple[str, str, str], tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    units: Counter[tuple[str, str]] = field(default_factory=Counter)
    ranges: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[tuple[str, str]] = field(default_factory=Counter)


def survey(source: Source, patients: Iterable[str], trial: Trial, terms: Terms) -> Coverage:
    """Read patients' records and count what is there, what is missing and what isn't mapped.

    Observations are read whole, not by the trial's codes, or local codes would stay unseen.
    A patient who can't be read is counted as failed.
    """
    wanted = Wanted({**trial.wanted.codes, "Observation": None})
    counts = _Counts()
    read = failed = 0
    for patient in patients:
        try:
            record = record_of(source.fetch(patient, wanted))
        except EligibilityError:
            failed += 1
            continue
        read += 1
        _count(record, trial, terms, counts)
    return _ranked(read, failed, trial, terms, counts)


def _count(record: PatientRecord, trial: Trial, terms: Terms, counts: _Counts) -> None:
    sets: set[str] = set()
    unmapped: set[tuple[str, str, str]] = set()
    units: set[tuple[str, str]] = set()
    ranges: set[str] = set()
    used = frozenset(trial.sets())
    needing_range = _needing_range(trial)
    for kind, located, coded, value in _coded(record):
        concept = terms.concept(coded)
        mine = used & {name for name, roles in concept.roles.items() if roles != _LOOK_ALIKE}
        sets |= mine
        if coded is not None and not concept.roles:
            for key in _unknown_codes(kind, coded, concept, used, terms):
                unmapped.add(key[0])
                counts.described.setdefault(*key)
        if value is not None:
            units |= {(name, unit) for name in mine for unit in _unknown_unit(value, terms)}
        if isinstance(located.resource, Observation) and mine:
            sets |= used & set(_answer_sets(located.resource, terms))
            if value is not None and not _has_range(located.resource):
                ranges |= mine & needing_range
    counts.sets.update(sets)
    counts.unmapped.update(unmapped)
    counts.units.update(units)
    counts.ranges.update(ranges)
    counts.incomplete.update(
        (kind, reading.problem or "not read")
        for kind, reading in record.readings.items()
        if not reading.complete
    )


def _needing_range(trial: Trial) -> frozenset[str]:
    """Name the sets whose results are compared with a limit of normal."""
    return frozenset(
        name
        for criterion, reads in reads_of(trial)
        if getattr(criterion.rule, "times", None) is not None
        for name in reads.sets
    )


_Medicine = MedicationRequest | MedicationAdministration | MedicationStatement | MedicationDispense
_Part = tuple[str, Located, CodeableConcept | None, Quantity | None]


def _coded(record: PatientRecord) -> Iterator[_Part]:
    """Go through the codes of a record, with the quantity that belongs to each."""
    for kind, group in record.resources.items():
        for located in group:
            resource = located.resource
            if isinstance(resource, Observation):
                parts: tuple[Observation | ObservationComponent, ...]
                parts = (resource, *resource.component)
                for part in parts:
                    yield kind, located, part.code, part.value_quantity
            elif isinstance(resource, Condition | Procedure | AllergyIntolerance | Medication):
                yield kind, located, resource.code, None
            elif isinstance(resource, Immunization):
                yield kind, located, resource.vaccine_code, None
            elif isinstance(resource, _Medicine):
                yield kind, located, _medicine(record, located, resource), None


def _medicine(record: PatientRecord, located: Located, given: _Medicine) -> CodeableConcept | None:
    if given.medication_codeable_concept is not None:
        return given.medication_codeable_concept
    found = record.resolver.resolve(given.medication_reference, located)
    if found is not None and isinstance(found.resource, Medication):
        return found.resource.code
    return None


_LOOK_ALIKE = frozenset({Role.EXCLUDE})


def _answer_sets(observation: Observation, terms: Terms) -> Iterator[str]:
    """Name the sets that a result's answer and method are in."""
    for coded in (observation.value_codeable_concept, observation.method):
        if coded is not None:
            yield from terms.concept(coded).roles


_Described = tuple[tuple[str, str, str], tuple[str, tuple[str, ...]]]


def _unknown_codes(
    kind: str, coded: CodeableConcept, concept: Concept, used: frozenset[str], terms: Terms
) -> Iterator[_Described]:
    """List the codes of a concept that is in no set, if they are local or name a class."""
    named = tuple(sorted(concept.keywords & used))
    standard = any(terms.system(coding.system or "") in terms.aliases for coding in coded.coding)
    if standard and not named:
        return
    for coding in coded.coding:
        if coding.code:
            key = (kind, coding.system or "", coding.code)
            yield key, (coding.display or coded.text or "", named)
    if not coded.coding and named:
        # The text itself stays out: free text may hold anything.
        yield (kind, "", ""), ("(text without a code)", named)


def _unknown_unit(value: Quantity, terms: Terms) -> Iterator[str]:
    if value.value is None:
        return
    unit = terms.unit_of(value)
    if unit is None:
        yield ""
    elif unit.dimension is None:
        yield unit.code


def _has_range(observation: Observation) -> bool:
    return any(
        entry.low is not None or entry.high is not None or entry.text
        for entry in observation.reference_range
    )


def _ranked(patients: int, failed: int, trial: Trial, terms: Terms, counts: _Counts) -> Coverage:
    by_sets = sorted(trial.sets(), key=lambda name: (-counts.sets[name], name))
    return Coverage(
        patients,
        failed,
        tuple(SetCoverage(name, terms.sets[name].title, counts.sets[name]) for name in by_sets),
        tuple(
            UnmappedCode(*key, *counts.described[key], number)
            for key, number in _most(counts.unmapped)
        ),
        tuple(UnknownUnit(*key, number) for key, number in _most(counts.units)),
        tuple(MissingRange(key, number) for key, number in _most(counts.ranges)),
        tuple(Incomplete(*key, number) for key, number in _most(counts.incomplete)),
    )


def _most(counter: Counter[_Key]) -> list[tuple[_Key, int]]:
    """Order by patients; equal ones by name, so that two runs print the same."""
    return sorted(counter.items(), key=lambda item: (-item[1], str(item[0])))
