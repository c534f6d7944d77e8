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
    """Group records that share a code and resolve the activity of each group."""
    return [course for group in _grouped(matched) for course in _resolve(group, ctx)]


_Group = list[tuple[Match, ConditionFact]]


def _grouped(matched: Sequence[tuple[Match, ConditionFact]]) -> list[_Group]:
    groups: list[tuple[set[object], _Group]] = []
    for match, fact in matched:
        keys: set[object] = set(fact.concept.codings)
        if not keys:
            keys = {text.strip().lower() for text in fact.concept.texts}
        joined: _Group = [(match, fact)]
        rest: list[tuple[set[object], _Group]] = []
        for other_keys, members in groups:
            if keys & other_keys:
                keys |= other_keys
                joined = members + joined
            else:
                rest.append((other_keys, members))
        groups = [*rest, (keys, joined)]
    return [members for _, members in groups]


def _resolve(group: _Group, ctx: Context) -> list[Course]:
    match = next(each for each in Match if any(found is each for found, _ in group))
    facts = tuple(fact for _, fact in group)
    firm = [fact for fact in facts if fact.confirmed and not fact.modified]
    loose = [fact for fact in facts if not fact.confirmed or fact.modified]
    found: list[Course] = []
    if firm:
        activity, deciding = _activity(firm, ctx)
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
