"""Site readiness: what a source has, and what is missing or unmapped there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.config import Settings
from service.coverage import Coverage, Incomplete, MissingRange, UnknownUnit, survey
from service.fhir.files import FileSource
from service.wiring import build_screening

SCREENING = build_screening(Settings())
TRIAL = SCREENING.trial("NCT06056752")
LOCAL = "https://hospital.example.org/codes"


def observation(number: int, code: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make a result."""
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "code": code,
        "subject": {"reference": "Patient/p1"},
        **more,
    }


def surveyed(folder: Path, *resources: dict[str, Any], patients: int = 1) -> Coverage:
    """Survey a folder of so many patients with the same resources."""
    for number in range(1, patients + 1):
        entries = [{"resourceType": "Patient", "id": "p1", "gender": "female"}, *resources]
        text = json.dumps(
            {
                "resourceType": "Bundle",
                "type": "collection",
                "entry": [{"resource": resource} for resource in entries],
            }
        )
        text = text.replace('"p1"', f'"p{number}"').replace("/p1", f"/p{number}")
        (folder / f"{number}.json").write_text(text.replace('"o', f'"o{number}-'), "utf-8")
    source = FileSource(folder)
    return survey(source, source.patient_ids(), TRIAL, SCREENING.terms)


def creatinine(**value: Any) -> dict[str, Any]:
    """Make a result of creatinine."""
    code = {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]}
    return observation(1, code, valueQuantity={"value": 0.9, **value})


def test_sets_are_ranked_by_patients_who_have_a_record_in_them(tmp_path: Path) -> None:
    found = surveyed(tmp_path, creatinine(unit="mg/dL"), patients=3)
    assert found.patients == 3
    assert found.sets[0][:1] == ("creatinine",)
    assert found.sets[0].patients == 3
    assert {one.patients for one in found.sets[1:]} == {0}
    assert {one.name for one in found.sets} == set(TRIAL.sets())


def test_a_look_alike_does_not_count_as_data(tmp_path: Path) -> None:
    urine = {"coding": [{"system": "http://loinc.org", "code": "2161-8"}]}
    found = surveyed(tmp_path, observation(1, urine, valueQuantity={"value": 90, "unit": "mg/dL"}))
    assert found.sets[0].patients == 0


@pytest.mark.parametrize("unit", ["", "furlong"])
def test_units_that_do_not_convert_are_listed(tmp_path: Path, unit: str) -> None:
    found = surveyed(tmp_path, creatinine(**({"unit": unit} if unit else {})))
    assert found.units == (UnknownUnit("creatinine", unit, 1),)


def test_results_without_a_reference_range_are_listed_where_it_is_needed(tmp_path: Path) -> None:
    code = {"coding": [{"system": "http://loinc.org", "code": "11150-0"}]}
    blasts = observation(2, code, valueQuantity={"value": 5, "unit": "%"})
    found = surveyed(tmp_path, creatinine(unit="mg/dL"), blasts)
    assert found.ranges == (MissingRange("creatinine", 1),)


def test_local_codes_are_listed_with_most_patients_first(tmp_path: Path) -> None:
    local = {"coding": [{"system": LOCAL, "code": "KREA", "display": "Creatinine"}]}
    found = surveyed(tmp_path, observation(1, local), patients=2)
    (one,) = found.unmapped
    assert (one.system, one.code, one.display, one.patients) == (LOCAL, "KREA", "Creatinine", 2)


def test_a_code_whose_text_names_a_class_is_listed_with_the_set(tmp_path: Path) -> None:
    condition = {
        "resourceType": "Condition",
        "id": "o1",
        "subject": {"reference": "Patient/p1"},
        "code": {
            "coding": [
                {
                    "system": "http://snomed.info/sct",
                    "code": "999999999",
                    "display": "Chronic congestive heart failure of a rare kind",
                }
            ]
        },
    }
    (one,) = surveyed(tmp_path, condition).unmapped
    assert one.may_belong_to == ("heart-failure",)


def test_free_text_stays_out_of_the_report(tmp_path: Path) -> None:
    condition = {
        "resourceType": "Condition",
        "id": "o1",
        "subject": {"reference": "Patient/p1"},
        "code": {"text": "heart failure, told by her neighbour Mrs Example"},
    }
    found = surveyed(tmp_path, condition)
    assert "Example" not in repr(found)
    assert found.unmapped[0].may_belong_to == ("heart-failure",)


def test_types_that_were_not_read_completely_are_listed(tmp_path: Path) -> None:
    (tmp_path / "Condition.ndjson").write_text('{"resourceType": "Condition", "id": \n', "utf-8")
    found = surveyed(tmp_path, creatinine(unit="mg/dL"))
    assert [(one.type, one.patients) for one in found.incomplete] == [("Condition", 1)]
    assert isinstance(found.incomplete[0], Incomplete)


def test_a_patient_who_cannot_be_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(
        json.dumps({"resourceType": "Patient", "id": "p1", "gender": "female"}), "utf-8"
    )
    source = FileSource(tmp_path)
    found = survey(source, ["p1", "nobody"], TRIAL, SCREENING.terms)
    assert (found.patients, found.failed) == (1, 1)
