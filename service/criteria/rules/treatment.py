"""A disease that requires treatment: the treatment's stated reason decides (part 2, E4)."""

from __future__ import annotations

from collections.abc import Iterator

from service.criteria.activity import courses
from service.criteria.context import (
    MEDICATION,
    Context,
    Draft,
    Finding,
    draft_of,
    evidence_of,
    unavailable,
    unique,
    worst,
)
from service.criteria.model import Settles
from service.criteria.rules.base import Reads, RuleBase, SetNames, WindowText
from service.criteria.rules.records import Finder, in_use
from service.facts.model import ConditionFact, EventFact, Standing
from service.terms import Match
from service.values.logic import Outcome, Reason


class ConditionOnTreatment(RuleBase, frozen=True, kw_only=True, tag="condition-on-treatment"):
    """An active condition with a medicine in use whose stated reason is that condition.

    Otherwise an active one needs a judgement, since the medicine may serve another purpose.
    """

    conditions: SetNames
    medicines: SetNames
    within: WindowText
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        finder = Finder(
            resource="Condition", codes=self.conditions, then="judgement", when="active"
        )
        matched = [
            (match, fact)
            for match, fact in ctx.find("Condition", self.conditions)
            if match is not Match.EXCLUDE and isinstance(fact, ConditionFact)
        ]
        findings: list[Finding] = []
        for course in courses(matched, ctx):
            finding = finder.of_course(course, ctx)
            if finding.reason is Reason.RECORD_ABSENT:
                continue
            treated = self._treated(course.facts, ctx)
            sure = finding.reason is Reason.JUDGEMENT_REQUIRED and course.match is Match.INCLUDE
            if sure and treated:
                finding = Finding(
                    Outcome.FAIL,
                    Reason.RECORD_PRESENT,
                    f"{course.deciding[0].reference} is treated with {treated[0].reference}",
                    unique(finding.evidence, (evidence_of(fact) for fact in treated)),
                    finding.assumptions,
                )
            findings.append(finding)
        gaps = ctx.gaps(("Condition",), self.conditions)
        if gaps:
            findings.append(unavailable(gaps, self.conditions, "the disease"))
        decided = worst(findings)
        if decided is None:
            return Draft(Outcome.PASS, Reason.RECORD_ABSENT, "no such active disease on record")
        if decided.reason is Reason.JUDGEMENT_REQUIRED:
            decided = decided._replace(settled_by=(Settles(self.question), *decided.settled_by))
        return draft_of(decided)

    def _treated(self, facts: tuple[ConditionFact, ...], ctx: Context) -> list[EventFact]:
        """List medicines in use that state one of these records, or its code, as reason."""
        references = {fact.reference for fact in facts}
        codings = {coding for fact in facts for coding in fact.concept.codings}
        found: list[EventFact] = []
        for match, fact in ctx.find(MEDICATION, self.medicines):
            if match is not Match.INCLUDE or not isinstance(fact, EventFact):
                continue
            if fact.standing is not Standing.COUNTS or fact.modified or fact.conflicting:
                continue
            stated = references & set(fact.reason_references) or any(
                codings & reason.codings for reason in fact.reasons
            )
            if stated and in_use(fact, self.within, ctx) is None:
                found.append(fact)
        return found

    def words(self) -> str:
        return (
            f"an active condition in {', '.join(self.conditions)}: fail if a medicine in "
            f"{', '.join(self.medicines)} in use within {self.within} states it as its reason, "
            "else judgement; none: pass"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Condition", self.conditions)
        yield Reads(MEDICATION, self.medicines)

    def unknowns(self) -> tuple[str, ...]:
        return (
            "judgement-required",
            "unconfirmed",
            "status-not-recorded",
            "conflicting-data",
            "unmapped-code",
            "indeterminate-date",
            "source-unavailable",
        )
