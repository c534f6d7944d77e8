"""Combination of rules inside one criterion, by three-valued logic (semantics 1.1)."""

from __future__ import annotations

from collections.abc import Sequence

from service.criteria.context import Draft, unique
from service.values.logic import Outcome, Reason, all_of, any_of, at_least, unknown_rank


def combined(how: str, drafts: Sequence[Draft], needed: int = 1) -> Draft:
    """Combine answers by all, any or at-least, with the reason that semantics 1.1 puts first."""
    outcomes = [draft.outcome for draft in drafts]
    if how == "all":
        outcome = all_of(outcomes)
    elif how == "any":
        outcome = any_of(outcomes)
    else:
        outcome = at_least(needed, outcomes)
    same = [draft for draft in drafts if draft.outcome is outcome] or list(drafts)
    if outcome is Outcome.UNKNOWN:
        first = min(same, key=lambda draft: unknown_rank(draft.reason))
    else:
        first = next((d for d in same if d.reason is not Reason.NOT_APPLICABLE), same[0])
    return Draft(
        outcome,
        first.reason,
        "; ".join(draft.message for draft in drafts),
        unique(*(draft.evidence for draft in drafts)),
        unique(*(draft.assumptions for draft in drafts)),
        unique(*(d.settled_by for d in drafts)) if outcome is Outcome.UNKNOWN else (),
    )
