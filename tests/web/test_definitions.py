"""Studies, criteria, code sets and the service's own description over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.results.shapes import check_r4b
from tests.web.asking import TRIAL, app_of, refusal, searching_app

APP = app_of(base_url="https://public.example/fhir")


def get(path: str) -> dict[str, Any]:
    reply = APP.test_client().get(path)
    assert reply.status_code == 200
    found: dict[str, Any] = json.loads(reply.data)
    check_r4b(found)
    return found


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (TRIAL, "ResearchStudy"),
        ("/fhir/Group/NCT06056752", "Group"),
        ("/fhir/PlanDefinition/NCT06056752", "PlanDefinition"),
        ("/fhir/ValueSet/marrow-blasts", "ValueSet"),
        ("/fhir/OperationDefinition/evaluate-eligibility", "OperationDefinition"),
        ("/fhir/metadata", "CapabilityStatement"),
    ],
)
def test_each_can_be_read(path: str, kind: str) -> None:
    assert get(path)["resourceType"] == kind


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("ResearchStudy", 1),
        ("ResearchStudy?_id=NCT06056752", 1),
        ("ResearchStudy?_id=x", 0),
        ("ResearchStudy?identifier=https://clinicaltrials.gov|NCT06056752", 1),
        ("ResearchStudy?identifier=x", 0),
        ("ValueSet?url=https://eligibility.example.org/fhir/ValueSet/ecog", 1),
        ("OperationDefinition", 1),
    ],
)
def test_each_can_be_searched(query: str, total: int) -> None:
    found = get(f"/fhir/{query}")
    assert found["type"] == "searchset"
    assert found["total"] == total == len(found.get("entry", ()))
    assert found["link"][0]["url"].startswith("https://public.example/fhir/")


def test_all_code_sets_are_listed_without_their_codes() -> None:
    entries = get("/fhir/ValueSet")["entry"]
    assert len(entries) > 50
    assert not any("compose" in entry["resource"] for entry in entries)


@pytest.mark.parametrize(
    "path", ["/fhir/ResearchStudy/x", "/fhir/ValueSet/x", "/fhir/Patient/1", "/x"]
)
def test_what_is_not_there_is_not_found(path: str) -> None:
    reply = APP.test_client().get(path)
    assert reply.status_code == 404
    assert refusal(reply)["code"] == "not-found"


def test_the_verdicts_canonical_urls_lead_to_what_is_served() -> None:
    plan = get("/fhir/PlanDefinition/NCT06056752")
    assert plan["url"] == "https://eligibility.example.org/fhir/PlanDefinition/NCT06056752"
    definition = get("/fhir/OperationDefinition/evaluate-eligibility")
    statement = get("/fhir/metadata")["rest"][0]["resource"]
    (study,) = (one for one in statement if one["type"] == "ResearchStudy")
    assert study["operation"][0]["definition"] == definition["url"]


def test_the_openapi_document_names_every_route(tmp_path: Path) -> None:
    app = searching_app(tmp_path)
    document = app.test_client().get("/openapi.json").get_json()
    served = {rule.rule for rule in app.url_map.iter_rules() if "any(" not in rule.rule}
    paths = set(document["paths"])
    names = {
        "<trial_id>": "{trial}",
        "<name>": "{id}",
        "<run>": "{run}",
        "<key>": "{job}",
    }
    for given, written in names.items():
        served = {rule.replace(given, written) for rule in served}
    assert served <= paths
    assert "/fhir/ValueSet/{id}" in paths
