"""run.json and rejects.ndjson: names are a contract."""

from __future__ import annotations

import json
from typing import Any

from service.results.search import output_files
from service.results.statement import reject_lines, statement_bytes
from tests.results.searches import INCOMPLETE, LINES, REJECTS, TRIAL, statement


def said(found: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(found)
    return content


def test_the_statement_says_what_was_searched_and_what_came_out() -> None:
    assert said(statement_bytes(statement())) == {
        "complete": True,
        "notes": [],
        "problems": [],
        "source": "directory export",
        "bulk": None,
        "cohort": None,
        "asOf": "2026-11-01",
        "versions": {"service": "1.0.0", f"trial:{TRIAL}": "1.0.0", "mappings": "abc"},
        "started": "2026-11-01T02:00:00+00:00",
        "finished": "2026-11-01T03:02:05+00:00",
        "seconds": 3725.043,
        "rates": {"patientsPerSecond": 0.0},
        "resumed": 0,
        "night": {
            "read": "full",
            "since": None,
            "why": None,
            "base": None,
            "evaluated": 0,
            "touched": 0,
            "joined": 0,
            "lapsed": 0,
            "carried": 0,
            "deletionsUnseen": [],
        },
        "patients": {"seen": 100, "inPopulation": 12, "evaluated": 11, "failed": 0},
        "failures": [],
        "rejects": 0,
        "types": {
            "Observation": {
                "files": 2,
                "bytes": 1000,
                "lines": 40,
                "read": 30,
                "skipped": {"other-patient": 10},
            }
        },
        "trials": [
            {
                "trial": TRIAL,
                "version": "1.0.0",
                "name": "QH103",
                "population": 12,
                "evaluated": 11,
                "failed": 1,
                "verdicts": {"eligible": 1, "potentially-eligible": 2, "ineligible": 8},
                "attrition": [
                    _count("I1", "inclusion", 11, 0, 0, 0, 0),
                    _count("I6", "inclusion", 1, 4, 6, 3, 1),
                    _count(statement().trials[0].attrition[2].id, "exclusion", 0, 0, 0, 0, 0),
                ],
                "missing": [
                    {
                        "text": "an ECOG status",
                        "type": "Observation",
                        "sets": ["ecog"],
                        "criteria": ["I6"],
                        "patients": 2,
                    }
                ],
            }
        ],
    }


def _count(name: str, kind: str, *numbers: int) -> dict[str, Any]:
    names = ("pass", "fail", "unknown", "alone", "aloneOpen")
    return {"id": name, "kind": kind, **dict(zip(names, numbers, strict=True))}


def test_an_incomplete_search_says_which_patients_and_why() -> None:
    found = said(statement_bytes(INCOMPLETE))
    assert found["complete"] is False
    assert found["problems"] == ["the export reports errors"]
    assert found["failures"] == [
        {"patient": "Patient/p7", "trial": None, "problem": "the Patient resource is not valid"}
    ]


def test_rejects_say_where_they_are() -> None:
    first, second = (json.loads(line) for line in reject_lines(REJECTS))
    assert first == {
        "file": "Observation.1.ndjson",
        "line": 7,
        "type": "Observation",
        "reference": None,
        "patient": None,
        "problem": "the line is not a FHIR resource",
    }
    assert (second["patient"], second["reference"]) == ("Patient/p7", "Observation/9")


def test_all_outputs_are_given_the_statement_last() -> None:
    given = {name: b"".join(parts) for name, parts in output_files(statement(), lambda: LINES, ())}
    assert list(given) == [
        "rejects.ndjson",
        "candidates.csv",
        "group.json",
        "list.json",
        "report.html",
        "run.json",
    ]
    assert given["rejects.ndjson"] == b""
    assert all(given[name] for name in given if name != "rejects.ndjson")
    again = {name: b"".join(parts) for name, parts in output_files(statement(), lambda: LINES, ())}
    assert again == given
