"""Small records and small trials, written where they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from textwrap import dedent, indent
from typing import Any
from zoneinfo import ZoneInfo

from service.criteria.evaluate import evaluate
from service.criteria.model import Result, Verdict
from service.criteria.trial import Trial, load_trial
from service.facts.build import facts_of
from service.facts.model import PatientFacts
from service.fhir.record import CLINICAL_TYPES, Item, Pool, Reading
from service.fhir.source import from_pool
from service.site import Site
from service.terms import Terms
from tests.cases import ASSUMED, by_id, encode, terms_with, trial_with

AS_OF = date(2026, 11, 1)
LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
CVX = "http://hl7.org/fhir/sid/cvx"
UCUM = "http://unitsofmeasure.org"
CLINICAL_STATUS = "http://terminology.hl7.org/CodeSystem/condition-clinical"
VERIFICATION = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
REFUSED = Reading(complete=False, problem="refused (403)")
WOMAN = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1980-05-17"}
MAN = {**WOMAN, "gender": "male"}
SUBJECT = {"reference": "Patient/p1"}

Record = dict[str, Any]


def coded(system: str, code: str, text: str | None = None) -> Record:
    """Make a CodeableConcept."""
    return {"coding": [{"system": system, "code": code}], **({"text": text} if text else {})}


def quantity(value: str, unit: str | None, comparator: str | None = None) -> Record:
    """Make a Quantity whose number is written exactly as given."""
    found: Record = {"value": Exact(value)}
    if unit is not None:
        found |= {"unit": unit, "system": UCUM, "code": unit}
    return found | ({"comparator": comparator} if comparator else {})


class Exact(str):
    """A number to be written to JSON with these very digits."""

    __slots__ = ()


def result(
    name: str,
    code: str,
    value: Mapping[str, Any],
    when: str | None = "2026-10-20",
    **more: Any,
) -> Record:
    """Make a final Observation with a LOINC code."""
    dated = {"effectiveDateTime": when} if when is not None else {}
    return {
        "resourceType": "Observation",
        "id": name,
        "status": "final",
        "subject": SUBJECT,
        "code": coded(LOINC, code),
        **dated,
        **value,
        **more,
    }


def measured(
    name: str,
    code: str,
    value: str,
    unit: str | None,
    when: str | None = "2026-10-20",
    *,
    comparator: str | None = None,
    **more: Any,
) -> Record:
    """Make a numeric result."""
    return result(name, code, {"valueQuantity": quantity(value, unit, comparator)}, when, **more)


def normal(
    high: str | None = None, unit: str | None = None, low: str | None = None, **more: Any
) -> Record:
    """Make a reference range."""
    found: Record = {}
    if low is not None:
        found["low"] = quantity(low, unit)
    if high is not None:
        found["high"] = quantity(high, unit)
    return found | more


def condition(
    name: str,
    code: Record,
    when: str | None = "2026-01-10",
    clinical: str | None = "active",
    verification: str | None = "confirmed",
    **more: Any,
) -> Record:
    """Make a Condition."""
    found: Record = {"resourceType": "Condition", "id": name, "subject": SUBJECT, "code": code}
    if when is not None:
        found["onsetDateTime"] = when
    if clinical is not None:
        found["clinicalStatus"] = coded(CLINICAL_STATUS, clinical)
    if verification is not None:
        found["verificationStatus"] = coded(VERIFICATION, verification)
    return found | more


def event(kind: str, name: str, code: Record, when: str | None = None, **more: Any) -> Record:
    """Make a completed Procedure, Immunization or MedicationAdministration."""
    field, dated = {
        "Procedure": ("code", "performedDateTime"),
        "Immunization": ("vaccineCode", "occurrenceDateTime"),
        "MedicationAdministration": ("medicationCodeableConcept", "effectiveDateTime"),
        "MedicationRequest": ("medicationCodeableConcept", "authoredOn"),
    }[kind]
    owner = "patient" if kind == "Immunization" else "subject"
    found = {
        "resourceType": kind,
        "id": name,
        "status": "completed",
        owner: SUBJECT,
        field: code,
    }
    return found | ({dated: when} if when is not None else {}) | more


def items_of(records: Iterable[Record | bytes], patient: Record = WOMAN) -> list[Item]:
    """Make a record of resources (as text: as it stands)."""
    return [
        Item(each if isinstance(each, bytes) else written(each)) for each in (patient, *records)
    ]


def written(resource: Record) -> bytes:
    """Write a resource as JSON, numbers digit by digit."""
    marks: dict[str, str] = {}

    def marked(node: Any) -> Any:
        if isinstance(node, Exact):
            mark = f"@@{len(marks)}@@"
            marks[f'"{mark}"'] = str(node)
            return mark
        if isinstance(node, Mapping):
            return {key: marked(value) for key, value in node.items()}
        return [marked(value) for value in node] if isinstance(node, list | tuple) else node

    text = encode(marked(resource)).decode()
    for mark, number in marks.items():
        text = text.replace(mark, number)
    return text.encode()


def facts(
    records: Iterable[Record | bytes],
    *,
    patient: Record = WOMAN,
    incomplete: Sequence[str] = (),
    readings: Mapping[str, Reading] | None = None,
    zone: str = "UTC",
    terms: Terms | None = None,
) -> PatientFacts:
    """Make the facts of a small record, complete but for the types named."""
    stated = dict.fromkeys(CLINICAL_TYPES, ASSUMED) | dict.fromkeys(incomplete, REFUSED)
    record = from_pool(
        Pool(items_of(records, patient)), "Patient/p1", stated | dict(readings or {})
    )
    return facts_of(record, terms or terms_with(), Site(zone=ZoneInfo(zone)))


def of_trial(
    criterion: str,
    records: Iterable[Record | bytes] = (),
    *,
    as_of: date = AS_OF,
    **how: Any,
) -> Result:
    """Evaluate one criterion of the shipped trial on a small record."""
    return by_id(evaluate(trial_with(), facts(records, **how), as_of))[criterion]


def said(found: Result) -> str:
    """Give outcome and reason, as case files write them."""
    return f"{found.outcome} {found.reason}"


HEAD = """\
id: TEST-1
version: 1.0.0
name: Test
title: A trial of a test
identifiers: [TEST-1]
index: [heart-failure]
criteria:
"""


def trial_file(folder: Path, criteria: str, head: str = HEAD) -> Path:
    """Write a trial file; ``criteria`` is the YAML of the list."""
    path = folder / "trial.yaml"
    path.write_text(head + indent(dedent(criteria).strip("\n"), "  ") + "\n", encoding="utf-8")
    return path


def of_rule(folder: Path, rule: str, terms: Terms | None = None) -> Trial:
    """Load a trial whose one criterion, X1, has this rule."""
    stated = indent(dedent(rule).strip("\n"), "    ")
    text = f"- id: X1\n  kind: inclusion\n  text: A rule.\n  rule:\n{stated}\n"
    return load_trial(trial_file(folder, text), terms or terms_with())


def evaluated(
    trial: Trial, records: Iterable[Record | bytes] = (), *, as_of: date = AS_OF, **how: Any
) -> Verdict:
    """Evaluate a small record for a trial."""
    return evaluate(trial, facts(records, **how), as_of)


def answer(
    trial: Trial, records: Iterable[Record | bytes] = (), *, as_of: date = AS_OF, **how: Any
) -> str:
    """Give outcome and reason of X1."""
    return said(by_id(evaluated(trial, records, as_of=as_of, **how))["X1"])
