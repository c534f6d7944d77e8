"""The record of all jobs, in the store's database: it alone says what is to be done.

The queue (``service.jobs.queue``) only wakes workers; what it loses is found here. Every
change names the attempt that it belongs to, so that a worker that was taken for dead can't
write over the one that took its job.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Row,
    Select,
    func,
    insert,
    select,
    text,
    update,
)

from service.jobs.model import OPEN, Asked, Job, State, TooManyJobs
from service.storage.models import JobRow, SlotRow
from service.storage.store import Store

# Searches that one caller may have waiting or running.
MOST_OPEN = 10
# How far a worker's clock may be behind another's.
_CLOCKS = timedelta(days=2)
_COLUMNS = tuple(JobRow.__table__.c[name] for name in (
    "number", "key", "state", "asked", "requester", "search", "slot", "attempt", "setbacks",
    "worker", "created", "due", "started", "touched", "finished", "stage", "done", "total",
    "run_id", "complete", "code", "problem",
))  # fmt: skip
_RETRY_SECONDS = 60


class Ended(NamedTuple):
    """The last job of a trial that ended, of those that were not cancelled."""

    state: State
    complete: bool | None
    finished: str


def _last_slot(search: str, now: str) -> Select[str]:
    """Ask for the last time that had its turn; not one that a clock set wrong had noted.

    Clocks that are behind by less than ``_CLOCKS`` run nothing twice.
    """
    bound = instant(datetime.fromisoformat(now) + _CLOCKS)
    return select(func.max(SlotRow.slot)).where(SlotRow.search == search, SlotRow.slot <= bound)


class Board:
    """The jobs of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # What callers and the schedule ask for

    def ask(self, asked: Asked, requester: str | None) -> Job:
        """Add a job for a caller; the same request of the same caller, not ended, is that job.

        A caller whose answer was lost may so ask again. Raises TooManyJobs, StoreError.
        """
        digest = _digest(asked)
        own = [
            JobRow.state.in_(OPEN),
            JobRow.search.is_(None),
            JobRow.requester.is_(None) if requester is None else JobRow.requester == requester,
        ]
        with self._changing() as connection:
            same = connection.execute(
                select(*_COLUMNS).where(*own, JobRow.digest == digest).order_by(JobRow.number)
            ).first()
            if same is not None:
                return _job(same)
            count = connection.scalar(select(func.count()).select_from(JobRow).where(*own)) or 0
            if count >= MOST_OPEN:
                raise TooManyJobs(
                    f"{count} of your searches are not finished; cancel one, or wait",
                    retry_after=_RETRY_SECONDS,
                )
            return self._insert(connection, asked, requester=requester)

    def slot(self, search: str, slot: str, asked: Asked, now: str) -> Job | None:
        """Add a job for a time of the schedule; None if that time, or a later one, had its turn.

        If the search's last job still waits to begin, it is the one for this time too.
        """
        with self._changing() as connection:
            last = connection.scalar(_last_slot(search, now))
            if last is None or slot <= last:
                return None
            waiting = connection.execute(
                select(*_COLUMNS)
                .where(JobRow.search == search, JobRow.state == State.QUEUED, JobRow.attempt == 0)
                .order_by(JobRow.number)
            ).first()
            if waiting is None:
                job = self._insert(connection, asked, search=search, slot=slot)
            else:
                job = _job(waiting)
                connection.execute(
                    update(JobRow)
                    .where(JobRow.number == job.number)
                    .values(asked=_json(asked), digest=_digest(asked), slot=slot)
                )
            connection.execute(insert(SlotRow), {"search": search, "slot": slot, "job": job.number})
            return job if waiting is None else None

    def last_slot(self, search: str, now: str) -> str:
        """Give the last time that a search had its turn; one never seen before begins now."""
        query = _last_slot(search, now)
        with self.store.database.reading() as connection:
            last = connection.scalar(query)
        if last is not None:
            return last
        with self._changing() as connection:
            last = connection.scalar(query)
            if last is None:
                connection.execute(insert(SlotRow), {"search": search, "slot": now, "job": None})
        return last or now

    def find(self, key: str) -> Job | None:
        """Find a job by its key."""
        with self.store.database.reading() as connection:
            row = connection.execute(select(*_COLUMNS).where(JobRow.key == key)).one_or_none()
        return None if row is None else _job(row)

    def cancel(self, key: str) -> bool:
        """Cancel a job, or give up the result of one that ended; False if it was before."""
        return self._change(
            [JobRow.key == key, JobRow.state.not_in((State.CANCELLED, State.EXPIRED))],
            state=State.CANCELLED,
            finished=self.store.now(),
        )

    # What workers do

    def claim(self, worker: str) -> Job | None:
        """Take the oldest job that is due, unless one is running: a store has one search."""
        now = self.store.now()
        with self._changing() as connection:
            running = select(JobRow.number).where(JobRow.state == State.RUNNING).limit(1)
            if connection.scalar(running) is not None:
                return None
            number = connection.scalar(
                select(JobRow.number)
                .where(JobRow.state == State.QUEUED, JobRow.due <= now)
                .order_by(JobRow.number)
                .limit(1)
            )
            if number is None:
                return None
            row = connection.execute(
                update(JobRow)
                .where(JobRow.number == number)
                .values(
                    state=State.RUNNING,
                    attempt=JobRow.attempt + 1,
                    worker=worker,
                    started=func.coalesce(JobRow.started, now),
                    touched=now,
                    stage="",
                    done=0,
                    total=0,
                )
                .returning(*_COLUMNS)
            ).one()
            return _job(row)

    def beat(self, job: Job, stage: str, done: int, total: int) -> State | None:
        """Give a sign of life and tell the progress; the job's state if it is no longer ours."""
        values = {"touched": self.store.now(), "stage": stage, "done": done, "total": total}
        if self._change(_held(job), **values):
            return None
        found = self.find(job.key)
        return State.CANCELLED if found is None else found.state

    def begun(self, job: Job, run_id: int) -> None:
        """Note the run that a job's search is kept as."""
        self._change(_held(job), run_id=run_id)

    def finish(self, job: Job, *, complete: bool, problem: str | None = None) -> bool:
        """End a job whose search is done; False if it is no longer this worker's."""
        return self._change(
            _held(job),
            state=State.DONE,
            complete=complete,
            problem=problem,
            finished=self.store.now(),
        )

    def fail(self, job: Job, code: str, problem: str) -> bool:
        """End a job whose search could not be done; False if it is no longer this worker's."""
        return self._change(
            _held(job), state=State.FAILED, code=code, problem=problem, finished=self.store.now()
        )

    def release(self, job: Job, seconds: float = 0, *, setback: bool = False) -> bool:
        """Put a job back, to be taken up not before that many seconds."""
        return self._change(
            _held(job),
            state=State.QUEUED,
            worker=None,
            due=self.later(seconds),
            setbacks=JobRow.setbacks + (1 if setback else 0),
        )

    def silent(self, seconds: float) -> list[Job]:
        """List the running jobs whose workers gave no sign of life for that long."""
        with self.store.database.reading() as connection:
            rows = connection.execute(
                select(*_COLUMNS).where(
                    JobRow.state == State.RUNNING, JobRow.touched < self.later(-seconds)
                )
            )
            return [_job(row) for row in rows]

    def expire(self, seconds: float) -> int:
        """End the time of results that are older than that; gives how many."""
        return self._count(
            [
                JobRow.state.in_((State.DONE, State.FAILED)),
                JobRow.search.is_(None),
                JobRow.finished < self.later(-seconds),
            ],
            state=State.EXPIRED,
        )

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """Give the states of jobs by their keys; those that are unknown are left out."""
        with self.store.database.reading() as connection:
            rows = connection.execute(
                select(JobRow.key, JobRow.state).where(JobRow.key.in_(list(keys)))
            )
            return {key: State(state) for key, state in rows}

    # What is told of them

    def counts(self) -> dict[State, int]:
        """Count the jobs by state."""
        query = select(JobRow.state, func.count()).group_by(JobRow.state)
        with self.store.database.reading() as connection:
            found = {State(state): count for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in State}

    def oldest_waiting(self) -> str | None:
        """Give the instant since which a job waits that is due."""
        now = self.store.now()
        query = select(func.min(JobRow.due)).where(JobRow.state == State.QUEUED, JobRow.due <= now)
        with self.store.database.reading() as connection:
            return connection.scalar(query)

    def last_ended(self) -> dict[str, Ended]:
        """Give for each search of the schedule how its last job ended; "" for callers' jobs."""
        query = (
            select(JobRow.search, JobRow.state, JobRow.complete, JobRow.finished)
            .where(JobRow.state.in_((State.DONE, State.FAILED)))
            .where(
                JobRow.number.in_(
                    select(func.max(JobRow.number))
                    .where(JobRow.state.in_((State.DONE, State.FAILED)))
                    .group_by(JobRow.search)
                )
            )
        )
        with self.store.database.reading() as connection:
            return {
                row.search or "": Ended(State(row.state), row.complete, row.finished)
                for row in connection.execute(query)
            }

    def later(self, seconds: float) -> str:
        """Give the instant that many seconds from now, as it is kept."""
        now = datetime.fromisoformat(self.store.now())
        return instant(now + timedelta(seconds=seconds))

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """Begin a transaction that no other may change jobs beside."""
        with self.store.database.writing() as connection:
            if not self.store.database.is_sqlite:
                # SQLite's transactions that write come one after the other anyway.
                connection.execute(text("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"))
            yield connection

    def _insert(
        self,
        connection: Connection,
        asked: Asked,
        *,
        requester: str | None = None,
        search: str | None = None,
        slot: str | None = None,
    ) -> Job:
        now = self.store.now()
        row = connection.execute(
            insert(JobRow).returning(*_COLUMNS),
            {
                "key": secrets.token_hex(16),
                "state": State.QUEUED,
                "asked": _json(asked),
                "digest": _digest(asked),
                "requester": requester,
                "search": search,
                "slot": slot,
                "attempt": 0,
                "setbacks": 0,
                "created": now,
                "due": now,
                "stage": "",
                "done": 0,
                "total": 0,
            },
        ).one()
        return _job(row)

    def _change(self, where: Iterable[ColumnElement[bool]], **values: Any) -> bool:
        return self._count(where, **values) > 0

    def _count(self, where: Iterable[ColumnElement[bool]], **values: Any) -> int:
        with self.store.database.writing() as connection:
            done = connection.execute(update(JobRow).where(*where).values(**values))
            assert isinstance(done, CursorResult)
            return done.rowcount


def instant(moment: datetime) -> str:
    """Write an instant (UTC) as the store does, so that texts compare as instants do."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _held(job: Job) -> list[ColumnElement[bool]]:
    return [
        JobRow.number == job.number,
        JobRow.attempt == job.attempt,
        JobRow.state == State.RUNNING,
    ]


def _json(asked: Asked) -> str:
    return msgspec.json.encode(asked).decode()


def _digest(asked: Asked) -> str:
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def _job(row: Row[Any]) -> Job:
    values = dict(zip((column.name for column in _COLUMNS), row, strict=True))
    values["state"] = State(values["state"])
    values["asked"] = msgspec.json.decode(values["asked"], type=Asked)
    return Job(**values)
