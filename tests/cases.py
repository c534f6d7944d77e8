"""Reads the case files of ``fixtures/cases`` and runs their patients through the core.

A case is a small record and the outcome the semantics demand; see fixtures/README.md.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from service.criteria.evaluate import evaluate, valid_until_of
from service.criteria.model import Result, Verdict, walk
from service.criteria.trial import Trial, load_trial
from service.facts.build import facts_of
from service.facts.model import PatientFacts
from service.fhir.record import CLINICAL_TYPES, Item, Pool, Reading
from service.fhir.source import from_pool
from service.site import Site
from service.terms import LocalCode, Terms, load_terms
from service.yamlfile import load_yaml

ROOT = Path(__file__).parent.parent
CASES = ROOT / "fixtures" / "cases"
ASSUMED = Reading(assumed=True)


@lru_cache(maxsize=16)
def terms_with(local: tuple[LocalCode, ...] = ()) -> Terms:
    """Load the shipped code sets, with a site's local codes."""
    return load_terms(ROOT / "mappings", local_codes=local)


@lru_cache(maxsize=16)
def trial_with(local: tuple[LocalCode, ...] = ()) -> Trial:
    """Load the shipped trial."""
    return load_trial(ROOT / "mappings" / "trials" / "NCT06056752.yaml", terms_with(local))


def load(path: Path) -> dict[str, Any]:
    """Read a YAML file with exact decimals; duplicate keys are an error."""
    content = _plain(load_yaml(path).content)
    assert isinstance(content, dict)
    return content


def _plain(value: Any) -> Any:
    """Leave out the lines, which copies would carry along."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def merged(base: Any, over: Any) -> Any:
    """Lay one mapping over another; ``null`` removes a key, all else replaces."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    result = copy.deepcopy(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif key in result and key not in _WHOLE:
            result[key] = merged(result[key], value)
        else:
            result[key] = merged({}, value) if isinstance(value, dict) else value
    return result


@dataclass(frozen=True)
class Case:
    """One case of a criterion's case file."""

    name: str
    content: dict[str, Any]
    templates: dict[str, Any]
    defaults: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """Give a key of the case, else of the file."""
        return self.content.get(key, self.defaults.get(key, default))

    @property
    def as_of(self) -> date:
        """The day of evaluation."""
        return date.fromisoformat(str(self.get("as_of", "2026-11-01")))

    @property
    def local(self) -> tuple[LocalCode, ...]:
        """The site's local codes."""
        stated = (self.get("site") or {}).get("local_codes", ())
        return tuple(
            LocalCode(
                str(entry["system"]),
                str(entry["code"]),
                (str(entry["standard"]["system"]), str(entry["standard"]["code"]))
                if "standard" in entry
                else None,
                entry.get("set"),
            )
            for entry in stated
        )

    def items(self) -> list[Item]:
        """The record as JSON resources, the patient first."""
        patient = {"resourceType": "Patient", "id": "p1", **(self.get("patient") or {})}
        urls = self.content.get("fullUrls") or {}
        found = [Item(encode(patient), self.content.get("patient_full_url"))]
        for stated in self.content.get("records") or ():
            record = dict(stated)
            like = record.pop("like", None)
            if like is not None:
                record = merged(self.templates[like], record)
            kind = record["resourceType"]
            field = _SUBJECTS.get(kind)
            if field and not any(name in record for name in ("subject", "patient", "individual")):
                record[field] = {"reference": "Patient/p1"}
            found.append(Item(encode(record), urls.get(f"{kind}/{record.get('id')}")))
        return found

    def readings(self) -> dict[str, Reading]:
        """Completely read by assumption, but for the types the case names."""
        readings = dict.fromkeys(CLINICAL_TYPES, ASSUMED)
        for kind in self.get("incomplete") or ():
            readings[kind] = Reading(complete=False, problem="refused (403)")
        return readings

    def facts(self) -> PatientFacts:
        """The record's facts."""
        record = from_pool(Pool(self.items()), "Patient/p1", self.readings())
        zone = ZoneInfo(str(self.get("time_zone", "UTC")))
        return facts_of(record, terms_with(self.local), Site(zone=zone))

    def evaluate(self) -> Verdict:
        """The verdict on the record."""
        return evaluate(trial_with(self.local), self.facts(), self.as_of)

    def valid_until(self) -> str | None:
        """How long the case's criterion keeps its outcome."""
        criterion = str(self.get("criterion"))
        return valid_until_of(trial_with(self.local), self.facts(), self.as_of, criterion)


_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=str)
# Codes are stated anew as a whole: a text in place of a code is no addition to it.
_WHOLE = ("code", "medicationCodeableConcept", "vaccineCode")
_SUBJECTS = {
    "Observation": "subject",
    "DiagnosticReport": "subject",
    "Condition": "subject",
    "Procedure": "subject",
    "MedicationRequest": "subject",
    "MedicationAdministration": "subject",
    "MedicationStatement": "subject",
    "MedicationDispense": "subject",
    "Immunization": "patient",
    "AllergyIntolerance": "patient",
    "Consent": "patient",
    "ResearchSubject": "individual",
    "AdverseEvent": "subject",
}


def encode(resource: dict[str, Any]) -> bytes:
    """Write a resource as JSON, decimals exactly as stated."""
    return _ENCODER.encode(resource)


def criterion_cases() -> list[Case]:
    """List all cases of all criteria's case files."""
    cases: list[Case] = []
    for path in sorted((CASES / "criteria").glob("*.yaml")):
        content = load(path)
        stated = content.pop("cases")
        templates = content.pop("templates", {}) or {}
        for entry in stated:
            cases.append(Case(f"{path.stem}: {entry['title']}", entry, templates, content))
    return cases


def by_id(verdict: Verdict) -> dict[str, Result]:
    """Index a verdict's results by criterion id."""
    return {result.id: result for result, _ in walk(verdict.criteria)}


@dataclass(frozen=True)
class PatientCase:
    """A fixture patient with the outcomes a physician expects of every criterion."""

    name: str
    content: dict[str, Any]
    expected: dict[str, str]

    @property
    def as_of(self) -> date:
        """The day of evaluation."""
        return date.fromisoformat(str(self.content["as_of"]))

    def items(self) -> list[Item]:
        """The resources of the patient's Bundle."""
        path = ROOT / "fixtures" / "patients" / f"{self.content['patient']}.json"
        bundle = msgspec.json.decode(path.read_bytes(), type=_Bundle)
        return [Item(bytes(entry.resource), entry.full_url) for entry in bundle.entry]

    def facts(self, readings: dict[str, Reading] | None = None) -> PatientFacts:
        """The patient's facts, everything read unless stated otherwise."""
        pool = Pool(self.items())
        stated = readings or dict.fromkeys(CLINICAL_TYPES, ASSUMED)
        record = from_pool(pool, next(iter(pool.patients)), stated)
        return facts_of(record, terms_with(), Site())

    def evaluate(self) -> Verdict:
        """The verdict on the patient."""
        return evaluate(trial_with(), self.facts(), self.as_of)


class _Entry(msgspec.Struct, rename="camel"):
    resource: msgspec.Raw
    full_url: str | None = None


class _Bundle(msgspec.Struct):
    entry: list[_Entry]


def patient_cases() -> list[PatientCase]:
    """List the fixture patients with their expectations, ``like`` resolved."""
    contents = {path.stem: load(path) for path in sorted(CASES.glob("*.yaml"))}

    def expected(name: str) -> dict[str, str]:
        content = contents[name]
        base = expected(content["like"]) if "like" in content else {}
        return base | (content.get("expect") or {})

    return [PatientCase(name, content, expected(name)) for name, content in contents.items()]
