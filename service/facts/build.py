"""Turns a patient's record into facts; a record that can't be used is masked and reported."""

from __future__ import annotations

from service.facts.conditions import condition_facts
from service.facts.dates import BadDate
from service.facts.events import Reader, masked_event
from service.facts.model import (
    ConditionFact,
    ConsentFact,
    Fact,
    Masked,
    ParticipationFact,
    PatientFacts,
    concepts_of,
)
from service.facts.observations import observation_facts, panels_of, require_own_time
from service.facts.person import person_of
from service.facts.studies import consent_fact, participation_fact
from service.fhir.record import CLINICAL_TYPES, Located, Message, PatientRecord
from service.fhir.resources import (
    AllergyIntolerance,
    CodeableConcept,
    Consent,
    DiagnosticReport,
    Observation,
    Procedure,
    ResearchSubject,
    Resource,
    withheld,
)
from service.site import Site
from service.terms import Terms

__all__ = ["Site", "facts_of"]


class _Builder:
    """Collects the facts of one record."""

    def __init__(self, record: PatientRecord, terms: Terms, site: Site) -> None:
        self.record = record
        self.terms = terms
        self.zone = site.zone
        self.person = person_of(record.patient, site.zone, record.merged)
        self.index: dict[tuple[str, str], list[Fact]] = {}
        self.conditions: list[ConditionFact] = []
        self.participations: list[ParticipationFact] = []
        self.consents: list[ConsentFact] = []
        self.masked: dict[str, list[Masked]] = {}
        self.messages: list[Message] = list(record.messages)

    def add(self, kind: str, fact: Fact | Masked) -> None:
        if isinstance(fact, Masked):
            self.mask(fact)
            return
        index = self.index
        for concept in concepts_of(fact):
            for name in concept.known_sets:
                facts = index.get((kind, name))
                if facts is None:
                    index[kind, name] = [fact]
                else:
                    facts.append(fact)
        if isinstance(fact, ConditionFact):
            self.conditions.append(fact)

    def mask(self, masked: Masked) -> None:
        self.masked.setdefault(masked.type, []).append(masked)

    def unusable(self, located: Located, error: BadDate) -> None:
        """Report a record with a malformed date, and treat it as masked (semantics 1.8)."""
        kind = type(located.resource).__name__
        self.messages.append(Message("warning", "value", str(error), kind, located.reference))
        code = _code_of(located.resource)
        concept = self.terms.concept(code) if code is not None else None
        self.mask(Masked(kind, located.reference, str(error), concept))

    def rejected(self) -> None:
        for found in self.record.rejected:
            kinds = (found.type,) if found.type else CLINICAL_TYPES
            if found.type == "DiagnosticReport":
                kinds = ("DiagnosticReport", "Observation")
            concept = self.terms.concept(found.code) if found.code is not None else None
            for kind in kinds:
                if concept is None or concept.relevant:
                    self.mask(Masked(kind, found.reference, found.problem, concept))

    def observations(self) -> None:
        record, person = self.record, self.person
        own = frozenset(f"Patient/{key}" for key in record.patient_ids) | {person.reference}
        panels = panels_of(record, self.zone, own)
        for masked in panels.missing:
            self.mask(masked)
        for located in (*record.resources.get("Observation", ()), *panels.inside):
            panel = panels.dates.get(located.reference)
            try:
                if panel is None and located.reference in panels.undatable:
                    require_own_time(located, self.zone)
                for fact in observation_facts(located, self.terms, self.zone, record, own, panel):
                    self.add("Observation", fact)
            except BadDate as error:
                self.unusable(located, error)

    def condition_records(self) -> None:
        for located in self.record.resources.get("Condition", ()):
            try:
                for fact in condition_facts(located, self.terms, self.zone, self.person.birth):
                    self.add("Condition", fact)
            except BadDate as error:
                self.unusable(located, error)

    def events(self) -> None:
        reader = Reader(self.record, self.terms, self.zone, self.person.birth)
        for kind in reader.types:
            for located, read in reader.facts(kind):
                try:
                    fact = read(located)
                except BadDate as error:
                    self.unusable(located, error)
                    continue
                if fact is None:
                    continue
                masked = masked_event(fact)
                if masked is not None:
                    self.mask(masked)
                if kind == "AdverseEvent":
                    self.index.setdefault((kind, ""), []).append(fact)
                self.add(kind, fact)

    def studies(self) -> None:
        for located in self.record.resources.get("ResearchSubject", ()):
            assert isinstance(located.resource, ResearchSubject)
            try:
                self.participations.append(participation_fact(located, self.record, self.zone))
            except BadDate as error:
                self.unusable(located, error)
        for located in self.record.resources.get("Consent", ()):
            assert isinstance(located.resource, Consent)
            try:
                consent = consent_fact(located, self.record, self.zone)
            except BadDate as error:
                self.unusable(located, error)
                continue
            if consent is not None:
                self.consents.append(consent)


def _code_of(resource: Resource) -> CodeableConcept | None:
    """Join all codes that tell what a resource may be; None if it may be anything."""
    if isinstance(resource, DiagnosticReport):
        return None
    if isinstance(resource, Observation) and resource.has_member:
        return None
    found = [getattr(resource, name, None) for name in _CODES]
    if any(isinstance(main, CodeableConcept) and withheld(main) for main in found):
        return None
    if isinstance(resource, Observation):
        found += [component.code for component in resource.component]
    if isinstance(resource, AllergyIntolerance):
        found += [reaction.substance for reaction in resource.reaction]
    if isinstance(resource, Procedure):
        found.append(resource.category)
    stated = [concept for concept in found if isinstance(concept, CodeableConcept)]
    texts = "; ".join(concept.text for concept in stated if concept.text)
    codings = tuple(coding for concept in stated for coding in concept.coding)
    return CodeableConcept(codings, texts or None) if stated else None


_CODES = ("code", "medication_codeable_concept", "vaccine_code", "event")


def facts_of(record: PatientRecord, terms: Terms, site: Site) -> PatientFacts:
    """Turn a record into facts; nothing is lost: what can't be used is masked and reported."""
    builder = _Builder(record, terms, site)
    builder.rejected()
    builder.observations()
    builder.condition_records()
    builder.events()
    builder.studies()
    return PatientFacts(
        person=builder.person,
        terms=terms,
        index=builder.index,
        conditions=builder.conditions,
        participations=builder.participations,
        consents=builder.consents,
        masked=builder.masked,
        readings=record.readings,
        messages=tuple(builder.messages),
    )
