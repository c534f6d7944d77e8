"""How much a result changed over a window (1.3, 1.4)."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    evidence_of,
)
from service.criteria.latest import judge_latest, observations, select
from service.criteria.reading import (
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
from service.values.logic import Outcome, Reason
from service.values.quantities import Unit, number_text


class Change(RuleBase, frozen=True, kw_only=True, tag="change"):
    """How much the latest result changed since the earliest one in a window, in percent."""

    codes: SetNames
    unit: str
    since: WindowText
    rise_at_most: Decimal | None = None
    fall_at_most: Decimal | None = None
    rise_at_least: Decimal | None = None
    fall_at_least: Decimal | None = None
    analyte: str | None = None

    def evaluate(self, ctx: Context) -> Draft:
        window = window_of(self.since)
        latest = select(ctx, self.codes)
        what = f"change in {', '.join(self.codes)} {self._limits()} over {self.since}"
        return judge_latest(
            ctx,
            self.codes,
            latest,
            lambda fact: self._assess(fact, ctx),
            what=what,
            window=window,
        )

    def _assess(self, fact: ObservationFact, ctx: Context) -> Finding:
        window = window_of(self.since)
        earlier = [
            other
            for _, other in observations(ctx, self.codes)
            if other.has_value
            and other.when
            and fact.when
            and other.when.definitely_before(fact.when)
            and ctx.within(other.when, window)
        ]
        if not earlier:
            return Finding(
                Outcome.UNKNOWN, Reason.NO_DATA, f"no earlier result than {fact.reference}"
            )
        begun = min(earlier, key=lambda other: other.when.end if other.when else 0).when
        firsts = [
            other
            for other in earlier
            if begun and other.when and not begun.definitely_before(other.when)
        ]
        first = firsts[0]
        numbers = {self._number(other, ctx) for other in firsts}
        if len(numbers) > 1 or any(other.conflicting for other in firsts):
            return Finding(
                Outcome.UNKNOWN,
                Reason.CONFLICTING_DATA,
                "which result was the first isn't known",
                tuple(evidence_of(other) for other in firsts),
            )
        then, now = (self._number(each, ctx) for each in (first, fact))
        if isinstance(then, Reason) or isinstance(now, Reason):
            reason = then if isinstance(then, Reason) else now
            assert isinstance(reason, Reason)
            return Finding(Outcome.UNKNOWN, reason, f"{fact.reference}: no change can be computed")
        if then == 0:
            return Finding(
                Outcome.UNKNOWN, Reason.INDETERMINATE_VALUE, "no change can be told from 0"
            )
        percent = (now - then) * 100 / then
        answers = [
            limit is None or met
            for limit, met in (
                (self.rise_at_most, self._meets(percent, self.rise_at_most, "most")),
                (self.fall_at_most, self._meets(-percent, self.fall_at_most, "most")),
                (self.rise_at_least, self._meets(percent, self.rise_at_least, "least")),
                (self.fall_at_least, self._meets(-percent, self.fall_at_least, "least")),
            )
        ]
        text = f"{fact.reference}: {number_text(percent)} % since {first.reference}"
        evidence = (
            evidence_of(fact, compared=f"{number_text(percent)} %", threshold=self._limits()),
            evidence_of(first),
        )
        if all(answers):
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)
        return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence)

    @staticmethod
    def _meets(percent: Fraction, limit: Decimal | None, end: str) -> bool:
        if limit is None:
            return True
        return percent <= Fraction(limit) if end == "most" else percent >= Fraction(limit)

    def _number(self, fact: ObservationFact, ctx: Context) -> Fraction | Reason:
        measured = read_number(fact, ctx.facts.terms)
        if isinstance(measured, Reason):
            return measured
        target = ctx.facts.terms.unit(self.unit) or Unit(self.unit)
        interval = to_unit(measured, target, self.analyte, ctx.facts.terms)
        if interval is None:
            return Reason.INCOMPARABLE_UNIT
        return interval.exact if interval.exact is not None else Reason.INDETERMINATE_VALUE

    def _limits(self) -> str:
        return " and ".join(
            f"{name} {number_text(Fraction(limit))} %"
            for name, limit in (
                ("rise <=", self.rise_at_most),
                ("fall <=", self.fall_at_most),
                ("rise >=", self.rise_at_least),
                ("fall >=", self.fall_at_least),
            )
            if limit is not None
        )

    def words(self) -> str:
        return f"change of {', '.join(self.codes)} over {self.since}: {self._limits()}"

    def reads(self) -> Iterator[Reads]:
        yield Reads("Observation", self.codes)

    def unknowns(self) -> tuple[str, ...]:
        return (*RESULT_UNKNOWNS, "incomparable-unit", "indeterminate-value")

    def problems(self) -> Iterator[str]:
        if not self._limits():
            yield "a change needs rise_at_most, fall_at_most, rise_at_least or fall_at_least"
