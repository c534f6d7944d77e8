"""What says nothing new changes nothing: order, copies, units, references, irrelevant records.

Over all fixture patients the same record is told in another way; outcomes and reasons stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from hashlib import sha256
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from service.criteria.evaluate import evaluate
from service.facts.build import facts_of
from service.fhir.record import CLINICAL_TYPES, Item, Pool
from service.fhir.source import from_pool
from service.site import Site
from tests.cases import (
    ASSUMED,
    Case,
    PatientCase,
    by_id,
    criterion_cases,
    encode,
    patient_cases,
    terms_with,
    trial_with,
)
from tests.criteria.small import UCUM, Record

CASES = patient_cases()
EACH_PATIENT = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BASE = "https://fhir.hospital.example.org/r4"

Answers = dict[str, tuple[str, str]]
_DECODER = msgspec.json.Decoder(float_hook=Decimal)


def contents(case: PatientCase) -> list[tuple[Record, str | None]]:
    """The record's resources, numbers exact, each with its fullUrl."""
    return [(_DECODER.decode(item.raw), item.full_url) for item in case.items()]


def items(records: list[tuple[Record, str | None]]) -> list[Item]:
    """Write resources anew."""
    return [Item(encode(content), url) for content, url in records]


@cache
def key_of(name: str) -> str:
    """The patient whose record it is."""
    case = next(case for case in CASES if case.name == name)
    return next(iter(Pool(case.items()).patients))


def answers(case: PatientCase, told: list[Item]) -> Answers:
    """Outcome and reason of every criterion and part, and how long the verdict holds."""
    readings = dict.fromkeys(CLINICAL_TYPES, ASSUMED)
    record = from_pool(Pool(told), key_of(case.name), readings)
    verdict = evaluate(trial_with(), facts_of(record, terms_with(), Site()), case.as_of)
    found = {name: (str(r.outcome), str(r.reason)) for name, r in by_id(verdict).items()}
    return found | {"verdict": (verdict.code, verdict.valid_until or "")}


@cache
def as_told(name: str) -> Answers:
    """The answers to the record as it is."""
    case = next(case for case in CASES if case.name == name)
    return answers(case, case.items())


@EACH_PATIENT
def test_writing_a_record_anew_changes_nothing(case: PatientCase) -> None:
    """The ground of the tests below: reading and writing loses nothing."""
    assert answers(case, items(contents(case))) == as_told(case.name)


@EACH_PATIENT
def test_the_order_of_resources_changes_nothing(case: PatientCase) -> None:
    """Backwards, by their text, and in five orders that scatter them."""
    told = case.items()
    orders = [told[::-1], sorted(told, key=lambda item: bytes(item.raw))]
    for seed in range(5):
        orders.append(sorted(told, key=lambda item: sha256(bytes([seed]) + item.raw).digest()))
    for order in orders:
        assert answers(case, order) == as_told(case.name)


@EACH_PATIENT
def test_exact_duplicates_change_nothing(case: PatientCase) -> None:
    """Each resource twice, side by side or at the end, written with other spaces too."""
    told = case.items()
    respaced = [
        Item(msgspec.json.format(bytes(item.raw), indent=3), item.full_url) for item in told
    ]
    for twice in (
        [*told, *told],
        [each for item in told for each in (item, item)],
        [*respaced, *told],
    ):
        assert answers(case, twice) == as_told(case.name)


def without_copies(case: PatientCase) -> bool:
    """Tell whether no two resources of a record are copies of each other."""
    names = [(content["resourceType"], content.get("id")) for content, _ in contents(case)]
    return len(set(names)) == len(names)


@pytest.mark.parametrize(
    "case", [case for case in patient_cases() if without_copies(case)], ids=lambda case: case.name
)
def test_an_older_version_of_a_resource_changes_nothing(case: PatientCase) -> None:
    """Of copies the newest version counts (1.8)."""
    records = contents(case)
    newer = [(content | {"meta": {"versionId": "7"}}, url) for content, url in records]
    older = [
        (content | {"meta": {"versionId": "6"}, "language": "de"} | outdated(content), url)
        for content, url in records
    ]
    assert answers(case, items([*older, *newer])) == as_told(case.name)
    assert answers(case, items([*newer, *older])) == as_told(case.name)


def outdated(content: Record) -> Record:
    """Give what an older version might have said otherwise."""
    if content["resourceType"] == "Observation":
        return {"valueQuantity": {"value": 1, "unit": "%"}}
    return {}


# --- irrelevant records


def unrelated(owner: str) -> list[Record]:
    """Records of the patient, and of others, that no criterion asks for."""
    subject = {"reference": f"Patient/{owner}"}
    other = {"reference": "Patient/somebody-else"}
    code = {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]}
    cold = {"coding": [{"system": "http://snomed.info/sct", "code": "82272006"}], "text": "cold"}
    return [
        {
            "resourceType": "Observation",
            "id": "zz-rate",
            "status": "final",
            "subject": subject,
            "code": code,
            "effectiveDateTime": "2026-10-31",
            "valueQuantity": {"value": 72, "unit": "/min"},
        },
        {
            "resourceType": "Observation",
            "id": "zz-draft",
            "status": "preliminary",
            "subject": subject,
            "effectiveDateTime": "2026-10-31",
            "valueQuantity": {"value": 99},
            "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
        },
        {
            "resourceType": "Condition",
            "id": "zz-cold",
            "subject": subject,
            "code": cold,
            "onsetDateTime": "2026-10-31",
        },
        {
            "resourceType": "Condition",
            "id": "zz-refuted",
            "subject": subject,
            "verificationStatus": {"coding": [{"code": "refuted"}]},
            "code": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.9"}]},
        },
        {
            "resourceType": "Procedure",
            "id": "zz-undone",
            "status": "not-done",
            "subject": subject,
            "performedDateTime": "2026-10-31",
            "code": {"coding": [{"system": "http://snomed.info/sct", "code": "58390007"}]},
        },
        {"resourceType": "Encounter", "id": "zz-visit", "status": "finished", "subject": subject},
        {
            "resourceType": "Patient",
            "id": "somebody-else",
            "gender": "male",
            "birthDate": "1950-01-01",
            "deceasedBoolean": True,
        },
        {
            "resourceType": "Condition",
            "id": "zz-theirs",
            "subject": other,
            "code": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.9"}]},
            "onsetDateTime": "2026-10-31",
        },
        {
            "resourceType": "Observation",
            "id": "zz-theirs",
            "status": "final",
            "subject": other,
            "effectiveDateTime": "2026-10-31",
            "valueQuantity": {"value": 99, "unit": "mg/dL"},
            "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
        },
        {"resourceType": "Basic", "id": "zz-basic"},
    ]


@EACH_PATIENT
def test_irrelevant_resources_change_nothing(case: PatientCase) -> None:
    """Other findings, drafts, refuted ones, other types, another patient's records."""
    owner = key_of(case.name).removeprefix("Patient/")
    added = [Item(encode(content)) for content in unrelated(owner)]
    assert answers(case, [*case.items(), *added]) == as_told(case.name)
    assert answers(case, [*added, *case.items()]) == as_told(case.name)


@EACH_PATIENT
def test_records_that_begin_after_the_day_change_nothing(case: PatientCase) -> None:
    """What is to come is not used (1.2), though it may shorten how long the verdict holds."""
    owner = {"reference": key_of(case.name)}
    code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.9"}]}
    later = {
        "resourceType": "Condition",
        "id": "zz-later",
        "subject": owner,
        "code": code,
        "onsetDateTime": "2036-11-02",
    }
    found = answers(case, [*case.items(), Item(encode(later))])
    before = as_told(case.name)
    assert {k: v for k, v in found.items() if k != "verdict"} == {
        k: v for k, v in before.items() if k != "verdict"
    }


# --- form of references


def relative(reference: str, _: dict[str, str]) -> str:
    """``Patient/1``."""
    return reference.removeprefix(f"{BASE}/")


def absolute(reference: str, _: dict[str, str]) -> str:
    """The URL on the same server, as in the entries' fullUrl."""
    return reference if "://" in reference or reference[:1] == "#" else f"{BASE}/{reference}"


def versioned(reference: str, _: dict[str, str]) -> str:
    """A version suffix, which is ignored."""
    return (
        reference
        if reference[:1] == "#" or "/_history/" in reference
        else (f"{reference}/_history/3")
    )


def by_uuid(reference: str, urls: dict[str, str]) -> str:
    """The fullUrl of an entry that is no address."""
    return urls.get(reference.removeprefix(f"{BASE}/"), reference)


def rewritten(node: Any, change: Callable[[str], str]) -> Any:
    """Change every reference in a resource."""
    if isinstance(node, dict):
        return {
            key: change(value)
            if key == "reference" and isinstance(value, str)
            else rewritten(value, change)
            for key, value in node.items()
        }
    return [rewritten(entry, change) for entry in node] if isinstance(node, list) else node


@EACH_PATIENT
@pytest.mark.parametrize("form", [relative, absolute, versioned, by_uuid])
def test_the_form_of_references_changes_nothing(
    case: PatientCase, form: Callable[[str, dict[str, str]], str]
) -> None:
    """Relative, absolute with fullUrl, with a version, by the fullUrl of the entry (1.8)."""
    records = contents(case)
    names = [f"{content['resourceType']}/{content.get('id')}" for content, _ in records]
    urls = {name: f"urn:uuid:{number:032x}" for number, name in enumerate(names)}
    # Whatever form the fixture uses, by way of type and id.
    known = {url: name for (_, url), name in zip(records, names, strict=True) if url}
    told = [
        (
            rewritten(content, lambda reference: form(known.get(reference, reference), urls)),
            urls[name] if form is by_uuid else f"{BASE}/{name}",
        )
        for (content, _), name in zip(records, names, strict=True)
    ]
    assert answers(case, items(told)) == as_told(case.name)


# --- equivalent units and codes

# Units of one dimension, with the exact factor that a number in the first is multiplied by.
FACTORS: dict[str, dict[str, str]] = {
    "mg/dL": {"mg/L": "10", "g/L": "0.01", "ug/mL": "10", "ug/dL": "1000"},
    "U/L": {"mU/mL": "1", "kU/L": "0.001", "[IU]/L": "1", "nmol/min/mL": "1"},
    "%": {"1": "0.01"},
}
SPELLINGS = {
    "mg/dL": ("mg/dl", "MG/DL"),
    "U/L": ("U/l", "IU/L", "u/L"),
    "%": ("percent",),
    "umol/L": ("umol/l", "\u00b5mol/L", "\u03bcmol/L"),
}
# 1 umol/L of creatinine is exactly 0.0113118 mg/dL, of bilirubin 0.058466 mg/dL.
MICROMOLES = {"2160-0": Decimal("0.0113118"), "1975-2": Decimal("0.058466")}


def quantities(content: Record) -> list[tuple[Record, Record]]:
    """List the Quantities of a result and of its ranges, with the part they are of."""
    parts = [content, *content.get("component", ())]
    found: list[tuple[Record, Record]] = []
    for part in parts:
        candidates = [part.get("valueQuantity"), *(part.get("valueRange") or {}).values()]
        for entry in part.get("referenceRange", ()):
            candidates += [entry.get("low"), entry.get("high")]
        found += [(part, each) for each in candidates if isinstance(each, dict)]
    return found


def unit_of(quantity: Record) -> str | None:
    """The UCUM code, if it has one."""
    return quantity.get("code") if quantity.get("system") == UCUM else None


def in_unit(quantity: Record, unit: str, factor: str) -> None:
    """Write a Quantity in another unit, exactly."""
    if "value" in quantity:
        quantity["value"] = Decimal(str(quantity["value"])) * Decimal(factor)
    quantity.update(unit=unit, code=unit)


@EACH_PATIENT
def test_equivalent_units_change_nothing(case: PatientCase) -> None:
    """Values and ranges alike in another unit of their dimension, or only the values."""
    terms = terms_with()
    for values_only in (False, True):
        for choice in range(4):
            records = copy.deepcopy(contents(case))
            changed = 0
            for content, _ in records:
                if content["resourceType"] != "Observation":
                    continue
                for part, quantity in quantities(content):
                    units = list(FACTORS.get(unit_of(quantity) or "", {}).items())
                    value = part.get("valueQuantity")
                    if not units or (values_only and quantity is not value):
                        continue
                    unit, factor = units[choice % len(units)]
                    # A fraction below 1 % would be taken for a misread percentage, and so would
                    # a percentage that was meant as a fraction (I7.lvef).
                    if terms.unit(unit) is None or (unit == "1" and meant_otherwise(part)):
                        continue
                    in_unit(quantity, unit, factor)
                    changed += 1
            found = answers(case, items(records))
            assert found == as_told(case.name), (values_only, choice, changed)


def meant_otherwise(part: Record) -> bool:
    """Tell whether a percentage is one that can't be read."""
    value = part.get("valueQuantity", {}).get("value", 0)
    return not 1 <= Decimal(str(value)) <= 100


@EACH_PATIENT
def test_the_spelling_of_a_unit_changes_nothing(case: PatientCase) -> None:
    """Without a code the unit's text is read by a table of common spellings."""
    for choice in range(3):
        records = copy.deepcopy(contents(case))
        for content, _ in records:
            if content["resourceType"] != "Observation":
                continue
            for _part, quantity in quantities(content):
                spellings = SPELLINGS.get(unit_of(quantity) or "", ())
                if spellings:
                    quantity["unit"] = spellings[choice % len(spellings)]
                    del quantity["code"], quantity["system"]
        assert answers(case, items(records)) == as_told(case.name)


@EACH_PATIENT
def test_mass_and_substance_concentrations_give_equal_answers(case: PatientCase) -> None:
    """Creatinine and bilirubin told in umol/L, and the same exactly in mg/dL."""
    molar, mass = copy.deepcopy(contents(case)), copy.deepcopy(contents(case))
    for (in_moles, _), (in_grams, _) in zip(molar, mass, strict=True):
        code = in_moles.get("code")
        codings = code.get("coding", ()) if isinstance(code, dict) else ()
        codes = {coding.get("code") for coding in codings}
        factor = next((MICROMOLES[code] for code in codes if code in MICROMOLES), None)
        if factor is None:
            continue
        for (_, first), (_, second) in zip(quantities(in_moles), quantities(in_grams), strict=True):
            if unit_of(first) != "mg/dL" or "value" not in first:
                continue
            micromoles = round(Decimal(str(first["value"])) / factor)
            first.update(value=micromoles, unit="umol/L", code="umol/L")
            second["value"] = micromoles * factor
    # One in either unit, and the ranges in the other.
    crossed = copy.deepcopy(molar)
    for (content, _), (other, _) in zip(crossed, mass, strict=True):
        if "referenceRange" in content:
            content["referenceRange"] = other["referenceRange"]
    expected = answers(case, items(mass))
    assert answers(case, items(molar)) == expected
    assert answers(case, items(crossed)) == expected


OIDS = {
    "http://snomed.info/sct": "urn:oid:2.16.840.1.113883.6.96",
    "http://loinc.org": "urn:oid:2.16.840.1.113883.6.1",
    "http://hl7.org/fhir/sid/icd-10-cm": "urn:oid:2.16.840.1.113883.6.90",
}


@EACH_PATIENT
def test_the_name_of_a_code_system_changes_nothing(case: PatientCase) -> None:
    """A system's URI and its OID are the same; ICD codes without dots and in lower case too."""

    def renamed(node: Any) -> Any:
        if isinstance(node, list):
            return [renamed(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        told = {key: renamed(value) for key, value in node.items()}
        system = told.get("system")
        if "icd-10" in str(system) and isinstance(told.get("code"), str):
            told["code"] = told["code"].replace(".", "").lower()
        if system in OIDS:
            told["system"] = OIDS[system]
        return told

    records = [(renamed(content), url) for content, url in contents(case)]
    assert answers(case, items(records)) == as_told(case.name)


@EACH_PATIENT
def test_categories_and_narratives_change_nothing(case: PatientCase) -> None:
    """The category of an Observation plays no part (1.3), nor do text, notes and identifiers."""
    records = [
        (
            {
                **content,
                "text": {"status": "generated", "div": "<div>leukaemia</div>"},
                **(
                    {"category": [{"text": "vital-signs"}], "note": [{"text": "see stroke"}]}
                    if content["resourceType"] == "Observation"
                    else {}
                ),
            },
            url,
        )
        for content, url in contents(case)
    ]
    assert answers(case, items(records)) == as_told(case.name)


# --- the criteria's own cases

SMALL = criterion_cases()


def of_case(case: Case, told: list[Item]) -> Answers:
    """Outcome and reason of every criterion for a criterion's case, told in another way."""
    record = from_pool(Pool(told), "Patient/p1", case.readings())
    site = Site(zone=ZoneInfo(str(case.get("time_zone", "UTC"))))
    facts = facts_of(record, terms_with(case.local), site)
    verdict = evaluate(trial_with(case.local), facts, case.as_of)
    return {name: (str(r.outcome), str(r.reason)) for name, r in by_id(verdict).items()}


@pytest.mark.parametrize(
    "case", [case for case in SMALL if len(case.items()) > 2], ids=lambda case: case.name
)
def test_order_and_duplicates_change_nothing_in_the_criterions_own_cases(case: Case) -> None:
    """Small records of the rarest paths, backwards and twice."""
    told = case.items()
    expected = of_case(case, told)
    assert of_case(case, told[::-1]) == expected
    assert of_case(case, [*told, *told]) == expected
