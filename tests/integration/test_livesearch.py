"""Searching a real FHIR server: the outcomes that each patient alone gets there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.config import load_settings
from service.errors import EligibilityError
from service.fhir.crawl import Unread, read_records
from service.fhir.server import ServerSource
from service.nightly.model import Exit
from service.nightly.population import diagnosis_of, is_member
from service.nightly.screen import Request, screen
from service.results.json import verdict_line
from tests.integration.conftest import Sekmet
from tests.nightly.making import DAY, TRIAL, screening, verdicts

Closing = Callable[[Any], Any]


def expected(source: ServerSource) -> list[str]:
    """Evaluate every patient of the server alone; gives the lines of the population."""
    trial = screening().trial(TRIAL)
    diagnosis = diagnosis_of(trial)
    assert diagnosis is not None
    found: dict[str, str] = {}
    for patient in source.patient_ids():
        try:
            verdict = screening().evaluate_patient(trial, source, patient, DAY)
        except EligibilityError:
            continue
        if is_member(diagnosis.id, verdict):
            found[verdict.patient] = verdict_line(verdict)
    return [found[key] for key in sorted(found)]


def test_records_read_together_are_those_read_alone(sekmet: Sekmet, closing: Closing) -> None:
    source = closing(ServerSource(sekmet.base))
    ids = sorted(source.patient_ids())
    wanted = screening().trial(TRIAL).wanted
    before = sum(source.hospital.client.sent().values())
    together = list(read_records(source, ids, wanted))
    asked = sum(source.hospital.client.sent().values()) - before
    assert asked < 2 * len(ids)
    for patient, got in zip(ids, together, strict=True):
        assert not isinstance(got, Unread)
        alone = source.fetch(patient, wanted)
        assert sorted(item.raw for item in got.items) == sorted(item.raw for item in alone.items)
        assert got.readings == alone.readings
        assert got.messages == alone.messages


def test_each_way_to_a_cohort_gives_the_verdicts_of_each_patient_alone(
    sekmet: Sekmet, closing: Closing, tmp_path: Path
) -> None:
    source = closing(ServerSource(sekmet.base))
    everybody = sorted(source.patient_ids())
    names = tmp_path / "names.txt"
    names.write_text("\r\n".join(["# everybody", *everybody]), "utf-8")
    references = [{"reference": f"Patient/{each}"} for each in everybody]
    group = {"resourceType": "Group", "id": "live-g", "type": "person", "actual": True}
    listed = {"resourceType": "List", "id": "live-l", "status": "current", "mode": "working"}
    for held in (
        group | {"member": [{"entity": each} for each in references]},
        listed | {"entry": [{"item": each} for each in references]},
    ):
        request = {"method": "PUT", "url": f"{held['resourceType']}/{held['id']}"}
        entry = {"resource": held, "request": request}
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
        sekmet.send(json.dumps(bundle).encode())
    alone = expected(source)
    assert len(alone) > 50
    settings = load_settings({}, flags={"source": sekmet.base})
    for number, cohort in enumerate((None, "Group/live-g", "List/live-l", str(names))):
        output = tmp_path / str(number)
        statement = screen(settings, Request((TRIAL,), DAY, output, cohort=cohort))
        assert verdicts(output) == alone, cohort
        assert statement.exit is Exit.COMPLETE, statement.problems


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--cohort", "Group/nobody"], "no such Group"), (["--cohort", "none.txt"], "neither")],
)
def test_a_cohort_that_there_is_not_is_wrong_usage(
    sekmet: Sekmet, tmp_path: Path, arguments: list[str], words: str
) -> None:
    command = [sys.executable, "-m", "service", "screen", TRIAL, "--source", sekmet.base]
    command += ["--output", str(tmp_path / "out"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert words in done.stderr


def test_a_guarded_server_that_refuses_the_search_says_which_scope_it_needs(
    guarded: Sekmet, tmp_path: Path
) -> None:
    flags = {"source": guarded.base, "source_auth": "bearer", "source_token": "wrong"}
    with pytest.raises(EligibilityError, match="401") as error:
        screen(load_settings({}, flags=flags), Request((TRIAL,), DAY, tmp_path / "out"))
    assert "wrong" not in str(error.value)
    assert json.dumps(str(error.value))
