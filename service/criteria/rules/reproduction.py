"""Pregnancy: tests, childbearing potential, pregnancy itself (part 2, I8, E2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

import msgspec

from service.criteria.activity import courses
from service.criteria.context import (
    Context,
    Draft,
    Finding,
    assumptions_of,
    draft_of,
    evidence_of,
    finding_of,
    settles,
    unavailable,
    worst,
)
from service.criteria.latest import Latest, judge_latest, select
from service.criteria.model import Evidence, Settles
from service.criteria.reading import Polarity, read_number, read_polarity, to_unit
from service.criteria.rules.base import (
    RESULT_UNKNOWNS,
    Reads,
    RuleBase,
    SetNames,
    WindowText,
    window_of,
)
from service.criteria.rules.records import Finder
from service.facts.model import Activity, ConditionFact, EventFact, Fact, ObservationFact, Standing
from service.terms import Match
from service.values.logic import Outcome, Reason
from service.values.quantities import Unit


class PregnancyTests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as a pregnancy test and how it is read.

    ``qualitative`` and ``quantitative``: results; a quantity below ``negative_below`` is
    negative, from ``positive_from`` positive. ``positive_codes``, ``negative_codes``:
    conditions that state a result (Z32.01, Z32.02).
    """

    qualitative: SetNames
    quantitative: SetNames
    unit: str
    negative_below: Decimal
    positive_from: Decimal
    positive_codes: tuple[str, ...] = ()
    negative_codes: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[str, ...]:
        """Give the sets of results."""
        return (*self.qualitative, *self.quantitative)

    @property
    def codes(self) -> tuple[str, ...]:
        """Give the sets of conditions that state a result."""
        return (*self.positive_codes, *self.negative_codes)

    def latest(self, ctx: Context) -> Latest:
        """Find the latest test, result or code."""
        coded = [
            fact
            for match, fact in ctx.find("Condition", self.codes)
            if match in (Match.INCLUDE, Match.CONFLICT) and isinstance(fact, ConditionFact)
        ]
        return select(ctx, self.results, coded=True, also=coded, also_in=self.codes)

    def polarity(self, fact: Fact, ctx: Context) -> Polarity | Reason:
        """Read one test."""
        if isinstance(fact, ConditionFact):
            if not fact.confirmed or fact.modified:
                return Reason.UNCONFIRMED
            positive = fact.concept.included(self.positive_codes)
            if positive and fact.concept.included(self.negative_codes):
                return Reason.CONFLICTING_DATA
            return Polarity.POSITIVE if positive else Polarity.NEGATIVE
        assert isinstance(fact, ObservationFact)
        stated = read_polarity(fact, ctx.facts.terms)
        if not fact.concept.included(self.quantitative):
            return stated
        number = self._number(fact, ctx)
        if stated is Reason.CONFLICTING_DATA:
            return stated
        if isinstance(number, Reason):
            return stated if isinstance(stated, Polarity) else number
        if isinstance(stated, Polarity) and stated is not number:
            return Reason.CONFLICTING_DATA
        return number

    def _number(self, fact: ObservationFact, ctx: Context) -> Polarity | Reason:
        measured = read_number(fact, ctx.facts.terms)
        if isinstance(measured, Reason):
            return measured
        target = ctx.facts.terms.unit(self.unit) or Unit(self.unit)
        interval = to_unit(measured, target, None, ctx.facts.terms)
        if interval is None:
            return Reason.INCOMPARABLE_UNIT
        if interval.below(Fraction(self.negative_below)):
            return Polarity.NEGATIVE
        if interval.at_least(Fraction(self.positive_from)):
            return Polarity.POSITIVE
        return Reason.INDETERMINATE_VALUE

    def words(self) -> str:
        """Say how tests are read."""
        return (
            f"latest of {', '.join((*self.results, *self.codes))} (quantitative: below "
            f"{self.negative_below} {self.unit} negative, from {self.positive_from} positive)"
        )


def _tested(fact: Fact, polarity: Polarity | Reason) -> Finding:
    if isinstance(polarity, Reason):
        return Finding(
            Outcome.UNKNOWN, polarity, f"{fact.reference}: neither positive nor negative"
        )
    evidence = (evidence_of(fact, compared=polarity.value),)
    text = f"{fact.reference}: pregnancy test {polarity.value}"
    if polarity is Polarity.NEGATIVE:
        return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)
    return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence)


def not_for_men(ctx: Context) -> Draft | None:
    """Answer for men, and where versions of the Patient differ; None for all others."""
    person = ctx.facts.person
    if person.conflicting:
        return Draft(
            Outcome.UNKNOWN,
            Reason.CONFLICTING_DATA,
            "versions of the Patient differ",
            (Evidence(person.reference, version=person.version),),
            settled_by=(Settles("which version of the Patient holds", "Patient"),),
        )
    if person.sex == "male":
        return Draft(Outcome.PASS, Reason.NOT_APPLICABLE, "does not apply to men")
    return None


class PregnancyTest(RuleBase, frozen=True, kw_only=True, tag="pregnancy-test"):
    """A negative pregnancy test of those of childbearing potential (I8.pregnancy_test)."""

    tests: PregnancyTests
    within: WindowText
    from_age: int
    to_age: int
    not_childbearing: SetNames

    def evaluate(self, ctx: Context) -> Draft:
        apart = not_for_men(ctx)
        if apart is not None:
            return apart
        young, old = self._age(ctx)
        if young is True or old is True:
            return Draft(Outcome.PASS, Reason.NOT_APPLICABLE, "not of childbearing age")
        proof = self._not_childbearing(ctx)
        if proof:
            return Draft(
                Outcome.PASS,
                Reason.NOT_APPLICABLE,
                "not of childbearing potential",
                tuple(evidence_of(fact) for fact in proof),
            )
        sets = (*self.tests.results, *self.tests.codes)
        draft = judge_latest(
            ctx,
            sets,
            self.tests.latest(ctx),
            lambda fact: _tested(fact, self.tests.polarity(fact, ctx)),
            what="pregnancy test",
            window=window_of(self.within),
        )
        if draft.outcome is not Outcome.FAIL:
            return draft
        return self._proven(ctx, draft, young, old)

    def _age(self, ctx: Context) -> tuple[bool | None, bool | None]:
        grown = ctx.age_at_least(self.from_age)
        return (None if grown is None else not grown), ctx.age_at_least(self.to_age + 1)

    def _proven(self, ctx: Context, draft: Draft, young: bool | None, old: bool | None) -> Draft:
        """A positive test fails only those who are known to be of childbearing potential."""
        if young is None or old is None:
            missing = ctx.facts.person.birth is None
            reason = Reason.NO_DATA if missing else Reason.INDETERMINATE_DATE
            return Draft(
                Outcome.UNKNOWN,
                reason,
                "the age, and so childbearing potential, isn't known",
                draft.evidence,
                draft.assumptions,
                (Settles("the full date of birth", "Patient"),),
            )
        gaps = ctx.gaps(("Condition", "Procedure"), self.not_childbearing)
        if gaps:
            finding = unavailable(gaps, self.not_childbearing, "childbearing potential")
            return draft_of(finding._replace(evidence=draft.evidence))
        return draft

    def _not_childbearing(self, ctx: Context) -> list[Fact]:
        return [
            fact
            for kind in ("Condition", "Procedure")
            for match, fact in ctx.find(kind, self.not_childbearing)
            if match is Match.INCLUDE and not fact.conflicting and not fact.modified and _sure(fact)
        ]

    def words(self) -> str:
        return (
            f"not male, age {self.from_age} to {self.to_age}, nothing of "
            f"{', '.join(self.not_childbearing)} on record: {self.tests.words()} within "
            f"{self.within} negative: pass, positive: fail; others: not applicable"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Observation", self.tests.results)
        yield Reads("Condition", (*self.tests.codes, *self.not_childbearing))
        yield Reads("Procedure", self.not_childbearing)

    def unknowns(self) -> tuple[str, ...]:
        return (*RESULT_UNKNOWNS, "incomparable-unit", "indeterminate-value")

    def problems(self) -> Iterator[str]:
        if self.from_age > self.to_age:
            yield f"no age is {self.from_age} to {self.to_age}"


def _sure(fact: Fact) -> bool:
    if isinstance(fact, ConditionFact):
        return fact.confirmed
    return not isinstance(fact, EventFact) or fact.standing is Standing.COUNTS


class Pregnancy(RuleBase, frozen=True, kw_only=True, tag="pregnancy"):
    """Pregnancy by condition, stated status or test (E2.pregnancy)."""

    conditions: SetNames
    begun_within: WindowText
    status: SetNames
    status_pregnant: SetNames
    status_not_pregnant: SetNames
    recent: WindowText
    tests: PregnancyTests
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        apart = not_for_men(ctx)
        if apart is not None:
            return apart
        latest = self.tests.latest(ctx)
        findings = [*self._by_condition(ctx, latest), *self._by_status(ctx)]
        findings += self._by_test(ctx, latest)
        condition_gaps = ctx.gaps(("Condition",), (*self.conditions, *self.tests.codes))
        if condition_gaps:
            findings.append(unavailable(condition_gaps, self.conditions, "pregnancy"))
        decided = worst(findings)
        if decided is None:
            return Draft(Outcome.PASS, Reason.RECORD_ABSENT, "no pregnancy on record")
        if decided.reason is Reason.JUDGEMENT_REQUIRED:
            decided = decided._replace(settled_by=(Settles(self.question),))
        return draft_of(decided)

    def _by_condition(self, ctx: Context, latest: Latest) -> list[Finding]:
        matched = [
            (match, fact)
            for match, fact in ctx.find("Condition", self.conditions)
            if match is not Match.EXCLUDE and isinstance(fact, ConditionFact)
        ]
        found: list[Finding] = []
        finder = Finder(resource="Condition", codes=self.conditions, then="fail", when="active")
        for course in courses(matched, ctx):
            if course.activity is Activity.INACTIVE:
                continue
            finding = finder.of_course(course, ctx)
            if finding.outcome is Outcome.FAIL:
                finding = self._begun(finding, course.deciding, ctx, latest)
            found.append(finding)
        return found

    def _begun(
        self, finding: Finding, deciding: Sequence[ConditionFact], ctx: Context, latest: Latest
    ) -> Finding:
        """Begun recently: fail; long ago, or before a negative test: judgement."""
        fact = deciding[0]
        dated = [each.onset for each in deciding if each.onset is not None]
        inside = [ctx.within(when, window_of(self.begun_within)) for when in dated]
        reason: Reason | None = None
        if not dated or (True not in inside and None in inside):
            reason = Reason.INDETERMINATE_DATE
        elif True not in inside or self._negative_since(fact, ctx, latest):
            reason = Reason.JUDGEMENT_REQUIRED
        if reason is None:
            return finding
        return finding._replace(
            outcome=Outcome.UNKNOWN,
            reason=reason,
            message=f"{fact.reference}: an active pregnancy that may be over",
            settled_by=(settles(reason, fact.reference),),
        )

    def _negative_since(self, fact: ConditionFact, ctx: Context, latest: Latest) -> bool:
        return any(
            test.when is not None
            and fact.onset is not None
            and not test.when.definitely_before(fact.onset)
            and self.tests.polarity(test, ctx) is Polarity.NEGATIVE
            for test in latest.top
        )

    def _by_status(self, ctx: Context) -> list[Finding]:
        latest = select(ctx, self.status)
        if latest.gaps:
            return [unavailable(latest.gaps, self.status, "pregnancy status")]
        findings = []
        for fact in latest.top:
            assert isinstance(fact, ObservationFact)
            finding = self._status(fact, ctx)
            if finding is not None:
                findings.append(finding)
        outcomes = {finding.outcome for finding in findings}
        if len(outcomes) > 1:
            reason = Reason.CONFLICTING_DATA
            facts = latest.top
            return [
                Finding(
                    Outcome.UNKNOWN,
                    reason,
                    "statements of the same time differ",
                    tuple(evidence_of(fact) for fact in facts),
                    (),
                    tuple(settles(reason, fact.reference) for fact in facts),
                )
            ]
        return findings

    def _status(self, fact: ObservationFact, ctx: Context) -> Finding | None:
        evidence = (evidence_of(fact),)
        assumptions = assumptions_of(fact)
        if fact.conflicting:
            return self._open(fact, Reason.CONFLICTING_DATA)
        if fact.modified:
            return self._open(fact, Reason.UNREADABLE_VALUE)
        if fact.coded is not None and fact.coded.included(self.status_not_pregnant):
            recent = fact.when is not None and ctx.within(fact.when, window_of(self.recent))
            if not recent:
                return None
            return Finding(
                Outcome.PASS,
                Reason.VALUE_MEETS,
                f"{fact.reference}: not pregnant",
                evidence,
                assumptions,
            )
        if fact.coded is None or not fact.coded.included(self.status_pregnant):
            if (
                fact.when is not None
                and ctx.within(fact.when, window_of(self.begun_within)) is False
            ):
                return None
            return self._open(fact, Reason.UNREADABLE_VALUE)
        if fact.when is None:
            return self._open(fact, Reason.INDETERMINATE_DATE)
        recent = ctx.within(fact.when, window_of(self.recent))
        if recent:
            return Finding(
                Outcome.FAIL,
                Reason.VALUE_VIOLATES,
                f"{fact.reference}: pregnant",
                evidence,
                assumptions,
            )
        begun = ctx.within(fact.when, window_of(self.begun_within))
        if begun is False:
            return None
        if recent is None or begun is None:
            return self._open(fact, Reason.INDETERMINATE_DATE)
        return self._open(fact, Reason.JUDGEMENT_REQUIRED)

    @staticmethod
    def _open(fact: Fact, reason: Reason) -> Finding:
        return Finding(
            Outcome.UNKNOWN,
            reason,
            f"{fact.reference}: pregnancy status ({reason.value})",
            (evidence_of(fact),),
            assumptions_of(fact),
            (settles(reason, fact.reference),),
        )

    def _by_test(self, ctx: Context, latest: Latest) -> list[Finding]:
        window = window_of(self.recent)
        sets = (*self.tests.results, *self.tests.codes)
        draft = judge_latest(
            ctx,
            sets,
            latest,
            lambda fact: _tested(fact, self.tests.polarity(fact, ctx)),
            what="pregnancy test",
            window=None,
        )
        if draft.reason is Reason.NO_DATA:
            return []
        finding = finding_of(draft)
        if draft.outcome is Outcome.UNKNOWN:
            return [finding]
        inside = {
            ctx.within(fact.when, window) if fact.when is not None else None for fact in latest.top
        }
        if inside == {True}:
            return [finding]
        if draft.outcome is Outcome.PASS:
            return []
        reason = Reason.STALE_DATA if inside == {False} else Reason.INDETERMINATE_DATE
        return [
            finding._replace(
                outcome=Outcome.UNKNOWN,
                reason=reason,
                message=f"the latest pregnancy test is positive ({reason.value})",
                settled_by=(Settles("a new pregnancy test", "Observation", self.tests.results),),
            )
        ]

    def words(self) -> str:
        return (
            f"not male; an active condition in {', '.join(self.conditions)} begun within "
            f"{self.begun_within}, a status pregnant or a positive test within {self.recent}: "
            "fail; an older one, or one before a negative test: judgement; none: pass"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Condition", (*self.conditions, *self.tests.codes))
        yield Reads(
            "Observation",
            (*self.tests.results, *self.status, *self.status_pregnant, *self.status_not_pregnant),
        )

    def unknowns(self) -> tuple[str, ...]:
        return (
            "judgement-required",
            *RESULT_UNKNOWNS,
            "unconfirmed",
            "status-not-recorded",
            "unmapped-code",
            "indeterminate-value",
            "incomparable-unit",
        )


class Lactation(RuleBase, frozen=True, kw_only=True, tag="lactation"):
    """Lactation by condition or stated status, now or recently (E2.lactation)."""

    conditions: SetNames
    status: SetNames
    yes_values: SetNames
    recent: WindowText
    long_ago: WindowText
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        apart = not_for_men(ctx)
        if apart is not None:
            return apart
        finder = Finder(
            resource="Condition",
            codes=self.conditions,
            then="fail",
            when="recent",
            within=self.recent,
            long_ago=self.long_ago,
        )
        findings = [*finder.findings(ctx), *self._by_status(ctx)]
        gaps = ctx.gaps(("Condition",), self.conditions)
        if gaps:
            findings.append(unavailable(gaps, self.conditions, "lactation"))
        decided = worst(findings)
        if decided is None or decided.outcome is Outcome.PASS:
            evidence = decided.evidence if decided is not None else ()
            return Draft(
                Outcome.PASS, Reason.RECORD_ABSENT, "no present lactation on record", evidence
            )
        if decided.reason is Reason.JUDGEMENT_REQUIRED:
            decided = decided._replace(settled_by=(Settles(self.question),))
        return draft_of(decided)

    def _by_status(self, ctx: Context) -> list[Finding]:
        latest = select(ctx, (*self.status, *self.conditions))
        if latest.gaps:
            return [unavailable(latest.gaps, self.status, "lactation")]
        draft = judge_latest(
            ctx,
            (*self.status, *self.conditions),
            latest,
            self._stated,
            what="breastfeeding",
            window=window_of(self.recent),
        )
        if draft.reason in (Reason.NO_DATA, Reason.STALE_DATA):
            return []
        return [finding_of(draft)]

    def _stated(self, fact: ObservationFact) -> Finding:
        yes = fact.coded is not None and fact.coded.match(self.yes_values)
        evidence = (evidence_of(fact),)
        if yes is Match.INCLUDE:
            text = f"{fact.reference}: breastfeeding"
            return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence)
        if yes is Match.EXCLUDE:
            text = f"{fact.reference}: not breastfeeding"
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)
        text = f"{fact.reference}: says neither yes nor no"
        return Finding(Outcome.UNKNOWN, Reason.UNREADABLE_VALUE, text, evidence)

    def words(self) -> str:
        return (
            f"not male; a condition in {', '.join(self.conditions)} active or within "
            f"{self.recent}, or a status breastfeeding within {self.recent}: fail; active but "
            f"begun more than {self.long_ago} ago: judgement; none: pass"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Condition", self.conditions)
        yield Reads("Observation", (*self.status, *self.conditions, *self.yes_values))

    def unknowns(self) -> tuple[str, ...]:
        return (
            "judgement-required",
            "unconfirmed",
            "status-not-recorded",
            "indeterminate-date",
            "conflicting-data",
            "unmapped-code",
            "unreadable-value",
            "source-unavailable",
        )
