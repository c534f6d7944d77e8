"""Frozen facts: what a patient's records say, dates as intervals, codes classified.

Facts don't depend on the day of evaluation. Source: semantics 1.2 to 1.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from service.fhir.record import NOT_READ, Message, Reading
from service.fhir.resources import Quantity, Range, ReferenceRange
from service.terms import Concept, Match, Terms
from service.values.dates import When


class Standing(StrEnum):
    """Whether a record counts by its status (semantics 1.5)."""

    COUNTS = "counts"
    UNCONFIRMED = "unconfirmed"


class Activity(StrEnum):
    """Whether a condition is active, by its own record."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    CONFLICTING = "conflicting"
    NOT_RECORDED = "not-recorded"
    INDETERMINATE = "indeterminate"


@dataclass(frozen=True, slots=True)
class Person:
    """The patient: ``sex`` is male, female or None when unknown (semantics 1.4)."""

    reference: str
    version: str | None
    gender: str | None
    sex: str | None
    birth: When | None
    birth_problem: str | None
    deceased: bool | None
    died: When | None
    conflicting: bool


@dataclass(frozen=True, slots=True, eq=False)
class ObservationFact:
    """One result (an Observation or a component of one).

    Exactly the value as recorded; it is read only when a rule compares it. ``when`` None:
    undated. ``issued``: the time is that of issue (an assumption).
    """

    reference: str
    version: str | None
    concept: Concept
    status: str
    when: When | None
    issued: bool
    quantity: Quantity | None
    coded: Concept | None
    text: str | None
    integer: int | None
    range: Range | None
    other_value: bool
    interpretation: tuple[Concept, ...]
    ranges: tuple[ReferenceRange, ...]
    method: Concept | None
    modified: bool
    conflicting: bool
    focus: tuple[str, ...] = ()

    @property
    def has_value(self) -> bool:
        """Whether anything is stated as value."""
        return (
            self.quantity is not None
            or self.coded is not None
            or self.text is not None
            or self.integer is not None
            or self.range is not None
            or self.other_value
        )


@dataclass(frozen=True, slots=True, eq=False)
class ConditionFact:
    """One Condition. ``onset`` may rest on the recorded date (``assumed_onset``).

    ``clinical`` is the clinicalStatus code; ``abated`` the time of abatement, ``ended``
    says that an abatement is stated without a readable time. ``latest`` bounds the dates
    of the record (onset, abatement, recording) from which the newest record is told.
    """

    reference: str
    version: str | None
    concept: Concept
    confirmed: bool
    verification_missing: bool
    clinical: str | None
    onset: When | None
    assumed_onset: bool
    recorded: When | None
    abated: When | None
    ended: bool
    modified: bool
    conflicting: bool

    @property
    def dates(self) -> tuple[When, ...]:
        """Give all dates of the record."""
        own = None if self.assumed_onset else self.onset
        return tuple(when for when in (own, self.abated, self.recorded) if when is not None)

    @property
    def begin(self) -> When | None:
        """Give when the record begins: its onset, else its recording."""
        return self.onset

    @property
    def when(self) -> When | None:
        """Give the date a window is tested with."""
        return self.onset


@dataclass(frozen=True, slots=True, eq=False)
class EventFact:
    """A procedure, medicine, immunisation, allergy or adverse event.

    ``when`` is the time a window is tested with; ``start`` and ``end`` bound the use of a
    medicine; ``active``: in use without an end, or an active allergy. ``order``: shows an
    order only. ``reasons`` and ``reason_references`` are why a medicine is given.
    """

    type: str
    reference: str
    version: str | None
    concept: Concept
    standing: Standing
    when: When | None
    assumed_date: bool = False
    start: When | None = None
    end: When | None = None
    active: bool = False
    inactive: bool = False
    order: bool = False
    intolerance: bool = False
    status: str | None = None
    category: Concept | None = None
    others: tuple[Concept, ...] = ()
    reasons: tuple[Concept, ...] = ()
    reason_references: tuple[str, ...] = ()
    modified: bool = False
    conflicting: bool = False
    grade: str | None = None
    verification_missing: bool = False


@dataclass(frozen=True, slots=True)
class ParticipationFact:
    """A ResearchSubject: ``study_identifiers`` None if the study can't be told."""

    reference: str
    version: str | None
    status: str | None
    period: When | None
    end: When | None
    open_end: bool
    study_identifiers: tuple[str, ...] | None
    study_text: str
    modified: bool
    conflicting: bool


@dataclass(frozen=True, slots=True)
class ConsentFact:
    """A Consent: ``names`` are the texts and identifiers that may name a study."""

    reference: str
    version: str | None
    status: str | None
    research: bool
    names: tuple[str, ...]
    when: When | None
    period_start: When | None
    period_end: When | None
    permit: bool | None
    modified: bool
    conflicting: bool


@dataclass(frozen=True, slots=True)
class Masked:
    """A record that can't be told: its absence proves nothing (semantics 1.5).

    ``concept`` is set when the record is unusable but its code is known, so that it only
    stands in the way of the sets it concerns. ``begin`` None: at any time.
    """

    type: str
    reference: str | None
    problem: str
    concept: Concept | None = None
    begin: When | None = None
    when: When | None = None


Fact = ObservationFact | ConditionFact | EventFact

MEDICINE_TYPES = (
    "MedicationRequest",
    "MedicationAdministration",
    "MedicationStatement",
    "MedicationDispense",
)


@dataclass(frozen=True, slots=True)
class PatientFacts:
    """All facts of one patient, indexed by resource type and code set.

    ``index``: (type, set) to facts whose code is in the set or whose text names it.
    """

    person: Person
    terms: Terms
    index: Mapping[tuple[str, str], Sequence[Fact]]
    conditions: Sequence[ConditionFact]
    participations: Sequence[ParticipationFact]
    consents: Sequence[ConsentFact]
    masked: Mapping[str, Sequence[Masked]]
    readings: Mapping[str, Reading]
    messages: tuple[Message, ...]
    _found: dict[tuple[str, Sequence[str]], list[tuple[Match, Fact]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def reading(self, kind: str) -> Reading:
        """Tell how completely a type was read."""
        return self.readings.get(kind, NOT_READ)

    def find(self, kind: str, sets: tuple[str, ...]) -> Sequence[tuple[Match, Fact]]:
        """List facts of a type that the sets concern, and how each relates to them.

        The answer is kept: several rules, and several days, ask the same.
        """
        key = (kind, sets)
        known = self._found.get(key)
        if known is None:
            known = self._found[key] = self._find(kind, sets)
        return known

    def _find(self, kind: str, sets: tuple[str, ...]) -> list[tuple[Match, Fact]]:
        seen: set[int] = set()
        found: list[tuple[Match, Fact]] = []
        for name in sets:
            for fact in self.index.get((kind, name), ()):
                if id(fact) in seen:
                    continue
                seen.add(id(fact))
                match = _match(fact, sets)
                if match is not None:
                    found.append((match, fact))
        return found


def _match(fact: Fact, sets: tuple[str, ...]) -> Match | None:
    if not isinstance(fact, EventFact):
        return fact.concept.match(sets)
    concepts = concepts_of(fact)
    matches = {concept.match(sets) for concept in concepts}
    if Match.INCLUDE in matches and Match.EXCLUDE in matches:
        # An excluded code (a minor procedure) is not made surgery by its category; but an
        # allergy whose code and substance differ contradicts itself.
        return Match.EXCLUDE if fact.category is not None else Match.CONFLICT
    return next((match for match in Match if match in matches), None)


def concepts_of(fact: Fact) -> tuple[Concept, ...]:
    """List the concepts by which a fact is found."""
    if isinstance(fact, EventFact):
        more = (fact.category,) if fact.category is not None else ()
        return (fact.concept, *more, *fact.others)
    return (fact.concept,)
