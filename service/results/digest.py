"""What changed for the people who look after a trial, in few words and without a patient.

All that is said of anybody is a link, whose id means nothing outside the service, and the
criteria by which somebody dropped out. Entries are in the order of these ids, which follows
nothing that is known of anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

# More in one message would not be read; their number is given.
_MOST = 200


@dataclass(frozen=True, slots=True)
class Reasoned:
    """A criterion (or part) and the reason code of its outcome."""

    criterion: str
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """Somebody of whom something is told, by the id of the ResearchSubject.

    ``criteria``: those that now fail; none of who left the population.
    """

    id: str
    criteria: tuple[Reasoned, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialDigest:
    """What changed for one trial.

    ``lapsing``: whose verdicts hold for ``days`` days at most. ``unseen``: how many
    candidates an incomplete search did not reach.
    """

    trial: str
    name: str
    candidates: int
    new: tuple[Item, ...] = ()
    dropped: tuple[Item, ...] = ()
    lapsing: tuple[Item, ...] = ()
    unseen: int = 0
    days: int = 7
    first: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing changed."""
        return not (self.new or self.dropped or self.lapsing or self.unseen)


@dataclass(frozen=True, slots=True)
class Digest:
    """What changed in one run; ``base`` is the address that links begin with.

    ``doubtful``: earlier runs of which it isn't known whether the digest arrived.
    """

    run: int
    as_of: str
    complete: bool
    base: str
    trials: tuple[TrialDigest, ...]
    doubtful: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to say."""
        return all(trial.is_empty for trial in self.trials)

    def link(self, item: Item) -> str:
        """Give the address of an item."""
        return f"{self.base}/ResearchSubject/{item.id}"


def ordered(items: Sequence[Item]) -> tuple[Item, ...]:
    """Put items in the order of their ids."""
    return tuple(sorted(items, key=lambda item: item.id))


def subject_line(digest: Digest) -> str:
    """Write the one line that stands for the digest."""
    parts = [f"{trial.name}: {_counts(trial)}" for trial in digest.trials if not trial.is_empty]
    return f"Candidates, {digest.as_of}: {'; '.join(parts)}"


def digest_text(digest: Digest) -> str:
    """Write the digest as plain text."""
    return "\n".join(_lines(digest)) + "\n"


def _lines(digest: Digest) -> Iterator[str]:
    yield f"Search of {digest.as_of} (run {digest.run})"
    if not digest.complete:
        yield "The search was not complete: candidates may be missing."
    for run in digest.doubtful:
        yield f"It is not known whether the digest of run {run} arrived."
    for trial in digest.trials:
        if trial.is_empty:
            continue
        yield ""
        yield f"{trial.name} ({trial.trial}): {trial.candidates} candidates in all"
        for heading, items in _sections(trial):
            yield ""
            yield f"{heading}: {len(items)}"
            for item in items[:_MOST]:
                yield f"  {digest.link(item)}"
                for one in item.criteria:
                    yield f"    {one.criterion}: {one.reason}"
            if len(items) > _MOST:
                yield f"  and {len(items) - _MOST} more"
        if trial.unseen:
            yield ""
            yield f"Candidates that this search could not evaluate: {trial.unseen}"


def _sections(trial: TrialDigest) -> Iterator[tuple[str, tuple[Item, ...]]]:
    failing = tuple(item for item in trial.dropped if item.criteria)
    left = tuple(item for item in trial.dropped if not item.criteria)
    new = "Candidates of the first search" if trial.first else "New candidates"
    for heading, items in (
        (new, trial.new),
        ("Dropped out, with the criteria that fail now", failing),
        ("Dropped out: no longer among the patients searched", left),
        (f"Verdicts that lapse within {trial.days} days", trial.lapsing),
    ):
        if items:
            yield heading, items


def _counts(trial: TrialDigest) -> str:
    counts = (
        (len(trial.new), "new"),
        (len(trial.dropped), "dropped out"),
        (len(trial.lapsing), "will lapse"),
        (trial.unseen, "not evaluated"),
    )
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def digest_json(digest: Digest) -> Json:
    """Write the digest as JSON, for a program."""
    return {
        "run": digest.run,
        "asOf": digest.as_of,
        "complete": digest.complete,
        "doubtfulRuns": list(digest.doubtful),
        "trials": [_trial_json(digest, trial) for trial in digest.trials if not trial.is_empty],
    }


def _trial_json(digest: Digest, trial: TrialDigest) -> Json:
    return {
        "trial": trial.trial,
        "name": trial.name,
        "first": trial.first,
        "lapseDays": trial.days,
        "counts": {
            "candidates": trial.candidates,
            "new": len(trial.new),
            "droppedOut": len(trial.dropped),
            "lapsing": len(trial.lapsing),
            "notEvaluated": trial.unseen,
        },
        "new": _items(digest, trial.new),
        "droppedOut": [
            entry | {"criteria": [_reasoned(one) for one in item.criteria]}
            for item, entry in zip(trial.dropped, _items(digest, trial.dropped), strict=False)
        ],
        "lapsing": _items(digest, trial.lapsing),
    }


def _items(digest: Digest, items: Sequence[Item]) -> list[Json]:
    return [{"link": digest.link(item)} for item in items[:_MOST]]


def _reasoned(one: Reasoned) -> Json:
    return {"criterion": one.criterion, "reason": one.reason}
