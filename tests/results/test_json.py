"""The JSON line: a contract with other programs (issue: Command line)."""

from __future__ import annotations

import json

import pytest

from service.results.json import verdict_line
from tests.results.shapes import VERDICTS

TOP = ["trial", "patient", "asOf", "verdict", "validUntil", "criteria"]
CRITERION = [
    "id", "kind", "outcome", "reason", "message", "evidence", "assumptions", "settledBy", "parts",
]  # fmt: skip
EVIDENCE = ["reference", "date", "recorded", "compared"]


@pytest.mark.parametrize("name", VERDICTS)
def test_keys_come_in_the_order_of_the_contract(name: str) -> None:
    line = verdict_line(VERDICTS[name])
    assert "\n" not in line
    found = json.loads(line)
    assert list(found) == TOP
    for criterion in found["criteria"]:
        assert list(criterion)[: len(CRITERION)] == CRITERION
        for evidence in criterion["evidence"]:
            assert list(evidence)[: len(EVIDENCE)] == EVIDENCE


def test_parts_are_nested_and_what_settles_is_text() -> None:
    found = json.loads(verdict_line(VERDICTS["open"]))
    assert found["validUntil"] is None
    assert found["verdict"] == "potentially-eligible"
    parent = found["criteria"][1]
    assert [part["id"] for part in parent["parts"]] == ["I4", "I6"]
    assert parent["parts"][1]["settledBy"] == [
        "an ECOG status (Observation in ecog)",
        "the investigator's judgement",
        "the date of birth (Patient)",
    ]


def test_an_attested_outcome_keeps_the_computed_one() -> None:
    found = json.loads(verdict_line(VERDICTS["eligible"]))
    assert found["criteria"][1]["computed"] == {
        "outcome": "unknown",
        "reason": "judgement-required",
    }
    assert "computed" not in found["criteria"][0]
