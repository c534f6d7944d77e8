"""Narrow FHIR R4 resources: only the fields that facts are made of, strictly typed.

Source: FHIR R4 (4.0.1) resource definitions. Fields that exist only in other versions
(STU3, R5) are kept as markers, so that a resource of another version is noticed and not
read as if it were R4 (semantics 1.8). Fields that are read by presence alone are ``Any``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from decimal import Decimal
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")


class _Base(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """Common settings: immutable, camelCase names, not tracked by the garbage collector."""


class Coding(_Base, frozen=True):
    system: str | None = None
    code: str | None = None
    display: str | None = None


class CodeableConcept(_Base, frozen=True):
    coding: tuple[Coding, ...] = ()
    text: str | None = None


class Identifier(_Base, frozen=True):
    system: str | None = None
    value: str | None = None


class Reference(_Base, frozen=True):
    reference: str | None = None
    type: str | None = None
    identifier: Identifier | None = None
    display: str | None = None


class Period(_Base, frozen=True):
    start: str | None = None
    end: str | None = None


class Quantity(_Base, frozen=True):
    value: Decimal | None = None
    comparator: str | None = None
    unit: str | None = None
    system: str | None = None
    code: str | None = None


class Range(_Base, frozen=True):
    low: Quantity | None = None
    high: Quantity | None = None


class Extension(_Base, frozen=True):
    url: str = ""
    value_codeable_concept: CodeableConcept | None = None
    value_coding: Coding | None = None
    value_code: str | None = None
    value_string: str | None = None
    extension: tuple[Extension, ...] = ()


class Meta(_Base, frozen=True):
    version_id: str | None = None
    last_updated: str | None = None


class ReferenceRange(_Base, frozen=True):
    low: Quantity | None = None
    high: Quantity | None = None
    type: CodeableConcept | None = None
    applies_to: tuple[CodeableConcept, ...] = ()
    age: Range | None = None
    text: str | None = None


class Timing(_Base, frozen=True):
    event: tuple[str, ...] = ()


class _Resource(_Base, frozen=True, tag_field="resourceType"):
    id: str | None = None
    meta: Meta | None = None
    contained: tuple[msgspec.Raw, ...] = ()
    modifier_extension: tuple[Any, ...] = ()
    implicit_rules: str | None = None


class ObservationComponent(_Base, frozen=True):
    code: CodeableConcept | None = None
    value_quantity: Quantity | None = None
    value_codeable_concept: CodeableConcept | None = None
    value_string: str | None = None
    value_boolean: bool | None = None
    value_integer: int | None = None
    value_range: Range | None = None
    value_ratio: Any = None
    value_sampled_data: Any = None
    value_time: Any = None
    value_date_time: Any = None
    value_period: Any = None
    data_absent_reason: CodeableConcept | None = None
    interpretation: tuple[CodeableConcept, ...] = ()
    reference_range: tuple[ReferenceRange, ...] = ()
    modifier_extension: tuple[Any, ...] = ()


class Observation(_Resource, frozen=True, tag="Observation"):
    status: str | None = None
    code: CodeableConcept | None = None
    subject: Reference | None = None
    focus: tuple[Reference, ...] = ()
    effective_date_time: str | None = None
    effective_instant: str | None = None
    effective_period: Period | None = None
    effective_timing: Timing | None = None
    issued: str | None = None
    value_quantity: Quantity | None = None
    value_codeable_concept: CodeableConcept | None = None
    value_string: str | None = None
    value_boolean: bool | None = None
    value_integer: int | None = None
    value_range: Range | None = None
    value_ratio: Any = None
    value_sampled_data: Any = None
    value_time: Any = None
    value_date_time: Any = None
    value_period: Any = None
    data_absent_reason: CodeableConcept | None = None
    interpretation: tuple[CodeableConcept, ...] = ()
    method: CodeableConcept | None = None
    reference_range: tuple[ReferenceRange, ...] = ()
    has_member: tuple[Reference, ...] = ()
    component: tuple[ObservationComponent, ...] = ()
    # Of other versions: STU3 context, related; R5 triggeredBy, bodyStructure, value[x].
    context: Any = None
    related: Any = None
    triggered_by: Any = None
    body_structure: Any = None
    instantiates_canonical: Any = None
    instantiates_reference: Any = None
    value_attachment: Any = None
    value_reference: Any = None


class DiagnosticReport(_Resource, frozen=True, tag="DiagnosticReport"):
    status: str | None = None
    code: CodeableConcept | None = None
    subject: Reference | None = None
    effective_date_time: str | None = None
    effective_period: Period | None = None
    issued: str | None = None
    result: tuple[Reference, ...] = ()
    context: Any = None


class PatientLink(_Base, frozen=True):
    other: Reference | None = None
    type: str | None = None


class Patient(_Resource, frozen=True, tag="Patient"):
    identifier: tuple[Identifier, ...] = ()
    extension: tuple[Extension, ...] = ()
    gender: str | None = None
    birth_date: str | None = None
    deceased_boolean: bool | None = None
    deceased_date_time: str | None = None
    link: tuple[PatientLink, ...] = ()
    animal: Any = None


class Condition(_Resource, frozen=True, tag="Condition"):
    extension: tuple[Extension, ...] = ()
    clinical_status: CodeableConcept | None = None
    verification_status: CodeableConcept | None = None
    category: tuple[CodeableConcept, ...] = ()
    code: CodeableConcept | None = None
    subject: Reference | None = None
    onset_date_time: str | None = None
    onset_age: Quantity | None = None
    onset_period: Period | None = None
    onset_range: Range | None = None
    onset_string: str | None = None
    abatement_date_time: str | None = None
    abatement_age: Quantity | None = None
    abatement_period: Period | None = None
    abatement_range: Range | None = None
    abatement_string: str | None = None
    recorded_date: str | None = None
    # Of other versions: STU3 context, assertedDate, abatementBoolean; R5 participant.
    context: Any = None
    asserted_date: Any = None
    abatement_boolean: Any = None
    participant: Any = None


class Procedure(_Resource, frozen=True, tag="Procedure"):
    status: str | None = None
    category: CodeableConcept | None = None
    code: CodeableConcept | None = None
    subject: Reference | None = None
    performed_date_time: str | None = None
    performed_period: Period | None = None
    performed_string: str | None = None
    performed_age: Quantity | None = None
    performed_range: Range | None = None
    # Of other versions: STU3 context, notDone; R5 occurrence[x], reported[x], recorded.
    context: Any = None
    not_done: Any = None
    occurrence_date_time: Any = None
    occurrence_period: Any = None
    reported_boolean: Any = None
    recorded: Any = None


class MedicationIngredient(_Base, frozen=True):
    item_codeable_concept: CodeableConcept | None = None


class Medication(_Resource, frozen=True, tag="Medication"):
    code: CodeableConcept | None = None
    ingredient: tuple[MedicationIngredient, ...] = ()


class MedicationRequest(_Resource, frozen=True, tag="MedicationRequest"):
    status: str | None = None
    intent: str | None = None
    do_not_perform: bool | None = None
    medication_codeable_concept: CodeableConcept | None = None
    medication_reference: Reference | None = None
    subject: Reference | None = None
    authored_on: str | None = None
    reason_code: tuple[CodeableConcept, ...] = ()
    reason_reference: tuple[Reference, ...] = ()
    # Of other versions: STU3 context, definition; R5 medication, reason.
    context: Any = None
    definition: Any = None
    medication: Any = None
    reason: Any = None


class MedicationAdministration(_Resource, frozen=True, tag="MedicationAdministration"):
    status: str | None = None
    medication_codeable_concept: CodeableConcept | None = None
    medication_reference: Reference | None = None
    subject: Reference | None = None
    effective_date_time: str | None = None
    effective_period: Period | None = None
    reason_code: tuple[CodeableConcept, ...] = ()
    reason_reference: tuple[Reference, ...] = ()
    # Of other versions: STU3 notGiven, prescription; R5 medication, occurence[x].
    not_given: Any = None
    prescription: Any = None
    medication: Any = None
    occurence_date_time: Any = None
    occurence_period: Any = None


class MedicationStatement(_Resource, frozen=True, tag="MedicationStatement"):
    status: str | None = None
    medication_codeable_concept: CodeableConcept | None = None
    medication_reference: Reference | None = None
    subject: Reference | None = None
    effective_date_time: str | None = None
    effective_period: Period | None = None
    date_asserted: str | None = None
    reason_code: tuple[CodeableConcept, ...] = ()
    reason_reference: tuple[Reference, ...] = ()
    # Of other versions: STU3 taken, reasonNotTaken; R5 medication, adherence.
    taken: Any = None
    medication: Any = None
    adherence: Any = None


class MedicationDispense(_Resource, frozen=True, tag="MedicationDispense"):
    status: str | None = None
    medication_codeable_concept: CodeableConcept | None = None
    medication_reference: Reference | None = None
    subject: Reference | None = None
    when_prepared: str | None = None
    when_handed_over: str | None = None
    # Of other versions: STU3 notDone; R5 medication.
    not_done: Any = None
    medication: Any = None


class Immunization(_Resource, frozen=True, tag="Immunization"):
    status: str | None = None
    vaccine_code: CodeableConcept | None = None
    patient: Reference | None = None
    occurrence_date_time: str | None = None
    occurrence_string: str | None = None
    # Of STU3: date, notGiven.
    date: Any = None
    not_given: Any = None


class Reaction(_Base, frozen=True):
    substance: CodeableConcept | None = None


class AllergyIntolerance(_Resource, frozen=True, tag="AllergyIntolerance"):
    clinical_status: CodeableConcept | None = None
    verification_status: CodeableConcept | None = None
    type: str | None = None
    code: CodeableConcept | None = None
    patient: Reference | None = None
    onset_date_time: str | None = None
    onset_age: Quantity | None = None
    onset_period: Period | None = None
    onset_range: Range | None = None
    onset_string: str | None = None
    recorded_date: str | None = None
    last_occurrence: str | None = None
    reaction: tuple[Reaction, ...] = ()
    # Of other versions: STU3 assertedDate; R5 participant.
    asserted_date: Any = None
    participant: Any = None


class ResearchStudy(_Resource, frozen=True, tag="ResearchStudy"):
    identifier: tuple[Identifier, ...] = ()
    title: str | None = None


class ResearchSubject(_Resource, frozen=True, tag="ResearchSubject"):
    status: str | None = None
    period: Period | None = None
    study: Reference | None = None
    individual: Reference | None = None
    # Of R5: subject, progress.
    subject: Any = None
    progress: Any = None


class ConsentPolicy(_Base, frozen=True):
    authority: str | None = None
    uri: str | None = None


class ConsentProvision(_Base, frozen=True):
    type: str | None = None
    period: Period | None = None
    provision: tuple[ConsentProvision, ...] = ()


class Attachment(_Base, frozen=True):
    title: str | None = None
    url: str | None = None


class Narrative(_Base, frozen=True):
    div: str | None = None


class Consent(_Resource, frozen=True, tag="Consent"):
    text: Narrative | None = None
    identifier: tuple[Identifier, ...] = ()
    status: str | None = None
    scope: CodeableConcept | None = None
    category: tuple[CodeableConcept, ...] = ()
    patient: Reference | None = None
    date_time: str | None = None
    source_attachment: Attachment | None = None
    source_reference: Reference | None = None
    policy: tuple[ConsentPolicy, ...] = ()
    policy_rule: CodeableConcept | None = None
    provision: ConsentProvision | None = None
    # Of R5: subject, grantee, decision.
    subject: Any = None
    grantee: Any = None
    decision: Any = None


class AdverseEvent(_Resource, frozen=True, tag="AdverseEvent"):
    actuality: str | None = None
    event: CodeableConcept | None = None
    subject: Reference | None = None
    date: str | None = None
    detected: str | None = None
    recorded_date: str | None = None
    severity: CodeableConcept | None = None
    seriousness: CodeableConcept | None = None
    # Of R5: code, occurrence[x].
    code: Any = None
    occurrence_date_time: Any = None


Clinical = (
    Observation
    | DiagnosticReport
    | Condition
    | Procedure
    | Medication
    | MedicationRequest
    | MedicationAdministration
    | MedicationStatement
    | MedicationDispense
    | Immunization
    | AllergyIntolerance
    | ResearchStudy
    | ResearchSubject
    | Consent
    | AdverseEvent
)
Resource = Patient | Clinical

_TYPES: tuple[type[_Resource], ...] = (
    Patient,
    Observation,
    DiagnosticReport,
    Condition,
    Procedure,
    Medication,
    MedicationRequest,
    MedicationAdministration,
    MedicationStatement,
    MedicationDispense,
    Immunization,
    AllergyIntolerance,
    ResearchStudy,
    ResearchSubject,
    Consent,
    AdverseEvent,
)
READ_TYPES = frozenset(kind.__name__ for kind in _TYPES)

# Fields that R4 (and R4B) do not have: their presence shows another version of FHIR.
_FOREIGN: dict[type[_Resource], tuple[str, ...]] = {
    Observation: (
        "context",
        "related",
        "triggered_by",
        "body_structure",
        "instantiates_canonical",
        "instantiates_reference",
        "value_attachment",
        "value_reference",
    ),
    DiagnosticReport: ("context",),
    Condition: ("context", "asserted_date", "abatement_boolean", "participant"),
    Procedure: (
        "context",
        "not_done",
        "occurrence_date_time",
        "occurrence_period",
        "reported_boolean",
        "recorded",
    ),
    MedicationRequest: ("context", "definition", "medication", "reason"),
    MedicationAdministration: (
        "not_given",
        "prescription",
        "medication",
        "occurence_date_time",
        "occurence_period",
    ),
    MedicationStatement: ("taken", "medication", "adherence"),
    MedicationDispense: ("not_done", "medication"),
    Immunization: ("date", "not_given"),
    AllergyIntolerance: ("asserted_date", "participant"),
    ResearchSubject: ("subject", "progress"),
    Consent: ("subject", "grantee", "decision"),
    AdverseEvent: ("code", "occurrence_date_time"),
    Patient: ("animal",),
}


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """Read several fields at once, as a tuple also for one."""
    if len(names) == 1:
        single = attrgetter(names[0])
        return lambda resource: (single(resource),)
    return attrgetter(*names)


_FOREIGN_FIELDS = {kind: _getter(names) for kind, names in _FOREIGN.items()}


class Other(msgspec.Struct, frozen=True):
    """A resource of a type that no rule reads."""

    type: str
    id: str | None


class Unreadable(Exception):
    """A resource that can't be used; the text holds no patient data.

    ``type`` and ``id`` are what could be made out; ``code`` is its main code, if that can
    be read, so that an irrelevant resource needs not count as masked (semantics 1.8);
    ``subject`` is the reference to its patient if that can be read.
    """

    def __init__(
        self,
        problem: str,
        *,
        type: str | None = None,
        id: str | None = None,
        code: CodeableConcept | None = None,
        subject: Reference | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.type = type
        self.id = id
        self.code = code
        self.subject = subject


_DECODER: msgspec.json.Decoder[Resource] = msgspec.json.Decoder(Resource)
_CODE_FIELDS = ("code", "medicationCodeableConcept", "vaccineCode", "event", "medication")
_SUBJECT_FIELDS = ("subject", "patient", "individual")


def decode(raw: bytes | msgspec.Raw) -> Resource | Other:
    """Decode one resource; raises Unreadable if it isn't usable R4."""
    try:
        resource = _DECODER.decode(raw)
    except msgspec.ValidationError as error:
        return _other(raw, _why(error))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _not_json(raw) from error
    foreign = _FOREIGN_FIELDS.get(type(resource))
    if foreign is not None and foreign(resource).count(None) != len(_FOREIGN[type(resource)]):
        raise _unreadable(raw, "a resource of another FHIR version than R4")
    return resource


def _why(error: msgspec.ValidationError) -> str:
    # msgspec names types and the path, and quotes values only of enumerations and tags.
    text = str(error)
    return "not a valid R4 resource" + (
        f" at {text.rsplit(' - at ', 1)[1]}" if " - at " in text else ""
    )


class _Kind(msgspec.Struct, rename="camel"):
    resource_type: str


_KINDS = msgspec.json.Decoder(_Kind)


def _not_json(raw: bytes | msgspec.Raw) -> Unreadable:
    # A text within may be damaged, although the type, and whose it is, can be read.
    with contextlib.suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError):
        kind = _KINDS.decode(raw).resource_type
        loose = json.loads(bytes(raw).decode("utf-8", "replace"), strict=False)
        if kind in READ_TYPES and loose.get("resourceType") == kind:
            error = _described(loose, "not JSON")
            error.code = error.code if _is_whole(error.code) else None
            error.subject = error.subject if _is_whole(error.subject) else None
            error.id = error.id if _is_whole(error.id) else None
            return error
    return Unreadable("not JSON")


def _is_whole(value: object) -> bool:
    """Tell whether no text of a value is damaged."""
    text = repr(value)
    return "\ufffd" not in text and "\\" not in text


def _loose(raw: bytes | msgspec.Raw) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _not_json(raw) from error
    if not isinstance(found, dict):
        raise Unreadable("not a JSON object")
    return found


def _other(raw: bytes | msgspec.Raw, why: str) -> Other:
    loose = _loose(raw)
    kind = loose.get("resourceType")
    if not isinstance(kind, str):
        raise Unreadable("no resourceType")
    if kind not in READ_TYPES:
        found = loose.get("id")
        return Other(kind[:64], found if isinstance(found, str) else None)
    raise _unreadable(raw, why)


def _unreadable(raw: bytes | msgspec.Raw, why: str) -> Unreadable:
    return _described(_loose(raw), why)


def _described(loose: dict[str, Any], why: str) -> Unreadable:
    kind, found = loose.get("resourceType"), loose.get("id")
    subject = next((loose[name] for name in _SUBJECT_FIELDS if loose.get(name) is not None), None)
    return Unreadable(
        why,
        type=kind if isinstance(kind, str) else None,
        id=found if isinstance(found, str) else None,
        code=_joined_code(loose),
        subject=_convert(subject, Reference),
    )


# Codings of these systems say why there is no code (masked, unknown): they are none.
NO_CODE_SYSTEMS = frozenset(
    (
        "http://terminology.hl7.org/CodeSystem/data-absent-reason",
        "http://hl7.org/fhir/data-absent-reason",
        "http://terminology.hl7.org/CodeSystem/v3-NullFlavor",
        "http://hl7.org/fhir/v3/NullFlavor",
        "urn:oid:2.16.840.1.113883.5.1008",
    )
)
# Of these the ones that say that there is a code, but it is withheld.
MASKED_CODES = ("masked", "MSK")


def withheld(concept: CodeableConcept) -> bool:
    """Tell whether a concept holds no code, but says that one is withheld, or nothing at all."""
    codes = [coding for coding in concept.coding if coding.code]
    if any(coding.system not in NO_CODE_SYSTEMS for coding in codes):
        return False
    return not concept.text or any(coding.code in MASKED_CODES for coding in codes)


def _joined_code(loose: dict[str, Any]) -> CodeableConcept | None:
    """Join all codes that tell what a resource may be; None if that can't be told.

    A panel may hold any result; a component, a category or a reaction's substance may be
    what a rule looks for, beside the main code.
    """
    if loose.get("hasMember") or loose.get("resourceType") == "DiagnosticReport":
        return None
    stated = [loose[name] for name in _CODE_FIELDS if loose.get(name) is not None]
    main = _convert(stated[0], CodeableConcept) if stated else None
    if stated and (main is None or withheld(main)) and not _has_concept(stated[0]):
        return None
    for field, inner in (("component", "code"), ("reaction", "substance")):
        for part in _listed(loose.get(field)):
            if not isinstance(part, dict):
                return None
            if part.get(inner) is not None:
                stated.append(part[inner])
    if loose.get("resourceType") == "Procedure" and loose.get("category") is not None:
        stated.append(loose["category"])
    codings: tuple[Coding, ...] = ()
    texts: list[str] = []
    for value in stated:
        # In R5 a CodeableReference holds the concept.
        concept = _convert(value["concept"] if _has_concept(value) else value, CodeableConcept)
        if concept is None:
            return None
        codings += concept.coding
        texts += [concept.text] if concept.text else []
    return CodeableConcept(codings, "; ".join(texts) or None) if stated else None


def _has_concept(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("concept"), dict)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _convert(value: object, kind: type[_T]) -> _T | None:
    try:
        return None if value is None else msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None
