"""How criteria and parts combine, and which reason a parent gives (semantics 1.1, 1.7)."""

from __future__ import annotations

from datetime import date
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.criteria.context import Draft, Finding, worst
from service.criteria.evaluate import evaluate, valid_until_of, verdict_of
from service.criteria.model import Evidence, Result, Settles, VerdictCode, walk
from service.criteria.rules.combine import combined
from service.criteria.trial import load_trial
from service.values.logic import UNKNOWN_ORDER, Outcome, Reason, all_of, any_of, at_least
from tests.cases import PatientCase, by_id, patient_cases, terms_with, trial_with
from tests.criteria.small import (
    AS_OF,
    WOMAN,
    evaluated,
    facts,
    measured,
    normal,
    said,
    trial_file,
)

P, U, F = Outcome.PASS, Outcome.UNKNOWN, Outcome.FAIL
CASES = patient_cases()
DECIDED = {
    P: (Reason.VALUE_MEETS, Reason.RECORD_PRESENT, Reason.RECORD_ABSENT, Reason.NOT_APPLICABLE),
    F: (Reason.VALUE_VIOLATES, Reason.RECORD_PRESENT, Reason.RECORD_ABSENT),
    U: UNKNOWN_ORDER,
}


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    """Any answer of a rule, with a reason that fits its outcome."""
    outcome = draw(st.sampled_from(Outcome))
    reason = draw(st.sampled_from(DECIDED[outcome]))
    name = draw(st.sampled_from("abcdef"))
    return Draft(
        outcome,
        reason,
        name,
        (Evidence(f"Observation/{name}"),),
        (f"assumes {name}",),
        (Settles(f"settles {name}"),) if outcome is U else (),
    )


some = st.lists(drafts(), min_size=1, max_size=5)


def result(outcome: Outcome) -> Result:
    """A criterion's result."""
    return Result("X1", "inclusion", "", outcome, Reason.ATTESTED, "")


@pytest.mark.parametrize("outcomes", list(product(Outcome, repeat=3)))
def test_the_verdict_follows_from_the_criteria(outcomes: tuple[Outcome, ...]) -> None:
    """Ineligible if one fails, eligible if all pass, potentially eligible otherwise."""
    found = verdict_of(tuple(result(outcome) for outcome in outcomes))
    if F in outcomes:
        assert found is VerdictCode.INELIGIBLE
    elif U in outcomes:
        assert found is VerdictCode.POTENTIALLY_ELIGIBLE
    else:
        assert found is VerdictCode.ELIGIBLE


# --- rules inside a rule


@given(some, st.integers(1, 5))
def test_rules_combine_by_three_valued_logic(parts: list[Draft], needed: int) -> None:
    """The outcome is that of the logic, and the reason that of a part with this outcome."""
    outcomes = [part.outcome for part in parts]
    assert combined("all", parts).outcome is all_of(outcomes)
    assert combined("any", parts).outcome is any_of(outcomes)
    assert combined("at-least", parts, needed).outcome is at_least(needed, outcomes)
    for how in ("all", "any"):
        found = combined(how, parts)
        assert found.reason in {p.reason for p in parts if p.outcome is found.outcome}


@given(some)
def test_a_combination_shows_all_evidence_once_and_what_would_settle_it(
    parts: list[Draft],
) -> None:
    """Evidence and assumptions of all parts; what settles only if it is unknown."""
    for how in ("all", "any"):
        found = combined(how, parts)
        assert list(found.evidence) == list(dict.fromkeys(e for p in parts for e in p.evidence))
        assert set(found.assumptions) == {text for part in parts for text in part.assumptions}
        assert bool(found.settled_by) is (found.outcome is U)


@given(some)
def test_not_applicable_gives_its_reason_only_if_nothing_else_does(parts: list[Draft]) -> None:
    """It comes last among the parts with the outcome."""
    found = combined("all", parts)
    if found.reason is Reason.NOT_APPLICABLE:
        assert {part.reason for part in parts} == {Reason.NOT_APPLICABLE}


# --- several records


@given(st.lists(drafts(), max_size=6), st.randoms(use_true_random=False))
def test_the_worst_record_decides_in_any_order(parts: list[Draft], random: Random) -> None:
    """Fail, then unknown, then pass; of several reasons for unknown the first of the list."""
    findings = [
        Finding(p.outcome, p.reason, p.message, p.evidence, p.assumptions, p.settled_by)
        for p in parts
    ]
    decided = worst(findings)
    if decided is None:
        assert not findings
        return
    outcomes = {finding.outcome for finding in findings}
    assert decided.outcome is (F if F in outcomes else U if U in outcomes else P)
    if decided.outcome is U:
        reasons = {finding.reason for finding in findings if finding.outcome is U}
        assert decided.reason is min(reasons, key=UNKNOWN_ORDER.index)
    assert {e for f in findings for e in f.evidence} == set(decided.evidence)
    shuffled = list(findings)
    random.shuffle(shuffled)
    other = worst(shuffled)
    assert other is not None
    assert other.outcome is decided.outcome
    if decided.outcome is U:
        assert other.reason is decided.reason


# --- parts of a criterion

PARTS = """
- id: X1
  kind: inclusion
  text: Parts.
  combine: {how}
  parts:
    - {{id: X1.a, rule: {{kind: age, at_least: {age}}}}}
    - {{id: X1.b, rule: {{kind: sex, allowed: [{sex}]}}}}
    - id: X1.c
      rule: {{kind: observation, codes: [creatinine], unit: mg/dL, at_most: 1.5}}
"""
HIGH = measured("o", "2160-0", "9", "mg/dL")
LOW = measured("o", "2160-0", "1", "mg/dL")


@pytest.mark.parametrize(
    ("how", "age", "sex", "records", "expected"),
    [
        ("all", 18, "female", [LOW], "pass value-meets"),
        ("all", 18, "female", [], "unknown no-data"),
        ("all", 99, "female", [], "fail value-violates"),
        ("all", 99, "male", [HIGH], "fail value-violates"),
        ("any", 99, "male", [HIGH], "fail value-violates"),
        ("any", 99, "male", [], "unknown no-data"),
        ("any", 18, "male", [], "pass value-meets"),
    ],
)
def test_parts_combine_and_give_the_parent_the_first_fitting_reason(
    tmp_path: Path, how: str, age: int, sex: str, records: list[dict[str, object]], expected: str
) -> None:
    """A parent takes the reason of its first part, in order, that has its outcome."""
    text = PARTS.format(how=how, age=age, sex=sex)
    trial = load_trial(trial_file(tmp_path, text), terms_with())
    parent = by_id(evaluated(trial, records))["X1"]
    assert said(parent) == expected
    first = next(part for part in parent.parts if part.outcome is parent.outcome)
    assert parent.reason is first.reason
    assert parent.message.startswith(first.id)
    # All parts' evidence is shown, and every part is reported.
    assert [part.id for part in parent.parts] == ["X1.a", "X1.b", "X1.c"]
    assert set(parent.evidence) == {e for part in parent.parts for e in part.evidence}
    assert bool(parent.settled_by) is (parent.outcome is U)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_patients_result_is_consistent_in_itself(case: PatientCase) -> None:
    """Parents follow from their parts, each unknown says what settles it, each fail shows why."""
    verdict = case.evaluate()
    trial = trial_with()
    assert [found.id for found, _ in walk(verdict.criteria)] == list(trial.by_id)
    assert verdict.code is verdict_of(verdict.criteria)
    for found, parent in walk(verdict.criteria):
        criterion = trial.by_id[found.id]
        assert found.text
        assert found.message
        assert (found.kind, found.text) == (criterion.kind, criterion.text)
        assert found.reason in DECIDED[found.outcome]
        assert bool(found.settled_by) is (found.outcome is U), found.id
        if found.parts:
            outcomes = [part.outcome for part in found.parts]
            of = all_of if criterion.combine == "all" else any_of
            assert found.outcome is of(outcomes)
            first = [part for part in found.parts if part.outcome is found.outcome]
            applicable = [part for part in first if part.reason is not Reason.NOT_APPLICABLE]
            assert found.reason is (applicable or first)[0].reason
        if found.reason in (Reason.RECORD_PRESENT, Reason.VALUE_MEETS, Reason.VALUE_VIOLATES):
            assert found.evidence, found.id
        assert parent is None or found.id.startswith(f"{parent.split('.')[0]}.")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_verdict_holds_exactly_to_the_day_it_names(case: PatientCase) -> None:
    """On every day to `validUntil` the outcomes are the same, and on the next they are not."""
    verdict = case.evaluate()
    known = case.facts()

    def outcomes(day: int) -> dict[str, Outcome]:
        found = by_id(evaluate(trial_with(), known, date.fromordinal(day)))
        return {name: each.outcome for name, each in found.items()}

    today = case.as_of.toordinal()
    now = outcomes(today)
    if verdict.valid_until is None:
        for day in (today + 30, today + 400, today + 4_000):
            assert outcomes(day) == now
        return
    last = date.fromisoformat(verdict.valid_until).toordinal()
    # Freshness windows end within weeks: all days to the last, or twelve spread over them.
    step = max(1, (last - today) // 12)
    for day in (*range(today, last, step), last):
        assert outcomes(day) == now, date.fromordinal(day)
    assert outcomes(last + 1) != now


def test_one_criterion_holds_to_its_own_day(tmp_path: Path) -> None:
    """What another criterion rests on doesn't shorten it."""
    text = PARTS.format(how="all", age=18, sex="female").replace(
        "at_most: 1.5", "at_most: 1.5, within: 28 days"
    )
    trial = load_trial(trial_file(tmp_path, text), terms_with())
    known = facts([{**LOW, "referenceRange": [normal("1", "mg/dL")]}], patient=WOMAN)
    assert valid_until_of(trial, known, AS_OF, "X1.a") is None
    assert valid_until_of(trial, known, AS_OF, "X1.c") == "2026-11-17"
    assert valid_until_of(trial, known, AS_OF, "X1") == "2026-11-17"
    assert evaluate(trial, known, AS_OF).valid_until == "2026-11-17"
