"""The same patients by directory, by Bulk Data and one by one: the same verdicts and reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from service.config import Settings, load_settings
from service.fhir.bulk import BulkLimits
from service.fhir.server import ServerSource
from service.nightly.model import Statement
from service.nightly.population import diagnosis_of, is_member
from service.nightly.screen import Request, screen
from service.results.json import verdict_line
from service.wiring import build_screening, build_source
from tests.integration.conftest import FIXTURES, Sekmet, transaction_of
from tests.nightly.making import DAY, TRIAL

QUICK = BulkLimits(poll_least=0.05, poll_first=0.05, poll_most=0.2)
# The server lacks the type. Files without any are taken as complete all the same (semantics
# 1.5); a site that keeps no such records says so, and then all is one.
LACKING = "ResearchSubject"
NONE_KEPT = f"not_offered: {{{LACKING}: none-kept}}\n"
Outcomes = dict[str, Any]


def settings(source: object, site: Path | None) -> Settings:
    """Give the settings to search a source."""
    return load_settings({}, flags={"source": str(source), "site": site})


def by_directory(sekmet: Sekmet, output: Path, site: Path | None) -> Statement:
    """Search files of what the server can give: none that is broken, none of a type it lacks."""
    folder = output.parent / "in"
    folder.mkdir()
    for file in sorted(FIXTURES.glob("*.json")):
        bundle = json.loads(transaction_of(file)) | {"type": "collection"}
        bundle["entry"] = [
            {name: entry[name] for name in ("fullUrl", "resource") if name in entry}
            for entry in bundle["entry"]
            if entry["resource"]["resourceType"] != LACKING
        ]
        (folder / file.name).write_text(json.dumps(bundle), encoding="utf-8")
    return screen(settings(folder, site), Request((TRIAL,), DAY, output))


def by_export(level: str) -> Callable[[Sekmet, Path, Path | None], Statement]:
    """Search the server by an export."""

    def search(sekmet: Sekmet, output: Path, site: Path | None) -> Statement:
        with patch("service.wiring.bulk_limits_of", lambda _: QUICK):
            return screen(settings(sekmet.base, site), Request((TRIAL,), DAY, output, bulk=level))

    return search


def by_search(sekmet: Sekmet, output: Path, site: Path | None) -> Statement:
    """Search the server for the patients by code."""
    return screen(settings(sekmet.base, site), Request((TRIAL,), DAY, output))


def by_cohort_file(sekmet: Sekmet, output: Path, site: Path | None) -> Statement:
    """Search the server for all patients, whom a file names."""
    names = output.parent / "names.txt"
    source = ServerSource(sekmet.base)
    names.write_text("\n".join(source.patient_ids()), encoding="utf-8")
    source.close()
    return screen(settings(sekmet.base, site), Request((TRIAL,), DAY, output, cohort=str(names)))


# Each way to search the same patients; further ones have a line here.
WAYS: dict[str, Callable[[Sekmet, Path, Path | None], Statement]] = {
    "directory": by_directory,
    "export of the system": by_export("system"),
    "export of patients": by_export("patient"),
    "search by code": by_search,
    "cohort file": by_cohort_file,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the site file of a hospital that keeps no records of what its server lacks."""
    file = tmp_path_factory.mktemp("site") / "site.yaml"
    file.write_text(NONE_KEPT, encoding="utf-8")
    return file


def one_by_one(sekmet: Sekmet, site: Path | None) -> dict[str, Outcomes]:
    """Evaluate each patient against the live server, as ``evaluate`` does."""
    chosen = settings(sekmet.base, site)
    screening = build_screening(chosen)
    source = build_source(chosen, screening.site)
    trial = screening.trial(TRIAL)
    diagnosis = diagnosis_of(trial)
    assert diagnosis is not None
    found: dict[str, Outcomes] = {}
    for key in source.patient_ids():
        verdict = screening.evaluate_patient(trial, source, key, DAY)
        if is_member(diagnosis.id, verdict):
            found[verdict.patient] = said(verdict_line(verdict))
    source.close()  # type: ignore[attr-defined] # a server's connections
    return found


@pytest.fixture(scope="module")
def live(sekmet: Sekmet, site: Path) -> dict[Path | None, dict[str, Outcomes]]:
    """Give what `evaluate` says of everybody, with and without the site file."""
    return {each: one_by_one(sekmet, each) for each in (None, site)}


def said(line: str | bytes) -> Outcomes:
    """Read what a verdict says of the patient: code, and outcome and reason by criterion."""
    verdict = json.loads(line)
    found: Outcomes = {"verdict": verdict["verdict"], "validUntil": verdict["validUntil"]}

    def walk(criteria: list[dict[str, Any]]) -> None:
        for one in criteria:
            found[one["id"]] = (one["outcome"], one["reason"])
            walk(one.get("parts", []))

    walk(verdict["criteria"])
    return found


@pytest.mark.parametrize("kept", [True, False], ids=["none kept", "not offered"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_search_gives_the_same_verdicts_and_reasons(
    sekmet: Sekmet,
    live: dict[Path | None, dict[str, Outcomes]],
    site: Path,
    tmp_path: Path,
    way: str,
    kept: bool,
) -> None:
    known = live[site if kept else None]
    statement = WAYS[way](sekmet, tmp_path / "out", site if kept else None)
    lines = (tmp_path / "out" / "verdicts.ndjson").read_bytes().splitlines()
    found = {json.loads(line)["patient"]: said(line) for line in lines}
    assert len(found) > 30
    assert found.keys() == known.keys()
    for patient, outcomes in known.items():
        different = {name for name in outcomes if found[patient][name] != outcomes[name]}
        if way == "directory" and not kept and different:
            assert outcomes["E7"] == ("unknown", "source-unavailable")
            different.remove("E7")
        assert different == set(), (patient, [(found[patient][n], outcomes[n]) for n in different])
    assert statement.evaluated == len(found)
    assert statement.failed == 0
    assert statement.problems == ()
    lacks = any(LACKING in note for note in statement.notes)
    assert lacks is (way != "directory" and not kept)
