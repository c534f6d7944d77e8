"""Exports of any size to search: seeded variation around the shipped patients.

Every patient has problems and results as a hospital's records have; 7 in 1,000 have acute
lymphoblastic leukaemia (a shipped patient's own record under another id, among as many other
results as an inpatient has). Observations are about 1.4 kB with their reference ranges, as
laboratory systems write them. The same seed and size give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tests.benchmarks.records import bundles

TYPES = ("Patient", "Condition", "Observation")
ILL_SHARE = 0.007
_RESULTS = (20, 140)
_RESULTS_ILL = (120, 480)
_PROBLEMS = (2, 9)
_FILE_LIMIT = 512 * 1000 * 1000
_HL7 = "http://terminology.hl7.org/CodeSystem/"
_UCUM = "http://unitsofmeasure.org"

# Code, name, short name, unit, low, high, digits: what is measured most often.
_TESTS = (
    ("2160-0", "Creatinine [Mass/volume] in Serum or Plasma", "CREA", "mg/dL", 0.6, 1.2, 2),
    ("1742-6", "Alanine aminotransferase [Enzymatic activity/volume]", "ALT", "U/L", 7, 45, 0),
    ("1920-8", "Aspartate aminotransferase [Enzymatic activity/volume]", "AST", "U/L", 8, 40, 0),
    ("1975-2", "Bilirubin.total [Mass/volume] in Serum or Plasma", "BILI", "mg/dL", 0.2, 1.2, 1),
    ("718-7", "Hemoglobin [Mass/volume] in Blood", "HGB", "g/dL", 12.0, 16.5, 1),
    ("6690-2", "Leukocytes [#/volume] in Blood by Automated count", "WBC", "10*3/uL", 4, 11, 1),
    ("777-3", "Platelets [#/volume] in Blood by Automated count", "PLT", "10*3/uL", 150, 400, 0),
    ("2823-3", "Potassium [Moles/volume] in Serum or Plasma", "K", "mmol/L", 3.5, 5.1, 1),
    ("2951-2", "Sodium [Moles/volume] in Serum or Plasma", "NA", "mmol/L", 136, 145, 0),
    ("2345-7", "Glucose [Mass/volume] in Serum or Plasma", "GLU", "mg/dL", 70, 110, 0),
    ("1988-5", "C reactive protein [Mass/volume] in Serum or Plasma", "CRP", "mg/L", 0, 5, 1),
    ("14804-9", "Lactate dehydrogenase [Enzymatic activity/volume]", "LDH", "U/L", 120, 250, 0),
)
_PROBLEM_CODES = (
    ("I10", "Essential (primary) hypertension", "59621000", "Essential hypertension"),
    ("E11.9", "Type 2 diabetes mellitus", "44054006", "Diabetes mellitus type 2"),
    ("J06.9", "Acute upper respiratory infection", "54150009", "Upper respiratory infection"),
    ("M54.5", "Low back pain", "279039007", "Low back pain"),
    ("K21.9", "Gastro-esophageal reflux disease", "235595009", "Gastroesophageal reflux"),
    ("E78.5", "Hyperlipidemia, unspecified", "55822004", "Hyperlipidemia"),
    ("F32.9", "Major depressive disorder", "370143000", "Major depressive disorder"),
    ("N39.0", "Urinary tract infection, site not specified", "68566005", "Urinary infection"),
    ("C50.919", "Malignant neoplasm of breast", "254837009", "Malignant tumor of breast"),
)
# A thousandth of all problems: of its patients too the whole record must be looked at.
_RARE_CODE = ("C92.01", "Acute myeloblastic leukemia, in remission", "91861009", "Myeloid leukemia")
_RARE = 0.001
_FAMILIES = ("Meier", "Okafor", "Nguyen", "García", "Kowalska", "Haddad", "Lindqvist", "Sato")
_GIVEN = ("Ada", "Bruno", "Chloé", "Dmitri", "Esra", "Femi", "Greta", "Hiro")
_CITIES = ("Northam", "Sankt Aurel", "Vila Nova", "Östby")

Fill = tuple[bytes, ...]


class Generated(NamedTuple):
    """What was written: patients, those with the disease among them, lines and bytes."""

    patients: int
    ill: int
    lines: int
    size: int


def generate(folder: Path, size: int, *, seed: int = 1, scattered: bool = False) -> Generated:
    """Write an export of about ``size`` bytes, files of one type each.

    ``scattered``: each patient's results are spread over all files, instead of one after
    the other. Raises OSError if it can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = _Generator(random.Random(seed))  # noqa: S311 - variation, nothing secret
    files = {kind: _File(folder, kind) for kind in TYPES}
    try:
        if scattered:
            work.scattered(files, size)
        else:
            work.grouped(files, size)
    finally:
        for file in files.values():
            file.close()
    lines = sum(file.lines for file in files.values())
    return Generated(work.patients, work.ill, lines, sum(file.size for file in files.values()))


class _File:
    """The files of one type, each ended when it is large enough."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.lines = self.size = 0
        self._number = 0
        self._held = 0
        self._file: BinaryIO | None = None

    def write(self, line: bytes) -> None:
        """Write a line with its end."""
        if self._file is None or self._held >= _FILE_LIMIT:
            self.close()
            self._number += 1
            name = f"{self.kind}.{self._number:03}.ndjson"
            self._file = (self.folder / name).open("wb", buffering=1 << 20)
            self._held = 0
        self._file.write(line)
        self._held += len(line)
        self.size += len(line)
        self.lines += 1

    def close(self) -> None:
        """End the file at work."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Generator:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.patients = self.ill = 0
        self._results = [_result(test) for test in _TESTS]
        self._values = [_values(test, chance) for test in _TESTS]
        self._problems = [_problem(codes) for codes in _PROBLEM_CODES]
        self._rare = _problem(_RARE_CODE)
        self._person = _person()
        self._diseased = list(_diseased())
        chance.shuffle(self._diseased)
        self._instants = [_instant(chance) for _ in range(2_000)]
        self._day = [instant[:10] for instant in self._instants]

    def grouped(self, files: dict[str, _File], size: int) -> None:
        written = 0
        while written < size:
            before = sum(file.size for file in files.values())
            subject, count = self._patient(files)
            for number in range(count):
                files["Observation"].write(self._line(subject, number))
            written += sum(file.size for file in files.values()) - before

    def scattered(self, files: dict[str, _File], size: int) -> None:
        # About as many patients as the other order has.
        mean = 1_400 * (sum(_RESULTS) / 2 + ILL_SHARE * sum(_RESULTS_ILL) / 2) + 8_000
        left: list[tuple[bytes, int]] = []
        for _ in range(max(1, int(size / mean))):
            left.append(self._patient(files))
        number = 0
        while left:
            self.chance.shuffle(left)
            for subject, _ in left:
                files["Observation"].write(self._line(subject, number))
            number += 1
            left = [each for each in left if each[1] > number]

    def _patient(self, files: dict[str, _File]) -> tuple[bytes, int]:
        """Write a patient with problems; gives the id, and how many results are to follow."""
        chance = self.chance
        number = self.patients
        self.patients += 1
        for problem in range(chance.randint(*_PROBLEMS)):
            subject = b"patient-%07d" % number
            day = chance.choice(self._day)
            line = self._rare if chance.random() < _RARE else chance.choice(self._problems)
            files["Condition"].write(
                line % (b"%s-c%d" % (subject, problem), subject, subject, day, day)
            )
        # The first has it, so that no export is without; the others by chance.
        if number % 1_000 and chance.random() >= ILL_SHARE:
            subject = b"patient-%07d" % number
            files["Patient"].write(self._written_person(subject))
            return subject, chance.randint(*_RESULTS)
        own = self._diseased[self.ill % len(self._diseased)]
        self.ill += 1
        key = b"%07d" % number
        for kind, lines in own.lines:
            files[kind].write(lines.replace(b"\0", key))
        subject = own.patient.replace(b"\0", key)
        return subject, chance.randint(*_RESULTS_ILL)

    def _written_person(self, subject: bytes) -> bytes:
        chance = self.chance
        born = b"%04d-%02d-%02d" % (
            chance.randint(1930, 2020),
            chance.randint(1, 12),
            chance.randint(1, 28),
        )
        return self._person % (
            subject,
            b"%08d" % chance.randrange(10**8),
            chance.choice(_FAMILIES).encode(),
            chance.choice(_GIVEN).encode(),
            chance.choice((b"male", b"female")),
            born,
            chance.choice(_CITIES).encode(),
        )

    def _line(self, subject: bytes, number: int) -> bytes:
        chance = self.chance
        which = int(chance.random() * len(_TESTS))
        value, mark, said = self._values[which][int(chance.random() * 64)]
        instant = self._instants[int(chance.random() * 2_000)]
        name = b"%s-o%d" % (subject, number)
        return self._results[which] % (
            name,
            instant,
            subject,
            subject,
            instant,
            instant,
            value,
            mark,
            said,
        )


def _template(resource: dict[str, Any]) -> bytes:
    """Write a resource as a line in which ``<>`` marks what varies."""
    text = json.dumps(resource, ensure_ascii=False, separators=(",", ":"))
    raw = text.replace("%", "%%").replace('"<#>"', "%b").replace("<>", "%b")
    return raw.encode() + b"\n"


def _coded(system: str, code: str, display: str | None = None) -> dict[str, Any]:
    coding = {"system": system, "code": code}
    if display is not None:
        coding["display"] = display
    return {"coding": [coding]}


def _result(test: tuple[str, str, str, str, float, float, int]) -> bytes:
    code, display, short, unit, low, high, _ = test
    quantity = {"unit": unit, "system": _UCUM, "code": unit}
    local = {"system": "urn:oid:1.2.246.10.2.5.1", "code": short, "display": short}
    profile = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-observation-lab"
    return _template(
        {
            "resourceType": "Observation",
            "id": "<>",
            "meta": {"versionId": "1", "lastUpdated": "<>", "profile": [profile]},
            "status": "final",
            "category": [_coded(_HL7 + "observation-category", "laboratory", "Laboratory")],
            "code": {
                "coding": [{"system": "http://loinc.org", "code": code, "display": display}, local],
                "text": display,
            },
            "subject": {"reference": "Patient/<>"},
            "encounter": {"reference": "Encounter/<>-visit"},
            "effectiveDateTime": "<>",
            "issued": "<>",
            "performer": [{"reference": "Organization/central-laboratory"}],
            "valueQuantity": {"value": "<#>", **quantity},
            "interpretation": [
                _coded(_HL7 + "v3-ObservationInterpretation", "<>", "<>"),
            ],
            "specimen": {"display": "Serum or plasma"},
            "referenceRange": [
                {
                    "low": {"value": low, **quantity},
                    "high": {"value": high, **quantity},
                    "type": _coded(_HL7 + "referencerange-meaning", "normal", "Normal Range"),
                    "text": f"{low}-{high} {unit}",
                }
            ],
        }
    )


def _values(
    test: tuple[str, str, str, str, float, float, int], chance: random.Random
) -> list[tuple[bytes, bytes, bytes]]:
    """Draw values, a fifth of them out of range, with what is said of each."""
    *_, low, high, digits = test
    found = []
    for _ in range(64):
        value = chance.uniform(low, high)
        if chance.random() < 0.2:
            value = high + chance.random() * (high - low)
        mark, said = (b"H", b"High") if round(value, digits) > high else (b"N", b"Normal")
        found.append((f"{value:.{digits}f}".encode(), mark, said))
    return found


def _problem(codes: tuple[str, str, str, str]) -> bytes:
    icd, name, snomed, term = codes
    return _template(
        {
            "resourceType": "Condition",
            "id": "<>",
            "clinicalStatus": _coded(_HL7 + "condition-clinical", "active", "Active"),
            "verificationStatus": _coded(_HL7 + "condition-ver-status", "confirmed", "Confirmed"),
            "category": [
                _coded(_HL7 + "condition-category", "problem-list-item", "Problem List Item")
            ],
            "code": {
                "coding": [
                    {"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": icd, "display": name},
                    {"system": "http://snomed.info/sct", "code": snomed, "display": term},
                ],
                "text": name,
            },
            "subject": {"reference": "Patient/<>"},
            "encounter": {"reference": "Encounter/<>-visit"},
            "onsetDateTime": "<>",
            "recordedDate": "<>",
        }
    )


def _person() -> bytes:
    number_type = _coded(_HL7 + "v2-0203", "MR", "Medical record number")
    return _template(
        {
            "resourceType": "Patient",
            "id": "<>",
            "meta": {"versionId": "3", "lastUpdated": "2026-10-30T02:11:00Z"},
            "identifier": [
                {
                    "use": "usual",
                    "type": number_type,
                    "system": "https://hospital.example.org/mrn",
                    "value": "<>",
                }
            ],
            "active": True,
            "name": [{"use": "official", "family": "<>", "given": ["<>"]}],
            "telecom": [{"system": "phone", "value": "+00 000 0000", "use": "home"}],
            "gender": "<>",
            "birthDate": "<>",
            "address": [{"use": "home", "line": ["1 High Street"], "city": "<>"}],
            "communication": [{"language": _coded("urn:ietf:bcp:47", "en", "English")}],
        }
    )


def _instant(chance: random.Random) -> bytes:
    """Draw an instant, half of them in the last months before the day of evaluation."""
    if chance.random() < 0.5:
        year, month = 2026, chance.randint(8, 10)
    else:
        year, month = chance.randint(2021, 2025), chance.randint(1, 12)
    day, hour, minute = chance.randint(1, 28), chance.randint(5, 21), chance.randint(0, 59)
    return b"%04d-%02d-%02dT%02d:%02d:00Z" % (year, month, day, hour, minute)


class _Diseased(NamedTuple):
    patient: bytes
    lines: tuple[tuple[str, bytes], ...]


def _diseased() -> Iterator[_Diseased]:
    """Give the shipped patients with the disease, ``\\0`` after every id of theirs."""
    for bundle in bundles():
        resources = [entry["resource"] for entry in bundle["entry"]]
        conditions = [each for each in resources if each["resourceType"] == "Condition"]
        patients = [each for each in resources if each["resourceType"] == "Patient"]
        if len(patients) != 1 or not _names_disease(json.dumps(conditions)):
            continue
        names = sorted({each["id"] for each in resources if "id" in each}, key=len, reverse=True)
        lines = []
        for each in resources:
            if each["resourceType"] in TYPES:
                text = json.dumps(each, ensure_ascii=False, separators=(",", ":"))
                for name in names:
                    text = text.replace(f'"{name}"', f'"{name}-\0"')
                    text = text.replace(f'/{name}"', f'/{name}-\0"')
                lines.append((each["resourceType"], text.encode() + b"\n"))
        yield _Diseased(f"{patients[0]['id']}-\0".encode(), tuple(lines))


def _names_disease(text: str) -> bool:
    return "C91.0" in text or "C910" in text or "acute lymphoblastic leuk" in text.lower()


_UNITS: dict[str, int] = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_of(text: str) -> int:
    """Read a size as ``300MB`` or ``1GB``; raises ValueError."""
    for unit, factor in _UNITS.items():
        if text.upper().endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


def main(show: Callable[[str], object] = print) -> None:
    """Write an export: ``python -m tests.benchmarks.generate FOLDER --size 1GB``."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generate")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=size_of, default=size_of("100MB"), metavar="300MB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scattered", action="store_true", help="each patient in all files")
    given = parser.parse_args()
    made = generate(given.folder, given.size, seed=given.seed, scattered=given.scattered)
    show(
        f"{made.patients} patients, {made.ill} of them with the disease, "
        f"{made.lines} lines, {made.size / 10**6:.1f} MB"
    )


if __name__ == "__main__":
    main()
