"""A purge takes patients' data away, for good, and leaves what an audit asks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from service import __version__
from service.errors import NotReplayable, StoreBusy, StoreError, UsageError
from service.nightly.model import Failure, Reject
from service.storage.models import PurgeRow
from service.storage.purge import Purged, purge
from service.storage.replay import replay
from service.storage.store import Run, Store
from service.wiring import screening_of
from tests.storage.making import MATERIALS, begun, invented, outcomes, spec_of, statement_of

OLD, NEW, BETWEEN = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z", "2026-03-01T00:00:00Z"
NAME = "patient-whom-nobody-may-find"
PATIENTS = ("run_verdicts", "verdicts", "criteria", "evidence", "facts", "changes", "rejects",
            "subjects", "publications")  # fmt: skip


def made(store: Store, instant: str, *patients: str) -> Run:
    """Make a run at an instant, with a failure, a reject and attestations."""
    timed = Store(store.database, lambda: datetime.fromisoformat(instant))
    with timed.locked() as writer:
        run = writer.begin(
            spec_of(), key=instant, materials={**MATERIALS, "attestations": NAME.encode()}
        )
        run.add([invented(each, {"I1": ("pass", "value-meets")}, record=each.encode())
                 for each in patients])  # fmt: skip
        run.rejects([Reject("a.ndjson", 1, None, None, "not JSON", f"Patient/{NAME}")])
        run.note("cursor", NAME)
        failure = Failure(f"Patient/{NAME}", None, "unreadable")
        return run.finish(replace(statement_of(run.run), failures=(failure,), failed=1))


def rows(store: Store, table: str) -> int:
    """Count the rows of a table."""
    with store.database.reading() as connection:
        return connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0  # noqa: S608


def test_what_an_audit_asks_stays(store: Store) -> None:
    before = made(store, OLD, NAME)
    assert purge(store, BETWEEN) == Purged(1, 1, 1, 1)
    after = store.run(before.id)
    assert after.purged is not None
    assert before.statement is not None
    assert after.statement is not None
    assert after.statement.failures == ()
    assert after == replace(
        before, purged=after.purged, statement=replace(before.statement, failures=())
    )
    assert {name: digest for name, (digest, _) in store.materials(before.id).items()}.keys() == {
        *MATERIALS, "attestations"
    }  # fmt: skip
    with store.database.reading() as connection:
        (audit,) = connection.execute(select(PurgeRow.__table__)).all()
    assert audit._asdict() == {
        "id": audit.id, "at": after.purged, "before": BETWEEN, "service": __version__,
        "runs": 1, "verdicts": 1, "facts": 1, "rejects": 1,
    }  # fmt: skip


def test_nothing_of_a_patient_stays(store: Store) -> None:
    made(store, OLD, NAME)
    purge(store, BETWEEN)
    assert {table: rows(store, table) for table in PATIENTS} == dict.fromkeys(PATIENTS, 0)
    assert rows(store, "run_notes") == 0
    with store.database.reading() as connection:
        bodies = connection.scalar(select(func.count()).select_from(text("materials")))
    assert bodies == len(MATERIALS)


def test_nothing_of_a_patient_stays_on_the_disk(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "store.db")) as store:
        made(store, OLD, NAME)
        assert any(NAME.encode() in path.read_bytes() for path in tmp_path.iterdir())
        purge(store, BETWEEN)
        assert not any(NAME.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_what_a_newer_run_rests_on_stays(store: Store) -> None:
    old = made(store, OLD, "both", "only-old")
    new = made(store, NEW, "both", "only-new")
    verdicts = list(store.verdicts(new.id))
    changes = list(store.changes(new.id))
    assert purge(store, BETWEEN) == Purged(1, 1, 1, 1)
    assert list(store.verdicts(new.id)) == verdicts
    assert list(store.changes(new.id)) == changes
    assert list(store.verdicts(old.id)) == []
    assert store.latest() == new
    assert rows(store, "subjects") == 2
    assert store.materials(new.id)["attestations"][1] == NAME.encode()
    with pytest.raises(UsageError, match="purged"):
        list(store.diff(old.id, new.id))
    with pytest.raises(NotReplayable, match="purged"):
        replay(store, old.id, "both", screening_of)


def test_a_rehearsal_removes_nothing(store: Store) -> None:
    made(store, OLD, "p")
    assert purge(store, BETWEEN, rehearse=True) == Purged(1, 1, 1, 1)
    assert store.runs()[0].purged is None
    assert rows(store, "run_verdicts") == 1
    assert rows(store, "purges") == 0


def test_what_is_purged_once_is_not_purged_again(store: Store) -> None:
    made(store, OLD, "p")
    purge(store, BETWEEN)
    assert purge(store, BETWEEN) == Purged(0, 0, 0, 0)
    assert rows(store, "purges") == 1


def test_a_purged_run_is_not_taken_up_again(store: Store) -> None:
    timed = Store(store.database, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    with timed.locked() as writer:
        begun(writer, "a").add([invented("p", {})])
    assert purge(store, BETWEEN).runs == 1
    assert store.runs()[0].status == "abandoned"
    with store.locked() as writer, pytest.raises(StoreError, match="purged"):
        begun(writer, "a")


def test_a_purge_waits_for_no_run(store: Store) -> None:
    with store.locked(), pytest.raises(StoreBusy):
        purge(store, BETWEEN)


def test_after_a_purge_the_next_run_begins_afresh(store: Store) -> None:
    made(store, OLD, "p")
    purge(store, BETWEEN)
    new = made(store, NEW, "p")
    assert list(store.changes(new.id)) == []
    assert [one.patient for one in store.verdicts(new.id)] == ["Patient/p"]
    assert outcomes()
