"""How tests ask the service: a source of a few patients, and the operation's requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from service.config import Settings
from service.errors import UnknownPatient
from service.fhir.record import Item, Reading
from service.fhir.source import Fetched, Wanted
from service.web import create_app
from tests.results.shapes import check_r4b, screening

TRIAL = "/fhir/ResearchStudy/NCT06056752"
OPERATION = f"{TRIAL}/$evaluate-eligibility"
FHIR = "application/fhir+json"
BASE = "https://ehr.example/r4"
PATIENT = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1980-05-17"}


def condition(code: str, name: str = "c1", whose: str = "Patient/p1") -> Any:
    status = "http://terminology.hl7.org/CodeSystem/condition-clinical"
    return {
        "resourceType": "Condition",
        "id": name,
        "subject": {"reference": whose},
        "clinicalStatus": {"coding": [{"system": status, "code": "active"}]},
        "code": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": code}]},
        "onsetDateTime": "2026-01-10",
    }


LEUKAEMIA = condition("C91.00")


class Hospital:
    """A source of given records whose types may be incomplete; it can be made to fail."""

    base_url = BASE

    def __init__(self, *resources: Any, incomplete: tuple[str, ...] = ()) -> None:
        self._items = tuple(Item(json.dumps(resource).encode()) for resource in resources)
        self._ids = [one["id"] for one in resources if one["resourceType"] == "Patient"]
        self._incomplete = incomplete
        self.instead: Callable[[], None] | None = None
        self.asked: list[str] = []

    def fetch(self, patient_id: str, wanted: Wanted) -> Fetched:
        self.asked.append(patient_id)
        if self.instead is not None:
            self.instead()
        if patient_id not in self._ids:
            raise UnknownPatient("the source has no such patient")
        readings = {
            kind: Reading(complete=kind not in self._incomplete, problem="refused")
            for kind in wanted.codes
        }
        return Fetched(f"Patient/{patient_id}", self._items, readings, base_url=BASE)

    def patient_ids(self) -> Iterator[str]:
        return iter(self._ids)

    def check(self) -> None:
        if self.instead is not None:
            self.instead()

    def describe(self) -> str:
        return "a hospital made for tests"


def app_of(source: Hospital | None = None, **settings: Any) -> Flask:
    settings = {"rate_per_minute": 0} | settings
    return create_app(Settings(**settings), screening(), source or Hospital(PATIENT, LEUKAEMIA))


def searching_app(folder: Path) -> Flask:
    """Make an application that takes up searches, with its store in a folder."""
    settings = Settings(source=BASE, store=str(folder / "store.db"), rate_per_minute=0)
    return create_app(settings, screening(), Hospital(PATIENT, LEUKAEMIA))


def parameters(*given: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": list(given)}


def subject(reference: str = "Patient/p1") -> dict[str, Any]:
    return {"name": "subject", "valueReference": {"reference": reference}}


def as_of(day: str = "2026-11-01") -> dict[str, Any]:
    return {"name": "asOf", "valueDate": day}


def data(*resources: Any, kind: str = "collection", **more: Any) -> dict[str, Any]:
    entries = [{"resource": resource} for resource in resources]
    bundle = {"resourceType": "Bundle", "type": kind, "entry": entries, **more}
    return {"name": "data", "resource": bundle}


def use_server(flag: bool = True) -> dict[str, Any]:
    return {"name": "useServerData", "valueBoolean": flag}


def complete(*types: str) -> list[dict[str, Any]]:
    return [{"name": "completeTypes", "valueCode": name} for name in types]


def post(app: Flask, body: Any, **options: Any) -> TestResponse:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    options = {"content_type": FHIR} | options
    return app.test_client().post(options.pop("path", OPERATION), data=raw, **options)


def ask(app: Flask, *given: dict[str, Any]) -> dict[str, Any]:
    """Ask for a verdict and give the answer, checked to be valid."""
    reply = post(app, parameters(*given))
    assert reply.status_code == 200, reply.get_data(as_text=True)
    answer: dict[str, Any] = json.loads(reply.data)
    check_r4b(answer)
    return answer


def refusal(reply: TestResponse) -> dict[str, Any]:
    """Give the first issue of a refusal, checked to be a valid OperationOutcome."""
    assert reply.content_type.startswith(FHIR), reply.content_type
    outcome = json.loads(reply.data)
    assert outcome["resourceType"] == "OperationOutcome"
    check_r4b(outcome)
    issue: dict[str, Any] = outcome["issue"][0]
    return issue


def outcomes(answer: dict[str, Any]) -> dict[str, str]:
    """Give outcome and reason by criterion and part, and the verdict."""
    found = {}
    for contained in answer["contained"]:
        for parameter in contained.get("parameter", ()):
            parts = {part["name"]: part for part in parameter.get("part", ())}
            if parameter["name"] == "criterion":
                reason = parts["reason"]["valueCode"]
                found[parts["id"]["valueString"]] = f"{parts['outcome']['valueCode']} {reason}"
            elif parameter["name"] == "verdict":
                found["verdict"] = parameter["valueCode"]
    return found
