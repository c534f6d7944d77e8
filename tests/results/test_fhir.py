"""GuidanceResponse: valid FHIR whatever the record holds, and what it says (issue: HTTP API)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.criteria.model import Evidence, Result, Settles, VerdictCode
from service.results.fhir import guidance_response
from service.results.fhirtypes import date_time, reference, string
from service.values.logic import Outcome, Reason
from tests.results.shapes import BASE, OPEN, PASSED, VERDICTS, check_r4b, verdict


def response(name: str) -> dict[str, Any]:
    return guidance_response(VERDICTS[name], canonical_base=BASE)


def parameters(resource: dict[str, Any]) -> list[dict[str, Any]]:
    (found,) = (one for one in resource["contained"] if one["resourceType"] == "Parameters")
    listed: list[dict[str, Any]] = found["parameter"]
    return listed


def criterion(resource: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    for parameter in parameters(resource):
        if {"name": "id", "valueString": name} in parameter.get("part", ()):
            return [
                next((part["name"], value) for key, value in part.items() if key != "name")
                for part in parameter["part"]
            ]
    raise AssertionError(name)


@pytest.mark.parametrize("name", VERDICTS)
def test_every_shape_is_valid(name: str) -> None:
    check_r4b(response(name))


@pytest.mark.parametrize("name", VERDICTS)
def test_every_contained_resource_is_referred_to(name: str) -> None:
    found = response(name)
    references = [found["outputParameters"], *found.get("evaluationMessage", ())]
    assert {"#" + one["id"] for one in found["contained"]} == {
        one["reference"] for one in references
    }


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("eligible", "success"),
        ("ineligible", "success"),
        ("ineligible-open", "data-requested"),
        ("open", "data-required"),
    ],
)
def test_the_status_says_whether_data_is_missing(name: str, status: str) -> None:
    assert response(name)["status"] == status


def test_the_head_names_criteria_version_patient_and_day() -> None:
    found = guidance_response(
        VERDICTS["eligible"],
        canonical_base=BASE,
        produced=datetime(2026, 11, 2, 3, 4, 5, tzinfo=UTC),
    )
    assert found["moduleCanonical"] == f"{BASE}/PlanDefinition/NCT06056752|1.0.0"
    assert found["subject"] == {"reference": "Patient/p1"}
    assert found["occurrenceDateTime"] == "2026-11-01"
    assert found["meta"] == {"lastUpdated": "2026-11-02T03:04:05+00:00"}
    assert parameters(found)[:3] == [
        {"name": "verdict", "valueCode": "eligible"},
        {"name": "asOf", "valueDate": "2026-11-01"},
        {"name": "validUntil", "valueDate": "2026-11-17"},
    ]


def test_parts_follow_their_criterion_and_name_it() -> None:
    found = response("open")
    named = [dict(criterion(found, name)).get("parent") for name in ("I2", "I6")]
    assert named == [None, "I2"]
    assert ("outcome", "unknown") in criterion(found, "I2")
    listed = [
        one["part"][0]["valueString"] for one in parameters(found) if one["name"] == "criterion"
    ]
    assert listed == ["I4", "I2", "I4", "I6"]


def test_evidence_is_version_specific_and_followed_by_its_values() -> None:
    parts = criterion(response("eligible"), "I4")
    start = [name for name, _ in parts].index("evidence")
    assert parts[start : start + 5] == [
        ("evidence", {"reference": "Observation/o1/_history/3", "display": "loinc 11150-0"}),
        ("recorded", "7 %"),
        ("compared", "7 %"),
        ("threshold", ">= 5 %"),
        ("effective", "2026-10-20"),
    ]


def test_missing_data_is_asked_for_once_by_type_codes_and_period() -> None:
    assert response("open")["dataRequirement"] == [
        {
            "type": "Observation",
            "codeFilter": [{"searchParam": "code", "valueSet": f"{BASE}/ValueSet/ecog"}],
            "dateFilter": [
                {
                    "searchParam": "date",
                    "valuePeriod": {"start": "2026-10-04", "end": "2026-11-01"},
                }
            ],
        },
        {"type": "Patient"},
    ]
    assert "dataRequirement" not in response("eligible")


@pytest.mark.parametrize("kind", ["ResearchSubject", "Consent", "Patient"])
def test_a_type_without_codes_is_asked_for_without_codes(kind: str) -> None:
    wanted = Settles("x", kind, ("other-study", "car-t-product"), "2026-10-04", "2026-11-01")
    one = Result("E1", "exclusion", "x", Outcome.UNKNOWN, Reason.NO_DATA, "y", settled_by=(wanted,))
    found = guidance_response(verdict(VerdictCode.POTENTIALLY_ELIGIBLE, one))
    check_r4b(found)
    (required,) = found["dataRequirement"]
    assert required["type"] == kind
    assert "codeFilter" not in required


def test_what_went_wrong_is_in_the_evaluation_message() -> None:
    found = response("ineligible-open")
    (outcome,) = (one for one in found["contained"] if one["resourceType"] == "OperationOutcome")
    assert [issue["severity"] for issue in outcome["issue"]] == ["warning", "error"]
    assert outcome["issue"][0]["diagnostics"].endswith("(Observation, x:2)")
    assert "evaluationMessage" not in response("eligible")


def test_an_attested_outcome_keeps_the_computed_one_beside_it() -> None:
    parts = dict(criterion(response("eligible"), "I11"))
    assert parts["computedOutcome"] == "unknown"
    assert parts["computedReason"] == "judgement-required"


def test_a_period_is_shown_as_text() -> None:
    seen = Evidence("Procedure/1", "2026-01-01 to 2026-02-01")
    one = Result("I4", "inclusion", "x", Outcome.PASS, Reason.RECORD_PRESENT, "y", (seen,))
    found = guidance_response(verdict(VerdictCode.ELIGIBLE, one))
    assert ("effective", "2026-01-01 to 2026-02-01") in criterion(found, "I4")


texts = st.text(max_size=30)
evidences = st.builds(Evidence, texts, *[st.none() | texts] * 6)


@given(st.lists(evidences, max_size=3), texts, st.lists(texts, max_size=2))
def test_no_recorded_text_makes_it_invalid(
    evidence: list[Evidence], message: str, assumptions: list[str]
) -> None:
    one = PASSED
    strange = Result(
        one.id,
        one.kind,
        one.text,
        one.outcome,
        one.reason,
        message,
        tuple(evidence),
        tuple(assumptions),
    )
    found = guidance_response(verdict(VerdictCode.ELIGIBLE, strange, OPEN))
    check_r4b(found)
    msgspec.json.encode(found)


@pytest.mark.parametrize(
    ("target", "version", "expected"),
    [
        ("Observation/1", None, {"reference": "Observation/1"}),
        ("Observation/1", "2", {"reference": "Observation/1/_history/2"}),
        ("Observation/1", "a b", {"reference": "Observation/1"}),
        ("urn:uuid:1", "2", {"reference": "urn:uuid:1"}),
        ("https://s/Observation/1", None, {"reference": "https://s/Observation/1"}),
        ("Observation/#3", None, {"display": "Observation/#3"}),
        ("", None, {"display": "a record without id"}),
    ],
)
def test_references_are_literal_only_where_they_can_be(
    target: str, version: str | None, expected: dict[str, str]
) -> None:
    assert reference(target, version) == expected


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("2026", True), ("2026-11", True), ("2026-11-01", True), ("2026-11-01T10:00:00Z", True),
        ("2026-11-01T10:00:00", False), ("2026-11-01T10:00Z", False), ("2026-02-30", False),
        ("0000", False), ("", False), (None, False), ("yesterday", False),
    ],
)  # fmt: skip
def test_only_valid_times_are_written_as_date_times(text: str | None, valid: bool) -> None:
    assert date_time(text) == (text if valid else None)


def test_strings_lose_what_fhir_forbids() -> None:
    assert string("a\x00b") == "a\ufffdb"
    assert string(" \t\n") is None
    assert len(string("x" * 10_000) or "") == 4_000
