"""Writes single resources to a FHIR server so that nothing of anybody else's is lost.

A create is conditional (If-None-Exist), an update names the version that it replaces
(If-Match). Source: FHIR R4 RESTful API, conditional create (3.1.0.8.1), managing resource
contention (3.1.0.5.2).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin

import msgspec

from service.errors import SourceError
from service.fhir.http import Client, Outgoing, Reply, inside, retry_after
from service.fhir.paging import said

Json = dict[str, Any]

FHIR_JSON = "application/fhir+json"
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_DONE = frozenset({HTTPStatus.OK, HTTPStatus.CREATED})
# Answers by which the server says that it did nothing, and may later.
_LATER = frozenset({429, 502, 503, 504})
_ETAG = re.compile(r'(?:W/)?"(?P<version>[^"]*)"')
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_PAGES = 20
# Decimals keep their digits: what others wrote is given back as they wrote it.
_DECODER = msgspec.json.Decoder(float_hook=Decimal)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


class Stored(NamedTuple):
    """A resource as the server has it; ``version`` None: it names none."""

    id: str
    version: str | None
    resource: Json


class Refused(SourceError):
    """The server refused a request; ``answered`` is its status."""

    def __init__(self, message: str, answered: int) -> None:
        super().__init__(message)
        self.answered = answered


class Unavailable(SourceError):
    """The server can't answer now; ``wait`` seconds are asked for."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


class Writing:
    """Reads and writes of single resources of one server, one after the other."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def target(self) -> str:
        """Give the server's base URL."""
        return self._client.base_url

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def offered(self) -> Mapping[str, frozenset[str] | None]:
        """Give the interactions offered per resource type; None: the server doesn't say.

        Empty if it lists no types. Raises SourceError.
        """
        reply = self._client.get(f"{self.target}/metadata", deadline=self._deadline())
        statement = _resource(reply, "the FHIR server's /metadata can't be read")
        types: dict[str, frozenset[str] | None] = {}
        for rest in _dicts(statement.get("rest")):
            for one in _dicts(rest.get("resource")):
                codes = [each.get("code") for each in _dicts(one.get("interaction"))]
                found = frozenset(code for code in codes if isinstance(code, str))
                types[str(one.get("type"))] = found or None
        return types

    def read(self, kind: str, name: str) -> Stored | None:
        """Read a resource by its id; None if it is not, or no longer, there."""
        reply = self._client.get(f"{self.target}/{kind}/{name}", deadline=self._deadline())
        if reply.status in _GONE:
            return None
        return _stored(reply, _resource(reply, f"the {kind} can't be read"))

    def search(self, kind: str, **parameters: str) -> list[Stored]:
        """Search resources, all pages; raises SourceError also if not all pages came."""
        url = f"{self.target}/{kind}?{urlencode(parameters)}"
        found: list[Stored] = []
        for _ in range(_PAGES):
            reply = self._client.get(url, deadline=self._deadline())
            bundle = _resource(reply, f"the search for {kind} was refused")
            if bundle.get("resourceType") != "Bundle":
                raise SourceError(f"the search for {kind} gave no Bundle")
            for entry in _dicts(bundle.get("entry")):
                resource = entry.get("resource")
                if isinstance(resource, dict) and resource.get("resourceType") == kind:
                    found.append(Stored(_id(resource), _version(resource), resource))
            links = _dicts(bundle.get("link"))
            following = [one.get("url") for one in links if one.get("relation") == "next"]
            if not following:
                return found
            url = urljoin(reply.url, str(following[0]))
            if not inside(self.target, url):
                break
        raise SourceError(f"the search for {kind} could not be read to its end")

    def create(self, resource: Json, unless: str) -> Stored:
        """Create a resource, unless one is found by a query (``identifier=...``).

        Sent once: whether a request that was lost did its work only a search can tell, as
        not every server heeds If-None-Exist. Raises Refused, Unavailable, SourceError.
        """
        kind = resource["resourceType"]
        headers = {"Content-Type": FHIR_JSON, "If-None-Exist": unless}
        url = f"{self.target}/{kind}"
        text = _text(resource)
        reply = self._client.write(
            Outgoing("POST", url, headers, lambda: text, attempts=1), self._deadline()
        )
        return self._written(reply, kind, None)

    def update(self, kind: str, name: str, version: str, resource: Json) -> Stored:
        """Replace one version of a resource; raises Refused (412 if it has another by now).

        May be sent again: done twice, the second finds another version.
        """
        headers = {"Content-Type": FHIR_JSON, "If-Match": f'W/"{version}"'}
        text = _text({**resource, "id": name})
        reply = self._client.write(
            Outgoing("PUT", f"{self.target}/{kind}/{name}", headers, lambda: text),
            self._deadline(),
        )
        return self._written(reply, kind, name)

    def _written(self, reply: Reply, kind: str, name: str | None) -> Stored:
        """Give what the server has now; it is read again where the answer doesn't tell."""
        if reply.status in _LATER:
            asked = retry_after(
                reply.headers.get("Retry-After"),
                datetime.now(UTC),
                self._client.limits.retry_after,
            )
            wait = self._client.limits.backoff if asked is None else asked
            raise Unavailable(f"the FHIR server is busy ({said(reply)})", wait)
        if reply.status not in _DONE:
            raise Refused(said(reply), reply.status)
        try:
            resource = _DECODER.decode(reply.body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            resource = None
        if isinstance(resource, dict) and resource.get("resourceType") == kind:
            return _stored(reply, resource)
        location = reply.headers.get("Location", "").strip().split("/_history/")[0]
        found = name or location.rstrip("/").rpartition("/")[2]
        if not _ID.fullmatch(found):
            raise SourceError(f"the server does not tell the id of the {kind} that it created")
        there = self.read(kind, found)
        if there is None:
            raise SourceError(f"the server does not give back the {kind} that was written")
        return there

    def _deadline(self) -> float:
        return time.monotonic() + self._client.limits.fetch


def encoded(resource: Json) -> bytes:
    """Write a resource as JSON with its decimals as they are."""
    return _ENCODER.encode(resource)


def decoded(body: bytes) -> Json:
    """Read what ``encoded`` wrote."""
    found = _DECODER.decode(body)
    assert isinstance(found, dict)
    return found


def _text(resource: Json) -> str:
    return encoded(resource).decode()


def _resource(reply: Reply, problem: str) -> Json:
    if reply.status != HTTPStatus.OK:
        raise Refused(f"{problem} ({said(reply)})", reply.status)
    try:
        found = _DECODER.decode(reply.body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise SourceError(f"{problem}: the answer is not JSON") from error
    if not isinstance(found, dict):
        raise SourceError(f"{problem}: the answer is no resource")
    return found


def _stored(reply: Reply, resource: Json) -> Stored:
    tag = _ETAG.fullmatch(reply.headers.get("ETag", "").strip())
    return Stored(_id(resource), _version(resource) or (tag["version"] if tag else None), resource)


def _id(resource: Json) -> str:
    name = resource.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise SourceError("the server gave a resource without an id")
    return name


def _version(resource: Json) -> str | None:
    meta = resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    return version if isinstance(version, str) and version else None


def _dicts(value: object) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
