"""Opens the store's database: SQLite (in WAL mode) or PostgreSQL, migrated, one run at a time.

The lock on a store is one that the system takes back from a process that dies, however it
dies: with SQLite a lock on a file beside the database, with PostgreSQL one of the session.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from service.errors import ConfigurationError, EligibilityError, StoreBusy, StoreError

_LOCK_SECONDS = 1.0
_OPEN_SECONDS = 30.0
_BUSY = "another run is using this store; it goes on, this one leaves"
_DRIVER = "a PostgreSQL store needs: pip install 'trial-eligibility[postgresql]'"


class Database:
    """An engine for a migrated database, and the lock that lets one run write to it."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.engine = _engine(url)

    @property
    def is_sqlite(self) -> bool:
        """Tell whether this is a file of SQLite's."""
        return self.url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection in a transaction that only reads, and sees one state."""
        with translated(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection in a transaction that writes: all of it is kept, or nothing."""
        with translated(), self.engine.connect() as connection:
            connection.execution_options(writing=True)
            with connection.begin():
                yield connection

    @contextmanager
    def locked(self, patience: float = _LOCK_SECONDS) -> Iterator[None]:
        """Hold the store's lock; raises StoreBusy if another run does for longer than that."""
        with translated():
            lock = self._take_file_lock if self.is_sqlite else self._take_session_lock
            until = time.monotonic() + patience
            while (held := lock()) is None:
                if time.monotonic() >= until:
                    raise StoreBusy(_BUSY)
                time.sleep(0.05)
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):
                held.close()

    def busy(self) -> bool:
        """Tell whether a run holds the store now."""
        try:
            with self.locked(0):
                return False
        except StoreBusy:
            return True

    def _take_file_lock(self) -> sqlite3.Connection | None:
        """Take an exclusive lock on the file beside the database.

        SQLite's locks belong to the process: a child that outlives it does not hold them.
        """
        path = f"{_path(self.url).resolve()}-lock"
        _create(Path(path))
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return None
            raise StoreError(f"the store can't be locked ({error.sqlite_errorname})") from error
        return connection

    def _take_session_lock(self) -> Connection | None:
        """Take an advisory lock for as long as a connection of its own lasts."""
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # A server that lost its client should notice within a minute, and not lose us.
        for name, value in (
            ("tcp_keepalives_idle", "30"),
            ("tcp_keepalives_interval", "10"),
            ("tcp_keepalives_count", "3"),
            ("idle_session_timeout", "0"),
        ):
            connection.execute(
                text("SELECT set_config(name, :value, false) FROM pg_settings WHERE name = :name"),
                {"name": name, "value": value},
            )
        schema = connection.scalar(text("SELECT current_schema()"))
        digest = hashlib.sha256(f"trial-eligibility {schema}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        if connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
            # Not one that goes back to the pool: the lock ends with it.
            connection.detach()
            return connection
        connection.close()
        return None

    def migrate(self) -> None:
        """Bring the tables to this version's form; raises StoreError if they are newer."""
        until = time.monotonic() + _OPEN_SECONDS
        while not self._is_current():
            try:
                with self.locked():
                    if not self._is_current():
                        self._upgrade()
            except StoreBusy:
                # Someone else may be making the very same store.
                if time.monotonic() >= until:
                    raise

    def _is_current(self) -> bool:
        script = ScriptDirectory.from_config(_alembic())
        with self.reading() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found is None or found == script.get_current_head():
            return found is not None
        try:
            script.get_revision(found)
        except CommandError as error:
            raise StoreError(
                f"the store was made by a newer version of this program (form {found})"
            ) from error
        return False

    def _upgrade(self) -> None:
        with self.writing() as connection:
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def exists(self) -> bool:
        """Tell whether there are tables of a store."""
        if self.is_sqlite and not _path(self.url).exists():
            return False
        with self.reading() as connection:
            return inspect(connection).has_table("runs")

    def tidy(self) -> None:
        """Give the room of removed rows back, so that nothing of them stays on the disk."""
        if not self.is_sqlite:
            return
        with translated(), self.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.execute("VACUUM")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def open_database(place: str, *, create: bool = True) -> Database:
    """Open a store by its URL or, for SQLite, its file.

    Raises ConfigurationError for a place that can't be one (or is none, if it must not be
    made), StoreError if it can't be used, StoreBusy if it must be migrated under a run.
    """
    database = Database(_url(place))
    try:
        if create and database.is_sqlite:
            _create(_path(database.url))
        elif not create and not database.exists():
            raise ConfigurationError(f"there is no store at {shown(place)}")
        database.migrate()
    except EligibilityError:
        database.close()
        raise
    return database


def shown(place: str) -> str:
    """Write where a store is, as it was named, without a password."""
    if "://" not in place:
        return place
    return _url(place).render_as_string(hide_password=True)


def _url(place: str) -> URL:
    if "://" not in place:
        return URL.create("sqlite+pysqlite", database=place)
    if place.startswith("postgres://"):
        place = place.replace("postgres://", "postgresql://", 1)
    try:
        url = make_url(place)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError("the store's URL can't be read") from error
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigurationError("a store is a file, or a sqlite:// or postgresql:// URL")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError("a store must outlast the program: name a file")
    return url


def _path(url: URL) -> Path:
    assert url.database is not None
    return Path(url.database)


def _create(path: Path) -> None:
    """Make a file that only its owner can read, as it will hold patients' data."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"the store can't be opened ({error.strerror})") from error


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
            event.listen(engine, "do_connect", _never_make)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            # A connection that was lost since its last use is replaced.
            engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
            event.listen(engine, "connect", _remember)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigurationError(_DRIVER) from error
    return engine


def _never_make(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Open only a file that is there: one that is away for a while must not be found empty."""
    if not options.get("uri"):
        arguments[0] = f"file:{quote(arguments[0])}?mode=rw"
        options["uri"] = True


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA journal_mode = WAL")
    # What was reported as kept must outlast a power cut; what was removed must be gone.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


# Connections to servers that this process made.
_CONNECTIONS: weakref.WeakSet[Any] = weakref.WeakSet()


def _remember(connection: Any, _: object) -> None:
    _CONNECTIONS.add(connection)


def _forget_connections() -> None:
    """Take a forked child's hands off its parent's connections.

    It would keep them open, and with them the lock, after the parent's death; and it would
    say goodbye on them at its own end.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for connection in list(_CONNECTIONS):
        if not connection.closed:
            os.dup2(nowhere, connection.fileno(), inheritable=False)
    os.close(nowhere)
    _CONNECTIONS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the database's errors into StoreError, without values or passwords."""
    try:
        yield
    except DBAPIError as error:
        original = error.orig
        name = (
            getattr(original, "sqlite_errorname", None)
            or getattr(original, "sqlstate", None)
            or type(original).__name__
        )
        lost = " and was lost" if error.connection_invalidated else ""
        raise StoreError(f"the store failed{lost} ({name})") from error
    except SQLAlchemyError as error:
        raise StoreError(f"the store failed ({type(error).__name__})") from error
