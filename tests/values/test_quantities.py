"""Quantities as exact intervals: comparators, texts, units, limits (semantics 1.4)."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.values.quantities import (
    COMPARATORS,
    Interval,
    Unit,
    convert,
    fraction_of,
    interval_of,
    number_text,
    read_text,
)

# Numbers as laboratories write them.
decimals = st.decimals(0, 100_000, places=3, allow_nan=False, allow_infinity=False)
numbers = decimals.map(Fraction)
positive = numbers.filter(bool)
comparators = st.sampled_from((None, *COMPARATORS))
TINY = Fraction(1, 10**9)
HUGE = Fraction(10**12)


def single(number: Fraction) -> Interval:
    """Make the interval of one number."""
    return Interval(number, number)


def between(low: Fraction, high: Fraction, low_open: bool, high_open: bool) -> Interval:
    """Make an interval that holds at least one number."""
    low, high = sorted((low, high))
    return single(low) if low == high else Interval(low, high, low_open, high_open)


intervals = (
    numbers.map(single)
    | st.builds(between, numbers, numbers, st.booleans(), st.booleans())
    | st.builds(lambda low, is_open: Interval(low, None, is_open), numbers, st.booleans())
)


def samples(interval: Interval, limit: Fraction) -> list[Fraction]:
    """List numbers of an interval, at and near its ends and the limit: enough to tell."""
    high = HUGE if interval.high is None else interval.high
    low = Fraction(0) if interval.low is None else interval.low
    near = [
        value + step for value in (low, high, limit, (low + high) / 2) for step in (-TINY, 0, TINY)
    ]
    return [value for value in near if holds(interval, value)]


def holds(interval: Interval, value: Fraction) -> bool:
    """Tell whether a number lies in an interval."""
    low, high = interval.low, interval.high
    above = low is None or value > low or (value == low and not interval.low_open)
    below = high is None or value < high or (value == high and not interval.high_open)
    return above and below


# --- comparison


@given(intervals, numbers)
def test_a_comparison_is_answered_only_if_every_number_of_the_interval_agrees(
    interval: Interval, limit: Fraction
) -> None:
    """True if all meet it, false if none does, else not known."""
    found = samples(interval, limit)
    assert found
    for answer, met in (
        (interval.at_least(limit), {value >= limit for value in found}),
        (interval.above(limit), {value > limit for value in found}),
        (interval.at_most(limit), {value <= limit for value in found}),
        (interval.below(limit), {value < limit for value in found}),
    ):
        assert answer is (met.pop() if len(met) == 1 else None)


@given(numbers, numbers)
def test_a_single_number_always_compares(number: Fraction, limit: Fraction) -> None:
    """Without comparator nothing is indeterminate."""
    one = single(number)
    assert one.at_least(limit) is (number >= limit)
    assert one.above(limit) is (number > limit)
    assert one.at_most(limit) is (number <= limit)
    assert one.below(limit) is (number < limit)
    assert one.exact == number


@given(intervals, numbers, positive)
def test_scaling_by_a_positive_factor_changes_no_answer(
    interval: Interval, limit: Fraction, factor: Fraction
) -> None:
    """Value and limit in another unit compare as before."""
    scaled = interval.scaled(factor)
    assert scaled.at_least(limit * factor) is interval.at_least(limit)
    assert scaled.above(limit * factor) is interval.above(limit)
    assert scaled.at_most(limit * factor) is interval.at_most(limit)
    assert scaled.below(limit * factor) is interval.below(limit)


@given(intervals, numbers, numbers)
def test_a_higher_limit_is_never_easier_to_reach(
    interval: Interval, first: Fraction, second: Fraction
) -> None:
    """Answers are monotone in the limit."""
    low, high = sorted((first, second))
    order = {False: 0, None: 1, True: 2}
    assert order[interval.at_least(high)] <= order[interval.at_least(low)]
    assert order[interval.at_most(low)] <= order[interval.at_most(high)]


# --- comparators


@pytest.mark.parametrize(
    ("comparator", "number", "limit", "at_least"),
    [
        ("<", "5", "5", False),  # "< 5 %" blasts fails ">= 5 %"
        ("<", "6", "5", None),  # "< 6 %" is indeterminate
        ("<=", "5", "5", None),
        ("<=", "4.99", "5", False),
        (">", "5", "5", True),
        (">=", "5", "5", True),
        (">", "4", "5", None),
        (">", "60", "5", True),
        (None, "5", "5", True),
        (None, "4.999", "5", False),
    ],
)
def test_a_comparator_makes_an_interval(
    comparator: str | None, number: str, limit: str, at_least: bool | None
) -> None:
    """A threshold inside the interval can't be decided."""
    interval = interval_of(Fraction(number), comparator)
    assert interval is not None
    assert interval.at_least(Fraction(limit)) is at_least


@given(positive, comparators, positive)
def test_what_a_comparator_states_is_never_contradicted(
    number: Fraction, comparator: str | None, limit: Fraction
) -> None:
    """`> 5` is above 5 and above everything less; nothing measured is below 0."""
    interval = interval_of(number, comparator)
    assert interval is not None
    assert interval.at_least(Fraction(0)) is True
    if comparator in (">", ">="):
        assert interval.at_most(number + limit) is None
        assert interval.at_least(number) is True
    if comparator in ("<", "<="):
        assert interval.at_most(number) is True
        assert interval.at_least(number + limit) is False


@pytest.mark.parametrize("comparator", ["ad", "~", "=", "", "<>", "lt", "=<"])
def test_an_unknown_comparator_makes_no_interval(comparator: str) -> None:
    """R5's `ad` and local signs say nothing that can be compared."""
    assert interval_of(Fraction(5), comparator) is None


def test_less_than_nothing_is_no_number() -> None:
    """`< 0` would be negative, and negative values are unreadable; it is not exactly 0."""
    assert interval_of(Fraction(0), "<") is None
    assert read_text("<0") is None
    assert read_text("<0.0 %") is None


# --- exactness


@given(st.integers(1, 10_000), st.sampled_from(("1.5", "3", "2.5")))
def test_a_multiple_of_a_limit_is_compared_exactly(hundredths: int, multiple: str) -> None:
    """At the multiple of the ULN itself `<=` holds, the least bit above it does not."""
    uln = fraction_of(Decimal(hundredths) / 100)
    assert uln is not None
    limit = Fraction(multiple) * uln
    at = fraction_of(Decimal(multiple) * hundredths / 100)
    above = fraction_of(Decimal(multiple) * hundredths / 100 + Decimal("0.0001"))
    assert at is not None
    assert above is not None
    assert single(at).at_most(limit) is True
    assert single(above).at_most(limit) is False


def test_the_example_of_the_semantics_is_exact() -> None:
    """1.8 mg/dL is exactly 1.5 x 1.2, where binary floats say it is more."""
    assert 1.5 * 1.2 < 1.8
    value, uln = fraction_of(Decimal("1.8")), fraction_of(Decimal("1.2"))
    assert value is not None
    assert uln is not None
    assert single(value).at_most(Fraction("1.5") * uln) is True
    assert single(value).at_least(Fraction("1.5") * uln) is True


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_a_decimal_becomes_the_same_number_or_none(number: Decimal) -> None:
    """NaN, infinities and absurd exponents are no clinical values; all else is exact."""
    found = fraction_of(number)
    if found is not None:
        assert found == number
    elif number.is_finite():
        assert number
        assert not Decimal("1e-30") <= abs(number) <= Decimal("1e30") or len(str(number)) > 300


@pytest.mark.parametrize("text", ["1E+1000000", "1E-1000000", "NaN", "sNaN", "Infinity"])
def test_absurd_numbers_are_refused_at_once(text: str) -> None:
    """An exponent of a million digits must not be computed with."""
    assert fraction_of(Decimal(text)) is None


# --- texts


@pytest.mark.parametrize(
    ("text", "interval", "unit"),
    [
        ("1.2", single(Fraction("1.2")), None),
        (" 1.2 ", single(Fraction("1.2")), None),
        ("0", single(Fraction(0)), None),
        (".5", single(Fraction("0.5")), None),
        ("007", single(Fraction(7)), None),
        ("<0.2", Interval(Fraction(0), Fraction("0.2"), high_open=True), None),
        ("< 0.2", Interval(Fraction(0), Fraction("0.2"), high_open=True), None),
        ("<=0.2", Interval(Fraction(0), Fraction("0.2")), None),
        ("\u22640.2", Interval(Fraction(0), Fraction("0.2")), None),
        (">45", Interval(Fraction(45), None, low_open=True), None),
        ("\u2265 45", Interval(Fraction(45), None), None),
        ("GT 45", Interval(Fraction(45), None, low_open=True), None),
        ("gt45", Interval(Fraction(45), None, low_open=True), None),
        ("LE 3", Interval(Fraction(0), Fraction(3)), None),
        ("Ge 3 %", Interval(Fraction(3), None), "%"),
        ("1.2 mg/dL", single(Fraction("1.2")), "mg/dL"),
        ("1.2mg/dL", single(Fraction("1.2")), "mg/dL"),
        ("55 %", single(Fraction(55)), "%"),
        ("55%", single(Fraction(55)), "%"),
        ("<5%", Interval(Fraction(0), Fraction(5), high_open=True), "%"),
        ("55-60%", Interval(Fraction(55), Fraction(60)), "%"),
        ("55\u201360%", Interval(Fraction(55), Fraction(60)), "%"),
        ("55 - 60 %", Interval(Fraction(55), Fraction(60)), "%"),
        ("55%-60%", Interval(Fraction(55), Fraction(60)), "%"),
        ("55 % \u2013 60", Interval(Fraction(55), Fraction(60)), "%"),
        ("0.6-1.2", Interval(Fraction("0.6"), Fraction("1.2")), None),
        ("0.6-1.2 mg/dL", Interval(Fraction("0.6"), Fraction("1.2")), "mg/dL"),
        ("5-5", single(Fraction(5)), None),
    ],
)
def test_plainly_numeric_texts_are_read(text: str, interval: Interval, unit: str | None) -> None:
    """Number, comparator, unit, range, also with an en dash."""
    assert read_text(text) == (interval, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-",
        "-5",
        "+5",
        "\u22125",
        "--5",
        "<",
        "GT",
        "mg/dL",
        "%",
        "% 55",
        "five",
        "about 5",
        "ca. 5",
        "~5",
        "5\u20134",
        "60-55%",
        "<>5",
        "=5",
        "<<5",
        "> -5",
        "GTX 5",
        "LTE 5",
        "\u0661.\u0662",
        "\uff11",
        "\u00bd",
        "NaN",
        "inf",
        "normal",
        "see report",
        "1" * 65,
        "-5-10",
        ",5",
        "NEG",
    ],
)
def test_other_texts_are_not_read(text: str) -> None:
    """A sign, a reversed range, words, digits of other scripts."""
    assert read_text(text) is None


# Texts that begin as numbers do: what follows is taken for the unit's spelling.
NO_UNIT = [
    "1,2",
    "1,2 mg/dL",
    "1.2.3",
    "5.",
    "5-",
    "5-6-7",
    "1e5",
    "5 to 6",
    "5 (high)",
    "1 000",
    "10:30",
    "5/6",
    "2+",
    "5 +/- 1",
    "55-60-65%",
    "5*",
    "1'000",
    "5 or 6",
    "2026-11-01",
    "0x10",
]


@pytest.mark.parametrize("text", NO_UNIT)
def test_what_follows_a_number_is_kept_as_its_unit(text: str) -> None:
    """So that it is refused as a unit, and not silently left out."""
    read = read_text(text)
    assert read is None or read[1]


@given(decimals, st.sampled_from(("", "<", "<=", ">", ">=")), st.sampled_from(("", "%", " mg/dL")))
def test_a_number_written_out_reads_back_exactly(
    number: Decimal, comparator: str, unit: str
) -> None:
    """Whatever the comparator and the unit."""
    assume(number or comparator != "<")
    read = read_text(f"{comparator}{number}{unit}")
    assert read == (interval_of(Fraction(number), comparator or None), unit.strip() or None)


@given(decimals, decimals, st.sampled_from(("-", "\u2013", " - ")))
def test_a_range_reads_back_exactly_if_it_is_in_order(
    first: Decimal, second: Decimal, dash: str
) -> None:
    """The ends belong to it; a reversed one is no range."""
    read = read_text(f"{first}{dash}{second}")
    if first <= second:
        assert read == (Interval(Fraction(first), Fraction(second)), None)
    else:
        assert read is None


@given(st.text(max_size=70))
def test_any_text_is_read_as_a_sound_interval_or_not_at_all(text: str) -> None:
    """No text raises, and none is read as negative or reversed."""
    read = read_text(text)
    if read is not None:
        interval = read[0]
        assert interval.low is not None
        assert interval.low >= 0
        assert interval.high is None or interval.low <= interval.high


@given(st.text("0123456789.,<>=-\u2013%LTGEltge mg/d", max_size=12))
def test_texts_that_look_numeric_are_read_soundly_or_not_at_all(text: str) -> None:
    """The same, from the signs numbers are written with."""
    read = read_text(text)
    if read is not None:
        interval, unit = read
        assert interval.low is not None
        assert interval.high is None or 0 <= interval.low <= interval.high
        assert unit is None or unit.strip() == unit != ""
        assert "," not in text or (unit is not None and "," in unit)


@given(numbers)
def test_a_number_is_written_as_a_plain_decimal(number: Fraction) -> None:
    """Without exponent or trailing zeros, and reads back."""
    text = number_text(number)
    assert Fraction(text) == number
    assert "e" not in text.lower()
    assert "." not in text or not text.endswith(("0", "."))
    assert number_text(-number) == (f"-{text}" if number else text)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (single(Fraction("1.80")), "1.8"),
        (Interval(Fraction(0), Fraction(5), high_open=True), "< 5"),
        (Interval(Fraction(0), Fraction(5)), "<= 5"),
        (Interval(Fraction(45), None, low_open=True), "> 45"),
        (Interval(Fraction(45), None), ">= 45"),
        (Interval(Fraction(55), Fraction(60)), "55 to 60"),
    ],
)
def test_an_interval_is_written_as_people_write_it(interval: Interval, text: str) -> None:
    """As evidence shows it."""
    assert str(interval) == text


# --- units

MASS, SUBSTANCE = "mass-concentration", "substance-concentration"
G_L = Unit("g/L", MASS)
MG_DL = Unit("mg/dL", MASS, Fraction(1, 100))
UMOL_L = Unit("umol/L", SUBSTANCE, Fraction(1, 10**6))
PERCENT = Unit("%", "fraction", Fraction(1, 100))
ONE = Unit("1", "fraction")
ODD = Unit("arb")
UNITS = (G_L, MG_DL, UMOL_L, PERCENT, ONE, ODD)
units = st.sampled_from(UNITS)
masses = st.decimals("0.001", 100_000, places=3).map(Fraction)


@given(intervals, units, units, masses | st.none())
def test_a_conversion_there_and_back_is_exact(
    interval: Interval, unit: Unit, target: Unit, mass: Fraction | None
) -> None:
    """What converts, converts back to the very same interval."""
    there = convert(interval, unit, target, mass)
    back = None if there is None else convert(there, target, unit, mass)
    assert back == (None if there is None else interval)


@given(intervals, units, units, units, masses)
def test_the_way_of_a_conversion_makes_no_difference(
    interval: Interval, first: Unit, second: Unit, third: Unit, mass: Fraction
) -> None:
    """By way of another unit gives the same as directly."""
    between_them = convert(interval, first, second, mass)
    if between_them is not None:
        assert convert(between_them, second, third, mass) == convert(interval, first, third, mass)


@given(intervals, units, st.data(), masses, numbers)
def test_equivalent_units_give_equal_answers(
    interval: Interval, unit: Unit, data: st.DataObject, mass: Fraction, limit: Fraction
) -> None:
    """Value and limit, both converted, compare as before."""
    equivalent = [each for each in UNITS if convert(interval, unit, each, mass) is not None]
    target = data.draw(st.sampled_from(equivalent))
    value, bound = (convert(each, unit, target, mass) for each in (interval, single(limit)))
    assert value is not None
    assert bound is not None
    assert bound.exact is not None
    assert value.at_most(bound.exact) is interval.at_most(limit)
    assert value.at_least(bound.exact) is interval.at_least(limit)


def test_units_that_do_not_convert_are_told() -> None:
    """Mass and substance need the molar mass; an unknown unit compares only with itself."""
    one = single(Fraction(1))
    assert convert(one, MG_DL, UMOL_L, None) is None
    assert convert(one, MG_DL, PERCENT, Fraction(100)) is None
    assert convert(one, ODD, MG_DL, Fraction(100)) is None
    assert convert(one, Unit("other"), ODD, Fraction(100)) is None
    assert convert(one, ODD, Unit("arb"), None) == one


def test_creatinine_converts_by_its_molar_mass_exactly() -> None:
    """100 umol/L at 113.118 g/mol are exactly 1.13118 mg/dL."""
    assert convert(single(Fraction(100)), UMOL_L, MG_DL, Fraction("113.118")) == single(
        Fraction("1.13118")
    )


def test_a_fraction_and_a_percentage_are_the_same_number() -> None:
    """0.55 is 55 %."""
    assert convert(single(Fraction("0.55")), ONE, PERCENT, None) == single(Fraction(55))
