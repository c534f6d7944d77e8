"""Rules over records: conditions, procedures, medicines, allergies... (semantics 1.5).

Each finder looks for records of one type in code sets and says what one that counts means;
the worst of all decides (semantics 1.1); absence counts only if everything was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import msgspec

from service.criteria.activity import Course, courses
from service.criteria.context import (
    MEDICATION,
    Context,
    Draft,
    Finding,
    Gap,
    assumptions_of,
    draft_of,
    evidence_of,
    settles,
    unavailable,
    unique,
    worst,
)
from service.criteria.model import Settles
from service.criteria.rules.base import (
    RECORD_UNKNOWNS,
    Reads,
    RuleBase,
    SetNames,
    WindowText,
    window_of,
)
from service.facts.model import Activity, ConditionFact, EventFact, Fact, Standing
from service.terms import Match
from service.values.logic import Outcome, Reason

Then = Literal["pass", "fail", "judgement", "indeterminate-date"]
_OUTCOME = {"pass": Outcome.PASS, "fail": Outcome.FAIL, "judgement": Outcome.UNKNOWN}


class Finder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Looks for records of one type in code sets and says what finding one means.

    ``when``: ``active`` (conditions and allergies), ``ever``, or ``recent`` (active, or
    dated within ``within``). ``within``: the record's date must lie in the window.
    ``then: indeterminate-date`` is for codes that show an event without its date.
    ``long_ago``: an active one begun before this window needs a judgement.
    ``inactive``: what one that is not active means (else it doesn't count).
    ``order``: what a mere order means. ``intolerance``: what an intolerance (not an
    allergy) means. ``not_if_in``: a resource with any coding in these sets is left out.
    ``judgement_if_in``: with an index disease on record, codes of these sets need a
    judgement. ``keywords`` false: an unmapped text is not taken for the class.
    """

    resource: Literal[
        "Condition",
        "Procedure",
        "Medication",
        "Immunization",
        "AllergyIntolerance",
        "AdverseEvent",
    ]
    codes: SetNames
    then: Then
    when: Literal["active", "ever", "recent", "in-use"] = "ever"
    within: WindowText | None = None
    long_ago: WindowText | None = None
    inactive: Then | None = None
    order: Literal["fail", "judgement", "unconfirmed"] | None = None
    intolerance: Then | None = None
    not_if_in: tuple[str, ...] = ()
    judgement_if_in: tuple[str, ...] = ()

    def reads(self) -> Reads:
        """Say what is read."""
        return Reads(self.resource, (*self.codes, *self.not_if_in, *self.judgement_if_in))

    def words(self) -> str:
        """Say the finder in words."""
        when = {
            "active": "active ",
            "recent": "active or recent ",
            "in-use": "in use: ",
            "ever": "",
        }
        text = f"{when[self.when]}{self.resource} in {', '.join(self.codes)}"
        if self.within:
            text += f" within {self.within}"
        text += f": {self.then}"
        if self.inactive:
            text += f"; not active: {self.inactive}"
        if self.long_ago:
            text += f"; begun more than {self.long_ago} ago: judgement"
        if self.order:
            text += f"; an order alone: {self.order}"
        if self.intolerance:
            text += f"; an intolerance: {self.intolerance}"
        if self.judgement_if_in:
            text += f"; with the index disease, {', '.join(self.judgement_if_in)}: judgement"
        if self.not_if_in:
            text += f" (not what is in {', '.join(self.not_if_in)})"
        return text

    def findings(self, ctx: Context) -> list[Finding]:
        """Judge every record found that counts."""
        return [found for found in self.judged(ctx) if found.reason is not Reason.RECORD_ABSENT]

    def judged(self, ctx: Context) -> list[Finding]:
        """Judge every record found; RECORD_ABSENT marks one that doesn't count."""
        matched = [
            (match, fact)
            for match, fact in ctx.find(self.resource, self.codes)
            if match is not Match.EXCLUDE and not self._left_out(match, fact)
        ]
        if self.resource == "Condition" and self.when in ("active", "recent"):
            conditions = [
                (match, fact) for match, fact in matched if isinstance(fact, ConditionFact)
            ]
            return [self.of_course(course, ctx) for course in courses(conditions, ctx)]
        return [self._of_record(match, fact, ctx) for match, fact in matched]

    def _left_out(self, match: Match, fact: Fact) -> bool:
        concept = fact.concept
        if concept.included(self.not_if_in):
            return True
        return match is Match.UNMAPPED and any(name in concept.keywords for name in self.not_if_in)

    def of_course(self, course: Course, ctx: Context) -> Finding:
        """Judge a condition by all records of its code."""
        fact = course.deciding[0]
        then: str = self.then
        if self.when == "recent":
            recent = self._recent(course, ctx)
            if recent is not None:
                return recent
        if course.activity is Activity.INACTIVE:
            if self.inactive is None:
                return _passed_over(course.facts, "is not active")
            then = self.inactive
        reason = Reason.UNCONFIRMED if course.unconfirmed else _OF_ACTIVITY.get(course.activity)
        if reason is None and self.within is not None and self.when == "active":
            reason = self._dated(fact, self.within, ctx)
            if reason is Reason.RECORD_ABSENT:
                return _passed_over(course.facts, "lies outside the window")
        if reason is None and self.long_ago is not None:
            reason = self._dated(fact, self.long_ago, ctx)
            if reason is Reason.RECORD_ABSENT:
                reason, then = None, "judgement"
        return self._finding(course.match, course.deciding, course.facts, then, reason, ctx)

    def _recent(self, course: Course, ctx: Context) -> Finding | None:
        """One that began or ended within the window counts whether or not it is active."""
        if self.within is None:
            return None
        window = window_of(self.within)
        doubtful: Finding | None = None
        for fact in course.facts:
            tests = [ctx.within(when, window) for when in (fact.onset, fact.abated) if when]
            reason = None if True in tests else Reason.INDETERMINATE_DATE
            if not fact.confirmed or fact.modified:
                reason = Reason.UNCONFIRMED
            if True not in tests and None not in tests:
                continue
            finding = self._finding(course.match, (fact,), course.facts, self.then, reason, ctx)
            if reason is None:
                return finding
            doubtful = doubtful or finding
        # An active one counts without a date within the window.
        return doubtful if course.activity is Activity.INACTIVE else None

    @staticmethod
    def _dated(fact: Fact, window: str, ctx: Context) -> Reason | None:
        """Test a window: None inside, RECORD_ABSENT outside, else INDETERMINATE_DATE."""
        when = fact.when
        if isinstance(fact, EventFact) and when is not None and when.first > ctx.as_of:
            # What has begun by the day but ends after it is not yet over.
            when = fact.start or when
        if when is None:
            return Reason.INDETERMINATE_DATE
        inside = ctx.within(when, window_of(window))
        if inside is None:
            return Reason.INDETERMINATE_DATE
        return None if inside else Reason.RECORD_ABSENT

    def _of_record(self, match: Match, fact: Fact, ctx: Context) -> Finding:
        then: str = self.then
        reason: Reason | None = None
        if isinstance(fact, EventFact):
            if self.when == "active" and fact.inactive:
                if self.inactive is None:
                    return _passed_over((fact,), "is not active")
                then = self.inactive
            elif fact.intolerance and self.intolerance is not None:
                then = self.intolerance
        dated: Reason | None = None
        if self.when == "in-use":
            dated = self._in_use(fact, ctx)
        elif self.within is not None:
            dated = self._dated(fact, self.within, ctx)
        if dated is Reason.RECORD_ABSENT:
            return _passed_over((fact,), "lies outside the window")
        if self._loose(fact):
            reason = Reason.UNCONFIRMED
        elif isinstance(fact, EventFact) and fact.order and self.order is not None:
            if self.order == "unconfirmed":
                reason = Reason.UNCONFIRMED
            else:
                then = self.order
        return self._finding(match, (fact,), (fact,), then, reason or dated, ctx)

    def _in_use(self, fact: Fact, ctx: Context) -> Reason | None:
        """A medicine is in use from start to end, or to the day if active (1.5)."""
        assert isinstance(fact, EventFact) and self.within is not None
        return in_use(fact, self.within, ctx)

    def _loose(self, fact: Fact) -> bool:
        if isinstance(fact, ConditionFact):
            return not fact.confirmed or fact.modified
        if isinstance(fact, EventFact):
            return fact.standing is Standing.UNCONFIRMED or fact.modified
        return False

    def _finding(
        self,
        match: Match,
        deciding: tuple[Fact, ...],
        shown: tuple[Fact, ...],
        then: str,
        reason: Reason | None,
        ctx: Context,
    ) -> Finding:
        fact = deciding[0]
        if any(each.conflicting for each in deciding) and reason is not Reason.UNCONFIRMED:
            reason = reason or Reason.CONFLICTING_DATA
        if reason is None and match is Match.CONFLICT:
            reason = Reason.CONFLICTING_DATA
        if reason is None and match is Match.UNMAPPED:
            reason = Reason.UNMAPPED_CODE
        if reason is None and then == "indeterminate-date":
            reason = Reason.INDETERMINATE_DATE
        if reason is None and match is Match.JUDGEMENT and then == "fail":
            then = "judgement"
        if reason is None and then == "fail":
            then, reason = self._beside_index(fact, then, ctx)
        outcome = Outcome.UNKNOWN if reason is not None else _OUTCOME[then]
        if reason is None:
            reason = (
                Reason.JUDGEMENT_REQUIRED if outcome is Outcome.UNKNOWN else Reason.RECORD_PRESENT
            )
        ordered = unique(deciding, shown)
        return Finding(
            outcome,
            reason,
            _said(fact, reason),
            tuple(evidence_of(each) for each in ordered),
            unique(*(assumptions_of(each) for each in deciding)),
            (settles(reason, fact.reference),) if outcome is Outcome.UNKNOWN else (),
        )

    def _beside_index(self, fact: Fact, then: str, ctx: Context) -> tuple[str, Reason | None]:
        """Weigh codes that may be the index disease's own: with it on record, a judgement."""
        may_be = self.judgement_if_in and fact.concept.included(self.judgement_if_in)
        if not may_be or not fact.concept.only_by(self.codes, self.judgement_if_in):
            return then, None
        found = ctx.find("Condition", ctx.index_sets)
        if any(match is not Match.EXCLUDE for match, _ in found):
            return "judgement", None
        if ctx.gaps(("Condition",), ctx.index_sets):
            return then, Reason.SOURCE_UNAVAILABLE
        return then, None


_OF_ACTIVITY = {
    Activity.NOT_RECORDED: Reason.STATUS_NOT_RECORDED,
    Activity.INDETERMINATE: Reason.INDETERMINATE_DATE,
    Activity.CONFLICTING: Reason.CONFLICTING_DATA,
}


def _passed_over(facts: tuple[Fact, ...], why: str) -> Finding:
    return Finding(
        Outcome.PASS,
        Reason.RECORD_ABSENT,
        f"{facts[0].reference} {why}",
        tuple(evidence_of(fact) for fact in facts),
        unique(*(assumptions_of(fact) for fact in facts)),
    )


def in_use(fact: EventFact, within: str, ctx: Context) -> Reason | None:
    """Test whether a medicine was in use in a window: None yes, RECORD_ABSENT no."""
    window = window_of(within)
    start = fact.start
    if start is None and fact.end is None:
        return None if fact.active else Reason.INDETERMINATE_DATE
    if start is not None and start.first > ctx.as_of:
        return Reason.RECORD_ABSENT
    if fact.end is not None:
        ended = fact.end
        ctx.turns(window.leaves(ended.last))
        ctx.turns(window.leaves(ended.first))
        begin = window.start(ctx.as_of)
        if ended.last < begin:
            return Reason.RECORD_ABSENT
        return None if ended.first >= begin else Reason.INDETERMINATE_DATE
    if fact.active:
        return None
    assert start is not None
    inside = ctx.within(start, window)
    if inside is None:
        return Reason.INDETERMINATE_DATE
    return None if inside else Reason.RECORD_ABSENT


_SAID = {
    Reason.UNCONFIRMED: "is not confirmed",
    Reason.STATUS_NOT_RECORDED: "states no clinical status",
    Reason.INDETERMINATE_DATE: "is not dated exactly enough",
    Reason.CONFLICTING_DATA: "is contradicted by itself or by others of its kind",
    Reason.UNMAPPED_CODE: "names it, but its code is not mapped",
    Reason.JUDGEMENT_REQUIRED: "needs a judgement",
    Reason.RECORD_PRESENT: "is on record",
    Reason.SOURCE_UNAVAILABLE: "may be the index disease's own, which isn't known to be absent",
}


def _said(fact: Fact, reason: Reason) -> str:
    return f"{fact.reference} ({fact.concept.label}) {_SAID.get(reason, reason.value)}"


class Records(RuleBase, frozen=True, kw_only=True, tag="records"):
    """Finders over records; what is found decides, the worst first; then what absence means.

    ``needs``: resource types, beside the finders' own, that must have been read completely
    before absence counts. ``at_least``: so many records are needed to count (occurrences).
    """

    find: tuple[Finder, ...]
    absent: Literal["pass", "fail", "no-data"] = "pass"
    needs: tuple[str, ...] = ()
    at_least: int = 1
    question: str | None = None
    not_applicable_if_male: bool = False

    def evaluate(self, ctx: Context) -> Draft:
        if self.not_applicable_if_male and ctx.facts.person.sex == "male":
            return Draft(Outcome.PASS, Reason.NOT_APPLICABLE, "does not apply to men")
        judged = [finding for finder in self.find for finding in finder.judged(ctx)]
        findings = [found for found in judged if found.reason is not Reason.RECORD_ABSENT]
        passed_over = [found for found in judged if found.reason is Reason.RECORD_ABSENT]
        if self.at_least > 1:
            findings = self._counted(findings)
        decided = worst(findings)
        gaps = self._gaps(ctx)
        rests_on_absence = decided is None or (
            decided.outcome is Outcome.PASS and self.absent == "pass"
        )
        if gaps and rests_on_absence:
            decided = worst([*findings, unavailable(gaps, self._sets(), self._what())])
        if decided is None:
            absence = self._absence()
            return replace(
                absence,
                evidence=unique(*(found.evidence for found in passed_over)),
                assumptions=unique(*(found.assumptions for found in passed_over)),
            )
        if self.question and decided.reason is Reason.JUDGEMENT_REQUIRED:
            decided = decided._replace(
                settled_by=unique((Settles(self.question),), decided.settled_by)
            )
        if decided.outcome is Outcome.PASS and self.absent == "pass":
            decided = decided._replace(reason=Reason.RECORD_ABSENT)
        return draft_of(decided)

    def _counted(self, findings: list[Finding]) -> list[Finding]:
        sure = [finding for finding in findings if finding.outcome is not Outcome.UNKNOWN]
        if len(sure) >= self.at_least:
            return sure
        # Uncertain ones matter only if with them there may be enough.
        enough = len(findings) >= self.at_least
        return [f for f in findings if f.outcome is Outcome.UNKNOWN] if enough else []

    def _gaps(self, ctx: Context) -> tuple[Gap, ...]:
        found: list[Gap] = []
        for finder in self.find:
            window = None
            if finder.within and finder.when in ("ever", "in-use"):
                window = window_of(finder.within)
            found += ctx.gaps((finder.resource,), finder.codes, window)
        for kind in self.needs:
            found += ctx.gaps((kind,), self._sets())
        return tuple(dict.fromkeys(found))

    def _sets(self) -> tuple[str, ...]:
        return unique(*(finder.codes for finder in self.find))

    def _what(self) -> str:
        return "records of " + ", ".join(self._sets())

    def _absence(self) -> Draft:
        text = f"no {self._what()[11:]} on record that counts"
        if self.absent == "pass":
            return Draft(Outcome.PASS, Reason.RECORD_ABSENT, text)
        if self.absent == "fail":
            return Draft(Outcome.FAIL, Reason.RECORD_ABSENT, text)
        return Draft(
            Outcome.UNKNOWN,
            Reason.NO_DATA,
            text,
            settled_by=tuple(
                Settles(f"a record of {', '.join(finder.codes)}", finder.resource, finder.codes)
                for finder in self.find
            ),
        )

    def words(self) -> str:
        text = "; ".join(finder.words() for finder in self.find)
        if self.at_least > 1:
            text = f"at least {self.at_least} of: {text}"
        absent = {"pass": "pass", "fail": "fail", "no-data": "unknown"}[self.absent]
        return f"{text}; none: {absent}"

    def reads(self) -> Iterator[Reads]:
        for finder in self.find:
            yield finder.reads()
        for kind in self.needs:
            yield Reads(kind, self._sets())

    def unknowns(self) -> tuple[str, ...]:
        more = ("judgement-required",) if any("judgement" in f.words() for f in self.find) else ()
        dated = ("indeterminate-date",) if any(f.within for f in self.find) else ()
        return unique(more, RECORD_UNKNOWNS, dated)

    def problems(self) -> Iterator[str]:
        for finder in self.find:
            if finder.when in ("recent", "in-use") and finder.within is None:
                yield f"{finder.when} needs a window (within)"
            if finder.when == "in-use" and finder.resource != MEDICATION:
                yield "only a Medication can be in use"
            if finder.when in ("active", "recent") and finder.resource not in (
                "Condition",
                "AllergyIntolerance",
            ):
                yield f"a {finder.resource} can't be active"
        if self.at_least < 1:
            yield "at_least must be 1 or more"
