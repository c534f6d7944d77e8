"""The Patient resource as facts: sex, birth, death (semantics 1.2, 1.4, 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from service.facts.model import Person
from service.fhir.record import Located
from service.fhir.resources import Extension, Patient
from service.values.dates import When, parse

# Extensions that state a sex beside ``gender``: US Core birth sex and sex, R5 backport.
_SEX_EXTENSIONS = (
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex",
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-sex",
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-individual-sex",
    "http://hl7.org/fhir/StructureDefinition/patient-birthSex",
    "http://hl7.org/fhir/StructureDefinition/individual-recordedSexOrGender",
)
_SEX_CODES = {
    "m": "male",
    "male": "male",
    "248153007": "male",
    "f": "female",
    "female": "female",
    "248152002": "female",
}
# These say that the sex was not asked or is not known: they contradict nothing.
_NO_STATEMENT = {"unk", "asku", "nask", "ni", "unknown", "asked-declined", "asked-unknown"}


def person_of(located: Located, zone: tzinfo, merged: Sequence[Located] = ()) -> Person:
    """Read the Patient; an unreadable birth date is kept as a problem, not as absent.

    ``merged``: the Patients merged into this one. A death that is on record with one of
    them only is this patient's all the same (1.5: both ids' records are read).
    """
    patient = located.resource
    assert isinstance(patient, Patient)
    birth: When | None = None
    problem: str | None = None
    if patient.birth_date is not None:
        try:
            birth = parse(patient.birth_date, zone)
        except ValueError:
            problem = "birthDate is not a FHIR date"
    deceased, died = _death(patient, zone)
    for other in merged:
        assert isinstance(other.resource, Patient)
        also, day = _death(other.resource, zone)
        deceased, died = deceased or also, died or day
    return Person(
        reference=located.reference,
        version=located.version,
        gender=patient.gender,
        # Of copies that differ none says which sex holds (1.8).
        sex=None if located.conflicting else _sex(patient),
        birth=birth,
        birth_problem=problem,
        deceased=deceased,
        died=died,
        conflicting=located.conflicting,
    )


def _death(patient: Patient, zone: tzinfo) -> tuple[bool | None, When | None]:
    """Read whether and when a Patient died."""
    if not patient.deceased_date_time:
        return patient.deceased_boolean, None
    try:
        return patient.deceased_boolean, parse(patient.deceased_date_time, zone)
    except ValueError:
        # A date of death that can't be read still says that the patient died.
        return True, None


def _sex(patient: Patient) -> str | None:
    sex = patient.gender if patient.gender in ("male", "female") else None
    for stated in _stated(patient.extension):
        if stated not in _NO_STATEMENT and _SEX_CODES.get(stated) != patient.gender:
            return None
    return sex


def _stated(extensions: tuple[Extension, ...]) -> list[str]:
    found: list[str] = []
    for extension in extensions:
        if extension.url not in _SEX_EXTENSIONS:
            continue
        values = [extension, *(part for part in extension.extension if part.url == "value")]
        for value in values:
            if value.value_code:
                found.append(value.value_code.lower())
            if value.value_coding and value.value_coding.code:
                found.append(value.value_coding.code.lower())
            if value.value_codeable_concept:
                found.extend(
                    coding.code.lower()
                    for coding in value.value_codeable_concept.coding
                    if coding.code
                )
    return found
