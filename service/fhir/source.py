"""The one interface of all sources of patients' records.

A source says, per resource type, whether it was read completely (semantics 1.5); it draws
no clinical conclusion.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from service.errors import PatientUnreadable, UnknownPatient
from service.fhir.record import Item, Message, PatientRecord, Pool, Reading

NOT_OFFERED = "the FHIR server does not offer this resource type"
# Meanings of a type's absence in the site file that make it complete.
_NONE_KEPT = frozenset({"complete", "none-kept"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a trial needs of a record.

    ``codes``: per resource type the codes (system URI, code) that matter, or None when the
    type must be read whole (codes matched by prefix, range or keyword can't be searched
    for). A type that isn't a key is not needed.
    """

    codes: Mapping[str, frozenset[tuple[str, str]] | None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source read for one patient.

    ``patient`` is the key asked for (``Patient/ID``); ``readings`` say per type how
    completely it was read; ``base_url`` is the server's, if there is one.
    """

    patient: str
    items: tuple[Item, ...]
    readings: Mapping[str, Reading]
    messages: tuple[Message, ...] = ()
    base_url: str | None = None


class Source(Protocol):
    """Where records come from."""

    def fetch(self, patient_id: str, wanted: Wanted) -> Fetched:
        """Read one patient's record.

        Raises UnknownPatient, PatientUnreadable (the Patient could not be read), or
        SourceError / SourceTimeout when the source can't be read at all.
        """

    def patient_ids(self) -> Iterator[str]:
        """Go through the ids of all patients of the source (not those merged away)."""

    def check(self) -> None:
        """Raise SourceError if the source can't be reached."""

    def describe(self) -> str:
        """Name the source for people, without secrets."""


def record_of(fetched: Fetched) -> PatientRecord:
    """Put a patient's record together; raises PatientUnreadable or UnknownPatient."""
    pool = Pool(fetched.items, base_url=fetched.base_url)
    return from_pool(pool, fetched.patient, fetched.readings, fetched.messages)


def from_pool(
    pool: Pool,
    key: str,
    readings: Mapping[str, Reading],
    messages: Iterable[Message] = (),
) -> PatientRecord:
    """Take one patient's record from a pool; raises PatientUnreadable or UnknownPatient."""
    record = pool.record(key, readings, messages)
    if record is not None:
        return record
    if any(found.type == "Patient" for found, _ in pool.rejected):
        raise PatientUnreadable("the Patient resource is not valid FHIR R4, so no verdict is given")
    raise UnknownPatient("the source has no such patient")


def merged(first: Fetched, second: Fetched) -> Fetched:
    """Join what two sources read of one patient: a type is complete if either read it so."""
    readings: dict[str, Reading] = dict(first.readings)
    for kind, reading in second.readings.items():
        mine = readings.get(kind)
        if mine is None or (reading.complete and not mine.complete):
            readings[kind] = reading
    return Fetched(
        patient=first.patient,
        items=(*first.items, *second.items),
        readings=readings,
        messages=(*first.messages, *second.messages),
        base_url=first.base_url or second.base_url,
    )


@dataclass(frozen=True, slots=True)
class SiteSearch:
    """What differs between hospitals' servers (from the site file).

    ``results_in_components``: whether an Observation may hold a wanted result in a
    component. If so, a server that searches ``Observation.code`` alone is read wider.
    """

    harmless_outcomes: frozenset[str] = frozenset()
    not_offered: Mapping[str, str] = field(default_factory=dict)
    category_required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    use_post: bool | None = None
    extra_parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    codes_per_search: int = 40
    page_size: int = 200
    results_in_components: bool = True

    def none_kept(self, kind: str) -> bool:
        """Tell whether the site says of a type it lacks that no such records are kept at all."""
        return self.not_offered.get(kind) in _NONE_KEPT
