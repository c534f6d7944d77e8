"""When searches are due: by the clock on the wall, each time once, missed ones once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.board import Board
from service.jobs.schedule import last_due, next_due, plan
from service.jobs.searches import Search
from service.storage.store import Store
from tests.jobs.making import TRIAL

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
NIGHTLY = "30 2 * * *"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def search(name: str = "night", when: str = NIGHTLY, zone: ZoneInfo = BERLIN) -> Search:
    return Search(name, (TRIAL,), when, zone, Path(name))


@pytest.fixture
def board(store: Store) -> Iterator[Board]:
    return Board(store)


@pytest.mark.parametrize(
    ("zone", "now", "due"),
    [
        # A common day: not before its time, at it, and after it.
        (BERLIN, "2026-11-22T01:29:59Z", "2026-11-21T01:30:00Z"),
        (BERLIN, "2026-11-22T01:30:00Z", "2026-11-22T01:30:00Z"),
        (BERLIN, "2026-11-22T23:00:00Z", "2026-11-22T01:30:00Z"),
        # Europe/Berlin, 28 March 2027: 02:30 does not come, so that it is due at 03:00.
        (BERLIN, "2027-03-28T00:59:59Z", "2027-03-27T01:30:00Z"),
        (BERLIN, "2027-03-28T01:00:00Z", "2027-03-28T01:00:00Z"),
        (BERLIN, "2027-03-28T12:00:00Z", "2027-03-28T01:00:00Z"),
        # Europe/Berlin, 25 October 2026: 02:30 comes twice, and its first turn counts.
        (BERLIN, "2026-10-25T00:29:59Z", "2026-10-24T00:30:00Z"),
        (BERLIN, "2026-10-25T00:30:00Z", "2026-10-25T00:30:00Z"),
        (BERLIN, "2026-10-25T01:10:00Z", "2026-10-25T00:30:00Z"),
        (BERLIN, "2026-10-25T01:45:00Z", "2026-10-25T00:30:00Z"),
        # America/New_York, 14 March 2027 and 1 November 2026.
        (NEW_YORK, "2027-03-14T07:00:00Z", "2027-03-14T07:00:00Z"),
        (NEW_YORK, "2027-03-14T06:59:59Z", "2027-03-13T07:30:00Z"),
        (NEW_YORK, "2026-11-01T07:29:59Z", "2026-10-31T06:30:00Z"),
        (NEW_YORK, "2026-11-01T07:30:00Z", "2026-11-01T07:30:00Z"),
    ],
)
def test_a_time_is_due_by_the_clock_on_the_wall(zone: ZoneInfo, now: str, due: str) -> None:
    assert last_due(NIGHTLY, zone, at(now)) == at(due)


@pytest.mark.parametrize(
    ("zone", "day", "expected"),
    [
        (BERLIN, "2026-10-25T00:00:00+02:00", 1),
        (BERLIN, "2027-03-28T00:00:00+01:00", 1),
        (NEW_YORK, "2026-11-01T00:00:00-04:00", 1),
        (NEW_YORK, "2027-03-14T00:00:00-05:00", 1),
    ],
)
@pytest.mark.parametrize("when", [NIGHTLY, "30 1 * * *", "0 3 * * *"])
def test_a_night_has_one_run_also_when_the_clocks_change(
    zone: ZoneInfo, day: str, expected: int, when: str
) -> None:
    start = at(day)
    minutes = (start + timedelta(minutes=number) for number in range(24 * 60))
    dues = {due for now in minutes if (due := last_due(when, zone, now)) is not None}
    assert len({due for due in dues if due >= start}) == expected


def test_every_hour_means_every_hour_that_passes() -> None:
    start = at("2026-10-25T00:00:00+02:00")
    minutes = (start + timedelta(minutes=number) for number in range(25 * 60))
    dues = {last_due("0 * * * *", BERLIN, now) for now in minutes}
    assert len(dues) == 25


@given(
    when=st.sampled_from([NIGHTLY, "0 3 * * 1-5", "15 1,2,3 * * *", "0 */6 * * *", "0 4 1 * *"]),
    zone=st.sampled_from([BERLIN, NEW_YORK, ZoneInfo("Asia/Kolkata"), ZoneInfo("UTC")]),
    minutes=st.integers(0, 2 * 365 * 24 * 60),
)
def test_the_last_time_due_is_the_last_before_the_next(
    when: str, zone: ZoneInfo, minutes: int
) -> None:
    now = at("2026-01-01T00:00:00Z") + timedelta(minutes=minutes)
    due, coming = last_due(when, zone, now), next_due(when, zone, now)
    forward = CronSim(when, (now - timedelta(days=40)).astimezone(zone))
    moments = [next(forward).astimezone(UTC) for _ in range(200)]
    assert due == max(moment for moment in moments if moment <= now)
    assert coming is not None
    assert coming > now


def test_what_was_due_before_a_search_was_known_is_not_made_up(board: Board) -> None:
    assert plan(board, [search()], BERLIN, at("2026-11-22T12:00:00Z")) == []
    assert plan(board, [search()], BERLIN, at("2026-11-23T01:29:00Z")) == []
    (job,) = plan(board, [search()], BERLIN, at("2026-11-23T01:30:00Z"))
    assert (job.search, job.slot) == ("night", "2026-11-23T01:30:00Z")
    assert plan(board, [search()], BERLIN, at("2026-11-23T01:31:00Z")) == []


def test_a_missed_run_is_made_up_for_once(board: Board) -> None:
    plan(board, [search()], BERLIN, at("2026-11-22T12:00:00Z"))
    (job,) = plan(board, [search()], BERLIN, at("2026-11-27T09:00:00Z"))
    assert job.slot == "2026-11-27T01:30:00Z"
    assert job.asked.as_of == "2026-11-27"
    assert board.claim("w1") is not None
    assert plan(board, [search()], BERLIN, at("2026-11-27T09:01:00Z")) == []


def test_a_clock_that_runs_behind_adds_nothing(board: Board) -> None:
    plan(board, [search()], BERLIN, at("2026-11-22T12:00:00Z"))
    assert plan(board, [search()], BERLIN, at("2026-11-24T02:00:00Z"))
    assert board.claim("w1") is not None
    assert plan(board, [search()], BERLIN, at("2026-11-23T02:00:00Z")) == []


def test_the_day_is_the_sites(board: Board) -> None:
    plan(board, [search(when="0 23 * * *", zone=ZoneInfo("UTC"))], BERLIN, at("2026-11-22T12:00Z"))
    one = search(when="0 23 * * *", zone=ZoneInfo("UTC"))
    (job,) = plan(board, [one], BERLIN, at("2026-11-22T23:00:00Z"))
    assert job.asked.as_of == "2026-11-23"


def test_searches_are_due_apart(board: Board) -> None:
    both = [search(), search("noon", "0 12 * * *")]
    plan(board, both, BERLIN, at("2026-11-22T12:00:00Z"))
    (first,) = plan(board, both, BERLIN, at("2026-11-23T02:00:00Z"))
    (second,) = plan(board, both, BERLIN, at("2026-11-23T11:00:00Z"))
    assert (first.search, second.search) == ("night", "noon")
