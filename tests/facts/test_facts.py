"""What of a record becomes a fact, what is masked, and what is not used (1.3, 1.5, 1.8)."""

from __future__ import annotations

from typing import Any

import pytest

from service.facts.model import ConditionFact, EventFact, ObservationFact, Standing
from tests.criteria.small import (
    ICD10CM,
    LOINC,
    SNOMED,
    SUBJECT,
    WOMAN,
    Record,
    coded,
    condition,
    event,
    facts,
    measured,
    of_trial,
    result,
    said,
)

HEART_FAILURE = coded(ICD10CM, "I50.9")
HSCT = coded(SNOMED, "58390007")
MASKING = "http://terminology.hl7.org/CodeSystem/data-absent-reason"


@pytest.mark.parametrize(
    ("status", "used"),
    [
        ("final", True),
        ("amended", True),
        ("corrected", True),
        ("preliminary", False),
        ("registered", False),
        ("cancelled", False),
        ("entered-in-error", False),
        ("unknown", False),
        (None, False),
    ],
)
def test_only_final_amended_and_corrected_results_count(status: str | None, used: bool) -> None:
    """Drafts and mistakes say nothing (1.3)."""
    record = measured("o", "2160-0", "1", "mg/dL", status=status)
    if status is None:
        del record["status"]
    assert bool(facts([record]).find("Observation", ("creatinine",))) is used


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("Procedure", "completed", Standing.COUNTS),
        ("Procedure", "in-progress", Standing.COUNTS),
        ("Procedure", "unknown", Standing.UNCONFIRMED),
        ("Procedure", "not-done", None),
        ("Procedure", "preparation", None),
        ("Procedure", "entered-in-error", None),
        ("MedicationAdministration", "completed", Standing.COUNTS),
        ("MedicationAdministration", "in-progress", Standing.COUNTS),
        ("MedicationAdministration", "stopped", Standing.COUNTS),
        ("MedicationAdministration", "on-hold", Standing.COUNTS),
        ("MedicationAdministration", "not-done", None),
        ("MedicationAdministration", "unknown", Standing.UNCONFIRMED),
        ("MedicationRequest", "active", Standing.COUNTS),
        ("MedicationRequest", "draft", None),
        ("MedicationRequest", "cancelled", None),
        ("Immunization", "completed", Standing.COUNTS),
        ("Immunization", "not-done", None),
    ],
)
def test_events_count_by_their_status(kind: str, status: str, expected: Standing | None) -> None:
    """Done counts, unknown is unconfirmed, not done proves nothing (1.5)."""
    record = event(kind, "e", HSCT, "2026-01-01", status=status)
    found = facts([record]).find(kind, ("hsct-procedure",))
    assert [fact.standing for _, fact in found if isinstance(fact, EventFact)] == (
        [] if expected is None else [expected]
    )


@pytest.mark.parametrize("change", [{"intent": "proposal"}, {"doNotPerform": True}])
def test_a_proposal_and_a_prohibition_are_no_orders(change: Record) -> None:
    """They show nothing that was given."""
    record = event("MedicationRequest", "m", HSCT, "2026-01-01", status="active", intent="order")
    ((_, fact),) = facts([record]).find("MedicationRequest", ("hsct-procedure",))
    assert isinstance(fact, EventFact)
    assert fact.order
    assert not facts([record | change]).find("MedicationRequest", ("hsct-procedure",))


@pytest.mark.parametrize(
    ("verification", "used", "confirmed"),
    [
        ("confirmed", True, True),
        (None, True, True),
        ("unconfirmed", True, False),
        ("provisional", True, False),
        ("differential", True, False),
        ("refuted", False, False),
        ("entered-in-error", False, False),
    ],
)
def test_conditions_count_by_their_verification(
    verification: str | None, used: bool, confirmed: bool
) -> None:
    """Refuted is not used; what isn't confirmed can't decide; missing is as confirmed."""
    record = condition("c", HEART_FAILURE, verification=verification)
    found = facts([record]).find("Condition", ("heart-failure",))
    assert bool(found) is used
    for _, fact in found:
        assert isinstance(fact, ConditionFact)
        assert fact.confirmed is confirmed
        assert fact.verification_missing is (verification is None)


@pytest.mark.parametrize(
    "focus",
    [
        {"reference": "RelatedPerson/donor"},
        {"reference": "Patient/fetus"},
        {"reference": "https://elsewhere.example.org/Patient/p1"},
        {"type": "Patient"},
        {"display": "donor"},
    ],
)
def test_a_result_about_someone_else_is_not_used(focus: Record) -> None:
    """Donor or fetus (1.3)."""
    record = measured("o", "2160-0", "1", "mg/dL", focus=[focus])
    assert not facts([record]).find("Observation", ("creatinine",))


@pytest.mark.parametrize(
    "focus", [{"reference": "Patient/p1"}, {"reference": "Condition/c"}, {"type": "Specimen"}]
)
def test_a_result_about_the_patient_or_a_thing_is_used(focus: Record) -> None:
    """A disease status has the disease in focus."""
    record = measured("o", "2160-0", "1", "mg/dL", focus=[focus])
    assert facts([record]).find("Observation", ("creatinine",))


def test_components_are_results_of_their_own() -> None:
    """Each with its code, value and range; the panel's own code may mean nothing."""
    record = result(
        "o",
        "24323-8",
        {},
        component=[
            {"code": coded(LOINC, "2160-0"), "valueQuantity": {"value": 1, "unit": "mg/dL"}},
            {"code": coded(LOINC, "1742-6"), "valueQuantity": {"value": 30, "unit": "U/L"}},
        ],
    )
    known = facts([record])
    for name, value in (("creatinine", 1), ("alt", 30)):
        ((_, fact),) = known.find("Observation", (name,))
        assert isinstance(fact, ObservationFact)
        assert fact.reference == "Observation/o"
        assert fact.quantity is not None
        assert fact.quantity.value == value


# --- masked


@pytest.mark.parametrize(
    "code",
    [
        None,
        {},
        {"text": " "},
        {"coding": [{"system": MASKING, "code": "masked"}]},
        {
            "coding": [
                {
                    "system": "http://terminology.hl7.org/CodeSystem/v3-NullFlavor",
                    "code": "MSK",
                    "display": "masked",
                }
            ]
        },
    ],
)
def test_a_record_without_code_and_text_leaves_absence_open(code: Record | None) -> None:
    """In its own type, whatever is looked for there (1.5)."""
    record = condition("c", code or {})
    if code is None:
        del record["code"]
    assert said(of_trial("E8.heart_failure", [record])) == "unknown source-unavailable"
    assert said(of_trial("E12", [record])) == "pass record-absent"
    (masked,) = facts([record]).masked["Condition"]
    assert masked.reference == "Condition/c"


def test_a_masked_record_outside_the_window_stands_in_nobodys_way() -> None:
    """A stroke within 3 months is not shown by a record of 2020."""
    old = condition("c", {}, "2020-01-01")
    assert said(of_trial("E10", [old])) == "pass record-absent"
    assert said(of_trial("E10", [condition("c", {}, "2026-10-01")])) == (
        "unknown source-unavailable"
    )
    assert said(of_trial("E10", [condition("c", {}, None)])) == "unknown source-unavailable"
    assert said(of_trial("E10", [condition("c", {}, "2026")])) == "unknown source-unavailable"


@pytest.mark.parametrize(
    ("raw", "kinds"),
    [
        (b'{"resourceType": "Condition", "id": "x", "code": 5}', ["Condition"]),
        (b'{"resourceType": "Condition", "id": "x", "co', None),
        (b"not JSON", None),
        (b"[]", None),
        (b'{"id": "x"}', None),
        # The text is damaged, not what it is of.
        (b'{"resourceType": "Condition", "id": "x", "code": {"text": "\xff"}}', ["Condition"]),
        (b'{"resourceType": "Condition", "id": "\xff"}', ["Condition"]),
        # R5: a Condition's participant, a MedicationRequest's medication.
        (
            b'{"resourceType": "MedicationRequest", "id": "x", "medication": {"concept": {}}}',
            ["MedicationRequest"],
        ),
    ],
)
def test_an_unreadable_resource_leaves_its_type_open(raw: bytes, kinds: list[str] | None) -> None:
    """And every type if its own can't be told (1.8)."""
    known = facts([raw])
    assert any(message.severity == "warning" for message in known.messages)
    if kinds is None:
        assert len(known.masked) > 10
    else:
        assert sorted(known.masked) == kinds


def test_an_unreadable_resource_whose_code_is_irrelevant_stands_in_nobodys_way() -> None:
    """A cold is no heart failure, readable or not (1.8)."""
    cold = condition("c", coded(ICD10CM, "J00", "common cold")) | {"meta": 5}
    assert said(of_trial("E8.heart_failure", [cold])) == "pass record-absent"
    failing = condition("c", HEART_FAILURE) | {"meta": 5}
    assert said(of_trial("E8.heart_failure", [failing])) == "unknown source-unavailable"
    assert said(of_trial("E10", [failing])) == "pass record-absent"


def test_an_unknown_modifier_makes_a_record_unconfirmed_and_a_value_unreadable() -> None:
    """It may turn the meaning round (1.3)."""
    modifier: dict[str, Any] = {"modifierExtension": [{"url": "https://example.org/maybe-not"}]}
    assert said(of_trial("E8.heart_failure", [condition("c", HEART_FAILURE, **modifier)])) == (
        "unknown unconfirmed"
    )
    assert said(of_trial("I4", [measured("o", "11150-0", "38", "%", **modifier)])) == (
        "unknown unreadable-value"
    )


# --- the person


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, "pass record-absent"),
        ({"deceasedBoolean": False}, "pass record-absent"),
        ({"deceasedBoolean": True}, "fail record-present"),
        ({"deceasedDateTime": "2026-10-31"}, "fail record-present"),
        ({"deceasedDateTime": "2026-11-01"}, "fail record-present"),
        ({"deceasedDateTime": "2026-11-02"}, "pass record-absent"),
        ({"deceasedDateTime": "2026"}, "fail record-present"),
        ({"deceasedDateTime": "2026-11"}, "fail record-present"),
        ({"deceasedDateTime": "2027"}, "pass record-absent"),
        ({"deceasedDateTime": "unknown"}, "fail record-present"),
    ],
)
def test_a_death_counts_if_it_may_have_happened(stated: Record, expected: str) -> None:
    """By flag, or by a date at or before the day, a partial one if it may be (1.5)."""
    assert said(of_trial("P1", patient={**WOMAN, **stated})) == expected


def test_what_names_nobody_is_reported_and_not_used() -> None:
    """Nor is what names another patient (1.8)."""
    nobody = condition("c", HEART_FAILURE)
    del nobody["subject"]
    other = condition("d", HEART_FAILURE) | {"subject": {"reference": "Patient/other"}}
    for record in (nobody, other):
        known = facts([record])
        assert not known.find("Condition", ("heart-failure",))
        assert any(message.reference == f"Condition/{record['id']}" for message in known.messages)


def test_copies_that_differ_conflict_unless_their_versions_tell() -> None:
    """Same type and id: the newest version, else conflicting-data (1.8)."""
    first = condition("c", HEART_FAILURE)
    second = condition("c", HEART_FAILURE, clinical="resolved")
    assert said(of_trial("E8.heart_failure", [first, second])) == "unknown conflicting-data"
    old, new = ({"meta": {"versionId": version}} for version in ("9", "10"))
    assert said(of_trial("E8.heart_failure", [first | old, second | new])) == "pass record-absent"
    assert said(of_trial("E8.heart_failure", [first | new, second | old])) == "fail record-present"
    assert said(of_trial("E8.heart_failure", [first, first])) == "fail record-present"


def test_no_message_holds_what_a_patient_said_or_had() -> None:
    """Names, values and identifiers stay out of messages, which travel into logs and replies."""
    private = "Inventio-of-Nowhere"
    broken = [
        condition("x", {"text": private}, private),
        measured("y", "2160-0", "1", "mg/dL", private),
        {
            "resourceType": "Observation",
            "id": "z",
            "subject": SUBJECT,
            "status": 5,
            "valueString": private,
        },
        f'{{"resourceType": "Condition", "note": "{private}"'.encode(),
        {"resourceType": "Procedure", "id": "w", "status": {"text": private}, "subject": SUBJECT},
    ]
    assert not any(private in repr(message) for message in facts(broken).messages)
