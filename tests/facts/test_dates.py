"""Which date a record counts by, and what is done with one that can't be read (1.2)."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.criteria.context import assumptions_of
from service.facts.dates import BadDate, age_range, period_end, read, read_period, year_of_life
from service.facts.model import ConditionFact, EventFact, Fact, ObservationFact
from service.fhir.resources import Period, Quantity, Range
from service.values.dates import When, age_at_least, day_text, parse
from service.values.dates import age_range as ages
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
from tests.values.test_dates import ZONES

UTC = ZONES[0]
HEART_FAILURE = coded(ICD10CM, "I50.9")


def only(records: list[Record], kind: str, name: str, **how: Any) -> Fact:
    """Give the one fact of a type in a set."""
    found = facts(records, **how).find(kind, (name,))
    assert len(found) == 1
    return found[0][1]


def spanned(when: When | None) -> tuple[str, str] | None:
    """Give the days a time lies between."""
    return None if when is None else (day_text(when.first), day_text(when.last))


# --- observations


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"effectiveDateTime": "2026-10-20"}, ("2026-10-20", "2026-10-20")),
        ({"effectiveDateTime": "2026-10"}, ("2026-10-01", "2026-10-31")),
        ({"effectiveInstant": "2026-10-20T10:00:00Z"}, ("2026-10-20", "2026-10-20")),
        (
            {"effectivePeriod": {"start": "2026-10-01", "end": "2026-10-20"}},
            ("2026-10-20", "2026-10-20"),
        ),
        ({"effectivePeriod": {"start": "2026-10-01"}}, ("2026-10-01", "2026-10-01")),
        (
            {"effectiveTiming": {"event": ["2026-10-20", "2026-10-22", "2026-10-21"]}},
            ("2026-10-22", "2026-10-22"),
        ),
        ({"issued": "2026-10-20T10:00:00Z"}, ("2026-10-20", "2026-10-20")),
        (
            {"effectiveDateTime": "2026-10-20", "issued": "2026-10-25T10:00:00Z"},
            ("2026-10-20", "2026-10-20"),
        ),
        ({}, None),
    ],
)
def test_the_time_of_a_result_is_found_in_its_place(
    stated: Record, expected: tuple[str, str] | None
) -> None:
    """Date, instant, end (else start) of a period, last event of a timing, else issued."""
    record = measured("o", "2160-0", "1", "mg/dL", None, **stated)
    fact = only([record], "Observation", "creatinine")
    assert isinstance(fact, ObservationFact)
    assert spanned(fact.when) == expected
    assumed = "issued" in stated and len(stated) == 1
    assert fact.issued is assumed
    assert any("issued" in text for text in assumptions_of(fact)) is assumed


def test_a_panels_member_without_time_takes_the_panels() -> None:
    """Of an Observation that has members, and of a report."""
    member = measured("m", "2160-0", "1", "mg/dL", None, issued="2026-10-25T10:00:00Z")
    panel = result("p", "24323-8", {}, "2026-10-20", hasMember=[{"reference": "Observation/m"}])
    report = {
        "resourceType": "DiagnosticReport",
        "id": "r",
        "status": "final",
        "subject": SUBJECT,
        "code": coded(LOINC, "24323-8"),
        "effectiveDateTime": "2026-10-20",
        "result": [{"reference": "Observation/m"}],
    }
    for holder in (panel, report):
        for records in ([member, holder], [holder, member]):
            fact = only(records, "Observation", "creatinine")
            assert spanned(fact.when) == ("2026-10-20", "2026-10-20")
    dated = {**member, "effectiveDateTime": "2026-10-10"}
    assert spanned(only([dated, panel], "Observation", "creatinine").when) == (
        "2026-10-10",
        "2026-10-10",
    )


def test_a_time_without_offset_is_the_sites_and_named_as_an_assumption() -> None:
    """Taken as local (1.2)."""
    record = measured("o", "2160-0", "1", "mg/dL", "2026-10-20T23:30:00")
    fact = only([record], "Observation", "creatinine", zone="Asia/Shanghai")
    assert spanned(fact.when) == ("2026-10-20", "2026-10-20")
    assert any("local time" in text for text in assumptions_of(fact))
    instant = measured("o", "2160-0", "1", "mg/dL", "2026-10-20T23:30:00Z")
    fact = only([instant], "Observation", "creatinine", zone="Asia/Shanghai")
    assert spanned(fact.when) == ("2026-10-21", "2026-10-21")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Shanghai"])
def test_the_day_of_a_result_at_the_site_decides_whether_it_is_fresh(zone: str) -> None:
    """28 days back from 1 November is 4 October, at the site."""
    record = measured("o", "11150-0", "38", "%", "2026-10-04T02:00:00Z")
    expected = "unknown stale-data" if zone == "America/New_York" else "pass value-meets"
    assert said(of_trial("I4", [record], zone=zone)) == expected
    later = measured("o", "11150-0", "38", "%", "2026-11-01T20:00:00Z")
    expected = "unknown no-data" if zone == "Asia/Shanghai" else "pass value-meets"
    assert said(of_trial("I4", [later], zone=zone)) == expected


# --- conditions


@pytest.mark.parametrize(
    ("stated", "expected", "assumed"),
    [
        ({"onsetDateTime": "2026-03"}, ("2026-03-01", "2026-03-31"), False),
        (
            {"onsetPeriod": {"start": "2026-03-05", "end": "2026-04-01"}},
            ("2026-03-05", "2026-03-05"),
            False,
        ),
        (
            {"onsetAge": {"value": 40, "unit": "years", "code": "a"}},
            ("2020-05-17", "2021-05-16"),
            False,
        ),
        (
            {"onsetAge": {"value": 486, "unit": "months", "code": "mo"}},
            ("2020-05-17", "2021-05-16"),
            False,
        ),
        (
            {"onsetRange": {"low": {"value": 40, "code": "a"}, "high": {"value": 41, "code": "a"}}},
            ("2020-05-17", "2022-05-16"),
            False,
        ),
        ({"recordedDate": "2026-03-05"}, ("2026-03-05", "2026-03-05"), True),
        (
            {"onsetDateTime": "2020", "recordedDate": "2026-03-05"},
            ("2020-01-01", "2020-12-31"),
            False,
        ),
        # Words are no date; the recorded one is used.
        (
            {"onsetString": "childhood", "recordedDate": "2026-03-05"},
            ("2026-03-05", "2026-03-05"),
            True,
        ),
        ({"onsetAge": {"value": 40, "comparator": "<", "code": "a"}}, None, False),
        ({}, None, False),
    ],
)
def test_the_onset_of_a_condition_is_found_in_its_place(
    stated: Record, expected: tuple[str, str] | None, assumed: bool
) -> None:
    """Date, start of a period, age with the birth date (that year of life), else recorded."""
    fact = only([condition("c", HEART_FAILURE, None, **stated)], "Condition", "heart-failure")
    assert isinstance(fact, ConditionFact)
    assert spanned(fact.onset) == expected
    assert fact.assumed_onset is assumed
    assert any("recorded date" in text for text in assumptions_of(fact)) is assumed


def test_an_age_at_onset_says_nothing_without_a_birth_date() -> None:
    """That year of life can't be told."""
    record = condition("c", HEART_FAILURE, None, onsetAge={"value": 40, "code": "a"})
    patient = {key: value for key, value in WOMAN.items() if key != "birthDate"}
    fact = only([record], "Condition", "heart-failure", patient=patient)
    assert fact.when is None


# --- procedures and medicines


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"performedDateTime": "2026-10-20"}, ("2026-10-20", "2026-10-20")),
        (
            {"performedPeriod": {"start": "2026-10-18", "end": "2026-10-20"}},
            ("2026-10-20", "2026-10-20"),
        ),
        ({"performedPeriod": {"start": "2026-10-18"}}, ("2026-10-18", "2026-10-18")),
        ({"performedPeriod": {"end": "2026-10-20"}}, ("2026-10-20", "2026-10-20")),
        ({"performedAge": {"value": 46, "code": "a"}}, ("2026-05-17", "2027-05-16")),
        ({"performedString": "last year"}, None),
    ],
)
def test_a_procedure_counts_by_its_end(stated: Record, expected: tuple[str, str] | None) -> None:
    """A period by its end, else its start."""
    record = event("Procedure", "p", coded(SNOMED, "58390007"), **stated)
    fact = only([record], "Procedure", "hsct-procedure")
    assert isinstance(fact, EventFact)
    assert spanned(fact.when) == expected


@pytest.mark.parametrize(
    "broken",
    [
        condition("x", HEART_FAILURE, "2026-13-01"),
        condition("x", HEART_FAILURE, "yesterday"),
        condition("x", HEART_FAILURE, None, recordedDate="2026-02-30"),
        condition("x", HEART_FAILURE, None, onsetPeriod={"start": "2026-10-02", "end": "2026-10"})
        | {"abatementPeriod": {"start": "2026-10-02", "end": "2026-09-01"}},
    ],
)
def test_a_malformed_date_leaves_absence_open_and_is_reported(broken: Record) -> None:
    """The record is neither used nor passed over (1.8); the message holds no value of it."""
    found = of_trial("E8.heart_failure", [broken])
    assert said(found) == "unknown source-unavailable"
    messages = [message for message in facts([broken]).messages if message.type == "Condition"]
    assert [message.reference for message in messages] == ["Condition/x"]
    assert not any("2026" in message.text or "yesterday" in message.text for message in messages)
    # It stands in the way of its own class only.
    assert said(of_trial("E10", [broken])) == "pass record-absent"


def test_a_malformed_date_of_a_result_leaves_the_latest_open() -> None:
    """It may be the latest."""
    older = measured("o", "11150-0", "38", "%")
    broken = measured("x", "11150-0", "3", "%", "2026-10-40")
    assert said(of_trial("I4", [older, broken])) == "unknown source-unavailable"


# --- helpers


@given(st.dates(date(1900, 1, 1), date(2020, 12, 31)), st.integers(0, 110))
def test_a_year_of_life_is_the_days_of_that_age(birth: date, years: int) -> None:
    """From one birthday to the day before the next."""
    born = parse(birth.isoformat(), UTC)
    found = year_of_life(Quantity(value=Decimal(years), code="a"), born, UTC)
    assert found is not None
    for day in (found.first, found.last):
        assert ages(born, day) == (years, years)
    assert age_at_least(born, years, found.first - 1) is False
    assert age_at_least(born, years + 1, found.last + 1) is True


@given(st.integers(1900, 2020), st.integers(0, 100), st.integers(0, 20))
def test_a_range_of_ages_holds_each_of_its_years(year: int, low: int, more: int) -> None:
    """Also of a partial birth date."""
    born = parse(str(year), UTC)
    ends = (Quantity(value=Decimal(years), code="a") for years in (low, low + more))
    whole = age_range(Range(*ends), born, UTC)
    assert whole is not None
    for years in (low, low + more):
        one = year_of_life(Quantity(value=Decimal(years), unit="years"), born, UTC)
        assert one is not None
        assert whole.first <= one.first <= one.last <= whole.last


@pytest.mark.parametrize(
    "age",
    [
        None,
        Quantity(),
        Quantity(value=Decimal("NaN"), code="a"),
        Quantity(value=Decimal(-1), code="a"),
        Quantity(value=Decimal(40), code="d"),
        Quantity(value=Decimal(40)),
        Quantity(value=Decimal("1e9"), code="a"),
        Quantity(value=Decimal(40), code="a", comparator=">"),
    ],
)
def test_an_age_that_is_none_gives_no_year(age: Quantity | None) -> None:
    """Nothing is guessed of it."""
    assert year_of_life(age, parse("1980-05-17", UTC), UTC) is None


def test_periods_are_read_whole_or_by_their_end() -> None:
    """An open side is unbounded; a reversed one is malformed."""
    period = Period("2026-01-01", "2026-02")
    assert spanned(read_period(period, UTC, "p")) == ("2026-01-01", "2026-02-28")
    assert spanned(period_end(period, UTC, "p")) == ("2026-02-01", "2026-02-28")
    assert read_period(Period(), UTC, "p") is None
    assert read_period(None, UTC, "p") is None
    with pytest.raises(BadDate, match="p ends before it starts"):
        read_period(Period("2026-02-01", "2026-01-01"), UTC, "p")
    with pytest.raises(BadDate, match=r"p\.start is not a FHIR date"):
        period_end(Period("soon", "2026-01-01"), UTC, "p")
    assert read(None, UTC, "p") is None
