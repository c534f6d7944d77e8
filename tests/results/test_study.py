"""The trial, its code sets and the service itself as FHIR resources."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.results import study
from tests.results.shapes import BASE, check_r4b, definitions, screening


def test_every_definition_is_valid() -> None:
    for resource in definitions():
        check_r4b(resource)


def test_ids_and_names_are_unique_and_computer_friendly() -> None:
    sets = [one for one in definitions() if one["resourceType"] == "ValueSet"]
    assert len({one["id"] for one in sets}) == len(sets) == len({one["name"] for one in sets})
    for one in sets:
        assert re.fullmatch(r"[A-Z][A-Za-z0-9_]{0,254}", one["name"])
        assert re.fullmatch(r"[A-Za-z0-9.-]{1,64}", one["id"])


def test_the_study_leads_to_its_criteria() -> None:
    (trial,) = screening().trials.values()
    found = study.research_study(trial)
    assert found["enrollment"] == [{"reference": f"Group/{trial.id}"}]
    assert found["protocol"] == [{"reference": f"PlanDefinition/{trial.id}"}]
    assert {"system": "https://clinicaltrials.gov", "value": trial.id} in found["identifier"]


def test_the_criteria_keep_order_sentence_and_parts() -> None:
    (trial,) = screening().trials.values()
    group = study.group(trial, BASE)["characteristic"]
    codes = [one["code"]["coding"][0]["code"] for one in group]
    assert codes == [criterion.id for criterion in trial.criteria]
    assert all(
        one["exclude"] == code.startswith("E") for one, code in zip(group, codes, strict=True)
    )
    plan = study.plan_definition(trial, BASE)
    seen: list[str] = []

    def visit(actions: list[dict[str, Any]]) -> None:
        for action in actions:
            seen.append(action["prefix"])
            visit(action.get("action", []))

    visit(plan["action"])
    assert seen == list(trial.by_id)


def test_a_value_set_holds_what_its_code_set_does() -> None:
    sets = screening().terms.sets
    for name, code_set in sets.items():
        compose = study.value_set(code_set, BASE).get("compose", {})
        parts = [*compose.get("include", ()), *compose.get("exclude", ())]
        held = sum(len(part.get("concept", ())) + len(part.get("filter", ())) for part in parts)
        has_include = any(row.role != "exclude" for row in code_set.rows)
        assert held == (len(code_set.rows) if has_include else 0), name


def test_codes_that_call_for_judgement_are_marked() -> None:
    epilepsy = study.value_set(screening().terms.sets["epilepsy"], BASE)
    marked = [
        concept["code"]
        for part in epilepsy["compose"]["include"]
        for concept in part.get("concept", ())
        if "extension" in concept
    ]
    assert marked == ["313307000"]


@given(st.integers(0, 99_999), st.integers(0, 99_999), st.integers(0, 99_999))
def test_a_range_of_codes_becomes_the_right_expression(one: int, other: int, probe: int) -> None:
    low, high = sorted((one, other))
    pattern = re.compile(study.digits_between(f"{low:05}", f"{high:05}"))
    for number in (low, high, probe, low - 1, high + 1):
        if 0 <= number <= 99_999:
            assert bool(pattern.fullmatch(f"{number:05}")) == (low <= number <= high)


def test_the_operation_names_every_parameter() -> None:
    found = study.operation_definition(BASE)["parameter"]
    assert [(one["name"], one["max"]) for one in found] == [
        ("subject", "1"), ("asOf", "1"), ("data", "1"), ("useServerData", "1"),
        ("completeTypes", "*"), ("return", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize("secured", [True, False])
def test_the_statement_says_whether_a_token_is_needed(secured: bool) -> None:
    rest = study.capability_statement(BASE, BASE, secured=secured)["rest"][0]
    assert ("security" in rest) is secured


def test_the_study_has_the_trials_own_status() -> None:
    trial = screening().trials["NCT06056752"]
    assert study.research_study(trial)["status"] == trial.status == "active"
    closed = replace(trial, status="closed-to-accrual")
    assert study.research_study(closed)["status"] == "closed-to-accrual"
