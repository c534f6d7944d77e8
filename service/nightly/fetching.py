"""Records as they come from a live server, written to files, and what is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from service.fhir.bundles import kind_of
from service.fhir.crawl import Unread, survivor_of
from service.fhir.source import Fetched
from service.nightly.model import TypeCount
from service.nightly.partition import encode_record

__all__ = ["Part", "incomplete", "lines_of", "types_read"]

# What is asked for that is no type of a record, by what it answers with.
_ANSWERS = {"": "Bundle", "metadata": "CapabilityStatement"}


class Part(msgspec.Struct):
    """What reading a part of the cohort gave, beside the records (kept as its checkpoint).

    ``survivors``: whom its records are about. ``unread``: ids with the problem, and whether
    there is no such patient. ``incomplete``: patients by what was not read completely.
    ``types``: resources and bytes; ``requests`` by what was asked for.
    """

    survivors: list[str] = []
    unread: list[tuple[str, str, bool]] = []
    incomplete: dict[str, int] = {}
    types: dict[str, tuple[int, int]] = {}
    requests: dict[str, int] = {}
    refused: int = 0


def lines_of(
    records: Iterator[Fetched | Unread],
    part: Part,
    known: set[str],
    expected: Mapping[str, str],
) -> Iterator[bytes]:
    """Write records, and count; of merged patients the first."""
    lacking: Counter[str] = Counter()
    types: dict[str, list[int]] = {}
    for got in records:
        if isinstance(got, Unread):
            part.unread.append((got.patient, got.problem, got.unknown))
            part.refused += got.refused
            continue
        survivor = survivor_of(got)
        if survivor in known:
            continue
        known.add(survivor)
        part.survivors.append(survivor)
        for kind, reading in got.readings.items():
            if reading.problem is not None and reading.problem != expected.get(kind):
                lacking[f"{kind}: {reading.problem}"] += 1
        for item in got.items:
            counted = types.setdefault(kind_of(item.raw) or "", [0, 0])
            counted[0] += 1
            counted[1] += len(item.raw)
        yield encode_record(got) + b"\n"
    part.incomplete = dict(lacking)
    part.types = {kind: (count, size) for kind, (count, size) in types.items()}


def incomplete(parts: Sequence[Part]) -> Iterator[str]:
    """Say what was not read completely, and of how many patients."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.incomplete)
    for text, count in sorted(counts.items()):
        patients = "1 patient" if count == 1 else f"{count} patients"
        yield f"not read completely of {patients}: {text}"


def types_read(
    requests: Sequence[Mapping[str, int]], parts: Sequence[Part]
) -> dict[str, TypeCount]:
    """Count what was read, and the requests it took, by type."""
    sent: Counter[str] = Counter()
    for each in requests:
        for asked, count in each.items():
            sent[_ANSWERS.get(asked, asked)] += count
    read: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for part in parts:
        for kind, (count, length) in part.types.items():
            read[kind] += count
            size[kind] += length
    return {
        kind: TypeCount(bytes=size[kind], lines=read[kind], read=read[kind], requests=sent[kind])
        for kind in sorted({*sent, *read})
    }
