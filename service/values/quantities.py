"""Exact quantities as intervals, with units; comparisons answer yes, no or unknown.

Source: semantics 1.4; FHIR R4 section 2.24.0.8 (Quantity). Numbers are fractions made of
the decimals as recorded; binary floats never occur.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

COMPARATORS: Final = ("<", "<=", ">", ">=")
# Beyond this many digits before or after the point a number is no clinical value, and
# computing with it exactly would take unbounded time.
_MAX_EXPONENT = 30
_WORDS = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "≤": "<=", "≥": ">="}
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_SINGLE = re.compile(
    rf"(?P<comparator><=|>=|<|>|≤|≥|(?:LT|LE|GT|GE)(?![A-Za-z]))?\s*(?P<number>{_NUMBER})"
    r"\s*(?P<unit>(?!\d)\S.*|10[*^]\S*)?",
    re.IGNORECASE | re.DOTALL,
)
_RANGE = re.compile(
    rf"(?P<low>{_NUMBER})\s*(?P<low_unit>%)?\s*[-\u2013]\s*(?P<high>{_NUMBER})\s*(?P<unit>\S.*)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A number as far as it is known; a missing end is unbounded."""

    low: Fraction | None
    high: Fraction | None
    low_open: bool = False
    high_open: bool = False

    def scaled(self, factor: Fraction) -> Interval:
        """Multiply by a positive factor."""
        return Interval(
            None if self.low is None else self.low * factor,
            None if self.high is None else self.high * factor,
            self.low_open,
            self.high_open,
        )

    @property
    def exact(self) -> Fraction | None:
        """Give the number if it is a single one."""
        return self.low if self.low is not None and self.low == self.high else None

    def at_least(self, limit: Fraction) -> bool | None:
        """Tell whether the number is >= limit; None if the limit lies inside the interval."""
        if self.low is not None and self.low >= limit:
            return True
        if self.high is not None and (self.high < limit or (self.high == limit and self.high_open)):
            return False
        return None

    def above(self, limit: Fraction) -> bool | None:
        """Tell whether the number is > limit; None if that isn't known."""
        if self.low is not None and (self.low > limit or (self.low == limit and self.low_open)):
            return True
        if self.high is not None and self.high <= limit:
            return False
        return None

    def at_most(self, limit: Fraction) -> bool | None:
        """Tell whether the number is <= limit; None if that isn't known."""
        above = self.above(limit)
        return None if above is None else not above

    def below(self, limit: Fraction) -> bool | None:
        """Tell whether the number is < limit; None if that isn't known."""
        least = self.at_least(limit)
        return None if least is None else not least

    def __str__(self) -> str:
        if self.exact is not None:
            return number_text(self.exact)
        if self.high is None:
            return f"{'>' if self.low_open else '>='} {number_text(self.low or Fraction(0))}"
        if self.low is None or (self.low == 0 and not self.low_open):
            return f"{'<' if self.high_open else '<='} {number_text(self.high)}"
        return f"{number_text(self.low)} to {number_text(self.high)}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measure: its UCUM code, and how it converts.

    ``factor`` leads to the base unit of ``dimension`` (g/L, mol/L, U/L, [IU]/L, 1...).
    ``dimension`` None: a unit that isn't in the tables, comparable only with itself.
    """

    code: str
    dimension: str | None = None
    factor: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Measured:
    """A value as recorded: number, unit (None: none was given) and text."""

    interval: Interval
    unit: Unit | None
    text: str


def fraction_of(number: Decimal) -> Fraction | None:
    """Make an exact fraction of a decimal; None for NaN, infinities and absurd exponents."""
    if not number.is_finite() or (number and abs(number.adjusted()) > _MAX_EXPONENT):
        return None
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or abs(exponent) > 10 * _MAX_EXPONENT:
        return None
    return Fraction(number)


def interval_of(number: Fraction, comparator: str | None) -> Interval | None:
    """Make the interval of a number with a FHIR comparator; None for any other comparator.

    What is measured here can't be negative, so ``< 5`` begins at 0.
    """
    if comparator is None:
        return Interval(number, number)
    if comparator == "<" and number <= 0:
        return None
    if comparator in ("<", "<="):
        return Interval(Fraction(0), number, high_open=comparator == "<")
    if comparator in (">", ">="):
        return Interval(number, None, low_open=comparator == ">")
    return None


def read_text(text: str) -> tuple[Interval, str | None] | None:
    """Read a plainly numeric text into an interval and the unit's spelling; else None.

    ``1.2``, ``<0.2``, ``GT 45``, ``1.2 mg/dL``, ``55 %``, ``55-60%`` (semantics 1.4). A
    decimal comma, a sign and a reversed range are not plainly numeric.
    """
    text = text.strip()
    if len(text) > 64:
        return None
    found = _RANGE.fullmatch(text)
    if found is not None:
        low, high = _fraction(found["low"]), _fraction(found["high"])
        if low is None or high is None or low > high:
            return None
        return Interval(low, high), found["unit"] or found["low_unit"]
    found = _SINGLE.fullmatch(text)
    if found is None:
        return None
    number = _fraction(found["number"])
    if number is None:
        return None
    comparator = found["comparator"]
    if comparator is not None:
        comparator = _WORDS.get(comparator.upper(), comparator)
    interval = interval_of(number, comparator)
    return None if interval is None else (interval, found["unit"])


def _fraction(text: str) -> Fraction | None:
    return fraction_of(Decimal(text)) if text.isascii() else None


def number_text(number: Fraction) -> str:
    """Write a fraction as a decimal of at most six places, without trailing zeros."""
    scaled = round(number * 1_000_000)
    sign, digits = ("-" if scaled < 0 else ""), str(abs(scaled)).rjust(7, "0")
    text = f"{digits[:-6]}.{digits[-6:]}".rstrip("0").rstrip(".")
    return sign + text


def convert(
    interval: Interval, unit: Unit, target: Unit, molar_mass: Fraction | None
) -> Interval | None:
    """Convert to the target's unit; None if the units don't convert.

    ``molar_mass`` (g/mol) leads from substance to mass concentration and back. Arbitrary
    units of an enzyme equal its catalytic ones by convention.
    """
    if unit.code == target.code:
        return interval
    if unit.dimension is None or target.dimension is None:
        return None
    factor = unit.factor / target.factor
    if unit.dimension != target.dimension:
        pair = (unit.dimension, target.dimension)
        if pair == ("arbitrary-concentration", "catalytic-concentration"):
            pass
        elif pair == ("substance-concentration", "mass-concentration") and molar_mass:
            factor *= molar_mass
        elif pair == ("mass-concentration", "substance-concentration") and molar_mass:
            factor /= molar_mass
        else:
            return None
    return interval.scaled(factor)
