"""Opening a store: its form, its place, its lock, and what is said when it fails."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, text

from service.errors import ConfigurationError, StoreBusy, StoreError
from service.storage.database import open_database, shown
from service.storage.models import Base
from service.storage.store import Store
from tests.storage.conftest import PostgresServer
from tests.storage.making import begun, invented, kept, outcomes, statement_of

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def another(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in another process; it is killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


_HOLD = """
import sys, time
from service.storage.store import Store
with Store.open(sys.argv[1]) as store, store.locked():
    print("held", flush=True)
    time.sleep(60)
"""
_HOLD_AND_FORK = """
import os, sys, time
from service.storage.store import Store
with Store.open(sys.argv[1]) as store, store.locked():
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_migrations_make_the_tables_of_the_models(place: str) -> None:
    made = open_database(place)
    with made.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
    made.close()
    assert differences == []


def test_opening_again_changes_nothing(place: str) -> None:
    with Store.open(place) as store:
        run = kept(store, "a", (invented("p", {}),))
    with Store.open(place, create=False) as store:
        assert store.runs() == [run]


def test_a_store_of_a_newer_form_is_left_alone(place: str) -> None:
    made = open_database(place)
    with made.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    made.close()
    with pytest.raises(StoreError, match="newer version"):
        open_database(place)


def test_where_no_store_is_none_is_made_by_reading(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no store"):
        open_database(place, create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["mysql://h/d", "sqlite://", "sqlite:///:memory:", "http://", ""])
def test_a_place_that_cannot_be_a_store_is_a_configuration_error(wrong: str) -> None:
    with pytest.raises((ConfigurationError, StoreError)):
        open_database(wrong)


def test_passwords_are_never_shown() -> None:
    secret = "very-secret"  # noqa: S105 - invented
    place = f"postgres://me:{secret}@127.0.0.1:1/none"
    assert secret not in shown(place)
    with pytest.raises(StoreError) as caught:
        open_database(place)
    assert secret not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match="postgresql"):
        open_database("postgresql://127.0.0.1:1/none")


def test_only_its_owner_can_read_a_file_and_it_survives_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Store.open(f"sqlite:///{path}") as store:
        kept(store, "a", (invented("p", {}),))
        with store.database.reading() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA synchronous")) == 2
            assert {found.stat().st_mode & 0o077 for found in tmp_path.iterdir()} == {0}


def test_a_file_that_is_away_for_a_while_is_not_made_anew(tmp_path: Path) -> None:
    path, away = tmp_path / "a store?#%41.db", tmp_path / "away"
    with Store.open(str(path)) as store:
        key = store.subject_key()
        path.rename(away)
        with pytest.raises(StoreError):
            store.runs()
        assert not path.exists()
        away.rename(path)
        assert store.subject_key() == key


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be opened"):
        open_database(str(tmp_path / "no" / "store.db"))


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(StoreError, match="SQLITE_NOTADB"):
        open_database(str(path))


def test_a_full_disk_keeps_what_was_kept(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "store.db")) as store:
        with store.database.reading() as connection:
            pages = connection.scalar(text("PRAGMA page_count"))

        def limit(connection: sqlite3.Connection, _: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages + 20}")

        event.listen(store.database.engine, "connect", limit)
        with store.locked() as writer:
            run = begun(writer)
            run.add([invented("p", {})])
            with pytest.raises(StoreError, match="SQLITE_FULL"):
                run.add(outcomes())
        assert [one.patient for one in store.verdicts(run.id)] == ["Patient/p"]
        event.remove(store.database.engine, "connect", limit)
        with store.locked() as writer:
            again = begun(writer)
            again.add([invented("p", {}), *outcomes()])
            assert again.finish(statement_of(again.run)).id == run.id


def test_of_two_runs_the_second_says_so_and_leaves(store: Store, place: str) -> None:
    with another(_HOLD, place) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert store.busy()
        with pytest.raises(StoreBusy, match="another run is using this store"), store.locked():
            pass
        assert store.runs() == []
        holder.kill()
        holder.wait()
        with store.locked():
            pass
    assert not store.busy()


def test_two_runs_in_one_process_exclude_each_other_too(store: Store, place: str) -> None:
    with store.locked():
        with Store.open(place) as other, pytest.raises(StoreBusy), other.locked():
            pass
        with pytest.raises(StoreBusy), store.locked():
            pass
    with store.locked():
        pass


def test_a_child_that_outlives_a_killed_run_does_not_hold_its_lock(
    store: Store, place: str
) -> None:
    with another(_HOLD_AND_FORK, place) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            assert store.busy()
            holder.kill()
            holder.wait()
            with store.locked():
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_does_not_end_its_parents_connections(store: Store, place: str) -> None:
    with store.locked() as writer:
        run = begun(writer)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=store.close)
        child.start()
        child.join()
        assert child.exitcode == 0
        run.add([invented("p", {})])
        with Store.open(place) as other:
            assert other.busy()


def test_two_processes_may_make_a_store_at_once(place: str) -> None:
    program = "import sys; from service.storage.store import Store; Store.open(sys.argv[1]).close()"
    with another(program, place) as first, another(program, place) as second:
        assert (first.wait(60), second.wait(60)) == (0, 0)
    with Store.open(place, create=False) as store:
        assert store.runs() == []


_WRITE = """
import sys
from service.storage.store import Store
from tests.storage.making import begun, invented, statement_of
with Store.open(sys.argv[1]) as store, store.locked() as writer:
    run = begun(writer, "night")
    print("begun", flush=True)
    for first in range(0, 1200, 30):
        run.add([
            invented(f"p{number:05}", {"I1": ("pass", "value-meets")}, record=b"%d" % number)
            for number in range(first, first + 30)
        ])
    run.finish(statement_of(run.run))
"""


def test_a_run_that_is_killed_anywhere_ends_like_an_undisturbed_one(
    store: Store, place: str
) -> None:
    chance = random.Random(7)  # noqa: S311 - which moment, nothing secret
    for _ in range(6):
        with another(_WRITE, place) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.7))
            process.kill()
    with another(_WRITE, place) as process:
        assert process.wait(60) == 0
    (run,) = store.runs()
    assert run.status == "finished"
    expected = [invented(f"p{n:05}", {"I1": ("pass", "value-meets")}) for n in range(1200)]
    assert [one.line for one in store.verdicts(run.id)] == [one.line for one in expected]
    with store.database.reading() as connection:
        for table in ("verdicts", "criteria", "evidence", "facts", "run_verdicts"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 1200  # noqa: S608


def test_a_lost_server_is_said_and_the_same_run_goes_on_when_it_is_back(
    postgres: PostgresServer,
) -> None:
    with Store.open(postgres.fresh()) as store:
        with store.locked() as writer:
            run = begun(writer)
            run.add([invented("p", {})])
            postgres.stop("immediate")
            with pytest.raises(StoreError, match="the store failed"):
                run.add([invented("q", {})])
        with pytest.raises(StoreError):
            store.runs()
        postgres.start()
        with store.locked() as writer:
            again = begun(writer)
            again.add([invented("p", {}), invented("q", {})])
            again.finish(statement_of(again.run))
        assert [one.patient for one in store.verdicts(run.id)] == ["Patient/p", "Patient/q"]
