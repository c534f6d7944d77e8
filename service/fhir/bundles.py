"""Bundles: takes them apart, and judges how completely a search reply was read.

Used for files and for the records handed in with a request. Source: FHIR R4 Bundle
(section 2.36) and search (3.1.1); semantics 1.5 on absence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from service.errors import RequestError
from service.fhir.record import CLINICAL_TYPES, Item, Message, Reading
from service.fhir.resources import READ_TYPES, Identifier, PatientLink, Reference

# What a record may hold and what its resources refer to.
RECORD_TYPES: tuple[str, ...] = (*CLINICAL_TYPES, "Medication", "ResearchStudy")
NO_REPLY = "no search reply for this type"
_MAX_NESTING = 8
_NOT_BRACKETS = bytes(value for value in range(256) if chr(value) not in '{}[]"')
_AS_BRACES = bytes.maketrans(b"[]", b"{}")
# Bundles whose entries may say more than which resources they hold.
_ANSWERS = ("searchset", "batch-response", "transaction-response", "history")
_HISTORY = re.compile(r"/_history/[^/]*$")
_TYPE_IN_PATH = re.compile(r"/([A-Z][A-Za-z]{2,63})(?:/_search)?/?$")
_PARAMETER = re.compile(r"[_A-Za-z][A-Za-z-]{0,40}")
_SEVERE = frozenset(("warning", "error", "fatal"))

# Search parameters that leave a reply as whole as it was: they name the patient, shape the
# reply or add to it. Any other parameter may narrow it, known or not, and absence from a
# narrowed reply proves nothing.
_PATIENT = frozenset(("patient", "subject", "individual"))
_NEUTRAL = frozenset((
    "_count", "_sort", "_include", "_revinclude", "_format", "_pretty", "_total", "_score",
    "_bundletype",
))  # fmt: skip
# Servers' own parameters for their pages: HAPI (_getpages), Google (_page_token), Oracle
# Health (-pageContext), Epic (sessionID), Blaze (__page-id, __t), Azure (ct).
_PAGING = re.compile(r"page|cursor|offset|skip|token|session|search-?id|snapshot", re.IGNORECASE)
_PAGING_NAMES = frozenset(("ct", "__t"))
# Parameters of every search. Of an address without a type, which may well be a cursor, only
# these are taken to narrow.
_GENERAL = frozenset((
    "_id", "_lastUpdated", "_since", "_tag", "_security", "_profile", "_source", "_has",
    "_filter", "_text", "_content", "_list", "_elements", "_query", "_typeFilter",
))  # fmt: skip
_EVERYTHING = re.compile(r"(?:/([A-Z][A-Za-z]{2,63})(?:/([A-Za-z0-9\-.]{1,64}))?)?/\$everything/?$")
_COMPARTMENT = re.compile(
    r"/(Patient|Encounter|Practitioner|RelatedPerson|Device)/([A-Za-z0-9\-.]{1,64})/[^/]+"
    r"(?:/_search)?/?$"
)


class _Search(msgspec.Struct, frozen=True):
    mode: str | None = None


class _Response(msgspec.Struct, frozen=True):
    status: str | None = None


class _Entry(msgspec.Struct, frozen=True, rename="camel"):
    full_url: str | None = None
    resource: msgspec.Raw = msgspec.Raw()
    search: _Search | None = None
    response: _Response | None = None


class _Link(msgspec.Struct, frozen=True):
    relation: str | None = None
    url: str | None = None


class _Bundle(msgspec.Struct, frozen=True):
    type: str | None = None
    total: int | None = None
    link: tuple[_Link, ...] = ()
    entry: tuple[_Entry, ...] = ()


class _Issue(msgspec.Struct, frozen=True):
    severity: str | None = None
    code: str | None = None
    details: msgspec.Raw = msgspec.Raw()


class _OperationOutcome(msgspec.Struct, frozen=True):
    issue: tuple[_Issue, ...] = ()


class _Codes(msgspec.Struct, frozen=True):
    code: str | None = None


class _Details(msgspec.Struct, frozen=True):
    coding: tuple[_Codes, ...] = ()


class Head(msgspec.Struct, frozen=True, rename="camel"):
    """What of a resource tells whose it is and what it refers to; the rest is skipped."""

    resource_type: str
    id: str | None = None
    subject: Reference | None = None
    patient: Reference | None = None
    individual: Reference | None = None
    medication_reference: Reference | None = None
    study: Reference | None = None
    contained: msgspec.Raw = msgspec.Raw()
    identifier: msgspec.Raw = msgspec.Raw()
    link: msgspec.Raw = msgspec.Raw()

    def owner(self) -> Reference | None:
        """Give the reference to the patient, whatever its name there."""
        return self.subject or self.patient or self.individual


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    resource_type: str


class PatientHead(NamedTuple):
    """A Patient's key (``Patient/id``, or its fullUrl), and what else names it."""

    key: str
    full_url: str | None
    identifiers: tuple[tuple[str | None, str], ...]
    links: tuple[tuple[str, Reference], ...]


_HEADS = msgspec.json.Decoder(Head)
_KINDS = msgspec.json.Decoder(_Kind)
_BUNDLES = msgspec.json.Decoder(_Bundle)
_OUTCOMES = msgspec.json.Decoder(_OperationOutcome)
_DETAILS = msgspec.json.Decoder(_Details)
_IDENTIFIERS = msgspec.json.Decoder(tuple[Identifier, ...])
_CONTAINED = msgspec.json.Decoder(tuple[msgspec.Raw, ...])
_LINKS = msgspec.json.Decoder(tuple[PatientLink, ...])


class NotABundle(ValueError):
    """A Bundle whose own structure can't be read; the text holds no patient data."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may hold."""

    depth: int = 64
    entries: int = 20_000


class Reply(NamedTuple):
    """What one Bundle or file claims: for which types, of whom, and whether it is whole.

    ``types`` None: all. ``patient`` None: of everybody. ``problem`` says why it is not
    complete; ``narrowed`` what in its self link made the search less than whole, which
    ``whole`` turns into a problem. ``self_url`` and ``next_url`` join the pages of one
    search; ``total`` is what the server says it has, ``matches`` what the page holds.
    ``place``: file and line. ``not_offered``: the server has no such type at all.
    """

    types: frozenset[str] | None = None
    patient: str | None = None
    problem: str | None = None
    self_url: str | None = None
    next_url: str | None = None
    total: int | None = None
    matches: int = 0
    place: str | None = None
    narrowed: str | None = None
    not_offered: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A Bundle taken apart: resources, the Patients among them, and what it claims."""

    items: tuple[Item, ...]
    patients: tuple[PatientHead, ...]
    replies: tuple[Reply, ...]

    def patient_key(self, reference: str) -> str | None:
        """Find the key of the Patient here that a reference names, or None."""
        wanted = _HISTORY.sub("", reference)
        for patient in self.patients:
            if wanted in (patient.key, patient.full_url):
                return patient.key
        for patient in self.patients:
            base = base_of(patient.full_url, patient.key)
            if base is not None and wanted == f"{base}/{patient.key}":
                return patient.key
        return None

    def group(self, key: str) -> set[str]:
        """Give a patient's key and those of all Patients here merged with it."""
        joined = {key}
        pairs = [
            (patient.key, self.patient_key(other.reference or "") or other.reference or "")
            for patient in self.patients
            for kind, other in patient.links
            if kind in ("replaced-by", "replaces")
        ]
        grown = True
        while grown:
            more = {end for pair in pairs if joined & set(pair) for end in pair}
            grown = not more <= joined
            joined |= more
        return joined

    def identified(self, system: str | None, value: str) -> str | None:
        """Find the key of the Patient here that has an identifier, or None.

        One that two Patients bear names nobody, unless they are merged.
        """
        bearers = [
            patient.key for patient in self.patients if (system, value) in patient.identifiers
        ]
        return bearers[0] if bearers and self.group(bearers[0]).issuperset(bearers) else None


def deeper_than(raw: bytes, limit: int) -> bool:
    """Tell whether JSON is nested deeper than ``limit``, without decoding it.

    Brackets within strings don't count. Text that isn't JSON may be said to be deep.
    """
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side always open and close (or close and open) a string without
    # brackets, so taking both away leaves what is inside and what outside as it was.
    marks = raw.translate(None, _NOT_BRACKETS).replace(b'""', b"")
    brackets = b"".join(marks.split(b'"')[::2]).translate(_AS_BRACES)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"{}", b"")
    return bool(brackets)


def kind_of(raw: bytes | msgspec.Raw) -> str | None:
    """Give the resourceType, or None if there is none to be read."""
    try:
        return _KINDS.decode(raw).resource_type
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def head_of(raw: bytes | msgspec.Raw) -> Head | None:
    """Read whose resource it is; None if that can't be read."""
    try:
        return _HEADS.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def contained_patient(head: Head, local_id: str) -> tuple[tuple[str | None, str], ...]:
    """Give the identifiers of a Patient that a resource contains; none if it isn't there."""
    try:
        inside = _CONTAINED.decode(head.contained) if bytes(head.contained) else ()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # The resource itself is refused later, when it is decoded in full.
        return ()
    for raw in inside:
        found = head_of(raw) if kind_of(raw) == "Patient" else None
        if found is not None and (found.id or "").lstrip("#") == local_id:
            return patient_head(found, None).identifiers
    return ()


def patient_head(head: Head, full_url: str | None) -> PatientHead:
    """Read what names a Patient; unreadable identifiers or links count as none."""
    key = f"Patient/{head.id}" if head.id else (full_url or "")
    identifiers: tuple[Identifier, ...] = ()
    links: tuple[PatientLink, ...] = ()
    try:
        if bytes(head.identifier):
            identifiers = _IDENTIFIERS.decode(head.identifier)
        if bytes(head.link):
            links = _LINKS.decode(head.link)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # The Patient itself is refused later, when it is decoded in full.
        pass
    return PatientHead(
        key,
        full_url,
        tuple((found.system, found.value) for found in identifiers if found.value),
        tuple((link.type, link.other) for link in links if link.type and link.other),
    )


def base_of(full_url: str | None, key: str) -> str | None:
    """Give the server's base URL that a fullUrl shows, or None."""
    if full_url is None or not full_url.endswith("/" + key):
        return None
    return full_url.removesuffix("/" + key)


def take_apart(
    raw: bytes,
    *,
    limits: Limits | None = None,
    harmless: frozenset[str] = frozenset(),
) -> Taken:
    """Take a resource or Bundle (nested ones too) apart.

    Raises NotABundle if a Bundle's own structure can't be read, and RequestError (413) if
    it holds more than ``limits`` allow. Single resources that can't be used are kept: the
    record rejects them and knows what that means.
    """
    work = _Work(limits or Limits(), harmless)
    kind = kind_of(raw)
    if kind == "Bundle":
        work.bundle(raw, 1)
    elif kind == "OperationOutcome":
        problem = severe_issue(raw, harmless)
        work.replies.append(Reply(problem=problem))
    else:
        work.piece(raw, None)
        work.replies.append(Reply())
    return Taken(tuple(work.items), tuple(work.patients), tuple(work.replies))


class _Work:
    """What was gathered while a Bundle is taken apart."""

    def __init__(self, limits: Limits, harmless: frozenset[str]) -> None:
        self.limits = limits
        self.harmless = harmless
        self.items: list[Item] = []
        self.patients: list[PatientHead] = []
        self.replies: list[Reply] = []

    def bundle(self, raw: bytes | msgspec.Raw, level: int) -> None:
        if level > _MAX_NESTING:
            raise RequestError("Bundles are nested too deep", status=413, code="too-costly")
        bundle = _read_bundle(raw)
        if len(self.items) + len(bundle.entry) > self.limits.entries:
            raise RequestError(
                f"more than {self.limits.entries} resources", status=413, code="too-costly"
            )
        before = len(self.patients)
        # Most Bundles hold neither: looking once spares a look at each entry. A name
        # written with escapes can't be seen so, therefore any escape counts.
        text = bytes(raw)
        mixed = text.count(b'"Bundle"') > 1 or b'"OperationOutcome"' in text or b"\\u" in text
        if mixed or bundle.type in _ANSWERS:
            problem, matches, nested = self._entries(bundle, level, mixed=mixed)
        else:
            problem, matches, nested = None, self._resources(bundle), 0
        mine = self.patients[before:]
        only = mine[0].key if len(mine) == 1 else None
        if bundle.type == "searchset":
            self.replies.append(_search_reply(bundle, only, problem, matches))
        elif problem is not None or matches > nested or not bundle.entry:
            # One that holds nothing but other Bundles (a batch's response) claims nothing
            # by itself.
            self.replies.append(Reply(patient=only, problem=problem))

    def _resources(self, bundle: _Bundle) -> int:
        """Take a Bundle of nothing but resources apart: the usual case, kept quick."""
        before = len(self.items)
        for entry in bundle.entry:
            raw = bytes(entry.resource)
            if b'"Patient"' in raw:
                self.piece(raw, entry.full_url)
            elif raw:
                self.items.append(Item(raw, entry.full_url))
        return len(self.items) - before

    def _entries(self, bundle: _Bundle, level: int, *, mixed: bool) -> tuple[str | None, int, int]:
        """Take any Bundle apart; gives a problem, and the numbers of matches and of Bundles."""
        problem: str | None = None
        matches = nested = 0
        for entry in bundle.entry:
            if entry.response and (entry.response.status or "").startswith(("4", "5")):
                problem = problem or "a part of the reply was refused or failed"
            raw = bytes(entry.resource)
            if not raw:
                continue
            kind = self._entry(raw, entry.full_url, level, mixed=mixed)
            nested += kind == "Bundle"
            if kind == "OperationOutcome":
                problem = problem or severe_issue(raw, self.harmless)
            elif entry.search is None or entry.search.mode in (None, "match"):
                matches += 1
        return problem, matches, nested

    def _entry(self, raw: bytes, full_url: str | None, level: int, *, mixed: bool) -> str:
        if mixed:
            kind = kind_of(raw) or ""
            if kind == "Bundle":
                self.bundle(raw, level + 1)
                return kind
            if kind == "OperationOutcome":
                return kind
        return self.piece(raw, full_url)

    def piece(self, raw: bytes, full_url: str | None) -> str:
        kind = ""
        if (b'"Patient"' in raw or b"\\u" in raw) and (kind := kind_of(raw) or "") == "Patient":
            full_url = self._patient(raw, full_url)
        self.items.append(Item(raw, full_url))
        return kind

    def _patient(self, raw: bytes, full_url: str | None) -> str | None:
        head = head_of(raw)
        if head is None:
            return full_url
        if not head.id and not full_url:
            # Without a name of its own nothing could ask for it.
            full_url = f"urn:patient:{len(self.patients) + 1}"
        patient = patient_head(head, full_url)
        if all(patient.key != other.key for other in self.patients):
            self.patients.append(patient)
        return full_url


def _read_bundle(raw: bytes | msgspec.Raw) -> _Bundle:
    try:
        return _BUNDLES.decode(raw)
    except msgspec.ValidationError as error:
        found = re.search(r" - at `([^`]*)`", str(error))
        raise NotABundle(f"not a valid Bundle at {found[1] if found else '$'}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise NotABundle("not JSON") from error


def severe_issue(raw: bytes | msgspec.Raw, harmless: frozenset[str]) -> str | None:
    """Tell why a reply with this OperationOutcome is incomplete; None if it is not.

    Issues all of whose codes the site has accepted as harmless don't count
    (semantics 1.5).
    """
    try:
        outcome = _OUTCOMES.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "the reply carries an OperationOutcome that can't be read"
    for issue in outcome.issue:
        if issue.severity in ("information", "success"):
            continue
        codes = _issue_codes(issue)
        if codes and codes <= harmless:
            continue
        severity = issue.severity if issue.severity in _SEVERE else "unstated"
        return f"the reply carries an OperationOutcome of severity {severity}"
    return None


def _issue_codes(issue: _Issue) -> set[str]:
    """Give an issue's own codes (details); failing those, its general one."""
    if bytes(issue.details):
        try:
            details = _DETAILS.decode(issue.details)
        except (msgspec.DecodeError, RecursionError):
            return set()
        codes = {coding.code for coding in details.coding if coding.code}
        if codes:
            return codes
    return {issue.code} if issue.code else set()


def narrows(name: str, value: str) -> bool:
    """Tell whether a search parameter may leave out or trim the patient's resources.

    Parameters that name the patient don't count; any that is not known to be harmless does.
    """
    plain = name.split(":", 1)[0]
    if plain == "_summary":
        return value not in ("false", "")
    if plain == "_count" and value == "0":
        return True
    return not (
        plain in _NEUTRAL
        or plain.split(".", 1)[0] in _PATIENT
        or plain in _PAGING_NAMES
        or _PAGING.search(plain)
    )


def _search_reply(bundle: _Bundle, only: str | None, problem: str | None, matches: int) -> Reply:
    urls = {link.relation: link.url for link in bundle.link if link.url}
    self_url = urls.get("self")
    searched = _searched(self_url) if self_url else _Searched()
    return Reply(
        types=searched.types,
        patient=searched.patient or only,
        problem=problem,
        narrowed=searched.narrowed,
        self_url=self_url,
        next_url=urls.get("next"),
        total=bundle.total,
        matches=matches,
    )


class _Searched(NamedTuple):
    """Which types were searched for (None: all), of whom, and what narrowed the search."""

    types: frozenset[str] | None = None
    patient: str | None = None
    narrowed: str | None = None


def _searched(url: str) -> _Searched:
    """Read from a self link what was asked for."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return _Searched()
    path = unquote(parts.path)
    everything = _EVERYTHING.search(path)
    if everything is not None:
        return _everything(everything[1], everything[2], query)
    found = _TYPE_IN_PATH.search(path)
    if found is not None and found[1] in READ_TYPES:
        return _of_type(found[1], path, query)
    named = _types_named(query)
    if named is not None:
        return _Searched(named, _patient_named(query), _narrowed(query, {"_type"}))
    if found is not None and any(name in ("patient", "subject") for name, _ in query):
        # Of another type (Encounter) it speaks for none that is read.
        return _Searched(frozenset())
    general = [(name, value) for name, value in query if name.split(":", 1)[0] in _GENERAL]
    return _Searched(narrowed=_narrowed(general))


_Query = list[tuple[str, str]]


def _everything(kind: str | None, whose: str | None, query: _Query) -> _Searched:
    """Judge the operation that gives a patient's whole record, or a part of it."""
    if kind not in (None, "Patient"):
        return _Searched(frozenset())
    patient = f"Patient/{whose}" if whose else None
    return _Searched(_types_named(query), patient, _narrowed(query, {"_type"}))


def _of_type(kind: str, path: str, query: _Query) -> _Searched:
    types = {kind}
    patient = _patient_named(query)
    # Which Patient is searched for says nothing against the records included with it.
    narrowed = _narrowed(query, {"_id"} if kind == "Patient" else ())
    for name, value in query:
        # Only what refers to the patient as its own is all the patient's of that type.
        if name.split(":", 1)[0] == "_revinclude":
            included, _, by = value.partition(":")
            if by.split(":", 1)[0] in _PATIENT:
                types.add(included)
        elif name == "_id" and kind == "Patient" and value and "," not in value:
            patient = f"Patient/{value}"
    compartment = _COMPARTMENT.search(path)
    if compartment is not None and compartment[1] == "Patient":
        patient = f"Patient/{compartment[2]}"
    elif compartment is not None:
        narrowed = narrowed or f"the search was narrowed to one {compartment[1]}"
    return _Searched(frozenset(types), patient, narrowed)


def _types_named(query: _Query) -> frozenset[str] | None:
    """Give the types that ``_type`` names, or None without it."""
    listed = [value for name, value in query if name == "_type"]
    if not any(listed):
        return None
    return frozenset(kind.strip() for value in listed for kind in value.split(","))


def _patient_named(query: _Query) -> str | None:
    patient = None
    for name, value in query:
        if name.split(":", 1)[0].split(".", 1)[0] in _PATIENT and value and "," not in value:
            patient = f"Patient/{value.rstrip('/').rsplit('/', 1)[-1]}"
    return patient


def _narrowed(query: _Query, harmless: Iterable[str] = ()) -> str | None:
    """Say what narrowed a search, or None; only FHIR-like names of parameters are shown."""
    for name, value in query:
        if name not in harmless and narrows(name, value):
            plain = name.split(":", 1)[0].split(".", 1)[0]
            shown = plain if _PARAMETER.fullmatch(plain) else "a parameter"
            return f"the search was narrowed by {shown}"
    return None


def whole(replies: Iterable[Reply]) -> list[Reply]:
    """Join the pages of searches: gives one reply per search, with its problem if cut short."""
    listed = list(replies)
    by_self = {reply.self_url: reply for reply in listed if reply.self_url}
    followed = {
        reply.next_url
        for reply in listed
        if reply.next_url in by_self and reply.next_url != reply.self_url
    }
    starts = [reply for reply in listed if reply.self_url is None or reply.self_url not in followed]
    joined = [_chain(start, by_self) for start in starts]
    if len(joined) < len(listed) and not joined:
        return [listed[0]._replace(problem="the reply's pages lead round in a circle")]
    return joined


def _chain(start: Reply, by_self: Mapping[str, Reply]) -> Reply:
    matches, total = start.matches, start.total
    problem = start.problem or start.narrowed
    seen = {start.self_url}
    current = start
    while current.next_url is not None:
        following = by_self.get(current.next_url)
        if following is None or following.self_url in seen:
            problem = problem or "the reply lacks its next page"
            break
        seen.add(following.self_url)
        current = following
        matches += current.matches
        problem = problem or current.problem
        if start.self_url is None:
            # Else the first page says what was asked for: a later one's parameters are the
            # server's own, whatever their names.
            problem = problem or current.narrowed
        total = total if current.total is None else max(total or 0, current.total)
    if total is not None and total > matches:
        problem = problem or "the reply holds fewer matches than its total"
    return start._replace(problem=problem, matches=matches, total=total)


def problems_of(replies: Iterable[Reply], patients: Set[str]) -> list[Message]:
    """Report each problem that left one patient's records incomplete, once."""
    found: dict[Message, None] = {}
    for reply in replies:
        if reply.problem and (reply.patient is None or reply.patient in patients):
            kind = next(iter(reply.types)) if reply.types and len(reply.types) == 1 else None
            code = "not-supported" if reply.not_offered else "incomplete"
            found[Message("warning", code, reply.problem, kind, place=reply.place)] = None
    return list(found)


def readings_of(replies: Iterable[Reply], patients: Set[str]) -> dict[str, Reading]:
    """Judge per type how completely one patient's records were read.

    ``replies``: as ``whole`` gives them; ``patients``: the patient's keys. A type for
    which nothing speaks was not read; files and Bundles handed in speak for all types (an
    assumption).
    """
    concerned = [reply for reply in replies if reply.patient is None or reply.patient in patients]
    readings = {}
    for kind in RECORD_TYPES:
        speaking = [reply for reply in concerned if reply.types is None or kind in reply.types]
        failed = next((reply for reply in speaking if reply.problem), None)
        if failed is not None:
            where = f" ({failed.place})" if failed.place else ""
            problem = f"{failed.problem}{where}"
            readings[kind] = Reading(False, problem, not_offered=failed.not_offered)
        elif not speaking:
            readings[kind] = Reading(complete=False, problem=NO_REPLY)
        elif any(reply.not_offered for reply in speaking):
            readings[kind] = Reading(not_offered=True)
        else:
            readings[kind] = Reading(assumed=True)
    return readings
