"""The records that are measured with: the shipped patients, multiplied."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "patients"
DAY = "2026-11-01"
# Results of a usual admission that no criterion asks for: most of a real record is such.
_OTHER_RESULTS = (
    ("718-7", "Hemoglobin [Mass/volume] in Blood", "9.1", "g/dL"),
    ("6690-2", "Leukocytes [#/volume] in Blood by Automated count", "3.4", "10*3/uL"),
    ("777-3", "Platelets [#/volume] in Blood by Automated count", "41", "10*3/uL"),
    ("2823-3", "Potassium [Moles/volume] in Serum or Plasma", "4.1", "mmol/L"),
    ("2951-2", "Sodium [Moles/volume] in Serum or Plasma", "139", "mmol/L"),
    ("8480-6", "Systolic blood pressure", "118", "mm[Hg]"),
)


def bundles() -> list[dict[str, Any]]:
    """Read the shipped patients that fhir.resources can read too."""
    paths = sorted(FIXTURES.glob("*.json"))
    return [json.loads(path.read_text("utf-8")) for path in paths if "broken" not in path.stem]


def with_observations(count: int) -> dict[str, Any]:
    """Give the baseline candidate's record, filled up to so many Observations."""
    record: dict[str, Any] = json.loads((FIXTURES / "baseline-candidate.json").read_text("utf-8"))
    entries = record["entry"]
    have = sum(entry["resource"]["resourceType"] == "Observation" for entry in entries)
    patient = entries[0]["resource"]["id"]
    entries.extend(_other_result(patient, number) for number in range(count - have))
    return record


def _other_result(patient: str, number: int) -> dict[str, Any]:
    code, display, value, unit = _OTHER_RESULTS[number % len(_OTHER_RESULTS)]
    day = f"2026-{1 + number % 10:02}-{1 + number % 28:02}T07:{number % 60:02}:00Z"
    resource = {
        "resourceType": "Observation",
        "id": f"other-{number}",
        "status": "final",
        "category": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                        "code": "laboratory",
                    }
                ]
            }
        ],
        "code": {"coding": [{"system": "http://loinc.org", "code": code, "display": display}]},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": day,
        "valueQuantity": {
            "value": float(value),
            "unit": unit,
            "system": "http://unitsofmeasure.org",
            "code": unit,
        },
    }
    base = "https://fhir.hospital.example.org/r4"
    return {"fullUrl": f"{base}/Observation/other-{number}", "resource": resource}


def request_body(bundle: dict[str, Any]) -> bytes:
    """Give the body of a request that hands a record in."""
    return json.dumps(
        {
            "resourceType": "Parameters",
            "parameter": [
                {"name": "asOf", "valueDate": DAY},
                {"name": "data", "resource": bundle},
            ],
        }
    ).encode()


def copies(count: int) -> Iterator[dict[str, Any]]:
    """Give so many patients' Bundles: the shipped ones again and again under other ids."""
    shipped = bundles()
    texts = [json.dumps(bundle) for bundle in shipped]
    for number in range(count):
        index = number % len(shipped)
        names = {entry["resource"].get("id", "") for entry in shipped[index]["entry"]} - {""}
        text = texts[index]
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(f'"{name}"', f'"{name}-{number}"')
            text = text.replace(f'/{name}"', f'/{name}-{number}"')
        yield json.loads(text)


def write_export(folder: Path, patients: int) -> int:
    """Write a Bulk Data export, a file per type; give its size in bytes."""
    files: dict[str, Any] = {}
    try:
        for bundle in copies(patients):
            for entry in bundle["entry"]:
                kind = entry["resource"]["resourceType"]
                if kind not in files:
                    files[kind] = (folder / f"{kind}.ndjson").open("w", encoding="utf-8")
                json.dump(entry["resource"], files[kind], separators=(",", ":"))
                files[kind].write("\n")
    finally:
        for file in files.values():
            file.close()
    return sum(path.stat().st_size for path in folder.iterdir())
