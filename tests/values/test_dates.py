"""Dates as intervals, windows of calendar time, ages: laws that hold for any date (1.2)."""

from __future__ import annotations

from calendar import isleap, monthrange
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.values.dates import (
    MAX_DAY,
    MIN_DAY,
    UNITS,
    When,
    Window,
    age_at_least,
    age_range,
    age_text,
    back,
    birthday,
    day_text,
    forward,
    hull,
    parse,
    parse_window,
    span,
)

# Zones with and without daylight saving, on either side of the date line, at odd offsets, one
# whose clocks change at midnight, and one that skipped a whole day.
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Asia/Shanghai",
        "Asia/Kathmandu",
        "Pacific/Apia",
        "America/Santiago",
        "Australia/Lord_Howe",
        "Africa/Cairo",
    )
]
zones = st.sampled_from(ZONES)
days = st.dates(date(1890, 1, 1), date(2110, 12, 31))
ordinals = days.map(date.toordinal)
windows = st.builds(Window, st.integers(0, 400), st.sampled_from(UNITS))
# The ends of months and leap days, where calendar windows and ages go wrong first.
edges = st.builds(
    lambda year, month, back_by: date(year, month, monthrange(year, month)[1] - back_by),
    st.integers(1895, 2105),
    st.integers(1, 12),
    st.integers(0, 3),
).map(date.toordinal)
any_day = ordinals | edges


def day(text: str) -> int:
    """Give the ordinal of an ISO date."""
    return date.fromisoformat(text).toordinal()


def stretch(first: int, last: int) -> When:
    """Make the interval of two days."""
    return span(min(first, last), max(first, last), "", UTC)


stretches = st.builds(stretch, any_day, any_day) | st.builds(
    lambda first, length: stretch(first, first + length), any_day, st.integers(0, 70)
)


# --- reading


@given(days, zones)
def test_a_full_date_is_that_day_in_any_zone(when: date, zone: tzinfo) -> None:
    """A date has no zone: it is the same day everywhere, and reads back as it was written."""
    read = parse(when.isoformat(), zone)
    assert (read.first, read.last) == (when.toordinal(), when.toordinal())
    assert read.precise()
    assert not read.is_instant
    assert read.text == day_text(read.first) == when.isoformat()


@given(st.integers(1, 9999), st.integers(1, 12), zones)
def test_a_partial_date_is_the_interval_of_all_its_days(
    year: int, month: int, zone: tzinfo
) -> None:
    """A year runs from 1 January to 31 December, a month to its last day."""
    whole = parse(f"{year:04}", zone)
    assert (whole.first, whole.last) == (
        date(year, 1, 1).toordinal(),
        date(year, 12, 31).toordinal(),
    )
    part = parse(f"{year:04}-{month:02}", zone)
    assert part.first == date(year, month, 1).toordinal()
    assert part.last - part.first + 1 == monthrange(year, month)[1]
    assert whole.first <= part.first <= part.last <= whole.last
    assert not part.precise()


# Wall-clock times, as a record states them without an offset.
moments = st.datetimes(datetime.fromisoformat("1890-01-01"), datetime.fromisoformat("2110-12-31"))
offsets = st.integers(-14 * 60, 14 * 60)


@given(moments, offsets, zones)
def test_an_instant_is_its_day_at_the_site(moment: datetime, minutes: int, zone: tzinfo) -> None:
    """An instant's day is its day in the site's zone, whatever offset it is written with."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    read = parse(aware.isoformat(), zone)
    assert read.is_instant
    assert not read.local
    assert read.precise()
    assert read.first == aware.astimezone(zone).date().toordinal()
    # The same instant written in UTC is the same time.
    other = parse(aware.astimezone(UTC).isoformat().replace("+00:00", "Z"), zone)
    assert (other.start, other.first) == (read.start, read.first)
    assert other.same_time(read)


@given(moments, zones)
def test_a_time_without_offset_is_local_and_says_so(moment: datetime, zone: tzinfo) -> None:
    """It is taken as the site's local time, on the day that is written."""
    aware = moment.replace(tzinfo=zone)
    # A time that the clocks skipped is no time of that day in every zone.
    assume(aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == moment)
    read = parse(moment.isoformat(), zone)
    assert read.local
    assert read.first == read.last == moment.toordinal()


@given(days, zones)
def test_days_follow_each_other_without_gap_or_overlap(when: date, zone: tzinfo) -> None:
    """A day of 23 or 25 hours ends where the next begins."""
    today, tomorrow = (parse((when + timedelta(days=n)).isoformat(), zone) for n in (0, 1))
    assert today.end == tomorrow.start
    assert today.definitely_before(tomorrow)
    assert not tomorrow.definitely_before(today)


@given(days, st.times(), zones)
def test_an_instant_lies_within_its_day(when: date, time: object, zone: tzinfo) -> None:
    """A day and an instant in it are the same time; neither is before the other."""
    instant = parse(f"{when.isoformat()}T{time}", zone)
    whole = parse(day_text(instant.first), zone)
    assert whole.start <= instant.start < whole.end
    assert instant.same_time(whole)
    assert whole.same_time(instant)
    assert not instant.definitely_before(whole)
    assert not whole.definitely_before(instant)


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        # New York is behind UTC: early on 2 March there is still 1 March.
        ("2026-03-02T03:00:00Z", "America/New_York", "2026-03-01"),
        # 8 March 2026: the clocks go from 2 to 3; 4:30 UTC is before, on the day before.
        ("2026-03-08T04:30:00Z", "America/New_York", "2026-03-07"),
        ("2026-03-08T05:00:00Z", "America/New_York", "2026-03-08"),
        ("2026-03-09T04:00:00Z", "America/New_York", "2026-03-09"),
        # Berlin: summer time ends on 25 October 2026; midnight is 22:00 UTC before, 23:00 after.
        ("2026-10-24T22:00:00Z", "Europe/Berlin", "2026-10-25"),
        ("2026-10-25T22:59:59Z", "Europe/Berlin", "2026-10-25"),
        ("2026-10-25T23:00:00Z", "Europe/Berlin", "2026-10-26"),
        # Shanghai is ahead of UTC all year.
        ("2026-06-30T16:00:00Z", "Asia/Shanghai", "2026-07-01"),
        # Samoa had no 30 December 2011.
        ("2011-12-30T09:59:59Z", "Pacific/Apia", "2011-12-29"),
        ("2011-12-30T10:00:00Z", "Pacific/Apia", "2011-12-31"),
    ],
)
def test_known_instants_fall_on_known_days(text: str, zone: str, expected: str) -> None:
    """Around changes of the clocks the day is that of the wall calendar."""
    assert day_text(parse(text, ZoneInfo(zone)).first) == expected


def test_an_hour_that_occurs_twice_and_one_that_never_does_can_be_read() -> None:
    """Local times at the change of clocks are taken as they are written."""
    berlin = ZoneInfo("Europe/Berlin")
    assert day_text(parse("2026-10-25T02:30:00", berlin).first) == "2026-10-25"
    assert day_text(parse("2026-03-29T02:30:00", berlin).first) == "2026-03-29"
    # With an offset the two are told apart.
    first, second = (parse(f"2026-10-25T02:30:00+0{n}:00", berlin) for n in (2, 1))
    assert first.definitely_before(second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "26",
        "2026-",
        "2026-1",
        "2026-13",
        "2026-00",
        "2026-02-30",
        "2026-02-29",
        "2026-04-31",
        "2026-00-10",
        "2026-01-00",
        "0000",
        "0000-01-01",
        "2026-1-1",
        "20260101",
        "01/02/2026",
        "2026-01-01 ",
        " 2026-01-01",
        "2026-01-01\n",
        "2026-01-01T",
        "T10:00:00Z",
        "2026-01-01T10",
        "2026-01-01T10Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T25:00:00Z",
        "2026-01-01T10:60:00Z",
        "2026-01-01T10:00:61Z",
        "2026-01-01T10:00:00+15:00",
        "2026-01-01T10:00:00+01:60",
        "2026-01-01T10:00:00+0100",
        "2026-01-01t10:00:00z",
        "2026-01-01 10:00:00",
        "2026-01T10:00:00Z",
        "2026-W01-1",
        "2026-001",
        "12026-01-01",
        "-2026-01-01",
        "today",
        "1.5",
        "2026-01-01T10:00:00.Z",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01T00:00:00+14:00",
    ],
)
def test_what_is_no_fhir_date_is_refused(text: str) -> None:
    """A malformed date is never read as another one."""
    with pytest.raises(ValueError, match=r"\w"):
        parse(text, UTC)


@pytest.mark.parametrize(
    "text", ["\u0662\u0660\u0662\u0666-01-01", "\uff12\uff10\uff12\uff16", "2026-0\u0661-01"]
)
def test_digits_of_other_scripts_are_no_fhir_date(text: str) -> None:
    """FHIR writes dates in ASCII digits only."""
    with pytest.raises(ValueError, match=r"\w"):
        parse(text, UTC)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    """No text makes reading fail in another way, and what is read is a sound interval."""
    try:
        read = parse(text, ZONES[1])
    except ValueError:
        return
    assert MIN_DAY <= read.first <= read.last <= MAX_DAY
    assert read.start <= read.end


def test_leap_seconds_and_long_fractions_are_read() -> None:
    """FHIR allows second 60 and any number of decimals."""
    assert parse("2016-12-31T23:59:60Z", UTC).first == day("2016-12-31")
    exact = parse("2026-01-01T10:00:00.123456789Z", UTC)
    assert exact.start == parse("2026-01-01T10:00:00.123456Z", UTC).start
    assert (
        parse("2026-01-01T10:00:00.5Z", UTC).start - parse("2026-01-01T10:00:00Z", UTC).start
        == 500_000
    )


def test_a_year_at_either_end_of_the_calendar_can_be_read() -> None:
    """Servers write 9999 for the end of time, and 0001 or 1900 for its beginning."""
    for zone in ZONES:
        assert parse("9999-12-31", zone).last == MAX_DAY
        assert parse("9999", zone).last == MAX_DAY
        assert parse("0001-01-01", zone).first == MIN_DAY
        assert parse("0001", zone).start < parse("9999", zone).start


# --- order


instants = st.builds(
    lambda moment: parse(f"{moment.isoformat()}Z", UTC),
    st.datetimes(datetime.fromisoformat("2025-12-20"), datetime.fromisoformat("2026-01-10")),
)
times = instants | st.builds(
    stretch,
    st.integers(day("2025-12-20"), day("2026-01-10")),
    st.integers(day("2025-12-20"), day("2026-01-10")),
)


@given(times, times, times)
def test_being_before_is_a_strict_order(first: When, second: When, third: When) -> None:
    """Nothing is before itself, no two are before each other, and the order is transitive."""
    assert not first.definitely_before(first)
    assert not (first.definitely_before(second) and second.definitely_before(first))
    if first.definitely_before(second) and second.definitely_before(third):
        assert first.definitely_before(third)


@given(times, times)
def test_the_same_time_is_mutual_and_never_before(first: When, second: When) -> None:
    """What is of the same time is neither before nor after."""
    assert first.same_time(second) == second.same_time(first)
    if first.same_time(second):
        assert not first.definitely_before(second)


@given(times, times)
def test_a_hull_holds_both_ends(one: When, other: When) -> None:
    """A period runs from the start of its start to the end of its end."""
    start, end = sorted((one, other), key=lambda when: when.first)
    whole = hull(start, end, "")
    assert (whole.first, whole.last) == (start.first, end.last)
    assert hull(None, end, "").first == MIN_DAY
    assert hull(start, None, "").last == MAX_DAY


# --- windows


@pytest.mark.parametrize(
    ("text", "as_of", "first"),
    [
        ("28 days", "2026-11-01", "2026-10-04"),
        ("0 days", "2026-11-01", "2026-11-01"),
        ("1 day", "2026-03-01", "2026-02-28"),
        ("4 weeks", "2026-11-01", "2026-10-04"),
        ("6 weeks", "2026-11-01", "2026-09-20"),
        ("1 month", "2026-03-31", "2026-02-28"),
        ("1 month", "2024-03-31", "2024-02-29"),
        ("1 month", "2024-03-29", "2024-02-29"),
        ("1 month", "2026-05-31", "2026-04-30"),
        ("3 months", "2026-05-30", "2026-02-28"),
        ("6 months", "2026-08-31", "2026-02-28"),
        ("12 months", "2024-02-29", "2023-02-28"),
        ("1 year", "2024-02-29", "2023-02-28"),
        ("4 years", "2024-02-29", "2020-02-29"),
        ("10 months", "2026-11-01", "2026-01-01"),
    ],
)
def test_windows_begin_on_the_day_of_the_calendar(text: str, as_of: str, first: str) -> None:
    """A month that lacks the day ends on its last; both end days are included."""
    window = parse_window(text)
    start = day(first)
    assert day_text(window.start(day(as_of))) == first
    assert window.test(stretch(start, start), day(as_of)) is True
    assert window.test(stretch(start - 1, start - 1), day(as_of)) is False
    assert window.test(stretch(day(as_of), day(as_of)), day(as_of)) is True
    assert window.test(stretch(day(as_of) + 1, day(as_of) + 1), day(as_of)) is False


@given(stretches, windows, any_day)
def test_a_window_holds_an_interval_if_it_holds_each_of_its_days(
    when: When, window: Window, as_of: int
) -> None:
    """True if wholly inside, false if wholly outside, else not known."""
    start = window.start(as_of)
    inside = max(0, min(when.last, as_of) - max(when.first, start) + 1)
    length = when.last - when.first + 1
    expected = True if inside == length else False if inside == 0 else None
    assert window.test(when, as_of) is expected


@given(stretches, st.data(), windows, any_day)
def test_knowing_a_date_better_never_contradicts_a_window(
    when: When, data: st.DataObject, window: Window, as_of: int
) -> None:
    """What is known of a partial date stays true of any day in it."""
    within = st.integers(when.first, when.last)
    first, last = data.draw(within), data.draw(within)
    known = window.test(when, as_of)
    if known is not None:
        assert window.test(stretch(first, last), as_of) is known


@given(any_day, any_day, windows)
def test_a_later_day_of_evaluation_never_moves_the_beginning_back(
    first: int, second: int, window: Window
) -> None:
    """The beginning of a window is monotone in its end, and so is forward in its day."""
    early, late = sorted((first, second))
    assert window.start(early) <= window.start(late)
    assert forward(early, window) <= forward(late, window)
    assert window.start(early) <= early <= forward(early, window)


@given(any_day, st.integers(0, 400), st.integers(0, 400), st.sampled_from(UNITS))
def test_a_longer_window_holds_whatever_a_shorter_one_holds(
    as_of: int, first: int, second: int, unit: str
) -> None:
    """Windows of one unit are nested."""
    short, long = (Window(amount, unit) for amount in sorted((first, second)))
    assert long.start(as_of) <= short.start(as_of)


@given(any_day, windows, st.integers(0, 800))
def test_a_window_is_left_once_and_for_good(when: int, window: Window, later: int) -> None:
    """`leaves` is exactly the first day on which the day is no longer in the window."""
    leaves = window.leaves(when)
    held = stretch(when, when)
    assert window.test(held, when) is True
    assert window.test(held, leaves - 1) is True
    assert window.test(held, leaves) is False
    assert window.test(held, leaves + later) is False
    assert all(window.test(held, as_of) for as_of in range(max(when, leaves - 40), leaves))


@given(any_day, st.integers(0, 20_000), st.sampled_from(("days", "weeks")))
def test_days_and_weeks_go_back_and_forth_exactly(when: int, amount: int, unit: str) -> None:
    """Only months and years end early."""
    window = Window(amount, unit)
    assert forward(back(when, window), window) == when
    assert back(when, window) == when - amount * (7 if unit == "weeks" else 1)


@given(any_day, st.integers(0, 300))
def test_twelve_months_are_a_year_and_seven_days_a_week(when: int, amount: int) -> None:
    """The same length in another unit is the same window."""
    assert back(when, Window(12 * amount, "months")) == back(when, Window(amount, "years"))
    assert back(when, Window(7 * amount, "days")) == back(when, Window(amount, "weeks"))


@given(any_day, st.integers(0, 300))
def test_months_go_back_to_the_same_day_or_the_last_of_the_month(when: int, months: int) -> None:
    """The month is counted, the day kept if that month has it."""
    then, start = date.fromordinal(when), date.fromordinal(back(when, Window(months, "months")))
    assert (then.year - start.year) * 12 + then.month - start.month == months
    assert start.day == min(then.day, monthrange(start.year, start.month)[1])


def test_a_window_never_leaves_the_calendar() -> None:
    """Absurd lengths end at the calendar's ends."""
    for unit in UNITS:
        window = Window(99_999_999, unit)
        assert window.start(day("2026-11-01")) == MIN_DAY
        assert forward(day("2026-11-01"), window) == MAX_DAY
        assert window.leaves(day("2026-11-01")) == MAX_DAY


@given(windows)
def test_a_window_reads_back_as_it_is_written(window: Window) -> None:
    """Its text is what a trial file holds."""
    assert parse_window(str(window)) == window


@pytest.mark.parametrize(
    "text",
    [
        "",
        "28",
        "days",
        "28 d",
        "28 hours",
        "-28 days",
        "2.5 days",
        "28,5 days",
        "six months",
        "28 days ago",
        "1000000 days",
        "28 daysx",
    ],
)
def test_a_window_without_number_or_unit_is_refused(text: str) -> None:
    """28 of what?"""
    with pytest.raises(ValueError, match="a window needs a number"):
        parse_window(text)


# --- ages


@pytest.mark.parametrize(
    ("born", "years", "turns"),
    [
        ("2000-02-29", 14, "2014-03-01"),
        ("2000-02-29", 16, "2016-02-29"),
        ("2000-02-28", 14, "2014-02-28"),
        ("2000-03-01", 14, "2014-03-01"),
        ("2012-11-01", 14, "2026-11-01"),
        ("1900-02-28", 4, "1904-02-28"),
        ("1896-02-29", 4, "1900-03-01"),
    ],
)
def test_birthdays_fall_on_known_days(born: str, years: int, turns: str) -> None:
    """Born on 29 February counts from 1 March in a common year."""
    assert day_text(birthday(day(born), years)) == turns
    known = stretch(day(born), day(born))
    assert age_at_least(known, years, day(turns)) is True
    assert age_at_least(known, years, day(turns) - 1) is False


@given(any_day, st.integers(0, 100))
def test_a_birthday_is_the_same_day_of_its_year_or_the_first_of_march(
    born: int, years: int
) -> None:
    """Whole years count from the day of birth."""
    start, turns = date.fromordinal(born), date.fromordinal(birthday(born, years))
    assert turns.year == start.year + years
    leapling = (start.month, start.day) == (2, 29) and not isleap(turns.year)
    assert (turns.month, turns.day) == ((3, 1) if leapling else (start.month, start.day))


@given(stretches, st.integers(0, 130), any_day)
def test_age_is_known_if_it_is_the_same_for_each_day_of_birth(
    born: When, years: int, as_of: int
) -> None:
    """A partial birth date gives an age in three values."""
    youngest, oldest = (birthday(each, years) <= as_of for each in (born.last, born.first))
    expected = youngest if youngest == oldest else None
    assert age_at_least(born, years, as_of) is expected


@given(any_day, st.integers(0, 40_000), st.integers(0, 130))
def test_the_age_that_is_written_is_the_age_that_is_tested(
    born: int, lived: int, years: int
) -> None:
    """Text, range and test agree."""
    as_of, known = born + lived, stretch(born, born)
    low, high = age_range(known, as_of)
    assert low == high >= 0
    assert age_text(known, as_of) == str(low)
    assert age_at_least(known, years, as_of) is (low >= years)


@given(stretches, st.integers(0, 20_000))
def test_the_range_of_ages_holds_the_age_of_each_day_of_birth(born: When, lived: int) -> None:
    """The youngest was born on the last day, the oldest on the first."""
    as_of = born.last + lived
    low, high = age_range(born, as_of)
    for each in (born.first, (born.first + born.last) // 2, born.last):
        age, same = age_range(stretch(each, each), as_of)
        assert low <= age == same <= high


@given(any_day, st.integers(0, 120), st.integers(0, 45_000))
def test_nobody_grows_younger(born: int, years: int, lived: int) -> None:
    """Once old enough, always old enough."""
    known = stretch(born, born)
    if age_at_least(known, years, born + lived):
        assert age_at_least(known, years, born + lived + 1)
