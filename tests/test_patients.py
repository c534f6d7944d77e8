"""Every fixture patient gets the outcomes that its case file states for a physician to check."""

from __future__ import annotations

import pytest

from tests.cases import PatientCase, by_id, patient_cases

PATIENT_CASES = patient_cases()


@pytest.mark.parametrize("case", PATIENT_CASES, ids=lambda case: case.name)
def test_the_patient_gets_the_outcomes_of_its_case_file(case: PatientCase) -> None:
    """Every criterion and part, the verdict, and how long it holds."""
    verdict = case.evaluate()
    found = {name: f"{r.outcome} {r.reason}" for name, r in by_id(verdict).items()}
    assert found == case.expected
    assert verdict.code == case.content["verdict"]
    if "valid_until" in case.content:
        stated = case.content["valid_until"]
        assert verdict.valid_until == (None if stated is None else str(stated))


def test_there_are_thirty_patients_and_more() -> None:
    """The shipped patients show the service at its best and worst."""
    assert len(PATIENT_CASES) >= 30
