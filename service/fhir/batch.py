"""Several requests to a server in one Bundle (batch), and the answers to each.

Source: https://hl7.org/fhir/R4/http.html#transaction (a batch's response has an entry for
each of its entries, in their order).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec

from service.errors import SourceError
from service.fhir.http import Client, Outgoing, Reply

_STATUS = re.compile(r"\s*(\d{3})\b")
_JSON = {"Content-Type": "application/fhir+json"}
_NO_HEADERS: Mapping[str, str] = {}


class _Response(msgspec.Struct):
    status: str = ""


class _Entry(msgspec.Struct):
    response: _Response | None = None
    resource: msgspec.Raw = msgspec.Raw(b"")


class _Bundle(msgspec.Struct, tag_field="resourceType", tag="Bundle"):
    type: str = ""
    entry: tuple[_Entry, ...] = ()


_BUNDLE = msgspec.json.Decoder(_Bundle)


def get_all(client: Client, requests: Sequence[str], deadline: float) -> list[Reply] | None:
    """GET several things at once; ``requests`` are relative to the base (``Type?...``).

    None if the server does not answer each of them, so that nothing is known of any. Raises
    SourceError.
    """
    entries = [{"request": {"method": "GET", "url": url}} for url in requests]
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": entries}
    body = msgspec.json.encode(bundle).decode()
    reply = client.send(Outgoing("POST", client.base_url, _JSON, lambda: body), deadline)
    if reply.status != HTTPStatus.OK:
        return None
    try:
        found = _BUNDLE.decode(reply.body.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise SourceError("the FHIR server's answer to a batch can't be read") from error
    if found.type != "batch-response" or len(found.entry) != len(requests):
        return None
    return [
        Reply(_status(each), _NO_HEADERS, bytes(each.resource), f"{client.base_url}/{url}")
        for each, url in zip(found.entry, requests, strict=True)
    ]


def _status(entry: _Entry) -> int:
    match = _STATUS.match(entry.response.status) if entry.response else None
    return int(match[1]) if match else 0
