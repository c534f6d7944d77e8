"""Procedures, medicines, immunisations, allergies, adverse events as facts (semantics 1.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import tzinfo

from service.facts.conditions import VERIFICATION, status_code
from service.facts.dates import age_range, period_end, read, read_period, year_of_life
from service.facts.model import EventFact, Masked, Standing
from service.fhir.record import Located, PatientRecord
from service.fhir.resources import (
    AdverseEvent,
    AllergyIntolerance,
    CodeableConcept,
    Immunization,
    Medication,
    MedicationAdministration,
    MedicationDispense,
    MedicationRequest,
    MedicationStatement,
    Procedure,
)
from service.terms import NOTHING, Concept, Terms
from service.values.dates import When

_PROCEDURE_COUNTS = frozenset(("completed", "in-progress"))
_MEDICINE_COUNTS = frozenset(("completed", "active", "in-progress", "on-hold", "stopped"))


def standing(status: str | None, counted: frozenset[str]) -> Standing | None:
    """Tell whether a status counts; None if the record is not to be used.

    A missing status is read as ``unknown``.
    """
    if status in counted:
        return Standing.COUNTS
    return Standing.UNCONFIRMED if status in (None, "unknown") else None


class Reader:
    """Reads events of one record: holds what all of them need."""

    def __init__(
        self, record: PatientRecord, terms: Terms, zone: tzinfo, birth: When | None
    ) -> None:
        self._record = record
        self._terms = terms
        self._zone = zone
        self._birth = birth
        self._readers: dict[str, Callable[[Located], EventFact | None]] = {
            "Procedure": self._procedure,
            "MedicationRequest": self._request,
            "MedicationAdministration": self._administration,
            "MedicationStatement": self._statement,
            "MedicationDispense": self._dispense,
            "Immunization": self._immunization,
            "AllergyIntolerance": self._allergy,
            "AdverseEvent": self._adverse_event,
        }
        self.types = tuple(self._readers)

    def facts(self, kind: str) -> Iterator[tuple[Located, Callable[[Located], EventFact | None]]]:
        """Pair each resource of a type with its reader."""
        for located in self._record.resources.get(kind, ()):
            yield located, self._readers[kind]

    def _relevant(self, *concepts: Concept | None) -> bool:
        return any(concept is not None and concept.relevant for concept in concepts)

    def _procedure(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, Procedure)
        counts = standing(resource.status, _PROCEDURE_COUNTS)
        concept = self._terms.concept(resource.code)
        category = self._terms.concept(resource.category) if resource.category else None
        if category is not None and not category.roles:
            category = None
        if counts is None or not self._relevant(concept, category):
            return None
        when = (
            read(resource.performed_date_time, self._zone, "performedDateTime")
            or period_end(resource.performed_period, self._zone, "performedPeriod")
            or year_of_life(resource.performed_age, self._birth, self._zone)
            or age_range(resource.performed_range, self._birth, self._zone)
        )
        start = read_period(resource.performed_period, self._zone, "performedPeriod") or when
        return EventFact(
            "Procedure",
            located.reference,
            located.version,
            concept,
            counts,
            when,
            start=start,
            category=category,
            status=resource.status,
            modified=bool(resource.modifier_extension),
            conflicting=located.conflicting,
        )

    def _medicine(
        self,
        located: Located,
        counts: Standing | None,
        when: When | None,
        start: When | None,
        end: When | None,
        order: bool = False,
    ) -> EventFact | None:
        resource = located.resource
        assert isinstance(
            resource,
            MedicationRequest | MedicationAdministration | MedicationStatement | MedicationDispense,
        )
        concept = self._product(located, resource.medication_codeable_concept)
        if counts is None or not concept.relevant:
            return None
        reasons: tuple[CodeableConcept, ...] = ()
        references: tuple[str, ...] = ()
        if not isinstance(resource, MedicationDispense):
            reasons = resource.reason_code
            for reference in resource.reason_reference:
                found = self._record.resolver.resolve(reference, located)
                references += ((found.reference if found else reference.reference) or "",)
        return EventFact(
            type(resource).__name__,
            located.reference,
            located.version,
            concept,
            counts,
            when,
            start=start,
            end=end,
            order=order,
            status=resource.status,
            active=resource.status in ("active", "in-progress"),
            reasons=tuple(self._terms.concept(reason) for reason in reasons),
            reason_references=references,
            modified=bool(resource.modifier_extension),
            conflicting=located.conflicting or self._torn(located),
        )

    def _torn(self, located: Located) -> bool:
        """Tell whether the medicine is a Medication whose copies differ."""
        reference = getattr(located.resource, "medication_reference", None)
        found = self._record.resolver.resolve(reference, located)
        return found is not None and found.conflicting

    def _product(self, located: Located, coded: CodeableConcept | None) -> Concept:
        """Classify the medicine, named here or by a Medication that is referred to."""
        if coded is not None:
            return self._terms.concept(coded)
        reference = getattr(located.resource, "medication_reference", None)
        resolver = self._record.resolver
        found = resolver.resolve(reference, located)
        written = reference.reference or "" if reference is not None else ""
        if written and resolver.is_rejected(written):
            # It is there, but can't be read: a label says nothing certain of it.
            return NOTHING
        if found is not None and found.conflicting:
            # Copies that differ leave open which of them was given.
            codes = [
                copy.resource.code
                for copy in resolver.copies(found)
                if isinstance(copy.resource, Medication) and copy.resource.code is not None
            ]
            codings = tuple(coding for code in codes for coding in code.coding)
            texts = "; ".join(code.text for code in codes if code.text)
            return self._terms.concept(CodeableConcept(codings, texts or None))
        if found is not None and isinstance(found.resource, Medication):
            items = [entry.item_codeable_concept for entry in found.resource.ingredient]
            named = [item for item in items if item is not None]
            if found.resource.code is None and named:
                text = ", ".join(item.text for item in named if item.text) or None
                codings = tuple(coding for item in named for coding in item.coding)
                return self._terms.concept(CodeableConcept(codings, text))
            more = (coding for item in named for coding in item.coding)
            return self._terms.joined(found.resource.code, more)
        if written.startswith("#"):
            return NOTHING
        text = reference.display if reference is not None else None
        return self._terms.concept(CodeableConcept(text=text))

    def _request(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, MedicationRequest)
        if resource.intent == "proposal" or resource.do_not_perform:
            return None
        when = read(resource.authored_on, self._zone, "authoredOn")
        counts = standing(resource.status, _MEDICINE_COUNTS)
        return self._medicine(located, counts, when, when, None, order=True)

    def _administration(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, MedicationAdministration)
        return self._effective(located, resource)

    def _statement(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, MedicationStatement)
        return self._effective(located, resource)

    def _effective(
        self, located: Located, resource: MedicationAdministration | MedicationStatement
    ) -> EventFact | None:
        counts = standing(resource.status, _MEDICINE_COUNTS)
        moment = read(resource.effective_date_time, self._zone, "effectiveDateTime")
        period = resource.effective_period
        when = moment or period_end(period, self._zone, "effectivePeriod")
        start = moment or (read(period.start, self._zone, "start") if period else None) or when
        end = read(period.end, self._zone, "end") if period else None
        if when is None and isinstance(resource, MedicationStatement):
            when = start = read(resource.date_asserted, self._zone, "dateAsserted")
        return self._medicine(located, counts, when, start, end)

    def _dispense(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, MedicationDispense)
        when = read(resource.when_handed_over, self._zone, "whenHandedOver") or read(
            resource.when_prepared, self._zone, "whenPrepared"
        )
        counts = standing(resource.status, _MEDICINE_COUNTS)
        # What was handed over was not thereby given.
        return self._medicine(located, counts, when, when, None, order=True)

    def _immunization(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, Immunization)
        counts = standing(resource.status, frozenset(("completed",)))
        concept = self._terms.concept(resource.vaccine_code)
        if counts is None or not self._relevant(concept):
            return None
        when = read(resource.occurrence_date_time, self._zone, "occurrenceDateTime")
        return EventFact(
            "Immunization",
            located.reference,
            located.version,
            concept,
            counts,
            when,
            start=when,
            status=resource.status,
            modified=bool(resource.modifier_extension),
            conflicting=located.conflicting,
        )

    def _allergy(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, AllergyIntolerance)
        verification = status_code(resource.verification_status, VERIFICATION)
        if verification in ("refuted", "entered-in-error"):
            return None
        concept = self._terms.concept(resource.code)
        substances = tuple(
            self._terms.concept(reaction.substance)
            for reaction in resource.reaction
            if reaction.substance is not None
        )
        # An allergy whose code is missing may still name its substance in a reaction.
        if concept.masked and substances:
            concept, substances = substances[0], substances[1:]
        if not self._relevant(concept, *substances):
            return None
        onset = (
            read(resource.onset_date_time, self._zone, "onsetDateTime")
            or (
                read(resource.onset_period.start, self._zone, "onsetPeriod.start")
                if resource.onset_period
                else None
            )
            or year_of_life(resource.onset_age, self._birth, self._zone)
            or age_range(resource.onset_range, self._birth, self._zone)
        )
        recorded = read(resource.recorded_date, self._zone, "recordedDate")
        clinical = status_code(resource.clinical_status, ("active", "inactive", "resolved"))
        return EventFact(
            "AllergyIntolerance",
            located.reference,
            located.version,
            concept,
            Standing.COUNTS if verification in (None, "confirmed") else Standing.UNCONFIRMED,
            onset or recorded,
            assumed_date=onset is None and recorded is not None,
            start=onset or recorded,
            inactive=clinical in ("inactive", "resolved"),
            verification_missing=verification is None,
            intolerance=resource.type == "intolerance",
            others=substances,
            status=clinical,
            modified=bool(resource.modifier_extension),
            conflicting=located.conflicting,
        )

    def _adverse_event(self, located: Located) -> EventFact | None:
        resource = located.resource
        assert isinstance(resource, AdverseEvent)
        concept = self._terms.concept(resource.event)
        when = (
            read(resource.date, self._zone, "date")
            or read(resource.detected, self._zone, "detected")
            or read(resource.recorded_date, self._zone, "recordedDate")
        )
        grades = [
            coding.display or coding.code or ""
            for stated in (resource.severity, resource.seriousness)
            if stated is not None
            for coding in stated.coding
        ]
        return EventFact(
            "AdverseEvent",
            located.reference,
            located.version,
            concept,
            Standing.UNCONFIRMED if resource.actuality == "potential" else Standing.COUNTS,
            when,
            start=when,
            grade=", ".join(grade for grade in grades if grade) or None,
            modified=bool(resource.modifier_extension),
            conflicting=located.conflicting,
        )


def masked_event(fact: EventFact) -> Masked | None:
    """Give what a record without code and text leaves unproven; None if it has one."""
    if not fact.concept.masked:
        return None
    return Masked(
        fact.type, fact.reference, "neither code nor text", begin=fact.start, when=fact.when
    )
