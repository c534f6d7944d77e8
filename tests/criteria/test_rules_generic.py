"""Rules that other trials need, by small trial files and small records (semantics part 1)."""

from __future__ import annotations

import shutil
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.criteria.trial import Trial
from service.terms import Terms, load_terms
from service.values.logic import Outcome
from tests.cases import ROOT, by_id
from tests.criteria.small import (
    CLINICAL_STATUS,
    CVX,
    ICD10CM,
    LOINC,
    MAN,
    SNOMED,
    SUBJECT,
    VERIFICATION,
    WOMAN,
    Record,
    answer,
    coded,
    condition,
    evaluated,
    event,
    measured,
    normal,
    of_rule,
    result,
)
from tests.criteria.small import answer as shipped_answer

HEART_FAILURE = coded(ICD10CM, "I50.9")
EPILEPSY = coded(ICD10CM, "G40.909")
STROKE = coded(ICD10CM, "I63.9")
HSCT = coded(SNOMED, "58390007")
DMSO = coded(SNOMED, "115535002", "dimethyl sulfoxide")


def born(text: str | None, gender: str | None = "female") -> Record:
    """Make a Patient by birth date and gender."""
    stated = {"birthDate": text, "gender": gender}
    return {"resourceType": "Patient", "id": "p1"} | {
        key: value for key, value in stated.items() if value is not None
    }


# --- age and sex


@pytest.mark.parametrize(
    ("birth", "expected"),
    [
        ("2008-11-01", "pass value-meets"),  # 18 today
        ("2008-11-02", "fail value-violates"),  # 18 tomorrow
        ("1960-11-02", "pass value-meets"),  # 65, 66 tomorrow
        ("1960-11-01", "fail value-violates"),  # 66 today
        ("2008", "unknown indeterminate-date"),  # 17 or 18
        ("1960-11", "unknown indeterminate-date"),
        ("1990", "pass value-meets"),
        ("1950", "fail value-violates"),
        ("2030-01-01", "fail value-violates"),  # not yet born
        (None, "unknown no-data"),
        ("1990-02-30", "unknown unreadable-value"),
    ],
)
def test_an_age_has_two_ends_both_included(
    tmp_path: Path, birth: str | None, expected: str
) -> None:
    """From 18 to 65 whole years."""
    trial = of_rule(tmp_path, "{kind: age, at_least: 18, at_most: 65}")
    assert answer(trial, patient=born(birth)) == expected


def test_an_upper_age_ends_on_a_known_day(tmp_path: Path) -> None:
    """The verdict holds to the day before the birthday that matters (1.7)."""
    trial = of_rule(tmp_path, "{kind: age, at_most: 65}")
    verdict = evaluated(trial, patient=born("1961-03-10"))
    assert by_id(verdict)["X1"].outcome is Outcome.PASS
    assert verdict.valid_until == "2027-03-09"
    leapling = evaluated(
        of_rule(tmp_path, "{kind: age, at_most: 13}"),
        patient=born("2012-02-29"),
        as_of=date(2026, 2, 28),
    )
    assert by_id(leapling)["X1"].outcome is Outcome.PASS
    assert leapling.valid_until == "2026-02-28"


BIRTH_SEX = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex"


@pytest.mark.parametrize(
    ("patient", "expected"),
    [
        (WOMAN, "pass value-meets"),
        (MAN, "fail value-violates"),
        (born("1990", "other"), "unknown no-data"),
        (born("1990", "unknown"), "unknown no-data"),
        (born("1990", None), "unknown no-data"),
        ({**WOMAN, "extension": [{"url": BIRTH_SEX, "valueCode": "M"}]}, "unknown no-data"),
        ({**WOMAN, "extension": [{"url": BIRTH_SEX, "valueCode": "F"}]}, "pass value-meets"),
        ({**WOMAN, "extension": [{"url": BIRTH_SEX, "valueCode": "UNK"}]}, "pass value-meets"),
    ],
)
def test_a_sex_is_met_violated_or_not_known(tmp_path: Path, patient: Record, expected: str) -> None:
    """Where a birth-sex extension differs from gender, the sex is unknown (1.4)."""
    assert answer(of_rule(tmp_path, "{kind: sex, allowed: [female]}"), patient=patient) == expected


# --- numbers


def observation(tmp_path: Path, limits: str, **more: Any) -> Trial:
    """Make a rule over creatinine in mg/dL."""
    stated = {"codes": "[creatinine]", "analyte": "creatinine", "unit": "mg/dL", **more}
    listed = "".join(f"\n{key}: {value}" for key, value in stated.items())
    return of_rule(tmp_path, f"kind: observation\n{limits}{listed}")


def creatinine(value: str, unit: str | None = "mg/dL", **more: Any) -> list[Record]:
    """Make one creatinine result."""
    return [measured("o1", "2160-0", value, unit, **more)]


@pytest.mark.parametrize(
    ("limits", "value", "comparator", "expected"),
    [
        ("at_least: 0.5\nat_most: 1.5", "0.5", None, "pass value-meets"),
        ("at_least: 0.5\nat_most: 1.5", "1.50", None, "pass value-meets"),
        ("at_least: 0.5\nat_most: 1.5", "0.49", None, "fail value-violates"),
        ("at_least: 0.5\nat_most: 1.5", "1.51", None, "fail value-violates"),
        ("at_least: 0.5\nat_most: 1.5", "1.4", "<", "unknown indeterminate-value"),
        ("at_least: 0.5\nat_most: 1.5", "1.5", ">", "fail value-violates"),
        ("at_least: 0.5\nat_most: 1.5", "0.5", "<", "fail value-violates"),
        ("at_least: 0.5\nat_most: 1.5", "1", ">=", "unknown indeterminate-value"),
        ("above: 0.5\nbelow: 1.5", "0.5", None, "fail value-violates"),
        ("above: 0.5\nbelow: 1.5", "1.5", None, "fail value-violates"),
        ("above: 0.5\nbelow: 1.5", "0.51", None, "pass value-meets"),
        ("below: 1.5", "1.49", None, "pass value-meets"),
        ("below: 1.5", "1.5", "<", "pass value-meets"),
        ("below: 1.5", "1.5", "<=", "unknown indeterminate-value"),
        ("above: 1.5", "1.5", ">", "pass value-meets"),
        ("above: 1.5", "1.5", ">=", "unknown indeterminate-value"),
        ("at_least: 1", "88.5", None, "pass value-meets"),
        ("at_least: 1", "-3", None, "unknown unreadable-value"),
    ],
)
def test_a_number_is_compared_with_either_or_both_ends(
    tmp_path: Path, limits: str, value: str, comparator: str | None, expected: str
) -> None:
    """At least, at most, above, below, between; a comparator makes an interval."""
    records = creatinine(value, comparator=comparator)
    assert answer(observation(tmp_path, limits), records) == expected


@given(st.integers(1, 5_000), st.sampled_from(("mg/dL", "mg/L", "g/L", "ug/mL", "ug/dL")))
def test_equivalent_units_give_equal_answers(
    tmp_path_factory: pytest.TempPathFactory, hundredths: int, unit: str
) -> None:
    """The same amount in any unit of mass meets the same limit, exactly at the limit too."""
    factor = {"mg/dL": "1", "mg/L": "10", "g/L": "0.01", "ug/mL": "10", "ug/dL": "1000"}[unit]
    value = Decimal(hundredths) / 100
    trial = TRIALS.setdefault(
        "units", observation(tmp_path_factory.mktemp("units"), "at_most: 12.5")
    )
    expected = "pass value-meets" if value <= Decimal("12.5") else "fail value-violates"
    written = f"{value * Decimal(factor):f}"
    assert answer(trial, creatinine(written, unit)) == expected


# Trials made once for tests that hypothesis repeats.
TRIALS: dict[str, Trial] = {}


@given(st.integers(1, 2_000))
def test_substance_and_mass_concentrations_give_equal_answers(
    tmp_path_factory: pytest.TempPathFactory, micromoles: int
) -> None:
    """1 umol/L of creatinine is exactly 0.0113118 mg/dL: whichever is recorded decides alike."""
    trial = TRIALS.setdefault(
        "substance", observation(tmp_path_factory.mktemp("substance"), "at_most: 1.13118")
    )
    milligrams = f"{Decimal(micromoles) * Decimal('0.0113118'):f}"
    expected = "pass value-meets" if micromoles <= 100 else "fail value-violates"
    assert answer(trial, creatinine(str(micromoles), "umol/L")) == expected
    assert answer(trial, creatinine(milligrams, "mg/dL")) == expected


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (None, "unknown incomparable-unit"),
        ("mm[Hg]", "unknown incomparable-unit"),
        ("U/L", "unknown incomparable-unit"),
        ("MG/DL", "pass value-meets"),
    ],
)
def test_a_unit_that_does_not_convert_is_told(
    tmp_path: Path, unit: str | None, expected: str
) -> None:
    """No unit, or one of another kind."""
    assert answer(observation(tmp_path, "at_most: 1.5"), creatinine("1", unit)) == expected


# --- limits of normal


@given(st.integers(10, 300), st.sampled_from(("1.5", "2", "3", "1.25")))
def test_a_multiple_of_a_limit_of_normal_is_exact(
    tmp_path_factory: pytest.TempPathFactory, hundredths: int, multiple: str
) -> None:
    """At exactly the multiple of the ULN the criterion is met, a trace above it is not."""
    trial = TRIALS.get(multiple)
    if trial is None:
        folder = tmp_path_factory.mktemp("uln")
        trial = TRIALS[multiple] = observation(folder, f"at_most: {multiple}\ntimes: ULN")
    uln = Decimal(hundredths) / 100
    ranges = [normal(str(uln), "mg/dL")]
    at = uln * Decimal(multiple)
    assert answer(trial, creatinine(f"{at:f}", referenceRange=ranges)) == "pass value-meets"
    above = f"{at + Decimal('0.00001'):f}"
    assert answer(trial, creatinine(above, referenceRange=ranges)) == "fail value-violates"
    # The range in another unit is the same limit.
    ranges = [normal(f"{uln * 10:f}", "mg/L")]
    assert answer(trial, creatinine(f"{at:f}", referenceRange=ranges)) == "pass value-meets"
    assert answer(trial, creatinine(above, referenceRange=ranges)) == "fail value-violates"


LLN = "at_least: 1\ntimes: LLN"


@pytest.mark.parametrize(
    ("value", "ranges", "expected"),
    [
        ("0.6", [normal("1.2", "mg/dL", "0.6")], "pass value-meets"),
        ("0.59", [normal("1.2", "mg/dL", "0.6")], "fail value-violates"),
        ("0.6", [{"text": "0.6-1.2"}], "pass value-meets"),
        ("0.5", [{"text": "0.6 - 1.2 mg/dL"}], "fail value-violates"),
        ("0.5", [{"text": ">0.6"}], "fail value-violates"),
        # Only an upper limit, none at all, or words: there is no fallback for a lower limit.
        ("0.5", [normal("1.2", "mg/dL")], "unknown no-reference-range"),
        ("0.5", [{"text": "<1.2"}], "unknown no-reference-range"),
        ("0.5", [{"text": "see report"}], "unknown no-reference-range"),
        ("0.5", [], "unknown no-reference-range"),
        # Two that fit and differ.
        (
            "0.5",
            [normal("1", "mg/dL", "0.4"), normal("1", "mg/dL", "0.6")],
            "unknown ambiguous-reference-range",
        ),
        ("0.7", [normal("1", "mg/dL", "0.4"), normal("1", "mg/dL", "0.6")], "pass value-meets"),
    ],
)
def test_a_lower_limit_of_normal_is_that_of_the_result(
    tmp_path: Path, value: str, ranges: list[Record], expected: str
) -> None:
    """LLN: the low of the same result's range, else the lower number of its text."""
    records = creatinine(value, referenceRange=ranges)
    assert answer(observation(tmp_path, LLN), records) == expected


SEX = {"male": coded(SNOMED, "248153007"), "female": coded(SNOMED, "248152002")}


def aged(low: str | None, high: str | None) -> Record:
    """Make the age a range is for, in years."""
    ends = {"low": low, "high": high}
    return {
        "age": {
            end: {"value": int(value), "code": "a", "unit": "years"}
            for end, value in ends.items()
            if value is not None
        }
    }


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([normal("1.0", "mg/dL", appliesTo=[SEX["female"]])], "fail value-violates"),
        (
            [
                normal("1.0", "mg/dL", appliesTo=[SEX["female"]]),
                normal("1.3", "mg/dL", appliesTo=[SEX["male"]]),
            ],
            "fail value-violates",
        ),
        ([normal("1.0", "mg/dL"), normal("1.3", "mg/dL")], "unknown ambiguous-reference-range"),
        (
            [
                normal("1.0", "mg/dL", **aged("18", None)),
                normal("1.3", "mg/dL", **aged(None, "17")),
            ],
            "fail value-violates",
        ),
        ([normal("1.3", "mg/dL", **aged("40", "50"))], "pass value-meets"),
        ([normal("1.3", "mg/dL", type=coded("urn:x", "normal"))], "pass value-meets"),
        # Ranges of another kind don't count; the fallback of 1.04 is no proof up to twice it.
        (
            [normal("1.3", "mg/dL", type=coded("urn:x", "therapeutic"))],
            "unknown no-reference-range",
        ),
        ([normal("1.3", "mg/dL", appliesTo=[{"text": "pregnant"}])], "unknown no-reference-range"),
        ([normal("1.3", "mg/dL", appliesTo=[SEX["male"]])], "unknown no-reference-range"),
        ([normal("1.3", "mg/dL", **aged("50", None))], "unknown no-reference-range"),
        ([normal("1.3", "U/L")], "unknown incomparable-unit"),
        ([normal("1.3", None)], "pass value-meets"),
    ],
)
def test_a_range_counts_if_it_is_of_normal_and_fits_the_patient(
    tmp_path: Path, ranges: list[Record], expected: str
) -> None:
    """Type, sex and age on that day; of several that fit each is tried (a woman of 46, 1.8)."""
    records = creatinine("1.8", referenceRange=ranges)
    trial = observation(tmp_path, "at_most: 1.5\ntimes: ULN")
    assert answer(trial, records) == expected


@pytest.mark.parametrize(
    ("value", "patient", "expected"),
    [
        ("1.56", WOMAN, "pass value-meets"),  # 1.5 x 1.04
        ("1.57", WOMAN, "unknown no-reference-range"),  # above, but not above twice that
        ("3.12", WOMAN, "unknown no-reference-range"),
        ("3.13", WOMAN, "fail value-violates"),
        ("2.025", MAN, "pass value-meets"),  # 1.5 x 1.35
        ("1.8", born("1980-05-17", None), "unknown no-reference-range"),  # by sex they differ
        ("1.5", born("1980-05-17", None), "pass value-meets"),
        ("9", born("1980-05-17", None), "fail value-violates"),
        ("0.8", born("2010-05-17"), "unknown no-reference-range"),  # no row before 18
        ("0.8", born(None), "unknown no-reference-range"),
    ],
)
def test_a_fallback_limit_is_no_proof(
    tmp_path: Path, value: str, patient: Record, expected: str
) -> None:
    """Without a range of its own a result fails only above twice the limit."""
    trial = observation(tmp_path, "at_most: 1.5\ntimes: ULN")
    assert answer(trial, creatinine(value), patient=patient) == expected


# --- coded results and answers

ANSWERS = """
kind: coded-result
codes: [disease-status]
within: 90 days
answers: {complete-remission-value: pass, ecog-4: fail, ecog-3: judgement}
"""


@pytest.mark.parametrize(
    ("value", "when", "expected"),
    [
        (
            {"valueCodeableConcept": coded(LOINC, "LA9625-0")},
            "2026-10-20",
            "unknown judgement-required",
        ),
        ({"valueCodeableConcept": coded(LOINC, "LA9626-8")}, "2026-10-20", "fail value-violates"),
        ({"valueCodeableConcept": coded(SNOMED, "1")}, "2026-10-20", "unknown unreadable-value"),
        ({"valueString": "stable"}, "2026-10-20", "unknown unreadable-value"),
        # Positive says nothing where only answers are asked for.
        ({"valueString": "positive"}, "2026-10-20", "unknown unreadable-value"),
        ({"valueCodeableConcept": coded(LOINC, "LA9626-8")}, "2026-01-20", "unknown stale-data"),
        ({"valueCodeableConcept": coded(LOINC, "LA9626-8")}, "2026", "unknown indeterminate-date"),
        ({"valueCodeableConcept": coded(LOINC, "LA9626-8")}, None, "unknown indeterminate-date"),
        ({}, "2026-10-20", "unknown no-data"),
    ],
)
def test_an_answer_means_what_the_trial_says(
    tmp_path: Path, value: Record, when: str | None, expected: str
) -> None:
    """Named sets of answers, each with its meaning."""
    records = [result("o1", "97509-4", value, when)]
    assert answer(of_rule(tmp_path, ANSWERS), records) == expected


POLAR = """
kind: coded-result
codes: [hiv-screen]
positive: fail
negative: pass
within: 12 months
"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"valueString": "NEG"}, "pass value-meets"),
        ({"valueString": "Non-Reactive"}, "pass value-meets"),
        ({"valueString": "not detected"}, "pass value-meets"),
        ({"valueString": "Reactive"}, "fail value-violates"),
        ({"valueString": "detected"}, "fail value-violates"),
        ({"valueString": "not reactive today"}, "unknown unreadable-value"),
        ({"valueString": "negative, but see note"}, "unknown unreadable-value"),
        ({"valueCodeableConcept": coded(SNOMED, "10828004")}, "fail value-violates"),
        ({"valueCodeableConcept": coded(SNOMED, "260385009")}, "pass value-meets"),
        (
            {
                "valueCodeableConcept": coded(SNOMED, "260385009"),
                "interpretation": [
                    coded(
                        "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation", "POS"
                    )
                ],
            },
            "unknown conflicting-data",
        ),
        ({"interpretation": [{"text": "NEG"}]}, "pass value-meets"),
        (
            {"valueQuantity": {"value": 0.21, "unit": "S/CO"}, "interpretation": [{"text": "NEG"}]},
            "pass value-meets",
        ),
        ({"valueQuantity": {"value": 0.21, "unit": "S/CO"}}, "unknown unreadable-value"),
        ({"valueBoolean": True}, "unknown unreadable-value"),
        ({"dataAbsentReason": {"text": "haemolysed"}}, "unknown no-data"),
    ],
)
def test_positive_and_negative_are_told_by_code_text_or_interpretation(
    tmp_path: Path, value: Record, expected: str
) -> None:
    """The whole text, any case, hyphen or not; contradictions and indices are told (1.4)."""
    records = [result("o1", "56888-1", value)]
    assert answer(of_rule(tmp_path, POLAR), records) == expected


# --- change

FALL = """
kind: change
codes: [creatinine]
analyte: creatinine
unit: mg/dL
since: 3 months
fall_at_least: 50
"""


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((("2026-08-10", "4"), ("2026-10-20", "2")), "pass value-meets"),
        ((("2026-08-10", "4"), ("2026-10-20", "2.01")), "fail value-violates"),
        # The earliest in the window counts, not one before it.
        ((("2026-07-01", "9"), ("2026-08-10", "4"), ("2026-10-20", "3")), "fail value-violates"),
        ((("2026-08-10", "4"), ("2026-09-10", "9"), ("2026-10-20", "2")), "pass value-meets"),
        ((("2026-10-20", "2"),), "unknown no-data"),
        ((("2026-07-01", "9"), ("2026-10-20", "2")), "unknown no-data"),
        ((("2026-05-10", "4"), ("2026-07-20", "2")), "unknown stale-data"),
        ((("2026-08-10", "0"), ("2026-10-20", "2")), "unknown indeterminate-value"),
        ((), "unknown no-data"),
    ],
)
def test_a_change_is_from_the_earliest_result_in_the_window_to_the_latest(
    tmp_path: Path, results: tuple[tuple[str, str], ...], expected: str
) -> None:
    """In percent of the earlier one, exactly."""
    records = [
        measured(f"o{place}", "2160-0", value, "mg/dL", when)
        for place, (when, value) in enumerate(results)
    ]
    assert answer(of_rule(tmp_path, FALL), records) == expected


def test_a_change_converts_units_and_tells_what_it_cannot_compare(tmp_path: Path) -> None:
    """Results in two units are one series; one without unit can't be part of it."""
    trial = of_rule(tmp_path, FALL)
    first = measured("a", "2160-0", "40", "mg/L", "2026-08-10")
    assert answer(trial, [first, measured("b", "2160-0", "2", "mg/dL")]) == "pass value-meets"
    assert answer(trial, [first, measured("b", "2160-0", "2", None)]) == (
        "unknown incomparable-unit"
    )
    assert answer(trial, [first, measured("b", "2160-0", "2", "mg/dL", comparator="<")]) == (
        "unknown indeterminate-value"
    )


def test_a_change_whose_first_result_is_not_known_to_be_the_first_is_not_told(
    tmp_path: Path,
) -> None:
    """Two earliest results of one day that lead to different outcomes conflict (1.3)."""
    records = [
        measured("a", "2160-0", "4", "mg/dL", "2026-08-10"),
        measured("b", "2160-0", "2.5", "mg/dL", "2026-08-10"),
        measured("c", "2160-0", "2", "mg/dL", "2026-10-20"),
    ]
    trial = of_rule(tmp_path, FALL)
    for order in (records, records[::-1]):
        assert answer(trial, order) == "unknown conflicting-data"


def test_a_change_does_not_pass_over_an_unreliable_copy_of_the_first_result(
    tmp_path: Path,
) -> None:
    """Copies that differ, without known versions, conflict (1.8)."""
    records = [
        measured("a", "2160-0", "4", "mg/dL", "2026-08-10"),
        measured("a", "2160-0", "2.5", "mg/dL", "2026-08-10"),
        measured("c", "2160-0", "2", "mg/dL", "2026-10-20"),
    ]
    assert answer(of_rule(tmp_path, FALL), records) == "unknown conflicting-data"


RISE = FALL.replace("fall_at_least: 50", "rise_at_most: 20\nfall_at_most: 20")


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        ("1.2", "pass value-meets"),
        ("0.8", "pass value-meets"),
        ("1", "pass value-meets"),
        ("1.21", "fail value-violates"),
        ("0.79", "fail value-violates"),
    ],
)
def test_a_change_may_be_bounded_on_both_sides(tmp_path: Path, latest: str, expected: str) -> None:
    """Stable within 20 percent."""
    records = [
        measured("a", "2160-0", "1", "mg/dL", "2026-08-10"),
        measured("b", "2160-0", latest, "mg/dL", "2026-10-20"),
    ]
    assert answer(of_rule(tmp_path, RISE), records) == expected


# --- ordinal scores

SCORE = """
kind: ordinal
codes: [ecog]
grades: {"0": ecog-0, "1": ecog-1, "2": ecog-2, "3": ecog-3, "4": ecog-4, "5": ecog-5}
at_least: 1
at_most: 3
prefixes: [ECOG]
"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"valueInteger": 1}, "pass value-meets"),
        ({"valueInteger": 0}, "fail value-violates"),
        ({"valueInteger": 4}, "fail value-violates"),
        ({"valueInteger": 6}, "unknown unreadable-value"),
        ({"valueString": "ECOG 3"}, "pass value-meets"),
        ({"valueString": "ECOG three"}, "unknown unreadable-value"),
        ({"valueQuantity": {"value": 1.5}}, "unknown unreadable-value"),
        ({"valueQuantity": {"value": 3, "comparator": "<="}}, "unknown indeterminate-value"),
        ({"valueQuantity": {"value": 1, "comparator": "<"}}, "fail value-violates"),
        ({"valueRange": {"low": {"value": 1}, "high": {"value": 2}}}, "pass value-meets"),
        ({"valueCodeableConcept": coded(LOINC, "LA9623-5")}, "pass value-meets"),
    ],
)
def test_a_score_is_read_as_number_answer_or_text(
    tmp_path: Path, value: Record, expected: str
) -> None:
    """Whole grades between both ends."""
    assert answer(of_rule(tmp_path, SCORE), [result("o1", "89247-1", value)]) == expected


# --- records


VACCINE = coded(CVX, "150")
VACCINATED = """
kind: records
absent: fail
at_least: 2
find:
  - {resource: Immunization, codes: [influenza-vaccine], within: 12 months, then: pass}
"""


@pytest.fixture(scope="module")
def with_vaccines(tmp_path_factory: pytest.TempPathFactory) -> Terms:
    """The shipped code sets and one more, which QH103 has no need of."""
    folder = tmp_path_factory.mktemp("mappings") / "mappings"
    shutil.copytree(ROOT / "mappings", folder)
    (folder / "codes" / "vaccines.csv").write_text(
        "set,role,match,system,code,display,source\n"
        "influenza-vaccine,include,exact,cvx,150,influenza injectable quadrivalent,CVX\n",
        encoding="utf-8",
    )
    systems = folder / "systems.csv"
    if "\ncvx," not in systems.read_text(encoding="utf-8"):
        with systems.open("a", encoding="utf-8") as file:
            file.write(f"cvx,{CVX},,CVX\n")
    with (folder / "sets.yaml").open("a", encoding="utf-8") as file:
        file.write("  influenza-vaccine:\n    title: Vaccine against influenza\n")
    return load_terms(folder)


def test_vaccinations_are_counted(tmp_path: Path, with_vaccines: Terms) -> None:
    """At least two Immunizations in a window pass; fewer fail only if all were read."""
    trial = of_rule(tmp_path, VACCINATED, with_vaccines)
    answer = partial(shipped_answer, terms=with_vaccines)

    def doses(*days: str, **more: Any) -> list[Record]:
        return [
            event("Immunization", f"v{place}", VACCINE, day, **more)
            for place, day in enumerate(days)
        ]

    two = doses("2026-03-01", "2026-06-01")
    assert answer(trial, two) == "pass record-present"
    assert answer(trial, two, incomplete=["Immunization"]) == "pass record-present"
    assert answer(trial, doses("2026-03-01")) == "fail record-absent"
    assert answer(trial, []) == "fail record-absent"
    assert answer(trial, doses("2026-03-01"), incomplete=["Immunization"]) == (
        "unknown source-unavailable"
    )
    # One outside the window, one after the day, one not done: none of them counts.
    assert answer(trial, doses("2026-03-01", "2024-06-01")) == "fail record-absent"
    assert answer(trial, doses("2026-03-01", "2026-12-01")) == "fail record-absent"
    assert (
        answer(trial, [*doses("2026-03-01"), *renamed(doses("2026-06-01", status="not-done"))])
        == "fail record-absent"
    )
    # A second one whose date or status isn't known may make the second.
    assert answer(trial, [*doses("2026-03-01"), *renamed(doses("2025"))]) == (
        "unknown indeterminate-date"
    )
    unsure = renamed(doses("2026-06-01", status="unknown"))
    assert answer(trial, [*doses("2026-03-01"), *unsure]) == "unknown unconfirmed"
    # One uncertain alone can't make two.
    assert answer(trial, unsure) == "fail record-absent"


def renamed(records: list[Record]) -> list[Record]:
    """Give records other ids, so that they are no copies."""
    return [{**record, "id": f"{record['id']}-other"} for record in records]


def test_procedures_are_counted_against_an_exclusion(tmp_path: Path) -> None:
    """Two transplantations exclude, one does not."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        at_least: 2
        find:
          - {resource: Procedure, codes: [hsct-procedure], then: fail}
        """,
    )
    first, second = (
        event("Procedure", name, HSCT, day)
        for name, day in (("a", "2024-01-10"), ("b", "2025-01-10"))
    )
    assert answer(trial, [first, second]) == "fail record-present"
    assert answer(trial, [first]) == "pass record-absent"
    assert answer(trial, [first], incomplete=["Procedure"]) == "unknown source-unavailable"
    assert answer(trial, [first, second], incomplete=["Procedure"]) == "fail record-present"
    # Exact duplicates of one are one.
    assert answer(trial, [first, first]) == "pass record-absent"


@pytest.mark.parametrize(
    ("absent", "expected"),
    [
        ("pass", "pass record-absent"),
        ("fail", "fail record-absent"),
        ("no-data", "unknown no-data"),
    ],
)
def test_the_trial_says_what_absence_means(tmp_path: Path, absent: str, expected: str) -> None:
    """And it means it only if everything was read."""
    trial = of_rule(
        tmp_path,
        f"""
        kind: records
        absent: {absent}
        find:
          - {{resource: Condition, codes: [heart-failure], when: active, then: pass}}
        """,
    )
    assert answer(trial, []) == expected
    assert answer(trial, [], incomplete=["Condition"]) == "unknown source-unavailable"
    assert answer(trial, [], incomplete=["Procedure"]) == expected


@pytest.mark.parametrize(
    ("clinical", "onset", "expected"),
    [
        ("active", "2020-01-01", "pass record-present"),
        ("remission", "2026-10-20", "pass record-present"),
        ("remission", "2020-01-01", "fail record-absent"),
        ("resolved", "2026", "unknown indeterminate-date"),
        (None, "2020-01-01", "unknown status-not-recorded"),
    ],
)
def test_active_or_recent_takes_either(
    tmp_path: Path, clinical: str | None, onset: str, expected: str
) -> None:
    """A condition that is active, or begun within the window."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        absent: fail
        find:
          - resource: Condition
            codes: [heart-failure]
            when: recent
            within: 28 days
            then: pass
        """,
    )
    assert answer(trial, [condition("c", HEART_FAILURE, onset, clinical)]) == expected


def test_a_condition_in_remission_can_be_asked_for(tmp_path: Path) -> None:
    """`inactive` says what one means that is not active."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        absent: fail
        find:
          - resource: Condition
            codes: [heart-failure]
            when: active
            then: fail
            inactive: pass
        """,
    )
    assert answer(trial, [condition("c", HEART_FAILURE, clinical="remission")]) == (
        "pass record-present"
    )
    assert answer(trial, [condition("c", HEART_FAILURE)]) == "fail record-present"
    assert answer(trial, []) == "fail record-absent"


def test_a_medicine_in_use_is_told_by_start_end_and_status(tmp_path: Path) -> None:
    """From start to end; without an end to the day if active, else at its start (1.5)."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        find:
          - resource: Medication
            codes: [product-ingredient]
            when: in-use
            within: 28 days
            then: fail
        """,
    )

    def given_from(start: str | None, end: str | None, status: str) -> list[Record]:
        period = {"start": start, "end": end}
        return [
            {
                "resourceType": "MedicationStatement",
                "id": "m",
                "status": status,
                "subject": SUBJECT,
                "medicationCodeableConcept": DMSO,
                "effectivePeriod": {key: value for key, value in period.items() if value},
            }
        ]

    assert answer(trial, given_from("2020-01-01", None, "active")) == "fail record-present"
    assert answer(trial, given_from("2020-01-01", "2026-10-20", "completed")) == (
        "fail record-present"
    )
    assert answer(trial, given_from("2020-01-01", "2026-09-20", "completed")) == (
        "pass record-absent"
    )
    assert answer(trial, given_from("2020-01-01", "2026", "completed")) == (
        "unknown indeterminate-date"
    )
    assert answer(trial, given_from("2020-01-01", None, "stopped")) == "pass record-absent"
    assert answer(trial, given_from("2026-10-20", None, "stopped")) == "fail record-present"
    assert answer(trial, given_from("2026-12-01", None, "active")) == "pass record-absent"


def test_an_adverse_event_can_be_looked_for(tmp_path: Path) -> None:
    """By its event's code, in a window."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        find:
          - {resource: AdverseEvent, codes: [heart-failure], within: 6 months, then: fail}
        """,
    )
    happened = {
        "resourceType": "AdverseEvent",
        "id": "a",
        "actuality": "actual",
        "subject": SUBJECT,
        "event": HEART_FAILURE,
        "date": "2026-09-01",
    }
    assert answer(trial, [happened]) == "fail record-present"
    assert answer(trial, [{**happened, "actuality": "potential"}]) == "unknown unconfirmed"
    assert answer(trial, [{**happened, "date": "2026-01-01"}]) == "pass record-absent"
    assert answer(trial, []) == "pass record-absent"


def test_a_rule_for_women_does_not_apply_to_men(tmp_path: Path) -> None:
    """Not applicable passes."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        not_applicable_if_male: true
        find:
          - {resource: Condition, codes: [pregnancy], when: active, then: fail}
        """,
    )
    pregnant = condition("c", coded(ICD10CM, "Z33.1"))
    assert answer(trial, [pregnant], patient=MAN) == "pass not-applicable"
    assert answer(trial, [pregnant]) == "fail record-present"
    assert answer(trial, [pregnant], patient=born("1990", None)) == "fail record-present"


def test_a_source_that_the_rule_also_needs_leaves_absence_open(tmp_path: Path) -> None:
    """`needs` names types beside those looked in."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        needs: [AllergyIntolerance]
        find:
          - {resource: Condition, codes: [heart-failure], when: ever, then: fail}
        """,
    )
    assert answer(trial, []) == "pass record-absent"
    assert answer(trial, [], incomplete=["AllergyIntolerance"]) == "unknown source-unavailable"
    assert (
        answer(trial, [condition("c", HEART_FAILURE)], incomplete=["AllergyIntolerance"])
        == "fail record-present"
    )


def test_an_allergy_may_be_inactive_or_an_intolerance(tmp_path: Path) -> None:
    """Each with its own meaning."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        find:
          - resource: AllergyIntolerance
            codes: [product-ingredient]
            when: active
            then: fail
            inactive: pass
            intolerance: judgement
        """,
    )
    allergy = {
        "resourceType": "AllergyIntolerance",
        "id": "a",
        "patient": SUBJECT,
        "code": DMSO,
        "clinicalStatus": coded(CLINICAL_STATUS, "active"),
        "verificationStatus": coded(VERIFICATION, "confirmed"),
    }
    assert answer(trial, [allergy]) == "fail record-present"
    resolved = {**allergy, "clinicalStatus": coded(CLINICAL_STATUS, "resolved")}
    assert answer(trial, [resolved]) == "pass record-absent"
    assert answer(trial, [{**allergy, "type": "intolerance"}]) == "unknown judgement-required"
    loose = {**allergy, "verificationStatus": coded(VERIFICATION, "unconfirmed")}
    assert answer(trial, [loose]) == "unknown unconfirmed"
    refuted = {**allergy, "verificationStatus": coded(VERIFICATION, "refuted")}
    assert answer(trial, [refuted]) == "pass record-absent"


def test_a_record_whose_text_names_the_class_is_not_passed_over(tmp_path: Path) -> None:
    """It is unmapped if it would count when coded."""
    trial = of_rule(
        tmp_path,
        """
        kind: records
        find:
          - {resource: Condition, codes: [stroke], within: 3 months, then: fail}
        """,
    )
    named = {"text": "ischaemic stroke"}
    assert answer(trial, [condition("c", named, "2026-10-01")]) == "unknown unmapped-code"
    assert answer(trial, [condition("c", named, "2020-10-01")]) == "pass record-absent"
    assert answer(trial, [condition("c", {"text": "family history of stroke"}, "2026-10-01")]) == (
        "pass record-absent"
    )
    assert answer(trial, [condition("c", STROKE, "2026-10-01")]) == "fail record-present"
    assert answer(trial, [condition("c", STROKE, "2026-08-01")]) == "fail record-present"
    assert answer(trial, [condition("c", STROKE, "2026-07-31")]) == "pass record-absent"


# --- rules inside a rule


def test_rules_nest_to_any_depth(tmp_path: Path) -> None:
    """Heart failure or epilepsy, but not both, and not stroke."""
    trial = of_rule(
        tmp_path,
        """
        kind: all
        rules:
          - kind: any
            rules:
              - &failing
                kind: records
                absent: fail
                find: [{resource: Condition, codes: [heart-failure], then: pass}]
              - &epileptic
                kind: records
                absent: fail
                find: [{resource: Condition, codes: [epilepsy], then: pass}]
          - kind: not
            rule: {kind: all, rules: [*failing, *epileptic]}
          - kind: not
            rule:
              kind: not
              rule: {kind: records, find: [{resource: Condition, codes: [stroke], then: fail}]}
        """,
    )
    failing, epileptic, struck = (
        condition(name, code)
        for name, code in (("a", HEART_FAILURE), ("b", EPILEPSY), ("c", STROKE))
    )
    assert answer(trial, [failing]).startswith("pass")
    assert answer(trial, [epileptic]).startswith("pass")
    assert answer(trial, [failing, epileptic]) == "fail record-present"
    assert answer(trial, []) == "fail record-absent"
    assert answer(trial, [failing, struck]) == "fail record-present"
    assert answer(trial, [failing], incomplete=["Condition"]) == "unknown source-unavailable"
    assert answer(trial, [failing, epileptic], incomplete=["Condition"]) == "fail record-present"


AT_LEAST = """
kind: at-least
count: 2
rules:
  - {kind: age, at_least: 65}
  - {kind: sex, allowed: [female]}
  - kind: observation
    codes: [creatinine]
    unit: mg/dL
    above: 1.5
"""


@pytest.mark.parametrize(
    ("patient", "value", "expected"),
    [
        (born("1950"), "2", "pass value-meets"),
        (born("1950"), "1", "pass value-meets"),
        (born("1990"), "2", "pass value-meets"),
        (born("1990"), "1", "fail value-violates"),
        (born("1990", "male"), None, "fail value-violates"),  # one at most
        (born("1950", "male"), None, "unknown no-data"),  # one, and perhaps another
        (born("1990"), None, "unknown no-data"),
        (born("1950"), None, "pass value-meets"),
        (born(None, None), None, "unknown no-data"),
        (born("1990", None), "1", "fail value-violates"),
    ],
)
def test_at_least_so_many_rules_are_counted_in_three_values(
    tmp_path: Path, patient: Record, value: str | None, expected: str
) -> None:
    """Pass if enough pass, fail if they no longer can, else unknown."""
    records = creatinine(value) if value is not None else []
    assert answer(of_rule(tmp_path, AT_LEAST), records, patient=patient) == expected


def test_the_opposite_of_what_is_unknown_is_unknown(tmp_path: Path) -> None:
    """And keeps its reason and what would settle it."""
    trial = of_rule(
        tmp_path,
        "{kind: not, rule: {kind: observation, codes: [creatinine], unit: mg/dL, above: 1.5}}",
    )
    assert answer(trial, []) == "unknown no-data"
    assert by_id(evaluated(trial))["X1"].settled_by
    assert answer(trial, creatinine("2")).startswith("fail")
    assert answer(trial, creatinine("1")).startswith("pass")
    assert not by_id(evaluated(trial, creatinine("1")))["X1"].settled_by


def test_the_reason_of_an_opposite_says_whether_the_value_meets(tmp_path: Path) -> None:
    """A compared result that passes meets, one that fails violates (1.1)."""
    trial = of_rule(
        tmp_path,
        "{kind: not, rule: {kind: observation, codes: [creatinine], unit: mg/dL, above: 1.5}}",
    )
    assert answer(trial, creatinine("2")) == "fail value-violates"
    assert answer(trial, creatinine("1")) == "pass value-meets"
