"""A verdict as GuidanceResponse with its explanation in a contained Parameters.

Source: FHIR R4 GuidanceResponse (11.4), Parameters, DataRequirement; semantics 1.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from service.criteria.model import Evidence, Result, Settles, Verdict, VerdictCode, walk
from service.results.fhirtypes import date_time, reference, string
from service.results.outcome import of_messages
from service.values.logic import Outcome

Json = dict[str, Any]

CANONICAL_BASE = "https://eligibility.example.org/fhir"

# The search parameters for code and time of each type that can be missing.
_CODE_PARAMETER = {
    "Immunization": "vaccine-code",
    "AdverseEvent": "event",
}
# These have no code that a set of codes could select.
_WITHOUT_CODES = frozenset(("Consent", "Patient", "ResearchSubject"))
_DATE_PARAMETER = {
    "Condition": "onset-date",
    "MedicationRequest": "authoredon",
    "MedicationAdministration": "effective-time",
    "MedicationStatement": "effective",
    "MedicationDispense": "whenhandedover",
}


def canonical(base: str, trial_id: str, version: str) -> str:
    """Give the canonical URL of a trial's criteria, with their version."""
    return f"{base}/PlanDefinition/{trial_id}|{version}"


def guidance_response(
    verdict: Verdict,
    *,
    canonical_base: str = CANONICAL_BASE,
    produced: datetime | None = None,
) -> Json:
    """Write a verdict as GuidanceResponse.

    ``occurrenceDateTime`` is the day the patient was evaluated as of; ``produced`` (with
    time zone) goes to ``meta.lastUpdated``. Parts of criteria follow their parents.
    """
    response: Json = {"resourceType": "GuidanceResponse"}
    if produced is not None:
        response["meta"] = {"lastUpdated": produced.isoformat(timespec="seconds")}
    listed = walk(verdict.criteria)
    contained = [_parameters(verdict, listed)]
    response |= {
        "contained": contained,
        "moduleCanonical": canonical(canonical_base, verdict.trial, verdict.trial_version),
        "status": status(verdict),
        "subject": reference(verdict.patient),
        "occurrenceDateTime": verdict.as_of,
    }
    outcome = of_messages(verdict.messages)
    if outcome is not None:
        contained.append({"resourceType": "OperationOutcome", "id": "messages"} | outcome)
        response["evaluationMessage"] = [{"reference": "#messages"}]
    response["outputParameters"] = {"reference": "#result"}
    required = data_requirements((result for result, _ in listed), canonical_base)
    if required:
        response["dataRequirement"] = required
    return response


def status(verdict: Verdict) -> str:
    """Give the status: whether more data is required, could refine the verdict, or neither."""
    unknown = any(result.outcome is Outcome.UNKNOWN for result in verdict.criteria)
    if not unknown:
        return "success"
    return "data-requested" if verdict.code is VerdictCode.INELIGIBLE else "data-required"


def _parameters(verdict: Verdict, listed: list[tuple[Result, str | None]]) -> Json:
    parameters: list[Json] = [
        {"name": "verdict", "valueCode": verdict.code.value},
        {"name": "asOf", "valueDate": verdict.as_of},
    ]
    if verdict.valid_until is not None:
        parameters.append({"name": "validUntil", "valueDate": verdict.valid_until})
    parameters.extend(
        {"name": "criterion", "part": list(_criterion(result, parent))} for result, parent in listed
    )
    return {"resourceType": "Parameters", "id": "result", "parameter": parameters}


def _criterion(result: Result, parent: str | None) -> Iterator[Json]:
    yield {"name": "id", "valueString": result.id}
    if parent is not None:
        yield {"name": "parent", "valueString": parent}
    yield {"name": "kind", "valueCode": result.kind}
    yield from _string("text", result.text)
    yield {"name": "outcome", "valueCode": result.outcome.value}
    yield {"name": "reason", "valueCode": result.reason.value}
    yield from _string("message", result.message)
    if result.computed is not None:
        yield {"name": "computedOutcome", "valueCode": result.computed[0].value}
        yield {"name": "computedReason", "valueCode": result.computed[1].value}
    for evidence in result.evidence:
        yield from _evidence(evidence)
    for assumption in result.assumptions:
        yield from _string("assumption", assumption)
    for settles in result.settled_by:
        yield from _string("settledBy", settles.words)


def _evidence(evidence: Evidence) -> Iterator[Json]:
    """Write a record used: the reference, then what belongs to it, up to the next one."""
    target = reference(evidence.reference, evidence.version)
    if "display" not in target and (display := string(evidence.code)):
        target["display"] = display
    yield {"name": "evidence", "valueReference": target}
    yield from _string("recorded", evidence.recorded)
    yield from _string("compared", evidence.compared)
    yield from _string("threshold", evidence.threshold)
    when = date_time(evidence.date)
    if when is not None:
        yield {"name": "effective", "valueDateTime": when}
    else:
        # A period, or a time that FHIR's dateTime can't hold (one without offset).
        yield from _string("effective", evidence.date)


def _string(name: str, text: str | None) -> Iterator[Json]:
    clean = string(text)
    if clean is not None:
        yield {"name": name, "valueString": clean}


def data_requirements(results: Iterable[Result], canonical_base: str) -> list[Json]:
    """Write what is missing as DataRequirements, each once, a code set in each."""
    found: dict[tuple[str, str | None, str | None, str | None], Json] = {}
    for result in results:
        if result.outcome is not Outcome.UNKNOWN:
            continue
        for settles in result.settled_by:
            if settles.type is None:
                continue
            named = () if settles.type in _WITHOUT_CODES else settles.sets
            for name in named or (None,):
                key = (settles.type, name, settles.first_day, settles.last_day)
                found.setdefault(key, _requirement(settles, settles.type, name, canonical_base))
    return list(found.values())


def _requirement(settles: Settles, kind: str, name: str | None, canonical_base: str) -> Json:
    requirement: Json = {"type": kind}
    if name is not None:
        parameter = _CODE_PARAMETER.get(kind, "code")
        value_set = f"{canonical_base}/ValueSet/{name}"
        requirement["codeFilter"] = [{"searchParam": parameter, "valueSet": value_set}]
    period = {"start": settles.first_day, "end": settles.last_day}
    period = {end: day for end, day in period.items() if day is not None}
    if period:
        parameter = _DATE_PARAMETER.get(kind, "date")
        requirement["dateFilter"] = [{"searchParam": parameter, "valuePeriod": period}]
    return requirement
