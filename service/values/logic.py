"""Three-valued (Kleene) logic of outcomes and the reasons that go with them.

Source: semantics 1.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Outcome(StrEnum):
    """Outcome of a criterion or part; ``pass`` never stands in the way of enrolment."""

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why an outcome is what it is (semantics 1.1)."""

    VALUE_MEETS = "value-meets"
    VALUE_VIOLATES = "value-violates"
    RECORD_PRESENT = "record-present"
    RECORD_ABSENT = "record-absent"
    NOT_APPLICABLE = "not-applicable"
    NO_DATA = "no-data"
    STALE_DATA = "stale-data"
    INCOMPARABLE_UNIT = "incomparable-unit"
    UNREADABLE_VALUE = "unreadable-value"
    NO_REFERENCE_RANGE = "no-reference-range"
    AMBIGUOUS_REFERENCE_RANGE = "ambiguous-reference-range"
    INDETERMINATE_DATE = "indeterminate-date"
    INDETERMINATE_VALUE = "indeterminate-value"
    METHOD_MISMATCH = "method-mismatch"
    CONFLICTING_DATA = "conflicting-data"
    UNCONFIRMED = "unconfirmed"
    STATUS_NOT_RECORDED = "status-not-recorded"
    UNMAPPED_CODE = "unmapped-code"
    SOURCE_UNAVAILABLE = "source-unavailable"
    JUDGEMENT_REQUIRED = "judgement-required"
    ATTESTED = "attested"


# Of several reasons for unknown on one exclusion the first of these is given (semantics 1.1);
# the rest follow in the order in which a result's checks stop (1.3).
UNKNOWN_ORDER: tuple[Reason, ...] = (
    Reason.JUDGEMENT_REQUIRED,
    Reason.UNCONFIRMED,
    Reason.STATUS_NOT_RECORDED,
    Reason.INDETERMINATE_DATE,
    Reason.CONFLICTING_DATA,
    Reason.UNMAPPED_CODE,
    Reason.SOURCE_UNAVAILABLE,
    Reason.METHOD_MISMATCH,
    Reason.UNREADABLE_VALUE,
    Reason.INCOMPARABLE_UNIT,
    Reason.NO_REFERENCE_RANGE,
    Reason.AMBIGUOUS_REFERENCE_RANGE,
    Reason.INDETERMINATE_VALUE,
    Reason.STALE_DATA,
    Reason.NO_DATA,
)
_RANK = {reason: rank for rank, reason in enumerate(UNKNOWN_ORDER)}


def unknown_rank(reason: Reason) -> int:
    """Give the place of a reason among those for unknown; the lowest is shown."""
    return _RANK.get(reason, len(UNKNOWN_ORDER))


def all_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Kleene conjunction: fail if one fails, else unknown if one is, else pass."""
    seen = set(outcomes)
    if Outcome.FAIL in seen:
        return Outcome.FAIL
    return Outcome.UNKNOWN if Outcome.UNKNOWN in seen else Outcome.PASS


def any_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Kleene disjunction: pass if one passes, else unknown if one is, else fail."""
    seen = set(outcomes)
    if Outcome.PASS in seen:
        return Outcome.PASS
    return Outcome.UNKNOWN if Outcome.UNKNOWN in seen else Outcome.FAIL


def negate(outcome: Outcome) -> Outcome:
    """Kleene negation: pass and fail change places, unknown stays."""
    if outcome is Outcome.PASS:
        return Outcome.FAIL
    return Outcome.PASS if outcome is Outcome.FAIL else outcome


def at_least(needed: int, outcomes: Iterable[Outcome]) -> Outcome:
    """Pass if at least ``needed`` pass, fail if they no longer can, else unknown."""
    listed = list(outcomes)
    passed = sum(outcome is Outcome.PASS for outcome in listed)
    open_ = sum(outcome is Outcome.UNKNOWN for outcome in listed)
    if passed >= needed:
        return Outcome.PASS
    return Outcome.UNKNOWN if passed + open_ >= needed else Outcome.FAIL
