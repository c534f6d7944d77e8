"""What changes of a record are told by: digests of all names that lead to it.

A change names a resource (``Observation/123``) and whose it is; a deletion names the resource
alone. Digests of 8 bytes stand for the names: two that are alike by chance only mean that a
patient is evaluated once more than need be.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Set
from hashlib import blake2b

from service.fhir.bundles import Head, contained_patient, patient_head
from service.fhir.index import subject_key
from service.fhir.record import Pool, Resolver
from service.fhir.resources import Identifier, Patient, Reference

__all__ = [
    "digest_of",
    "digests_of",
    "hits",
    "names_in_change",
    "names_of",
    "own_names",
    "owners_in",
]


def digest_of(name: str) -> int:
    """Give the digest of one name."""
    return int.from_bytes(blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def digests_of(names: Iterable[str]) -> bytes:
    """Write the digests of names, each once, in order."""
    return array("Q", sorted(set(map(digest_of, names)))).tobytes()


def hits(kept: bytes, digests: Set[int]) -> Set[int]:
    """Give those of some digests that are among those written by ``digests_of``."""
    found = array("Q")
    found.frombytes(kept)
    return {each for each in found if each in digests}


def names_of(pool: Resolver) -> Iterator[str]:
    """Go through all names that lead to a record; ``pool``: the record's own resources.

    Its resources, what they refer to (there or not), its Patients' identifiers and links.
    """
    assert isinstance(pool, Pool)
    yield from pool.by_reference
    for found, _ in pool.rejected:
        if found.reference:
            yield found.reference
    for located in pool.patients.values():
        patient = located.resource
        assert isinstance(patient, Patient)
        for identifier in patient.identifier:
            if identifier.value:
                yield _identifier(identifier.system, identifier.value)
        for link in patient.link:
            if link.other is not None:
                yield pool.local(subject_key(link.other))
    for located in pool.by_reference.values():
        for field in ("medication_reference", "study"):
            refers = getattr(located.resource, field, None)
            if isinstance(refers, Reference) and refers.reference:
                yield pool.local(subject_key(refers))


def names_in_change(head: Head, full_url: str | None = None) -> Iterator[str]:
    """Go through the names by which a changed resource touches records.

    Its own; whose it is, in all forms it says that in; a Patient's identifiers and links.
    """
    if head.id:
        yield f"{head.resource_type}/{head.id}"
    if full_url:
        yield full_url
    if head.resource_type == "Patient":
        patient = patient_head(head, full_url)
        yield from (_identifier(*each) for each in patient.identifiers)
        yield from (subject_key(other) for _, other in patient.links)
        return
    yield from owners_in(head)


def own_names(head: Head, full_url: str | None = None) -> Iterator[str]:
    """Go through the names of a Patient: key, address, identifiers."""
    patient = patient_head(head, full_url)
    yield patient.key
    if full_url:
        yield full_url
    yield from (_identifier(*each) for each in patient.identifiers)


def owners_in(head: Head) -> Iterator[str]:
    """Go through the names of whose a resource is."""
    owner = head.owner()
    if owner is None:
        return
    if owner.reference:
        yield subject_key(owner)
        if owner.reference.startswith("#"):
            inside = contained_patient(head, owner.reference[1:])
            yield from (_identifier(*each) for each in inside)
    if owner.identifier is not None and owner.identifier.value:
        yield _identifier(owner.identifier.system, owner.identifier.value)


def _identifier(system: str | None, value: str) -> str:
    return subject_key(Reference(identifier=Identifier(system, value)))
