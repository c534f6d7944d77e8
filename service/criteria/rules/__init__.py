"""All kinds of rule; a trial file names one by its ``kind``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from service.criteria.context import Context, Draft
from service.criteria.rules.answers import CodedResult, Ordinal
from service.criteria.rules.antibodies import AntibodyPair
from service.criteria.rules.antigen import CellsAbsent, TumourAntigen
from service.criteria.rules.base import Reads, RuleBase
from service.criteria.rules.change import Change
from service.criteria.rules.combine import combined
from service.criteria.rules.infection import ViralInfection
from service.criteria.rules.judgement import Judgement
from service.criteria.rules.limits import Observation
from service.criteria.rules.lineage import Lineage, SiteOnly
from service.criteria.rules.person import Age, Alive, Sex
from service.criteria.rules.records import Records
from service.criteria.rules.relapse import RelapseAfterTransplant, RemissionDuration
from service.criteria.rules.reproduction import Lactation, Pregnancy, PregnancyTest
from service.criteria.rules.studies import ConsentGiven, Participation
from service.criteria.rules.treatment import ConditionOnTreatment
from service.values.logic import Reason, negate


class _Composite(RuleBase, frozen=True, kw_only=True):
    """Rules inside one criterion, combined."""

    rules: Annotated[tuple[Rule, ...], msgspec.Meta(min_length=1)]

    def reads(self) -> Iterator[Reads]:
        for rule in self.rules:
            yield from rule.reads()

    def unknowns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(reason for rule in self.rules for reason in rule.unknowns()))

    def problems(self) -> Iterator[str]:
        for rule in self.rules:
            yield from rule.problems()

    def _drafts(self, ctx: Context) -> list[Draft]:
        return [rule.evaluate(ctx) for rule in self.rules]

    def _listed(self) -> str:
        return "; ".join(f"({rule.words()})" for rule in self.rules)


class All(_Composite, frozen=True, kw_only=True, tag="all"):
    """All of the rules."""

    def evaluate(self, ctx: Context) -> Draft:
        return combined("all", self._drafts(ctx))

    def words(self) -> str:
        return f"all of {self._listed()}"


class Any(_Composite, frozen=True, kw_only=True, tag="any"):
    """Any of the rules."""

    def evaluate(self, ctx: Context) -> Draft:
        return combined("any", self._drafts(ctx))

    def words(self) -> str:
        return f"any of {self._listed()}"


class AtLeast(_Composite, frozen=True, kw_only=True, tag="at-least"):
    """At least so many of the rules."""

    count: int

    def evaluate(self, ctx: Context) -> Draft:
        return combined("at-least", self._drafts(ctx), self.count)

    def words(self) -> str:
        return f"at least {self.count} of {self._listed()}"

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 1 <= self.count <= len(self.rules):
            yield f"at least {self.count} of {len(self.rules)} rules makes no sense"


_OPPOSITE = {
    Reason.VALUE_MEETS: Reason.VALUE_VIOLATES,
    Reason.VALUE_VIOLATES: Reason.VALUE_MEETS,
}


class Not(RuleBase, frozen=True, kw_only=True, tag="not"):
    """The opposite of a rule; what is unknown stays unknown."""

    rule: Rule

    def evaluate(self, ctx: Context) -> Draft:
        draft = self.rule.evaluate(ctx)
        return Draft(
            negate(draft.outcome),
            _OPPOSITE.get(draft.reason, draft.reason),
            f"not: {draft.message}",
            draft.evidence,
            draft.assumptions,
            draft.settled_by,
        )

    def words(self) -> str:
        return f"not ({self.rule.words()})"

    def reads(self) -> Iterator[Reads]:
        yield from self.rule.reads()

    def unknowns(self) -> tuple[str, ...]:
        return self.rule.unknowns()

    def problems(self) -> Iterator[str]:
        yield from self.rule.problems()


Rule = (
    Alive
    | Age
    | Sex
    | Observation
    | CodedResult
    | Ordinal
    | Change
    | Records
    | Judgement
    | PregnancyTest
    | Pregnancy
    | Lactation
    | CellsAbsent
    | Participation
    | ConsentGiven
    | Lineage
    | RemissionDuration
    | RelapseAfterTransplant
    | SiteOnly
    | TumourAntigen
    | ViralInfection
    | AntibodyPair
    | ConditionOnTreatment
    | All
    | Any
    | AtLeast
    | Not
)

__all__ = ["Reads", "Rule", "RuleBase"]
