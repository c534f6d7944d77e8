"""Reads results: numbers with units, limits of normal, positive and negative (1.3, 1.4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from service.criteria.context import Context
from service.facts.model import ObservationFact
from service.fhir.resources import CodeableConcept, Quantity, Range, ReferenceRange
from service.terms import Concept, Match, Terms, Uln
from service.values.dates import When, age_range
from service.values.logic import Reason
from service.values.quantities import (
    Interval,
    Measured,
    Unit,
    convert,
    fraction_of,
    interval_of,
    read_text,
)


class Polarity(StrEnum):
    """What a coded result says."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


def read_number(fact: ObservationFact, terms: Terms) -> Measured | Reason:
    """Read a result as a number; else the reason why it can't be (semantics 1.4)."""
    if fact.modified:
        return Reason.UNREADABLE_VALUE
    if fact.quantity is not None:
        return _of_quantity(fact.quantity, terms)
    if fact.range is not None:
        return _of_range(fact.range, terms)
    if fact.text is not None:
        return _of_text(fact.text, terms)
    if fact.integer is not None and fact.integer >= 0:
        number = Fraction(fact.integer)
        return Measured(Interval(number, number), None, str(fact.integer))
    return Reason.UNREADABLE_VALUE


def _of_quantity(quantity: Quantity, terms: Terms) -> Measured | Reason:
    number = fraction_of(quantity.value) if quantity.value is not None else None
    interval = interval_of(number, quantity.comparator) if number is not None else None
    if number is None or number < 0 or interval is None:
        return Reason.UNREADABLE_VALUE
    return Measured(interval, terms.unit_of(quantity), str(quantity.value))


def _of_range(given: Range, terms: Terms) -> Measured | Reason:
    ends: list[tuple[Fraction, Unit | None]] = []
    for quantity in (given.low, given.high):
        if quantity is None:
            continue
        read = _of_quantity(quantity, terms)
        if isinstance(read, Reason) or read.interval.exact is None:
            return Reason.UNREADABLE_VALUE
        ends.append((read.interval.exact, read.unit))
    if not ends:
        return Reason.UNREADABLE_VALUE
    units = {unit for _, unit in ends if unit is not None}
    if len(units) > 1:
        return Reason.INCOMPARABLE_UNIT
    low = ends[0][0] if given.low is not None else Fraction(0)
    high = ends[-1][0] if given.high is not None else None
    if high is not None and low > high:
        return Reason.UNREADABLE_VALUE
    return Measured(Interval(low, high), units.pop() if units else None, "range")


def _of_text(text: str, terms: Terms) -> Measured | Reason:
    read = read_text(text)
    if read is None:
        return Reason.UNREADABLE_VALUE
    interval, spelling = read
    if spelling is None:
        return Measured(interval, None, text)
    unit = terms.unit(spelling)
    return Reason.UNREADABLE_VALUE if unit is None else Measured(interval, unit, text)


def plausible(measured: Measured) -> bool:
    """Tell whether a fraction lies between 0 and 1 (0 and 100 %); others always do."""
    unit = measured.unit
    if unit is None or unit.dimension != "fraction":
        return True
    one = 1 / unit.factor
    interval = measured.interval
    beyond = interval.high is not None and interval.high > one
    return not beyond and interval.above(one) is not True


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of normal that applies to a result, and where it comes from."""

    number: Fraction
    unit: Unit | None
    fallback: bool
    source: str


def ranges_that_fit(fact: ObservationFact, ctx: Context, upper: bool) -> list[Limit] | Reason:
    """List the limits of the result's own reference ranges that fit the patient (1.4)."""
    limits: list[Limit] = []
    for entry in fact.ranges:
        if not (_is_normal(entry) and _sex_fits(entry, ctx) and _age_fits(entry, fact.when, ctx)):
            continue
        end = entry.high if upper else entry.low
        if end is not None and end.value is not None:
            number = fraction_of(end.value)
            if number is None or number < 0 or end.comparator is not None:
                return Reason.UNREADABLE_VALUE
            limits.append(Limit(number, ctx.facts.terms.unit_of(end), False, "reference range"))
        elif entry.text is not None:
            read = read_text(entry.text)
            number = None
            if read is not None:
                number = read[0].high if upper else read[0].low
                if not upper and read[0].high is not None and read[0].low == 0:
                    number = None
            if read is not None and number is not None:
                unit = ctx.facts.terms.unit(read[1]) or Unit(read[1]) if read[1] else None
                limits.append(Limit(number, unit, False, f"reference range {entry.text[:40]!r}"))
    return limits


def _is_normal(entry: ReferenceRange) -> bool:
    if entry.type is None:
        return True
    codes = {coding.code for coding in entry.type.coding if coding.code}
    if codes:
        return "normal" in codes
    return (entry.type.text or "normal").strip().lower() in ("normal", "normal range")


_SEXES = {
    "male": "male",
    "m": "male",
    "248153007": "male",
    "female": "female",
    "f": "female",
    "248152002": "female",
}


def _sex_fits(entry: ReferenceRange, ctx: Context) -> bool:
    sexes: set[str] = set()
    for concept in entry.applies_to:
        sex = _sex_of(concept)
        if sex is None:
            return False
        sexes.add(sex)
    return not sexes or ctx.facts.person.sex is None or ctx.facts.person.sex in sexes


def _sex_of(concept: CodeableConcept) -> str | None:
    for coding in concept.coding:
        if coding.code and coding.code.lower() in _SEXES:
            return _SEXES[coding.code.lower()]
    text = (concept.text or "").strip().lower()
    return _SEXES.get(text)


_DAYS = {"d": 1, "day": 1, "days": 1, "wk": 7, "week": 7, "weeks": 7}
_MONTHS = {"mo": 1, "month": 1, "months": 1, "a": 12, "year": 12, "years": 12, "yr": 12, "y": 12}


def _age_fits(entry: ReferenceRange, when: When | None, ctx: Context) -> bool:
    """Whole years on the day of the result; what isn't known fits."""
    if entry.age is None:
        return True
    birth = ctx.facts.person.birth
    if birth is None:
        return True
    if when is None:
        ctx.tests_age(birth)
        low, high = age_range(birth, ctx.as_of)
    else:
        low, high = age_range(birth, when.first)[0], age_range(birth, when.last)[1]
    least, most = _years(entry.age.low), _years(entry.age.high)
    return (least is None or high >= least) and (most is None or low <= most)


def _years(age: Quantity | None) -> Fraction | None:
    number = fraction_of(age.value) if age is not None and age.value is not None else None
    if age is None or number is None:
        return None
    unit = (age.code or age.unit or "a").lower()
    if unit in _MONTHS:
        return number * _MONTHS[unit] / 12
    if unit in _DAYS:
        return number * _DAYS[unit] / Fraction(36525, 100)
    return None


def fallback_limits(analyte: str, when: When | None, ctx: Context) -> list[Limit] | None:
    """List the fallback limits for the patient's sex and age; None if one may lack a row."""
    person = ctx.facts.person
    sexes = (person.sex,) if person.sex else ("male", "female")
    limits: list[Limit] = []
    for sex in sexes:
        rows = [
            row
            for row in ctx.facts.terms.ulns
            if row.analyte == analyte and row.sex in (sex, "any")
        ]
        ages = _possible_ages(when, ctx)
        if ages is None:
            fitting = [row for row in rows if row.age_low is None and row.age_high is None]
            if not fitting:
                return None
        else:
            fitting = []
            for age in ages:
                found = [row for row in rows if _row_fits(row, age)]
                if not found:
                    return None
                fitting += found
        limits += [Limit(row.limit, row.unit, True, f"{row.source} ({sex})") for row in fitting]
    return list(dict.fromkeys(limits))


def _possible_ages(when: When | None, ctx: Context) -> list[int] | None:
    birth = ctx.facts.person.birth
    if birth is None:
        return None
    if when is None:
        ctx.tests_age(birth)
        low, high = age_range(birth, ctx.as_of)
    else:
        low, high = age_range(birth, when.first)[0], age_range(birth, when.last)[1]
    return list(range(max(low, 0), min(high, 150) + 1))


def _row_fits(row: Uln, age: int) -> bool:
    """Ages of the table in days and months only tell the newborn; whole years decide."""
    low = row.age_low[0] if row.age_low and row.age_low[1] == "y" else 0
    high = row.age_high[0] if row.age_high and row.age_high[1] == "y" else None
    if row.age_low and row.age_low[1] != "y" and age < 1:
        return False
    return age >= low and (high is None or age <= high)


def to_unit(measured: Measured, target: Unit, analyte: str | None, terms: Terms) -> Interval | None:
    """Convert a reading to a unit; None if it has none or it doesn't convert."""
    if measured.unit is None:
        return None
    mass = terms.molar_masses.get(analyte) if analyte else None
    return convert(measured.interval, measured.unit, target, mass)


_POSITIVE = frozenset(("positive", "pos", "reactive", "detected"))
_NEGATIVE = frozenset(("negative", "neg", "nonreactive", "non reactive", "not detected"))
# Texts that state a result without deciding: an interpretation beside them is no answer.
_UNCLEAR = frozenset(
    ("indeterminate", "equivocal", "borderline", "inconclusive", "weakly positive", "invalid")
)
_STATED = {Polarity.POSITIVE: "result-positive", Polarity.NEGATIVE: "result-negative"}


def stated_polarity(concept: Concept) -> set[Polarity]:
    """Tell what a coded answer or interpretation says: by code, else by its whole text."""
    found = {
        polarity for polarity, name in _STATED.items() if concept.match((name,)) is Match.INCLUDE
    }
    return found | {polarity for text in concept.texts for polarity in text_polarity(text)}


def text_polarity(text: str) -> set[Polarity]:
    """Tell what a whole text says, in any case, hyphen or not."""
    plain = _plain(text)
    if plain in _POSITIVE:
        return {Polarity.POSITIVE}
    return {Polarity.NEGATIVE} if plain in _NEGATIVE else set()


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("-", " ").replace("\u2010", " ").split())


def _indeterminate(concept: Concept) -> bool:
    return concept.match(("result-indeterminate",)) is Match.INCLUDE


def read_polarity(
    fact: ObservationFact, terms: Terms, *, viral_load: bool = False
) -> Polarity | Reason:
    """Read a result as positive or negative; else the reason why not (semantics 1.4)."""
    if fact.modified:
        return Reason.UNREADABLE_VALUE
    stated: set[Polarity] = set()
    if fact.coded is not None:
        if _indeterminate(fact.coded):
            return Reason.UNREADABLE_VALUE
        stated |= stated_polarity(fact.coded)
    if fact.text is not None:
        if _plain(fact.text) in _UNCLEAR:
            return Reason.UNREADABLE_VALUE
        stated |= text_polarity(fact.text)
    if not stated and any(_indeterminate(entry) for entry in fact.interpretation):
        return Reason.UNREADABLE_VALUE
    load = _viral_load(fact, terms) if viral_load else None
    if isinstance(load, Polarity):
        stated.add(load)
    for entry in fact.interpretation:
        stated |= stated_polarity(entry)
    if len(stated) > 1:
        return Reason.CONFLICTING_DATA
    if stated:
        return stated.pop()
    return load if isinstance(load, Reason) else Reason.UNREADABLE_VALUE


def _viral_load(fact: ObservationFact, terms: Terms) -> Polarity | Reason | None:
    """Read a viral load: 0 negative, above 0 positive, ``<n`` alone indeterminate (1.4)."""
    number = read_number(fact, terms)
    if isinstance(number, Reason):
        return None
    if number.interval.exact == 0:
        return Polarity.NEGATIVE
    if number.interval.above(Fraction(0)):
        return Polarity.POSITIVE
    return Reason.INDETERMINATE_VALUE
