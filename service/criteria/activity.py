"""Whether a condition is active, from all records of its code (semantics 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.criteria.context import Context
from service.facts.model import Activity, ConditionFact
from service.terms import Match
from service.values.dates import When

_ACTIVE = frozenset(("active", "recurrence", "relapse"))


@dataclass(frozen=True, slots=True)
class Course:
    """Records of one code and whether the condition is active by them.

    ``facts`` are all records, ``deciding`` those that decide. ``unconfirmed``: only records
    that aren't confirmed speak for the activity.
    """

    match: Match
    activity: Activity
    facts: tuple[ConditionFact, ...]
    deciding: tuple[ConditionFact, ...]
    unconfirmed: bool = False


def activity_of(fact: ConditionFact, ctx: Context) -> Activity:
    """Tell the activity by one record alone."""
    over: bool | None = fact.ended
    if fact.abated is not None:
        over = ctx.past(fact.abated)
    if fact.clinical in _ACTIVE:
        if over is None:
            return Activity.INDETERMINATE
        return Activity.CONFLICTING if over else Activity.ACTIVE
    if fact.clinical is not None or over:
        return Activity.INACTIVE
    return Activity.INDETERMINATE if over is None else Activity.NOT_RECORDED


def courses(matched: Sequence[tuple[Match, ConditionFact]], ctx: Context) -> list[Course]:
    """Resolve the activity of each record by all records of its code.

    Records are of one code if they share a coding and no system in which both are coded
    tells them apart: a breast and a colon cancer that share a general code are two diseases.
    """
    groups: dict[frozenset[int], _Group] = {}
    for _, fact in matched:
        group = [pair for pair in matched if _of_one_code(fact, pair[1])]
        groups[frozenset(id(member) for _, member in group)] = group
    return [course for group in groups.values() for course in _resolve(group, ctx)]


_Group = list[tuple[Match, ConditionFact]]


def _of_one_code(one: ConditionFact, other: ConditionFact) -> bool:
    mine, theirs = one.concept.codings, other.concept.codings
    if one is other:
        return True
    if not mine and not theirs:
        return _plain(one) == _plain(other)
    shared = mine & theirs
    if not shared:
        return False
    told = {system for system, _ in mine} & {system for system, _ in theirs}
    return told <= {system for system, _ in shared}


def _plain(fact: ConditionFact) -> set[str]:
    return {text.strip().lower() for text in fact.concept.texts}


def _resolve(group: _Group, ctx: Context) -> list[Course]:
    match = next(each for each in Match if any(found is each for found, _ in group))
    facts = tuple(fact for _, fact in group)
    firm = [fact for fact in facts if fact.confirmed and not fact.modified]
    loose = [fact for fact in facts if not fact.confirmed or fact.modified]
    found: list[Course] = []
    if firm:
        activity, deciding = _activity(firm, ctx)
        torn = [fact for fact in firm if fact.conflicting]
        if torn and any(activity_of(fact, ctx) is not Activity.INACTIVE for fact in torn):
            # Of copies that differ the later date doesn't decide (1.8).
            activity, deciding = Activity.CONFLICTING, torn
        found.append(Course(match, activity, facts, tuple(deciding)))
    for fact in loose:
        activity = activity_of(fact, ctx)
        if activity is Activity.INACTIVE:
            continue
        if found and found[0].activity is Activity.INACTIVE and _overtaken(fact, found[0]):
            continue
        found.append(Course(match, activity, facts, (fact,), unconfirmed=True))
    return found or [Course(match, Activity.INACTIVE, facts, tuple(loose), unconfirmed=True)]


def _overtaken(fact: ConditionFact, course: Course) -> bool:
    latest = _latest(fact)
    return latest is not None and all(
        (other := _latest(decider)) is not None and latest.definitely_before(other)
        for decider in course.deciding
    )


def _latest(fact: ConditionFact) -> When | None:
    return max(fact.dates, key=lambda when: (when.end, when.start), default=None)


def _activity(facts: list[ConditionFact], ctx: Context) -> tuple[Activity, list[ConditionFact]]:
    known = [(fact, activity_of(fact, ctx)) for fact in facts]
    silent = [fact for fact, activity in known if activity is Activity.NOT_RECORDED]
    stated = [(fact, each) for fact, each in known if fact not in silent]
    if not stated:
        return Activity.NOT_RECORDED, silent
    activities = {activity for _, activity in stated}
    if len(activities) == 1:
        activity, deciding = stated[0][1], [fact for fact, _ in stated]
    else:
        activity, deciding = _newest(stated)
    if activity is Activity.INACTIVE:
        later = [fact for fact in silent if _may_be_later(fact, deciding)]
        if later:
            return Activity.NOT_RECORDED, later
    return activity, deciding


def _newest(stated: list[tuple[ConditionFact, Activity]]) -> tuple[Activity, list[ConditionFact]]:
    """Let the record with the latest date decide; at equal or no date they conflict."""
    top = [
        (fact, activity)
        for fact, activity in stated
        if not any(
            (mine := _latest(fact)) is not None
            and (theirs := _latest(other)) is not None
            and mine.definitely_before(theirs)
            for other, _ in stated
        )
    ]
    activities = {activity for _, activity in top}
    deciding = [fact for fact, _ in top]
    return (activities.pop() if len(activities) == 1 else Activity.CONFLICTING), deciding


def _may_be_later(fact: ConditionFact, others: list[ConditionFact]) -> bool:
    latest = _latest(fact)
    if latest is None:
        return False
    dated = [when for other in others if (when := _latest(other)) is not None]
    return not dated or latest.last > max(when.last for when in dated)
