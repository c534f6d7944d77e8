"""What all kinds of rule share: parameters as typed structs, and their words.

A rule is parameters read from the trial file plus one function from context to draft. The
JSON Schema of the trial files is made from these structs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from service.criteria.context import MEDICATION, Context, Draft
from service.facts.model import MEDICINE_TYPES
from service.values.dates import Window, parse_window

WindowText = Annotated[
    str,
    msgspec.Meta(
        pattern="^[0-9]+ (days?|weeks?|months?|years?)$",
        description="a length of calendar time before the day of evaluation, as 28 days",
    ),
]
SetNames = Annotated[
    tuple[str, ...], msgspec.Meta(min_length=1, description="names of code sets of sets.yaml")
]


class Reads(msgspec.Struct, frozen=True):
    """What a rule reads: a resource type and the code sets looked for in it."""

    type: str
    sets: tuple[str, ...] = ()


class RuleBase(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True
):
    """Parameters of a rule; subclasses answer for one kind each."""

    def evaluate(self, ctx: Context) -> Draft:
        """Answer for a patient as of a day."""
        raise NotImplementedError

    def words(self) -> str:
        """Say the rule in words."""
        raise NotImplementedError

    def reads(self) -> Iterator[Reads]:
        """List what the rule reads of the record."""
        yield from ()

    def unknowns(self) -> tuple[str, ...]:
        """List the reasons for which this rule's outcome can be unknown."""
        return ()

    def problems(self) -> Iterator[str]:
        """List what is wrong with the parameters taken together."""
        yield from ()


def window_of(text: str) -> Window:
    """Read a window whose form the schema has checked."""
    return parse_window(text)


def types_of(kind: str) -> tuple[str, ...]:
    """Give the resource types a finder's type stands for."""
    return MEDICINE_TYPES if kind == MEDICATION else (kind,)


RECORD_UNKNOWNS = (
    "unconfirmed",
    "status-not-recorded",
    "conflicting-data",
    "unmapped-code",
    "source-unavailable",
)
RESULT_UNKNOWNS = (
    "no-data",
    "stale-data",
    "unreadable-value",
    "indeterminate-date",
    "conflicting-data",
    "source-unavailable",
)
