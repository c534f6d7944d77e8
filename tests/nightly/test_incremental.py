"""A search that reads what changed gives what a search of everything gives."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from service.config import load_settings
from service.nightly.model import Statement
from service.nightly.screen import Request, screen
from tests.nightly.hospital import Hospital, Server, serving
from tests.nightly.making import (
    ALL_CODE,
    OTHER_CODE,
    TRIAL,
    Json,
    condition,
    numbered,
    observation,
    patient,
    screening,
)
from tests.nightly.making import hospital as resources_of

DAY = date(2026, 11, 1)
COMPARED = ("verdicts.ndjson", "candidates.csv", "group.json", "list.json")


class Nights:
    """Searches of one hospital, each night with a store, and of everything to compare with."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.day = DAY
        self.number = 0

    def search(self, output: str, **more: Any) -> Statement:
        """Search by export on the day."""
        flags = {"source": self.server.base, "full_every": "30"} | more.pop("flags", {})
        request = Request((TRIAL,), self.day, self.folder / output, bulk="system", **more)
        with patch("service.nightly.screen.build_screening", lambda _: screening()):
            return screen(load_settings({}, flags=flags), request)

    def night(self, **more: Any) -> Statement:
        """Search with the store."""
        return self.search("night", store=str(self.folder / "store.db"), **more)

    def both(self, **more: Any) -> Statement:
        """Search with the store, and everything; both must give the same."""
        given = self.night(**more)
        whole = self.search("whole", fresh=True)
        self.number += 1
        assert self.outputs("night") == self.outputs("whole")
        assert given.trials == whole.trials
        assert given.rejects == whole.rejects
        assert given.complete == whole.complete
        assert (given.in_population, given.evaluated, given.failed) == (
            whole.in_population,
            whole.evaluated,
            whole.failed,
        )
        return given

    def outputs(self, output: str) -> dict[str, bytes]:
        """Read what must be the same."""
        return {name: numbered((self.folder / output / name).read_bytes()) for name in COMPARED}

    def line(self, key: str) -> Json | None:
        """Give a patient's verdict of the night."""
        lines = (self.folder / "night" / "verdicts.ndjson").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return next((each for each in found if each["patient"] == f"Patient/{key}"), None)


def filled(sick: int = 12, well: int = 8) -> Hospital:
    """Give a hospital with patients."""
    found = Hospital()
    for each in resources_of(sick, well):
        found.put(each)
    found.put(medication("m-1"))
    found.put(medication("m-2"))
    # Beyond the few minutes by which changes are asked for earlier.
    found.clock += 100
    return found


def medication(key: str, code: str = "11202") -> Json:
    """Give a Medication that requests refer to."""
    coding = {"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": code}
    return {"resourceType": "Medication", "id": key, "code": {"coding": [coding]}}


def request(key: str, subject: str, medicine: str) -> Json:
    """Give an order of a Medication."""
    return {
        "resourceType": "MedicationRequest",
        "id": key,
        "status": "active",
        "intent": "order",
        "medicationReference": {"reference": f"Medication/{medicine}"},
        "subject": {"reference": subject},
        "authoredOn": "2026-10-25",
    }


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in few files, and leave it to the system when they reach the disk."""
    monkeypatch.setattr("service.nightly.engine._PARTITIONS", (2, 2))
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def hospital() -> Hospital:
    """Give a hospital with twelve patients who have the disease, and eight who don't."""
    return filled()


@pytest.fixture
def nights(hospital: Hospital, tmp_path: Path) -> Iterator[Nights]:
    """Give the hospital's nights, the first of which has passed."""
    with serving(hospital) as server:
        found = Nights(server, tmp_path)
        first = found.night()
        assert first.night.since is None
        assert first.night.why == "nothing was searched before"
        assert first.in_population == 12
        yield found


def sick(hospital: Hospital, number: int = 0) -> str:
    """Give the id of a patient who has the disease."""
    found = [key for key in hospital.patients() if is_sick(hospital, key)]
    return found[number]


def is_sick(hospital: Hospital, key: str) -> bool:
    """Tell whether a patient's first diagnosis is the disease."""
    found = hospital.resources.get(f"Condition/c-{key}")
    return found is not None and found["code"]["coding"][0]["code"] == ALL_CODE[1]


def test_a_night_without_changes_takes_all_verdicts_over(nights: Nights) -> None:
    given = nights.both()
    assert given.night.since is not None
    assert (given.night.evaluated, given.night.carried) == (0, 12)


def test_a_new_result_of_a_member_is_seen(hospital: Hospital, nights: Nights) -> None:
    key = sick(hospital)
    hospital.put(observation("new", f"Patient/{key}", 9.9, effectiveDateTime="2026-10-31"))
    given = nights.both()
    assert (given.night.evaluated, given.night.touched, given.night.carried) == (1, 1, 11)
    assert "Observation/new" in json.dumps(nights.line(key))


def test_a_deleted_result_is_gone(hospital: Hospital, nights: Nights) -> None:
    key = sick(hospital, 3)
    hospital.delete(f"Observation/o-{key}")
    given = nights.both()
    assert given.night.touched == 1
    assert "Observation/" not in json.dumps(nights.line(key))


def test_who_joins_the_population_is_read_whole(hospital: Hospital, nights: Nights) -> None:
    key = next(key for key in hospital.patients() if not is_sick(hospital, key))
    hospital.put(condition(f"c2-{key}", f"Patient/{key}"))
    given = nights.both()
    assert given.night.joined == 1
    # His creatinine is older than the night before, and not among what changed.
    assert f"Observation/o-{key}" in json.dumps(nights.line(key))


def test_who_joins_makes_a_full_night_where_single_patients_cannot_be_exported(
    hospital: Hospital, nights: Nights
) -> None:
    nights.server.takes -= {"patient"}
    key = next(key for key in hospital.patients() if not is_sick(hospital, key))
    hospital.put(condition(f"c2-{key}", f"Patient/{key}"))
    given = nights.both()
    assert given.night.since is None
    assert "exports no single patients" in (given.night.why or "")


def test_a_server_without_since_gives_full_nights(nights: Nights) -> None:
    nights.server.takes -= {"_since"}
    given = nights.both()
    assert given.night.since is None
    assert "exports no changes" in (given.night.why or "")


def test_who_leaves_the_population_is_gone(hospital: Hospital, nights: Nights) -> None:
    key = sick(hospital)
    hospital.put(condition(f"c-{key}", f"Patient/{key}", OTHER_CODE))
    assert nights.both().in_population == 11
    assert nights.line(key) is None


def test_a_merged_patient_lives_on_in_the_survivor(hospital: Hospital, nights: Nights) -> None:
    away, well = sick(hospital), next(k for k in hospital.patients() if not is_sick(hospital, k))
    other = {"reference": f"Patient/{well}"}
    hospital.put(patient(away, link=[{"type": "replaced-by", "other": other}]))
    given = nights.both()
    assert (given.night.touched, given.night.joined) == (1, 1)
    assert nights.line(away) is None
    assert nights.line(well) is not None
    hospital.put(patient(away))
    nights.both()
    assert nights.line(away) is not None
    assert nights.line(well) is None


def test_two_members_are_merged_by_the_survivors_link(hospital: Hospital, nights: Nights) -> None:
    away, kept = sick(hospital), sick(hospital, 7)
    other = {"reference": f"Patient/{away}"}
    hospital.put(patient(kept, link=[{"type": "replaces", "other": other}]))
    assert nights.both().night.touched == 2


def test_a_deleted_patient_is_gone(hospital: Hospital, nights: Nights) -> None:
    key = sick(hospital)
    for name in (f"Observation/o-{key}", f"Condition/c-{key}", f"Patient/{key}"):
        hospital.delete(name)
    assert nights.both().in_population == 11


def test_a_changed_medication_touches_whoever_refers_to_it(
    hospital: Hospital, nights: Nights
) -> None:
    key = sick(hospital, 5)
    hospital.put(request("r-1", f"Patient/{key}", "m-1"))
    # The Medication did not change: it is fetched all the same.
    assert nights.both().night.touched == 1
    hospital.put(medication("m-1", "1999999"))
    assert nights.both().night.touched == 1


def test_who_was_known_by_a_diagnosis_only_is_read_when_the_patient_appears(
    hospital: Hospital, nights: Nights
) -> None:
    hospital.put(condition("c-late", "Patient/late"))
    hospital.put(observation("o-late", "Patient/late"))
    nights.both()
    assert nights.line("late") is None
    nights.both()
    hospital.clock += 100
    hospital.put(patient("late"))
    nights.both()
    assert "Observation/o-late" in json.dumps(nights.line("late"))


def test_a_diagnosis_of_a_later_day_counts_from_that_day(
    hospital: Hospital, nights: Nights
) -> None:
    key = next(key for key in hospital.patients() if not is_sick(hospital, key))
    hospital.put(condition("c-soon", f"Patient/{key}", onsetDateTime="2026-11-03"))
    nights.both()
    assert nights.line(key) is None
    hospital.clock += 100
    nights.day = date(2026, 11, 3)
    nights.both()
    assert nights.line(key) is not None


def test_verdicts_that_lapse_are_given_anew_without_the_server(
    hospital: Hospital, nights: Nights
) -> None:
    # The creatinine of 20 October lies in the window of 28 days until 17 November.
    nights.day = date(2026, 11, 17)
    assert nights.both().night.lapsed == 0
    nights.day = date(2026, 11, 18)
    given = nights.both()
    assert given.night.lapsed == 12


def test_everything_is_read_every_so_many_days(nights: Nights) -> None:
    nights.day += timedelta(2)
    assert nights.both(flags={"full_every": "3"}).night.since is not None
    nights.day += timedelta(1)
    given = nights.both(flags={"full_every": "3"})
    assert given.night.why == "everything was last read 3 days ago"


def test_fresh_reads_everything(nights: Nights) -> None:
    assert nights.both(fresh=True).night.why == "--fresh was asked for"


def test_an_incomplete_night_is_nothing_to_go_on_from(hospital: Hospital, nights: Nights) -> None:
    key = sick(hospital)
    hospital.put(observation("new", f"Patient/{key}", 9.9, effectiveDateTime="2026-10-31"))
    nights.day += timedelta(1)
    nights.server.lose = {"Observation"}
    assert not nights.night(flags={"full_every": "1"}).complete
    nights.server.lose = set()
    nights.day += timedelta(1)
    given = nights.both()
    assert given.complete
    # What changed before the night that failed is still among what changed.
    assert given.night.touched == 1


def edits(hospital: Hospital, chance: random.Random) -> list[Callable[[], None]]:
    """Give what may happen to a hospital, one of each kind."""
    keys = hospital.patients()
    one, two = chance.sample(keys, 2)
    day = f"2026-{chance.choice(['09', '10', '11'])}-{chance.randint(1, 28):02}"
    code = chance.choice([ALL_CODE, ALL_CODE, OTHER_CODE])
    number = hospital.clock
    value = chance.choice([0.5, 1.7, 1.8, 1.9, 3.0])

    def put(*resources: Json) -> Callable[[], None]:
        return lambda: [hospital.put(each) for each in resources] and None

    def drop(*kinds: str) -> Callable[[], None]:
        names = [name for name in hospital.resources if name.split("/")[0] in kinds]
        return lambda: hospital.delete(chance.choice(sorted(names)))

    def merged(kind: str) -> Json:
        return patient(one, link=[{"type": kind, "other": {"reference": f"Patient/{two}"}}])

    own = f"Patient/{one}"
    return [
        put(observation(f"o{number}", own, value, effectiveDateTime=day)),
        put(observation(f"o-{one}", own, value, effectiveDateTime=day)),
        put(observation(f"o-{one}", f"Patient/{two}", value)),
        put(condition(f"c{number}", own, code, onsetDateTime=day)),
        put(condition(f"c-{one}", own, code, onsetDateTime=day)),
        put(patient(one, birthDate=f"{chance.choice([1990, 2012])}-{day[5:]}")),
        put(patient(f"n{number}"), condition(f"cn{number}", f"Patient/n{number}")),
        put(merged("replaced-by")),
        put(merged("replaces")),
        put(patient(one)),
        put(request(f"r{number}", own, chance.choice(["m-1", "m-2", "m-3"]))),
        put(medication(chance.choice(["m-1", "m-2", "m-3"]), chance.choice(["11202", "8888"]))),
        put(condition(f"c{number}", f"Patient/x{number}")),
        drop("Observation"),
        drop("Condition"),
        drop("Observation", "Condition", "Patient"),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_any_nights_give_what_a_search_of_everything_gives(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - what happens, nothing secret
    hospital = filled(14, 8)
    kinds = set()
    with serving(hospital) as server:
        nights = Nights(server, tmp_path)
        nights.night()
        for _ in range(6):
            for _ in range(chance.randint(0, 3)):
                chance.choice(edits(hospital, chance))()
            hospital.clock += chance.choice([0, 0, 15])
            nights.day += timedelta(chance.choice([0, 1, 1, 2, 9]))
            kinds.add(nights.both().night.since is not None)
    assert True in kinds


def test_who_joins_makes_a_full_night_where_records_name_patients_otherwise(
    hospital: Hospital, tmp_path: Path
) -> None:
    """An export of single patients need not hold what names them by an identifier."""
    well = next(key for key in hospital.patients() if not is_sick(hospital, key))
    known = {"system": "urn:example:mrn", "value": "4711"}
    hospital.put(patient(well, identifier=[known]))
    stray = observation("by-identifier", f"Patient/{well}", 3)
    hospital.put(stray | {"subject": {"identifier": known}})
    hospital.clock += 100
    with serving(hospital) as server:
        nights = Nights(server, tmp_path)
        nights.night()
        hospital.clock += 100
        hospital.put(condition("new", f"Patient/{well}", ALL_CODE))
        given = nights.both()
    assert given.night.since is None
    assert "otherwise than by id" in given.night.why
