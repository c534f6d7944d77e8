"""Diagnosis by lineage, and disease outside a site only (part 2, I2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    Gap,
    assumptions_of,
    draft_of,
    evidence_of,
    finding_of,
    unavailable,
    unique,
    worst,
)
from service.criteria.model import Settles
from service.criteria.rules.base import Reads, RuleBase, SetNames
from service.criteria.rules.records import Finder
from service.criteria.rules.weighing import (
    conditions_in,
    is_firm,
    unknown,
)
from service.facts.model import ConditionFact
from service.terms import Match
from service.values.logic import Outcome, Reason


class Lineage(RuleBase, frozen=True, kw_only=True, tag="lineage"):
    """Diagnosis by lineage: stated, of the other lineage, not stated, not even specified.

    ``confirmed_by``: the criterion whose pass (an antigen of the lineage on the blasts)
    supplies a lineage that the code doesn't state.
    """

    stated: SetNames
    other: SetNames
    unstated: SetNames
    unspecified: tuple[str, ...] = ()
    confirmed_by: str

    def evaluate(self, ctx: Context) -> Draft:
        every = (*self.stated, *self.other, *self.unstated, *self.unspecified)
        found = [(m, f) for m, f in conditions_in(ctx, every) if m is not Match.EXCLUDE]
        stated = [fact for _, fact in found if fact.concept.included(self.stated)]
        sure = [fact for fact in stated if is_firm(fact) and not fact.conflicting]
        if sure:
            return self._present(sure, "the diagnosis is on record with its lineage")
        return draft_of(self._without(ctx, found, stated))

    def _without(
        self,
        ctx: Context,
        found: Sequence[tuple[Match, ConditionFact]],
        stated: list[ConditionFact],
    ) -> Finding:
        """Go through what is left when no confirmed record states the lineage."""
        gaps = ctx.gaps(
            ("Condition",), (*self.stated, *self.other, *self.unstated, *self.unspecified)
        )
        copies = [fact for fact in stated if fact.conflicting and is_firm(fact)]
        if copies:
            return unknown(Reason.CONFLICTING_DATA, "copies of the diagnosis differ", copies)
        other = [fact for _, fact in found if fact.concept.included(self.other)]
        loose = [
            fact
            for match, fact in found
            if not is_firm(fact) and match in (Match.INCLUDE, Match.CONFLICT, Match.UNMAPPED)
        ]
        antigen = ctx.result(self.confirmed_by)
        sure_other = [fact for fact in other if is_firm(fact)]
        if sure_other and not stated:
            return self._of_other(sure_other, antigen.outcome, gaps)
        plain = [
            (fact.concept.match(self.unstated), fact)
            for _, fact in found
            if is_firm(fact) and fact not in other
        ]
        unstated = [fact for match, fact in plain if match is Match.INCLUDE]
        if unstated and antigen.outcome is Outcome.PASS:
            if gaps:
                return unavailable(gaps, self.stated, "a diagnosis of the other lineage")
            found_by = finding_of(self._present(unstated, "the antigen supplies the lineage"))
            return found_by._replace(evidence=unique(found_by.evidence, antigen.evidence))
        if unstated and gaps and antigen.reason is Reason.SOURCE_UNAVAILABLE:
            return unavailable(gaps, self.stated, "a diagnosis with its lineage")
        if loose:
            return unknown(Reason.UNCONFIRMED, "the diagnosis is not confirmed", loose)
        torn = [fact for match, fact in plain if match is Match.CONFLICT]
        if torn:
            return unknown(Reason.CONFLICTING_DATA, "codes contradict each other", torn)
        vague = [fact for match, fact in found if is_firm(fact) and match is not Match.EXCLUDE]
        if vague:
            return unknown(
                Reason.UNMAPPED_CODE, "a leukaemia is on record without its lineage", vague
            )
        if gaps:
            return unavailable(gaps, (*self.stated, *self.unstated), "the diagnosis")
        return Finding(Outcome.FAIL, Reason.RECORD_ABSENT, "the diagnosis is not on record")

    def _of_other(
        self,
        sure: list[ConditionFact],
        antigen: Outcome,
        gaps: tuple[Gap, ...],
    ) -> Finding:
        if antigen is Outcome.PASS:
            return unknown(
                Reason.CONFLICTING_DATA,
                "another lineage is on record, but the antigen speaks for the one asked for",
                sure,
            )
        if gaps:
            missing = unavailable(gaps, self.stated, "a diagnosis with the lineage asked for")
            return missing._replace(evidence=tuple(evidence_of(fact) for fact in sure))
        return Finding(
            Outcome.FAIL,
            Reason.RECORD_PRESENT,
            "the leukaemia is of another lineage",
            tuple(evidence_of(fact) for fact in sure),
            unique(*(assumptions_of(fact) for fact in sure)),
        )

    @staticmethod
    def _present(facts: list[ConditionFact], text: str) -> Draft:
        return Draft(
            Outcome.PASS,
            Reason.RECORD_PRESENT,
            text,
            tuple(evidence_of(fact) for fact in facts),
            unique(*(assumptions_of(fact) for fact in facts)),
        )

    def words(self) -> str:
        return (
            f"a confirmed condition in {', '.join(self.stated)}: pass; else one in "
            f"{', '.join(self.other)}: fail; else one in {', '.join(self.unstated)}: pass if "
            f"{self.confirmed_by} passes, else unknown; none: fail"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Condition", (*self.stated, *self.other, *self.unstated, *self.unspecified))

    def unknowns(self) -> tuple[str, ...]:
        return ("unmapped-code", "conflicting-data", "unconfirmed", "source-unavailable")


class SiteOnly(RuleBase, frozen=True, kw_only=True, tag="disease-site"):
    """Disease outside a site only: an active record of it needs the site's own criterion.

    ``site``: the criterion whose pass shows disease at the site asked for (I4, marrow).
    """

    elsewhere: SetNames
    site: str
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        finder = Finder(resource="Condition", codes=self.elsewhere, then="judgement", when="active")
        findings = finder.findings(ctx)
        gaps = ctx.gaps(("Condition",), self.elsewhere)
        if gaps:
            findings.append(unavailable(gaps, self.elsewhere, "disease elsewhere"))
        decided = worst(findings)
        if decided is None:
            return Draft(Outcome.PASS, Reason.RECORD_ABSENT, "no disease elsewhere on record")
        at_site = ctx.result(self.site)
        if at_site.outcome is Outcome.PASS:
            return Draft(
                Outcome.PASS,
                Reason.VALUE_MEETS,
                f"{self.site} shows disease at the site itself",
                unique(decided.evidence, at_site.evidence),
                decided.assumptions,
            )
        if decided.reason is Reason.JUDGEMENT_REQUIRED:
            decided = decided._replace(settled_by=(Settles(self.question),))
        return draft_of(decided)

    def words(self) -> str:
        return (
            f"an active condition in {', '.join(self.elsewhere)}: pass if {self.site} passes, "
            "else judgement; none: pass"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Condition", self.elsewhere)

    def unknowns(self) -> tuple[str, ...]:
        return (
            "judgement-required",
            "unconfirmed",
            "status-not-recorded",
            "conflicting-data",
            "unmapped-code",
            "source-unavailable",
        )
