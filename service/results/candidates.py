"""The candidates of a search: read from the lines of verdicts, written for a spreadsheet.

Only lines are read, never whole files, so that the number of patients doesn't matter.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from service.criteria.model import VerdictCode
from service.results.fhirtypes import string
from service.values.logic import Outcome, Reason

COLUMNS = (
    "Patient",
    "Trial",
    "Verdict",
    "As of",
    "Valid until",
    "Criteria passed",
    "Criteria open",
    "Open criteria",
    "Why they are open",
    "Data that would settle them",
    "Questions for the investigator",
)
# What makes a spreadsheet take a cell for a formula; the wide forms are read alike in East
# Asian settings (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "|", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_LONGEST = 8_000


class _Result(msgspec.Struct, frozen=True):
    id: str
    outcome: Outcome
    reason: Reason
    message: str = ""
    settled_by: tuple[str, ...] = msgspec.field(default=(), name="settledBy")
    parts: tuple[_Result, ...] = ()


class _Verdict(msgspec.Struct, frozen=True, rename="camel"):
    trial: str
    patient: str
    as_of: str
    verdict: VerdictCode
    criteria: tuple[_Result, ...]
    valid_until: str | None = None


class _Head(msgspec.Struct, frozen=True):
    verdict: VerdictCode


_VERDICTS = msgspec.json.Decoder(_Verdict)
_HEADS = msgspec.json.Decoder(_Head)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A patient who is not ineligible, and what is open.

    ``passed``: how many criteria pass. ``open``: ids of those that don't; of these
    ``judged`` need nothing but a judgement, and ``why`` has the messages of the others.
    ``data`` and ``questions``: what would settle them, from their parts.
    """

    patient: str
    trial: str
    code: str
    as_of: str
    valid_until: str | None
    passed: int
    open: tuple[str, ...]
    judged: tuple[str, ...]
    why: tuple[str, ...]
    data: tuple[str, ...]
    questions: tuple[str, ...]


def candidate_of(line: bytes) -> Candidate | None:
    """Read a verdict's line; None if the patient is ineligible.

    Raises msgspec.DecodeError for a line that is no verdict.
    """
    if _HEADS.decode(line).verdict is VerdictCode.INELIGIBLE:
        return None
    verdict = _VERDICTS.decode(line)
    opened = [result for result in verdict.criteria if result.outcome is not Outcome.PASS]
    leaves = [leaf for result in opened for leaf in _leaves(result)]
    judged = [result.id for result in opened if all(map(_judged, _leaves(result)))]
    data = (text for leaf in leaves if not _judged(leaf) for text in leaf.settled_by)
    questions = (text for leaf in leaves if _judged(leaf) for text in leaf.settled_by)
    return Candidate(
        verdict.patient,
        verdict.trial,
        verdict.verdict.value,
        verdict.as_of,
        verdict.valid_until,
        len(verdict.criteria) - len(opened),
        tuple(result.id for result in opened),
        tuple(judged),
        tuple(f"{each.id}: {each.message}" for each in opened if each.id not in judged),
        tuple(dict.fromkeys(data)),
        tuple(dict.fromkeys(questions)),
    )


def _leaves(result: _Result) -> Iterator[_Result]:
    """Go through the parts that are open, and have no parts themselves."""
    if result.outcome is Outcome.PASS:
        return
    if not result.parts:
        yield result
    for part in result.parts:
        yield from _leaves(part)


def _judged(result: _Result) -> bool:
    return result.reason is Reason.JUDGEMENT_REQUIRED


def candidates(lines: Iterable[bytes]) -> Iterator[Candidate]:
    """Go through the candidates among verdicts' lines, in their order."""
    return (found for line in lines if (found := candidate_of(line)) is not None)


def candidates_csv(listed: Iterable[Candidate]) -> Iterator[bytes]:
    """Write candidates for a spreadsheet, a row each (RFC 4180, UTF-8).

    Every cell is in quotes, on one line, and can't begin a formula.
    """
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for candidate in listed:
        yield _taken(out)
        writer.writerow([safe(text) for text in _cells(candidate)])
    yield _taken(out)


def _cells(candidate: Candidate) -> tuple[str, ...]:
    return (
        candidate.patient,
        candidate.trial,
        candidate.code,
        candidate.as_of,
        candidate.valid_until or "",
        str(candidate.passed),
        str(len(candidate.open)),
        " ".join(candidate.open),
        "; ".join(candidate.why),
        "; ".join(candidate.data),
        "; ".join(candidate.questions),
    )


def _taken(out: io.StringIO) -> bytes:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text.encode()


def safe(text: str) -> str:
    """Make a text a spreadsheet's plain text: one line, not too long, never a formula."""
    clean = " ".join((string(text) or "").split())
    if len(clean) > _LONGEST:
        clean = f"{clean[: _LONGEST - 1]}\u2026"
    return f"'{clean}" if clean.startswith(_FORMULA) else clean
