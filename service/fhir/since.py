"""What changed at a live server since an instant, as far as it says that it can tell.

Source: FHIR R4 search (`_lastUpdated`, section 3.1.1.4.2) and history (3.1.0.12).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urljoin

import msgspec

from service.errors import EligibilityError
from service.fhir.http import Client, inside
from service.fhir.paging import Asked, said_openly, search, warnings_in
from service.fhir.plan import Capabilities, encode
from service.fhir.source import SiteSearch

__all__ = ["ChangesNotOffered", "ServerChanges", "changed_since", "named_by"]

_PAGES = 10_000
_WRITES = frozenset({"POST", "PUT", "PATCH"})
_BOM = b"\xef\xbb\xbf"


class ChangesNotOffered(EligibilityError):
    """The server can't tell what changed; the text says of which type."""


@dataclass(frozen=True, slots=True)
class ServerChanges:
    """Changed resources, names of deleted ones (``Type/id``), and the types whose deletions
    the server does not tell.
    """

    resources: tuple[bytes, ...]
    deleted: tuple[str, ...]
    unseen: tuple[str, ...]


def changed_since(
    client: Client,
    server: Capabilities,
    site: SiteSearch,
    kinds: Iterable[str],
    since: str,
) -> ServerChanges:
    """Ask a server for all resources of some types that changed since an instant (ISO).

    Types that the server doesn't have are passed over. Raises ChangesNotOffered if a type
    can't be searched by its last change, or the reply isn't whole.
    """
    resources: list[bytes] = []
    deleted: list[str] = []
    unseen: list[str] = []
    for kind in kinds:
        ability = server.of(kind)
        if ability is None or kind in site.not_offered:
            continue
        if not ability.searchable or not ability.declares("_lastUpdated"):
            raise ChangesNotOffered(f"the server does not search {kind} by its last change")
        extra = site.extra_parameters.get(kind, {})
        form = encode((
            *extra.items(), ("_lastUpdated", f"ge{since}"), ("_count", str(site.page_size)),
        ))  # fmt: skip
        resources += _searched(client, site, kind, f"{client.base_url}/{kind}?{form}")
        if ability.history:
            form = encode((("_since", since), ("_count", str(site.page_size))))
            first = f"{client.base_url}/{kind}/_history?{form}"
            deleted += _deleted(client, kind, first, site.harmless_outcomes)
        else:
            unseen.append(kind)
    return ServerChanges(tuple(resources), tuple(dict.fromkeys(deleted)), tuple(unseen))


def _searched(client: Client, site: SiteSearch, kind: str, url: str) -> list[bytes]:
    deadline = time.monotonic() + client.limits.fetch
    asked = Asked(kind, deadline, site.harmless_outcomes)
    found = search(client, lambda: client.get(url, deadline=deadline), asked)
    if not found.complete:
        raise ChangesNotOffered(f"the changes of {kind} could not be read: {found.problem}")
    return [entry.item.raw for entry in found.entries.values()]


class _Link(msgspec.Struct):
    relation: str = ""
    url: str = ""


class _Request(msgspec.Struct):
    method: str = ""
    url: str = ""


class _Entry(msgspec.Struct, rename="camel"):
    request: _Request | None = None
    resource: msgspec.Raw = msgspec.Raw(b"")
    full_url: str = ""

    @property
    def deletes(self) -> bool:
        """Whether it tells of a deletion: some servers only leave the resource out."""
        method = self.request.method if self.request is not None else ""
        return method == "DELETE" or (not self.resource and method not in _WRITES)


class _History(msgspec.Struct, tag_field="resourceType", tag="Bundle"):
    type: str = ""
    link: tuple[_Link, ...] = ()
    entry: tuple[_Entry, ...] = ()


_PAGE = msgspec.json.Decoder(_History)


def named_by(url: str) -> str | None:
    """Give the resource that a deletion names by its address or a version's, as ``Type/id``."""
    steps = url.split("?", maxsplit=1)[0].rstrip("/").split("/")
    if len(steps) >= 2 and steps[-2] == "_history":
        # As HAPI names the version that the deletion made.
        steps = steps[:-2]
    return "/".join(steps[-2:]) if len(steps) >= 2 and all(steps[-2:]) else None


def _deleted(client: Client, kind: str, first: str, harmless: frozenset[str]) -> list[str]:
    """Read which resources of a type were deleted, from its history; all pages or nothing."""
    found: list[str] = []
    url: str | None = first
    seen: set[str] = set()
    while url is not None:
        if url in seen or len(seen) >= _PAGES or not inside(client.base_url, url):
            raise ChangesNotOffered(f"the history of {kind} could not be read to its end")
        seen.add(url)
        reply = client.get(url, deadline=time.monotonic() + client.limits.fetch)
        if reply.status != HTTPStatus.OK:
            words = said_openly(reply, client.hides)
            raise ChangesNotOffered(f"the history of {kind} could not be read ({words})")
        try:
            page = _PAGE.decode(reply.body.removeprefix(_BOM))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ChangesNotOffered(f"the history of {kind} is not a Bundle") from error
        if page.type != "history":
            raise ChangesNotOffered(f"the history of {kind} is another Bundle")
        for entry in page.entry:
            for warning in warnings_in(entry.resource, harmless):
                raise ChangesNotOffered(f"the history of {kind} may not be whole: {warning}")
            if entry.deletes:
                name = named_by(entry.request.url if entry.request else "")
                name = name or named_by(entry.full_url)
                if name is None or not name.startswith(f"{kind}/"):
                    raise ChangesNotOffered(f"the history of {kind} deletes what it does not name")
                found.append(name)
        following = [link.url for link in page.link if link.relation == "next"]
        url = urljoin(reply.url, following[0]) if following else None
    return found
