"""Errors and messages as OperationOutcome."""

from __future__ import annotations

import pytest

from service import errors
from service.results.outcome import ISSUE_CODES, of_error, of_messages
from tests.results.shapes import MESSAGES, check_r4b

ERRORS = [
    errors.EligibilityError("x"),
    errors.RequestError("x", status=422, code="value", expression="Parameters.parameter[0]"),
    errors.UnknownTrial("x"),
    errors.UnknownPatient("x"),
    errors.SourceError("x"),
    errors.SourceTimeout("x"),
    errors.PatientUnreadable("x"),
    errors.Overloaded("x"),
    errors.EligibilityError("\x00"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_is_a_valid_outcome(error: errors.EligibilityError) -> None:
    found = of_error(error)
    check_r4b(found)
    assert found["issue"][0]["code"] == error.code
    assert error.code in ISSUE_CODES


def test_messages_are_listed_once() -> None:
    found = of_messages((*MESSAGES, *MESSAGES))
    assert found is not None
    check_r4b(found)
    assert len(found["issue"]) == len(MESSAGES)
    assert of_messages(()) is None
