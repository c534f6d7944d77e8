"""The latest result against a number or a multiple of a limit of normal (1.3, 1.4)."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Literal

import msgspec

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    draft_of,
    evidence_of,
    unavailable,
)
from service.criteria.latest import Latest, judge_latest, select
from service.criteria.reading import (
    Limit,
    fallback_limits,
    plausible,
    ranges_that_fit,
    read_number,
    to_unit,
)
from service.criteria.rules.base import (
    RESULT_UNKNOWNS,
    Reads,
    RuleBase,
    SetNames,
    WindowText,
    window_of,
)
from service.facts.model import ObservationFact
from service.terms import Match
from service.values.logic import Outcome, Reason
from service.values.quantities import Interval, Measured, Unit, number_text

Multiple = Annotated[Decimal, msgspec.Meta(description="multiple of the limit of normal")]


class Methods(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a result must have been obtained, by the sets its code or ``method`` is in.

    ``stated``: codes of the method asked for. ``unstated``: codes that name no method.
    ``other``: codes of another method. ``accepted`` and ``rejected``: values of
    ``Observation.method``.
    """

    name: str
    stated: SetNames
    unstated: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()


class Observation(RuleBase, frozen=True, kw_only=True, tag="observation"):
    """The latest result of a code set against a number or a multiple of a limit of normal.

    Exactly one of ``at_least``, ``at_most``, ``above``, ``below`` or both ends of a range;
    with ``times`` it multiplies ULN or LLN. ``least_plausible``: smaller numbers recorded
    in the rule's own unit are misread fractions.
    """

    codes: SetNames
    unit: str
    at_least: Decimal | None = None
    at_most: Decimal | None = None
    above: Decimal | None = None
    below: Decimal | None = None
    times: Literal["ULN", "LLN"] | None = None
    analyte: str | None = None
    within: WindowText | None = None
    reports: tuple[str, ...] = ()
    methods: Methods | None = None
    least_plausible: Decimal | None = None

    def evaluate(self, ctx: Context) -> Draft:
        window = window_of(self.within) if self.within else None
        if self.methods is not None:
            return self._by_method(ctx)
        latest = select(ctx, self.codes, reports=self.reports)
        return judge_latest(
            ctx,
            self.codes,
            latest,
            lambda fact: self.assess(fact, ctx),
            what=self._what(),
            window=window,
        )

    def _what(self) -> str:
        return f"{', '.join(self.codes)} {self._limits()}"

    def assess(self, fact: ObservationFact, ctx: Context) -> Finding:
        """Judge one result: readability, unit, reference range, comparison, in this order."""
        measured = read_number(fact, ctx.facts.terms)
        if isinstance(measured, Reason):
            return self._open(fact, measured)
        if not plausible(measured) or self._misread(measured):
            return self._open(fact, Reason.UNREADABLE_VALUE)
        if self.times is not None:
            return self._against_normal(fact, measured, ctx)
        target = ctx.facts.terms.unit(self.unit) or Unit(self.unit)
        interval = to_unit(measured, target, self.analyte, ctx.facts.terms)
        if interval is None:
            return self._open(fact, Reason.INCOMPARABLE_UNIT)
        return self._compared(fact, interval, self._test(interval, Fraction(1)), self._limits())

    def _misread(self, measured: Measured) -> bool:
        if self.least_plausible is None or measured.unit is None:
            return False
        high = measured.interval.high
        return (
            measured.unit.code == self.unit
            and high is not None
            and high < Fraction(self.least_plausible)
        )

    def _test(self, interval: Interval, factor: Fraction) -> bool | None:
        answers: list[bool | None] = []
        if self.at_least is not None:
            answers.append(interval.at_least(Fraction(self.at_least) * factor))
        if self.above is not None:
            answers.append(interval.above(Fraction(self.above) * factor))
        if self.at_most is not None:
            answers.append(interval.at_most(Fraction(self.at_most) * factor))
        if self.below is not None:
            answers.append(interval.below(Fraction(self.below) * factor))
        if False in answers:
            return False
        return None if None in answers else True

    def _compared(
        self,
        fact: ObservationFact,
        interval: Interval,
        answer: bool | None,
        threshold: str,
        assumptions: tuple[str, ...] = (),
        unit: str | None = None,
    ) -> Finding:
        compared = f"{interval} {unit or self.unit}".strip()
        evidence = (evidence_of(fact, compared=compared, threshold=threshold),)
        text = f"{fact.reference}: {compared}, asked for {threshold}"
        if answer is None:
            return Finding(Outcome.UNKNOWN, Reason.INDETERMINATE_VALUE, text, evidence, assumptions)
        if answer:
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence, assumptions)
        return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence, assumptions)

    def _open(
        self, fact: ObservationFact, reason: Reason, assumptions: tuple[str, ...] = ()
    ) -> Finding:
        evidence = (evidence_of(fact, threshold=self._limits()),)
        text = f"{fact.reference}: the result can't be compared ({reason.value})"
        return Finding(Outcome.UNKNOWN, reason, text, evidence, assumptions)

    def _against_normal(self, fact: ObservationFact, measured: Measured, ctx: Context) -> Finding:
        limits = ranges_that_fit(fact, ctx, upper=self.times == "ULN")
        if isinstance(limits, Reason):
            return self._open(fact, limits)
        if not limits:
            return self._against_fallback(fact, measured, ctx)
        found: list[Finding] = []
        for limit in limits:
            assumptions: tuple[str, ...] = ()
            unit = limit.unit
            if unit is None and measured.unit is not None:
                unit = measured.unit
                assumptions = (
                    f"{fact.reference}: the reference range has no unit and takes the value's",
                )
            interval = self._in_unit_of(measured, unit, ctx)
            if interval is None:
                return self._open(fact, Reason.INCOMPARABLE_UNIT)
            code = unit.code if unit is not None else ""
            found.append(
                self._compared(
                    fact,
                    interval,
                    self._test(interval, limit.number),
                    self._times(limit, code),
                    assumptions,
                    code or " ",
                )
            )
        if len({finding.outcome for finding in found}) > 1:
            return self._open(fact, Reason.AMBIGUOUS_REFERENCE_RANGE)
        return found[0]

    def _in_unit_of(self, measured: Measured, unit: Unit | None, ctx: Context) -> Interval | None:
        if measured.unit is None and unit is None:
            return measured.interval
        return None if unit is None else to_unit(measured, unit, self.analyte, ctx.facts.terms)

    def _against_fallback(self, fact: ObservationFact, measured: Measured, ctx: Context) -> Finding:
        target = ctx.facts.terms.unit(self.unit) or Unit(self.unit)
        if to_unit(measured, target, self.analyte, ctx.facts.terms) is None:
            return self._open(fact, Reason.INCOMPARABLE_UNIT)
        limits = fallback_limits(self.analyte or "", fact.when, ctx) if self.analyte else None
        if not limits or self.times != "ULN":
            return self._open(fact, Reason.NO_REFERENCE_RANGE)
        found = [self._by_fallback(fact, measured, limit, ctx) for limit in limits]
        outcomes = {finding.outcome for finding in found}
        if len(outcomes) > 1:
            return self._open(fact, Reason.NO_REFERENCE_RANGE)
        return found[0]

    def _by_fallback(
        self, fact: ObservationFact, measured: Measured, limit: Limit, ctx: Context
    ) -> Finding:
        assert limit.unit is not None
        interval = to_unit(measured, limit.unit, self.analyte, ctx.facts.terms)
        if interval is None:
            return self._open(fact, Reason.INCOMPARABLE_UNIT)
        assumptions = (
            f"{fact.reference}: without reference range, the fallback upper limit "
            f"{number_text(limit.number)} {limit.unit.code} is used ({limit.source})",
        )
        answer = self._test(interval, limit.number)
        if answer is False and self._test(interval, 2 * limit.number) is not False:
            # A fallback limit is no proof: only a value above twice the limit fails by it.
            return self._open(fact, Reason.NO_REFERENCE_RANGE, assumptions)
        threshold = self._times(limit, limit.unit.code)
        return self._compared(fact, interval, answer, threshold, assumptions, limit.unit.code)

    def _times(self, limit: Limit, unit: str) -> str:
        number = f"{number_text(limit.number)} {unit}".strip()
        return f"{self._limits()} (= {number}, {limit.source})"

    def _limits(self) -> str:
        parts = []
        for sign, number in (
            (">=", self.at_least),
            (">", self.above),
            ("<=", self.at_most),
            ("<", self.below),
        ):
            if number is not None:
                times = f" x {self.times}" if self.times else f" {self.unit}"
                parts.append(f"{sign} {number_text(Fraction(number))}{times}")
        return " and ".join(parts)

    def _by_method(self, ctx: Context) -> Draft:
        """Weigh results of the method asked for against those of another (I7.lvef)."""
        methods = self.methods
        assert methods is not None
        window = window_of(self.within) if self.within else None
        sets = (*methods.stated, *methods.unstated)
        latest = select(ctx, sets, reports=self.reports, keep=lambda f: not self._is_other(f))
        other = select(ctx, (*sets, *methods.other), keep=self._is_other)
        draft = judge_latest(
            ctx,
            sets,
            latest,
            lambda fact: self._named(fact, ctx),
            what=self._what(),
            window=window,
        )
        if not latest.gaps and other.gaps and draft.outcome is Outcome.PASS:
            # A later result by another method might stand against this one.
            missing = unavailable(other.gaps, methods.other, self._what())
            return draft_of(missing._replace(evidence=draft.evidence))
        if latest.gaps or not other.top:
            return draft
        return self._weighed(ctx, draft, latest, other)

    def _weighed(self, ctx: Context, draft: Draft, latest: Latest, other: Latest) -> Draft:
        methods = self.methods
        assert methods is not None
        window = window_of(self.within) if self.within else None
        evidence = tuple(evidence_of(fact) for fact in other.top)
        joined = Draft(
            draft.outcome,
            draft.reason,
            draft.message,
            (*draft.evidence, *evidence),
            draft.assumptions,
            draft.settled_by,
        )
        in_window = [
            fact
            for fact in (*other.top, *other.older)
            if window is None or fact.when is None or ctx.within(fact.when, window) is not False
        ]
        if not in_window:
            return joined
        alone = draft.reason in (Reason.NO_DATA, Reason.STALE_DATA) or not latest.top
        later = [
            fact
            for fact in in_window
            if alone
            or any(
                fact.when is None or mine.when is None or mine.when.definitely_before(fact.when)
                for mine in latest.top
            )
        ]
        doubtful = [
            fact
            for fact in later
            if alone
            or not isinstance(fact, ObservationFact)
            or self.assess(fact, ctx).outcome is not Outcome.PASS
        ]
        if not doubtful:
            return joined
        return Draft(
            Outcome.UNKNOWN,
            Reason.METHOD_MISMATCH,
            f"{self._what()}: a result by another method than {methods.name} stands in the way",
            joined.evidence,
            joined.assumptions,
            draft.settled_by
            or judge_latest(
                ctx,
                methods.stated,
                Latest((), (), (), (), ()),
                lambda fact: self.assess(fact, ctx),
                what=self._what(),
                window=window,
            ).settled_by,
        )

    def _named(self, fact: ObservationFact, ctx: Context) -> Finding:
        methods = self.methods
        assert methods is not None
        finding = self.assess(fact, ctx)
        stated = fact.concept.included(methods.stated) or (
            fact.method is not None and fact.method.included(methods.accepted)
        )
        if stated:
            return finding
        return finding._replace(
            assumptions=(
                *finding.assumptions,
                f"{fact.reference}: no method is stated; taken as {methods.name}",
            )
        )

    def _is_other(self, fact: ObservationFact) -> bool:
        methods = self.methods
        assert methods is not None
        if fact.concept.included(methods.other) and not fact.concept.included(methods.stated):
            return True
        # A method that isn't known to be the one asked for is another.
        return (
            fact.method is not None
            and not fact.method.masked
            and fact.method.match(methods.accepted) not in (Match.INCLUDE, Match.UNMAPPED)
        )

    def words(self) -> str:
        text = f"latest result in {', '.join(self.codes)} {self._limits()}"
        if self.within:
            text += f", within {self.within}"
        if self.methods:
            text += f", by {self.methods.name}"
        return text

    def reads(self) -> Iterator[Reads]:
        sets = (*self.codes, *self.reports)
        if self.methods is not None:
            sets += (*self.methods.stated, *self.methods.unstated, *self.methods.other)
            sets += (*self.methods.accepted, *self.methods.rejected)
        yield Reads("Observation", tuple(dict.fromkeys(sets)))

    def unknowns(self) -> tuple[str, ...]:
        more: tuple[str, ...] = ("incomparable-unit", "indeterminate-value")
        if self.times:
            more += ("no-reference-range", "ambiguous-reference-range")
        return (*RESULT_UNKNOWNS, *more, *(("method-mismatch",) if self.methods else ()))

    def problems(self) -> Iterator[str]:
        low = [x for x in (self.at_least, self.above) if x is not None]
        high = [x for x in (self.at_most, self.below) if x is not None]
        if not low and not high:
            yield "an observation needs at_least, at_most, above or below"
        if len(low) > 1 or len(high) > 1:
            yield "a range has one lower and one upper end"
        if (
            low
            and high
            and (low[0] > high[0] or (low[0] == high[0] and (self.above or self.below)))
        ):
            yield f"no number is {self._limits()}"
        if any(number < 0 for number in (*low, *high)):
            yield "results are never negative, so the limit means nothing"
