"""The latest coded answer, or score of an ordinal scale (1.3, 1.4)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

import msgspec

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    evidence_of,
)
from service.criteria.latest import judge_latest, select
from service.criteria.reading import (
    Polarity,
    read_number,
    read_polarity,
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
from service.values.quantities import Interval, read_text


class CodedResult(RuleBase, frozen=True, kw_only=True, tag="coded-result"):
    """The latest coded result: positive and negative, or answers in named sets."""

    codes: SetNames
    within: WindowText | None = None
    positive: Literal["pass", "fail", "judgement"] | None = None
    negative: Literal["pass", "fail", "judgement"] | None = None
    answers: dict[str, Literal["pass", "fail", "judgement"]] = msgspec.field(default_factory=dict)
    reports: tuple[str, ...] = ()

    def evaluate(self, ctx: Context) -> Draft:
        window = window_of(self.within) if self.within else None
        latest = select(ctx, self.codes, reports=self.reports, coded=True)
        return judge_latest(
            ctx,
            self.codes,
            latest,
            lambda fact: self.assess(fact, ctx),
            what=f"latest result in {', '.join(self.codes)}",
            window=window,
        )

    def assess(self, fact: ObservationFact, ctx: Context) -> Finding:
        """Judge one result by its answer, else by being positive or negative."""
        for name, then in self.answers.items():
            if fact.coded is not None and fact.coded.match((name,)) is Match.INCLUDE:
                return answered(fact, then, name)
        polarity = read_polarity(fact, ctx.facts.terms)
        if isinstance(polarity, Reason):
            return Finding(
                Outcome.UNKNOWN, polarity, f"{fact.reference}: neither positive nor negative"
            )
        effect = self.positive if polarity is Polarity.POSITIVE else self.negative
        if effect is None:
            return Finding(
                Outcome.UNKNOWN,
                Reason.UNREADABLE_VALUE,
                f"{fact.reference}: {polarity.value} says nothing here",
            )
        return answered(fact, effect, polarity.value)

    def words(self) -> str:
        parts = [f"positive: {self.positive}"] if self.positive else []
        parts += [f"negative: {self.negative}"] if self.negative else []
        parts += [f"{name}: {then}" for name, then in self.answers.items()]
        dated = f", within {self.within}" if self.within else ""
        return f"latest result in {', '.join(self.codes)}{dated}: {'; '.join(parts)}"

    def reads(self) -> Iterator[Reads]:
        yield Reads("Observation", (*self.codes, *self.reports, *self.answers))

    def unknowns(self) -> tuple[str, ...]:
        return (*RESULT_UNKNOWNS, "judgement-required")

    def problems(self) -> Iterator[str]:
        if self.positive is None and self.negative is None and not self.answers:
            yield "a coded-result needs positive, negative or answers"


def answered(fact: ObservationFact, then: str, said: str) -> Finding:
    """Make the finding of an answer."""
    text = f"{fact.reference}: {said}"
    evidence = (evidence_of(fact, compared=said),)
    if then == "pass":
        return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)
    if then == "fail":
        return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence)
    return Finding(Outcome.UNKNOWN, Reason.JUDGEMENT_REQUIRED, text, evidence)


class Ordinal(RuleBase, frozen=True, kw_only=True, tag="ordinal"):
    """The latest score of an ordinal scale, as number, coded answer or text.

    ``grades``: the sets whose codes mean each grade. ``prefixes``: words that may stand
    before the number in a text.
    """

    codes: SetNames
    grades: dict[str, str]
    at_most: int | None = None
    at_least: int | None = None
    within: WindowText | None = None
    prefixes: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()

    def evaluate(self, ctx: Context) -> Draft:
        window = window_of(self.within) if self.within else None
        latest = select(ctx, self.codes, reports=self.reports)
        return judge_latest(
            ctx,
            self.codes,
            latest,
            lambda fact: self._assess(fact, ctx),
            what=f"score in {', '.join(self.codes)} {self._limits()}",
            window=window,
        )

    def _assess(self, fact: ObservationFact, ctx: Context) -> Finding:
        possible = self._read(fact, ctx)
        known = sorted(int(grade) for grade in self.grades)
        if not possible or fact.modified:
            return Finding(
                Outcome.UNKNOWN, Reason.UNREADABLE_VALUE, f"{fact.reference}: no readable score"
            )
        fits = {
            (self.at_most is None or grade <= self.at_most)
            and (self.at_least is None or grade >= self.at_least)
            for grade in possible
        }
        said = " or ".join(str(grade) for grade in sorted(possible))
        evidence = (evidence_of(fact, compared=said, threshold=self._limits()),)
        text = f"{fact.reference}: score {said} of {known[0]} to {known[-1]}"
        if len(fits) > 1:
            return Finding(Outcome.UNKNOWN, Reason.INDETERMINATE_VALUE, text, evidence)
        if True in fits:
            return Finding(Outcome.PASS, Reason.VALUE_MEETS, text, evidence)
        return Finding(Outcome.FAIL, Reason.VALUE_VIOLATES, text, evidence)

    def _read(self, fact: ObservationFact, ctx: Context) -> set[int]:
        """Give the grades a result may mean; empty if it can't be read."""
        if fact.coded is not None:
            coded = {
                int(grade)
                for grade, name in self.grades.items()
                if fact.coded.match((name,)) is Match.INCLUDE
            }
            if len(coded) > 1:
                return set()
            if coded:
                return coded
            stated = [found for text in fact.coded.texts if (found := self._of_text(text))]
            return self._grades(stated[0]) if stated else set()
        if fact.text is not None:
            found = self._of_text(fact.text)
            return set() if found is None else self._grades(found)
        measured = read_number(fact, ctx.facts.terms)
        return set() if isinstance(measured, Reason) else self._grades(measured.interval)

    def _grades(self, interval: Interval) -> set[int]:
        """Give the whole grades that lie in an interval; none if it leaves the scale."""
        grades = {int(grade) for grade in self.grades}
        if interval.exact is not None:
            return {grade for grade in grades if grade == interval.exact}
        highest = max(grades)
        if interval.high is not None and interval.high > highest:
            return set()
        return {
            grade
            for grade in grades
            if interval.at_least(Fraction(grade)) is not False
            and interval.at_most(Fraction(grade)) is not False
        }

    def _of_text(self, text: str) -> Interval | None:
        """Read a text as a number, after the scale's own words."""
        words = "|".join(re.escape(prefix.lower()) for prefix in self.prefixes)
        plain = text.strip().lower()
        if words:
            plain = re.sub(rf"^(?:(?:{words})[\s:=]*)+", "", plain)
        read = read_text(plain)
        return None if read is None or read[1] is not None else read[0]

    def _limits(self) -> str:
        parts = [f">= {self.at_least}"] if self.at_least is not None else []
        parts += [f"<= {self.at_most}"] if self.at_most is not None else []
        return " and ".join(parts)

    def words(self) -> str:
        dated = f", within {self.within}" if self.within else ""
        return f"latest score in {', '.join(self.codes)} {self._limits()}{dated}"

    def reads(self) -> Iterator[Reads]:
        yield Reads("Observation", (*self.codes, *self.reports, *self.grades.values()))

    def unknowns(self) -> tuple[str, ...]:
        return (*RESULT_UNKNOWNS, "indeterminate-value")

    def problems(self) -> Iterator[str]:
        if not self.grades or not all(re.fullmatch(r"\d{1,2}", grade) for grade in self.grades):
            yield "grades need a whole number each"
        if self.at_most is None and self.at_least is None:
            yield "a score needs at_least or at_most"
        elif (
            self.at_least is not None
            and self.at_most is not None
            and (self.at_least > self.at_most)
        ):
            yield f"no score is {self._limits()}"
