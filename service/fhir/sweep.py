"""A search over all patients of a server, page by page, however many there are.

Unlike a search of one patient's record nothing is held but what the caller keeps of a page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urljoin

from service.errors import SourceError
from service.fhir.crawl import await_server, may_be_ceiling
from service.fhir.http import RETRIED, Client, Outgoing, Reply, inside
from service.fhir.paging import NotAPage, Page, parse_page, said_openly
from service.fhir.plan import URL_LIMIT, encode
from service.fhir.server import ServerSource
from service.fhir.visit import GONE

# An unknown parameter is to be refused, not ignored: the reply would be another's.
_STRICT: Mapping[str, str] = {"Prefer": "handling=strict"}
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Refused(Exception):
    """The server refuses a search; ``words`` say how, ``status`` is the reply's."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


@dataclass(frozen=True, slots=True)
class Sweep:
    """A search of a type over all patients, by parameters."""

    kind: str
    parameters: tuple[tuple[str, str], ...]

    def through(self, source: ServerSource, take: Callable[[Page], bool]) -> tuple[str, ...]:
        """Hand on each page; ends early if ``take`` gives False.

        Gives the reasons why anything may be missing. Raises Refused for the first page,
        SourceError if the server can't be reached.
        """
        return _Walk(source, self, take).run()


class _Walk:
    def __init__(self, source: ServerSource, sweep: Sweep, take: Callable[[Page], bool]) -> None:
        self._source = source
        self._client: Client = source.hospital.client
        self._site = source.hospital.site
        self._sweep = sweep
        self._take = take
        self._holes: dict[str, None] = {}
        self._ids: set[str] = set()
        self._total: int | None = None
        self._ended = False

    def run(self) -> tuple[str, ...]:
        first = self._first()
        reply, restarted, pages = self._sent(first), False, 0
        if reply.status != HTTPStatus.OK:
            words = said_openly(reply, self._client.hides)
            if reply.status in RETRIED:
                raise SourceError(f"the FHIR server could not be searched ({words})")
            raise Refused(reply.status, words)
        seen: set[str] = set()
        while True:
            if pages and reply.status in (*GONE, HTTPStatus.BAD_REQUEST) and not restarted:
                # The cursor has expired: everything once more, which does no harm.
                restarted, reply, seen = True, self._sent(first), set()
            following = self._page(reply)
            pages += 1
            if following is None:
                break
            url = urljoin(reply.url, following)
            if url in seen or not inside(self._client.base_url, url):
                self._holes["the links to the next page lead nowhere"] = None
                break
            if pages >= self._client.limits.population:
                self._holes["the reply has too many pages"] = None
                break
            seen.add(url)
            try:
                reply = self._sent(Outgoing("GET", url))
            except SourceError as error:
                self._holes[f"a later page could not be read: {error}"] = None
                break
        if self._total is None and self._ids and not self._ended and not self._holes:
            self._total = self._counted()
            if self._total is None and may_be_ceiling(len(self._ids)):
                self._holes[f"the server may have stopped at {len(self._ids)} resources"] = None
        if self._total is not None and self._total > len(self._ids) and not self._ended:
            self._holes["the reply holds fewer resources than it announces"] = None
        return tuple(self._holes)

    def _page(self, reply: Reply) -> str | None:
        """Take one page; gives the next one's address."""
        if reply.status != HTTPStatus.OK:
            words = said_openly(reply, self._client.hides)
            self._holes[f"a later page could not be read ({words})"] = None
            return None
        try:
            page = parse_page(reply.body, self._sweep.kind, self._site.harmless_outcomes, ())
        except NotAPage as error:
            self._holes[str(error)] = None
            return None
        self._holes.update(dict.fromkeys(page.holes))
        self._ids.update(look.id for look in page.matches if look.id is not None)
        self._total = self._total if page.total is None else page.total
        if not self._take(page):
            self._ended = True
            return None
        return page.following

    def _counted(self) -> int | None:
        """Have the server count what it gave without saying how much it is; None if it doesn't.

        Some end a reply at a ceiling of their own without a word.
        """
        try:
            reply = self._sent(self._request(("_summary", "count")))
            if reply.status != HTTPStatus.OK:
                return None
            kind, harmless = self._sweep.kind, self._site.harmless_outcomes
            return parse_page(reply.body, kind, harmless, ()).total
        except (SourceError, NotAPage):
            return None

    def _first(self) -> Outgoing:
        return self._request(("_count", str(self._site.page_size)))

    def _request(self, control: tuple[str, str]) -> Outgoing:
        form = encode((*self._sweep.parameters, control))
        address = f"{self._client.base_url}/{self._sweep.kind}"
        url = f"{address}?{form}"
        post = self._site.use_post
        if post or (post is None and len(url) > URL_LIMIT):
            return Outgoing("POST", f"{address}/_search", {**_FORM, **_STRICT}, lambda: form)
        return Outgoing("GET", url, _STRICT)

    def _sent(self, request: Outgoing) -> Reply:
        """Send a request; once more after the server was away. Raises SourceError."""
        try:
            return self._client.send(request, self._deadline())
        except SourceError:
            await_server(self._source)
        return self._client.send(request, self._deadline())

    def _deadline(self) -> float:
        return time.monotonic() + self._client.limits.fetch


def first_accepted(
    source: ServerSource, sweeps: Sequence[Sweep], take: Callable[[Page], bool]
) -> tuple[str, ...]:
    """Do the first of several forms of one search that the server does not refuse.

    Raises Refused for the last, SourceError.
    """
    for sweep in sweeps[:-1]:
        try:
            return sweep.through(source, take)
        except Refused:
            continue
    return sweeps[-1].through(source, take)
