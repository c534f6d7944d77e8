"""Viral infections by condition and by kinds of test (part 2, E8.hiv, E8.hbv, E8.hcv)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    draft_of,
    evidence_of,
    finding_of,
    settles,
    unavailable,
    unique,
    wanted_data,
    worst,
)
from service.criteria.latest import Latest, judge_latest, select
from service.criteria.model import Settles
from service.criteria.reading import Polarity, read_polarity
from service.criteria.rules.base import (
    RESULT_UNKNOWNS,
    Reads,
    RuleBase,
    SetNames,
    WindowText,
    window_of,
)
from service.criteria.rules.records import Finder
from service.facts.model import Fact, ObservationFact
from service.values.logic import Outcome, Reason

Effect = Literal["pass", "fail", "judgement", "nothing"]


class TestKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of test and what its latest result means.

    ``cleared_by``: with a negative result of another kind (by name) at that time or later,
    a positive one means this instead. ``negative`` judgement: unless another kind passes.
    """

    name: str
    codes: SetNames
    positive: Effect
    negative: Effect
    viral_load: bool = False
    cleared_by: dict[str, Effect] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Tested:
    """The latest result of one kind of test."""

    kind: TestKind
    latest: Latest
    draft: Draft
    polarity: Polarity | None


class ViralInfection(RuleBase, frozen=True, kw_only=True, tag="viral-infection"):
    """An active infection, by condition or by test; each kind of test counts by its latest.

    ``condition_cleared_by``: kinds whose negative result at the time of the condition or
    later makes it a matter of judgement. ``inactive_condition``: what a condition means that
    is not active. ``carrier``: conditions that need a judgement.
    """

    conditions: SetNames
    carrier: tuple[str, ...] = ()
    inactive_condition: Literal["judgement"] | None = None
    condition_cleared_by: tuple[str, ...] = ()
    tests: tuple[TestKind, ...]
    within: WindowText
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        tested = [self._tested(kind, ctx) for kind in self.tests]
        findings = self._by_condition(ctx, tested)
        findings += [
            finding
            for result in tested
            if (finding := self._decisive(result, tested, ctx)) is not None
        ]
        if all(finding.outcome is Outcome.PASS for finding in findings):
            findings += self._by_negatives(tested, ctx)
        gaps = ctx.gaps(("Condition",), (*self.conditions, *self.carrier))
        if gaps:
            findings.append(unavailable(gaps, self.conditions, "the infection"))
        decided = worst(findings)
        if decided is None:
            return self._nothing(ctx)
        shown = (entry for result in tested for entry in result.draft.evidence)
        decided = decided._replace(evidence=unique(decided.evidence, shown))
        if decided.reason is Reason.JUDGEMENT_REQUIRED:
            decided = decided._replace(settled_by=(Settles(self.question), *decided.settled_by))
        return draft_of(decided)

    def _nothing(self, ctx: Context) -> Draft:
        sets = tuple(name for kind in self.tests for name in kind.codes)
        wanted = wanted_data(ctx, "Observation", sets, "a test", window_of(self.within))
        return Draft(
            Outcome.UNKNOWN,
            Reason.NO_DATA,
            "neither condition nor test on record",
            settled_by=(wanted,),
        )

    def _tested(self, kind: TestKind, ctx: Context) -> _Tested:
        latest = select(ctx, kind.codes, coded=True)

        def assess(fact: ObservationFact) -> Finding:
            polarity = read_polarity(fact, ctx.facts.terms, viral_load=kind.viral_load)
            if isinstance(polarity, Reason):
                return Finding(
                    Outcome.UNKNOWN, polarity, f"{fact.reference}: neither positive nor negative"
                )
            evidence = (evidence_of(fact, compared=polarity.value),)
            text = f"{kind.name}: {polarity.value} ({fact.reference})"
            if polarity is Polarity.POSITIVE:
                return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence)
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)

        draft = judge_latest(ctx, kind.codes, latest, assess, what=kind.name, window=None)
        polarity = {Outcome.FAIL: Polarity.POSITIVE, Outcome.PASS: Polarity.NEGATIVE}
        return _Tested(kind, latest, draft, polarity.get(draft.outcome))

    def _decisive(self, result: _Tested, tested: list[_Tested], ctx: Context) -> Finding | None:
        """Judge a kind whose latest result is positive or can't be used."""
        finding = finding_of(result.draft)
        if finding.outcome is Outcome.UNKNOWN:
            return None if finding.reason is Reason.NO_DATA else finding
        if result.polarity is Polarity.NEGATIVE:
            return None
        effect: str = result.kind.positive
        for name, then in result.kind.cleared_by.items():
            other = next(each for each in tested if each.kind.name == name)
            if effect == "judgement" and other.draft.reason in _UNUSABLE:
                # The other kind was tested too, and its own reason says what is missing.
                return None
            if other.polarity is not Polarity.NEGATIVE:
                continue
            since = _since(other, result.latest.top)
            if since is None:
                return _undated(finding, result.latest.top)
            if since:
                if then == "pass" and self._fresh(other, ctx) is not True:
                    return self._aged(other, ctx)
                effect = then
                break
        return _with_effect(finding, effect, result.latest.top)

    def _by_negatives(self, tested: list[_Tested], ctx: Context) -> list[Finding]:
        """Judge by negative results alone: a fresh one that suffices, else why none does."""
        negative = [result for result in tested if result.polarity is Polarity.NEGATIVE]
        fresh = [result for result in negative if self._fresh(result, ctx) is True]
        enough = [result for result in fresh if result.kind.negative == "pass"]
        if enough:
            return [finding_of(result.draft) for result in enough]
        found = [
            finding
            for result in fresh
            if result.kind.negative == "judgement"
            if (finding := _with_effect(finding_of(result.draft), "judgement", result.latest.top))
        ]
        found += [
            self._aged(result, ctx)
            for result in negative
            if result not in fresh and result.kind.negative != "nothing"
        ]
        return found

    def _fresh(self, result: _Tested, ctx: Context) -> bool | None:
        window = window_of(self.within)
        tests = {
            ctx.within(fact.when, window) if fact.when is not None else None
            for fact in result.latest.top
        }
        return tests.pop() if len(tests) == 1 else None

    def _aged(self, result: _Tested, ctx: Context) -> Finding:
        old = self._fresh(result, ctx) is False
        reason = Reason.STALE_DATA if old else Reason.INDETERMINATE_DATE
        wanted = wanted_data(
            ctx,
            "Observation",
            result.kind.codes,
            f"a newer test ({result.kind.name})",
            window_of(self.within),
        )
        return finding_of(result.draft)._replace(
            outcome=Outcome.UNKNOWN,
            reason=reason,
            message=f"{result.kind.name}: the negative result is not known to be within "
            f"{self.within}",
            settled_by=(wanted,),
        )

    def _by_condition(self, ctx: Context, tested: list[_Tested]) -> list[Finding]:
        finder = Finder(
            resource="Condition",
            codes=self.conditions,
            then="fail",
            when="active",
            inactive=self.inactive_condition,
        )
        found: list[Finding] = []
        for finding in finder.findings(ctx):
            cleared = finding.outcome is Outcome.FAIL and self._cleared(ctx, finding, tested)
            found.append(
                finding._replace(
                    outcome=Outcome.UNKNOWN,
                    reason=Reason.JUDGEMENT_REQUIRED,
                    message=f"{finding.message}, but a later test is negative",
                )
                if cleared
                else finding
            )
        if self.carrier:
            carrier = Finder(
                resource="Condition", codes=self.carrier, then="judgement", when="active"
            )
            found += carrier.findings(ctx)
        return found

    def _cleared(self, ctx: Context, finding: Finding, tested: list[_Tested]) -> bool:
        references = {entry.reference for entry in finding.evidence}
        dated = [
            fact
            for _, fact in ctx.find("Condition", self.conditions)
            if fact.reference in references
        ]
        return any(
            result.polarity is Polarity.NEGATIVE and _since(result, dated) is not False
            for result in tested
            if result.kind.name in self.condition_cleared_by
        )

    def words(self) -> str:
        parts = [f"an active condition in {', '.join(self.conditions)}: fail"]
        if self.carrier:
            parts.append(f"{', '.join(self.carrier)}: judgement")
        for kind in self.tests:
            cleared = "".join(
                f" (with a later negative {name}: {then})" for name, then in kind.cleared_by.items()
            )
            parts.append(
                f"{kind.name} positive: {kind.positive}{cleared}, negative within "
                f"{self.within}: {kind.negative}"
            )
        return "; ".join(parts) + "; neither condition nor test: unknown"

    def reads(self) -> Iterator[Reads]:
        yield Reads("Condition", (*self.conditions, *self.carrier))
        yield Reads("Observation", tuple(name for kind in self.tests for name in kind.codes))

    def unknowns(self) -> tuple[str, ...]:
        return (
            "judgement-required",
            *RESULT_UNKNOWNS,
            "indeterminate-value",
            "unconfirmed",
            "status-not-recorded",
            "unmapped-code",
        )

    def problems(self) -> Iterator[str]:
        names = {kind.name for kind in self.tests}
        for kind in self.tests:
            for name in kind.cleared_by:
                if name not in names:
                    yield f"cleared_by names {name!r}, which is no kind of test here"
        for name in self.condition_cleared_by:
            if name not in names:
                yield f"condition_cleared_by names {name!r}, which is no kind of test here"


_UNUSABLE = (
    Reason.UNREADABLE_VALUE,
    Reason.INDETERMINATE_VALUE,
    Reason.CONFLICTING_DATA,
    Reason.INDETERMINATE_DATE,
    Reason.SOURCE_UNAVAILABLE,
)


def _since(result: _Tested, facts: Sequence[Fact]) -> bool | None:
    """Tell whether a result is of the time of the records or later; None if not known."""
    answers = {_not_before(test, fact) for test in result.latest.top for fact in facts}
    if answers == {True}:
        return True
    return False if False in answers else None


def _not_before(test: Fact, fact: Fact) -> bool | None:
    if test.when is None or fact.when is None:
        return None
    if test.when.definitely_before(fact.when):
        return False
    sure = fact.when.definitely_before(test.when) or fact.when.same_time(test.when)
    return True if sure else None


def _undated(finding: Finding, facts: Sequence[Fact]) -> Finding:
    reason = Reason.INDETERMINATE_DATE
    return finding._replace(
        outcome=Outcome.UNKNOWN,
        reason=reason,
        message=f"{finding.message}; the negative test may be of an earlier time",
        settled_by=tuple(settles(reason, fact.reference) for fact in facts),
    )


def _with_effect(finding: Finding, effect: str, facts: Sequence[Fact]) -> Finding | None:
    if effect == "nothing":
        return None
    if effect == "fail":
        return finding._replace(outcome=Outcome.FAIL, reason=Reason.VALUE_VIOLATES)
    if effect == "pass":
        return finding._replace(outcome=Outcome.PASS, reason=Reason.VALUE_MEETS)
    reason = Reason.JUDGEMENT_REQUIRED
    return finding._replace(
        outcome=Outcome.UNKNOWN,
        reason=reason,
        settled_by=tuple(settles(reason, fact.reference) for fact in facts),
    )
