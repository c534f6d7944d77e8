"""A patient's record: resources by type, and whether each type was read completely.

Source: semantics 1.5 (absence), 1.8 (whose records, copies, contained resources).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import msgspec

from service.fhir.resources import (
    AllergyIntolerance,
    CodeableConcept,
    Consent,
    Immunization,
    Medication,
    Other,
    Patient,
    Reference,
    ResearchStudy,
    ResearchSubject,
    Resource,
    Unreadable,
    decode,
)
from service.values.dates import parse

_HISTORY = re.compile(r"/_history/[^/]*$")
_WITH_PATIENT = frozenset((AllergyIntolerance, Immunization, Consent))
_WITHOUT_SUBJECT = frozenset((Patient, Medication, ResearchStudy))

# What a record consists of; other types are not asked for.
CLINICAL_TYPES: tuple[str, ...] = (
    "Observation",
    "DiagnosticReport",
    "Condition",
    "Procedure",
    "MedicationRequest",
    "MedicationAdministration",
    "MedicationStatement",
    "MedicationDispense",
    "Immunization",
    "AllergyIntolerance",
    "ResearchSubject",
    "Consent",
    "AdverseEvent",
)


class Message(NamedTuple):
    """Something that went wrong on the way; ``text`` holds no patient data.

    ``severity`` and ``code`` are those of an OperationOutcome issue; ``type`` is the
    resource type concerned, ``reference`` the resource, ``place`` file and line.
    """

    severity: str
    code: str
    text: str
    type: str | None = None
    reference: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """How completely one resource type was read (semantics 1.5).

    ``problem`` says why not. ``assumed``: complete by assumption (files, a Bundle handed
    in). ``reached``: the replies were sorted newest first and complete back to this
    instant (microseconds since 1970 UTC), so a latest result from then on is known (1.3).
    ``not_offered``: the server does not have the type at all.
    """

    complete: bool = True
    problem: str | None = None
    assumed: bool = False
    reached: int | None = None
    not_offered: bool = False


COMPLETE = Reading()
ASSUMED = Reading(assumed=True)
NOT_READ = Reading(complete=False, problem="not read")


class Item(NamedTuple):
    """One resource as it came: JSON text, its entry's fullUrl, and file and line."""

    raw: bytes
    full_url: str | None = None
    place: str | None = None


class Located(NamedTuple):
    """A decoded resource and how it is referred to; ``conflicting``: copies of it differ."""

    resource: Resource
    reference: str
    conflicting: bool = False

    @property
    def version(self) -> str | None:
        """Give ``meta.versionId`` if known."""
        return self.resource.meta.version_id if self.resource.meta else None


class Rejected(NamedTuple):
    """A resource that was not used: what it is, why not, its code if that can be read."""

    type: str | None
    reference: str | None
    problem: str
    place: str | None = None
    code: CodeableConcept | None = None


class Resolver(Protocol):
    """Finds the resource that a reference within another names."""

    def resolve(self, reference: Reference | None, within: Located) -> Located | None:
        """Give the resource, contained or elsewhere in the record, or None."""

    def owner(self, subject: Reference | None) -> str | None:
        """Give the key of the Patient that a reference names, or None."""

    def copies(self, located: Located) -> Sequence[Located]:
        """Give all kept copies of a resource: several if they differ."""

    def is_rejected(self, reference: str) -> bool:
        """Tell whether the resource a reference names was there, but not usable."""


@dataclass(frozen=True, slots=True)
class PatientRecord:
    """Everything read of one patient.

    ``patient_ids``: the survivor's id first, then ids merged into it. ``resources``: by
    type, also what they refer to (Medication, ResearchStudy) by its own type.
    ``readings``: by type; a type without a reading was not read. ``resolver`` finds what
    a reference names.
    """

    patient: Located
    patient_ids: tuple[str, ...]
    resources: Mapping[str, tuple[Located, ...]]
    readings: Mapping[str, Reading]
    resolver: Resolver
    merged: tuple[Located, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    messages: tuple[Message, ...] = ()

    def reading(self, kind: str) -> Reading:
        """Tell how completely a type was read."""
        return self.readings.get(kind, NOT_READ)


class Pool:
    """Decoded resources of any number of patients, from which records are taken.

    Holds the state of one source or one request: copies settled, references indexed.
    """

    def __init__(self, items: Iterable[Item], *, base_url: str | None = None) -> None:
        self.rejected: list[tuple[Rejected, Reference | None]] = []
        self.messages: list[Message] = []
        self.bases: set[str] = {base_url.rstrip("/")} if base_url else set()
        self.by_reference: dict[str, Located] = {}
        self.patients: dict[str, Located] = {}
        self._copies: dict[str, list[Located]] = {}
        self._rejected_references: set[str] = set()
        self._owners: dict[str, str | None] = {}
        self._owned: dict[str, list[Located]] = {}
        urls: dict[str, str] = {}
        for number, item in enumerate(items):
            self._add(item, number, urls)
        settled = self._settle(urls)
        self._identifiers = self._index_identifiers()
        self._index_owners(settled)

    def _add(self, item: Item, number: int, urls: dict[str, str]) -> None:
        """Decode one resource; ``urls`` collects fullUrls and what they stand for."""
        try:
            resource = decode(item.raw)
        except Unreadable as error:
            self._reject(error, item)
            return
        if isinstance(resource, Other):
            return
        kind = type(resource).__name__
        full_url = item.full_url
        # Without id or fullUrl nothing can refer to it, and no two are copies.
        reference = f"{kind}/{resource.id}" if resource.id else full_url or f"{kind}/#{number}"
        if full_url:
            urls[full_url] = reference
            # Other entries may come from elsewhere: the patient's own server is the one that
            # absolute references must name.
            if kind == "Patient" and full_url.endswith(f"/{reference}"):
                self.bases.add(full_url[: -len(reference) - 1])
        located = Located(resource, reference)
        copies = self._copies.get(reference)
        if copies is None:
            self._copies[reference] = [located]
        else:
            copies.append(located)

    def _reject(self, error: Unreadable, item: Item) -> None:
        reference = f"{error.type}/{error.id}" if error.type and error.id else item.full_url
        rejected = Rejected(error.type, reference, error.problem, item.place, error.code)
        self.rejected.append((rejected, error.subject))
        self._rejected_references.update(url for url in (reference, item.full_url) if url)
        self.messages.append(
            Message("warning", "structure", error.problem, error.type, reference, item.place)
        )

    def _settle(self, urls: Mapping[str, str]) -> list[Located]:
        settled: list[Located] = []
        for reference, copies in self._copies.items():
            kept = copies
            if len(copies) > 1:
                kept = self._copies[reference] = settle_copies(copies)
            located = kept[0]
            settled += kept
            self.by_reference[reference] = located
            if type(located.resource) is Patient:
                self.patients[reference] = located
        for url, reference in urls.items():
            self.by_reference[url] = self.by_reference[reference]
        # What comes of a record must not depend on the order in which it was read: a server
        # may give it in another one each time.
        settled.sort(key=itemgetter(1))
        return settled

    def _index_identifiers(self) -> dict[tuple[str | None, str], str | None]:
        """Index patients' identifiers; one that two patients bear names nobody."""
        found: dict[tuple[str | None, str], str | None] = {}
        for reference, located in self.patients.items():
            assert isinstance(located.resource, Patient)
            for identifier in located.resource.identifier:
                if identifier.value:
                    key = (identifier.system, identifier.value)
                    found[key] = reference if found.get(key, reference) == reference else None
        return found

    def _index_owners(self, settled: list[Located]) -> None:
        for located in settled:
            resource = located.resource
            if type(resource) in _WITHOUT_SUBJECT:
                continue
            subject = subject_of(resource)
            owner = self.owner(subject) or self._owner_inside(subject, located)
            if owner is not None:
                self._owned.setdefault(owner, []).append(located)
            if owner not in self.patients:
                self.messages.append(
                    Message(
                        "warning",
                        "not-found",
                        "names no patient that is known here; not used",
                        type(resource).__name__,
                        located.reference,
                    )
                )

    def owner(self, subject: Reference | None) -> str | None:
        """Give the key of the Patient that a reference names (``Patient/id``), or None.

        By type and id (a version suffix is ignored), absolute URL of the same server,
        fullUrl, or an identifier of the patient's (semantics 1.8).
        """
        if subject is None:
            return None
        named: str | None = None
        if subject.reference:
            if subject.reference not in self._owners:
                self._owners[subject.reference] = self._named(subject.reference)
            named = self._owners[subject.reference]
        identifier = subject.identifier
        if named in self.patients or identifier is None or not identifier.value:
            return named
        return self._identifiers.get((identifier.system, identifier.value)) or named

    def _owner_inside(self, subject: Reference | None, located: Located) -> str | None:
        """Find the patient by the identifier of a Patient that the resource contains."""
        if subject is None or not (subject.reference or "").startswith("#"):
            return None
        inside = contained(located, (subject.reference or "")[1:])
        if inside is None or not isinstance(inside.resource, Patient):
            return None
        owners = {
            self._identifiers.get((identifier.system, identifier.value))
            for identifier in inside.resource.identifier
            if identifier.value
        } - {None}
        return owners.pop() if len(owners) == 1 else None

    def copies(self, located: Located) -> Sequence[Located]:
        """Give all kept copies of a resource: several if they differ."""
        return self._copies.get(located.reference, (located,))

    def is_rejected(self, reference: str) -> bool:
        """Tell whether the resource a reference names was there, but not usable."""
        return self.local(reference) in self._rejected_references

    def _named(self, reference: str) -> str | None:
        target = self.local(reference)
        found = self.by_reference.get(target)
        if found is not None and isinstance(found.resource, Patient):
            return found.reference
        return target if target.startswith("Patient/") else None

    def local(self, reference: str) -> str:
        """Bring a reference to ``Type/id`` if it is of this server, without version."""
        if "/_history/" in reference:
            reference = _HISTORY.sub("", reference)
        if reference in self.by_reference:
            return reference
        for base in self.bases:
            if reference.startswith(base + "/"):
                return reference[len(base) + 1 :]
        return reference

    def resolve(self, reference: Reference | None, within: Located) -> Located | None:
        """Find what a reference names: contained, in this pool, or nothing."""
        if reference is None or not reference.reference:
            return None
        if reference.reference.startswith("#"):
            return contained(within, reference.reference[1:])
        return self.by_reference.get(self.local(reference.reference))

    def survivors(self, key: str) -> tuple[str, ...]:
        """Give the survivor of a patient and all ids merged into it, survivor first."""
        seen = [key]
        while (following := self._linked(seen[-1], "replaced-by")) and following[-1] not in seen:
            seen.append(following[-1])
        survivor = seen[-1]
        merged = dict.fromkeys((survivor, *seen, *self._linked(survivor, "replaces")))
        # Whoever was merged into one of them, at any remove, belongs to them.
        while found := [
            other
            for other in self.patients
            if other not in merged and merged.keys() & set(self._linked(other, "replaced-by"))
        ]:
            merged.update(dict.fromkeys(found))
        return tuple(merged)

    def _linked(self, key: str, kind: str) -> tuple[str, ...]:
        """Give the patients that a patient's links of a type name."""
        located = self.patients.get(key)
        if located is None or not isinstance(located.resource, Patient):
            return ()
        named = [self.owner(link.other) for link in located.resource.link if link.type == kind]
        return tuple(owner for owner in named if owner is not None)

    def record(
        self,
        key: str,
        readings: Mapping[str, Reading],
        messages: Iterable[Message] = (),
    ) -> PatientRecord | None:
        """Take one patient's record, or None if the Patient isn't here (or isn't readable)."""
        keys = self.survivors(key)
        patient = self.patients.get(keys[0])
        if patient is None:
            return None
        by_type: dict[str, list[Located]] = {}
        for owner in keys:
            for located in self._owned.get(owner, ()):
                by_type.setdefault(type(located.resource).__name__, []).append(located)
        rejected = tuple(
            found
            for found, subject in self.rejected
            if subject is None or self.owner(subject) in keys or self.owner(subject) is None
        )
        return PatientRecord(
            patient=patient,
            patient_ids=tuple(owner.removeprefix("Patient/") for owner in keys),
            resources={kind: tuple(group) for kind, group in by_type.items()},
            readings=dict(readings),
            rejected=rejected,
            messages=(*messages, *self.messages),
            resolver=self,
            merged=tuple(self.patients[other] for other in keys[1:] if other in self.patients),
        )


def subject_of(resource: Resource) -> Reference | None:
    """Give the reference to the patient a resource belongs to, whatever its name there."""
    kind = type(resource)
    if kind is ResearchSubject:
        found = getattr(resource, "individual", None)
    elif kind in _WITH_PATIENT:
        found = getattr(resource, "patient", None)
    else:
        found = getattr(resource, "subject", None)
    return found if isinstance(found, Reference) else None


def settle_copies(copies: list[Located]) -> list[Located]:
    """Of copies (same type and id) keep the newest version (semantics 1.8).

    If which is newest isn't known and they differ, all are kept, marked as conflicting.
    """
    if len(copies) == 1:
        return copies
    orders: tuple[Callable[[Located], tuple[Any, ...] | None], ...] = (_age_key, _version_number)
    for order in orders:
        ages = [order(located) for located in copies]
        newest = max((age for age in ages if age is not None), default=None)
        if newest is not None and None not in ages:
            latest = [located for located, age in zip(copies, ages, strict=True) if age == newest]
            if all(_content(located) == _content(latest[0]) for located in latest):
                return latest[:1]
    if all(_content(located) == _content(copies[0]) for located in copies):
        return copies[:1]
    return [located._replace(conflicting=True) for located in copies]


def _content(located: Located) -> tuple[Resource, list[Any]]:
    """Give what copies are compared by: not the version, nor how contained JSON is spaced."""
    inside = [msgspec.json.decode(raw) for raw in located.resource.contained]
    return msgspec.structs.replace(located.resource, meta=None, contained=()), inside


def _age_key(located: Located) -> tuple[int, tuple[int, int]] | None:
    meta = located.resource.meta
    if meta is None or meta.last_updated is None:
        return None
    try:
        when = parse(meta.last_updated, UTC)
    except ValueError:
        return None
    return when.start, _version_number(located) or (-1, 0)


def _version_number(located: Located) -> tuple[int, int] | None:
    """Give the version as a number, in a form that compares with other keys."""
    version = located.version or ""
    return (int(version), 0) if version.isdecimal() and len(version) < 18 else None


def contained(within: Located, local_id: str) -> Located | None:
    """Find a contained resource by its id; None if it isn't there or isn't readable.

    A contained resource refers to others beside it: it is given what it is contained with.
    """
    for raw in within.resource.contained:
        try:
            resource = decode(raw)
        except Unreadable:
            continue
        if not isinstance(resource, Other) and (resource.id or "").lstrip("#") == local_id:
            beside = msgspec.structs.replace(resource, contained=within.resource.contained)
            holder = within.reference.split("#")[0]
            return Located(beside, f"{holder}#{local_id}", within.conflicting)
    return None


def contained_type(within: Located, local_id: str) -> str | None:
    """Give the type of a contained resource of any type; None if it isn't there."""
    for raw in within.resource.contained:
        try:
            resource = decode(raw)
        except Unreadable as error:
            if error.id == local_id:
                return error.type
            continue
        if (resource.id or "").lstrip("#") == local_id:
            return resource.type if isinstance(resource, Other) else type(resource).__name__
    return None
