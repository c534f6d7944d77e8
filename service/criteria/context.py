"""What a rule is given: the facts, the day, other criteria's results; what it gives back.

Every test of a date goes through the context, which notes the days on which its answer
will change, so that it is known how long a verdict holds (semantics 1.7), and those on which
a text that names the age will read otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from service.criteria.model import Evidence, Result, Settles
from service.facts.model import (
    MEDICINE_TYPES,
    ConditionFact,
    EventFact,
    Fact,
    Masked,
    ObservationFact,
    PatientFacts,
)
from service.terms import Match
from service.values.dates import When, Window, age_at_least, birthday, day_text, next_age
from service.values.logic import Outcome, Reason, unknown_rank

MEDICATION = "Medication"
# No limit of normal and no text tells apart ages beyond this.
_OLDEST = 150
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule's answer before it is given its criterion's id and text."""

    outcome: Outcome
    reason: Reason
    message: str
    evidence: tuple[Evidence, ...] = ()
    assumptions: tuple[str, ...] = ()
    settled_by: tuple[Settles, ...] = ()


class Finding(NamedTuple):
    """What one record says of a criterion."""

    outcome: Outcome
    reason: Reason
    message: str
    evidence: tuple[Evidence, ...] = ()
    assumptions: tuple[str, ...] = ()
    settled_by: tuple[Settles, ...] = ()


class Gap(NamedTuple):
    """Why absence is not proven: the type, and what is missing of it."""

    type: str
    problem: str


LOCAL_TIME = "a time without offset is taken as the site's local time"


@dataclass(slots=True)
class Context:
    """One evaluation of one patient as of one day (``as_of``: ordinal)."""

    facts: PatientFacts
    as_of: int
    evaluate: Callable[[str, Context], Result]
    index_sets: tuple[str, ...] = ()
    study_identifiers: tuple[str, ...] = ()
    results: dict[str, Result] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    turning_days: dict[int, set[str]] = field(default_factory=dict)
    rewording_days: set[int] = field(default_factory=set)

    def result(self, criterion_id: str) -> Result:
        """Give another criterion's result, evaluating it if need be.

        A criterion that asks for itself on the way is an error of the trial file.
        """
        known = self.results.get(criterion_id)
        if known is None:
            known = self.results[criterion_id] = self.evaluate(criterion_id, self)
        if self.stack:
            # What turns the other one may turn this one.
            for ids in self.turning_days.values():
                if criterion_id in ids:
                    ids.update(self.stack)
        return known

    def turns(self, day: int) -> None:
        """Note a day from which on a test of the criteria at work may answer otherwise."""
        if day > self.as_of:
            self.turning_days.setdefault(day, set()).update(self.stack)

    def names_age(self, birth: When) -> None:
        """Note that a text names the age on the day: it reads otherwise from a birthday on."""
        self.rewording_days.update(self._birthdays(birth))

    def tests_age(self, birth: When) -> None:
        """Note that a test rests on the age on the day, whichever limits it has."""
        for day in self._birthdays(birth):
            self.turns(day)

    def _birthdays(self, birth: When) -> Iterator[int]:
        """Give the next birthday of someone born on either end of an interval."""
        for born in {birth.first, birth.last}:
            years = next_age(born, self.as_of)
            if years <= _OLDEST:
                yield birthday(born, years)

    def within(self, when: When, window: Window) -> bool | None:
        """Test a window that ends on the day of evaluation."""
        for day in (when.first, when.last):
            self.turns(window.leaves(day))
            self.turns(day)
        return window.test(when, self.as_of)

    def period_overlaps(self, period: When | None, window: Window) -> bool | None:
        """Tell whether a stretch of time overlaps the window, unbounded sides included."""
        if period is None:
            return None
        self.turns(window.leaves(period.last))
        self.turns(period.first)
        return period.first <= self.as_of and period.last >= window.start(self.as_of)

    def begun(self, when: When | None) -> bool:
        """Tell whether a record counts by its beginning: those after the day are not used."""
        if when is None:
            return True
        self.turns(when.first)
        return when.first <= self.as_of

    def past(self, when: When) -> bool | None:
        """Tell whether a date has been reached."""
        self.turns(when.first)
        self.turns(when.last)
        if when.last <= self.as_of:
            return True
        return False if when.first > self.as_of else None

    def age_at_least(self, years: int) -> bool | None:
        """Tell whether the patient is at least so many years old; None if not known."""
        birth = self.facts.person.birth
        if birth is None or self.facts.person.conflicting:
            return None
        self.turns(birthday(birth.first, years))
        self.turns(birthday(birth.last, years))
        return age_at_least(birth, years, self.as_of)

    def find(self, kind: str, sets: Sequence[str]) -> list[tuple[Match, Fact]]:
        """List facts of a type (or of all medicines) in the sets that began by the day."""
        kinds = MEDICINE_TYPES if kind == MEDICATION else (kind,)
        found: list[tuple[Match, Fact]] = []
        for each in kinds:
            for pair in self.facts.find(each, tuple(sets)):
                begin = begin_of(pair[1])
                if begin is None or begin.first <= self.as_of:
                    found.append(pair)
                else:
                    self.turns(begin.first)
        return found

    def gaps(
        self, kinds: Iterable[str], sets: Sequence[str], window: Window | None = None
    ) -> tuple[Gap, ...]:
        """List why absence of records of these types in these sets is not proven (1.5).

        With a window, a masked record that lies outside it stands in nobody's way.
        """
        found: list[Gap] = []
        for kind in kinds:
            if kind == MEDICATION:
                found.extend(self._medicine_gaps(sets, window))
            else:
                found.extend(self._type_gaps(kind, sets, window))
        return tuple(dict.fromkeys(found))

    def _medicine_gaps(self, sets: Sequence[str], window: Window | None) -> Iterable[Gap]:
        for kind in MEDICINE_TYPES:
            reading = self.facts.reading(kind)
            offered = kind == "MedicationRequest" or not reading.not_offered
            yield from self._type_gaps(kind, sets, window, offered)

    def _type_gaps(
        self, kind: str, sets: Sequence[str], window: Window | None, offered: bool = True
    ) -> Iterable[Gap]:
        reading = self.facts.reading(kind)
        if offered and not reading.complete:
            yield Gap(kind, reading.problem or "was not read completely")
        for masked in self.facts.masked.get(kind, ()):
            if self.could_count(masked, sets, window):
                yield Gap(kind, f"{masked.reference or 'a record'}: {masked.problem}")

    def could_count(
        self, masked: Masked, sets: Sequence[str], window: Window | None = None
    ) -> bool:
        """Tell whether a masked record might be one of those looked for."""
        concept = masked.concept
        if concept is not None and not concept.masked and not concept.concerns(sets):
            return False
        if not self.begun(masked.begin):
            return False
        if window is not None and masked.when is not None:
            return self.within(masked.when, window) is not False
        return True


def begin_of(fact: Fact) -> When | None:
    """Give when a record begins; those that begin after the day are not used (1.2)."""
    if isinstance(fact, ConditionFact):
        return fact.onset
    if isinstance(fact, EventFact):
        return fact.start or fact.when
    return fact.when


def evidence_of(
    fact: Fact,
    *,
    recorded: str | None = None,
    compared: str | None = None,
    threshold: str | None = None,
) -> Evidence:
    """Make the evidence of a fact."""
    if recorded is None:
        recorded = recorded_text(fact)
    when = fact.when
    return Evidence(
        reference=fact.reference,
        date=when.text if when is not None else None,
        recorded=recorded or None,
        compared=compared,
        threshold=threshold,
        code=fact.concept.label or None,
        version=fact.version,
    )


def recorded_text(fact: Fact) -> str:
    """Write what a record states, as recorded."""
    if isinstance(fact, ObservationFact):
        return value_text(fact)
    if isinstance(fact, ConditionFact):
        return fact.clinical or "no clinical status"
    return fact.grade or fact.status or ""


def value_text(fact: ObservationFact) -> str:
    """Write a result as recorded: number and unit, coded answer, text, interpretation."""
    parts: list[str] = []
    if fact.quantity is not None:
        number = fact.quantity
        unit = number.unit or number.code or ""
        parts.append(f"{number.comparator or ''}{number.value} {unit}".strip())
    if fact.range is not None:
        low = fact.range.low.value if fact.range.low else ""
        high = fact.range.high.value if fact.range.high else ""
        parts.append(f"{low} to {high}")
    if fact.coded is not None:
        parts.append(fact.coded.label)
    if fact.text is not None:
        parts.append(fact.text[:200])
    if fact.integer is not None:
        parts.append(str(fact.integer))
    parts += [entry.label for entry in fact.interpretation if entry.label]
    return ", ".join(part for part in parts if part)


def assumptions_of(fact: Fact) -> tuple[str, ...]:
    """Name the assumptions made in reading a fact."""
    found: list[str] = []
    if isinstance(fact, ObservationFact) and fact.issued:
        found.append(f"{fact.reference}: no effective date is given, the date issued is used")
    if isinstance(fact, ConditionFact):
        if fact.verification_missing:
            found.append(f"{fact.reference}: without verification status, taken as confirmed")
        if fact.assumed_onset:
            found.append(f"{fact.reference}: the recorded date is used for the onset")
    if isinstance(fact, EventFact) and fact.verification_missing:
        found.append(f"{fact.reference}: without verification status, taken as confirmed")
    if isinstance(fact, EventFact) and fact.assumed_date:
        found.append(f"{fact.reference}: the recorded date is used for the onset")
    if fact.when is not None and fact.when.local:
        found.append(f"{fact.reference}: {LOCAL_TIME}")
    return tuple(found)


def worst(findings: Sequence[Finding]) -> Finding | None:
    """Let the worst of several records decide: fail, then unknown, then pass (1.1).

    Evidence and assumptions are those of all records with the outcome that decides.
    """
    for outcome in (Outcome.FAIL, Outcome.UNKNOWN, Outcome.PASS):
        of_outcome = [finding for finding in findings if finding.outcome is outcome]
        if not of_outcome:
            continue
        first = min(of_outcome, key=lambda finding: unknown_rank(finding.reason))
        others = [finding for finding in findings if finding is not first]
        return first._replace(
            evidence=unique(first.evidence, *(other.evidence for other in others)),
            assumptions=unique(first.assumptions, *(other.assumptions for other in of_outcome)),
            settled_by=unique(first.settled_by, *(other.settled_by for other in of_outcome)),
        )
    return None


def unique(*groups: Iterable[_T]) -> tuple[_T, ...]:
    """Join groups, each entry once, in order."""
    return tuple(dict.fromkeys(entry for group in groups for entry in group))


def draft_of(finding: Finding) -> Draft:
    """Make a rule's answer of a finding."""
    return Draft(*finding)


def finding_of(draft: Draft) -> Finding:
    """Make a finding of an answer, to be weighed against others."""
    return Finding(
        draft.outcome,
        draft.reason,
        draft.message,
        draft.evidence,
        draft.assumptions,
        draft.settled_by,
    )


def unavailable(gaps: Sequence[Gap], sets: Sequence[str], what: str) -> Finding:
    """Say that absence is not proven, and what would settle it."""
    kinds = tuple(dict.fromkeys(gap.type for gap in gaps))
    problems = "; ".join(dict.fromkeys(f"{gap.type} ({gap.problem})" for gap in gaps))
    return Finding(
        Outcome.UNKNOWN,
        Reason.SOURCE_UNAVAILABLE,
        f"{what}: not known, since not everything could be read: {problems}",
        settled_by=tuple(
            Settles(f"a complete reading of {kind}", kind, tuple(sets)) for kind in kinds
        ),
    )


def period_text(ctx: Context, window: Window | None) -> tuple[str | None, str | None]:
    """Give first and last day (ISO) of a window, or of no window."""
    if window is None:
        return None, None
    return day_text(window.start(ctx.as_of)), day_text(ctx.as_of)


def wanted_data(
    ctx: Context, kind: str, sets: Sequence[str], what: str, window: Window | None = None
) -> Settles:
    """Say which data would settle an unknown.

    The text names the window, not its days: it must read alike on every day on which nothing
    else changes.
    """
    first, last = period_text(ctx, window)
    dated = f" within {window}" if window is not None else ""
    return Settles(f"{what}{dated}", kind, tuple(sets), first, last)


_SETTLED = {
    Reason.UNCONFIRMED: "confirmation or refutation of {reference}",
    Reason.STATUS_NOT_RECORDED: "the clinical status of {reference}",
    Reason.INDETERMINATE_DATE: "the exact date of {reference}",
    Reason.CONFLICTING_DATA: "which statement holds: {reference}",
    Reason.UNMAPPED_CODE: "a mapped code for {reference}",
    Reason.UNREADABLE_VALUE: "a readable value for {reference}",
    Reason.INCOMPARABLE_UNIT: "a value with a convertible unit for {reference}",
    Reason.NO_REFERENCE_RANGE: "the laboratory's reference range for {reference}",
    Reason.AMBIGUOUS_REFERENCE_RANGE: "which reference range applies to {reference}",
    Reason.INDETERMINATE_VALUE: "an exact value for {reference}",
    Reason.METHOD_MISMATCH: "a result by the method asked for, instead of {reference}",
    Reason.JUDGEMENT_REQUIRED: "the investigator's judgement of {reference}",
}


def settles(reason: Reason, reference: str) -> Settles:
    """Say what would settle an unknown that rests on one record."""
    kind = reference.split("/", 1)[0] if "/" in reference else None
    text = _SETTLED.get(reason, "a newer record than {reference}").format(reference=reference)
    return Settles(text, None if reason is Reason.JUDGEMENT_REQUIRED else kind)
