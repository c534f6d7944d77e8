"""Goes through a directory of FHIR files once, in units that can be shared out and taken up again.

Lines are read many at a time, each by a decoder that reads only whose a resource is, which also
proves that the line is JSON; a run of lines in which anything is amiss is gone through again
with all care. Source: FHIR Bulk Data Access 3.0, NDJSON; semantics 1.5 on completeness.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import msgspec

from service.errors import RequestError
from service.fhir.bundles import (
    Head,
    Limits,
    NotABundle,
    Reply,
    Taken,
    head_of,
    kind_of,
    severe_issue,
    take_apart,
)
from service.fhir.contents import plain_name
from service.fhir.files import files_of
from service.fhir.index import kind_in
from service.fhir.manifest import Manifest, read_manifest
from service.fhir.resources import READ_TYPES, Identifier

_NDJSON = (".ndjson", ".jsonl")
_TYPE_IN_LINE = re.compile(rb'"resourceType"\s*:\s*"([A-Za-z]{2,64})"')
_BEGINNING = re.compile(rb'\s*\{\s*"resourceType"\s*:\s*"([A-Za-z]{2,64})"')
_BOM = b"\xef\xbb\xbf"
_UNDECODABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
# Large enough that Python's part is small beside the decoder's, small enough for the cache.
CHUNK = 256 * 1024
UNIT = 32 * 1024 * 1024
_UNIT_FILES = 500
_LINE_LIMIT = 64 * 1024 * 1024
_DOCUMENT_LIMIT = 1024 * 1024 * 1024
_ENTRY_LIMIT = 5_000_000


class Ref(msgspec.Struct, gc=False):
    """Of a reference what tells whom it names."""

    reference: str | None = None
    identifier: Identifier | None = None


class Line(msgspec.Struct, gc=False, rename="camel"):
    """Of a resource what tells whose it is."""

    resource_type: str
    subject: Ref | None = None
    patient: Ref | None = None
    individual: Ref | None = None


_Line = TypeVar("_Line", bound=msgspec.Struct)
Decode = Callable[[bytes], Any]


@cache
def of_one_type(line_type: type[msgspec.Struct], kind: str) -> Decode:
    """Give what decodes as ``line_type`` does, but only resources of one type.

    It is faster, since the type's name needs not be made anew for each line; a line of
    another type raises msgspec.ValidationError.
    """
    narrow = msgspec.defstruct(
        kind,
        [("resource_type", Literal[kind])],
        bases=(line_type,),
    )
    return msgspec.json.Decoder(narrow).decode


class Entry(NamedTuple):
    """A file: its number, its name within the source, and what it was like when listed.

    ``unread`` says why it isn't read, if it isn't.
    """

    number: int
    name: str
    size: int
    changed: int
    unread: str | None = None

    @property
    def by_lines(self) -> bool:
        """Whether the file is NDJSON by its name."""
        return self.unread is None and plain_name(self.name).lower().endswith(_NDJSON)

    @property
    def packed(self) -> bool:
        """Whether the file is a gzip."""
        return plain_name(self.name) != self.name


class Unit(NamedTuple):
    """A piece of work: a stretch of one NDJSON file, or a number of whole files.

    A stretch holds the lines that start in it. ``end`` None: to the end.
    """

    number: int
    files: tuple[int, ...]
    start: int = 0
    end: int | None = None


class Place(NamedTuple):
    """Where a resource is: file, unit, and line counted from the unit's start in the file."""

    file: int
    unit: int
    line: int


class Run(NamedTuple):
    """Whole lines with their ends, the first of them line ``line``; ``size`` in bytes.

    ``kind``: the resource type of all of them, None if they are of several.
    """

    lines: Sequence[bytes]
    line: int
    size: int
    kind: str | None

    def text(self, index: int) -> bytes:
        """Give a line without its end."""
        return self.lines[index].removesuffix(b"\n")


def listing(root: Path) -> list[Entry]:
    """List the files of a directory, in order of their paths; raises SourceError."""
    entries = []
    for number, (path, name, problem) in enumerate(files_of(root)):
        try:
            stat = path.stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:
            size, changed = 0, 0  # Reading it will say what is wrong.
        entries.append(Entry(number, name, 0 if problem else size, changed, problem))
    return entries


def base_of(root: Path) -> Path:
    """Give the folder that names of files are relative to."""
    return root if root.is_dir() else root.parent


def units_of(entries: Sequence[Entry]) -> list[Unit]:
    """Share the files out: large NDJSON in stretches, small files several at a time."""
    size = UNIT
    units: list[Unit] = []
    group: list[int] = []
    held = 0

    def close() -> None:
        nonlocal held
        if group:
            units.append(Unit(len(units), tuple(group)))
            group.clear()
            held = 0

    for entry in entries:
        if entry.by_lines and not entry.packed and entry.size > size:
            close()
            for start in range(0, entry.size, size):
                last = start + size >= entry.size
                units.append(
                    Unit(len(units), (entry.number,), start, None if last else start + size)
                )
            continue
        if group and (held + entry.size > size or len(group) >= _UNIT_FILES):
            close()
        group.append(entry.number)
        held += entry.size
    close()
    return units


class Reader(Generic[_Line]):
    """Goes through units; subclasses say what is done with what is found.

    ``quick`` gets runs of decoded lines; ``resource`` gets one resource (of a Bundle, a
    document or a run that holds something unusual). ``line_type`` is what lines are decoded
    to; ``line_types``, where most lines are of one type, what those of that type are.
    """

    line_type: type[_Line]
    line_types: ClassVar[Mapping[str, type[msgspec.Struct]]] = {}

    def __init__(self, root: Path, entries: Sequence[Entry], harmless: frozenset[str]) -> None:
        self.base = base_of(root)
        self.entries = entries
        self.harmless = harmless
        self.file = 0
        self.unit = 0
        self.bytes = 0
        self._decode: Decode = msgspec.json.Decoder(self.line_type).decode
        self._decoders: dict[str, Decode] = {}

    # What subclasses do.

    def quick(self, found: Sequence[_Line], run: Run) -> None:
        """Take a run of decoded lines, as many as ``run`` has."""
        raise NotImplementedError

    def resource(
        self, kind: str, head: Head | None, raw: bytes, place: Place, full_url: str | None
    ) -> None:
        """Take one resource; ``head`` None: whose it is can't be read."""
        raise NotImplementedError

    def masked(self, raw: bytes, place: Place, full_url: str | None) -> None:
        """Take an entry of a Bundle that is of no type that can be read."""

    def lost(self, problem: str, place: Place | None, kind: str | None) -> None:
        """Note that something can't be read, of one type or of any."""

    def replied(self, reply: Reply) -> None:
        """Note what a file or Bundle claims to hold."""

    def manifest(self, manifest: Manifest) -> None:
        """Note an export's manifest."""

    def opened(self, entry: Entry) -> None:
        """Note that a file is begun (or a stretch of it)."""

    def lines_read(self, count: int) -> None:
        """Note how many lines the unit holds of the file at work."""

    # How units are read.

    def read(self, unit: Unit) -> None:
        """Go through a unit; what is wrong with files is noted, never raised."""
        self.unit = unit.number
        for number in unit.files:
            entry = self.entries[number]
            self.file = number
            self.opened(entry)
            try:
                self._file(entry, unit)
            except OSError as error:
                problem = f"the file can't be read ({type(error).__name__})"
                self.lost(problem, None, kind_in(entry.name))

    def _file(self, entry: Entry, unit: Unit) -> None:
        if entry.unread is not None:
            self.lost(entry.unread, None, None)
            return
        path = self.base / entry.name
        if entry.packed:
            packed = _Packed(path)
            if entry.by_lines:
                self._lines(_pieces(packed.chunks()), first=True)
            else:
                self._whole(b"".join(packed.chunks()), cut=packed.problem is not None)
            if packed.problem:
                self.lost(packed.problem, None, kind_in(entry.name))
        elif entry.by_lines:
            with path.open("rb", buffering=0) as source:
                self._lines(_stretch(source.fileno(), unit), first=unit.start == 0)
        elif entry.size > _DOCUMENT_LIMIT:
            self.lost("the file is too large for one JSON document", None, None)
        else:
            self._whole(path.read_bytes(), cut=False)

    def _whole(self, raw: bytes, *, cut: bool) -> None:
        if not self._document(raw, cut=cut):
            self._lines(_pieces([raw]), first=True)

    def _lines(self, pieces: Iterator[tuple[bytes, int]], *, first: bool) -> None:
        line = 1
        for piece, cut in pieces:
            raw, end = piece, cut
            if end == 0:
                self.lost("the line is too long", self._place(line), self._named())
                line += 1
                continue
            self.bytes += end
            if first and raw.startswith(_BOM):
                raw, end = raw[len(_BOM) :], end - len(_BOM)
            first = False
            line += self._run(raw, end, line)
        self.lines_read(line - 1)
        # An empty file of an export says that there is none of the type.
        self.replied(Reply())

    def _run(self, raw: bytes, end: int, line: int) -> int:
        """Take a run of lines; gives how many there are."""
        lines = BytesIO(raw).readlines(end)
        found = None
        kind = _first_type(raw)
        try:
            found = list(map(self._decoder(kind), lines))
        except _UNDECODABLE:
            # Lines of several types, if nothing else.
            kind = None
            try:
                found = list(map(self._decode, lines))
            except _UNDECODABLE:
                self._slow(raw[:end], line)
        if found is not None:
            self.quick(found, Run(lines, line, end, kind))
        return len(lines)

    def _decoder(self, kind: str | None) -> Decode:
        """Give what decodes lines of a type (None: of any), and no others."""
        if kind is None:
            return self._decode
        known = self._decoders.get(kind)
        if known is None:
            line_type = self.line_types.get(kind, self.line_type)
            known = self._decoders[kind] = of_one_type(line_type, kind)
        return known

    def _named(self) -> str | None:
        return kind_in(self.entries[self.file].name)

    def _place(self, line: int) -> Place:
        return Place(self.file, self.unit, line)

    def _slow(self, raw: bytes, line: int) -> None:
        for number, text in enumerate(raw.split(b"\n"), line):
            if not text.strip():
                continue
            head = head_of(text)
            kind = head.resource_type if head else kind_of(text)
            if kind is None:
                named = _type_in(text) or self._named()
                self.lost("the line is not a FHIR resource", self._place(number), named)
            else:
                self._any(kind, head, text, self._place(number))

    def any_line(self, raw: bytes, line: int) -> None:
        """Take a line that the quick way leaves aside (a Bundle, an OperationOutcome)."""
        self._slow(raw, line)

    def _document(self, whole: bytes, *, cut: bool) -> bool:
        """Read a file that is one JSON document; False if it is to be read by lines."""
        name = self.entries[self.file].name
        if len(whole) > _DOCUMENT_LIMIT:
            self.lost("the file is too large for one JSON document", None, None)
            return True
        raw = whole.removeprefix(_BOM)
        kind = kind_of(raw)
        if kind is not None:
            self.bytes += len(raw)
            self.lines_read(raw.count(b"\n") + 1)
            self._any(kind, head_of(raw), raw, self._place(1))
            if kind not in ("Bundle", "OperationOutcome"):
                self.replied(Reply())
            return True
        manifest = read_manifest(raw, name)
        if manifest is not None:
            self.manifest(manifest)
            return True
        if b"\n{" in raw.strip():
            return False
        if not cut:
            self.lost("the file is not a FHIR resource", None, None)
        return True

    def _any(self, kind: str, head: Head | None, raw: bytes, place: Place) -> None:
        if kind == "Bundle":
            self._bundle(raw, place)
        elif kind == "OperationOutcome":
            problem = severe_issue(raw, self.harmless)
            if problem is not None:
                self.lost(problem, place, None)
        else:
            self.resource(kind, head, raw, place, None)

    def _bundle(self, raw: bytes, place: Place) -> None:
        try:
            taken = take_apart(raw, limits=Limits(entries=_ENTRY_LIMIT), harmless=self.harmless)
        except (NotABundle, RequestError) as error:
            self.lost(str(error), place, None)
            return
        for reply in taken.replies:
            self.replied(reply._replace(place=self.text_of(place)))
        self._parts(raw, taken, place)

    def text_of(self, place: Place) -> str:
        """Write a place for people; in a stretch its line counts from the stretch's start."""
        return f"{self.entries[place.file].name}:{place.line}"

    def _parts(self, raw: bytes, taken: Taken, place: Place) -> None:
        position = counted = 0
        line = place.line
        for item in taken.items:
            # They come in the order in which they stand, so that looking on from the last
            # finds each at once.
            found = raw.find(item.raw, position)
            position = found + len(item.raw)
            line += raw.count(b"\n", counted, found)
            counted = found
            where = place._replace(line=line)
            head = head_of(item.raw)
            kind = head.resource_type if head else kind_of(item.raw)
            if kind is None:
                self.masked(item.raw, where, item.full_url)
            else:
                self.resource(kind, head, item.raw, where, item.full_url)


class _Packed:
    """A gzip's content; ``problem`` says, once read, that it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem: str | None = None

    def chunks(self) -> Iterator[bytes]:
        """Give the content; what came before a damage still counts."""
        with self._path.open("rb") as source, gzip.open(source, "rb") as packed:
            try:
                while chunk := packed.read1(CHUNK):
                    yield chunk
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self.problem = f"the gzip is damaged or cut short ({type(error).__name__})"


def _stretch(number: int, unit: Unit) -> Iterator[tuple[bytes, int]]:
    """Read the lines that start within a unit of an open file, many at a time.

    Gives bytes and how many of them are whole lines; 0 for a line that is too long.
    """
    position = _line_start(number, unit.start)
    size = CHUNK
    while unit.end is None or position < unit.end:
        chunk = os.pread(number, size, position)
        if not chunk:
            return
        cut = chunk.rfind(b"\n") + 1
        if unit.end is not None and position + cut > unit.end:
            # The line that holds the last byte before the end is the last.
            cut = chunk.find(b"\n", unit.end - position - 1) + 1
        if cut == 0 and len(chunk) < size:
            cut = len(chunk)  # The file's last line, without an end.
        if cut == 0 and size < _LINE_LIMIT:
            size = min(8 * size, _LINE_LIMIT)
            continue
        yield chunk, cut
        position = position + cut if cut else _line_start(number, position + len(chunk))
        size = CHUNK


def _line_start(number: int, position: int) -> int:
    """Find the first line that starts at or after a place of an open file."""
    if position == 0:
        return 0
    position -= 1
    while chunk := os.pread(number, CHUNK, position):
        found = chunk.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(chunk)
    return position


def _pieces(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Cut a stream at ends of lines; gives the same as ``_stretch``."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if cut == 0:
            size += len(chunk)
            if size <= _LINE_LIMIT:
                held.append(chunk)
            continue
        first = 0
        if size > _LINE_LIMIT:
            yield b"", 0
            first = chunk.find(b"\n") + 1
            held = []
        if first < cut:
            whole = b"".join((*held, chunk[first:cut]))
            yield whole, len(whole)
        held = [chunk[cut:]] if cut < len(chunk) else []
        size = len(chunk) - cut
    if size > _LINE_LIMIT:
        yield b"", 0
    elif held:
        whole = b"".join(held)
        yield whole, len(whole)


def _first_type(raw: bytes) -> str | None:
    """Give the type of the first line's resource, if it is one that is read and written first."""
    found = _BEGINNING.match(raw)
    kind = found[1].decode() if found else None
    return kind if kind in READ_TYPES else None


def _type_in(line: bytes) -> str | None:
    found = _TYPE_IN_LINE.search(line)
    return found[1].decode() if found else None
