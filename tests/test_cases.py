"""Every case of the case files gives the outcome that the semantics demand."""

from __future__ import annotations

import pytest

from tests.cases import Case, by_id, criterion_cases

CRITERION_CASES = criterion_cases()


@pytest.mark.parametrize("case", CRITERION_CASES, ids=lambda case: case.name)
def test_the_case_gives_the_outcome_the_semantics_demand(case: Case) -> None:
    """Outcome, reason, evidence, assumptions and validity are as the case file states."""
    results = by_id(case.evaluate())
    expected = {str(case.get("criterion")): case.content["expect"]}
    expected |= case.content.get("expect_also") or {}
    found = {name: f"{results[name].outcome} {results[name].reason}" for name in expected}
    assert found == expected, results[str(case.get("criterion"))].message
    result = results[str(case.get("criterion"))]
    references = {entry.reference for entry in result.evidence}
    assert set(case.content.get("evidence") or ()) <= references
    assert not set(case.content.get("no_evidence") or ()) & references
    for words in case.content.get("assumes") or ():
        assert any(words in assumption for assumption in result.assumptions), result.assumptions
    if "valid_until" in case.content:
        stated = case.content["valid_until"]
        assert case.valid_until() == (None if stated is None else str(stated))
    for reference in case.content.get("rejected") or ():
        reported = {message.reference for message in case.facts().messages}
        assert reference in reported
