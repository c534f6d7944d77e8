"""Two antibodies that exclude only together (part 2, E6)."""

from __future__ import annotations

from collections.abc import Iterator

from service.criteria.context import Context, Draft, unique, wanted_data
from service.criteria.model import Settles
from service.criteria.rules.answers import CodedResult
from service.criteria.rules.base import Reads, RuleBase, SetNames
from service.values.logic import Outcome, Reason, unknown_rank


class AntibodyPair(RuleBase, frozen=True, kw_only=True, tag="antibody-pair"):
    """Both positive: fail; one: judgement; both negative: pass; else no data."""

    first: SetNames
    second: SetNames
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        drafts = [self._latest(ctx, sets) for sets in (self.first, self.second)]
        evidence = unique(*(draft.evidence for draft in drafts))
        assumptions = unique(*(draft.assumptions for draft in drafts))
        positive = [draft.outcome is Outcome.FAIL for draft in drafts]
        if all(positive):
            return Draft(
                Outcome.FAIL,
                Reason.VALUE_VIOLATES,
                "both antibodies are positive",
                evidence,
                assumptions,
            )
        if all(draft.outcome is Outcome.PASS for draft in drafts):
            return Draft(
                Outcome.PASS,
                Reason.VALUE_MEETS,
                "both antibodies are negative",
                evidence,
                assumptions,
            )
        if any(positive):
            return Draft(
                Outcome.UNKNOWN,
                Reason.JUDGEMENT_REQUIRED,
                "one of the two antibodies is positive",
                evidence,
                assumptions,
                (Settles(self.question),),
            )
        unusable = [d for d in drafts if d.reason not in (Reason.NO_DATA, Reason.VALUE_MEETS)]
        if unusable:
            return min(unusable, key=lambda draft: unknown_rank(draft.reason))
        wanted = tuple(
            wanted_data(ctx, "Observation", sets, f"a test: {', '.join(sets)}")
            for sets, draft in zip((self.first, self.second), drafts, strict=True)
            if draft.outcome is Outcome.UNKNOWN
        )
        return Draft(
            Outcome.UNKNOWN,
            Reason.NO_DATA,
            "not both antibodies have a usable result",
            evidence,
            assumptions,
            wanted,
        )

    @staticmethod
    def _latest(ctx: Context, sets: tuple[str, ...]) -> Draft:
        return CodedResult(codes=sets, positive="fail", negative="pass").evaluate(ctx)

    def words(self) -> str:
        return (
            f"latest results in {', '.join(self.first)} and {', '.join(self.second)}: both "
            "positive: fail; one: judgement; both negative: pass; else unknown"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Observation", (*self.first, *self.second))

    def unknowns(self) -> tuple[str, ...]:
        return ("no-data", "judgement-required", "source-unavailable")
