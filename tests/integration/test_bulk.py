"""Bulk exports of a real FHIR server: the same patients, the same outcomes as by search."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from service.config import Settings
from service.criteria.model import Verdict, walk
from service.errors import ConfigurationError
from service.fhir.auth import BearerToken, SmartBackend, signing_key
from service.fhir.bulk import BulkClient, BulkLimits, BulkRequest
from service.fhir.files import FileSource
from service.fhir.server import ServerSource
from service.fhir.source import Source, Wanted
from service.wiring import build_screening
from tests.integration.conftest import LOADER, Sekmet

QUICK = BulkLimits(poll_least=0.05, poll_most=0.2)
AS_OF = date(2026, 11, 1)
Closing = Callable[[Any], Any]


@pytest.mark.parametrize("level", ["system", "patient"])
def test_an_export_gives_the_outcomes_that_searches_give(
    sekmet: Sekmet, tmp_path: Path, closing: Closing, level: str
) -> None:
    """Of both, every patient; only what is assumed of completeness may differ."""
    bulk = closing(BulkClient(sekmet.base, bulk=QUICK))
    found = bulk.export(BulkRequest(level), tmp_path / "export")
    assert found.problems == ()
    files = FileSource(tmp_path / "export")
    server = closing(ServerSource(sekmet.base))
    patients = set(server.patient_ids())
    assert set(files.patient_ids()) == patients
    screening = build_screening(Settings())
    trial = screening.trial("NCT06056752")

    def verdict(source: Source, patient: str) -> Verdict:
        return screening.evaluate_patient(trial, source, patient, AS_OF)

    for patient in sorted(patients):
        assert _outcomes(verdict(files, patient)) == _outcomes(verdict(server, patient)), patient


def _outcomes(verdict: Verdict) -> dict[str, tuple[str, str]]:
    return {
        result.id: (result.outcome.value, result.reason.value)
        for result, _ in walk(verdict.criteria)
    }


def test_a_group_is_exported(sekmet: Sekmet, tmp_path: Path, closing: Closing) -> None:
    member = {"entity": {"reference": "Patient/baseline-candidate"}}
    group = {"resourceType": "Group", "id": "bulk-g", "type": "person", "actual": True}
    request = {"method": "PUT", "url": "Group/bulk-g"}
    entry = {"resource": group | {"member": [member]}, "request": request}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    sekmet.send(json.dumps(bundle).encode())
    bulk = closing(BulkClient(sekmet.base, bulk=QUICK))
    bulk.export(BulkRequest("group/bulk-g"), tmp_path / "export")
    files = FileSource(tmp_path / "export")
    assert list(files.patient_ids()) == ["baseline-candidate"]
    assert len(files.fetch("baseline-candidate", Wanted({})).items) > 5


def test_a_group_that_there_is_not_is_a_configuration_error(
    sekmet: Sekmet, tmp_path: Path, closing: Closing
) -> None:
    bulk = closing(BulkClient(sekmet.base, bulk=QUICK))
    with pytest.raises(ConfigurationError, match="--cohort"):
        bulk.export(BulkRequest("group/nobody"), tmp_path / "export")


def test_a_guarded_server_exports_to_whom_it_knows(
    guarded: Sekmet, tmp_path: Path, closing: Closing
) -> None:
    guarded.put({"resourceType": "Patient", "id": "bulk-p"})
    key = signing_key(guarded.keys["RS384"], kid="k1")
    auth = closing(SmartBackend(guarded.base, client_id="RS384", key=key))
    bulk = closing(BulkClient(guarded.base, auth, bulk=QUICK))
    assert bulk.export(BulkRequest("system"), tmp_path / "export").problems == ()
    assert "bulk-p" in set(FileSource(tmp_path / "export").patient_ids())
    with pytest.raises(ConfigurationError, match="scope"):
        stranger = closing(BulkClient(guarded.base, BearerToken(f"{LOADER}x"), bulk=QUICK))
        stranger.export(BulkRequest("system"), tmp_path / "other")
