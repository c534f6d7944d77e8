"""The index of files: whose resources are where, and what could not be read.

Built by reading each resource's head (whose it is, what it refers to) once.
"""

from __future__ import annotations

import mmap
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from service.errors import RequestError
from service.fhir.bundles import (
    Head,
    Limits,
    NotABundle,
    PatientHead,
    Reply,
    Taken,
    base_of,
    contained_patient,
    head_of,
    kind_of,
    patient_head,
    severe_issue,
    take_apart,
    whole,
)
from service.fhir.contents import Content, Place, Places, Unpacked, plain_name
from service.fhir.manifest import Manifest, judge, read_manifest
from service.fhir.record import Item, Message
from service.fhir.resources import READ_TYPES, Reference, Unreadable, decode
from service.fhir.source import SiteSearch

_LINE_LIMIT = 64 * 1024 * 1024
_DOCUMENT_LIMIT = 1024 * 1024 * 1024
_ENTRY_LIMIT = 5_000_000
_BOM = b"\xef\xbb\xbf"
_HISTORY = re.compile(r"/_history/[^/]*$")
_TYPE_IN_LINE = re.compile(rb'"resourceType"\s*:\s*"([A-Za-z]{2,64})"')
_TYPE_IN_NAME = re.compile(r"(?<![A-Za-z])([A-Z][A-Za-z]{2,63})(?![A-Za-z])")
_NDJSON = (".ndjson", ".jsonl")
_WITHOUT_SUBJECT = ("Medication", "ResearchStudy")


class Whose(NamedTuple):
    """What a resource names its patient by: reference, identifier, a contained Patient's ones."""

    reference: str = ""
    identifier: str = ""
    inside: tuple[str, ...] = ()


class Index:
    """Places of all resources, by whom they name; reads them back when a patient is asked for.

    ``replies`` say what was read completely; ``patients`` are the Patients' keys in the
    order of the files; ``merged_away`` those replaced by another.
    """

    def __init__(self, root: Path, site: SiteSearch) -> None:
        self._root = root if root.is_dir() else root.parent
        self._site = site
        self._harmless = site.harmless_outcomes
        self._names: list[str] = []
        self._contents: list[Content] = []
        self._unpacked = Unpacked()
        self._places = Places()
        self._counts: list[dict[str, int]] = []
        self._manifests: list[Manifest] = []
        self._heads: list[PatientHead] = []
        self._by_subject: dict[Whose, array[int]] = {}
        self._by_reference: dict[str, list[int]] = {}
        self._refers: dict[int, tuple[str, ...]] = {}
        self._bases: set[str] = set()
        # Nobody's, but unreadable: every record must know of them (semantics 1.8).
        self._masked: list[int] = []
        self._owned: dict[str, list[array[int]]] = {}
        self._groups: dict[str, set[str]] = {}
        self._aliases: dict[str, str] = {}
        self._linked: set[str] = set()
        self.replies: list[Reply] = []
        self.messages: list[Message] = []
        self.patients: dict[str, list[int]] = {}
        self.merged_away: set[str] = set()
        self.lost_patients = False

    @property
    def base_url(self) -> str | None:
        """Give the base URL of the server the files came from, if they show one."""
        return next(iter(self._bases)) if len(self._bases) == 1 else None

    def add_file(self, path: Path) -> None:
        """Read one file; what is wrong with it is noted, never raised."""
        name = path.relative_to(self._root).as_posix()
        try:
            content = Content(path, self._unpacked)
        except OSError as error:
            self._lost(f"the file can't be read ({type(error).__name__})", name, kind_in(name))
            return
        number = len(self._names)
        self._names.append(name)
        self._contents.append(content)
        self._counts.append({})
        if content.problem:
            self._lost(content.problem, name, kind_in(name))
        with content.mapped() as view:
            lines = plain_name(path.name).lower().endswith(_NDJSON)
            if lines or not self._document(view, number, cut=content.problem is not None):
                self._lines(view, number)

    def add_unread(self, name: str, problem: str) -> None:
        """Note a file that isn't read: what it holds is missing from every record."""
        self._lost(problem, name, None)

    def _lines(self, view: mmap.mmap | bytes, number: int) -> None:
        """Read NDJSON; the last line of a file cut short is lost like any unreadable one."""
        offset, line, size = _start(view), 0, len(view)
        while offset < size:
            line += 1
            end = view.find(b"\n", offset)
            end = size if end < 0 else end
            place = Place(number, offset, end - offset, line)
            offset = end + 1
            if place.length > _LINE_LIMIT:
                self._lost("the line is too long", self._at(place), kind_in(self._names[number]))
                continue
            raw = view[place.offset : end]
            if raw.strip():
                self._line(raw, place)
        # An empty file of an export says that there is none of the type.
        self.replies.append(Reply())

    def _line(self, raw: bytes, place: Place) -> None:
        head = head_of(raw)
        kind = head.resource_type if head else kind_of(raw)
        if kind is None:
            found = _TYPE_IN_LINE.search(raw)
            named = found[1].decode() if found else kind_in(self._names[place.file])
            self._lost("the line is not a FHIR resource", self._at(place), named)
        else:
            self._any(kind, head, raw, place)

    def _document(self, view: mmap.mmap | bytes, number: int, *, cut: bool) -> bool:
        """Read a file that is one JSON document; False if it is to be read by lines."""
        name = self._names[number]
        if len(view) > _DOCUMENT_LIMIT:
            self._lost("the file is too large for one JSON document", name, None)
            return True
        start = _start(view)
        raw = bytes(view[start:])
        kind = kind_of(raw)
        if kind is not None:
            self._any(kind, head_of(raw), raw, Place(number, start, len(raw), 1))
            if kind not in ("Bundle", "OperationOutcome"):
                self.replies.append(Reply())
            return True
        manifest = read_manifest(raw, name)
        if manifest is not None:
            self._manifests.append(manifest)
            return True
        if b"\n{" in raw.strip():
            return False
        if not cut:
            self._lost("the file is not a FHIR resource", name, None)
        return True

    def _any(self, kind: str, head: Head | None, raw: bytes, place: Place) -> None:
        counts = self._counts[place.file]
        counts[kind] = counts.get(kind, 0) + 1
        if kind == "Bundle":
            self._bundle(raw, place)
        elif kind == "OperationOutcome":
            problem = severe_issue(raw, self._harmless)
            if problem is not None:
                self._lost(problem, self._at(place), None)
        else:
            self._resource(kind, head, place)

    def _bundle(self, raw: bytes, place: Place) -> None:
        try:
            taken = take_apart(raw, limits=Limits(entries=_ENTRY_LIMIT), harmless=self._harmless)
        except (NotABundle, RequestError) as error:
            self._lost(str(error), self._at(place), None)
            return
        where = self._at(place)
        self.replies.extend(reply._replace(place=where) for reply in taken.replies)
        self._pieces(raw, taken, place)

    def _pieces(self, raw: bytes, taken: Taken, place: Place) -> None:
        """Note where in the file each resource of a Bundle is."""
        counts = self._counts[place.file]
        position = counted = 0
        line = place.line
        for item in taken.items:
            # They come in the order in which they stand, so that looking on from the last
            # finds each at once; an equal text between them would do as well.
            found = raw.find(item.raw, position)
            position = found + len(item.raw)
            line += raw.count(b"\n", counted, found)
            counted = found
            where = Place(place.file, place.offset + found, len(item.raw), line, item.full_url)
            head = head_of(item.raw)
            kind = head.resource_type if head else kind_of(item.raw)
            if kind is None:
                self._masked.append(self._places.add(where))
            else:
                counts[kind] = counts.get(kind, 0) + 1
                self._resource(kind, head, where)

    def _resource(self, kind: str, head: Head | None, place: Place) -> None:
        if kind not in READ_TYPES:
            return
        number = self._places.add(place)
        if head is None:
            self._masked.append(number)
            self.lost_patients |= kind == "Patient"
            return
        if head.id:
            self._by_reference.setdefault(f"{kind}/{head.id}", []).append(number)
        if place.full_url:
            base = base_of(place.full_url, f"{kind}/{head.id}")
            if base is not None:
                self._bases.add(base)
            self._by_reference.setdefault(place.full_url, []).append(number)
        if kind == "Patient":
            self._patient(head, place, number)
        elif kind not in _WITHOUT_SUBJECT:
            self._owned_resource(head, number)

    def _patient(self, head: Head, place: Place, number: int) -> None:
        patient = patient_head(head, place.full_url)
        if not patient.key:
            # Without id or fullUrl nobody can ask for it and nothing can name it.
            text = "a Patient without id; not used"
            where = self._at(place)
            self.messages.append(Message("warning", "required", text, "Patient", place=where))
            return
        self.patients.setdefault(patient.key, []).append(number)
        self._heads.append(patient)

    def _owned_resource(self, head: Head, number: int) -> None:
        self._by_subject.setdefault(_whose(head), array("Q")).append(number)
        refers = tuple(
            reference.reference
            for reference in (head.medication_reference, head.study)
            if reference is not None and reference.reference
        )
        if refers:
            self._refers[number] = refers

    def _lost(self, problem: str, place: str, kind: str | None) -> None:
        """Note that something could not be read: of one type, or of any."""
        if kind == "Patient":
            self.lost_patients = True
        if kind is None or kind in READ_TYPES - {"Patient"}:
            types = None if kind is None else frozenset((kind,))
            self.replies.append(Reply(types=types, problem=problem, place=place))
        else:
            self.messages.append(Message("warning", "incomplete", problem, kind, place=place))

    def _at(self, place: Place) -> str:
        return f"{self._names[place.file]}:{place.line}"

    def finish(self) -> None:
        """Decide whose each resource is, now that all Patients are known."""
        self._bases.update(found.base for found in self._manifests if found.base)
        files: dict[str, dict[str, int]] = {}
        for name, counts in zip(self._names, self._counts, strict=True):
            files[plain_name(PurePosixPath(name).name)] = counts
        self.replies = [*whole(self.replies), *judge(self._manifests, files, self._site)]
        self._name_patients()
        self._link_patients()
        unowned = 0
        for whose, numbers in self._by_subject.items():
            owner = self._owner(whose)
            if owner is not None:
                self._owned.setdefault(owner, []).append(numbers)
                continue
            masked = list(self._unreadable(numbers))
            self._masked.extend(masked)
            unowned += len(numbers) - len(masked)
        self._by_subject.clear()
        if unowned:
            text = f"{unowned} resources name no patient that is known here; not used"
            self.messages.append(Message("warning", "not-found", text))

    def _name_patients(self) -> None:
        for patient in self._heads:
            names = [patient.key, *(f"{base}/{patient.key}" for base in self._bases)]
            if patient.full_url:
                names.append(patient.full_url)
            for name in names:
                self._aliases.setdefault(name, patient.key)
        # An identifier that two Patients bear names nobody.
        bearers: dict[str, str | None] = {}
        for patient in self._heads:
            for name in (_identifier_key(*found) for found in patient.identifiers):
                known = bearers.setdefault(name, patient.key)
                bearers[name] = known if known == patient.key else None
        for name, bearer in bearers.items():
            if bearer is not None:
                self._aliases.setdefault(name, bearer)

    def _link_patients(self) -> None:
        links = (other for patient in self._heads for _, other in patient.links)
        self._linked.update(self._local(subject_key(other)) for other in links)
        for patient in self._heads:
            for kind, other in patient.links:
                key = self.key_of(subject_key(other))
                if kind == "replaced-by":
                    self.merged_away.add(patient.key)
                if kind not in ("replaced-by", "replaces") or key is None:
                    continue
                joined = self._groups.get(patient.key, {patient.key}) | self._groups.get(key, {key})
                for member in joined:
                    self._groups[member] = joined

    def _owner(self, whose: Whose) -> str | None:
        """Find whose a resource is, as the record will: by reference, then by identifiers."""
        named = self.key_of(whose.reference) if whose.reference else None
        if named is not None and named in self.patients:
            return named
        found = self._aliases.get(whose.identifier) or named
        if found is not None:
            return found
        inside = {self._aliases[name] for name in whose.inside if name in self._aliases}
        return inside.pop() if len(inside) == 1 else None

    def key_of(self, name: str) -> str | None:
        """Give the Patient's key that a reference or identifier stands for, or None.

        A Patient that isn't here is known by its id alone: records of one merged away may
        be here without it.
        """
        found = self._aliases.get(name)
        if found is not None:
            return found
        local = self._local(name)
        return local if local in self._linked else None

    def _unreadable(self, numbers: Iterable[int]) -> Iterator[int]:
        listed = list(numbers)
        for number, item in zip(listed, self._read(listed), strict=True):
            try:
                decode(item.raw)
            except Unreadable:
                yield number

    def group(self, key: str) -> set[str]:
        """Give a patient's key and those of all merged with it."""
        return self._groups.get(key, {key})

    def stands_for_itself(self, key: str) -> bool:
        """Tell whether a patient is to be evaluated, not somebody merged with him.

        Where nobody is left whom the merged could live on in, the first of them says so.
        """
        if key not in self.merged_away:
            return True
        here = self.group(key) & self.patients.keys()
        return here <= self.merged_away and key == min(here)

    def items(self, keys: set[str]) -> list[Item]:
        """Read the resources of a patient, and what they refer to."""
        numbers: dict[int, None] = {}
        for key in sorted(keys):
            numbers.update(dict.fromkeys(self.patients.get(key, ())))
            for group in self._owned.get(key, ()):
                numbers.update(dict.fromkeys(group))
        for number in list(numbers):
            for reference in self._refers.get(number, ()):
                numbers.update(dict.fromkeys(self._by_reference.get(self._local(reference), ())))
        numbers.update(dict.fromkeys(self._masked))
        return list(self._read(numbers))

    def _local(self, reference: str) -> str:
        reference = _HISTORY.sub("", reference)
        for base in self._bases:
            if reference.startswith(base + "/") and reference not in self._by_reference:
                return reference.removeprefix(base + "/")
        return reference

    def _read(self, numbers: Iterable[int]) -> Iterator[Item]:
        """Read resources' text, opening each file once."""
        with ExitStack() as stack:
            opened: dict[int, int] = {}
            for place in map(self._places.get, numbers):
                content = self._contents[place.file]
                if place.file not in opened:
                    opened[place.file] = stack.enter_context(content.opened())
                raw = content.read(opened[place.file], place.offset, place.length)
                yield Item(raw, place.full_url, self._at(place))


def subject_key(reference: Reference | None) -> str:
    """Write whom a reference names in one form; empty if it names nobody."""
    if reference is None:
        return ""
    if reference.reference:
        return _HISTORY.sub("", reference.reference)
    found = reference.identifier
    return _identifier_key(found.system, found.value) if found and found.value else ""


def names_of(head: Head) -> tuple[str, ...]:
    """List what names a resource's patient: reference, identifier, those of a contained one."""
    whose = _whose(head)
    return tuple(name for name in (whose.reference, whose.identifier, *whose.inside) if name)


def _whose(head: Head) -> Whose:
    owner = head.owner()
    if owner is None:
        return Whose()
    reference = owner.reference or ""
    identifier = owner.identifier
    inside: tuple[str, ...] = ()
    if reference.startswith("#"):
        inside = tuple(_identifier_key(*found) for found in contained_patient(head, reference[1:]))
    return Whose(
        _HISTORY.sub("", reference),
        _identifier_key(identifier.system, identifier.value)
        if identifier is not None and identifier.value
        else "",
        inside,
    )


def _identifier_key(system: str | None, value: str) -> str:
    return f"identifier|{system or ''}|{value}"


def kind_in(name: str) -> str | None:
    """Give the resource type that a file's name shows, as ``Observation.1.ndjson``."""
    found = (match for match in _TYPE_IN_NAME.findall(PurePosixPath(name).name))
    return next((kind for kind in found if kind in READ_TYPES), None)


def _start(view: mmap.mmap | bytes) -> int:
    return len(_BOM) if view[: len(_BOM)] == _BOM else 0
