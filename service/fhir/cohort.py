"""Who is to be searched on a live server: found by code, or named by a Group, List or file.

Nobody is left out silently: whatever can't be asked, read or understood on the way is noted,
as a problem if someone may be missing for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from service.errors import ConfigurationError, SourceError, UsageError
from service.fhir.bundles import Head, contained_patient, head_of
from service.fhir.http import Reply
from service.fhir.index import subject_key
from service.fhir.paging import Entry, Page, said_openly
from service.fhir.plan import code_lists, encode, escape
from service.fhir.resources import Reference
from service.fhir.server import ServerSource
from service.fhir.sweep import Refused, Sweep, first_accepted
from service.fhir.visit import GONE, ID, local_id, read_one
from service.values.dates import When, parse

_HINT = "name the patients with --cohort Group/ID, List/ID or a file, or use --bulk"
_REFERENCE = re.compile(r"(Group|List)/([A-Za-z0-9\-.]{1,64})")
_FORBIDDEN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_BOM = b"\xef\xbb\xbf"
_NO_PATIENTS = frozenset({"Group", "Device", "Location"})
# A first page of so many that are nearly all of another kind shows a condition was ignored.
_ENOUGH = 20
_IGNORED = 0.9
_ROOM = 1_500
_NESTED = 100
_LOOKED_UP = 20


class Member(NamedTuple):
    """A patient to search, and the line of the file that names the patient, if one does."""

    id: str
    line: int | None = None


class Rejected(NamedTuple):
    """A member that can't be used: where it stands (a line, or a Group or List), and why."""

    problem: str
    line: int | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Cohort:
    """The patients to search, each once, in the order of their ids.

    ``problems``: why someone may be missing. ``limits``: what a search by code can't find
    by its nature. ``rejected``: members that name no patient.
    """

    members: tuple[Member, ...]
    problems: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class Sought:
    """What records of a type show that a patient may be in the population.

    ``codes``: (system URI, code). ``masks``: systems of codes that stand for a missing one.
    ``texts``: beginnings of words for the disease. ``bears``: tells by a resource's JSON
    whether it may bear on the diagnosis.
    """

    kind: str
    codes: frozenset[tuple[str, str]]
    masks: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    bears: Callable[[bytes], bool] = field(default=lambda raw: True)


# By code


def everyone(source: ServerSource) -> Cohort:
    """Take all patients of a server; raises SourceError."""
    return _cohort((Member(found) for found in source.patient_ids()), _Notes())


def by_code(source: ServerSource, sought: Sequence[Sought]) -> Cohort:
    """Find the patients by searches over the whole server.

    Raises ConfigurationError if the server does not allow it, SourceError.
    """
    finder = _Finder(source)
    for each in sought:
        finder.find(each)
    return _cohort(map(Member, finder.found()), finder.notes)


@dataclass(slots=True)
class _Notes:
    problems: dict[str, None] = field(default_factory=dict)
    limits: dict[str, None] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def _cohort(members: Iterable[Member], notes: _Notes) -> Cohort:
    unique: dict[str, Member] = {}
    for member in members:
        unique.setdefault(member.id, member)
    return Cohort(
        tuple(unique[key] for key in sorted(unique)),
        tuple(notes.problems),
        tuple(notes.limits),
        tuple(notes.rejected),
    )


class _Finder:
    """Searches by code; collects whom the resources found name."""

    def __init__(self, source: ServerSource) -> None:
        self.notes = _Notes()
        self._source = source
        self._base = source.base_url
        self._ids: set[str] = set()
        self._identifiers: set[tuple[str, str]] = set()
        # By type a code that a search for codes found, to show that lists are read.
        self._witness: dict[str, str] = {}

    def found(self) -> Iterator[str]:
        """Give the ids, after those named by an identifier have been looked up."""
        named = sorted(self._identifiers)
        for (_, _), answer in zip(named, look_up(self._source, named), strict=True):
            if isinstance(answer, str):
                self._ids.add(answer)
            else:
                self.notes.problems[
                    f"a record that bears on the diagnosis names its patient by an "
                    f"identifier that {answer.problem}"
                ] = None
        yield from sorted(self._ids)

    def find(self, sought: Sought) -> None:
        """Search for one type; raises ConfigurationError, SourceError."""
        kind = sought.kind
        ability = self._source.abilities().of(kind)
        if ability is None or not ability.searchable:
            raise ConfigurationError(f"the FHIR server offers no search of {kind}: {_HINT}")
        name = "code"
        if kind == "Observation" and ability.declares("combo-code"):
            name = "combo-code"
        elif ability.parameters is not None and not ability.declares(name):
            raise ConfigurationError(f"the FHIR server can't search {kind} by code: {_HINT}")
        site = self._source.hospital.site
        lists = list(code_lists(sought.codes, site.codes_per_search, _ROOM))
        for listed in lists:
            self._required(sought, (name, listed))
        read = not lists or self._reads(sought, name, max(lists, key=len))
        for value in () if read else _values(sought.codes):
            self._required(sought, (name, value))
        self._aside(sought, lists=read)
        self.notes.limits[
            f"{kind}: found by the codes of the trial's code sets; not by codes in extensions, "
            f"nor by codes that only begin with one of them and have more than one character more"
        ] = None

    def _required(self, sought: Sought, parameter: tuple[str, str]) -> None:
        kind = sought.kind
        take = _Take(self, sought)
        try:
            holes = first_accepted(self._source, _forms(kind, parameter), take)
        except Refused as refused:
            if refused.status in _FORBIDDEN:
                raise ConfigurationError(
                    f"the FHIR server refuses the search for the population ({refused.words}): "
                    f"grant the scope system/{kind}.rs, or {_HINT}"
                ) from refused
            raise ConfigurationError(
                f"the FHIR server does not search {kind} by code without a patient "
                f"({refused.words}): {_HINT}"
            ) from refused
        if take.ignored:
            raise ConfigurationError(f"the FHIR server ignores the code in a search: {_HINT}")
        if take.strayed:
            holes = (*holes, "a later page holds what was not asked for")
        self._noted(kind, "the search for the population", holes)

    def _reads(self, sought: Sought, name: str, listed: str) -> bool:
        """Tell whether the server reads a list of codes to its end, and not only that.

        Known by a code that is found both as the last and as the first of a longer list of
        codes that there are not. Without any found nothing shows it.
        """
        witness = self._witness.get(sought.kind)
        if witness is None:
            return False
        others = [f"{value}-none" for value in listed.split(",")]
        for values in ([*others, witness], [witness, *others]):
            found: list[bool] = []

            def take(page: Page, found: list[bool] = found) -> bool:
                found += [witness in map(escape, _codes_in(each)) for each in page.entries]
                return False

            try:
                first_accepted(self._source, _forms(sought.kind, (name, ",".join(values))), take)
            except Refused:
                return False
            if not any(found):
                return False
        return True

    def _aside(self, sought: Sought, *, lists: bool) -> None:
        """Search for what shows the diagnosis without a code of it; lists only if they are read."""
        kind = sought.kind
        masked = [f"{escape(system)}|" for system in sought.masks]
        asked: list[tuple[str, tuple[str, str]]] = [
            ("whose code is masked", ("code", value))
            for value in ([",".join(masked)] if lists and masked else masked)
        ]
        if masked:
            asked.append(("without a code", ("code:missing", "true")))
        asked += [
            ("that name the disease by text only", ("code:text", ",".join(words)))
            for words in (
                _by_length(sought.texts) if lists else ([escape(text)] for text in sought.texts)
            )
        ]
        refused_: set[str] = set()
        for what, parameter in asked:
            if what in refused_:
                continue
            take = _Take(self, sought)
            try:
                holes = first_accepted(self._source, _forms(kind, parameter), take)
            except Refused as refused:
                refused_.add(what)
                self.notes.problems[
                    f"{kind}: records {what} were not searched for, since the FHIR server "
                    f"refuses it ({refused.words}); to see them too, {_HINT}"
                ] = None
                continue
            if take.ignored:
                refused_.add(what)
                self.notes.problems[
                    f"{kind}: records {what} were not searched for, since the FHIR server "
                    f"ignores the condition; to see them too, {_HINT}"
                ] = None
                continue
            self._noted(kind, f"the search for records {what}", holes)
        if sought.texts:
            self.notes.limits[
                f"{kind}: texts were searched as the FHIR server's :text does it, which may "
                "mean only at their beginning"
            ] = None

    def _noted(self, kind: str, what: str, holes: Iterable[str]) -> None:
        for hole in holes:
            self.notes.problems[f"{kind}: {what} is incomplete: {hole}"] = None

    def take(self, entry: Entry, codes: Set[str] = frozenset()) -> None:
        """Note whom a resource names; ``codes``: those that were asked for."""
        if found_ := sorted(_codes_in(entry) & codes):
            self._witness.setdefault(entry.peek.resource_type, escape(found_[0]))
        head = head_of(entry.item.raw)
        owner = head.owner() if head is not None else None
        if head is None:
            self.notes.problems[
                "a record that may bear on the diagnosis can't be read, so whose it is isn't known"
            ] = None
            return
        who = local_id(self._base, subject_key(owner), "Patient")
        if who is not None:
            self._ids.add(who)
            return
        found = set(_identifiers_of(owner, head))
        self._identifiers |= found
        # What is of a group, a place or a device is nobody's diagnosis.
        if not found and not _is_of_no_patient(owner):
            self.notes.problems[
                "a record that bears on the diagnosis does not name a patient of the FHIR server"
            ] = None


def _identifiers_of(owner: Reference | None, head: Head) -> Iterator[tuple[str, str]]:
    """Go through the identifiers by which a record names its patient, also a contained one."""
    if owner is None:
        return
    if owner.identifier is not None and owner.identifier.value:
        yield owner.identifier.system or "", owner.identifier.value
    if owner.reference and owner.reference.startswith("#"):
        for system, value in contained_patient(head, owner.reference[1:]):
            yield system or "", value


def _is_of_no_patient(owner: Reference | None) -> bool:
    steps = (owner.reference or "").split("/") if owner is not None else []
    return len(steps) > 1 and steps[-2] in _NO_PATIENTS


class _Take:
    """Takes pages of a search, unless they show that the server ignored what was asked."""

    def __init__(self, finder: _Finder, sought: Sought) -> None:
        self._finder = finder
        self._sought = sought
        self._codes = frozenset(code for _, code in sought.codes)
        self._first = True
        self.ignored = False
        # A later page holds what was not asked for: its link has lost the condition.
        self.strayed = False

    def __call__(self, page: Page) -> bool:
        entries = [each for each in page.entries if each.peek.resource_type == self._sought.kind]
        bearing = [each for each in entries if self._sought.bears(each.item.raw)]
        others = len(entries) - len(bearing)
        strange = len(entries) >= _ENOUGH and others >= _IGNORED * len(entries)
        if self._first:
            self._first = False
            self.ignored = strange
        self.strayed |= strange
        if self.ignored:
            return False
        for entry in bearing:
            self._finder.take(entry, self._codes)
        return True


def _forms(kind: str, parameter: tuple[str, str]) -> tuple[Sweep, ...]:
    """Ask for little of each resource where the server can, else for all of it."""
    little = ("_elements", "subject,code,extension,contained")
    return Sweep(kind, (parameter, little)), Sweep(kind, (parameter,))


class _Coding(msgspec.Struct):
    code: str = ""


class _Concept(msgspec.Struct):
    coding: tuple[_Coding, ...] = ()


class _Coded(msgspec.Struct):
    code: _Concept = msgspec.field(default_factory=_Concept)


_CODED = msgspec.json.Decoder(_Coded)


def _codes_in(entry: Entry) -> frozenset[str]:
    """List the codes of what a record is about; none if they can't be read."""
    try:
        found = _CODED.decode(entry.item.raw)
    except _UNREADABLE:
        return frozenset()
    return frozenset(each.code for each in found.code.coding)


def _values(codes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Write codes as single values: each with its system, and bare."""
    found = [f"{escape(system)}|{escape(code)}" for system, code in codes if system]
    yield from sorted({*found, *(escape(code) for _, code in codes)})


def _by_length(texts: Iterable[str]) -> Iterator[list[str]]:
    """Divide texts into lists that fit in a search."""
    batch: list[str] = []
    for text in texts:
        if batch and len(encode((("code:text", ",".join([*batch, text])),))) > _ROOM:
            yield batch
            batch = []
        batch.append(escape(text))
    if batch:
        yield batch


# By identifier


class NotFound(NamedTuple):
    """Why an identifier gives no patient; ``problem`` completes "an identifier that"."""

    problem: str


def look_up(source: ServerSource, identifiers: Sequence[tuple[str, str]]) -> list[str | NotFound]:
    """Find the patients who bear identifiers (system, value); raises SourceError.

    ConfigurationError if the server does not search for them.
    """
    if not identifiers:
        return []
    ability = source.abilities().of("Patient")
    declared = ability is None or ability.parameters is None or ability.declares("identifier")
    if not declared:
        raise ConfigurationError(
            "the FHIR server can't search Patient by identifier: name the patients by id"
        )
    # One by one, since only the answer to one shows whether several patients bear it.
    with ThreadPoolExecutor(source.hospital.client.limits.crowd, "identifiers") as pool:
        return list(pool.map(lambda identifier: _looked_up(source, *identifier), identifiers))


def _looked_up(source: ServerSource, system: str, value: str) -> str | NotFound:
    token = f"{escape(system)}|{escape(value)}" if system else escape(value)
    holes: list[str] = []
    found: dict[str, tuple[str, ...]] = {}

    def take(page: Page) -> bool:
        for entry in page.entries:
            look = entry.peek
            if look.resource_type != "Patient" or not look.id or not ID.fullmatch(look.id):
                continue
            if (system, value) in _identifiers(entry.item.raw, system):
                found[look.id] = _replaced_by(source, entry)
        return len(found) <= _LOOKED_UP

    try:
        holes += Sweep("Patient", (("identifier", token),)).through(source, take)
    except Refused as refused:
        if refused.status in _FORBIDDEN:
            raise ConfigurationError(
                f"the FHIR server refuses to search for patients ({refused.words}): grant the "
                "scope system/Patient.rs"
            ) from refused
        return NotFound(f"the FHIR server does not search for ({refused.words})")
    if holes:
        return NotFound(f"could not be looked up completely: {holes[0]}")
    # Of patients merged with each other the one who is left stands for all.
    left = [each for each, others in found.items() if not set(others) & found.keys()]
    if not left:
        return NotFound("no patient bears")
    if len(left) > 1:
        return NotFound("several patients bear")
    return left[0]


class _Bearer(msgspec.Struct):
    identifier: tuple[dict[str, Any], ...] = ()


_BEARER = msgspec.json.Decoder(_Bearer)


def _identifiers(raw: bytes, system: str) -> set[tuple[str, str]]:
    """List a Patient's identifiers; without a system asked for, whatever theirs is."""
    try:
        found = _BEARER.decode(raw).identifier
    except _UNREADABLE:
        return set()
    return {
        (str(each.get("system") or "") if system else "", str(each.get("value") or ""))
        for each in found
    }


def _replaced_by(source: ServerSource, entry: Entry) -> tuple[str, ...]:
    found: list[str] = []
    for link in entry.peek.link if isinstance(entry.peek.link, list) else ():
        if isinstance(link, dict) and link.get("type") == "replaced-by":
            other = link.get("other")
            reference = other.get("reference") if isinstance(other, dict) else None
            who = local_id(source.base_url, str(reference), "Patient")
            if who is not None:
                found.append(who)
    return tuple(found)


# By a Group or List


def is_reference(cohort: str) -> bool:
    """Tell whether a cohort is a Group or List of the server, not a file."""
    return _REFERENCE.fullmatch(cohort) is not None


class _Reference(msgspec.Struct, rename="camel"):
    reference: str | None = None
    identifier: dict[str, Any] | None = None


class _Period(msgspec.Struct):
    start: str | None = None
    end: str | None = None


class _GroupMember(msgspec.Struct):
    entity: _Reference | None = None
    period: _Period | None = None
    inactive: bool = False


class _ListEntry(msgspec.Struct):
    item: _Reference | None = None
    deleted: bool = False


class _Collection(msgspec.Struct, rename="camel"):
    """A Group or List; of either only what names its members."""

    resource_type: str = ""
    status: str | None = None
    actual: bool | None = None
    quantity: int | None = None
    member: tuple[_GroupMember, ...] = ()
    entry: tuple[_ListEntry, ...] = ()
    empty_reason: dict[str, Any] | None = None
    individual: _Reference | None = None


_COLLECTION = msgspec.json.Decoder(_Collection)


def by_reference(source: ServerSource, cohort: str, as_of: date) -> Cohort:
    """Take the members of ``Group/ID`` or ``List/ID``, also of Groups and Lists in it.

    Members who are inactive, deleted, or whose period does not hold on ``as_of`` are left
    out. Raises ConfigurationError if it can't be used, SourceError.
    """
    collector = _Collector(source, as_of)
    collector.collect(cohort, top=True)
    members = list(collector.members())
    if not members and not collector.notes.rejected and not collector.empty:
        raise ConfigurationError(
            f"the {cohort.partition('/')[0]} names no members; a server may hide them: name "
            "the patients with --cohort and a file"
        )
    return _cohort(members, collector.notes)


class _Collector:
    """Goes through Groups and Lists; collects whom they name."""

    def __init__(self, source: ServerSource, as_of: date) -> None:
        self.notes = _Notes()
        self.empty = False
        self._source = source
        self._zone = source.hospital.zone
        self._day = parse(as_of.isoformat(), self._zone)
        self._seen: set[str] = set()
        self._ids: dict[str, None] = {}
        self._named: dict[tuple[str, str], str] = {}

    def members(self) -> Iterator[Member]:
        """Give the members, after those named by an identifier have been looked up."""
        named = list(self._named)
        for key, answer in zip(named, look_up(self._source, named), strict=True):
            if isinstance(answer, str):
                self._ids[answer] = None
            else:
                self._reject(self._named[key], f"names an identifier that {answer.problem}")
        yield from map(Member, self._ids)

    def collect(self, name: str, *, top: bool = False) -> None:
        """Take one Group or List."""
        if name in self._seen:
            return
        self._seen.add(name)
        if len(self._seen) > _NESTED:
            self.notes.problems["more Groups and Lists in each other than are read"] = None
            return
        found = self._get(name, top=top)
        if found is None:
            return
        if found.resource_type == "List":
            self._list(name, found, top=top)
        else:
            self._group(name, found, top=top)

    def _get(self, name: str, *, top: bool) -> _Collection | None:
        """Read a Group or List; None if it is one within another and can't be read."""
        client = self._source.hospital.client
        kind, _, found = name.partition("/")
        reply = _read(self._source, kind, found)
        if reply.status != HTTPStatus.OK:
            words = said_openly(reply, client.hides)
            if not top:
                self._reject(name, f"could not be read ({words})")
                return None
            if reply.status in GONE:
                raise ConfigurationError(
                    f"the FHIR server has no such {kind}: give another --cohort ({words})"
                )
            if reply.status in _FORBIDDEN:
                raise ConfigurationError(
                    f"the FHIR server refuses to give the {kind} ({words}): grant the scope "
                    f"system/{kind}.rs, or give another --cohort"
                )
            raise SourceError(f"the {kind} of the cohort could not be read ({words})")
        try:
            read = _COLLECTION.decode(reply.body.removeprefix(_BOM))
        except _UNREADABLE as error:
            if top:
                raise ConfigurationError(f"the {kind} of the cohort can't be read") from error
            self._reject(name, "is not readable")
            return None
        if read.resource_type != kind:
            if top:
                raise ConfigurationError(f"the FHIR server's answer is not a {kind}")
            self._reject(name, "is not what it is named as")
            return None
        return read

    def _group(self, name: str, found: _Collection, *, top: bool) -> None:
        if found.actual is False:
            text = "describes patients, but names none"
            if top:
                raise ConfigurationError(f"the Group {text}: give another --cohort")
            self._reject(name, text)
            return
        if found.quantity is not None and found.quantity > len(found.member):
            self.notes.problems["a Group of the cohort names fewer members than it counts"] = None
        self.empty |= found.quantity == 0 or bool(found.member)
        for member in found.member:
            if not member.inactive and self._holds(member.period):
                self._take(name, member.entity)

    def _list(self, name: str, found: _Collection, *, top: bool) -> None:
        if found.status == "entered-in-error":
            if top:
                raise ConfigurationError(
                    "the List of the cohort was entered in error: give another --cohort"
                )
            self._reject(name, "was entered in error")
            return
        self.empty |= found.empty_reason is not None or bool(found.entry)
        deleted = {_key(entry.item) for entry in found.entry if entry.deleted}
        for entry in found.entry:
            if not entry.deleted and _key(entry.item) not in deleted - {""}:
                self._take(name, entry.item)

    def _holds(self, period: _Period | None) -> bool:
        """Tell whether a membership may hold on the day."""
        start = self._when(period.start if period else None)
        end = self._when(period.end if period else None)
        return not (
            (end is not None and end.definitely_before(self._day))
            or (start is not None and self._day.definitely_before(start))
        )

    def _when(self, text: str | None) -> When | None:
        if text is None:
            return None
        try:
            return parse(text, self._zone)
        except ValueError:
            return None

    def _take(self, where: str, named: _Reference | None) -> None:
        """Take a member: a patient, or others who are."""
        reference = named.reference if named else None
        base = self._source.base_url
        if reference:
            who = local_id(base, reference, "Patient")
            if who is not None:
                self._ids[who] = None
                return
            for kind in ("Group", "List"):
                inside = local_id(base, reference, kind)
                if inside is not None:
                    self.collect(f"{kind}/{inside}")
                    return
            subject = local_id(base, reference, "ResearchSubject")
            if subject is not None:
                self._subject(where, subject)
                return
        identifier = (named.identifier if named else None) or {}
        system, value = identifier.get("system"), identifier.get("value")
        if isinstance(value, str) and value:
            self._named[str(system or ""), value] = where
            return
        self._reject(where, "has a member who is no patient of this FHIR server")

    def _subject(self, where: str, found: str) -> None:
        """Take whom a ResearchSubject is about, as in a List of candidates."""
        read = self._get(f"ResearchSubject/{found}", top=False)
        if read is not None:
            self._take(where, read.individual)

    def _reject(self, name: str, problem: str) -> None:
        self.notes.rejected.append(Rejected(f"{name.partition('/')[0]}: {problem}", None, name))


def _key(named: _Reference | None) -> str:
    return (named.reference or "") if named else ""


def _read(source: ServerSource, kind: str, found: str) -> Reply:
    client = source.hospital.client
    return read_one(client, kind, found, time.monotonic() + client.limits.fetch)


# By a file


def by_file(source: ServerSource, path: Path) -> Cohort:
    """Take the patients whom a file names, one a line, by id or by ``system|value``.

    Empty lines and those that begin with # are passed over. Raises UsageError if the file
    can't be read or names nobody, SourceError.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the cohort's file can't be read ({error.strerror})") from error
    notes = _Notes()
    members: list[Member] = []
    identifiers: dict[tuple[str, str], int] = {}
    for number, line in enumerate(raw.removeprefix(_BOM).split(b"\n"), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            notes.rejected.append(Rejected("the line is not UTF-8 text", number))
            continue
        if not text or text.startswith("#"):
            continue
        system, bar, value = text.partition("|")
        plain = text.removeprefix("Patient/")
        if bar and value.strip():
            identifiers.setdefault((system.strip(), value.strip()), number)
        elif not bar and ID.fullmatch(plain):
            members.append(Member(plain, number))
        else:
            notes.rejected.append(Rejected("the line is neither an id nor system|value", number))
    if not (members or identifiers or notes.rejected):
        raise UsageError("the cohort's file names no patient")
    named = list(identifiers.items())
    answers = look_up(source, [key for key, _ in named])
    for (_, number), answer in zip(named, answers, strict=True):
        if isinstance(answer, str):
            members.append(Member(answer, number))
        else:
            problem = f"the line holds an identifier that {answer.problem}"
            notes.rejected.append(Rejected(problem, number))
    members.sort(key=lambda member: member.line or 0)
    return _cohort(members, notes)
