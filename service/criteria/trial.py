"""Reads a trial file and binds each criterion to its rule; refuses unknown names.

The file's form is given by the structs here and in ``criteria.rules``; the JSON Schema
that editors complete by is made from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from service.criteria.rules import Reads, Rule
from service.criteria.rules.base import types_of
from service.errors import MappingError
from service.fhir.source import Wanted
from service.terms import Terms
from service.yamlfile import Listed, Mapped, load_yaml

Text = Annotated[str, msgspec.Meta(min_length=1)]
# The codes of ResearchStudy.status in R4.
StudyStatus = Literal[
    "active",
    "administratively-completed",
    "approved",
    "closed-to-accrual",
    "closed-to-accrual-and-intervention",
    "completed",
    "disapproved",
    "in-review",
    "temporarily-closed-to-accrual",
    "temporarily-closed-to-accrual-and-intervention",
    "withdrawn",
]


class CriterionFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A criterion or part as the trial file states it.

    ``text`` is the protocol's own sentence (parts may leave it out and share the parent's).
    ``computed``: from the record alone, partly, or attested only. Either ``rule`` or
    ``combine`` with ``parts``. ``attested_with``: another criterion whose attestation
    serves this one too, and the other way round.
    """

    id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z][A-Za-z0-9_.]*$")]
    kind: Literal["inclusion", "exclusion", "general"] | None = None
    text: str | None = None
    computed: Literal["computed", "partly", "attested"] = "computed"
    note: str | None = None
    rule: Rule | None = None
    combine: Literal["all", "any"] | None = None
    parts: tuple[CriterionFile, ...] = ()
    attested_with: str | None = None


class TrialFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trial as its file states it.

    ``status``: a code of R4's ResearchStudy.status, published as it is.
    ``identifiers``: registry and sponsor numbers by which records name the study.
    ``index``: code sets of the trial's disease; the population of a search. ``protocol``:
    the numbered sentences of the protocol that criteria must cover.
    """

    id: Text
    version: Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+\.\d+$")]
    title: Text
    name: Text
    sponsor: str | None = None
    status: StudyStatus = "active"
    phase: str | None = None
    conditions: tuple[str, ...] = ()
    identifiers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    index: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    source: str | None = None
    criteria: Annotated[tuple[CriterionFile, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion or part, bound to its rule; ``kind`` and ``text`` are never empty."""

    id: str
    kind: str
    text: str
    computed: str
    note: str | None
    rule: Rule | None
    combine: str | None
    parts: tuple[Criterion, ...]
    attested_with: str | None
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial: its criteria in the protocol's order, and what it needs of a record."""

    id: str
    version: str
    title: str
    name: str
    sponsor: str | None
    status: StudyStatus
    phase: str | None
    conditions: tuple[str, ...]
    identifiers: tuple[str, ...]
    index: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    by_id: dict[str, Criterion]
    wanted: Wanted
    file: str

    def sets(self) -> tuple[str, ...]:
        """Name all code sets the trial uses."""
        found = dict.fromkeys(self.index)
        for criterion in self.by_id.values():
            if criterion.rule is not None:
                for reads in criterion.rule.reads():
                    found.update(dict.fromkeys(reads.sets))
        return tuple(found)


def load_trial(path: Path, terms: Terms) -> Trial:
    """Load a trial file; raises MappingError with file and line for the first mistake."""
    content = load_yaml(path)
    raw = content.content
    try:
        stated = msgspec.convert(raw, TrialFile)
    except msgspec.ValidationError as error:
        raise _located(error, raw, path.name) from error
    by_id: dict[str, Criterion] = {}
    lines = dict(_lines(raw))
    criteria = tuple(_bound(entry, path.name, lines, by_id) for entry in stated.criteria)
    trial = Trial(
        stated.id,
        stated.version,
        stated.title,
        stated.name,
        stated.sponsor,
        stated.status,
        stated.phase,
        stated.conditions,
        stated.identifiers,
        stated.index,
        criteria,
        by_id,
        Wanted({}),
        path.name,
    )
    for name in trial.sets():
        if name not in terms.sets:
            raise MappingError(
                f"unknown code set {name!r}", file=path.name, line=line_of_text(path, name)
            )
    for criterion in by_id.values():
        for other in referred(criterion):
            if other not in by_id:
                raise MappingError(
                    f"{criterion.id} refers to {other!r}, which is no criterion",
                    file=path.name,
                    line=criterion.line,
                )
    _refuse_circles(by_id, path.name)
    return replace(trial, wanted=wanted_of(trial, terms))


def _refuse_circles(by_id: dict[str, Criterion], file: str) -> None:
    """Raise MappingError for a criterion whose rule rests on its own result."""

    def asked(name: str) -> tuple[str, ...]:
        criterion = by_id[name]
        return (*_asked_for(criterion), *(part.id for part in criterion.parts))

    for start, criterion in by_id.items():
        seen: set[str] = set()
        pending = list(asked(start))
        while pending:
            name = pending.pop()
            if name == start:
                message = f"{start} rests on its own result"
                raise MappingError(message, file=file, line=criterion.line)
            if name not in seen:
                seen.add(name)
                pending += asked(name)


def _asked_for(criterion: Criterion) -> tuple[str, ...]:
    rule = criterion.rule
    names = (getattr(rule, "confirmed_by", None), getattr(rule, "site", None))
    return tuple(name for name in names if isinstance(name, str))


def referred(criterion: Criterion) -> tuple[str, ...]:
    """Name the criteria that a criterion's rule asks for."""
    shared = (criterion.attested_with,) if criterion.attested_with else ()
    return (*_asked_for(criterion), *shared)


def line_of_text(path: Path, text: str) -> int | None:
    """Find the first line that holds a name, as a word of its own."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(text)}(?![\w-])")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if pattern.search(line) and not line.lstrip().startswith("#"):
            return number
    return None


def _located(error: msgspec.ValidationError, raw: Mapped, file: str) -> MappingError:
    """Name file and line of a mistake by the path msgspec gives (``$.criteria[3].rule``)."""
    text = str(error)
    message, _, path = text.partition(" - at `")
    line = 1
    node: Any = raw
    for part in path.rstrip("`").removeprefix("$").replace("[", ".[").split("."):
        if not part:
            continue
        try:
            if part.startswith("["):
                index = int(part[1:-1])
                line = node.lines[index]
                node = node[index]
            else:
                line = node.key_lines[part]
                node = node[part]
        except (AttributeError, KeyError, TypeError, ValueError, IndexError):
            break
    return MappingError(
        f"{message} ({path.rstrip('`')})" if path else message, file=file, line=line
    )


def _lines(node: Any) -> Iterator[tuple[str, int]]:
    """Find the line of each criterion's id."""
    if isinstance(node, Mapped):
        if isinstance(node.get("id"), str):
            yield node["id"], node.key_lines["id"]
        for key in ("criteria", "parts"):
            yield from _lines(node.get(key))
    elif isinstance(node, Listed):
        for entry in node:
            yield from _lines(entry)


def _bound(
    entry: CriterionFile,
    file: str,
    lines: dict[str, int],
    by_id: dict[str, Criterion],
    kind: str | None = None,
    text: str | None = None,
) -> Criterion:
    line = lines.get(entry.id, 1)
    kind = entry.kind or kind
    text = entry.text or text
    if kind is None or text is None:
        raise MappingError(f"{entry.id} needs kind and text", file=file, line=line)
    if (entry.rule is None) == (not entry.parts):
        raise MappingError(f"{entry.id} needs either a rule or parts", file=file, line=line)
    if entry.parts and entry.combine is None:
        raise MappingError(f"{entry.id} needs combine: all or any", file=file, line=line)
    if entry.id in by_id:
        raise MappingError(f"the id {entry.id} is used twice", file=file, line=line)
    if entry.rule is not None:
        for problem in entry.rule.problems():
            raise MappingError(f"{entry.id}: {problem}", file=file, line=line)
    # The place among all criteria is that of the file: the parent stands before its parts.
    by_id[entry.id] = _PLACEHOLDER
    parts = tuple(_bound(part, file, lines, by_id, kind, text) for part in entry.parts)
    bound = Criterion(
        entry.id,
        kind,
        text,
        entry.computed,
        entry.note,
        entry.rule,
        entry.combine,
        parts,
        entry.attested_with,
        file,
        line,
    )
    by_id[entry.id] = bound
    return bound


_PLACEHOLDER = Criterion("", "", "", "", None, None, None, (), None, "", 0)


def wanted_of(trial: Trial, terms: Terms) -> Wanted:
    """Work out which types, and of Observations which codes, the trial needs.

    Other types are read whole: their classes are also told by prefix and by keyword.
    """
    types: dict[str, set[str]] = {}
    for criterion in trial.by_id.values():
        if criterion.rule is None:
            continue
        for reads in criterion.rule.reads():
            for kind in types_of(reads.type):
                types.setdefault(kind, set()).update(reads.sets)
    codes: dict[str, frozenset[tuple[str, str]] | None] = {}
    for kind, sets in types.items():
        codes[kind] = _codes(sets, terms) if kind == "Observation" else None
    codes["DiagnosticReport"] = None
    return Wanted(codes)


def _codes(sets: set[str], terms: Terms) -> frozenset[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for name in sets:
        found.update(
            (row.system, row.code) for row in terms.sets[name].rows if row.match == "exact"
        )
        for local in terms.local_codes:
            if local.set == name:
                found.add((local.system, local.code))
    wanted = set(found)
    for local in terms.local_codes:
        if local.standard is not None and local.standard in wanted:
            found.add((local.system, local.code))
    return frozenset(found)


def reads_of(trial: Trial) -> list[tuple[Criterion, Reads]]:
    """List what each criterion reads."""
    return [
        (criterion, reads)
        for criterion in trial.by_id.values()
        if criterion.rule is not None
        for reads in criterion.rule.reads()
    ]


def trial_schema() -> dict[str, Any]:
    """Make the JSON Schema of trial files."""
    schema = _with_numbers(msgspec.json.schema(TrialFile))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _with_numbers(node: Any) -> Any:
    """Let decimals be numbers: exact in the file too, since they are read as written."""
    if isinstance(node, dict):
        if node.get("format") == "decimal":
            return {**{k: v for k, v in node.items() if k != "format"}, "type": "number"}
        return {key: _with_numbers(value) for key, value in node.items()}
    return [_with_numbers(entry) for entry in node] if isinstance(node, list) else node
