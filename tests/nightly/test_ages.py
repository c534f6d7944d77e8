"""Birth dates without day or month at the age limit, in a search of many patients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.nightly.making import condition, one_by_one, patient, search, verdicts, write_types

# Fourteen years before the day of the evaluation, 1 November 2026.
BORN = {
    "2011": "pass",
    "2012": "unknown",
    "2013": "fail",
    "2012-10": "pass",
    "2012-11": "unknown",
    "2012-12": "fail",
    "2012-10-31": "pass",
    "2012-11-01": "pass",
    "2012-11-02": "fail",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_birth_date_without_day_is_decided_only_if_all_its_days_agree(
    tmp_path: Path, workers: int
) -> None:
    resources = []
    for born in BORN:
        resources += [
            patient(f"p{born}", birthDate=born),
            condition(f"c{born}", f"Patient/p{born}"),
        ]
    source = write_types(tmp_path / "in", resources)
    statement = search(source, tmp_path / "out", workers=workers)
    found = {}
    for line in verdicts(tmp_path / "out"):
        verdict = json.loads(line)
        outcomes = {each["id"]: each["outcome"] for each in verdict["criteria"]}
        found[verdict["patient"].removeprefix("Patient/p")] = outcomes["I1"]
    assert found == BORN
    assert statement.evaluated == len(BORN)
    assert verdicts(tmp_path / "out") == one_by_one(source)
