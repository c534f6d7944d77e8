"""Finds which searches are due: each time once, a missed one made up for once.

A search's times are those of a clock on the wall where it is: a time that the change to
summer time leaves out comes right after it, one that the change back repeats comes once
(as in Debian's cron; an hour given as ``*`` means every hour that passes).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

from cronsim import CronSim

from service.jobs.board import Board, instant
from service.jobs.model import Asked, Job
from service.jobs.searches import Search


def last_due(at: str, zone: tzinfo, now: datetime) -> datetime | None:
    """Give the last time of a cron expression at or before now (both UTC)."""
    found = next(CronSim(at, now.astimezone(zone), reverse=True), None)
    if found is None:
        return None
    # Backwards leaves out now itself, and a time in the first turn of an hour that comes twice.
    last = found.astimezone(UTC)
    for later in CronSim(at, found):
        moment = later.astimezone(UTC)
        if moment > now:
            break
        last = max(last, moment)
    return last if last <= now else None


def next_due(at: str, zone: tzinfo, now: datetime) -> datetime | None:
    """Give the next time of a cron expression after now (both UTC)."""
    for found in CronSim(at, now.astimezone(zone)):
        moment = found.astimezone(UTC)
        if moment > now:
            return moment
    return None


def plan(board: Board, searches: Sequence[Search], site: tzinfo, now: datetime) -> list[Job]:
    """Add a job for every search that is due; gives those that were added.

    However many times of a search went by while no worker ran, it is run once. ``site`` is
    the time zone in which patients are evaluated: their day is that on which it is added.
    """
    added = []
    for search in searches:
        due = last_due(search.at, search.zone, now)
        last = board.last_slot(search.name, instant(now))
        if due is None or instant(due) <= last:
            continue
        asked = Asked(
            trials=search.trials,
            as_of=now.astimezone(site).date().isoformat(),
            bulk=search.bulk,
            cohort=search.cohort,
            fresh=search.fresh,
            output=str(search.output.absolute()),
        )
        job = board.slot(search.name, instant(due), asked, instant(now))
        if job is not None:
            added.append(job)
    return added
