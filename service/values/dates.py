"""FHIR dates kept as intervals; windows answered yes, no or unknown.

Source: FHIR R4 section 2.24.0.1 (date, dateTime, instant); semantics 1.2.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache

_DATE = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:T(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?P<fraction>\.\d+)?)?"
    r"(?P<offset>Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
MIN_DAY = date.min.toordinal()
MAX_DAY = date.max.toordinal()
_DAY_MICROSECONDS = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class When:
    """A point or stretch of time as recorded.

    ``first`` and ``last`` are the days (proleptic ordinals, inclusive) in the site's time
    zone that it may lie in; ``start`` and ``end`` are microseconds since 1970 UTC
    (``end`` exclusive, or equal to ``start`` for an instant) and only order records.
    ``local`` says that a time without offset was taken as local (an assumption).
    """

    first: int
    last: int
    start: int
    end: int
    text: str
    local: bool = False

    @property
    def is_instant(self) -> bool:
        """Whether a time of day was given."""
        return self.start == self.end

    def definitely_before(self, other: When) -> bool:
        """Whether all of this lies before all of the other."""
        return self.end < other.start if self.is_instant else self.end <= other.start

    def same_time(self, other: When) -> bool:
        """Whether both are the same time: a day and an instant in it are (semantics 1.3)."""
        if self.is_instant and other.is_instant:
            return self.start == other.start
        return self.first == self.last == other.first == other.last

    def precise(self) -> bool:
        """Whether the day is known."""
        return self.first == self.last


@dataclass(frozen=True, slots=True)
class Window:
    """A length of calendar time before the day of evaluation, both end days included."""

    amount: int
    unit: str

    def __str__(self) -> str:
        unit = self.unit[:-1] if self.amount == 1 else self.unit
        return f"{self.amount} {unit}"

    def start(self, as_of: int) -> int:
        """Give the first day (ordinal) of the window that ends at ``as_of``."""
        return back(as_of, self)

    def test(self, when: When, as_of: int) -> bool | None:
        """Tell whether ``when`` lies in the window: True, False, or None if that isn't known."""
        start = back(as_of, self)
        if when.first >= start and when.last <= as_of:
            return True
        if when.last < start or when.first > as_of:
            return False
        return None

    def leaves(self, day: int) -> int:
        """Give the first ``as_of`` (ordinal) at which ``day`` is no longer in the window."""
        candidate = forward(day, self)
        while candidate < MAX_DAY and back(candidate, self) <= day:
            candidate += 1
        return candidate


UNITS = ("days", "weeks", "months", "years")
_WINDOW = re.compile(r"\s*(\d{1,5})\s*(day|week|month|year)s?\s*")


def parse_window(text: str) -> Window:
    """Read ``28 days``, ``6 months``; raises ValueError if unit or number is missing."""
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(f"a window needs a number and days, weeks, months or years, not {text!r}")
    return Window(int(found[1]), found[2] + "s")


def back(day: int, window: Window) -> int:
    """Go a calendar window back from a day; a month that lacks the day ends on its last."""
    if window.unit == "days":
        return max(MIN_DAY, day - window.amount)
    if window.unit == "weeks":
        return max(MIN_DAY, day - 7 * window.amount)
    months = window.amount * (12 if window.unit == "years" else 1)
    return _shift_months(day, -months)


def forward(day: int, window: Window) -> int:
    """Go a calendar window forward from a day; a month that lacks the day ends on its last."""
    if window.unit == "days":
        return min(MAX_DAY, day + window.amount)
    if window.unit == "weeks":
        return min(MAX_DAY, day + 7 * window.amount)
    months = window.amount * (12 if window.unit == "years" else 1)
    return _shift_months(day, months)


def _shift_months(day: int, months: int) -> int:
    start = date.fromordinal(day)
    index = start.year * 12 + start.month - 1 + months
    year, month = divmod(index, 12)
    if year < date.min.year:
        return MIN_DAY
    if year > date.max.year:
        return MAX_DAY
    month += 1
    return date(year, month, min(start.day, monthrange(year, month)[1])).toordinal()


@lru_cache(maxsize=65_536)
def parse(text: str, zone: tzinfo) -> When:
    """Read a FHIR date, dateTime or instant in the site's time zone.

    Raises ValueError for anything else (an impossible day, a time without a date, 24:00).
    """
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError("not a FHIR date or dateTime")
    year = int(found["year"])
    if found["month"] is None:
        return _days(date(year, 1, 1), date(year, 12, 31), text, zone)
    month = int(found["month"])
    if not 1 <= month <= 12:
        raise ValueError("no such month")
    if found["day"] is None:
        last = date(year, month, monthrange(year, month)[1])
        return _days(date(year, month, 1), last, text, zone)
    day = date(year, month, int(found["day"]))
    if found["hour"] is None:
        return _days(day, day, text, zone)
    # FHIR allows second 60 for leap seconds; Python doesn't.
    second = min(int(found["second"] or 0), 59) if int(found["second"] or 0) <= 60 else 61
    local = found["offset"] is None
    moment = datetime(
        year,
        month,
        day.day,
        int(found["hour"]),
        int(found["minute"]),
        second,
        int((found["fraction"] or ".0")[1:7].ljust(6, "0")),
        zone if local else _offset(found["offset"]),
    )
    try:
        instant = (moment - _EPOCH) // _MICROSECOND
        there = moment.astimezone(zone).date().toordinal()
    except OverflowError as error:
        raise ValueError("outside the calendar") from error
    return When(there, there, instant, instant, text, local)


def _offset(text: str) -> tzinfo:
    if text == "Z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[4:6])
    if hours > 14 or minutes > 59:
        raise ValueError("no such offset")
    sign = -1 if text[0] == "-" else 1
    return timezone(sign * timedelta(hours=hours, minutes=minutes))


def _midnight(day: int, zone: tzinfo) -> int:
    """Microseconds since 1970 UTC at the start of a day in a zone."""
    if day > MAX_DAY:
        return (MAX_DAY + 1 - _EPOCH_DAY) * _DAY_MICROSECONDS
    try:
        moment = datetime.combine(date.fromordinal(day), datetime.min.time(), zone)
        return (moment - _EPOCH) // _MICROSECOND
    except OverflowError:
        return (day - _EPOCH_DAY) * _DAY_MICROSECONDS


def _days(first: date, last: date, text: str, zone: tzinfo) -> When:
    start, end = first.toordinal(), last.toordinal()
    return When(start, end, _midnight(start, zone), _midnight(end + 1, zone), text)


def span(first: int, last: int, text: str, zone: tzinfo) -> When:
    """Make a When of two days (ordinals, inclusive), as for a year of life."""
    return When(first, last, _midnight(first, zone), _midnight(last + 1, zone), text)


def hull(start: When | None, end: When | None, text: str) -> When:
    """Make the interval from a start to an end; a side that is missing is unbounded."""
    return When(
        start.first if start else MIN_DAY,
        end.last if end else MAX_DAY,
        start.start if start else (MIN_DAY - _EPOCH_DAY) * _DAY_MICROSECONDS,
        end.end if end else (MAX_DAY + 1 - _EPOCH_DAY) * _DAY_MICROSECONDS,
        text,
        bool((start and start.local) or (end and end.local)),
    )


def day_text(day: int) -> str:
    """Write an ordinal as an ISO date."""
    return date.fromordinal(day).isoformat()


def birthday(born: int, years: int) -> int:
    """Give the day (ordinal) on which someone born on ``born`` turns ``years``.

    Born on 29 February counts from 1 March in a common year (semantics 1.2).
    """
    start = date.fromordinal(born)
    year = start.year + years
    if year > date.max.year:
        return MAX_DAY
    try:
        return start.replace(year=year).toordinal()
    except ValueError:
        return date(year, 3, 1).toordinal()


def age_at_least(born: When, years: int, as_of: int) -> bool | None:
    """Tell whether the age in whole years is at least ``years``; None if that isn't known."""
    if birthday(born.last, years) <= as_of:
        return True
    if birthday(born.first, years) > as_of:
        return False
    return None


def age_text(born: When, as_of: int) -> str:
    """Write the age in whole years, as ``46`` or ``45 to 46``."""
    low, high = _age(born.last, as_of), _age(born.first, as_of)
    return str(low) if low == high else f"{low} to {high}"


def _age(born: int, as_of: int) -> int:
    years = date.fromordinal(as_of).year - date.fromordinal(born).year
    return years if birthday(born, max(years, 0)) <= as_of else years - 1


def next_age(born: int, as_of: int) -> int:
    """Give the age in whole years that comes next after a day; 0 before the birth."""
    return max(_age(born, as_of) + 1, 0)


def age_range(born: When, as_of: int) -> tuple[int, int]:
    """Give the least and greatest possible age in whole years."""
    return _age(born.last, as_of), _age(born.first, as_of)
