"""What only a person can settle, with the records that bear on it (semantics 1.6)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from service.criteria.context import Context, Draft, evidence_of, unique
from service.criteria.model import Settles
from service.criteria.rules.base import Reads, RuleBase
from service.facts.model import EventFact, Fact
from service.terms import Match
from service.values.logic import Outcome, Reason


class Bearing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records to show as evidence: a resource type and code sets (none: all of an AdverseEvent)."""

    resource: str
    codes: tuple[str, ...] = ()


class Judgement(RuleBase, frozen=True, kw_only=True, tag="judgement"):
    """A question for the investigator; records that bear on it are shown as evidence."""

    question: str
    evidence: tuple[Bearing, ...] = ()

    def evaluate(self, ctx: Context) -> Draft:
        shown = [
            evidence_of(fact)
            for bearing in self.evidence
            for match, fact in self._found(bearing, ctx)
            if match is not Match.EXCLUDE
        ]
        return Draft(
            Outcome.UNKNOWN,
            Reason.JUDGEMENT_REQUIRED,
            self.question,
            unique(shown),
            settled_by=(Settles(self.question),),
        )

    @staticmethod
    def _found(bearing: Bearing, ctx: Context) -> list[tuple[Match, Fact]]:
        if bearing.codes:
            return ctx.find(bearing.resource, bearing.codes)
        return [
            (Match.INCLUDE, fact)
            for fact in ctx.facts.index.get((bearing.resource, ""), ())
            if isinstance(fact, EventFact) and ctx.begun(fact.start)
        ]

    def words(self) -> str:
        return f"judgement: {self.question}"

    def reads(self) -> Iterator[Reads]:
        for bearing in self.evidence:
            yield Reads(bearing.resource, bearing.codes)

    def unknowns(self) -> tuple[str, ...]:
        return ("judgement-required",)
