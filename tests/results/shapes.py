"""Verdicts made by hand, one of each shape, and the resources this service emits."""

from __future__ import annotations

from functools import cache
from typing import Any

from fhir.resources.R4B import get_fhir_model_class

from service.config import Settings
from service.criteria.model import Evidence, Result, Settles, Verdict, VerdictCode
from service.fhir.record import Message
from service.results import study
from service.screening import Screening
from service.values.logic import Outcome, Reason
from service.wiring import build_screening

BASE = "https://trials.example/fhir"
HOSTILE = "<b>\x00\x07bold\u202e\ud7ff</b>\t| \x1b[31m"


def result(
    name: str = "I4",
    outcome: Outcome = Outcome.PASS,
    reason: Reason = Reason.VALUE_MEETS,
    **more: Any,
) -> Result:
    kind = more.pop("kind", "inclusion")
    text = more.pop("text", "Blasts in marrow are at least 5 %")
    return Result(name, kind, text, outcome, reason, more.pop("message", "blasts 7 %"), **more)


PASSED = result(
    evidence=(
        Evidence("Observation/o1", "2026-10-20", "7 %", "7 %", ">= 5 %", "loinc 11150-0", "3"),
        Evidence("Observation/o2", "2026-10-19T10:00:00+02:00", "6 %"),
        Evidence("Observation/o3", "2026-10-18T10:00", "6 %"),
        Evidence("urn:uuid:0d8b1f4e-4a3c-4c2b-9a68-111111111111", "2026"),
        Evidence("MedicationRequest/m1#drug", None, "blinatumomab"),
        Evidence("Observation/#4", None, None, None, None, "local x"),
    ),
    assumptions=("a time without offset is taken as local",),
)
FAILED = result(
    "E3", Outcome.FAIL, Reason.RECORD_PRESENT, kind="exclusion", text="Other malignancy"
)
OPEN = result(
    "I6",
    Outcome.UNKNOWN,
    Reason.NO_DATA,
    settled_by=(
        Settles("an ECOG status", "Observation", ("ecog",), "2026-10-04", "2026-11-01"),
        Settles("the investigator's judgement"),
        Settles("the date of birth", "Patient"),
    ),
)
PARTLY = result(
    "I2", Outcome.UNKNOWN, Reason.NO_DATA, parts=(PASSED, OPEN), settled_by=OPEN.settled_by
)
ATTESTED = result(
    "I11", Outcome.PASS, Reason.ATTESTED, computed=(Outcome.UNKNOWN, Reason.JUDGEMENT_REQUIRED)
)
STRANGE = result(
    "I7",
    Outcome.UNKNOWN,
    Reason.UNREADABLE_VALUE,
    text="",
    message=HOSTILE,
    evidence=(
        Evidence(HOSTILE, HOSTILE, HOSTILE, " \x01 ", "", HOSTILE, HOSTILE),
        Evidence("Observation/" + "x" * 99, "2026-02-30", "y" * 9_000),
        Evidence("https://s/fhir/Observation/1 2", "0000-01-01"),
        Evidence("", "", ""),
    ),
    assumptions=(HOSTILE, ""),
    settled_by=(Settles(HOSTILE, "Condition", ("malignancy",), None, "2026-11-01"), Settles("")),
)
MESSAGES = (
    Message("warning", "incomplete", "the line is not a FHIR resource", "Observation", None, "x:2"),
    Message("strange", "strange", HOSTILE, None, "Observation/1", None),
)


def verdict(code: VerdictCode, *criteria: Result, **more: Any) -> Verdict:
    return Verdict(
        trial="NCT06056752",
        trial_version="1.0.0",
        patient=more.pop("patient", "Patient/p1"),
        as_of="2026-11-01",
        code=code,
        valid_until=more.pop("valid_until", None),
        criteria=criteria,
        **more,
    )


VERDICTS: dict[str, Verdict] = {
    "eligible": verdict(VerdictCode.ELIGIBLE, PASSED, ATTESTED, valid_until="2026-11-17"),
    "ineligible": verdict(VerdictCode.INELIGIBLE, PASSED, FAILED),
    "ineligible-open": verdict(VerdictCode.INELIGIBLE, PARTLY, FAILED, messages=MESSAGES),
    "open": verdict(VerdictCode.POTENTIALLY_ELIGIBLE, PASSED, PARTLY, messages=MESSAGES[:1]),
    "strange": verdict(
        VerdictCode.POTENTIALLY_ELIGIBLE, STRANGE, messages=MESSAGES, patient="urn:patient:1"
    ),
}


@cache
def screening() -> Screening:
    return build_screening(Settings())


def definitions() -> list[dict[str, Any]]:
    """Give every definition this service publishes."""
    found = [
        study.operation_definition(BASE),
        study.capability_statement(BASE, f"{BASE}/r4", secured=True),
        study.capability_statement(BASE, f"{BASE}/r4", secured=False),
    ]
    for trial in screening().trials.values():
        found += [
            study.research_study(trial),
            study.group(trial, BASE),
            study.plan_definition(trial, BASE),
        ]
    sets = screening().terms.sets.values()
    found += [study.value_set(one, BASE) for one in sets]
    found += [study.searchset(found[3:5], f"{BASE}/ResearchStudy", BASE)]
    found += [study.searchset([], f"{BASE}/ResearchStudy?_id=x", BASE)]
    found += [
        study.searchset(
            [study.value_set(one, BASE, summary=True) for one in sets], f"{BASE}/ValueSet", BASE
        )
    ]
    return found


def check_r4b(resource: dict[str, Any]) -> None:
    """Raise if ``fhir.resources`` finds the resource invalid; contained ones are checked too."""
    get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    for contained in resource.get("contained", ()):
        check_r4b(contained)
