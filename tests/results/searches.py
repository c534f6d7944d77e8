"""Searches made by hand: their verdicts' lines and statement."""

from __future__ import annotations

from typing import Any

from service.criteria.model import VerdictCode
from service.nightly.model import (
    CriterionCount,
    Failure,
    Missing,
    Reject,
    Statement,
    TrialCount,
    TypeCount,
)
from service.results.json import verdict_line
from tests.results.shapes import FAILED, HOSTILE, OPEN, PARTLY, PASSED, VERDICTS, verdict

TRIAL = "NCT06056752"
LINES = [verdict_line(one).encode() for one in VERDICTS.values()]
CANDIDATES = ["Patient/p1", "Patient/p1", "urn:patient:1"]


def line(patient: str, code: VerdictCode = VerdictCode.POTENTIALLY_ELIGIBLE) -> bytes:
    """Give the line of a verdict with one open criterion, or of an ineligible patient."""
    criteria = (PASSED, FAILED) if code is VerdictCode.INELIGIBLE else (PASSED, OPEN)
    if code is VerdictCode.ELIGIBLE:
        criteria = (PASSED, PASSED)
    return verdict_line(verdict(code, *criteria, patient=patient)).encode()


def open_line(patient: str, number: int) -> bytes:
    """Give the line of a verdict with a number of open criteria."""
    opened = [PARTLY] * number
    code = VerdictCode.POTENTIALLY_ELIGIBLE
    return verdict_line(verdict(code, PASSED, *opened, patient=patient)).encode()


def trial(name: str = TRIAL, **more: Any) -> TrialCount:
    """Give the counts of a trial."""
    return TrialCount(
        **{
            "trial": name,
            "version": "1.0.0",
            "name": "QH103",
            "population": 12,
            "evaluated": 11,
            "failed": 1,
            "verdicts": {"eligible": 1, "potentially-eligible": 2, "ineligible": 8},
            "attrition": (
                CriterionCount("I1", "inclusion", 11, 0, 0),
                CriterionCount("I6", "inclusion", 1, 4, 6, 3, 1, text="ECOG 0 to 2 & no <more>"),
                CriterionCount(HOSTILE, "exclusion", 0, 0, 0),
            ),
            "missing": (Missing("an ECOG status", "Observation", ("ecog",), ("I6",), 2),),
            **more,
        }
    )


def statement(**more: Any) -> Statement:
    """Give the statement of a search that was complete."""
    return Statement(
        **{
            "source": "directory export",
            "trials": (trial(),),
            "versions": {"service": "1.0.0", f"trial:{TRIAL}": "1.0.0", "mappings": "abc"},
            "as_of": "2026-11-01",
            "types": {"Observation": TypeCount(2, 1_000, 40, 30, {"other-patient": 10})},
            "patients_seen": 100,
            "in_population": 12,
            "evaluated": 11,
            "failed": 0,
            "failures": (),
            "rejects": 0,
            "problems": (),
            "started": "2026-11-01T02:00:00+00:00",
            "finished": "2026-11-01T03:02:05+00:00",
            "seconds": 3725.04321,
            "rates": {"patientsPerSecond": 0.0268},
            "complete": True,
            **more,
        }
    )


INCOMPLETE = statement(
    complete=False,
    problems=("the export reports errors",),
    failed=1,
    failures=(Failure("Patient/p7", None, "the Patient resource is not valid"),),
    rejects=2,
)
REJECTS = (
    Reject("Observation.1.ndjson", 7, "Observation", None, "the line is not a FHIR resource"),
    Reject(None, None, None, "Observation/9", "no code", "Patient/p7"),
)
