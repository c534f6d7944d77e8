"""Errors and messages as OperationOutcome: the one place that makes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service.errors import EligibilityError
from service.fhir.record import Message
from service.results.fhirtypes import string

# http://hl7.org/fhir/issue-type
ISSUE_CODES = frozenset((
    "invalid", "structure", "required", "value", "invariant", "security", "login", "unknown",
    "expired", "forbidden", "suppressed", "processing", "not-supported", "duplicate",
    "multiple-matches", "not-found", "deleted", "too-long", "code-invalid", "extension",
    "too-costly", "business-rule", "conflict", "transient", "lock-error", "no-store",
    "exception", "timeout", "incomplete", "throttled", "informational",
))  # fmt: skip
_SEVERITIES = frozenset(("fatal", "error", "warning", "information"))

Json = dict[str, Any]


def issue(severity: str, code: str, text: str, expression: str | None = None) -> Json:
    """Write one issue; an unknown code becomes ``processing``."""
    found: Json = {
        "severity": severity if severity in _SEVERITIES else "error",
        "code": code if code in ISSUE_CODES else "processing",
        "diagnostics": string(text) or "no details",
    }
    if expression and (clean := string(expression)):
        found["expression"] = [clean]
    return found


def operation_outcome(*issues: Json) -> Json:
    """Write an OperationOutcome of at least one issue."""
    return {"resourceType": "OperationOutcome", "issue": list(issues)}


def of_error(error: EligibilityError) -> Json:
    """Write an error as OperationOutcome."""
    return operation_outcome(issue("error", error.code, error.message, error.expression))


def of_messages(messages: Iterable[Message]) -> Json | None:
    """Write what went wrong on the way as one OperationOutcome; None if nothing did."""
    issues = [_issue_of(message) for message in dict.fromkeys(messages)]
    return operation_outcome(*issues) if issues else None


def _issue_of(message: Message) -> Json:
    named = (message.type if message.reference is None else None, message.reference, message.place)
    where = ", ".join(part for part in named if part)
    text = f"{message.text} ({where})" if where else message.text
    return issue(message.severity, message.code, text)
