"""Manifests of Bulk Data exports: what they say is missing (semantics 1.5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.fhir.files import FileSource
from service.fhir.source import Fetched, Wanted

BASE = "https://bulk.example/fhir"
ALL = "Patient,Observation,Condition"


def export(folder: Path, files: dict[str, list[Any]], **manifest: Any) -> Fetched:
    for name, resources in files.items():
        text = "".join(json.dumps(resource) + "\n" for resource in resources)
        (folder / name).write_text(text, encoding="utf-8")
    content = {"transactionTime": "2026-11-01T00:00:00Z", "output": [], "error": [], **manifest}
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return FileSource(folder).fetch("p1", Wanted({}))


PATIENTS = [{"resourceType": "Patient", "id": "p1"}]
RESULTS = [
    {"resourceType": "Observation", "id": name, "subject": {"reference": f"{BASE}/Patient/p1"}}
    for name in ("o1", "o2")
]
FILES = {"1.Patient.ndjson": PATIENTS, "2.Observation.ndjson": RESULTS}


def output(kind: str | None, name: str, count: int | None = None) -> Any:
    found: dict[str, Any] = {"url": f"https://files.example/{name}?sig=abc"}
    return found | ({"type": kind} if kind else {}) | ({} if count is None else {"count": count})


def incomplete(found: Fetched) -> set[str]:
    return {kind for kind, reading in found.readings.items() if not reading.complete}


def test_types_that_were_not_asked_for_are_incomplete(tmp_path: Path) -> None:
    found = export(tmp_path, FILES, request=f"{BASE}/$export?_type={ALL}")
    assert not {"Observation", "Condition"} & incomplete(found)
    assert found.readings["Procedure"].problem == "not in the export's _type (manifest.json)"


def test_without_type_all_are_complete(tmp_path: Path) -> None:
    assert incomplete(export(tmp_path, FILES, request=f"{BASE}/Group/7/$export")) == set()


def test_the_request_shows_the_server_whose_urls_are_its_own(tmp_path: Path) -> None:
    found = export(tmp_path, FILES, request=f"{BASE}/Patient/$export")
    assert found.base_url == BASE
    assert len(found.items) == 3


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({"output": [output("Condition", "Condition.ndjson", 3)]}, {"Condition"}),
        ({"output": [output("Observation", "Observation.ndjson", 3)]}, {"Observation"}),
        ({"output": [output("Observation", "2.Observation.ndjson", 2)]}, set()),
        ({"output": [output("Observation", "renamed.ndjson", 2)]}, set()),
        (
            {"output": [output("Observation", "a.ndjson"), output("Observation", "b.ndjson")]},
            {"Observation"},
        ),
        ({"output": [output("Condition", "Condition.ndjson", 0)]}, set()),
        ({"output": [output("Encounter", "Encounter.ndjson", 9)]}, set()),
        ({"request": f"{BASE}/$export?_typeFilter=Condition%3Fcode=x"}, {"Condition"}),
    ],
    ids=[
        "missing file",
        "too few",
        "exact",
        "renamed",
        "one of two",
        "empty",
        "not read",
        "filtered",
    ],
)
def test_what_the_manifest_names_must_be_there(
    tmp_path: Path, manifest: dict[str, Any], expected: set[str]
) -> None:
    assert incomplete(export(tmp_path, FILES, **manifest)) == expected


@pytest.mark.parametrize(
    "manifest",
    [
        {"request": f"{BASE}/$export?_since=2026-01-01T00:00:00Z"},
        {"request": f"{BASE}/$export?_elements=id"},
        {"link": [{"relation": "next", "url": "https://files.example/manifest2"}]},
        {"error": [output("OperationOutcome", "errors.ndjson", 2)]},
        {"outcome": [output("OperationOutcome", "errors.ndjson")]},
        {"output": [output(None, "lost1"), output(None, "lost2"), output(None, "lost3")]},
    ],
    ids=["since", "elements", "partial", "errors", "outcomes", "files without type"],
)
def test_what_may_concern_any_type_leaves_all_incomplete(
    tmp_path: Path, manifest: dict[str, Any]
) -> None:
    found = export(tmp_path, FILES, **manifest)
    assert incomplete(found) == set(found.readings)


@pytest.mark.parametrize(("severity", "complete"), [("information", True), ("error", False)])
def test_an_error_file_that_is_here_is_judged_by_what_it_says(
    tmp_path: Path, severity: str, complete: bool
) -> None:
    said = {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "x"}]}
    found = export(
        tmp_path,
        FILES | {"errors.ndjson": [said]},
        error=[output("OperationOutcome", "errors.ndjson")],
    )
    assert (incomplete(found) == set()) is complete
