"""Wakes workers when there is something to do: huey's queues, without its tasks.

A store in SQLite has its queue in a file beside it (for the workers of one machine), one in
PostgreSQL in its own database, for workers on any number of machines. A message is a job's
key and nothing else: huey hands each to one worker, once, and forgets it, so that the record
of jobs, not the queue, says what is to be done.

Messages are put and taken as they are, not as huey's tasks: those are pickled, and whoever
could write to the queue could then make a worker run anything.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Protocol

from huey.storage import PostgresStorage, SqliteStorage

from service.storage.database import Database

_NAME = "jobs"
_PREFIX = "eligibility_queue"
_LOOK_SECONDS = 0.25
_LISTEN_SECONDS = 1.0
_TRIES = 3


class _Storage(Protocol):
    """What of huey's storages is used."""

    def enqueue(self, data: bytes) -> None: ...

    def dequeue(self) -> bytes | None: ...

    def close(self) -> object: ...


class Queue:
    """The queue beside a store; made at its first use. Closed by the thread that waits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._storage: _Storage | None = None

    def wake(self, key: str) -> bool:
        """Let a worker know of a job; False if that failed, so that it will be found later."""
        try:
            self._opened().enqueue(key.encode())
        except _failures():
            self.close()
            return False
        return True

    def wait(self, seconds: float, stop: threading.Event) -> str | None:
        """Wait for a message; None if there is none for that long, or if it can't be read."""
        until = time.monotonic() + seconds
        while not stop.is_set():
            try:
                message = self._opened().dequeue()
            except _failures():
                self.close()
                message = None
            if message is not None:
                return bytes(message).decode("ascii", "replace")
            left = until - time.monotonic()
            if left <= 0:
                return None
            stop.wait(min(_LOOK_SECONDS, left))
        return None

    def close(self) -> None:
        """Close the connection to the queue."""
        storage, self._storage = self._storage, None
        if storage is not None:
            storage.close()

    def _opened(self) -> _Storage:
        with self._lock:
            tries = _TRIES
            while self._storage is None:
                tries -= 1
                try:
                    self._storage = self._open()
                except _failures():
                    # PostgreSQL lets one of two that make the same tables at once fail.
                    if tries == 0:
                        raise
                    time.sleep(_LOOK_SECONDS)
            return self._storage

    def _open(self) -> _Storage:
        url = self._database.url
        if self._database.is_sqlite:
            assert url.database is not None
            path = Path(f"{url.database}-queue")
            # Only its owner may write to it, as to the store.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            storage: _Storage = SqliteStorage(_NAME, filename=str(path), timeout=30)
            return storage
        place = url.set(drivername="postgresql").render_as_string(hide_password=False)
        shared: _Storage = PostgresStorage(
            _NAME, dsn=place, table_prefix=_PREFIX, read_timeout=_LISTEN_SECONDS
        )
        return shared


def _failures() -> tuple[type[Exception], ...]:
    try:
        from psycopg import Error  # noqa: PLC0415 - of an extra
    except ImportError:
        return (sqlite3.Error, OSError)
    return (sqlite3.Error, OSError, Error)
