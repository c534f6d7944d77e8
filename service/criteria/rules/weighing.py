"""What rules about a disease's course share: which records are firm, what came after what."""

from __future__ import annotations

from collections.abc import Sequence

from service.criteria.context import (
    Context,
    Finding,
    assumptions_of,
    evidence_of,
    settles,
    unique,
)
from service.criteria.reading import (
    plausible,
    read_number,
    to_unit,
)
from service.facts.model import ConditionFact, EventFact, Fact, ObservationFact, Standing
from service.terms import Match
from service.values.dates import When
from service.values.logic import Outcome, Reason
from service.values.quantities import Interval, Unit

PERCENT = "%"


def conditions_in(ctx: Context, sets: Sequence[str]) -> list[tuple[Match, ConditionFact]]:
    """List conditions in the sets and how each relates to them."""
    return [
        (match, fact)
        for match, fact in ctx.find("Condition", sets)
        if isinstance(fact, ConditionFact)
    ]


def is_firm(fact: Fact) -> bool:
    """Tell whether a record is confirmed and counts by its status."""
    if isinstance(fact, ConditionFact):
        return fact.confirmed and not fact.modified
    if isinstance(fact, EventFact):
        return fact.standing is Standing.COUNTS and not fact.modified
    return True


def unknown(reason: Reason, text: str, facts: Sequence[Fact]) -> Finding:
    """Make the finding of records that leave a question open."""
    return Finding(
        Outcome.UNKNOWN,
        reason,
        text,
        tuple(evidence_of(fact) for fact in facts),
        unique(*(assumptions_of(fact) for fact in facts)),
        tuple(settles(reason, fact.reference) for fact in facts),
    )


def placed_after(when: When | None, since: When | None) -> bool | None:
    """Tell whether a time lies after another; None if that isn't known."""
    if when is None or since is None:
        return None
    if since.definitely_before(when):
        return True
    return False if when.definitely_before(since) else None


def percent_of(fact: ObservationFact, ctx: Context) -> Interval | Reason:
    """Read a result as a percentage; else the reason why it can't be."""
    measured = read_number(fact, ctx.facts.terms)
    if isinstance(measured, Reason):
        return measured
    if not plausible(measured):
        return Reason.UNREADABLE_VALUE
    target = ctx.facts.terms.unit(PERCENT) or Unit(PERCENT)
    return to_unit(measured, target, None, ctx.facts.terms) or Reason.INCOMPARABLE_UNIT
