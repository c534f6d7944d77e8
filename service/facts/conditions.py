"""Conditions as facts (semantics 1.2, 1.5)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import tzinfo

from service.facts.dates import age_range, read, read_period, year_of_life
from service.facts.model import ConditionFact, Masked
from service.fhir.record import Located
from service.fhir.resources import CodeableConcept, Coding, Condition
from service.terms import Terms
from service.values.dates import When

_HISTOLOGY = "http://hl7.org/fhir/us/mcode/StructureDefinition/mcode-histology-morphology-behavior"
_NOT_USED = ("refuted", "entered-in-error")
VERIFICATION = (
    "unconfirmed",
    "provisional",
    "differential",
    "confirmed",
    "refuted",
    "entered-in-error",
)
_CLINICAL = ("active", "recurrence", "relapse", "inactive", "remission", "resolved")


def status_code(concept: CodeableConcept | None, known: Collection[str] = ()) -> str | None:
    """Give a status code, or its text when there is no code, in lower case.

    Of several codings the first that is one of the known codes.
    """
    if concept is None:
        return None
    codes = [coding.code.strip().lower() for coding in concept.coding if coding.code]
    found = next((code for code in codes if code in known), next(filter(None, codes), None))
    if found is not None:
        return found
    text = concept.text or next((c.display for c in concept.coding if c.display), None)
    return text.strip().lower().replace(" ", "-") if text and text.strip() else None


def condition_facts(
    located: Located, terms: Terms, zone: tzinfo, birth: When | None
) -> Iterator[ConditionFact | Masked]:
    """Yield the fact of one Condition, if any set concerns it. Raises BadDate."""
    resource = located.resource
    assert isinstance(resource, Condition)
    verification = status_code(resource.verification_status, VERIFICATION)
    if verification in _NOT_USED:
        return
    concept = terms.joined(resource.code, _histology(resource))
    if not concept.relevant:
        return
    onset = (
        read(resource.onset_date_time, zone, "onsetDateTime")
        or _period_start(resource, zone)
        or year_of_life(resource.onset_age, birth, zone)
        or age_range(resource.onset_range, birth, zone)
    )
    recorded = read(resource.recorded_date, zone, "recordedDate")
    abated = (
        read(resource.abatement_date_time, zone, "abatementDateTime")
        or _abated_in(resource, zone)
        or year_of_life(resource.abatement_age, birth, zone)
        or age_range(resource.abatement_range, birth, zone)
    )
    begin = onset or recorded
    if concept.masked:
        yield Masked(
            "Condition", located.reference, "neither code nor text", begin=begin, when=begin
        )
        return
    clinical = status_code(resource.clinical_status, _CLINICAL)
    yield ConditionFact(
        reference=located.reference,
        version=located.version,
        concept=concept,
        confirmed=verification in (None, "confirmed"),
        verification_missing=verification is None,
        clinical=clinical if clinical in _CLINICAL else None,
        onset=begin,
        assumed_onset=onset is None and recorded is not None,
        recorded=recorded,
        abated=abated,
        ended=abated is None and _ended(resource),
        modified=bool(resource.modifier_extension),
        conflicting=located.conflicting,
    )


def _ended(resource: Condition) -> bool:
    """Tell whether an end is stated without a time that can be told."""
    age, ages = resource.abatement_age, resource.abatement_range
    return bool(
        (resource.abatement_string or "").strip()
        or (age is not None and age.value is not None)
        or (ages is not None and (ages.low or ages.high) is not None)
    )


def _histology(resource: Condition) -> tuple[Coding, ...]:
    """mCODE states the morphology of a cancer in an extension of the Condition."""
    return tuple(
        coding
        for extension in resource.extension
        if extension.url == _HISTOLOGY and extension.value_codeable_concept
        for coding in extension.value_codeable_concept.coding
    )


def _period_start(resource: Condition, zone: tzinfo) -> When | None:
    period = resource.onset_period
    read_period(period, zone, "onsetPeriod")
    return read(period.start, zone, "onsetPeriod.start") if period else None


def _abated_in(resource: Condition, zone: tzinfo) -> When | None:
    """An abatement period is over at its end; one that has only begun leaves that open."""
    period = resource.abatement_period
    if period is None:
        return None
    whole = read_period(period, zone, "abatementPeriod")
    return read(period.end, zone, "abatementPeriod.end") or whole
