"""Tumour cells: an antigen on them, and none of them elsewhere (part 2, I3, E1.cns)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    evidence_of,
    unavailable,
    unique,
    worst,
)
from service.criteria.latest import judge_latest, select
from service.criteria.model import Settles
from service.criteria.reading import (
    Polarity,
    plausible,
    read_number,
    read_polarity,
)
from service.criteria.rules.base import Reads, RuleBase, SetNames
from service.criteria.rules.weighing import (
    is_firm,
    percent_of,
    placed_after,
    unknown,
)
from service.facts.model import EventFact, Fact, ObservationFact
from service.terms import Match
from service.values.dates import When
from service.values.logic import Outcome, Reason
from service.values.quantities import Interval, Measured


class TumourAntigen(RuleBase, frozen=True, kw_only=True, tag="tumour-antigen"):
    """The latest result of an antigen on the tumour cells, and therapy against it since (I3).

    ``from_percent``: so many percent of the blasts are positive. ``of_all_cells``: sets whose
    percentage is of all cells, positive from ``from_percent_of_all``.
    """

    codes: SetNames
    of_all_cells: tuple[str, ...] = ()
    from_percent: Decimal
    from_percent_of_all: Decimal
    reports: tuple[str, ...] = ()
    therapy: tuple[str, ...] = ()
    therapy_history: tuple[str, ...] = ()
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        sets = (*self.codes, *self.of_all_cells)
        latest = select(ctx, sets, reports=self.reports, coded=True)
        draft = judge_latest(
            ctx,
            sets,
            latest,
            lambda fact: self._assess(fact, ctx),
            what=f"latest result in {', '.join(sets)}",
            window=None,
        )
        if draft.outcome is not Outcome.PASS:
            return self._asked(draft)
        since = [fact.when for fact in latest.top]
        return self._asked(self._after_therapy(ctx, draft, since))

    def _asked(self, draft: Draft) -> Draft:
        if draft.reason is not Reason.JUDGEMENT_REQUIRED:
            return draft
        return Draft(
            draft.outcome,
            draft.reason,
            draft.message,
            draft.evidence,
            draft.assumptions,
            unique((Settles(self.question),), draft.settled_by),
        )

    def _assess(self, fact: ObservationFact, ctx: Context) -> Finding:
        limit = self.from_percent
        if not fact.concept.included(self.codes):
            limit = self.from_percent_of_all
        polarity = read_polarity(fact, ctx.facts.terms)
        interval = percent_of(fact, ctx)
        if polarity is Reason.CONFLICTING_DATA:
            return unknown(Reason.CONFLICTING_DATA, "the result contradicts itself", (fact,))
        if isinstance(interval, Interval):
            return self._percentage(fact, interval, limit, polarity)
        if isinstance(polarity, Polarity):
            if (
                interval is Reason.UNREADABLE_VALUE
                and fact.quantity is not None
                and not (isinstance(read_number(fact, ctx.facts.terms), Measured))
            ):
                return unknown(Reason.UNREADABLE_VALUE, "the number can't be read", (fact,))
            return self._stated(fact, polarity)
        reason = interval
        if fact.coded is not None or (fact.text is None and fact.quantity is None):
            reason = polarity
        return unknown(reason, f"{fact.reference}: the result can't be used", (fact,))

    def _percentage(
        self,
        fact: ObservationFact,
        interval: Interval,
        limit: Decimal,
        polarity: Polarity | Reason,
    ) -> Finding:
        threshold = f">= {limit} %"
        evidence = (evidence_of(fact, compared=f"{interval} %", threshold=threshold),)
        text = f"{fact.reference}: {interval} %, asked for {threshold}"
        enough = interval.at_least(Fraction(limit))
        if enough and polarity is Polarity.NEGATIVE:
            return unknown(Reason.CONFLICTING_DATA, text, (fact,))._replace(evidence=evidence)
        if enough:
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)
        if enough is None:
            return unknown(Reason.INDETERMINATE_VALUE, text, (fact,))._replace(evidence=evidence)
        return unknown(Reason.JUDGEMENT_REQUIRED, text, (fact,))._replace(evidence=evidence)

    @staticmethod
    def _stated(fact: ObservationFact, polarity: Polarity) -> Finding:
        text = f"{fact.reference}: {polarity.value}"
        evidence = (evidence_of(fact, compared=polarity.value),)
        if polarity is Polarity.POSITIVE:
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)
        return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence)

    def _after_therapy(self, ctx: Context, draft: Draft, since: Sequence[When | None]) -> Draft:
        findings: list[Finding] = []
        for kind in ("Procedure", "Medication", "Condition"):
            sets = self.therapy_history if kind == "Condition" else self.therapy
            for match, fact in ctx.find(kind, sets):
                if match is not Match.EXCLUDE:
                    findings += self._of_therapy(match, fact, since, kind == "Condition")
        gaps = [
            gap
            for kind in ("Procedure", "Condition", "Medication")
            for gap in ctx.gaps(
                (kind,), self.therapy_history if kind == "Condition" else self.therapy
            )
        ]
        decided = worst(findings)
        if decided is None and gaps:
            decided = unavailable(gaps, self.therapy, "therapy against the antigen since")
        if decided is None:
            return draft
        return Draft(
            decided.outcome,
            decided.reason,
            decided.message,
            unique(draft.evidence, decided.evidence),
            unique(draft.assumptions, decided.assumptions),
            decided.settled_by,
        )

    def _of_therapy(
        self, match: Match, fact: Fact, since: Sequence[When | None], history: bool
    ) -> list[Finding]:
        placed = {self._since(fact, result) for result in since}
        if placed == {False}:
            return []
        text = f"{fact.reference}: therapy against the antigen"
        if not is_firm(fact):
            reason = Reason.UNCONFIRMED
        elif history or True not in placed:
            reason = Reason.INDETERMINATE_DATE
        elif match is Match.UNMAPPED:
            reason = Reason.UNMAPPED_CODE
        elif match is Match.CONFLICT or fact.conflicting:
            reason = Reason.CONFLICTING_DATA
        else:
            reason = Reason.JUDGEMENT_REQUIRED
        return [unknown(reason, text, (fact,))]

    @staticmethod
    def _since(fact: Fact, result: When | None) -> bool | None:
        """Tell whether any of the therapy came after the result."""
        ends = [fact.when]
        if isinstance(fact, EventFact):
            ends += [fact.end]
            if fact.active and fact.start is not None and fact.end is None and not fact.order:
                return True
        placed = [placed_after(when, result) for when in ends if when is not None]
        if not placed:
            return None
        if True in placed:
            return True
        return None if None in placed else False

    def words(self) -> str:
        return (
            f"latest result in {', '.join((*self.codes, *self.of_all_cells))}: positive or >= "
            f"{self.from_percent} % ({self.from_percent_of_all} % of all cells): pass, but "
            f"judgement after {', '.join(self.therapy)}; negative: fail; fewer: judgement"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Observation", (*self.codes, *self.of_all_cells, *self.reports))
        yield Reads("Procedure", self.therapy)
        yield Reads("Medication", self.therapy)
        yield Reads("Condition", self.therapy_history)

    def unknowns(self) -> tuple[str, ...]:
        return (
            "no-data",
            "judgement-required",
            "unreadable-value",
            "indeterminate-value",
            "incomparable-unit",
            "conflicting-data",
            "indeterminate-date",
            "unconfirmed",
            "source-unavailable",
        )


class CellsAbsent(RuleBase, frozen=True, kw_only=True, tag="cells-absent"):
    """No tumour cells in the latest result: any number above 0 needs a judgement (E1.cns)."""

    codes: SetNames
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        latest = select(ctx, self.codes, coded=True)
        draft = judge_latest(
            ctx,
            self.codes,
            latest,
            lambda fact: self._assess(fact, ctx),
            what=f"cells in {', '.join(self.codes)}",
            window=None,
        )
        if draft.reason is Reason.NO_DATA:
            return Draft(Outcome.PASS, Reason.RECORD_ABSENT, "no such result", draft.evidence)
        if draft.reason is Reason.JUDGEMENT_REQUIRED:
            return Draft(
                draft.outcome,
                draft.reason,
                draft.message,
                draft.evidence,
                draft.assumptions,
                (Settles(self.question),),
            )
        return draft

    def _assess(self, fact: ObservationFact, ctx: Context) -> Finding:
        polarity = read_polarity(fact, ctx.facts.terms, viral_load=True)
        text = f"{fact.reference}: {polarity.value}"
        if isinstance(polarity, Reason):
            return unknown(polarity, text, (fact,))
        measured = read_number(fact, ctx.facts.terms)
        if isinstance(measured, Measured) and not plausible(measured):
            return unknown(Reason.UNREADABLE_VALUE, text, (fact,))
        if polarity is Polarity.POSITIVE:
            return unknown(Reason.JUDGEMENT_REQUIRED, text, (fact,))
        return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, (evidence_of(fact),))

    def words(self) -> str:
        return f"latest result in {', '.join(self.codes)}: any cells: judgement; none: pass"

    def reads(self) -> Iterator[Reads]:
        yield Reads("Observation", self.codes)

    def unknowns(self) -> tuple[str, ...]:
        return (
            "judgement-required",
            "unreadable-value",
            "indeterminate-value",
            "conflicting-data",
            "source-unavailable",
        )
