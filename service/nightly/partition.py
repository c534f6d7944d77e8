"""Partitions: the records of the population, shared out on disk so that few are held at a time.

The second pass routes each resource of a patient who may be in the population to the patient's
partition; one file per unit of work holds what it found, sorted by partition. The record that
is put together of it, or that a live server gave, is one line of JSON: the patient's key, the
resources as they came (base64, since what can't be read must survive as well), readings,
messages and the server's base URL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple

import msgspec

from service.fhir.bundles import Head, Reply, head_of
from service.fhir.index import names_of, subject_key
from service.fhir.manifest import Manifest
from service.fhir.record import Item, Message, Reading
from service.fhir.resources import READ_TYPES, Unreadable, decode
from service.fhir.source import Fetched
from service.nightly.directory import Entry, Line, Place, Reader, Run
from service.nightly.population import Population, is_plain, local

REFERRED = ("Medication", "ResearchStudy")
# The partition of what is nobody's, but unreadable: every record must know of it.
SHARED = -1
SHARED_LIMIT = 100
_LENGTH = Struct("<I")


class _Record(msgspec.Struct, frozen=True):
    patient: str
    items: tuple[Item, ...]
    readings: dict[str, Reading]
    messages: tuple[Message, ...] = ()
    base_url: str | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Record)


def encode_record(fetched: Fetched) -> bytes:
    """Write a record as one line of JSON, without the line's end."""
    return _ENCODER.encode(
        _Record(
            fetched.patient,
            fetched.items,
            dict(fetched.readings),
            fetched.messages,
            fetched.base_url,
        )
    )


def decode_record(line: bytes) -> Fetched:
    """Read a record that ``encode_record`` wrote; raises msgspec.DecodeError."""
    record = _DECODER.decode(line)
    return Fetched(record.patient, record.items, record.readings, record.messages, record.base_url)


class Kept(NamedTuple):
    """A resource kept for the population.

    ``owner``: number of the patient's key, or None for what is shared or referred to;
    ``name``: how references name the latter.
    """

    owner: int | None
    patient: bool
    place: Place
    full_url: str | None
    raw: bytes
    name: str | None = None


_KEPT = msgspec.msgpack.Decoder(Kept)
_PACK = msgspec.msgpack.Encoder()


def framed(value: object) -> bytes:
    """Write a value so that it can be read back one by one."""
    packed = _PACK.encode(value)
    return _LENGTH.pack(len(packed)) + packed


def frames(raw: bytes) -> Iterator[memoryview]:
    """Take apart what ``framed`` wrote."""
    view = memoryview(raw)
    position = 0
    while position < len(view):
        (length,) = _LENGTH.unpack_from(view, position)
        position += _LENGTH.size
        yield view[position : position + length]
        position += length


def read_frames(file: BinaryIO) -> Iterator[bytes]:
    """Read what ``framed`` wrote from a file, one by one."""
    while head := file.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        yield file.read(length)


def kept_of(raw: bytes) -> Iterator[Kept]:
    """Read kept resources back."""
    return map(_KEPT.decode, frames(raw))


class Lost(NamedTuple):
    """Something that can't be read: of one type, or of any."""

    problem: str
    file: int
    place: Place | None
    kind: str | None


class Counted(msgspec.Struct):
    """What a unit holds of one type."""

    bytes: int = 0
    lines: int = 0
    read: int = 0
    skipped: dict[str, int] = {}

    def skip(self, why: str, count: int) -> None:
        """Count what was not read."""
        if count:
            self.skipped[why] = self.skipped.get(why, 0) + count


class Routed(msgspec.Struct):
    """What the second pass found in a unit (kept as its checkpoint).

    ``index``: per partition where in the unit's file its resources are (offset, length);
    ``lines``: per file the lines of this unit; ``holds``: per file the number of each type;
    ``refers``: references to resources without a patient, with the partitions that need
    them; ``surprises``: files the first pass should have read.
    """

    index: dict[int, tuple[int, int]] = {}
    types: dict[str, Counted] = {}
    lines: dict[int, int] = {}
    holds: dict[int, dict[str, int]] = {}
    replies: list[Reply] = []
    manifests: list[Manifest] = []
    lost: list[Lost] = []
    refers: dict[str, list[int]] = {}
    surprises: list[int] = []
    shared: int = 0
    bytes: int = 0


class RouteLine(Line, gc=False, rename="camel"):
    """Of a line what tells whose it is, a Patient's own id included."""

    id: str | None = None


class Spool:
    """What one unit keeps, by partition."""

    def __init__(self) -> None:
        self._parts: dict[int, bytearray] = {}

    def add(self, partition: int, kept: Kept) -> None:
        """Keep a resource."""
        part = self._parts.get(partition)
        if part is None:
            part = self._parts[partition] = bytearray()
        part += framed(kept)

    def written(self) -> tuple[list[bytearray], dict[int, tuple[int, int]]]:
        """Give what is to be written, and where in it each partition will be."""
        index: dict[int, tuple[int, int]] = {}
        offset = 0
        ordered = sorted(self._parts)
        for partition in ordered:
            length = len(self._parts[partition])
            index[partition] = (offset, length)
            offset += length
        return [self._parts[partition] for partition in ordered], index


class Route(Reader[RouteLine]):
    """The second pass: keeps what is of patients who may be in the population.

    ``scanned``: the files that the first pass read; ``types``: what it had to read of them.
    """

    line_type = RouteLine

    def __init__(
        self,
        root: Path,
        entries: Sequence[Entry],
        harmless: frozenset[str],
        population: Population,
        partitions: int,
        scanned: frozenset[int],
        types: frozenset[str],
    ) -> None:
        super().__init__(root, entries, harmless)
        self.population = population
        self.partitions = partitions
        self.scanned = scanned
        self.first_types = types
        self.spool = Spool()
        self.found = Routed()
        self._replies: dict[Reply, None] = {}
        self._refers: dict[str, set[int]] = {}
        self._holds: dict[str, int] = {}
        self._partition_of: dict[int, int] = {}

    def opened(self, entry: Entry) -> None:
        """Begin to count what the file holds."""
        self._holds = self.found.holds.setdefault(entry.number, {})

    def lines_read(self, count: int) -> None:
        """Note how many lines the unit holds of the file."""
        self.found.lines[self.file] = count

    def quick(self, found: Sequence[RouteLine], run: Run) -> None:
        """Take a run of lines: most are of somebody else, and are only counted."""
        if run.kind is not None:
            counts = {run.kind: len(found)}
            self._count(run.kind, len(found), run.size)
        else:
            counts = Counter(each.resource_type for each in found)
            for each, text in zip(found, run.lines, strict=True):
                self._count(each.resource_type, 1, len(text))
        for index in self._hits(found, run.kind):
            kind = found[index].resource_type
            counts[kind] -= 1
            text = run.text(index)
            if kind in _WITHIN:
                self.any_line(text, run.line + index)
            else:
                self._take(kind, head_of(text), text, self._place(run.line + index), None)
        for kind, count in counts.items():
            self.found.types[kind].skip(_why_skipped(kind), count)

    def _hits(self, found: Sequence[RouteLine], kind: str | None) -> Sequence[int]:
        """Choose the lines that are, or may be, of the population."""
        if kind is None or kind == "Patient":
            return [index for index, each in enumerate(found) if self._may_be(each)]
        if _why_skipped(kind) != _OTHER:
            return ()
        try:
            # Nearly all lines are somebody else's, which is seen for all of them at once.
            names = {each.subject.reference for each in found}  # type: ignore[union-attr]
        except AttributeError:  # One has no subject.
            return [index for index, each in enumerate(found) if self._may_be(each)]
        if self.population.has_none_of(names):
            return ()
        near = {name for name in names if self._near(name)}
        return [
            index
            for index, each in enumerate(found)
            if each.subject is not None and each.subject.reference in near
        ]

    def _may_be(self, line: RouteLine) -> bool:
        """Tell whether a line is, or may be, of the population or holds what is."""
        kind = line.resource_type
        if kind not in _WITHIN and _why_skipped(kind) != _OTHER:
            return False
        if kind == "Patient":
            return not line.id or f"Patient/{line.id}" in self.population.owners
        ref = line.subject or line.patient or line.individual
        return ref is None or self._near(ref.reference)

    def _near(self, name: str | None) -> bool:
        """Tell whether a reference names, or may name, one of the population."""
        return name is None or name in self.population.owners or not is_plain(name)

    def _count(self, kind: str, lines: int, size: int) -> Counted:
        counted = self.found.types.get(kind)
        if counted is None:
            counted = self.found.types[kind] = Counted(skipped={})
        counted.lines += lines
        counted.bytes += size
        self._holds[kind] = self._holds.get(kind, 0) + lines
        if kind in self.first_types and self.file not in self.scanned:
            self.scanned |= {self.file}
            self.found.surprises.append(self.file)
        return counted

    def resource(
        self, kind: str, head: Head | None, raw: bytes, place: Place, full_url: str | None
    ) -> None:
        """Take one resource."""
        counted = self._count(kind, 1, len(raw))
        if kind not in READ_TYPES:
            counted.skip("type-not-needed", 1)
        elif kind in REFERRED and head is not None:
            counted.skip("not-referred-to", 1)
        else:
            self._take(kind, head, raw, place, full_url)

    def _take(
        self, kind: str, head: Head | None, raw: bytes, place: Place, full_url: str | None
    ) -> None:
        """Keep a resource if it is of the population."""
        counted = self.found.types[kind]
        if head is None:
            counted.skip("unreadable", 1)
            self._share(kind, raw, place, full_url)
            return
        if kind == "Patient":
            name = f"Patient/{head.id}" if head.id else full_url or ""
            owner = self.population.owners.get(name)
        else:
            ref = head.owner()
            name = (ref.reference if ref is not None else None) or ""
            if not (is_plain(name) and name in self.population.owners):
                name = subject_key(ref)
            owner = self.population.owner(name)
            if owner is None and not name.startswith("Patient/"):
                # By what else it names its patient: an identifier, or one of a contained one.
                owners = map(self.population.owner, names_of(head)[1:])
                owner = next((found for found in owners if found is not None), None)
        if owner is None:
            self._foreign(counted, kind, name, raw, place, full_url)
            return
        counted.read += 1
        partition = self._partition(owner)
        self.spool.add(partition, Kept(owner, kind == "Patient", place, full_url, raw))
        for refers in (head.medication_reference, head.study):
            if refers is not None and refers.reference and not refers.reference.startswith("#"):
                name = local(subject_key(refers), self.population.bases)
                self._refers.setdefault(name, set()).add(partition)

    def _partition(self, owner: int) -> int:
        found = self._partition_of.get(owner)
        if found is None:
            found = self.population.partition(owner, self.partitions)
            self._partition_of[owner] = found
        return found

    def _foreign(
        self,
        counted: Counted,
        kind: str,
        name: str,
        raw: bytes,
        place: Place,
        full_url: str | None,
    ) -> None:
        """Leave a resource aside, unless it can't be used and may be anybody's."""
        if kind == "Patient":
            counted.skip(_OTHER if name else "nobody", 1)
            if not name:
                self.lost("a Patient without id; not used", place, kind)
        elif local(name, self.population.bases).startswith("Patient/"):
            counted.skip(_OTHER, 1)
        elif _unreadable(raw):
            counted.skip("unreadable", 1)
            self._share(kind, raw, place, full_url)
        else:
            counted.skip("nobody", 1)

    def masked(self, raw: bytes, place: Place, full_url: str | None) -> None:
        """Take an entry of a Bundle that is of no type that can be read."""
        self._share(None, raw, place, full_url)

    def _share(self, kind: str | None, raw: bytes, place: Place, full_url: str | None) -> None:
        self.found.shared += 1
        self.found.lost.append(Lost(UNREADABLE, self.file, place, kind))
        if self.found.shared <= SHARED_LIMIT:
            self.spool.add(SHARED, Kept(None, False, place, full_url, raw))
        else:
            # More would add nothing but work: the type can't be trusted any more.
            self.replied(many_unreadable(kind))

    def lost(self, problem: str, place: Place | None, kind: str | None) -> None:
        """Note that something can't be read."""
        self.found.lost.append(Lost(problem, self.file, place, kind))

    def replied(self, reply: Reply) -> None:
        """Note what a file or Bundle claims; equal claims are noted once."""
        if reply.self_url is None:
            if reply.patient is not None and reply.patient not in self.population.owners:
                return
            if reply.problem is None:
                reply = reply._replace(place=None, matches=0)
        self._replies[reply] = None

    def manifest(self, manifest: Manifest) -> None:
        """Note an export's manifest."""
        self.found.manifests.append(manifest)

    def routed(self) -> tuple[Routed, list[bytearray]]:
        """Give what was found, and what is to be written beside it."""
        parts, index = self.spool.written()
        self.found.index = index
        self.found.replies = list(self._replies)
        self.found.refers = {name: sorted(needed) for name, needed in self._refers.items()}
        self.found.bytes = self.bytes
        return self.found, parts


def many_unreadable(kind: str | None) -> Reply:
    """Say that too many resources (of a type) can't be read for each to go with every record."""
    types = None if kind is None else frozenset((kind,))
    return Reply(types=types, problem="many resources can't be read")


def _why_skipped(kind: str) -> str:
    if kind in REFERRED:
        return "not-referred-to"
    return _OTHER if kind in READ_TYPES else "type-not-needed"


UNREADABLE = "the resource can't be read"
_OTHER = "other-patient"
_WITHIN = ("Bundle", "OperationOutcome")


def _unreadable(raw: bytes) -> bool:
    try:
        decode(raw)
    except Unreadable:
        return True
    return False


class Refer(Reader[RouteLine]):
    """The third pass: keeps what the population's records refer to, for who needs it."""

    line_type = RouteLine

    def __init__(
        self,
        root: Path,
        entries: Sequence[Entry],
        harmless: frozenset[str],
        needed: dict[str, list[int]],
    ) -> None:
        super().__init__(root, entries, harmless)
        self.needed = needed
        self.spool = Spool()
        self.read_by_type: Counter[str] = Counter()

    def quick(self, found: Sequence[RouteLine], run: Run) -> None:
        """Take a run of lines."""
        if run.kind is not None and run.kind not in REFERRED:
            return
        for index, each in enumerate(found):
            kind = each.resource_type
            if kind == "Bundle":
                self.any_line(run.text(index), run.line + index)
            elif kind in REFERRED and (name := f"{kind}/{each.id}") in self.needed:
                text, place = run.text(index), self._place(run.line + index)
                self._keep(kind, name, text, place, None)

    def resource(
        self, kind: str, head: Head | None, raw: bytes, place: Place, full_url: str | None
    ) -> None:
        """Take one resource."""
        if kind not in REFERRED or head is None:
            return
        for name in dict.fromkeys((f"{kind}/{head.id}" if head.id else None, full_url)):
            if name is not None and name in self.needed:
                self._keep(kind, name, raw, place, full_url)

    def _keep(self, kind: str, name: str, raw: bytes, place: Place, full_url: str | None) -> None:
        self.read_by_type[kind] += 1
        for partition in self.needed[name]:
            self.spool.add(partition, Kept(None, False, place, full_url, raw, name))


class Referred(msgspec.Struct):
    """What the third pass found in a unit (kept as its checkpoint)."""

    index: dict[int, tuple[int, int]] = {}
    read: dict[str, int] = {}
