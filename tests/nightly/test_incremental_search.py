"""The same for a cohort whose records are read one by one from a live server."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import msgspec
import pytest

from service import __version__
from service.errors import EligibilityError
from service.fhir.crawl import Unread
from service.fhir.files import FileSource
from service.fhir.source import Fetched
from service.nightly.changed import Changes, changes_of, deleted
from service.nightly.engine import Engine, Evaluation, Searched
from service.nightly.incremental import NOTE, Incremental, Kept, base_for, base_of, kept_of
from service.nightly.model import Night, RunSpec
from service.nightly.partition import encode_record
from service.nightly.screen import no_progress, stated
from service.nightly.work import Work
from service.storage.store import Store
from tests.nightly.hospital import Hospital, instant
from tests.nightly.making import TRIAL, condition, lines_of, observation, patient, screening
from tests.nightly.test_incremental import edits, filled, sick

DAY = date(2026, 11, 1)


class Ward:
    """A hospital's cohort, read patient by patient, night after night."""

    def __init__(self, hospital: Hospital, store: Store, folder: Path) -> None:
        self.hospital = hospital
        self.store = store
        self.folder = folder
        self.day = DAY
        self.clock = 0
        self.number = 0
        self.asked: list[str] = []
        self.unreadable: set[str] = set()

    def cohort(self) -> list[str]:
        """Find who has any diagnosis on record."""
        found = {
            each["subject"]["reference"].removeprefix("Patient/")
            for each in self.hospital.resources.values()
            if each["resourceType"] == "Condition"
        }
        return sorted(found & set(self.hospital.patients()))

    def read(self, ids: Sequence[str]) -> Iterator[Fetched | Unread]:
        """Read whole records."""
        self.number += 1
        source = FileSource(self.hospital.export(self.folder / f"state{self.number}"))
        wanted = screening().trial(TRIAL).wanted
        for each in ids:
            self.asked.append(each)
            if each in self.unreadable:
                yield Unread(each, "the server gave an error")
                continue
            try:
                yield source.fetch(each, wanted)
            except EligibilityError as error:
                yield Unread(each, error.message)

    def spec(self) -> RunSpec:
        """Say what is asked."""
        versions = {"service": __version__}
        return RunSpec((TRIAL,), "ward", self.day.isoformat(), cohort="List/1", versions=versions)

    def engine(self, work: Work) -> Engine:
        """Give an engine for the day."""
        trials = (screening().trial(TRIAL),)
        evaluation = Evaluation(screening(), trials, self.day, keep_records=True)
        return Engine(evaluation, work, 1, no_progress)

    def whole(self) -> Searched:
        """Search everything."""
        self.number += 1
        with Work(self.folder / f"whole{self.number}").locked() as work:
            work.begin("whole")
            lines: dict[str, bytes] = {}
            unread = 0
            for each in self.read(self.cohort()):
                unread += isinstance(each, Unread)
                if isinstance(each, Fetched):
                    line = encode_record(each)
                    verdict = screening().evaluate_fetched(screening().trial(TRIAL), each, self.day)
                    lines.setdefault(verdict.patient, line)
            path = work.path("records")
            path.write_bytes(b"".join(line + b"\n" for line in lines.values()))
            found = self.engine(work).search_records([path], seen=len(lines) + unread)
            outcomes = list(found.outcomes())
            return replace(found, outcomes=lambda: iter(outcomes))

    def changes(self) -> Changes:
        """Ask what changed since the last night."""
        found = changes_of(line.strip() for line in lines_of(self.hospital.since(self.clock)))
        gone = [name for name, when in self.hospital.deleted.items() if when >= self.clock]
        deleted(found, gone)
        return found

    def night(self, kept: Kept | None = None) -> Night:
        """Search what changed (or keep what a search of everything gave), and compare."""
        expected = self.whole()
        self.asked.clear()
        self.number += 1
        with (
            self.store.locked() as writer,
            Work(self.folder / f"night{self.number}").locked() as work,
        ):
            work.begin("night")
            opened = writer.begin(self.spec(), key=f"night{self.number}")
            now = instant(self.hospital.clock)
            if kept is None and self.clock == 0:
                found, night = expected, Night()
                kept = kept_of("search", found, self.day.isoformat(), now)
            else:
                base = base_of(
                    self.store, base_for(self.store, self.spec(), "search", 90, opened.id)
                )
                search = Incremental(self.engine(work), self.store, base, self.day.isoformat())
                result = search.by_records(self.changes(), now, self.cohort(), self.read)
                found, night, kept = result.searched, result.night, result.kept
            opened.add((found.fresh or found.outcomes)())
            for trial, patients in found.carried.items():
                assert night.base is not None
                opened.carry(night.base, trial, patients())
            assert kept is not None
            opened.note(NOTE, msgspec.json.encode(kept).decode())
            trials = self.engine(work).evaluation.trials
            statement = stated(self.spec(), trials, found, work, night)
            if not self.unreadable:
                assert [each.line for each in found.outcomes()] == [
                    each.line for each in expected.outcomes()
                ]
                whole = stated(self.spec(), trials, expected, work)
                assert statement.trials == whole.trials
                assert statement.in_population == whole.in_population
                assert statement.patients_seen == whole.patients_seen
            opened.finish(statement)
            stored = [each.line for each in self.store.verdicts(opened.id)]
            assert stored == [each.line for each in found.outcomes()]
        self.clock = self.hospital.clock + 1
        return night


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in few files, and leave it to the system when they reach the disk."""
    monkeypatch.setattr("service.nightly.engine._PARTITIONS", (2, 2))
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """Give a ward after its first night."""
    with Store.open(str(tmp_path / "store.db")) as store:
        found = Ward(filled(12, 6), store, tmp_path)
        found.night()
        yield found


def test_only_who_changed_is_read(ward: Ward) -> None:
    key = sick(ward.hospital, 2)
    ward.hospital.put(observation("new", f"Patient/{key}", 9.9))
    night = ward.night()
    assert ward.asked == [key]
    assert (night.touched, night.evaluated, night.carried) == (1, 1, 11)


def test_lapsed_verdicts_are_given_anew_from_what_is_stored(ward: Ward) -> None:
    ward.day = date(2026, 11, 28)
    night = ward.night()
    assert ward.asked == []
    assert (night.touched, night.lapsed, night.carried) == (0, 12, 0)


def test_who_leaves_the_cohort_is_gone_and_who_joins_is_read(ward: Ward) -> None:
    key = sick(ward.hospital)
    ward.hospital.delete(f"Condition/c-{key}")
    ward.hospital.put(patient("p-new"))
    ward.hospital.put(observation("o-new", "Patient/p-new"))
    ward.hospital.put(condition("c-new", "Patient/p-new"))
    night = ward.night()
    assert ward.asked == ["p-new"]
    assert (night.joined, night.carried) == (1, 11)


def test_who_could_not_be_read_is_read_again(ward: Ward) -> None:
    key = sick(ward.hospital)
    ward.hospital.put(observation("new", f"Patient/{key}", 9.9))
    ward.unreadable = {key}
    ward.night()
    assert ward.asked == [key]
    ward.unreadable = set()
    ward.night()
    assert ward.asked == [key]
    ward.night()
    assert ward.asked == []


@pytest.mark.parametrize("seed", range(3))
def test_any_nights_give_what_a_search_of_everything_gives(ward: Ward, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - what happens, nothing secret
    for _ in range(5):
        for _ in range(chance.randint(0, 3)):
            chance.choice(edits(ward.hospital, chance))()
        ward.day += timedelta(chance.choice([0, 1, 2]))
        ward.night()
