"""What changed at the source since a search: by which names, and whom it may bring in.

Read from the files of an export (`_since`), or given by a live server's searches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.fhir.bundles import Head, head_of
from service.fhir.resources import READ_TYPES, Unreadable, decode
from service.nightly.directory import Entry, Place, Run, units_of
from service.nightly.names import digest_of, names_in_change, owners_in
from service.nightly.population import Interest, Scan, ScanLine, local, names_in

__all__ = ["Changes", "aliases_of", "changes_in", "changes_of", "deleted", "joined"]


@dataclass(slots=True)
class Changes:
    """What changed.

    ``touched``: digests of all names by which a change touches a record; ``replaced``: of
    the names of the changed and deleted resources themselves. ``named``: whom changed
    records that may bear on a diagnosis name; ``patients``: per changed Patient (key) all
    names of it; ``links``: what changed Patients say of merges (key, kind, other).
    ``gone``: keys of deleted Patients. ``otherwise``: some name their patients otherwise than
    by id. ``problem``: why the changes can't be relied on.
    """

    touched: set[int] = field(default_factory=set)
    replaced: set[int] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    patients: dict[str, tuple[str, ...]] = field(default_factory=dict)
    links: list[tuple[str, str, str]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    otherwise: bool = False
    problem: str | None = None

    def linked(self, before: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Give the links of all Patients: those that didn't change, and those that did."""
        over = self.patients.keys() | self.gone
        return [*(link for link in before if link[0] not in over), *self.links]


class _Gather(Scan):
    """Goes through changed resources one by one."""

    def __init__(
        self,
        root: Path,
        entries: Sequence[Entry],
        harmless: frozenset[str],
        interest: Interest,
        bases: Sequence[str],
    ) -> None:
        super().__init__(root, entries, harmless, interest)
        self.changes = Changes()
        self._bases = bases

    def quick(self, found: Sequence[ScanLine | Head], run: Run) -> None:
        """Take each line by itself: there are few, and all of each counts."""
        for index in range(len(found)):
            self.any_line(run.text(index), run.line + index)

    def resource(
        self, kind: str, head: Head | None, raw: bytes, place: Place, full_url: str | None
    ) -> None:
        """Take one changed resource."""
        if kind not in READ_TYPES:
            return
        super().resource(kind, head, raw, place, full_url)
        changes = self.changes
        if head is None or not head.id:
            changes.problem = "a changed resource can't be read"
            return
        if kind not in ("Patient", "Medication", "ResearchStudy"):
            names = {local(name, self._bases) for name in owners_in(head)}
            if not any(name.startswith("Patient/") for name in names):
                changes.otherwise = True
                if _unreadable(raw):
                    # It may be anyone's, so that every record must know of it.
                    changes.problem = "a changed resource that can't be read names no patient"
        changes.replaced.add(digest_of(f"{kind}/{head.id}"))
        changes.touched.update(
            digest_of(local(name, self._bases)) for name in names_in_change(head, full_url)
        )

    def lost(self, problem: str, place: Place | None, kind: str | None) -> None:
        """What can't be read may be anything of anyone's."""
        self.changes.problem = f"changes can't be read: {problem}"

    def masked(self, raw: bytes, place: Place, full_url: str | None) -> None:
        """An entry without a type may be anything of anyone's."""
        self.changes.problem = "changes can't be read"

    def gathered(self) -> Changes:
        """Give what was found."""
        changes = self.changes
        changes.named.update(
            local(name, self._bases) for names in self.named for name in names_in(names)
        )
        for patient in self.patients:
            names = (patient.key, *patient.identifiers, patient.full_url or "")
            changes.patients[patient.key] = tuple(name for name in names if name)
            changes.links.extend(
                (patient.key, kind, local(other, self._bases))
                for kind, other in patient.links
                if kind in ("replaced-by", "replaces")
            )
        if self.everyone or self.doubtful:
            changes.problem = changes.problem or "a changed record may be anyone's"
        return changes


def changes_in(
    root: Path,
    entries: Sequence[Entry],
    harmless: frozenset[str],
    interest: Interest,
    bases: Sequence[str] = (),
) -> Changes:
    """Read what changed from the files of an export; ``bases``: the server's addresses.

    What is wrong with the files is in the result's ``problem``.
    """
    gather = _Gather(root, entries, harmless, interest, bases)
    for unit in units_of(entries):
        gather.read(unit)
    return gather.gathered()


def changes_of(resources: Iterable[bytes], bases: Sequence[str] = ()) -> Changes:
    """Gather what changed from resources that a server gave."""
    changes = Changes()
    for raw in resources:
        head = head_of(raw)
        if head is None or not head.id:
            changes.problem = "a changed resource can't be read"
            continue
        changes.replaced.add(digest_of(f"{head.resource_type}/{head.id}"))
        changes.touched.update(digest_of(local(name, bases)) for name in names_in_change(head))
    return changes


def deleted(changes: Changes, references: Iterable[str]) -> None:
    """Add deletions (``Type/id``) to what changed."""
    for reference in references:
        digest = digest_of(reference)
        changes.touched.add(digest)
        changes.replaced.add(digest)
        if reference.startswith("Patient/"):
            changes.gone.add(reference)


def joined(keys: Iterable[str], links: Iterable[tuple[str, str, str]]) -> set[str]:
    """Give patients and all who are merged with them, at any remove."""
    beside: dict[str, set[str]] = {}
    for key, _, other in links:
        beside.setdefault(key, set()).add(other)
        beside.setdefault(other, set()).add(key)
    found = set(keys)
    ahead = list(found)
    while ahead:
        fresh = beside.get(ahead.pop(), set()) - found
        found |= fresh
        ahead += fresh
    return found


def aliases_of(patients: Mapping[str, Iterable[str]]) -> Mapping[str, str]:
    """Give the key of each changed Patient by each of his names."""
    return {name: key for key, names in patients.items() for name in names}


def _unreadable(raw: bytes) -> bool:
    try:
        decode(raw)
    except Unreadable:
        return True
    return False
