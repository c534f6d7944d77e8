"""A worker runs jobs to their end, lets go when told to, and goes on where one was cut short."""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import select, update

from service.config import Settings
from service.errors import RequestError, SourceError, StoreError
from service.jobs import runner
from service.jobs.board import Board, instant
from service.jobs.model import Job, State, folder_of
from service.jobs.searches import Search
from service.nightly.after import After
from service.nightly.model import Exit
from service.nightly.screen import screen
from service.storage.models import JobRow
from service.storage.store import Store
from tests.jobs.making import ASKED, QUICK, TRIAL, now, settings_of, worker_of
from tests.nightly.making import hospital, screening, write_types

OUTSIDE = "somebody else"


@pytest.fixture(autouse=True)
def loaded() -> Iterator[None]:
    """Load trials and terms once."""
    with patch("service.nightly.screen.build_screening", lambda _: screening()):
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Give the settings of a worker on a small export; test_workers.py has PostgreSQL too."""
    source = write_types(tmp_path / "in", hospital(3, 5))
    return settings_of(source, str(tmp_path / "store.db"), tmp_path / "data")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    assert settings.store is not None
    with Store.open(settings.store) as opened:
        yield opened


@pytest.fixture
def board(store: Store) -> Board:
    return Board(store)


def ended(board: Board, job: Job) -> Job:
    found = board.find(job.key)
    assert found is not None
    return found


def test_a_job_is_run_and_its_run_is_in_the_store(
    settings: Settings, store: Store, board: Board
) -> None:
    job = board.ask(ASKED, OUTSIDE)
    assert worker_of(settings, store).run(once=True) is Exit.COMPLETE
    done = ended(board, job)
    assert (done.state, done.complete, done.problem) == (State.DONE, True, None)
    assert done.run_id is not None
    assert store.run(done.run_id).complete
    assert len(list(store.verdicts(done.run_id))) == 3
    folder = folder_of(settings.data, job)
    assert (folder / "run.json").exists()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_incomplete_search_is_done_but_seen(
    settings: Settings, store: Store, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    with (Path(settings.source or "") / "Observation.ndjson").open("ab") as file:
        file.write(b"cut off\n")
    job = board.ask(ASKED, None)
    with caplog.at_level(logging.INFO, "eligibility"):
        assert worker_of(settings, store).run(once=True) is Exit.INCOMPLETE
    assert (ended(board, job).state, ended(board, job).complete) == (State.DONE, False)
    assert "search not complete" in caplog.text


def test_a_request_that_makes_no_sense_fails_and_the_next_is_run(
    settings: Settings, store: Store, board: Board
) -> None:
    wrong = board.ask(replace(ASKED, bulk="system"), None)
    right = board.ask(ASKED, None)
    assert worker_of(settings, store).run(once=True) is Exit.FAILED
    failed = ended(board, wrong)
    assert (failed.state, failed.code, failed.setbacks) == (State.FAILED, "invalid", 0)
    assert "--bulk" in (failed.problem or "")
    assert ended(board, right).state is State.DONE


def test_a_fault_that_may_pass_is_tried_again_then_fails(
    settings: Settings, store: Store, board: Board
) -> None:
    def away(*_: object) -> None:
        raise SourceError("the server is away")

    job = board.ask(ASKED, None)
    with patch.object(runner, "screen", away):
        assert worker_of(settings, store).run(once=True) is Exit.FAILED
    failed = ended(board, job)
    assert (failed.state, failed.attempt, failed.setbacks) == (State.FAILED, 2, 1)
    # To who polls, `transient` would mean that it may yet be done.
    assert failed.code == "exception"


def test_a_fault_of_ours_ends_one_job_only(
    settings: Settings, store: Store, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    real, jobs = runner.screen, [board.ask(ASKED, "a"), board.ask(ASKED, "b")]
    calls: list[object] = []

    def broken(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise ValueError("Patient Jane Roe")
        return real(*given)

    with patch.object(runner, "screen", broken):
        assert worker_of(settings, store).run(once=True) is Exit.FAILED
    first, second = (ended(board, job) for job in jobs)
    assert (first.state, first.problem) == (State.FAILED, "unexpected error (ValueError)")
    assert second.state is State.DONE


def interrupted(settings: Settings, store: Store, act: Any, job: Job) -> None:
    """Run a job, and do something in the middle of its search."""
    worker = worker_of(settings, store)
    real, seen = runner.screen, threading.Event()

    def slow(given: Settings, request: Any, progress: Any) -> Any:
        def told(stage: str, done: int, total: int) -> None:
            if stage.startswith("evaluating") and not seen.is_set():
                seen.set()
                act(worker)
            progress(stage, done, total)

        return real(given, request, told)

    with patch.object(runner, "screen", slow):
        worker.run(once=True)
    assert seen.is_set(), job.key


def test_told_to_stop_it_leaves_the_search_to_be_taken_up(
    settings: Settings, store: Store, board: Board
) -> None:
    job = board.ask(ASKED, None)
    interrupted(settings, store, lambda worker: worker.stop(), job)
    left = ended(board, job)
    assert (left.state, left.setbacks, left.attempt) == (State.QUEUED, 0, 1)
    assert worker_of(settings, store).run(once=True) is Exit.COMPLETE
    done = ended(board, job)
    assert (done.state, done.run_id) == (State.DONE, left.run_id)
    assert done.run_id is not None
    statement = store.run(done.run_id).statement
    assert statement is not None
    assert statement.resumed == 1
    assert len(store.runs()) == 1


def test_a_cancelled_search_ends_and_leaves_nothing(
    settings: Settings, store: Store, board: Board
) -> None:
    job = board.ask(ASKED, None)

    def cancel(worker: object) -> None:
        board.cancel(job.key)
        # The thread beside the search learns of it by its next sign of life.
        threading.Event().wait(20 * QUICK.beat)

    interrupted(settings, store, cancel, job)
    assert ended(board, job).state is State.CANCELLED
    assert [run.status for run in store.runs()] == ["running"]
    assert not folder_of(settings.data, job).exists()
    assert not store.busy()


def test_while_another_run_holds_the_store_a_job_waits(
    settings: Settings, store: Store, board: Board
) -> None:
    job = board.ask(ASKED, None)
    assert settings.store is not None
    with Store.open(settings.store) as other, other.locked():
        assert worker_of(settings, store).run(once=True) is Exit.COMPLETE
    waiting = ended(board, job)
    assert (waiting.state, waiting.setbacks) == (State.QUEUED, 0)
    assert waiting.due > waiting.created
    with store.database.writing() as connection:
        connection.execute(update(JobRow).values(due=waiting.created))
    assert worker_of(settings, store).run(once=True) is Exit.COMPLETE
    assert ended(board, job).state is State.DONE


def test_a_silent_worker_that_holds_the_store_is_not_taken_for_dead(
    settings: Settings, store: Store, board: Board
) -> None:
    job = board.ask(ASKED, None)
    assert board.claim("a worker that hangs") is not None
    impatient = replace(QUICK, patience=-5.0)
    assert settings.store is not None
    with Store.open(settings.store) as other, other.locked():
        worker_of(settings, store, timing=impatient).run(once=True)
        assert ended(board, job).attempt == 1
    worker_of(settings, store, timing=impatient).run(once=True)
    assert (ended(board, job).state, ended(board, job).attempt) == (State.DONE, 2)


def test_a_job_that_kills_its_workers_fails_in_the_end(
    settings: Settings, store: Store, board: Board
) -> None:
    job = board.ask(ASKED, None)
    impatient = replace(QUICK, patience=-5.0, retries=0)
    assert board.claim("a worker that died") is not None
    worker_of(settings, store, timing=impatient).run(once=True)
    failed = ended(board, job)
    assert (failed.state, failed.problem) == (
        State.FAILED, "its workers ended in the middle of it",
    )  # fmt: skip


def test_a_job_that_was_done_but_not_noted_is_not_done_again(
    settings: Settings, store: Store, board: Board
) -> None:
    job = board.ask(ASKED, None)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with patch.object(Board, "finish", dies), pytest.raises(KeyboardInterrupt):
        worker_of(settings, store).run(once=True)
    impatient = replace(QUICK, patience=-5.0)
    assert worker_of(settings, store, timing=impatient).run(once=True) is Exit.COMPLETE
    done = ended(board, job)
    assert (done.state, done.attempt, done.complete) == (State.DONE, 2, True)
    assert len(store.runs()) == 1


def test_old_results_and_folders_of_cancelled_jobs_go(
    settings: Settings, store: Store, board: Board
) -> None:
    jobs = [board.ask(ASKED, name) for name in "ab"]
    strange = settings.data / "jobs" / "another-stores"
    strange.mkdir(parents=True)
    worker_of(settings, store).run(once=True)
    assert all(folder_of(settings.data, job).exists() for job in jobs)
    board.cancel(jobs[0].key)
    worker_of(settings, store).run(once=True)
    assert [folder_of(settings.data, job).exists() for job in jobs] == [False, True]
    worker_of(replace(settings, job_days=-1), store).run(once=True)
    assert ended(board, jobs[1]).state is State.EXPIRED
    assert [path.name for path in strange.parent.iterdir()] == [strange.name]


def test_a_store_that_is_away_for_a_moment_does_not_end_the_worker(
    settings: Settings, store: Store, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    job = board.ask(ASKED, None)
    worker = worker_of(settings, store)
    real, calls = Board.claim, []

    def claim(self: Board, name: str) -> Job | None:
        calls.append(name)
        if len(calls) == 1:
            raise StoreError("the store failed and was lost")
        return real(self, name)

    def stop(*given: Any) -> Any:
        worker.stop()
        return screen(*given)

    with patch.object(Board, "claim", claim), patch.object(runner, "screen", stop):
        assert worker.run() is Exit.COMPLETE
    assert "store" in caplog.messages
    assert ended(board, job).attempt == 1


def scheduled(folder: Path) -> Search:
    return Search(
        "night", (TRIAL,), "* * * * *", screening().site.zone, folder, after={"digest": {"to": 1}}
    )


def test_a_search_of_the_schedule_is_run_and_handed_on(
    settings: Settings, store: Store, board: Board, tmp_path: Path
) -> None:
    told: list[Any] = []

    def after(*given: Any) -> After:
        told.append(given)
        return After()

    board.last_slot("night", "2026-01-01T00:00:00Z")
    worker = worker_of(settings, store, searches=[scheduled(tmp_path / "night")])
    with patch.object(runner, "after_run", after):
        assert worker.run(schedule=True, once=True) is Exit.COMPLETE
    assert (tmp_path / "night" / "run.json").exists()
    ((_, config, _, run_id, statement),) = told
    assert config == {"name": "night", "trials": [TRIAL], "digest": {"to": 1}}
    assert store.run(run_id).statement == statement
    (name,) = board.last_ended()
    assert name == "night"


def test_what_goes_wrong_after_a_search_is_told_and_the_search_is_done(
    settings: Settings, store: Store, board: Board, tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise RequestError("the mail server refused")

    board.last_slot("night", "2026-01-01T00:00:00Z")
    worker = worker_of(settings, store, searches=[scheduled(tmp_path / "night")])
    with patch.object(runner, "after_run", fails):
        worker.run(schedule=True, once=True)
    (job,) = [board.find(key) for key in board.states(_keys(store))]
    assert job is not None
    assert (job.state, job.complete) == (State.DONE, True)
    assert job.problem == "the results were not handed on: the mail server refused"


def test_what_could_not_be_handed_on_is_told_in_the_job_and_in_the_log(
    settings: Settings,
    store: Store,
    board: Board,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = ("not written back: the server is gone", "no digest by mail: refused")
    board.last_slot("night", "2026-01-01T00:00:00Z")
    worker = worker_of(settings, store, searches=[scheduled(tmp_path / "night")])
    with patch.object(runner, "after_run", lambda *_: After(problems=problems)):
        assert worker.run(schedule=True, once=True) is Exit.COMPLETE
    (job,) = [board.find(key) for key in board.states(_keys(store))]
    assert job is not None
    assert (job.state, job.complete) == (State.DONE, True)
    assert job.problem is not None
    assert problems[0] in job.problem
    assert caplog.messages.count("results not handed on") == 2
    # The search itself was complete.
    assert "search not complete" not in caplog.messages


def _keys(store: Store) -> list[str]:
    with store.database.reading() as connection:
        return list(connection.scalars(select(JobRow.key)))


def test_a_failed_search_does_not_keep_the_next_from_running(
    settings: Settings, store: Store, board: Board, tmp_path: Path
) -> None:
    board.last_slot("night", "2026-01-01T00:00:00Z")
    first = board.slot(
        "night", "2026-01-02T00:00:00Z", replace(ASKED, bulk="system"), instant(now())
    )
    assert first is not None
    worker_of(settings, store).run(once=True)
    assert ended(board, first).state is State.FAILED
    second = board.slot(
        "night", instant(now()), replace(ASKED, output=str(tmp_path / "night")), instant(now())
    )
    assert second is not None
    search = scheduled(tmp_path / "night")
    assert worker_of(settings, store, searches=[search]).run(once=True) is Exit.COMPLETE
    assert ended(board, second).state is State.DONE
