"""Reads the date fields of resources into When; a malformed one makes the record unusable."""

from __future__ import annotations

from datetime import date, tzinfo

from service.fhir.resources import Period, Quantity, Range
from service.values.dates import MAX_DAY, When, birthday, hull, parse, span


class BadDate(Exception):
    """A date field isn't a FHIR date; the text names the field only."""


def read(text: str | None, zone: tzinfo, field: str) -> When | None:
    """Read a date or dateTime; None if there is none; raises BadDate."""
    if text is None:
        return None
    try:
        return parse(text, zone)
    except ValueError as error:
        raise BadDate(f"{field} is not a FHIR date") from error


def read_period(period: Period | None, zone: tzinfo, field: str) -> When | None:
    """Read a period as an interval; None if it states neither start nor end."""
    if period is None or (period.start is None and period.end is None):
        return None
    start = read(period.start, zone, f"{field}.start")
    end = read(period.end, zone, f"{field}.end")
    if start and end and end.last < start.first:
        raise BadDate(f"{field} ends before it starts")
    return hull(start, end, f"{period.start or ''}/{period.end or ''}")


def period_end(period: Period | None, zone: tzinfo, field: str) -> When | None:
    """Give the end, else the start of a period (observation time, semantics 1.2)."""
    if period is None:
        return None
    read_period(period, zone, field)
    return read(period.end, zone, field) or read(period.start, zone, field)


_YEAR_CODES = {"a", "year", "years", "yr", "a_j"}
_MONTH_CODES = {"mo", "month", "months", "mo_j"}


def year_of_life(age: Quantity | None, birth: When | None, zone: tzinfo) -> When | None:
    """Turn an age into the interval of that year of life; None if it can't be told."""
    years = _years(age)
    if years is None or birth is None:
        return None
    first = birthday(birth.first, years)
    last = min(birthday(birth.last, years + 1) - 1, MAX_DAY)
    return span(first, last, f"age {years}", zone)


def age_range(ages: Range | None, birth: When | None, zone: tzinfo) -> When | None:
    """Turn a range of ages into the interval from the first to the last of those years."""
    if ages is None or birth is None:
        return None
    low, high = _years(ages.low), _years(ages.high)
    if low is None or high is None or high < low:
        return None
    first, last = birthday(birth.first, low), birthday(birth.last, high + 1) - 1
    return span(first, min(last, MAX_DAY), f"age {low} to {high}", zone)


def _years(age: Quantity | None) -> int | None:
    if age is None or age.value is None or age.comparator is not None or not age.value.is_finite():
        return None
    unit = (age.code or age.unit or "").lower()
    if not 0 <= age.value < 1800:
        return None
    if unit in _YEAR_CODES:
        years = int(age.value)
    elif unit in _MONTH_CODES:
        years = int(age.value) // 12
    else:
        return None
    return years if years <= date.max.year else None
