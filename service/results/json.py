"""A verdict as one line of JSON; names and order of keys are a contract with other programs."""

from __future__ import annotations

from typing import Any

import msgspec

from service.criteria.model import Evidence, Result, Verdict

Json = dict[str, Any]


def verdict_line(verdict: Verdict) -> str:
    """Write a verdict as one line of JSON, without the line's end."""
    return msgspec.json.encode(verdict_json(verdict)).decode()


def verdict_json(verdict: Verdict) -> Json:
    """Write a verdict as JSON: P1 and the criteria in order, their parts nested."""
    return {
        "trial": verdict.trial,
        "patient": verdict.patient,
        "asOf": verdict.as_of,
        "verdict": verdict.code.value,
        "validUntil": verdict.valid_until,
        "criteria": [_result(result) for result in verdict.criteria],
    }


def _result(result: Result) -> Json:
    written: Json = {
        "id": result.id,
        "kind": result.kind,
        "outcome": result.outcome.value,
        "reason": result.reason.value,
        "message": result.message,
        "evidence": [_evidence(evidence) for evidence in result.evidence],
        "assumptions": list(result.assumptions),
        "settledBy": [settles.words for settles in result.settled_by],
        "parts": [_result(part) for part in result.parts],
    }
    if result.computed is not None:
        outcome, reason = result.computed
        written["computed"] = {"outcome": outcome.value, "reason": reason.value}
    return written


def _evidence(evidence: Evidence) -> Json:
    return {
        "reference": evidence.reference,
        "date": evidence.date,
        "recorded": evidence.recorded,
        "compared": evidence.compared,
        "code": evidence.code,
        "threshold": evidence.threshold,
        "version": evidence.version,
    }
