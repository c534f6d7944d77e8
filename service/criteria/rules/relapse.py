"""Remission and relapse: how long, and after transplantation (part 2, I2.b, I2.d)."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    assumptions_of,
    draft_of,
    evidence_of,
    unavailable,
    unique,
    worst,
)
from service.criteria.latest import observations, without_replaced
from service.criteria.model import Evidence, Settles
from service.criteria.reading import (
    Polarity,
    read_polarity,
)
from service.criteria.rules.base import Reads, RuleBase, SetNames, WindowText, window_of
from service.criteria.rules.weighing import (
    conditions_in,
    is_firm,
    percent_of,
    placed_after,
    unknown,
)
from service.facts.model import ConditionFact, Fact, ObservationFact
from service.terms import Match
from service.values.dates import When, forward
from service.values.logic import Outcome, Reason


class _Relapsing(RuleBase, frozen=True, kw_only=True):
    """What rules about relapse share: how a relapse of the disease is told (I2.b).

    ``relapse``: relapse codes. ``diagnosis``: codes of the disease, whose status may be
    relapse. A ``generic`` relapse code beside a coding of ``other_disease`` is that one's.
    """

    relapse: SetNames
    diagnosis: SetNames
    other_disease: tuple[str, ...] = ()
    generic: tuple[str, ...] = ()

    def relapses(self, ctx: Context) -> list[tuple[Match, ConditionFact]]:
        """List relapses: of a relapse code, or of the diagnosis with status relapse."""
        found: dict[int, tuple[Match, ConditionFact]] = {}
        for match, fact in conditions_in(ctx, self.relapse):
            if match is not Match.EXCLUDE and self._of_the_disease(fact):
                found[id(fact)] = (match, fact)
        for match, fact in conditions_in(ctx, self.diagnosis):
            if match is not Match.EXCLUDE and fact.clinical in ("relapse", "recurrence"):
                found.setdefault(id(fact), (match, fact))
                if match is Match.INCLUDE:
                    found[id(fact)] = (match, fact)
        return list(found.values())

    def _of_the_disease(self, fact: ConditionFact) -> bool:
        if fact.concept.included(self.diagnosis):
            return True
        return fact.concept.only_by(self.other_disease, (*self.generic, *self.relapse))

    def reads(self) -> Iterator[Reads]:
        yield Reads(
            "Condition", (*self.relapse, *self.diagnosis, *self.other_disease, *self.generic)
        )


class RemissionDuration(_Relapsing, frozen=True, kw_only=True, tag="remission-duration"):
    """How long the first remission lasted until relapse (I2.b)."""

    at_most: WindowText
    remission: SetNames
    remission_status: tuple[str, ...] = ()
    remission_value: tuple[str, ...] = ()
    transplant: tuple[str, ...] = ()
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        remissions = self._remissions(ctx)
        relapsed = [fact for _, fact in self.relapses(ctx)]
        shown = tuple(evidence_of(fact) for fact in (*remissions, *relapsed))
        dated = [fact for fact in remissions if fact.when is not None and is_firm(fact)]
        if not dated:
            return self._judge("no dated first remission on record", shown)
        first = min(dated, key=lambda fact: fact.when.start if fact.when else 0)
        began = first.when
        assert began is not None
        before = self._preceding(ctx, began, remissions, relapsed)
        if before:
            shown = unique(shown, (evidence_of(fact) for fact in before))
            return self._judge("it isn't certain that this remission was the first", shown)
        later = [
            fact
            for match, fact in self.relapses(ctx)
            if match is Match.INCLUDE
            and is_firm(fact)
            and fact is not first
            and fact.onset is not None
            and not fact.onset.definitely_before(began)
            and not fact.onset.same_time(began)
        ]
        if not later:
            return self._judge("no relapse after the first remission on record", shown)
        relapse = min(later, key=lambda fact: fact.onset.start if fact.onset else 0)
        gaps = ctx.gaps(("Condition", "Observation", "Procedure"), self._sets())
        if gaps:
            missing = unavailable(gaps, (*self.remission, *self.relapse), "the first remission")
            return draft_of(missing._replace(evidence=shown))
        return self._compared(began, first, relapse, shown)

    def _sets(self) -> tuple[str, ...]:
        return (
            *self.remission,
            *self.remission_status,
            *self.relapse,
            *self.diagnosis,
            *self.transplant,
        )

    def _compared(
        self, began: When, first: Fact, relapse: ConditionFact, shown: tuple[Evidence, ...]
    ) -> Draft:
        assert relapse.onset is not None
        window = window_of(self.at_most)
        facts = (first, relapse)
        assumptions = unique(*(assumptions_of(fact) for fact in facts))
        text = f"first remission {began.text}, relapse {relapse.onset.text}; limit {self.at_most}"
        evidence = tuple(
            entry._replace(compared=text, threshold=f"<= {self.at_most}") for entry in shown
        )
        after = began.definitely_before(relapse.onset)
        if after and relapse.onset.last <= forward(began.first, window):
            return Draft(Outcome.PASS, Reason.VALUE_MEETS, text, evidence, assumptions)
        if relapse.onset.first > forward(began.last, window):
            return Draft(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence, assumptions)
        return draft_of(unknown(Reason.INDETERMINATE_DATE, text, facts)._replace(evidence=evidence))

    def _remissions(self, ctx: Context) -> list[Fact]:
        """List remissions on record, those that aren't confirmed included."""
        found: list[Fact] = [
            fact for match, fact in conditions_in(ctx, self.remission) if match is Match.INCLUDE
        ]
        stated: list[Fact] = [
            fact
            for match, fact in observations(ctx, self.remission_status)
            if match is Match.INCLUDE and fact.coded is not None and not fact.modified
        ]
        found += [
            fact
            for fact in without_replaced(stated)
            if isinstance(fact, ObservationFact)
            and fact.coded is not None
            and fact.coded.included(self.remission_value)
            and self._of_disease(fact, ctx)
        ]
        return found

    def _of_disease(self, fact: ObservationFact, ctx: Context) -> bool:
        """A disease status that is about another condition says nothing of this one."""
        focused = [c for c in ctx.facts.conditions if c.reference in fact.focus]
        return not focused or any(
            c.concept.included((*self.diagnosis, *self.remission, *self.relapse)) for c in focused
        )

    def _preceding(
        self,
        ctx: Context,
        began: When,
        remissions: list[Fact],
        relapsed: list[ConditionFact],
    ) -> list[Fact]:
        """List what shows that the remission may not be the first."""
        found: list[Fact] = [
            fact for fact in relapsed if fact.onset is None or fact.onset.definitely_before(began)
        ]
        found += [
            fact
            for fact in remissions
            if not is_firm(fact) and (fact.when is None or not began.definitely_before(fact.when))
        ]
        found += [
            fact
            for kind in ("Procedure", "Condition")
            for match, fact in ctx.find(kind, self.transplant)
            if match is not Match.EXCLUDE
            and (fact.when is None or not began.definitely_before(fact.when))
        ]
        return found

    def _judge(self, text: str, shown: tuple[Evidence, ...]) -> Draft:
        return Draft(
            Outcome.UNKNOWN,
            Reason.JUDGEMENT_REQUIRED,
            f"{self.question} ({text})",
            shown,
            settled_by=(Settles(self.question),),
        )

    def words(self) -> str:
        return (
            f"first remission ({', '.join((*self.remission, *self.remission_status))}) to the "
            f"earliest later relapse ({', '.join(self.relapse)}): at most {self.at_most}: pass, "
            "longer: fail; otherwise judgement"
        )

    def reads(self) -> Iterator[Reads]:
        yield from super().reads()
        yield Reads("Condition", (*self.remission, *self.transplant))
        yield Reads("Observation", (*self.remission_status, *self.remission_value))
        yield Reads("Procedure", self.transplant)

    def unknowns(self) -> tuple[str, ...]:
        return ("judgement-required", "indeterminate-date", "source-unavailable")


class RelapseAfterTransplant(_Relapsing, frozen=True, kw_only=True, tag="relapse-after-transplant"):
    """A relapse, positive residual disease or blasts after the latest transplantation (I2.d)."""

    transplant: SetNames
    transplant_status: tuple[str, ...] = ()
    residual: SetNames
    residual_from: Decimal
    blasts: SetNames
    blasts_from: Decimal
    reports: tuple[str, ...] = ()

    def evaluate(self, ctx: Context) -> Draft:
        done, status, doubtful = self._transplants(ctx)
        shown = tuple(evidence_of(fact) for fact in (*done, *status, *doubtful))
        if not done and not status:
            draft = self._none(ctx, doubtful)
        else:
            draft = self._after(ctx, done, status, doubtful)
        return Draft(
            draft.outcome,
            draft.reason,
            draft.message,
            unique(shown, draft.evidence),
            draft.assumptions,
            draft.settled_by,
        )

    def _transplants(self, ctx: Context) -> tuple[list[Fact], list[Fact], list[Fact]]:
        done: list[Fact] = []
        status: list[Fact] = []
        doubtful: list[Fact] = []
        sets = (*self.transplant, *self.transplant_status)
        for kind in ("Procedure", "Condition"):
            for match, fact in ctx.find(kind, sets):
                if match is Match.EXCLUDE:
                    continue
                if not is_firm(fact) or match is not Match.INCLUDE or fact.conflicting:
                    doubtful.append(fact)
                elif kind == "Procedure" and fact.concept.included(self.transplant):
                    done.append(fact)
                else:
                    status.append(fact)
        return done, status, doubtful

    def _none(self, ctx: Context, doubtful: list[Fact]) -> Draft:
        sets = (*self.transplant, *self.transplant_status)
        findings = [
            unknown(self._doubt(fact), "a transplantation may have been done", (fact,))
            for fact in doubtful
        ]
        decided = worst(findings)
        if decided is not None:
            return draft_of(decided)
        gaps = ctx.gaps(("Procedure", "Condition"), sets)
        if gaps:
            return draft_of(unavailable(gaps, sets, "a transplantation"))
        return Draft(Outcome.FAIL, Reason.RECORD_ABSENT, "no transplantation on record")

    def _doubt(self, fact: Fact) -> Reason:
        if not is_firm(fact):
            return Reason.UNCONFIRMED
        match = fact.concept.match((*self.transplant, *self.transplant_status))
        if match is Match.UNMAPPED:
            return Reason.UNMAPPED_CODE
        return Reason.CONFLICTING_DATA

    def _after(
        self, ctx: Context, done: list[Fact], status: list[Fact], doubtful: list[Fact]
    ) -> Draft:
        since = self._since(done) if done else self._earliest(status)
        findings = self._findings(ctx, since)
        passed = [finding for finding in findings if finding.outcome is Outcome.PASS]
        if passed:
            return draft_of(self._passed(ctx, passed, since, doubtful))
        decided = worst([f for f in findings if f.outcome is Outcome.UNKNOWN])
        if decided is not None:
            return draft_of(decided)
        if not done:
            return draft_of(
                unknown(
                    Reason.INDETERMINATE_DATE,
                    "when the transplantation was done isn't recorded",
                    status,
                )
            )
        sets = (
            *self.relapse,
            *self.diagnosis,
            *self.residual,
            *self.blasts,
            *self.reports,
            *self.transplant,
        )
        gaps = ctx.gaps(("Procedure", "Condition", "Observation"), sets)
        if gaps:
            return draft_of(unavailable(gaps, sets, "a relapse after transplantation"))
        return Draft(
            Outcome.FAIL, Reason.RECORD_ABSENT, "no relapse on record after the transplantation"
        )

    def _passed(
        self,
        ctx: Context,
        passed: list[Finding],
        since: When | None,
        doubtful: list[Fact],
    ) -> Finding:
        """Pass, unless a later transplantation may be missing or isn't certain."""
        evidence = unique(*(finding.evidence for finding in passed))
        relapsed = [f for f in passed if f.reason is Reason.RECORD_PRESENT]
        results = (*self.residual, *self.blasts)
        lost = () if relapsed else ctx.gaps(("Observation",), results)
        if lost:
            # A result may have been corrected since, or contradicted by one of its time.
            missing = unavailable(lost, results, "what the results say now")
            return missing._replace(evidence=evidence)
        gaps = ctx.gaps(("Procedure",), self.transplant)
        if gaps:
            missing = unavailable(gaps, self.transplant, "a later transplantation")
            return missing._replace(evidence=evidence)
        later = [fact for fact in doubtful if placed_after(fact.when, since) is not False]
        if later:
            # What came after every one of them is after the latest transplantation anyhow.
            after_all = [
                finding
                for latest in [self._since([*later])]
                for finding in self._findings(ctx, latest)
                if finding.outcome is Outcome.PASS
            ]
            if not after_all:
                found = [
                    unknown(
                        self._doubt(fact), "a later transplantation may have been done", (fact,)
                    )
                    for fact in later
                ]
                return (worst(found) or found[0])._replace(evidence=evidence)
        return passed[0]._replace(evidence=evidence)

    @staticmethod
    def _since(done: list[Fact]) -> When | None:
        """Give the time of the latest transplantation; None if one is undated."""
        if any(fact.when is None for fact in done):
            return None
        return max((f.when for f in done if f.when), key=lambda when: (when.end, when.start))

    @staticmethod
    def _earliest(status: list[Fact]) -> When | None:
        dated = [fact.when for fact in status if fact.when]
        return min(dated, key=lambda when: (when.end, when.start), default=None)

    def _findings(self, ctx: Context, since: When | None) -> list[Finding]:
        found: list[Finding] = []
        for match, relapse in self.relapses(ctx):
            found += self._of_relapse(match, relapse, since)
        results = [
            finding
            for kind in (self.residual, self.blasts)
            for finding in self._of_kind(kind, since, ctx)
        ]
        found += [finding for finding in results if finding.outcome is not Outcome.FAIL]
        if not found and not results:
            for _, fact in observations(ctx, self.reports):
                if placed_after(fact.when, since) is True:
                    found.append(
                        unknown(Reason.UNREADABLE_VALUE, "only a narrative report", (fact,))
                    )
        return found

    def _of_kind(self, kind: tuple[str, ...], since: When | None, ctx: Context) -> list[Finding]:
        """Judge each result of a kind; those of one time must agree (1.3)."""
        valued: list[Fact] = [
            fact for _, fact in observations(ctx, kind) if fact.has_value or fact.interpretation
        ]
        facts = without_replaced(valued)
        judged = [
            (fact, self._placed_result(fact, since, ctx))
            for fact in facts
            if isinstance(fact, ObservationFact)
        ]
        found: list[Finding] = []
        for fact, finding in judged:
            if finding is None:
                continue
            differing = [
                other
                for other, theirs in judged
                if theirs is not None
                and theirs.outcome is not finding.outcome
                and fact.when is not None
                and other.when is not None
                and fact.when.same_time(other.when)
            ]
            found.append(
                unknown(
                    Reason.CONFLICTING_DATA, "results of the same time differ", (fact, *differing)
                )
                if differing
                else finding
            )
        return found

    def _placed_result(
        self, fact: ObservationFact, since: When | None, ctx: Context
    ) -> Finding | None:
        placed = placed_after(fact.when, since)
        if placed is False:
            return None
        if fact.concept.match((*self.residual, *self.blasts)) is Match.CONFLICT:
            finding = unknown(Reason.CONFLICTING_DATA, "codes contradict each other", (fact,))
        else:
            finding = self._of_result(fact, ctx)
        if placed is None and finding.outcome is Outcome.PASS:
            # What may or may not lie after the transplantation can't decide.
            text = "it isn't known whether this was after the transplantation"
            return unknown(Reason.INDETERMINATE_DATE, text, (fact,))
        return finding

    def _of_relapse(self, match: Match, fact: ConditionFact, since: When | None) -> list[Finding]:
        placed = placed_after(fact.onset, since)
        active = fact.clinical in ("active", "relapse", "recurrence")
        if placed is False and (not active or not is_firm(fact) or match is not Match.INCLUDE):
            return []
        if not is_firm(fact):
            return [unknown(Reason.UNCONFIRMED, "the relapse is not confirmed", (fact,))]
        if match is Match.UNMAPPED:
            return [unknown(Reason.UNMAPPED_CODE, "a relapse is named without code", (fact,))]
        if fact.conflicting or match is Match.CONFLICT:
            return [unknown(Reason.CONFLICTING_DATA, "the relapse contradicts itself", (fact,))]
        if placed is not True:
            text = "the relapse is active, but its onset is not after the transplantation"
            return [unknown(Reason.INDETERMINATE_DATE, text, (fact,))]
        return [
            Finding(
                Outcome.PASS,
                Reason.RECORD_PRESENT,
                f"{fact.reference}: relapse after transplantation",
                (evidence_of(fact),),
                assumptions_of(fact),
            )
        ]

    def _of_result(self, fact: ObservationFact, ctx: Context) -> Finding:
        if fact.conflicting:
            return unknown(Reason.CONFLICTING_DATA, "copies of the result differ", (fact,))
        if fact.concept.included(self.blasts):
            return self._number(fact, ctx, self.blasts_from, above_zero=False)
        polarity = read_polarity(fact, ctx.facts.terms)
        numeric = self._number(fact, ctx, self.residual_from, above_zero=True)
        if isinstance(polarity, Reason):
            if polarity is Reason.CONFLICTING_DATA:
                return unknown(polarity, "the result contradicts itself", (fact,))
            return numeric
        positive = polarity is Polarity.POSITIVE
        if positive and numeric.outcome is Outcome.FAIL:
            return unknown(Reason.CONFLICTING_DATA, "number and statement differ", (fact,))
        if not positive and numeric.outcome is Outcome.PASS:
            return unknown(Reason.CONFLICTING_DATA, "number and statement differ", (fact,))
        evidence = (evidence_of(fact, compared=polarity.value),)
        text = f"{fact.reference}: residual disease {polarity.value}"
        if positive:
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence, assumptions_of(fact))
        return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence, assumptions_of(fact))

    def _number(
        self, fact: ObservationFact, ctx: Context, limit: Decimal, *, above_zero: bool
    ) -> Finding:
        interval = percent_of(fact, ctx)
        if isinstance(interval, Reason):
            return unknown(interval, "the result can't be compared", (fact,))
        answer = interval.at_least(Fraction(limit))
        threshold = f">= {limit} %"
        evidence = (evidence_of(fact, compared=f"{interval} %", threshold=threshold),)
        text = f"{fact.reference}: {interval} %, asked for {threshold}"
        if answer:
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence, assumptions_of(fact))
        if answer is None or (above_zero and interval.exact != 0):
            return unknown(Reason.INDETERMINATE_VALUE, text, (fact,))._replace(evidence=evidence)
        return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence, assumptions_of(fact))

    def words(self) -> str:
        return (
            f"a transplantation ({', '.join(self.transplant)}) and after the latest one a relapse "
            f"({', '.join(self.relapse)}), residual disease ({', '.join(self.residual)}, positive "
            f"or >= {self.residual_from} %) or blasts >= {self.blasts_from} %: pass; none: fail"
        )

    def reads(self) -> Iterator[Reads]:
        yield from super().reads()
        yield Reads("Procedure", (*self.transplant, *self.transplant_status))
        yield Reads("Condition", (*self.transplant, *self.transplant_status))
        yield Reads("Observation", (*self.residual, *self.blasts, *self.reports))

    def unknowns(self) -> tuple[str, ...]:
        return (
            "indeterminate-date",
            "indeterminate-value",
            "unreadable-value",
            "incomparable-unit",
            "unconfirmed",
            "unmapped-code",
            "conflicting-data",
            "source-unavailable",
        )
