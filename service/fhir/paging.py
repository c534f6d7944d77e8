"""One search at a server, page by page, with a judgement on whether it is complete.

A search reply is complete only if every page came, each a searchset Bundle, without a
warning from the server and with as many matches as it announced (semantics 1.5). What was
found before something went wrong is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urljoin

import msgspec

from service.errors import SourceError
from service.fhir.http import RETRIED, Client, Reply, TooLarge, inside
from service.fhir.record import Item
from service.values.dates import When, parse

_BOM = b"\xef\xbb\xbf"
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_HARMLESS_SEVERITIES = frozenset({"information", "success"})
# A cursor that has expired: HAPI answers 410, others 404, Epic 400.
_EXPIRED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,23}")
_SHOWN_CODES = 4


Key = tuple[str, str | None, bytes]


class Peek(msgspec.Struct, frozen=True, rename="camel"):
    """The few fields that reading a record depends on, loosely typed."""

    resource_type: Any = ""
    id: Any = None
    link: Any = None
    medication_reference: Any = None
    study: Any = None
    has_member: Any = None
    result: Any = None
    effective_date_time: Any = None
    effective_instant: Any = None
    effective_period: Any = None
    effective_timing: Any = None


class Entry(NamedTuple):
    """A resource as it came, and a first look at it."""

    item: Item
    peek: Peek

    @property
    def key(self) -> Key:
        """Tell apart all but literal copies."""
        return self.peek.resource_type, self.peek.id, self.item.raw


class _Coding(msgspec.Struct):
    code: Any = None


class _Details(msgspec.Struct):
    coding: tuple[_Coding, ...] = ()
    text: Any = None


class _Issue(msgspec.Struct):
    severity: Any = None
    code: Any = None
    details: _Details | None = None
    diagnostics: Any = None


class _Outcome(msgspec.Struct, tag_field="resourceType", tag="OperationOutcome"):
    issue: tuple[_Issue, ...] = ()


class _Link(msgspec.Struct):
    relation: Any = None
    url: Any = None


class _EntrySearch(msgspec.Struct):
    mode: Any = None


class _BundleEntry(msgspec.Struct, rename="camel"):
    resource: msgspec.Raw = msgspec.Raw(b"")
    full_url: str | None = None
    search: _EntrySearch | None = None


class _Bundle(msgspec.Struct, tag_field="resourceType", tag="Bundle"):
    type: Any = None
    total: Any = None
    link: tuple[_Link, ...] = ()
    entry: tuple[_BundleEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a reply; ``holes`` say what may be missing although the page came whole."""

    entries: tuple[Entry, ...] = ()
    matches: tuple[Peek, ...] = ()
    following: str | None = None
    total: int | None = None
    holes: tuple[str, ...] = ()


@dataclass(slots=True)
class Found:
    """What one search found.

    ``holes``: reasons why anything may be missing. ``cut``: why the reply ends too early,
    with all before it in hand. ``refused``: the status with which the first page was
    refused. ``reached``: see Reading. ``passing``: what went wrong may be over when it is
    tried again (the network, an overloaded server). ``total``: what was announced.
    """

    entries: dict[Key, Entry] = field(default_factory=dict)
    holes: list[str] = field(default_factory=list)
    cut: str | None = None
    refused: int | None = None
    expired: bool = False
    reached: int | None = None
    passing: bool = False
    total: int | None = None

    @property
    def problem(self) -> str | None:
        """Say why the search is incomplete; None if it is complete."""
        reasons = dict.fromkeys([*([self.cut] if self.cut else []), *self.holes])
        return "; ".join(list(reasons)[:3]) or None

    @property
    def complete(self) -> bool:
        """Whether everything was read."""
        return self.cut is None and not self.holes


class NotAPage(Exception):
    """A reply is no page of a search; the text holds nothing of the reply's own."""


def peek(raw: bytes | msgspec.Raw) -> Peek | None:
    """Take a first look at a resource; None if it is no JSON object with a resourceType."""
    try:
        look = _PEEK.decode(raw)
    except _UNREADABLE:
        return None
    if not isinstance(look.resource_type, str) or not look.resource_type:
        return None
    if look.id is not None and not isinstance(look.id, str):
        return msgspec.structs.replace(look, id=None)
    return look


def parse_page(body: bytes, kind: str, harmless: frozenset[str], hidden: Iterable[str]) -> Page:
    """Read a page of a search for a type; raises NotAPage."""
    body = body.removeprefix(_BOM)
    try:
        bundle = _BUNDLE.decode(body)
    except _UNREADABLE as error:
        return _instead_of_a_page(body, harmless, hidden, error)
    if bundle.type != "searchset":
        raise NotAPage("the reply is not a searchset Bundle")
    entries: list[Entry] = []
    matches: list[Peek] = []
    holes: list[str] = []
    for found in bundle.entry:
        look = peek(found.resource) if found.resource else None
        if look is None:
            holes.append("the reply holds an entry without a readable resource")
            continue
        mode = found.search.mode if found.search else None
        # Some servers leave search.mode out: the resource's type tells as well.
        if mode == "outcome" or look.resource_type == "OperationOutcome":
            holes.extend(_warnings(found.resource, harmless, hidden))
            continue
        entries.append(Entry(Item(bytes(found.resource), found.full_url), look))
        if look.resource_type == kind and mode != "include":
            matches.append(look)
    following = _next(bundle.link)
    if following == "":
        holes.append("the reply's link to the next page is empty")
    total = bundle.total if type(bundle.total) is int else None
    return Page(tuple(entries), tuple(matches), following or None, total, tuple(holes))


def _next(links: tuple[_Link, ...]) -> str | None:
    """Give the address of the next page: None if there is none, empty if it is unusable."""
    for link in links:
        if link.relation == "next":
            return link.url.strip() if isinstance(link.url, str) else ""
    return None


def _instead_of_a_page(
    body: bytes, harmless: frozenset[str], hidden: Iterable[str], error: Exception
) -> Page:
    # Epic may answer an empty search with an OperationOutcome alone.
    found = outcome(body)
    if found is None:
        text = "the reply is not JSON" if not _is_json(body) else "the reply is not a Bundle"
        raise NotAPage(text) from error
    if found.issue and all(_is_harmless(issue, harmless) for issue in found.issue):
        return Page()
    raise NotAPage(f"the reply is an OperationOutcome{_in_brackets(_codes(found, hidden))}")


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except _UNREADABLE:
        return False
    return True


def outcome(body: bytes | msgspec.Raw) -> _Outcome | None:
    """Read an OperationOutcome; None if it is none."""
    try:
        return _OUTCOME.decode(body)
    except _UNREADABLE:
        return None


def _warnings(raw: msgspec.Raw, harmless: frozenset[str], hidden: Iterable[str]) -> Iterable[str]:
    found = outcome(raw)
    if found is None or not found.issue:
        yield "the reply carries an unreadable OperationOutcome"
        return
    for issue in found.issue:
        severity = issue.severity.lower() if isinstance(issue.severity, str) else None
        if severity in _HARMLESS_SEVERITIES or _is_harmless(issue, harmless):
            continue
        shown = severity if severity in ("warning", "error", "fatal") else "message"
        codes = _codes(_Outcome((issue,)), hidden)
        yield f"the reply carries a {shown}{_in_brackets(codes)}"


def warnings_in(raw: msgspec.Raw, harmless: frozenset[str]) -> Iterable[str]:
    """Go through the warnings of a Bundle's entry, if it is an OperationOutcome."""
    look = peek(raw) if raw else None
    if look is not None and look.resource_type == "OperationOutcome":
        yield from _warnings(raw, harmless, ())


def _details(issue: _Issue) -> list[object]:
    return [coding.code for coding in issue.details.coding] if issue.details else []


def _is_harmless(issue: _Issue, harmless: frozenset[str]) -> bool:
    details = _details(issue)
    if details and all(isinstance(code, str) and code in harmless for code in details):
        return True
    return isinstance(issue.code, str) and issue.code in harmless


def _codes(found: _Outcome, hidden: Iterable[str]) -> list[str]:
    """List an outcome's codes; texts may name the patient, so they are left out."""
    hidden = [text for text in hidden if text]
    codes: dict[str, None] = {}
    for issue in found.issue:
        for code in (issue.code, *_details(issue)):
            if not isinstance(code, str) or not _CODE.fullmatch(code):
                continue
            if not any(text in code for text in hidden):
                codes[code] = None
    return list(codes)[:_SHOWN_CODES]


def _in_brackets(codes: list[str]) -> str:
    return f" ({', '.join(codes)})" if codes else ""


def said(reply: Reply, hidden: Iterable[str] = ()) -> str:
    """Say how a server refused, by status and OperationOutcome codes: nothing of a patient."""
    found = outcome(reply.body.removeprefix(_BOM))
    codes = _codes(found, hidden) if found else []
    return ", ".join([reply.phrase, *codes])


def said_openly(reply: Reply, hides: Callable[[str], bool]) -> str:
    """Say how a server refused a request that concerns no patient, with its own words.

    ``hides`` tells that a text holds a secret.
    """
    text = said(reply)
    found = outcome(reply.body.removeprefix(_BOM))
    for issue in found.issue if found else ():
        words = issue.details.text if issue.details and issue.details.text else issue.diagnostics
        if isinstance(words, str) and words.isprintable() and not hides(words):
            return f"{text}: {words[:200]}"
    return text


@dataclass(frozen=True, slots=True)
class Asked:
    """What is searched for, and how the reply is judged.

    ``harmless``: OperationOutcome codes that the site accepts. ``hidden``: texts that no
    message may repeat. ``newest_first``: the reply is asked for in this order. ``zone``:
    of times without offset. ``deadline``: when to stop (monotonic clock).
    """

    kind: str
    deadline: float
    harmless: frozenset[str] = frozenset()
    hidden: tuple[str, ...] = ()
    newest_first: bool = False
    zone: tzinfo = UTC


def search(client: Client, first: Callable[[], Reply], asked: Asked) -> Found:
    """Read all pages of a search; never raises for what the server does.

    ``first`` sends the search itself. A cursor that expires restarts the search once.
    """
    found = _through(client, first, asked)
    if not found.expired:
        return found
    again = _through(client, first, asked)
    again.entries = {**found.entries, **again.entries}
    return again


def _through(client: Client, first: Callable[[], Reply], asked: Asked) -> Found:
    found = Found()
    progress = _Progress(_Order(asked.zone) if asked.newest_first else None)
    send = first
    while True:
        try:
            reply = send()
            if reply.status != HTTPStatus.OK:
                _refusal(found, reply, progress.pages, asked.hidden)
                break
            page = parse_page(reply.body, asked.kind, asked.harmless, asked.hidden)
        except (SourceError, NotAPage) as error:
            found.cut = str(error)
            found.passing = isinstance(error, SourceError) and not isinstance(error, TooLarge)
            break
        found.entries.update((entry.key, entry) for entry in page.entries)
        found.holes.extend(page.holes)
        found.total = found.total if page.total is None else page.total
        progress.note(reply, page)
        if page.following is None:
            # Counted by id: a page that repeats an entry may have lost another.
            if page.total is not None and page.total > len(progress.ids):
                found.holes.append("the reply holds fewer resources than it announces")
            break
        following = urljoin(reply.url, page.following)
        found.cut = _stop(client, following, progress, len(found.entries))
        if found.cut is not None:
            break
        progress.seen.add(following)
        send = _follow(client, following, asked.deadline)
    # A hole may be anywhere; only a reply that merely ends too early is known so far back.
    if found.cut is not None and not found.holes and progress.order is not None:
        found.reached = progress.order.reached()
    return found


@dataclass(slots=True)
class _Progress:
    """How far a search has come."""

    order: _Order | None
    pages: int = 0
    size: int = 0
    ids: set[str | None] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)

    def note(self, reply: Reply, page: Page) -> None:
        """Take note of a page."""
        self.pages += 1
        self.size += len(reply.body)
        self.ids.update(match.id for match in page.matches)
        self.seen.add(reply.url)
        if self.order is not None:
            self.order.note(page.matches)


def _follow(client: Client, url: str, deadline: float) -> Callable[[], Reply]:
    return lambda: client.get(url, deadline=deadline)


def _refusal(found: Found, reply: Reply, pages: int, hidden: tuple[str, ...]) -> None:
    found.passing = reply.status in RETRIED
    if pages == 0:
        found.refused = reply.status
        found.cut = f"the search was refused ({said(reply, hidden)})"
    else:
        found.expired = reply.status in _EXPIRED
        found.cut = f"a later page of the reply could not be read ({said(reply, hidden)})"


def _stop(client: Client, following: str, progress: _Progress, entries: int) -> str | None:
    """Say why the next page is not asked for, if so."""
    limits = client.limits
    if not inside(client.base_url, following):
        return "the link to the next page leads to another address, which is not asked"
    if following in progress.seen:
        return "the links to the next page go round in a loop"
    if progress.pages >= limits.pages:
        return f"the reply has more than {limits.pages} pages"
    if entries >= limits.entries:
        return f"the reply has more than {limits.entries} entries"
    if progress.size >= limits.search:
        return f"the reply is larger than {limits.search} bytes"
    return None


class _Order:
    """Watches whether Observations arrive newest first, and how far back they reach."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._last: When | None = None
        self._oldest: int | None = None
        self._sorted = True

    def note(self, matches: Iterable[Peek]) -> None:
        """Take note of a page's matches in their order."""
        for match in matches:
            when = observed(match, self._zone)
            if when is None:
                continue
            if self._last is not None and self._last.definitely_before(when):
                self._sorted = False
            self._last = when
            if self._oldest is None or when.start < self._oldest:
                self._oldest = when.start

    def reached(self) -> int | None:
        """Give the instant back to which the reply is complete, if it was sorted."""
        return self._oldest if self._sorted else None


def observed(look: Peek, zone: tzinfo) -> When | None:
    """Give the time that `date` sorts an Observation by; None if there is none to read."""
    period = look.effective_period if isinstance(look.effective_period, dict) else {}
    timing = look.effective_timing if isinstance(look.effective_timing, dict) else {}
    events = timing.get("event")
    for text in (
        look.effective_date_time,
        look.effective_instant,
        period.get("end") or period.get("start"),
        events[-1] if isinstance(events, list) and events else None,
    ):
        if isinstance(text, str):
            try:
                return parse(text, zone)
            except ValueError:
                return None
    return None


_PEEK: msgspec.json.Decoder[Peek] = msgspec.json.Decoder(Peek)
_BUNDLE: msgspec.json.Decoder[_Bundle] = msgspec.json.Decoder(_Bundle)
_OUTCOME: msgspec.json.Decoder[_Outcome] = msgspec.json.Decoder(_Outcome)
