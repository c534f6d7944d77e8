"""Finds the patients who may be in a trial's population, before their records are read.

The population is the patients for whom the trial's diagnosis does not fail with
record-absent (semantics, last paragraph). Whoever has a record that may bear on the
diagnosis may be in it: a code or a keyword of its sets, a masked or unreadable record. Only
who has none can be left out; the criterion itself decides on the others.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple
from zlib import crc32

import msgspec

from service.criteria.model import Result, Verdict, walk
from service.criteria.trial import Criterion, Trial
from service.fhir.bundles import Head, PatientHead, Reply, base_of, patient_head
from service.fhir.index import kind_in, names_of, subject_key
from service.fhir.manifest import Manifest
from service.fhir.resources import (
    READ_TYPES,
    CodeableConcept,
    Coding,
    Extension,
    Identifier,
    Reference,
    Unreadable,
    decode,
)
from service.nightly.directory import Entry, Line, Place, Reader, Run
from service.terms import Terms
from service.values.logic import Outcome, Reason

_CACHE = 50_000
_BUCKETS = 256
_CODES = msgspec.json.Decoder(CodeableConcept)
_EXTENSIONS = msgspec.json.Decoder(tuple[Extension, ...])
_NO_RAW = msgspec.Raw()
_ASIDE = frozenset(("Patient", "Bundle", "OperationOutcome"))


def diagnosis_of(trial: Trial) -> Criterion | None:
    """Find the criterion that tells who is in the population.

    The first inclusion criterion whose rule reads all the trial's index code sets.
    """
    index = set(trial.index)
    for criterion in trial.by_id.values():
        if criterion.kind != "inclusion" or criterion.rule is None:
            continue
        if index <= {name for reads in criterion.rule.reads() for name in reads.sets}:
            return criterion
    return None


def is_member(diagnosis: str, verdict: Verdict) -> bool:
    """Tell by the verdict whether a patient is in the population; ``diagnosis``: its id."""
    return is_in(_result(diagnosis, verdict.criteria))


def is_in(result: Result) -> bool:
    """Tell by the diagnosis's own result, as computed, whether a patient is in the population."""
    outcome, reason = result.computed or (result.outcome, result.reason)
    return (outcome, reason) != (Outcome.FAIL, Reason.RECORD_ABSENT)


def _result(criterion_id: str, results: tuple[Result, ...]) -> Result:
    return next(result for result, _ in walk(results) if result.id == criterion_id)


@dataclass(frozen=True)
class Interest:
    """Which records may bear on a diagnosis: per resource type the code sets.

    Without types, every patient may be in the population.
    """

    sets: Mapping[str, tuple[str, ...]]
    terms: Terms
    _known: dict[bytes, bool] = field(default_factory=dict)

    def named(self, code: msgspec.Raw, extension: msgspec.Raw, kind: str) -> bool:
        """Tell whether a record with this code may bear on it; what is not clear may."""
        if kind != "Condition":
            return True  # Its codes may be anywhere in the resource.
        key = bytes(code) + b"\n" + bytes(extension)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _CACHE:
                self._known.clear()
            known = self._known[key] = self._classify(code, extension, self.sets[kind])
        return known

    def _classify(self, code: msgspec.Raw, extension: msgspec.Raw, sets: tuple[str, ...]) -> bool:
        try:
            concept = _CODES.decode(code) if bytes(code) else None
            extensions = _EXTENSIONS.decode(extension) if bytes(extension) else ()
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return True
        found = self.terms.joined(concept, tuple(_codings(extensions)))
        # The main code may be masked although an extension isn't.
        return found.masked or self.terms.concept(concept).masked or found.concerns(sets)

    def unreadable(self, raw: bytes, kind: str) -> bool:
        """Tell whether a resource can't be used, and so may be one that bears on it."""
        try:
            decode(raw)
        except Unreadable as error:
            if error.code is None:
                return True
            found = self.terms.concept(error.code)
            return found.masked or found.concerns(self.sets[kind])
        return False


def _codings(extensions: Iterable[Extension]) -> Iterator[Coding]:
    for extension in extensions:
        if extension.value_codeable_concept is not None:
            yield from extension.value_codeable_concept.coding
        if extension.value_coding is not None:
            yield extension.value_coding
        yield from _codings(extension.extension)


def interest_of(trials: Sequence[Trial], terms: Terms) -> Interest:
    """Join what bears on the diagnoses of several trials."""
    sets: dict[str, dict[str, None]] = {}
    for trial in trials:
        diagnosis = diagnosis_of(trial)
        if diagnosis is None or diagnosis.rule is None:
            return Interest({}, terms)
        for reads in diagnosis.rule.reads():
            sets.setdefault(reads.type, {}).update(dict.fromkeys(reads.sets))
    return Interest({kind: tuple(names) for kind, names in sets.items()}, terms)


class ScanLine(Line, gc=False, rename="camel"):
    """Of a line what tells whether it bears on a diagnosis, and of a Patient what names it."""

    id: str | None = None
    code: msgspec.Raw = _NO_RAW
    extension: msgspec.Raw = _NO_RAW
    identifier: msgspec.Raw = _NO_RAW
    link: msgspec.Raw = _NO_RAW


class Named(NamedTuple):
    """A Patient as written between the two passes: key, fullUrl, identifiers, links."""

    key: str
    full_url: str | None
    identifiers: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


# Between the names of one patient in one record; no name holds it.
_OR = "\n"


class Scanned(msgspec.Struct):
    """What the first pass found in a unit (kept as its checkpoint).

    ``named``: whom records that may bear on the diagnosis name, by one name or by several
    (joined by ``_OR``); ``doubtful``: whom unreadable ones name that may be nobody's;
    ``everyone``: one of those names nobody, so that it may be anyone's. ``nobodys``: how many
    records that may bear on the diagnosis can be read but name nobody. ``spoken``: patients
    of whom a Bundle of their own claims that such records were read completely;
    ``spoken_of_all``: something claims it of everybody.
    """

    named: list[str] = []
    doubtful: list[str] = []
    everyone: bool = False
    spoken: list[str] = []
    spoken_of_all: bool = False
    bases: list[str] = []
    bytes: int = 0
    nobodys: int = 0


class Scan(Reader[ScanLine | Head]):
    """The first pass: reads Patients and the records that bear on a diagnosis."""

    line_type = ScanLine
    line_types: ClassVar[Mapping[str, type[msgspec.Struct]]] = {"Patient": Head}

    def __init__(
        self, root: Path, entries: Sequence[Entry], harmless: frozenset[str], interest: Interest
    ) -> None:
        super().__init__(root, entries, harmless)
        self.interest = interest
        self._taken = _ASIDE | interest.sets.keys()
        self.named: set[str] = set()
        self.doubtful: set[str] = set()
        self.bases: set[str] = set()
        self.patients: list[Named] = []
        self.spoken: set[str] = set()
        self.spoken_of_all = False
        self.everyone = False
        self.nobodys = 0

    def quick(self, found: Sequence[ScanLine | Head], run: Run) -> None:
        """Take a run of lines."""
        if run.kind is not None and run.kind not in self._taken:
            return
        sets = self.interest.sets
        for index, each in enumerate(found):
            kind = each.resource_type
            if isinstance(each, Head):
                self._patient(each, None)
            elif kind in sets:
                if self.interest.named(each.code, each.extension, kind):
                    self.any_line(run.text(index), run.line + index)
            elif kind in _ASIDE:
                self.any_line(run.text(index), run.line + index)

    def resource(
        self, kind: str, head: Head | None, raw: bytes, place: Place, full_url: str | None
    ) -> None:
        """Take one resource."""
        if kind not in READ_TYPES:
            return
        if head is not None and full_url:
            base = base_of(full_url, f"{kind}/{head.id}")
            if base is not None:
                self.bases.add(base)
        if kind == "Patient":
            self._patient(head, full_url)
        elif kind in self.interest.sets:
            self._record(kind, head, raw)

    def _patient(self, head: Head | None, full_url: str | None) -> None:
        patient = patient_head(head, full_url) if head is not None else None
        if patient is not None and patient.key:
            self.patients.append(_named(patient))

    def _record(self, kind: str, head: Head | None, raw: bytes) -> None:
        if head is None:
            self.everyone |= self.interest.unreadable(raw, kind)
            return
        fields = _FIELDS.decode(raw)
        if not self.interest.named(fields.code, fields.extension, kind):
            return
        names = names_of(head)
        if names:
            self.named.add(_OR.join(names))
        else:
            self.nobodys += 1
        name = subject_key(head.owner())
        if not name.startswith("Patient/") and self.interest.unreadable(raw, kind):
            self.doubtful.add(name)

    def masked(self, raw: bytes, place: Place, full_url: str | None) -> None:
        """Take an entry of a Bundle without a type: it may be anyone's anything."""
        self.everyone = True

    def lost(self, problem: str, place: Place | None, kind: str | None) -> None:
        """What can't be read may be a record of anyone's that bears on the diagnosis."""
        self.everyone |= kind is None or kind in self.interest.sets

    def replied(self, reply: Reply) -> None:
        """Take who is known to have been read completely: absence says nothing of others."""
        sets = self.interest.sets
        if reply.patient is None:
            if reply.problem is None and (reply.types is None or reply.types >= sets.keys()):
                self.spoken_of_all = True
        elif reply.problem is not None or reply.next_url is not None:
            self.named.add(reply.patient)
        elif reply.types is None or reply.types >= sets.keys():
            self.spoken.add(reply.patient)

    def manifest(self, manifest: Manifest) -> None:
        """Take an export's base URL, by which references may name patients."""
        if manifest.base:
            self.bases.add(manifest.base)

    def scanned(self) -> Scanned:
        """Give what was found, in an order of its own."""
        return Scanned(
            sorted(self.named),
            sorted(self.doubtful),
            self.everyone,
            sorted(self.spoken),
            self.spoken_of_all,
            sorted(self.bases),
            self.bytes,
            self.nobodys,
        )


class _Fields(msgspec.Struct, gc=False):
    code: msgspec.Raw = _NO_RAW
    extension: msgspec.Raw = _NO_RAW


_FIELDS = msgspec.json.Decoder(_Fields)


def _named(patient: PatientHead) -> Named:
    identifiers = tuple(
        subject_key(Reference(identifier=Identifier(system, value)))
        for system, value in patient.identifiers
    )
    links = tuple((kind, subject_key(other)) for kind, other in patient.links)
    return Named(patient.key, patient.full_url, identifiers, links)


def wanted_first(entry: Entry, sets: Mapping[str, object]) -> bool:
    """Tell whether the first pass must read a file: not if its name shows another type."""
    kind = kind_in(entry.name)
    return not entry.by_lines or kind is None or kind == "Patient" or kind in sets


@dataclass(frozen=True, slots=True)
class Population:
    """Who may be in it, and by which names their records name them.

    ``owners``: every such name to the number of a key in ``keys``; ``group_of``: per key the
    number of its group (patients merged with each other), ``groups`` the keys of each;
    ``asked``: per group the patients to evaluate, those merged away left out. ``seen``:
    Patients of the source; ``everyone``: nobody could be left out. ``missing``: how many
    records that bear on the diagnosis name of whom the source has no Patient; ``strangers``:
    whom scanned records name who isn't there; ``links``: who says of himself that he was
    merged with whom (key, kind, name of the other), of all Patients of the source;
    ``nobodys``: how many records that bear on the diagnosis name nobody.
    """

    owners: Mapping[str, int]
    keys: tuple[str, ...]
    group_of: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[str, ...], ...]
    bases: tuple[str, ...]
    seen: int
    everyone: bool
    missing: int = 0
    strangers: tuple[str, ...] = ()
    links: tuple[tuple[str, str, str], ...] = ()
    nobodys: int = 0

    def owner(self, name: str) -> int | None:
        """Give the number of the key that a name stands for; None if it is nobody's here."""
        found = self.owners.get(name)
        if found is None and self.bases:
            return self.owners.get(local(name, self.bases))
        return found

    def has_none_of(self, names: Set[str | None]) -> bool:
        """Tell whether none of these references names, or may name, one of the population.

        Only references as ``Patient/id`` are sure to name somebody else.
        """
        if not names.isdisjoint(self.owners):
            return False
        try:
            joined = "\n".join(("", *names))  # type: ignore[arg-type]
        except TypeError:  # One is None.
            return False
        # Each begins so and has no other stroke; none has a line's end, which would mislead.
        count = len(names)
        return (
            joined.count("\nPatient/") == count
            and joined.count("/") == count
            and joined.count("\n") == count
        )

    @property
    def base_url(self) -> str | None:
        """Give the server's base URL, if the files show one."""
        return self.bases[0] if len(self.bases) == 1 else None

    def partition(self, key: int, count: int) -> int:
        """Give the partition of a key's group: the same whoever works on it, and whenever."""
        first = self.groups[self.group_of[key]][0]
        return crc32(self.keys[first].encode()) % count


def names_in(named: str) -> list[str]:
    """Give the names of one patient that a record of ``Scanned.named`` holds."""
    return named.split(_OR)


def is_plain(name: str) -> bool:
    """Tell whether a reference has the form ``Patient/id``."""
    return name[:8] == "Patient/" and "/" not in name[8:]


def local(reference: str, bases: Iterable[str]) -> str:
    """Bring a reference to ``Type/id`` if it is of the files' own server."""
    for base in bases:
        if reference.startswith(base + "/"):
            return reference[len(base) + 1 :]
    return reference


def resolve(
    scans: Sequence[Scanned],
    patients: Callable[[], Iterable[Named]],
    *,
    everyone: bool = False,
    spoken_of_all: bool = False,
) -> Population:
    """Find the patients that the scanned records name, and those merged with them.

    ``patients`` gives the source's Patients in the order of the files, as often as asked.
    ``spoken_of_all``: files that were not scanned claim to be complete for everybody.
    """
    bases = tuple(sorted({base for scan in scans for base in scan.bases}))
    everyone = everyone or any(scan.everyone for scan in scans)
    records = {
        tuple(local(name, bases) for name in names_in(names))
        for scan in scans
        for names in scan.named
    }
    qualified = {name for names in records for name in names}
    doubtful = {local(name, bases) for scan in scans for name in scan.doubtful}
    spoken_of_all = spoken_of_all or any(scan.spoken_of_all for scan in scans)
    spoken = {name for scan in scans for name in scan.spoken}
    links, seen = _survey(patients(), bases)
    linked = {other for _, _, other in links}
    wanted = qualified | linked | {key for key, _, _ in links}
    aliases: dict[str, str] = {}
    present: dict[str, None] = {}
    for patient in patients():
        names = _names(patient, bases)
        unspoken = not spoken_of_all and patient.key not in spoken
        if everyone or unspoken or not wanted.isdisjoint(names):
            present[patient.key] = None
            for name in names:
                aliases.setdefault(name, patient.key)
    # An identifier that two Patients bear names nobody.
    for name in {
        name
        for patient in patients()
        for name in patient.identifiers
        if aliases.get(name, patient.key) != patient.key
    }:
        del aliases[name]

    def key_of(name: str) -> str | None:
        # A Patient that isn't here is known by its id alone: records of one merged away
        # may be here without it.
        return aliases.get(name) or (name if name in linked else None)

    if not everyone and any(key_of(name) is None for name in doubtful):
        return resolve(scans, patients, everyone=True, spoken_of_all=spoken_of_all)
    merged_away = {key for key, kind, _ in links if kind == "replaced-by"}
    joined = _joined(links, key_of)
    named = {key_of(name) for name in qualified}

    def may_be(group: Set[str]) -> bool:
        return everyone or not named.isdisjoint(group) or not (spoken_of_all or spoken & group)

    chosen = {min(group) for key in present if may_be(group := joined.get(key, frozenset((key,))))}
    groups = [sorted(joined.get(first, (first,))) for first in sorted(chosen)]
    keys = tuple(key for group in groups for key in group)
    numbers = {key: number for number, key in enumerate(keys)}
    owners = {name: numbers[key] for name, key in aliases.items() if key in numbers}
    for key, number in numbers.items():
        owners.setdefault(key, number)
    return Population(
        owners=owners,
        keys=keys,
        group_of=tuple(number for number, group in enumerate(groups) for _ in group),
        groups=tuple(tuple(numbers[key] for key in group) for group in groups),
        asked=tuple(_asked(group, present, merged_away) for group in groups),
        bases=bases,
        seen=seen - len(merged_away),
        everyone=everyone,
        missing=sum(
            all(name not in aliases and key_of(name) not in numbers for name in names)
            and any(map(_may_be_patient, names))
            for names in records
        ),
        strangers=tuple(sorted(name for name in qualified if key_of(name) not in numbers)),
        links=tuple(links),
        nobodys=sum(scan.nobodys for scan in scans),
    )


def _may_be_patient(name: str) -> bool:
    """Tell whether a name may be a Patient's: not if it shows another type."""
    kind = name.rpartition("/")[0].rpartition("/")[2]
    return kind == "Patient" or not (kind.isalpha() and kind[0].isupper())


def _asked(
    group: Sequence[str], present: Mapping[str, None], merged_away: Set[str]
) -> tuple[str, ...]:
    """Choose whom of a group to evaluate; if all are merged away, the first says so."""
    here = [key for key in group if key in present]
    return tuple(key for key in here if key not in merged_away) or tuple(here[:1])


def _survey(
    patients: Iterable[Named], bases: Sequence[str]
) -> tuple[list[tuple[str, str, str]], int]:
    """List links between patients (key, kind, other), and count the patients.

    Copies of one count once; only a hash of each key is held, since there may be millions.
    """
    links: list[tuple[str, str, str]] = []
    hashes = [array("q") for _ in range(_BUCKETS)]
    for patient in patients:
        number = hash(patient.key)
        hashes[number % _BUCKETS].append(number)
        for kind, other in patient.links:
            if kind in ("replaced-by", "replaces"):
                links.append((patient.key, kind, local(other, bases)))
    return links, sum(len(set(bucket)) for bucket in hashes)


def _names(patient: Named, bases: Sequence[str]) -> list[str]:
    names = [patient.key, *patient.identifiers]
    if patient.full_url:
        names.append(patient.full_url)
    if bases:
        names.extend(f"{base}/{patient.key}" for base in bases)
    return names


def _joined(
    links: Iterable[tuple[str, str, str]], key_of: Callable[[str], str | None]
) -> dict[str, frozenset[str]]:
    groups: dict[str, frozenset[str]] = {}
    for key, _, named in links:
        other = key_of(named)
        if other is None:
            continue
        together = groups.get(key, frozenset((key,))) | groups.get(other, frozenset((other,)))
        for member in together:
            groups[member] = together
    return groups
