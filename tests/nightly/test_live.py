"""A search of a live server: everyone once, as evaluated alone, however often it is cut short."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from service.config import Settings, load_settings
from service.errors import ConfigurationError, SourceError, UsageError
from service.fhir.cohort import Member
from service.fhir.http import Limits
from service.nightly import live
from service.nightly.model import Exit, Statement
from service.nightly.population import diagnosis_of, is_member
from service.nightly.screen import Request, screen
from service.results.json import verdict_line
from service.wiring import build_source
from tests.faults import QUICK, outcome, reset
from tests.fhir.hospital import PARAMETERS, Asked, Hospital, Manners, running
from tests.nightly.making import (
    ALL_CODE,
    DAY,
    OTHER_CODE,
    TRIAL,
    condition,
    patient,
    patients_of,
    rejects,
    screening,
    verdicts,
)
from tests.nightly.making import hospital as hospital_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Hospital]:
    with running() as found:
        yield found


@pytest.fixture
def hospital(server: Hospital) -> Hospital:
    server.manners = Manners(parameters={**PARAMETERS, "Group": ["_id"]})
    server.held.clear()
    server.seen.clear()
    server.fault = lambda handler, asked: False
    return server


def search(hospital: Hospital, output: Path, **more: Any) -> Statement:
    """Search the server, without loading trials and terms each time."""
    settings = load_settings({}, flags={"source": hospital.base})
    with patch("service.nightly.screen.build_screening", lambda _: screening()):
        return screen(settings, Request((TRIAL,), DAY, output, **more))


def one_by_one(hospital: Hospital, ids: list[str]) -> list[str]:
    """Evaluate every patient apart, and give the lines of those in the population."""
    source = build_source(load_settings({}, flags={"source": hospital.base}), screening().site)
    trial = screening().trial(TRIAL)
    diagnosis = diagnosis_of(trial)
    assert diagnosis is not None
    found: dict[str, str] = {}
    for each in ids:
        verdict = screening().evaluate_patient(trial, source, each, DAY)
        if is_member(diagnosis.id, verdict):
            found[verdict.patient] = verdict_line(verdict)
    return [found[key] for key in sorted(found)]


def members(*ids: str) -> dict[str, Any]:
    entities = [{"entity": {"reference": f"Patient/{each}"}} for each in ids]
    return {"resourceType": "Group", "id": "g", "actual": True, "member": entities}


def everyone(hospital: Hospital) -> list[str]:
    return sorted(hospital.held["Patient"])


@pytest.mark.parametrize("sick", [1, 49, 50, 51, 100, 101])
def test_everyone_with_the_disease_is_listed_once(
    hospital: Hospital, tmp_path: Path, sick: int
) -> None:
    hospital.put(*hospital_of(sick, 20))
    statement = search(hospital, tmp_path)
    listed = patients_of(tmp_path)
    assert len(listed) == len(set(listed)) == sick
    assert statement.patients_seen == statement.in_population == sick
    assert statement.exit is Exit.COMPLETE
    assert statement.notes


def test_the_verdicts_are_those_of_each_patient_alone(hospital: Hospital, tmp_path: Path) -> None:
    hospital.put(*hospital_of(40, 20))
    hospital.put(members(*everyone(hospital)))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(everyone(hospital)), "utf-8")
    expected = one_by_one(hospital, everyone(hospital))
    assert len(expected) == 40
    for number, cohort in enumerate((None, "Group/g", str(names))):
        output = tmp_path / str(number)
        statement = search(hospital, output, cohort=cohort)
        assert verdicts(output) == expected, cohort
        assert statement.exit is Exit.COMPLETE
        assert statement.patients_seen == (40 if cohort is None else 60)
    text = (output / "run.json").read_text()
    assert json.loads(text)["cohort"] == "names.txt"
    assert str(tmp_path) not in text


@pytest.mark.parametrize("workers", [2, 7])
def test_the_number_of_workers_changes_nothing(
    hospital: Hospital, tmp_path: Path, workers: int
) -> None:
    hospital.put(*hospital_of(120, 0))
    search(hospital, tmp_path / "one")
    search(hospital, tmp_path / "more", workers=workers)
    assert verdicts(tmp_path / "one") == verdicts(tmp_path / "more")


def test_requests_are_counted_by_type(hospital: Hospital, tmp_path: Path) -> None:
    hospital.put(*hospital_of(60, 60))
    statement = search(hospital, tmp_path)
    counted = sum(count.requests for count in statement.types.values())
    assert counted == len(hospital.seen)
    assert counted < 2 * 60
    assert statement.types["Condition"].read == 60
    stated = json.loads((tmp_path / "run.json").read_text())
    assert stated["types"]["Condition"]["requests"] == statement.types["Condition"].requests


def test_names_that_are_nobodys_are_rejected_with_their_lines(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.put(*hospital_of(3, 0))
    names = tmp_path / "names.txt"
    names.write_text("# ours\np-00001\nnobody\nurn:mrn|77\np-00000\n", "utf-8")
    hospital.held["Patient"]["p-00000"]["identifier"] = []
    for each in hospital.held["Patient"].values():
        each.setdefault("identifier", [])
    statement = search(hospital, tmp_path / "out", cohort=str(names))
    assert statement.exit is Exit.INCOMPLETE
    assert patients_of(tmp_path / "out") == ["Patient/p-00000", "Patient/p-00001"]
    assert [(each["file"], each["line"]) for each in rejects(tmp_path / "out")] == [
        ("names.txt", 3),
        ("names.txt", 4),
    ]
    assert "nobody" not in (tmp_path / "out" / "rejects.ndjson").read_text()


def test_a_patient_who_cannot_be_read_is_a_failure_and_stops_nobody(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.put(*hospital_of(10, 0))

    def failing(handler: Any, asked: Asked) -> bool:
        if asked.path.startswith("Patient") and "p-00004" in str((asked.path, asked.query)):
            handler.reply(422, outcome("error", "processing"))
            return True
        return False

    hospital.fault = failing
    statement = search(hospital, tmp_path)
    assert statement.exit is Exit.INCOMPLETE
    assert [each.patient for each in statement.failures] == ["Patient/p-00004"]
    assert len(patients_of(tmp_path)) == 9
    assert (statement.in_population, statement.failed) == (10, 1)
    assert statement.patients_seen == 10


def test_a_type_that_is_refused_is_a_problem_and_nobody_is_lost(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.put(*hospital_of(10, 0))
    hospital.manners.refused["Procedure"] = 403
    statement = search(hospital, tmp_path)
    assert statement.exit is Exit.INCOMPLETE
    assert len(patients_of(tmp_path)) == 10
    assert any("10 patients" in each and "403" in each for each in statement.problems)


def test_a_type_that_is_not_offered_is_a_limit_and_no_problem(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.put(*hospital_of(10, 0))
    statement = search(hospital, tmp_path)
    assert any(each.startswith("Consent: ") for each in statement.notes)
    assert json.loads((tmp_path / "run.json").read_text())["notes"] == list(statement.notes)


def test_merged_patients_give_one_verdict_wherever_they_are_in_the_cohort(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.put(*hospital_of(120, 0))
    link = {"type": "replaced-by", "other": {"reference": "Patient/p-00110"}}
    hospital.put(patient("p-00003", link=[link]))
    expected = one_by_one(hospital, everyone(hospital))
    statement = search(hospital, tmp_path)
    assert verdicts(tmp_path) == expected
    assert len(expected) == 119
    assert statement.patients_seen == 119


def test_patients_without_the_disease_are_counted_not_listed(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.put(patient("a"), condition("c", "Patient/a", OTHER_CODE))
    hospital.put(patient("b"), condition("d", "Patient/b", ALL_CODE), members("a", "b"))
    statement = search(hospital, tmp_path, cohort="Group/g")
    assert patients_of(tmp_path) == ["Patient/b"]
    assert (statement.patients_seen, statement.in_population) == (2, 1)


@pytest.mark.parametrize("kind", ["Condition", "Patient"])
def test_what_is_refused_is_a_configuration_error_that_says_what_to_change(
    hospital: Hospital, tmp_path: Path, kind: str
) -> None:
    hospital.put(*hospital_of(10, 0))
    hospital.manners.refused[kind] = 403
    with pytest.raises(ConfigurationError, match=rf"system/{kind}\.rs"):
        search(hospital, tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_server_that_is_gone_fails_and_the_next_try_goes_on(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.put(*hospital_of(120, 0))
    search(hospital, tmp_path / "whole")
    monkeypatch.setattr("service.fhir.crawl._PAUSE", 0.01)
    monkeypatch.setattr("service.wiring.limits_of", _hasty)
    gone = False

    def away(handler: Any, asked: Asked) -> bool:
        nonlocal gone
        gone = gone or "p-00070" in asked.value("patient")
        if gone:
            reset(handler)
        return gone

    hospital.fault = away
    with pytest.raises(SourceError):
        search(hospital, tmp_path / "out")
    hospital.fault = lambda handler, asked: False
    hospital.seen.clear()
    statement = search(hospital, tmp_path / "out")
    assert statement.resumed == 1
    assert verdicts(tmp_path / "out") == verdicts(tmp_path / "whole")
    # Neither the cohort nor the first part is read again.
    assert not any(each.value("code") for each in hospital.seen)
    named = " ".join(value for each in hospital.seen for _, value in each.query)
    assert "p-00001" not in named.replace("p-00001,", "", 2)


def _hasty(settings: Settings) -> Limits:
    return replace(QUICK, outage=0.1, circuit_seconds=0.05)


def test_another_file_begins_another_search(hospital: Hospital, tmp_path: Path) -> None:
    assert live.mark_of(None) is None
    assert live.mark_of("Group/7") == "Group/7"
    names = tmp_path / "names.txt"
    names.write_text("a", "utf-8")
    first = live.mark_of(str(names))
    names.write_text("b", "utf-8")
    assert live.mark_of(str(names)) != first
    with pytest.raises(UsageError, match="neither Group/ID nor List/ID"):
        live.mark_of(str(tmp_path / "none"))


def test_many_patients_make_no_more_files_than_can_be_open() -> None:
    search_ = live.LiveSearch(None, None, None, DAY)  # type: ignore[arg-type]
    for count in (0, 1, 50, 51, 20_000, 20_001, 100_000):
        members = [Member(str(number)) for number in range(count)]
        parts = search_._parts(members)
        assert len(parts) <= 400
        assert [each for part in parts for each in part] == members


# Killed at any moment


def slow(handler: Any, asked: Asked) -> bool:
    """Take a moment for each request."""
    time.sleep(0.01)
    return False


def started(hospital: Hospital, output: Path) -> subprocess.Popen[bytes]:
    """Start a search in a process of its own."""
    command = [sys.executable, "-m", "service", "screen", TRIAL, "--source", hospital.base]
    command += ["--output", str(output), "--as-of", DAY.isoformat(), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def test_a_killed_search_ends_as_an_undisturbed_one(hospital: Hospital, tmp_path: Path) -> None:
    hospital.put(*hospital_of(170, 10))
    search(hospital, tmp_path / "whole")
    hospital.fault = slow
    chance = random.Random(7)  # noqa: S311 - chooses moments, keeps no secret
    output = tmp_path / "out"
    for _ in range(2):
        process = started(hospital, output)
        hospital.seen.clear()
        most = chance.randrange(2, 60)
        while len(hospital.seen) < most and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = started(hospital, output)
    assert process.wait(timeout=60) == 0
    for name in ("verdicts.ndjson", "candidates.csv", "group.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((output / "run.json").read_text())["resumed"] >= 1
