"""The record of jobs: what is asked is kept, each job is run by one worker at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from service.jobs.board import MOST_OPEN, Board
from service.jobs.model import State, TooManyJobs
from service.storage.database import open_database
from service.storage.store import Store
from tests.jobs.making import ASKED, DAY, Clock

OTHER = replace(ASKED, bulk="system")
LATER = "2026-11-30T00:00:00Z"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(place: str, clock: Clock) -> Iterator[Board]:
    """Give the record of a store of either kind, with a clock that stands still."""
    database = open_database(place)
    yield Board(Store(database, clock))
    database.close()


def test_what_is_asked_for_is_kept_as_asked(board: Board) -> None:
    job = board.ask(OTHER, "worklist")
    assert board.find(job.key) == job
    assert (job.state, job.asked, job.requester) == (State.QUEUED, OTHER, "worklist")
    assert board.find("unknown") is None


def test_the_same_request_of_the_same_caller_is_the_same_job(board: Board) -> None:
    job = board.ask(ASKED, "worklist")
    assert board.ask(ASKED, "worklist") == job
    assert board.ask(OTHER, "worklist").key != job.key
    assert board.ask(ASKED, "somebody else").key != job.key
    assert board.ask(ASKED, None).key != job.key
    assert board.ask(ASKED, None) == board.ask(ASKED, None)


def test_a_request_after_the_end_is_a_new_job(board: Board) -> None:
    job = board.ask(ASKED, None)
    board.cancel(job.key)
    assert board.ask(ASKED, None).key != job.key


def test_a_caller_may_have_only_so_many_searches_open(board: Board) -> None:
    for number in range(MOST_OPEN):
        board.ask(replace(ASKED, cohort=f"Group/{number}"), "worklist")
    with pytest.raises(TooManyJobs):
        board.ask(ASKED, "worklist")
    assert board.ask(ASKED, "somebody else")


def test_jobs_are_taken_in_their_order_one_at_a_time(board: Board) -> None:
    first, second = board.ask(ASKED, None), board.ask(OTHER, None)
    taken = board.claim("w1")
    assert taken is not None
    assert (taken.key, taken.state, taken.worker, taken.attempt) == (
        first.key, State.RUNNING, "w1", 1,
    )  # fmt: skip
    assert board.claim("w2") is None
    assert board.finish(taken, complete=False)
    ended = board.find(first.key)
    assert ended is not None
    assert (ended.state, ended.complete) == (State.DONE, False)
    following = board.claim("w2")
    assert following is not None
    assert following.key == second.key


def test_of_many_workers_one_takes_a_job(board: Board) -> None:
    board.ask(ASKED, None)
    ready = threading.Barrier(6)

    def take(number: int) -> bool:
        ready.wait(10)
        return board.claim(f"w{number}") is not None

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(take, range(6))) == 1


def test_of_many_equal_requests_one_job_is_made(board: Board) -> None:
    ready = threading.Barrier(6)

    def ask(number: int) -> str:
        ready.wait(10)
        return board.ask(ASKED, "worklist").key

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1


def test_a_job_put_back_waits_its_time(board: Board, clock: Clock) -> None:
    board.ask(ASKED, None)
    taken = board.claim("w1")
    assert taken is not None
    assert board.release(taken, 60, setback=True)
    assert board.claim("w1") is None
    assert board.oldest_waiting() is None
    clock.move(61)
    assert board.oldest_waiting() is not None
    again = board.claim("w1")
    assert again is not None
    assert (again.attempt, again.setbacks) == (2, 1)


def test_a_worker_that_lost_its_job_changes_nothing(board: Board) -> None:
    job = board.ask(ASKED, None)
    first = board.claim("w1")
    assert first is not None
    board.release(first)
    second = board.claim("w2")
    assert second is not None
    assert board.beat(first, "reading", 1, 2) is State.RUNNING
    assert not board.finish(first, complete=True)
    assert not board.fail(first, "exception", "no")
    assert not board.release(first)
    board.begun(first, 7)
    assert board.find(job.key) == second


def test_a_worker_learns_that_its_job_was_cancelled(board: Board) -> None:
    job = board.ask(ASKED, None)
    taken = board.claim("w1")
    assert taken is not None
    assert board.beat(taken, "reading", 1, 4) is None
    found = board.find(job.key)
    assert found is not None
    assert found.progress() == "reading: 25 %"
    assert board.cancel(job.key)
    assert not board.cancel(job.key)
    assert board.beat(taken, "reading", 2, 4) is State.CANCELLED
    assert not board.finish(taken, complete=True)


def test_a_job_without_a_sign_of_life_is_found(board: Board, clock: Clock) -> None:
    board.ask(ASKED, None)
    taken = board.claim("w1")
    assert taken is not None
    clock.move(50)
    board.beat(taken, "", 0, 0)
    clock.move(50)
    assert board.silent(60) == []
    clock.move(20)
    assert [job.key for job in board.silent(60)] == [taken.key]


def test_results_end_after_their_time(board: Board, clock: Clock) -> None:
    job = board.ask(ASKED, None)
    taken = board.claim("w1")
    assert taken is not None
    board.finish(taken, complete=True)
    waiting = board.ask(ASKED, None)
    clock.move(1000)
    assert board.expire(2000) == 0
    assert board.expire(500) == 1
    assert board.states([job.key, waiting.key, "other"]) == {
        job.key: State.EXPIRED, waiting.key: State.QUEUED,
    }  # fmt: skip


def test_a_time_of_the_schedule_has_one_turn(board: Board) -> None:
    assert board.last_slot("night", "2026-11-01T00:00:00Z") == "2026-11-01T00:00:00Z"
    assert board.last_slot("night", "2026-11-05T00:00:00Z") == "2026-11-01T00:00:00Z"
    ready = threading.Barrier(6)

    def add(number: int) -> bool:
        ready.wait(10)
        return board.slot("night", "2026-11-02T01:30:00Z", ASKED, LATER) is not None

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(add, range(6))) == 1
    assert board.slot("night", "2026-11-01T23:00:00Z", ASKED, LATER) is None
    assert board.counts()[State.QUEUED] == 1


def test_a_job_that_has_not_begun_serves_the_next_time_too(board: Board) -> None:
    board.last_slot("night", "2026-11-01T00:00:00Z")
    first = board.slot("night", "2026-11-02T01:30:00Z", ASKED, LATER)
    assert first is not None
    assert (
        board.slot("night", "2026-11-03T01:30:00Z", replace(ASKED, as_of="2026-11-03"), LATER)
        is None
    )
    taken = board.claim("w1")
    assert taken is not None
    assert (taken.key, taken.asked.as_of) == (first.key, "2026-11-03")
    assert board.slot("night", "2026-11-04T01:30:00Z", ASKED, LATER) is not None


def test_jobs_of_the_schedule_and_of_callers_are_told_apart(board: Board) -> None:
    board.last_slot("night", "2026-11-01T00:00:00Z")
    scheduled = board.slot("night", "2026-11-02T01:30:00Z", ASKED, LATER)
    own = board.ask(ASKED, None)
    assert scheduled is not None
    assert own.key != scheduled.key
    for complete in (False, True):
        taken = board.claim("w1")
        assert taken is not None
        board.finish(taken, complete=complete)
    ended = board.last_ended()
    assert {name: found.complete for name, found in ended.items()} == {"night": False, "": True}


def test_progress_is_short_and_plain(board: Board) -> None:
    board.ask(replace(ASKED, as_of=DAY), None)
    taken = board.claim("w1")
    assert taken is not None
    told = replace(taken, stage="é\n" * 200, done=5, total=4).progress()
    assert len(told) < 100
    assert told.isascii()
    assert told.isprintable()
    assert told.endswith(": 100 %")


def test_a_slot_noted_by_a_clock_set_wrong_stops_no_later_one(board: Board) -> None:
    """Somebody's clock was ten years ahead for a moment."""
    now = "2026-11-02T02:00:00Z"
    board.last_slot("night", "2026-11-01T00:00:00Z")
    assert board.slot("night", "2036-11-02T01:30:00Z", ASKED, "2036-11-02T02:00:00Z") is not None
    assert board.last_slot("night", now) == "2026-11-01T00:00:00Z"
    # The job that waits is the one for this time too.
    assert board.slot("night", "2026-11-02T01:30:00Z", ASKED, now) is None
    assert board.last_slot("night", now) == "2026-11-02T01:30:00Z"
