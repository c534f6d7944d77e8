"""Nights of a live server with a store: they give what a search of everything gives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from service.config import load_settings
from service.nightly.model import Exit, Statement
from service.nightly.screen import Request, screen
from tests.fhir.hospital import PARAMETERS, Asked, Manners, running
from tests.fhir.hospital import Hospital as Server
from tests.nightly.hospital import Hospital
from tests.nightly.making import (
    ALL_CODE,
    TRIAL,
    Json,
    condition,
    numbered,
    observation,
    patient,
    screening,
)
from tests.nightly.test_incremental import COMPARED, edits, filled, sick

ROOT = Path(__file__).resolve().parents[2]
DAY = date(2026, 11, 1)


class Mirrored(Hospital):
    """A hospital whose state a live server gives."""

    server: Server

    @classmethod
    def at(cls, server: Server, sick_: int = 12, well: int = 8) -> Mirrored:
        """Fill the server, a long time ago."""
        found = cls()
        found.server = server
        first = filled(sick_, well)
        found.resources, found.changed = first.resources, first.changed
        found.clock = first.clock
        server.put(*first.resources.values())
        return found

    def put(self, resource: Json) -> None:
        """Create or update a resource."""
        super().put(resource)
        self.server.change(resource)

    def delete(self, name: str) -> None:
        """Delete a resource."""
        super().delete(name)
        self.server.delete(name)


class Nights:
    """Searches of a live server, each night with a store, and of everything to compare with."""

    def __init__(self, server: Server, folder: Path, cohort: str | None = None) -> None:
        self.server = server
        self.folder = folder
        self.cohort = cohort
        self.day = DAY

    def search(self, output: str, **more: Any) -> Statement:
        """Search on the day."""
        flags = {"source": self.server.base, "full_every": "30"} | more.pop("flags", {})
        request = Request((TRIAL,), self.day, self.folder / output, cohort=self.cohort, **more)
        with patch("service.nightly.screen.build_screening", lambda _: screening()):
            return screen(load_settings({}, flags=flags), request)

    def night(self, **more: Any) -> Statement:
        """Search with the store."""
        return self.search("night", store=str(self.folder / "store.db"), **more)

    def both(self, **more: Any) -> Statement:
        """Search with the store, and everything; both must give the same."""
        given = self.night(**more)
        whole = self.search("whole", fresh=True)
        assert self.outputs("night") == self.outputs("whole")
        for name in ("trials", "rejects", "complete", "problems", "failures", "notes"):
            assert getattr(given, name) == getattr(whole, name), name
        for name in ("patients_seen", "in_population", "evaluated", "failed"):
            assert getattr(given, name) == getattr(whole, name), name
        return given

    def outputs(self, output: str) -> dict[str, bytes]:
        """Read what must be the same."""
        return {name: numbered((self.folder / output / name).read_bytes()) for name in COMPARED}


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in few files, and leave it to the system when they reach the disk."""
    monkeypatch.setattr("service.nightly.engine._PARTITIONS", (2, 2))
    monkeypatch.setattr(os, "fsync", lambda number: None)


def telling() -> Manners:
    """Give the manners of a server that tells what changed and what was deleted."""
    known = {kind: [*names, "_lastUpdated"] for kind, names in PARAMETERS.items()}
    return Manners(parameters=known, history="plain")


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a server that can tell what changed."""
    with running() as found:
        found.manners = telling()
        yield found


@pytest.fixture
def hospital(server: Server) -> Mirrored:
    """Give a hospital with twelve patients who have the disease, and eight who don't."""
    return Mirrored.at(server)


@pytest.fixture
def nights(server: Server, hospital: Mirrored, tmp_path: Path) -> Nights:
    """Give the hospital's nights, the first of which has passed."""
    found = Nights(server, tmp_path)
    first = found.both()
    assert first.night.why == "nothing was searched before"
    assert first.in_population == 12
    server.seen.clear()
    return found


def read(server: Server) -> set[str]:
    """List whose Observations were asked for."""
    with server.lock:
        named = [each.value("patient") for each in server.seen if each.path == "Observation"]
    return {who.removeprefix("Patient/") for each in named if each for who in each.split(",")}


def test_only_who_changed_is_read(nights: Nights, hospital: Mirrored, server: Server) -> None:
    key = sick(hospital, 2)
    hospital.put(observation("new", f"Patient/{key}", 9.9))
    given = nights.night()
    assert read(server) == {key}
    assert given.night.since is not None
    assert (given.night.touched, given.night.evaluated, given.night.carried) == (1, 1, 11)
    assert given.exit is Exit.COMPLETE
    assert given.notes
    nights.both()


def test_who_gets_and_who_loses_the_diagnosis(nights: Nights, hospital: Mirrored) -> None:
    hospital.put(patient("p-new"))
    hospital.put(condition("c-new", "Patient/p-new"))
    hospital.delete(f"Condition/c-{sick(hospital)}")
    given = nights.both()
    assert (given.night.joined, given.night.carried) == (1, 11)
    assert given.night.unseen == ()


@pytest.mark.parametrize("history", ["plain", "versions"])
def test_a_deleted_resource_is_noticed(
    nights: Nights, hospital: Mirrored, server: Server, history: str
) -> None:
    server.manners.history = history
    key = sick(hospital, 3)
    hospital.delete(f"Observation/o-{key}")
    assert nights.both().night.touched == 1


def test_without_a_history_it_is_said_that_deletions_are_not_seen(
    nights: Nights, hospital: Mirrored, server: Server
) -> None:
    server.manners.history = None
    hospital.put(observation("new", f"Patient/{sick(hospital)}", 9.9))
    given = nights.both()
    assert {"Patient", "Condition", "Observation"} <= set(given.night.unseen)
    assert "Observation" in (nights.folder / "night" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("kind", ["Observation", "Medication"])
def test_a_server_that_cannot_tell_what_changed_is_read_whole(
    nights: Nights, server: Server, hospital: Mirrored, kind: str
) -> None:
    server.manners.parameters[kind] = list(PARAMETERS[kind])
    hospital.put(observation("new", f"Patient/{sick(hospital)}", 9.9))
    given = nights.both()
    assert given.night.since is None
    assert given.night.why == f"the server does not search {kind} by its last change"
    assert json.loads((nights.folder / "night" / "run.json").read_text())["night"]["why"]


def test_a_server_that_ignores_the_last_change_loses_nobody(
    nights: Nights, server: Server, hospital: Mirrored
) -> None:
    server.manners.ignored = frozenset({"_lastUpdated"})
    hospital.put(observation("new", f"Patient/{sick(hospital)}", 9.9))
    given = nights.both()
    assert given.night.since is None or given.night.touched == 12


@pytest.mark.parametrize("off", [timedelta(hours=-3), timedelta(hours=3)])
def test_the_servers_clock_may_be_another(server: Server, tmp_path: Path, off: timedelta) -> None:
    server.manners.clock = off
    hospital = Mirrored.at(server)
    nights = Nights(server, tmp_path)
    nights.both()
    hospital.put(observation("new", f"Patient/{sick(hospital)}", 9.9))
    assert nights.both().night.touched == 1


@pytest.mark.parametrize(
    "answer",
    [
        "<html>",
        {"resourceType": "Bundle", "type": "searchset", "total": 0},
        {"resourceType": "Bundle", "type": "history", "entry": [{"request": {"method": "DELETE"}}]},
        {
            "resourceType": "Bundle",
            "type": "history",
            "entry": [
                {
                    "resource": {
                        "resourceType": "OperationOutcome",
                        "issue": [{"severity": "warning", "code": "incomplete"}],
                    }
                }
            ],
        },
    ],
    ids=["no JSON", "a search", "nobody", "warning"],
)
def test_a_history_that_cannot_be_relied_on_has_everything_read(
    nights: Nights, hospital: Mirrored, server: Server, answer: object
) -> None:
    def lying(handler: Any, asked: Asked) -> bool:
        if asked.path == "Observation/_history":
            handler.reply(200, answer)
            return True
        return False

    hospital.delete(f"Observation/o-{sick(hospital, 3)}")
    server.fault = lying
    given = nights.both()
    assert given.night.since is None
    assert "history of Observation" in str(given.night.why)


def test_patients_merged_with_each_other(nights: Nights, hospital: Mirrored) -> None:
    one, two = sick(hospital, 1), sick(hospital, 5)
    link = [{"type": "replaced-by", "other": {"reference": f"Patient/{two}"}}]
    hospital.put(patient(one, link=link))
    assert nights.both().in_population == 11
    hospital.put(patient(one))
    assert nights.both().in_population == 12


def test_a_cohort_by_file_of_a_merged_pair_counts_as_when_all_is_read(
    server: Server, hospital: Mirrored, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(hospital.patients()), "utf-8")
    one, two = sick(hospital, 1), sick(hospital, 5)
    link = [{"type": "replaced-by", "other": {"reference": f"Patient/{two}"}}]
    server.put(patient(one, link=link))
    nights = Nights(server, tmp_path, str(names))
    nights.both()
    hospital.put(observation("new", f"Patient/{sick(hospital, 7)}", 9.9))
    assert nights.both().night.since is not None


def test_a_patient_who_cannot_be_read_is_a_failure_and_read_again(
    nights: Nights, hospital: Mirrored, server: Server
) -> None:
    key = sick(hospital, 2)
    hospital.put(observation("new", f"Patient/{key}", 9.9))

    def failing(handler: Any, asked: Asked) -> bool:
        if asked.path.startswith("Patient") and key in str((asked.path, asked.query)):
            handler.reply(422, {"resourceType": "OperationOutcome", "issue": []})
            return True
        return False

    server.fault = failing
    given = nights.both()
    assert given.exit is Exit.INCOMPLETE
    assert [each.patient for each in given.failures] == [f"Patient/{key}"]
    server.fault = lambda handler, asked: False
    given = nights.both()
    assert given.exit is Exit.COMPLETE


def test_a_type_that_is_refused_to_one_patient_is_a_problem(
    nights: Nights, hospital: Mirrored, server: Server
) -> None:
    key = sick(hospital, 2)
    hospital.put(observation("new", f"Patient/{key}", 9.9))
    server.manners.batch = "undeclared"

    def failing(handler: Any, asked: Asked) -> bool:
        if asked.path == "Procedure" and key in asked.value("patient"):
            handler.reply(403, {"resourceType": "OperationOutcome", "issue": []})
            return True
        return False

    server.fault = failing
    assert nights.both().exit is Exit.INCOMPLETE
    server.fault = lambda handler, asked: False
    assert nights.both().exit is Exit.COMPLETE


def test_a_patient_who_is_gone_meanwhile(nights: Nights, hospital: Mirrored) -> None:
    key = sick(hospital, 2)
    hospital.delete(f"Patient/{key}")
    given = nights.both()
    assert [each.patient for each in given.failures] == [f"Patient/{key}"]


@pytest.mark.parametrize("seed", range(3))
def test_any_nights_give_what_a_search_of_everything_gives(
    server: Server, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - what happens, nothing secret
    hospital = Mirrored.at(server, 14, 8)
    nights = Nights(server, tmp_path)
    nights.both()
    kinds = set()
    for _ in range(5):
        for _ in range(chance.randint(0, 3)):
            chance.choice(edits(hospital, chance))()
        nights.day += timedelta(chance.choice([0, 1, 1, 2, 9]))
        kinds.add(nights.both().night.since is not None)
    assert True in kinds


# Killed at any moment

PROGRAM = """
import sys
from service.nightly import engine
engine._PARTITIONS = (6, 6)
from service.cli import main
main(sys.argv[1:], standalone_mode=True)
"""


def started(source: str, folder: Path, output: str, *more: str) -> subprocess.Popen[bytes]:
    """Start a search in a process of its own."""
    arguments = ["screen", TRIAL, "--source", source, *more]
    arguments += ["--output", str(folder / output), "--as-of", "2026-11-02", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for a good end."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()


def test_killed_at_random_moments_it_ends_as_a_search_of_everything(
    server: Server, tmp_path: Path
) -> None:
    hospital = Mirrored.at(server, 120, 8)
    chance = random.Random(5)  # noqa: S311 - which moment, nothing secret
    store = ("--store", str(tmp_path / "store.db"))
    ended(started(server.base, tmp_path, "night", *store))
    hospital.put(patient("p-new"))
    hospital.put(condition("c-new", "Patient/p-new", ALL_CODE))
    for number in range(0, 110, 2):
        hospital.put(observation(f"o{number}", f"Patient/{sick(hospital, number)}", 9.9))
    link = [{"type": "replaced-by", "other": {"reference": f"Patient/{sick(hospital, 2)}"}}]
    hospital.put(patient(sick(hospital, 1), link=link))

    def slow(handler: Any, asked: Asked) -> bool:
        time.sleep(0.01)
        return False

    server.fault = slow
    killed = 0
    for most in (5, chance.randrange(10, 40), chance.randrange(10, 40)):
        server.seen.clear()
        process = started(server.base, tmp_path, "night", *store)
        while len(server.seen) < most and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate(timeout=60)
    assert killed
    ended(started(server.base, tmp_path, "night", *store))
    ended(started(server.base, tmp_path, "whole"))
    for name in COMPARED:
        given = numbered((tmp_path / "night" / name).read_bytes())
        assert given == numbered((tmp_path / "whole" / name).read_bytes()), name
    assert b'"read": "incremental"' in (tmp_path / "night" / "run.json").read_bytes()
