"""The worker: takes jobs one after the other, runs their searches, and lets go politely.

While a search runs, a thread beside it gives a sign of life and learns whether the job was
cancelled. A search ends early only where it tells its progress: whatever it did is kept in
its folder, and whoever takes the job up next goes on from there.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from types import TracebackType
from typing import Self

from service.config import Settings
from service.errors import EligibilityError, SourceError, StoreBusy, StoreError
from service.jobs.board import Board
from service.jobs.model import Job, State, folder_of, jobs_folder
from service.jobs.queue import Queue
from service.jobs.schedule import plan
from service.jobs.searches import Search, search_named
from service.nightly.after import after_run
from service.nightly.model import Exit, SearchFailed, Statement
from service.nightly.screen import Request, screen
from service.storage.store import Store

LOGGER = logging.getLogger("eligibility")
_DAY = 86_400.0
# Faults that may be gone later: the source, the store, the disk.
_PASSING = (SourceError, StoreError, SearchFailed)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds between what a worker does, and how often it tries.

    ``beat``: between signs of life; ``patience``: without one, until a worker is taken for
    dead; ``pause``: between looks at the schedule; ``busy``: until a job is tried again that
    found the store in use; ``retry``: after its first setback (twice that after the second,
    and so on), of which it may have ``retries``; ``tidy``: between looks for old results.
    """

    beat: float = 3.0
    patience: float = 60.0
    pause: float = 5.0
    busy: float = 15.0
    retry: float = 60.0
    retries: int = 3
    tidy: float = 600.0


class Stopped(Exception):
    """The worker was told to stop, and the search is to be taken up later.

    No error of the service's tree, nor is ``Gone``: nothing on the way may take it for one.
    """


class Gone(Exception):
    """The job is no longer this worker's: it was cancelled, or another has taken it over."""


class Worker:
    """Runs the jobs of one store until told to stop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        searches: Sequence[Search] = (),
        zone: tzinfo = UTC,
        processes: int = 1,
        timing: Timing | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.board = Board(store)
        self.queue = Queue(store.database)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._store = store
        self._searches = searches
        self._zone = zone
        self._processes = processes
        self._timing = timing or Timing()
        self._clock = clock
        self._stop = threading.Event()
        self._tidied = float("-inf")

    def stop(self) -> None:
        """Stop at the next occasion; the search that runs is left to be taken up."""
        self._stop.set()

    def run(self, *, schedule: bool = False, once: bool = False) -> Exit:
        """Run jobs until told to stop; ``once``: until none is left that can be run now.

        ``schedule``: searches are added at their times. Gives the worst that a job ended
        with, if ``once``, else COMPLETE.
        """
        worst = Exit.COMPLETE
        while not self._stop.is_set():
            job = None
            try:
                if schedule:
                    self._plan()
                self._tidy()
                job = self._take()
            except StoreError as error:
                # A database that is away comes back; whatever is to be done waits in it.
                LOGGER.warning("store", extra={"fields": {"problem": error.message}})
                if once:
                    raise
                self._stop.wait(self._timing.pause)
                continue
            if job is not None:
                ended = self._work(job)
                worst = max(worst, ended, key=_RANK.index)
            elif once:
                # What woke nobody is not needed any more: the record has no job left.
                while self.queue.wait(0, self._stop) is not None:
                    pass
                break
            else:
                self.queue.wait(self._timing.pause, self._stop)
        self.queue.close()
        return worst if once else Exit.COMPLETE

    def _plan(self) -> None:
        for job in plan(self.board, self._searches, self._zone, self._clock()):
            _log("job added", job)

    def _take(self) -> Job | None:
        """Take a job, after those whose workers died were put back."""
        silent = self.board.silent(self._timing.patience)
        # A search holds the store: while it does, its worker lives, however silent it is.
        if silent and not self._store.busy():
            for job in silent:
                _log("job without a worker", job, logging.WARNING)
                self._set_back(job, "exception", "its workers ended in the middle of it")
        return None if self.board.oldest_waiting() is None else self.board.claim(self.name)

    def _set_back(self, job: Job, code: str, problem: str, wait: float = 0) -> None:
        """Put a job back that was cut short, unless that happened too often."""
        if job.setbacks >= self._timing.retries:
            self.board.fail(job, code, problem)
            _log("job failed", job, logging.ERROR, problem=problem)
            return
        self.board.release(job, wait, setback=True)
        _log("job put back", job, logging.WARNING, problem=problem, seconds=wait)

    def _work(self, job: Job) -> Exit:
        """Run one job; whatever happens in it stays with it."""
        _log("job begins", job)
        started = time.monotonic()
        try:
            ended = self._guarded(job)
        except StoreError as error:
            # What became of it can't be written: a worker will find it without sign of life.
            _log("job left", job, logging.ERROR, problem=error.message)
            self._stop.wait(self._timing.pause)
            return Exit.FAILED
        _log("job ends", job, exit=int(ended), seconds=round(time.monotonic() - started, 1))
        return ended

    def _guarded(self, job: Job) -> Exit:
        try:
            with _Watch(self.board, job, self._timing.beat, self._stop) as watch:
                complete, problem = self._searched(job, watch)
        except Stopped:
            self.board.release(job)
            _log("job put back", job)
            return Exit.COMPLETE
        except Gone as gone:
            _log("job gone", job, problem=str(gone))
            self._forget(job)
            return Exit.COMPLETE
        except StoreBusy as error:
            self.board.release(job, self._timing.busy)
            _log("job put back", job, problem=error.message)
            return Exit.COMPLETE
        except _PASSING as error:
            wait = self._timing.retry * 2**job.setbacks
            self._set_back(job, _settled(error.code), error.message, wait)
            return Exit.FAILED
        except EligibilityError as error:
            self.board.fail(job, _settled(error.code), error.message)
            _log("job failed", job, logging.ERROR, problem=error.message)
            return Exit.FAILED
        # The outermost place at which a fault of ours concerns one job alone: the others, and
        # the schedule, must go on.
        except Exception as error:
            LOGGER.error("job failed", exc_info=error, extra={"fields": _fields(job)})
            self.board.fail(job, "exception", f"unexpected error ({type(error).__name__})")
            return Exit.FAILED
        if not self.board.finish(job, complete=complete, problem=problem):
            self._forget(job)
        if not complete:
            _log("search not complete", job, logging.WARNING)
        return Exit.COMPLETE if complete else Exit.INCOMPLETE

    def _searched(self, job: Job, watch: _Watch) -> tuple[bool, str | None]:
        """Search; gives whether it was complete, and what went wrong after it."""
        folder = folder_of(self._settings.data, job)
        # Its owner's alone: there will be patients' data in it.
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SearchFailed(f"no folder for the search ({error.strerror})") from error
        run_id, statement = self._done_before(job, folder), None
        if run_id is None:
            found: list[int] = [] if job.run_id is None else [job.run_id]

            def begun(number: int) -> None:
                found.append(number)
                self.board.begun(job, number)

            request = Request(
                trials=job.asked.trials,
                as_of=date.fromisoformat(job.asked.as_of),
                output=folder,
                bulk=job.asked.bulk,
                cohort=job.asked.cohort,
                store=self._settings.store,
                # Taken up again, it goes on; only at first may it begin anew.
                fresh=job.asked.fresh and job.run_id is None,
                workers=self._processes,
                begun=begun,
            )
            statement = screen(self._settings, request, watch.progress)
            run_id = found[-1]
        else:
            statement = self._store.run(run_id).statement
        assert statement is not None
        return statement.complete, self._after(job, run_id, statement)

    def _done_before(self, job: Job, folder: Path) -> int | None:
        """Give the job's run if an earlier worker did all but say so."""
        if job.run_id is None or any((folder / ".work").glob("*/attempts.json")):
            return None
        run = self._store.run(job.run_id)
        return run.id if run.status == "finished" and run.purged is None else None

    def _after(self, job: Job, run_id: int, statement: Statement) -> str | None:
        """Hand the results on as the schedule says; gives what went wrong."""
        if job.search is None:
            return None
        try:
            config = search_named(self._searches, job.search).config()
            done = after_run(self._settings, config, self._store, run_id, statement)
        except EligibilityError as error:
            _log("results not handed on", job, logging.ERROR, problem=error.message)
            return f"the results were not handed on: {error.message}"
        for problem in done.problems:
            _log("results not handed on", job, logging.ERROR, problem=problem)
        if not done.problems:
            return None
        more = len(done.problems) - 1
        also = f" (and {more} more problems, which are in the log)" if more else ""
        return f"the results were not handed on: {done.problems[0]}{also}"

    def _tidy(self) -> None:
        """Let old results go, and remove the folders of jobs that nobody asks for again."""
        if time.monotonic() - self._tidied < self._timing.tidy:
            return
        self._tidied = time.monotonic()
        self.board.expire(self._settings.job_days * _DAY)
        root = jobs_folder(self._settings.data)
        with suppress(OSError):
            folders = {folder.name: folder for folder in root.iterdir()}
            states = self.board.states(folders)
            for key, folder in folders.items():
                # One that is not known may be another store's.
                if states.get(key) in (State.CANCELLED, State.EXPIRED):
                    shutil.rmtree(folder, ignore_errors=True)

    def _forget(self, job: Job) -> None:
        """Remove what a job that was cancelled left in its own folder."""
        found = self.board.find(job.key)
        if job.asked.output is None and found is not None and found.state is State.CANCELLED:
            shutil.rmtree(folder_of(self._settings.data, job), ignore_errors=True)


_RANK = (Exit.COMPLETE, Exit.INCOMPLETE, Exit.MISUSED, Exit.FAILED)


class _Watch:
    """Gives signs of life for a job while its search runs, and ends it when it must end."""

    def __init__(self, board: Board, job: Job, beat: float, stop: threading.Event) -> None:
        self._board = board
        self._job = job
        self._beat = beat
        self._stop = stop
        self._said = ("", 0, 0)
        self._gone: State | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress; raises Stopped or Gone if the search must end."""
        self._said = (stage, done, total)
        if self._gone is not None:
            said = "was cancelled" if self._gone is State.CANCELLED else "has another worker"
            raise Gone(f"the job {said}")
        if self._stop.is_set():
            raise Stopped

    def _live(self) -> None:
        while not self._over.wait(self._beat):
            # A store that is busy or away for a moment: the next sign of life may succeed.
            with suppress(StoreError):
                self._gone = self._board.beat(self._job, *self._said)


def _settled(code: str) -> str:
    """Give the code of a failure that is final: to who polls, ``transient`` would mean not."""
    return "exception" if code in ("transient", "throttled", "lock-error") else code


def _fields(job: Job) -> dict[str, object]:
    return {
        "job": job.key,
        "trials": list(job.asked.trials),
        "search": job.search,
        "attempt": job.attempt,
    }


def _log(message: str, job: Job, level: int = logging.INFO, **more: object) -> None:
    LOGGER.log(level, message, extra={"fields": _fields(job) | more})
