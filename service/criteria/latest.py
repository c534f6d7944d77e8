"""The latest result of a kind, and what follows when it isn't known (semantics 1.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.criteria.context import (
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
    wanted_data,
)
from service.facts.model import Fact, ObservationFact
from service.terms import Match
from service.values.dates import Window
from service.values.logic import Outcome, Reason, unknown_rank


@dataclass(frozen=True, slots=True)
class Latest:
    """The results that may be the latest (of the same or overlapping time), and the rest.

    ``top`` are the results none of which is definitely earlier than another. ``shown`` are
    results without a value and reports. ``gaps`` say why the latest isn't known.
    ``other_gaps``: why a condition that states a later result may be missing; a negative
    result can't be relied on then.
    """

    top: tuple[Fact, ...]
    older: tuple[Fact, ...]
    shown: tuple[Fact, ...]
    reports: tuple[Fact, ...]
    gaps: tuple[Gap, ...]
    other_gaps: tuple[Gap, ...] = ()


def observations(ctx: Context, sets: Sequence[str]) -> list[tuple[Match, ObservationFact]]:
    """List results in the sets; those of an excluded code are not among them."""
    return [
        (match, fact)
        for match, fact in ctx.find("Observation", sets)
        if isinstance(fact, ObservationFact) and match is not Match.EXCLUDE
    ]


def select(
    ctx: Context,
    sets: tuple[str, ...],
    *,
    reports: Sequence[str] = (),
    coded: bool = False,
    keep: Callable[[ObservationFact], bool] | None = None,
    also: Sequence[Fact] = (),
    also_in: tuple[str, ...] = (),
) -> Latest:
    """Find the latest result; with ``coded`` an interpretation alone is a value.

    ``also`` are conditions that state such a result (Z32.01), of the sets ``also_in``.
    """
    found = [fact for _, fact in observations(ctx, sets) if keep is None or keep(fact)]
    valued: list[Fact] = [
        fact for fact in found if fact.has_value or (coded and fact.interpretation)
    ]
    shown = _others(found, valued)
    valued += also
    narratives = tuple(fact for _, fact in observations(ctx, reports)) if reports else ()
    dated = [fact for fact in valued if fact.when is not None]
    top = _not_earlier(dated) if dated else valued
    top = without_replaced(top)
    older = _others(valued, top)
    return Latest(
        tuple(top),
        older,
        shown,
        narratives,
        _gaps(ctx, "Observation", sets, top),
        _gaps(ctx, "Condition", also_in, top) if also_in else (),
    )


def _others(facts: Sequence[Fact], without: Sequence[Fact]) -> tuple[Fact, ...]:
    left = {id(fact) for fact in without}
    return tuple(fact for fact in facts if id(fact) not in left)


def _not_earlier(dated: list[Fact]) -> list[Fact]:
    """Keep the results that are not definitely earlier than another.

    Whether one is depends on the other's start only, so the latest start tells for all.
    """
    latest = max((fact.when for fact in dated if fact.when), key=lambda when: when.start)
    return [fact for fact in dated if fact.when and not fact.when.definitely_before(latest)]


def without_replaced(top: list[Fact]) -> list[Fact]:
    """Of one code an amended or corrected result replaces a final one of the same time."""
    if all(isinstance(fact, ObservationFact) and fact.status == "final" for fact in top):
        return top
    return [
        fact
        for fact in top
        if not isinstance(fact, ObservationFact)
        or fact.status != "final"
        or not any(
            isinstance(other, ObservationFact)
            and other.status != "final"
            and fact.concept.codings & other.concept.codings
            and (
                (fact.when is None and other.when is None)
                or (fact.when and other.when and fact.when.same_time(other.when))
            )
            for other in top
        )
    ]


def _gaps(ctx: Context, kind: str, sets: Sequence[str], top: list[Fact]) -> tuple[Gap, ...]:
    gaps: list[Gap] = []
    reading = ctx.facts.reading(kind)
    if not reading.complete and not _reached(reading.reached, top):
        gaps.append(Gap(kind, reading.problem or "was not read completely"))
    for masked in ctx.facts.masked.get(kind, ()):
        if not ctx.could_count(masked, sets):
            continue
        earlier = masked.when is not None and any(
            fact.when is not None and masked.when.definitely_before(fact.when) for fact in top
        )
        if not earlier:
            gaps.append(Gap(kind, f"{masked.reference or 'a record'}: {masked.problem}"))
    return tuple(gaps)


def _reached(instant: int | None, top: list[Fact]) -> bool:
    return (
        instant is not None
        and bool(top)
        and all(fact.when is not None and fact.when.start >= instant for fact in top)
    )


def judge_latest(
    ctx: Context,
    sets: tuple[str, ...],
    latest: Latest,
    assess: Callable[[Any], Finding],
    *,
    what: str,
    window: Window | None,
) -> Draft:
    """Judge the latest result: complete source, there at all, in date, then by ``assess``."""
    draft = _judged(ctx, sets, latest, assess, what, window)
    if draft.outcome is Outcome.PASS and latest.other_gaps:
        missing = unavailable(latest.other_gaps, sets, what)
        draft = draft_of(missing._replace(evidence=draft.evidence))
    extra = tuple(evidence_of(fact) for fact in (*latest.shown, *latest.reports))
    return replace(draft, evidence=unique(draft.evidence, extra))


def _judged(
    ctx: Context,
    sets: tuple[str, ...],
    latest: Latest,
    assess: Callable[[Any], Finding],
    what: str,
    window: Window | None,
) -> Draft:
    if latest.gaps:
        finding = unavailable(latest.gaps, sets, what)
        return draft_of(finding._replace(evidence=tuple(evidence_of(fact) for fact in latest.top)))
    if not latest.top:
        if latest.reports:
            return Draft(
                Outcome.UNKNOWN,
                Reason.UNREADABLE_VALUE,
                f"{what}: only a narrative report",
                settled_by=(wanted_data(ctx, "Observation", sets, f"a result: {what}", window),),
            )
        return Draft(
            Outcome.UNKNOWN,
            Reason.NO_DATA,
            f"{what}: no result on record",
            settled_by=(wanted_data(ctx, "Observation", sets, f"a result: {what}", window),),
        )
    findings = [_in_date(ctx, sets, fact, assess, what, window) for fact in latest.top]
    return _agreed(findings, latest.top, what)


def _in_date(
    ctx: Context,
    sets: tuple[str, ...],
    fact: Fact,
    assess: Callable[[Any], Finding],
    what: str,
    window: Window | None,
) -> Finding:
    evidence = (evidence_of(fact),)
    if window is not None:
        inside = ctx.within(fact.when, window) if fact.when is not None else None
        if inside is None:
            return Finding(
                Outcome.UNKNOWN,
                Reason.INDETERMINATE_DATE,
                f"{what}: it isn't known whether the result lies within {window}",
                evidence,
                assumptions_of(fact),
                (settles(Reason.INDETERMINATE_DATE, fact.reference),),
            )
        if not inside:
            return Finding(
                Outcome.UNKNOWN,
                Reason.STALE_DATA,
                f"{what}: the latest result is older than {window}",
                evidence,
                assumptions_of(fact),
                (wanted_data(ctx, "Observation", sets, f"a newer result: {what}", window),),
            )
    if fact.conflicting:
        return Finding(
            Outcome.UNKNOWN,
            Reason.CONFLICTING_DATA,
            f"{what}: copies of {fact.reference} differ",
            evidence,
            assumptions_of(fact),
            (settles(Reason.CONFLICTING_DATA, fact.reference),),
        )
    if fact.concept.match(sets) is Match.CONFLICT:
        return Finding(
            Outcome.UNKNOWN,
            Reason.CONFLICTING_DATA,
            f"{what}: the codes of {fact.reference} contradict each other",
            evidence,
            assumptions_of(fact),
            (settles(Reason.CONFLICTING_DATA, fact.reference),),
        )
    finding = assess(fact)
    return finding._replace(
        evidence=finding.evidence or evidence,
        assumptions=unique(finding.assumptions, assumptions_of(fact)),
        settled_by=finding.settled_by
        or (
            (settles(finding.reason, fact.reference),) if finding.outcome is Outcome.UNKNOWN else ()
        ),
    )


def _agreed(findings: list[Finding], top: tuple[Fact, ...], what: str) -> Draft:
    """Results of the same time must agree; if not, they conflict (semantics 1.3)."""
    first = min(findings, key=lambda finding: unknown_rank(finding.reason))
    evidence = unique(*(finding.evidence for finding in findings))
    assumptions = unique(*(finding.assumptions for finding in findings))
    if len({finding.outcome for finding in findings}) == 1:
        return draft_of(
            first._replace(
                evidence=evidence,
                assumptions=assumptions,
                settled_by=unique(*(finding.settled_by for finding in findings)),
            )
        )
    known = top[0].when
    same = all(
        (fact.when is None and known is None)
        or (fact.when is not None and known is not None and fact.when.same_time(known))
        for fact in top[1:]
    )
    if not same:
        same = _all_on_one_day(top)
    reason = Reason.CONFLICTING_DATA if same else Reason.INDETERMINATE_DATE
    text = "results of the same time differ" if same else "which result is the latest isn't known"
    return Draft(
        Outcome.UNKNOWN,
        reason,
        f"{what}: {text}",
        evidence,
        assumptions,
        tuple(settles(reason, fact.reference) for fact in top),
    )


def _all_on_one_day(top: tuple[Fact, ...]) -> bool:
    days = {(fact.when.first, fact.when.last) for fact in top if fact.when is not None}
    return len(days) == 1 and all(fact.when is not None for fact in top)
