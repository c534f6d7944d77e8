"""A Bulk Data export as it is asked for, and what must survive the process that asked.

Source: FHIR Bulk Data Access 2.0 and 3.0, "Bulk Data Kick-off Request" and "Output Manifest".
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from service.errors import ConfigurationError, UsageError
from service.fhir.http import Reply
from service.fhir.manifest import NOT_OFFERED_BY
from service.fhir.resources import READ_TYPES

MANIFEST = "manifest.json"
_JOB = "job.json"
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_TYPE = re.compile(r"[A-Z][A-Za-z]{2,63}")
_NDJSON = "application/fhir+ndjson"
# What a server answers that does not know the operation with this method, or its form.
_OTHER_METHOD = frozenset(
    {
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)
_OTHER_PARAMETERS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """What is exported.

    ``level``: ``system``, ``patient`` or ``group/ID``. ``types``: empty for all.
    ``since``: an instant. ``filters``: `_typeFilter` queries (``Observation?status=final``),
    a comma within one written %2C. ``partial``: whether the server may hand out the
    manifest in parts before it has finished. ``patients``: ids of those wanted only; they
    go into the body of a POST, never into an address.
    """

    level: str
    types: tuple[str, ...] = ()
    since: str | None = None
    filters: tuple[str, ...] = ()
    partial: bool = False
    patients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a level that there is not; raises UsageError."""
        group = self.level.removeprefix("group/")
        if self.level not in ("system", "patient") and (
            group == self.level or not _ID.fullmatch(group)
        ):
            raise UsageError("an export is of system, patient or group/ID")

    @property
    def path(self) -> str:
        """Give the operation's path below the server's base."""
        if self.level == "system":
            return "/$export"
        if self.level == "patient":
            return "/Patient/$export"
        return f"/Group/{self.level.removeprefix('group/')}/$export"

    def digest(self, base: str) -> str:
        """Tell this request at this server from others."""
        return hashlib.sha256(repr((base, self)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Form:
    """One way to put a request; servers differ in what they take.

    ``post``: a Parameters resource instead of a query. ``repeated``: one `_type` for each
    type instead of a comma list (the ballot of 4.0 takes only this).
    """

    request: BulkRequest
    post: bool = False
    repeated: bool = False
    turned: bool = False

    def parameters(self) -> Iterator[tuple[str, str, str]]:
        """Give the parameters as name, FHIR type and value."""
        yield "_outputFormat", "String", _NDJSON
        types = self.request.types
        yield from (
            ("_type", "String", kind)
            for kind in (types if self.repeated else [",".join(types)])
            if kind
        )
        if self.request.since is not None:
            yield "_since", "Instant", self.request.since
        for query in self.request.filters:
            yield "_typeFilter", "String", query
        if self.request.partial:
            yield "allowPartialManifests", "Boolean", "true"

    def url(self, base: str) -> str:
        """Give the address with all parameters but patients as a query, whatever the method."""
        query = "&".join(
            f"{name}={quote(value, safe='/,:')}" for name, _, value in self.parameters()
        )
        return f"{base}{self.request.path}?{query}"

    def body(self) -> str:
        """Give the Parameters resource of a POST."""
        listed: list[Json] = [
            {"name": name, f"value{kind}": True if kind == "Boolean" else value}
            for name, kind, value in self.parameters()
        ]
        listed += [
            {"name": "patient", "valueReference": {"reference": f"Patient/{patient}"}}
            for patient in self.request.patients
        ]
        return msgspec.json.encode({"resourceType": "Parameters", "parameter": listed}).decode()


def eased(form: Form, reply: Reply) -> tuple[Form, str | None] | None:
    """Put a request that was refused another way, or ask for less, with a note of what was
    left out; None if nothing is left to try.

    Whatever is left out makes the export larger, or is missing in the `_type` of the
    manifest's request, so that it reads as not exported.
    """
    request = form.request
    # Patients can't be named with another method, and without them all would be exported.
    form = replace(form, turned=form.turned or bool(request.patients))
    if reply.status in _OTHER_METHOD and not form.turned:
        return replace(form, post=not form.post, turned=True), None
    if reply.status not in _OTHER_PARAMETERS:
        return None
    if request.partial:
        return replace(form, request=replace(request, partial=False)), None
    named = {kind for kind in request.types if re.search(rf"\b{kind}\b".encode(), reply.body)}
    if named and "Patient" not in named and len(named) < len(request.types):
        kept = tuple(kind for kind in request.types if kind not in named)
        note = f"the FHIR server does not export {', '.join(sorted(named))}"
        return replace(form, request=replace(request, types=kept)), note
    if request.filters:
        without = replace(request, filters=())
        return replace(form, request=without), "the FHIR server takes no _typeFilter"
    if len(request.types) > 1 and not form.repeated:
        return replace(form, repeated=True), None
    if not form.turned:
        return replace(form, post=not form.post, turned=True), None
    if request.types:
        without = replace(request, types=())
        return replace(form, request=without), "the FHIR server takes no _type"
    return None


class Listed(msgspec.Struct, frozen=True):
    """A file that a server's manifest lists; its address is not to be trusted."""

    url: str = ""
    type: str | None = None
    count: int | None = None


class _Link(msgspec.Struct, frozen=True):
    relation: str | None = None
    url: str | None = None


class Page(msgspec.Struct, frozen=True, rename="camel"):
    """A server's manifest, or one of several that are linked."""

    transaction_time: str
    output: tuple[Listed, ...]
    requires_access_token: bool = True
    deleted: tuple[Listed, ...] = ()
    error: tuple[Listed, ...] = ()
    outcome: tuple[Listed, ...] = ()
    link: tuple[_Link, ...] = ()

    @property
    def following(self) -> str | None:
        """Give the address of the next manifest, if there is one."""
        return next((link.url for link in self.link if link.relation == "next" and link.url), None)


def read_page(body: bytes) -> Page | None:
    """Read a server's manifest; None if it is none."""
    try:
        return msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=Page)
    except _UNREADABLE:
        return None


class File(msgspec.Struct):
    """A file of the export: the name we gave it, and what tells it from others.

    ``section`` is ``output``, ``deleted`` or ``error``. ``key`` is a digest of the address
    without its query, since signatures change when links are renewed.
    """

    name: str
    section: str
    type: str | None
    count: int | None
    key: str


class Job(msgspec.Struct):
    """A running export: all that a restarted process needs to take it up.

    ``not_offered``: types that were wanted, and that the server does not have.
    """

    asked: str
    request: str
    poll: str
    notes: list[str]
    files: list[File]
    transaction_time: str | None = None
    not_offered: list[str] = []


def load_job(folder: Path) -> Job | None:
    """Read the job that was left in a folder; None if there is none that can be read."""
    try:
        return msgspec.json.decode((folder / _JOB).read_bytes(), type=Job)
    except (OSError, *_UNREADABLE):
        return None


def save_job(folder: Path, job: Job) -> None:
    """Keep the job, safe against a loss of power; its addresses are for the owner only."""
    write_safely(folder / _JOB, msgspec.json.encode(job), mode=0o600)


def forget_job(folder: Path) -> None:
    """Remove what was kept of a job."""
    (folder / _JOB).unlink(missing_ok=True)


def finished(folder: Path) -> Json | None:
    """Read the manifest of an export that was brought to its end here; None if there is none."""
    try:
        found = msgspec.json.decode((folder / MANIFEST).read_bytes())
    except (OSError, *_UNREADABLE):
        return None
    return found if isinstance(found, dict) else None


def check_folder(folder: Path, asked: str) -> None:
    """Refuse a folder that holds anything but this export; raises ConfigurationError.

    What else lies there would be read as a part of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job, manifest = load_job(folder), finished(folder)
    mine = job.asked if job else (manifest or {}).get("extension", {}).get("asked")
    # What was written of the job's file when the process was killed is written over.
    begun = _part_of(folder / _JOB)
    if mine is None and any(path != begun for path in folder.iterdir()):
        raise ConfigurationError(f"the folder {folder.name} holds other files than this export")
    if mine is not None and mine != asked:
        raise ConfigurationError(
            f"the folder {folder.name} holds another export: remove it, or start afresh"
        )


def register(job: Job, page: Page, first: int) -> list[tuple[File, str]]:
    """Give each file of a manifest its name, the one it had if it was listed before.

    ``first`` is how many files the manifests before this one list. Names are made of a
    counter and the type, never of the address: that may hold a path.
    """
    sections = (
        ("output", page.output),
        ("deleted", page.deleted),
        ("error", (*page.error, *page.outcome)),
    )
    seen: set[str] = set()
    found: list[tuple[File, str]] = []
    for section, listed in sections:
        for entry in listed:
            if entry.url in seen or not _wanted(section, entry.type):
                continue
            seen.add(entry.url)
            claimed = {file.name for file, _ in found}
            found.append((_file(job, section, entry, first, claimed), entry.url))
    return found


def _wanted(section: str, kind: str | None) -> bool:
    """Whether a file may hold what is read; one of an unclear type may."""
    return section != "output" or kind in READ_TYPES or not _TYPE.fullmatch(kind or "")


def _file(job: Job, section: str, entry: Listed, first: int, claimed: set[str]) -> File:
    key = _key(section, entry.url)
    kind = entry.type if entry.type in READ_TYPES else None
    free = [file for file in job.files[first:] if file.name not in claimed]
    for file in free:
        if file.key == key:
            return file
    if free and (free[0].section, free[0].type, free[0].count) == (section, kind, entry.count):
        # Links that were renewed with another path: a manifest, once given, lists the same
        # files in the same order.
        free[0].key = key
        return free[0]
    stem = {"deleted": "deleted", "error": "errors"}.get(section, kind or "output")
    name = f"{stem}.{len(job.files) + 1:05d}.ndjson"
    job.files.append(File(name, section, kind, entry.count, key))
    return job.files[-1]


def _key(section: str, url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return hashlib.sha256(f"{section} {url}".encode()).hexdigest()
    # Some servers name the file in the query: a query that holds no signature is a part.
    query = "" if re.search(r"sig|token|expires|credential", parts.query, re.I) else parts.query
    text = f"{section} {parts.scheme}://{parts.netloc}{parts.path}?{query}"
    return hashlib.sha256(text.encode()).hexdigest()


def local_manifest(job: Job, lost: frozenset[str], *, whole: bool) -> Json:
    """Write the manifest of the folder: names instead of addresses.

    A file that was lost stays listed, and a manifest of several that could not be read is
    announced, so that whoever reads the folder knows what is missing.
    """
    manifest: Json = {
        "transactionTime": job.transaction_time,
        "request": job.request,
        "requiresAccessToken": False,
        "output": [],
        "deleted": [],
        "error": [],
        "extension": {
            "asked": job.asked,
            "notes": job.notes,
            NOT_OFFERED_BY: job.not_offered,
        },
    }
    for file in job.files:
        entry: Json = {"url": file.name}
        if file.type is not None:
            entry = {"type": file.type, **entry}
        if file.count is not None and not (file.name in lost and file.count == 0):
            entry["count"] = file.count
        manifest[file.section].append(entry)
    if not whole:
        manifest["link"] = [{"relation": "next", "url": "lost"}]
    return manifest


def write_safely(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that after a loss of power it is there whole, or as it was."""
    part = _part_of(path)
    number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(number, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder safe against a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
