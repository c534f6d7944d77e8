"""Small exports to search: patients with and without the disease, in files of any shape."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from service.config import Settings, load_settings
from service.errors import EligibilityError
from service.fhir.files import FileSource
from service.nightly.model import Statement
from service.nightly.population import diagnosis_of, is_member
from service.nightly.screen import Request, screen
from service.results.json import verdict_line
from service.screening import Screening
from service.wiring import build_screening

TRIAL = "NCT06056752"
DAY = date(2026, 11, 1)
ALL_CODE = (
    "http://hl7.org/fhir/sid/icd-10-cm",
    "C91.02",
    "Acute lymphoblastic leukemia, in relapse",
)
OTHER_CODE = ("http://hl7.org/fhir/sid/icd-10-cm", "I10", "Essential hypertension")
PATIENTS = Path(__file__).resolve().parents[2] / "fixtures" / "patients"
Json = dict[str, Any]


@cache
def screening() -> Screening:
    """Load trials and terms once."""
    return build_screening(load_settings(flags={}))


def patient(key: str, /, **more: Any) -> Json:
    """Give a Patient."""
    return {
        "resourceType": "Patient",
        "id": key,
        "gender": "female",
        "birthDate": "1990-05-01",
    } | more


def condition(key: str, subject: str, code: Sequence[str] = ALL_CODE, /, **more: Any) -> Json:
    """Give a confirmed, active Condition."""
    system, value, display = code
    return {
        "resourceType": "Condition",
        "id": key,
        "clinicalStatus": _coded("condition-clinical", "active"),
        "verificationStatus": _coded("condition-ver-status", "confirmed"),
        "code": {"coding": [{"system": system, "code": value, "display": display}]},
        "subject": {"reference": subject},
        "onsetDateTime": "2025-03-01",
    } | more


def observation(key: str, subject: str, value: float = 0.8, /, **more: Any) -> Json:
    """Give a creatinine."""
    unit = {"unit": "mg/dL", "system": "http://unitsofmeasure.org", "code": "mg/dL"}
    return {
        "resourceType": "Observation",
        "id": key,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
        "subject": {"reference": subject},
        "effectiveDateTime": "2026-10-20",
        "valueQuantity": {"value": value, **unit},
        "referenceRange": [{"high": {"value": 1.2, **unit}}],
    } | more


def _coded(system: str, code: str) -> Json:
    base = "http://terminology.hl7.org/CodeSystem/"
    return {"coding": [{"system": base + system, "code": code}]}


def hospital(sick: int, well: int) -> Iterator[Json]:
    """Give patients with the disease and without, in no order that tells which is which."""
    for number in range(sick + well):
        ill = number * sick % (sick + well) < sick
        key = f"p-{number:05}"
        subject = f"Patient/{key}"
        yield patient(key)
        yield condition(f"c-{key}", subject, ALL_CODE if ill else OTHER_CODE)
        yield observation(f"o-{key}", subject, 0.5 + number % 20 / 10)


def lines_of(resources: Iterable[Json]) -> list[bytes]:
    """Write resources as lines of NDJSON."""
    return [json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in resources]


def write_types(folder: Path, resources: Iterable[Json], *, packed: bool = False) -> Path:
    """Write an export, a file per type."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[bytes]] = {}
    for each in resources:
        files.setdefault(each["resourceType"], []).extend(lines_of([each]))
    for kind, lines in files.items():
        raw = b"".join(lines)
        name = f"{kind}.ndjson"
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return folder


def shipped() -> Iterator[Json]:
    """Give the resources of the shipped patients."""
    for path in sorted(PATIENTS.glob("*.json")):
        for entry in json.loads(path.read_text("utf-8"))["entry"]:
            yield entry["resource"]


def settings_for(source: Path) -> Settings:
    """Give the settings to search a directory."""
    return load_settings({}, flags={"source": str(source)})


def search(source: Path, output: Path, **more: Any) -> Statement:
    """Search a directory, without loading trials and terms each time."""
    with patch("service.nightly.screen.build_screening", lambda _: screening()):
        return screen(settings_for(source), Request((TRIAL,), DAY, output, **more))


def verdicts(output: Path) -> list[str]:
    """Read the verdicts' lines."""
    return (output / "verdicts.ndjson").read_text("utf-8").splitlines()


def patients_of(output: Path) -> list[str]:
    """Read whom there are verdicts on."""
    return [json.loads(line)["patient"] for line in verdicts(output)]


def one_by_one(source: Path) -> list[str]:
    """Evaluate every patient apart, and give the lines of those in the population."""
    files = FileSource(source)
    trial = screening().trial(TRIAL)
    diagnosis = diagnosis_of(trial)
    assert diagnosis is not None
    found: dict[str, str] = {}
    for key in files.patient_ids():
        try:
            verdict = screening().evaluate_patient(trial, files, key, DAY)
        except EligibilityError:
            continue
        if is_member(diagnosis.id, verdict):
            found[verdict.patient] = verdict_line(verdict)
    return [found[key] for key in sorted(found)]


def rejects(output: Path) -> list[Mapping[str, Any]]:
    """Read the rejected input."""
    return [json.loads(line) for line in (output / "rejects.ndjson").read_text().splitlines()]


def numbered(output: bytes) -> bytes:
    """Number the ids of ResearchSubjects as they come: they are each store's own."""
    ids: dict[bytes, bytes] = {}
    return re.sub(
        rb"[0-9a-f]{32}", lambda match: ids.setdefault(match[0], str(len(ids)).encode()), output
    )
