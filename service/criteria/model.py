"""What evaluation is made of: evidence, results of criteria, the verdict.

Source: semantics 1.1 and 1.7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from service.fhir.record import Message
from service.values.logic import Outcome, Reason

_WORDS = re.compile(
    r"(?P<text>.*) \((?P<type>[A-Z][A-Za-z]{2,63})(?: in (?P<sets>[^()]+))?\)", re.DOTALL
)


class VerdictCode(StrEnum):
    """The verdict on a patient (semantics 1.1)."""

    ELIGIBLE = "eligible"
    POTENTIALLY_ELIGIBLE = "potentially-eligible"
    INELIGIBLE = "ineligible"


class Evidence(NamedTuple):
    """A record that bears on a criterion.

    ``reference`` as ``Observation/123``; ``version`` its meta.versionId if known; ``code``
    as text (``loinc 11150-0 Blasts ...``); ``date`` as recorded; ``recorded`` the value as
    recorded; ``compared`` the value as compared; ``threshold`` what it was compared with.
    """

    reference: str
    date: str | None = None
    recorded: str | None = None
    compared: str | None = None
    threshold: str | None = None
    code: str | None = None
    version: str | None = None


class Settles(NamedTuple):
    """What would settle an unknown: data (``type``, ``sets``, ``within``) or a question.

    ``text`` is for people. ``type`` is None for a question to the investigator; ``sets``
    names code sets; ``first_day`` and ``last_day`` (ISO dates) bound the period wanted.
    """

    text: str
    type: str | None = None
    sets: tuple[str, ...] = ()
    first_day: str | None = None
    last_day: str | None = None

    @property
    def words(self) -> str:
        """Say all of it: what, of which type, in which code sets."""
        if self.type is None:
            return self.text
        within = f" in {', '.join(self.sets)}" if self.sets else ""
        return f"{self.text} ({self.type}{within})"

    @classmethod
    def read(cls, words: str) -> Settles:
        """Undo ``words``, but for the period."""
        found = _WORDS.fullmatch(words)
        if found is None:
            return cls(words)
        sets = tuple(found["sets"].split(", ")) if found["sets"] else ()
        return cls(found["text"], found["type"], sets)


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one criterion or part and why.

    ``kind`` is ``inclusion``, ``exclusion`` or ``general`` (P1). ``text`` is the
    protocol's own sentence. ``computed`` is the outcome and reason that an attestation
    replaced, if one did.
    """

    id: str
    kind: str
    text: str
    outcome: Outcome
    reason: Reason
    message: str
    evidence: tuple[Evidence, ...] = ()
    assumptions: tuple[str, ...] = ()
    settled_by: tuple[Settles, ...] = ()
    parts: tuple[Result, ...] = ()
    computed: tuple[Outcome, Reason] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A patient's verdict for a trial as of a day, explained criterion by criterion.

    ``patient`` is ``Patient/ID`` (of the survivor, if merged); ``as_of`` and
    ``valid_until`` are ISO dates; ``valid_until`` None: until the record changes.
    ``steady_until``: the last day on which the verdict's line reads the same but for its
    day (reasons and texts too, not the outcomes alone); None: until the record changes.
    """

    trial: str
    trial_version: str
    patient: str
    as_of: str
    code: VerdictCode
    valid_until: str | None
    criteria: tuple[Result, ...]
    messages: tuple[Message, ...] = ()
    patient_version: str | None = None
    steady_until: str | None = None


def walk(results: tuple[Result, ...]) -> list[tuple[Result, str | None]]:
    """List criteria and parts in order, each with its parent's id."""
    listed: list[tuple[Result, str | None]] = []

    def visit(result: Result, parent: str | None) -> None:
        listed.append((result, parent))
        for part in result.parts:
            visit(part, result.id)

    for result in results:
        visit(result, None)
    return listed
