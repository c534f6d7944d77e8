"""Verdict lines as the store keeps them: without the day, compressed, and read for its tables."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

_DAY = b'"asOf":"'
_LEVEL = 6


class _Evidence(msgspec.Struct, frozen=True):
    reference: str
    version: str | None = None


class _Result(msgspec.Struct, frozen=True):
    id: str
    kind: str
    outcome: str
    reason: str
    evidence: tuple[_Evidence, ...] = ()
    parts: tuple[_Result, ...] = ()


class _Verdict(msgspec.Struct, frozen=True, rename="camel"):
    trial: str
    patient: str
    as_of: str
    verdict: str
    valid_until: str | None
    criteria: tuple[_Result, ...]


class Outline(NamedTuple):
    """One criterion or part of a verdict, its parent's id, and what it refers to."""

    criterion: str
    parent: str | None
    kind: str
    outcome: str
    reason: str
    evidence: tuple[tuple[str, str | None], ...]


class Wording(NamedTuple):
    """A verdict as it is kept; ``body`` is not compressed yet."""

    trial: str
    patient: str
    digest: str
    code: str
    valid_until: str | None
    body: bytes
    as_of: str

    def outline(self) -> list[Outline]:
        """List criteria and parts, in order."""
        return list(_walk(_DECODER.decode(self.body).criteria, None))


_DECODER = msgspec.json.Decoder(_Verdict)


def worded(line: bytes) -> Wording:
    """Read a verdict line; raises msgspec.DecodeError (or its ValidationError)."""
    found = _DECODER.decode(line)
    # Quotes within strings are escaped, so that the first place with these bytes is the key.
    head, tail = line.split(_DAY, 1)
    body = head + _DAY + tail[tail.index(b'"') :]
    digest = hashlib.sha256(body).hexdigest()
    return Wording(
        found.trial, found.patient, digest, found.verdict, found.valid_until, body, found.as_of
    )


def packed(body: bytes) -> bytes:
    """Compress what is kept."""
    return zlib.compress(body, _LEVEL)


def unpacked(body: bytes) -> bytes:
    """Undo ``packed``."""
    return zlib.decompress(body)


def line_of(body: bytes, as_of: str) -> bytes:
    """Give a verdict line back from what was kept of it and the day of the run."""
    return unpacked(body).replace(_DAY, _DAY + as_of.encode(), 1)


def _walk(results: tuple[_Result, ...], parent: str | None) -> Iterator[Outline]:
    for result in results:
        evidence = tuple((one.reference, one.version) for one in result.evidence)
        yield Outline(result.id, parent, result.kind, result.outcome, result.reason, evidence)
        yield from _walk(result.parts, result.id)
