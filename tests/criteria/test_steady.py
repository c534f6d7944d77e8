"""A verdict's line reads the same, but for its day, until the day it says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta

import pytest

from service.criteria.evaluate import evaluate
from service.criteria.model import Verdict
from service.results.json import verdict_line
from tests.cases import criterion_cases, patient_cases, trial_with

CASES = criterion_cases()
GROUPS = 4
FAR = 800


def line(verdict: Verdict) -> str:
    """Give the line without its day."""
    return verdict_line(replace(verdict, as_of=""))


def days_until(start: date, until: str | None, chance: random.Random) -> Iterator[date]:
    """Give the next day, the last on which it is steady, and some between."""
    last = date.fromisoformat(until) if until else start + timedelta(FAR)
    length = (last - start).days
    if length >= 1:
        yield from {
            start + timedelta(1),
            last,
            *(start + timedelta(chance.randint(1, length)) for _ in range(3)),
        }


def differing(given: Callable[[date], Verdict], start: date, chance: random.Random) -> list[date]:
    """List the days on which the line is not that of the first day, although it should be."""
    first = given(start)
    return [
        day
        for day in days_until(start, first.steady_until, chance)
        if line(given(day)) != line(first)
    ]


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_lines_of_the_cases_stay_as_long_as_they_say(group: int) -> None:
    chance = random.Random(group)  # noqa: S311 - which days, nothing secret
    for case in CASES[group * 3 :: GROUPS * 3]:
        facts, trial = case.facts(), trial_with(case.local)
        found = differing(
            lambda day, facts=facts, trial=trial: evaluate(trial, facts, day), case.as_of, chance
        )
        assert not found, (case.name, found)


def test_the_lines_of_the_shipped_patients_stay_as_long_as_they_say() -> None:
    chance = random.Random(1)  # noqa: S311
    for case in patient_cases():
        facts = case.facts()
        for before in (0, 40, 200):
            start = case.as_of - timedelta(before)
            found = differing(
                lambda day, facts=facts: evaluate(trial_with(), facts, day), start, chance
            )
            assert not found, (case.name, start, found)


def test_a_line_is_never_steady_for_longer_than_its_outcomes_are() -> None:
    for case in CASES[::3]:
        verdict = case.evaluate()
        if verdict.valid_until is not None:
            assert verdict.steady_until is not None
            assert verdict.steady_until <= verdict.valid_until


def test_the_age_in_a_text_ends_steadiness_on_the_day_before_the_birthday() -> None:
    facts = next(case for case in patient_cases() if case.name == "baseline-candidate").facts()
    birth = facts.person.birth
    assert birth is not None
    born = date.fromordinal(birth.first)
    for before, years in ((1, 40), (100, 41)):
        birthday = born.replace(year=born.year + years)
        verdict = evaluate(trial_with(), facts, birthday - timedelta(before))
        assert verdict.steady_until is not None
        assert verdict.steady_until <= (birthday - timedelta(1)).isoformat()
        assert verdict.valid_until is None or verdict.valid_until >= verdict.steady_until
