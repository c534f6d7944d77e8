"""Turns a patient's record into one transaction that a FHIR server can take repeatedly.

Source: FHIR R4, http.html#transaction (entries with PUT create or replace a resource).
Values are passed on as they are written: decimals keep their digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

import msgspec

from service.fhir.record import CLINICAL_TYPES, Item
from service.fhir.resources import Other, Unreadable, decode

# What a record consists of and what it refers to; a server has no use for the rest.
_LOADED = frozenset({*CLINICAL_TYPES, "Patient", "Medication", "ResearchStudy"})


class _Entry(msgspec.Struct, rename="camel", omit_defaults=True):
    resource: msgspec.Raw
    request: dict[str, str]
    full_url: str | None = None


class _Transaction(msgspec.Struct, rename="camel"):
    entry: list[_Entry]
    resource_type: str = "Bundle"
    type: str = "transaction"


class _Meta(msgspec.Struct, rename="camel"):
    last_updated: str = ""
    version_id: str = ""


class _Head(msgspec.Struct, rename="camel"):
    resource_type: str
    id: str | None = None
    meta: _Meta = msgspec.field(default_factory=_Meta)


class Transaction(NamedTuple):
    """A transaction Bundle as JSON, the number of resources in it, and of those left out.

    ``reasons`` says of each left out which it is (reference or place) and why.
    """

    body: bytes
    loaded: int
    left_out: int
    reasons: tuple[str, ...] = ()


def transaction(items: Iterable[Item]) -> Transaction:
    """Make one transaction of a record, an entry with PUT for each resource.

    A resource that isn't readable R4, or is of a type that no rule reads, is left out: a
    server would refuse the whole transaction because of it. Of copies the newest is kept,
    since a server holds one. A resource without an id gets one from its content, so that
    loading twice doesn't double it.
    """
    kept: dict[str, tuple[tuple[str, str], _Entry]] = {}
    reasons: list[str] = []
    for item in items:
        head = _head(item.raw)
        if isinstance(head, str):
            reasons.append(f"{_name(item)}: {head}")
            continue
        resource_id = head.id or sha256(item.raw).hexdigest()[:32]
        place = f"{head.resource_type}/{resource_id}"
        raw = item.raw if head.id else _with_id(item.raw, resource_id)
        entry = _Entry(msgspec.Raw(raw), {"method": "PUT", "url": place}, item.full_url)
        age = (head.meta.last_updated, head.meta.version_id.zfill(20))
        if place in kept:
            reasons.append(f"{place}: an older or equal copy")
            if kept[place][0] >= age:
                continue
        kept[place] = (age, entry)
    body = msgspec.json.encode(_Transaction([entry for _, entry in kept.values()]))
    return Transaction(body, len(kept), len(reasons), tuple(reasons))


def _head(raw: bytes) -> _Head | str:
    """Read a resource's head, or say why it is left out."""
    try:
        decoded = decode(raw)
        head = msgspec.json.decode(raw, type=_Head)
    except (Unreadable, msgspec.MsgspecError):
        return "not readable as FHIR R4"
    if isinstance(decoded, Other) or head.resource_type not in _LOADED:
        return "of a type that no rule reads"
    return head


def _name(item: Item) -> str:
    """Name a resource by its reference, else by its place."""
    try:
        head = msgspec.json.decode(item.raw, type=_Head)
    except msgspec.MsgspecError:
        return item.place or "a resource"
    return f"{head.resource_type}/{head.id}" if head.id else item.place or head.resource_type


def _with_id(raw: bytes, resource_id: str) -> bytes:
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, "id": resource_id})
