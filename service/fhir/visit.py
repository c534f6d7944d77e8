"""Reading one patient's record from a FHIR server, once.

The Patient comes first, then all types in parallel, then what the record refers to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import tzinfo
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from service.errors import (
    PatientRefused,
    PatientUnreadable,
    SourceError,
    SourceTimeout,
    UnknownPatient,
)
from service.fhir.http import Client, Reply, inside
from service.fhir.paging import Asked, Entry, Found, Key, Peek, observed, peek, said, search
from service.fhir.plan import URL_LIMIT, Capabilities, Query, TypePlan
from service.fhir.record import Item, Message, Reading
from service.fhir.source import Fetched, SiteSearch

ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
TIMED_OUT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT})
_FORBIDDEN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# With these a server says that it does not understand a search, not that it failed.
_NOT_UNDERSTOOD = frozenset({400, 404, 405, 422, 501})
# Panel members are read one by one up to here; for more, all Observations are searched.
_FEW = 20
_NESTED_PANELS = 3
_MERGES = 20
_SHOWN_PROBLEMS = 3
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Hospital:
    """A server with what is known of it."""

    client: Client
    site: SiteSearch
    zone: tzinfo


class Before(Protocol):
    """What was read of a server before a visit asks for it, by searches for many patients.

    None: not read before, so that the visit asks the server itself. Raises SourceError where
    that is what reading it gave.
    """

    def read(self, kind: str, found: str) -> Reply | None:
        """Give the answer for one resource by its id."""

    def search(self, query: Query, patient_id: str) -> Found | None:
        """Give what a search for one patient finds."""


class _Nothing:
    """Nothing was read before."""

    def read(self, kind: str, found: str) -> Reply | None:
        return None

    def search(self, query: Query, patient_id: str) -> Found | None:
        return None


@dataclass(slots=True)
class _TypeState:
    """What reading one type has given so far; ``demands_category``: see TypePlan."""

    narrow: list[Found] = field(default_factory=list)
    wide: list[Found] = field(default_factory=list)
    widened: bool = False
    demands_category: bool = False
    problems: list[str] = field(default_factory=list)

    def deciding(self) -> list[Found]:
        """Give the searches that must be complete for the type to be."""
        if self.demands_category:
            # What has none of the usual categories is found by code, or not at all.
            return [*self.narrow, *self.wide]
        # Once all of a type was searched, searches by code can't miss anything more.
        return self.wide if self.widened else self.narrow


class Visit:
    """Reads one patient's record; holds what has been read so far."""

    def __init__(
        self,
        hospital: Hospital,
        patient_id: str,
        deadline: float,
        pool: Executor,
        before: Before | None = None,
    ) -> None:
        self._hospital = hospital
        self._before: Before = before or _Nothing()
        self._client = hospital.client
        self._site = hospital.site
        self._zone = hospital.zone
        self._deadline = deadline
        self._pool = pool
        self._asked = patient_id
        self._ids: list[str] = []
        self._entries: dict[Key, Entry] = {}
        self._states: dict[str, _TypeState] = {}
        self._identity: list[str] = []
        self.misunderstood = False

    def read(self, server: Capabilities, plans: Mapping[str, TypePlan]) -> Fetched:
        """Read everything; raises UnknownPatient, PatientUnreadable or SourceError."""
        self._follow_merges(self._read_patient(self._asked))
        self._states = {kind: _TypeState(widened=plans[kind].start_wide) for kind in plans}
        ids = tuple(self._ids)
        ability = server.types.get("Patient")
        by_link = ids if ability is not None and ability.declares("link") else ()
        merged = [self._pool.submit(self._search, self._by_link(), who) for who in by_link]
        self._read_types(plans, ids)
        self._find_merged([future.result() for future in merged])
        if older := tuple(found for found in self._ids if found not in ids):
            self._read_types(plans, older)
        self._follow_references(plans)
        return self._result(plans)

    # Who the patient is (semantics 1.5: a merged patient is followed to the survivor)

    def _read_patient(self, patient_id: str) -> Peek:
        reply = self._read("Patient", patient_id)
        if reply.status != HTTPStatus.OK:
            raise _patient_error(reply, patient_id)
        body = reply.body.removeprefix(_BOM)
        look = peek(body)
        if look is None or look.resource_type != "Patient":
            raise PatientUnreadable("the FHIR server's answer for the patient is not a Patient")
        if look.id is None or not ID.fullmatch(look.id):
            raise PatientUnreadable("the Patient resource has no valid id")
        self._add(Entry(Item(body, f"{self._client.base_url}/Patient/{look.id}"), look))
        if look.id not in self._ids:
            self._ids.append(look.id)
        if look.id != patient_id:
            self._note_renamed(patient_id, look.id)
        return look

    def _read(self, kind: str, found: str) -> Reply:
        reply = self._before.read(kind, found)
        if reply is None:
            reply = read_one(self._client, kind, found, self._deadline)
        return reply

    def _note_renamed(self, old: str, new: str) -> None:
        """Note that the server answers for a merged patient with the survivor (as Epic does).

        The record needs the old id too, so a Patient that says no more than that stands
        for it.
        """
        link = {"other": {"reference": f"Patient/{new}"}, "type": "replaced-by"}
        raw = msgspec.json.encode({"resourceType": "Patient", "id": old, "link": [link]})
        self._add(Entry(Item(raw), Peek("Patient", old, [link])))
        if old not in self._ids:
            self._ids.append(old)

    def _follow_merges(self, look: Peek) -> None:
        queue = [look]
        while queue:
            for kind, reference in links(queue.pop()):
                other = self._local_id(reference, "Patient")
                if other in self._ids:
                    continue
                if kind == "replaced-by":
                    queue.append(self._read_survivor(other))
                elif kind == "replaces" and other is None:
                    self._identity.append("a patient merged into this one is not known here")
                elif kind == "replaces" and other is not None:
                    # The old Patient may be gone from the server; its records count.
                    self._ids.append(other)

    def _read_survivor(self, patient_id: str | None) -> Peek:
        if patient_id is None or len(self._ids) > _MERGES:
            raise PatientUnreadable("the patient this one was merged into is not known here")
        try:
            return self._read_patient(patient_id)
        except UnknownPatient as error:
            raise PatientUnreadable(
                "the patient this one was merged into could not be read"
            ) from error

    def _by_link(self) -> Query:
        return Query("Patient", "link", (("_count", str(self._site.page_size)),))

    def _find_merged(self, results: list[Found]) -> None:
        """Take the Patients whose link says that they were replaced by this one."""
        while results:
            known = len(self._ids)
            for found in results:
                # The server declares this search: a refusal leaves open who was merged.
                if not found.complete:
                    self._identity.append(
                        f"patients merged into this one were not searched: {found.problem}"
                    )
                for entry in found.entries.values():
                    self._take_merged(entry)
            if len(self._ids) > _MERGES:
                self._identity.append("too many patients are merged into this one")
                return
            results = [self._search(self._by_link(), who) for who in self._ids[known:]]

    def _take_merged(self, entry: Entry) -> None:
        merged = entry.peek.id
        if entry.peek.resource_type != "Patient" or merged is None or not ID.fullmatch(merged):
            return
        for kind, reference in links(entry.peek):
            if kind == "replaced-by" and self._local_id(reference, "Patient") in self._ids:
                self._add(entry)
                if merged not in self._ids:
                    self._ids.append(merged)

    # What the record holds

    def _read_types(self, plans: Mapping[str, TypePlan], ids: tuple[str, ...]) -> None:
        """Run the planned searches of all types in parallel."""
        running: list[tuple[list[Found], list[Future[Found]]]] = []
        for kind, plan in plans.items():
            state = self._states[kind]
            running.append((state.narrow, self._start(plan.narrow, ids)))
            if state.widened:
                running.append((state.wide, self._start(plan.wide, ids)))
        for results, futures in running:
            results.extend(self._gather(futures))
        for kind, plan in plans.items():
            self._fall_back(kind, plan, ids)

    def _start(self, queries: Iterable[Query], ids: tuple[str, ...]) -> list[Future[Found]]:
        return [self._pool.submit(self._search, query, who) for query in queries for who in ids]

    def _gather(self, futures: Iterable[Future[Found]]) -> Iterator[Found]:
        for future in futures:
            found = future.result()
            self._entries.update(found.entries)
            yield found

    def _fall_back(self, kind: str, plan: TypePlan, ids: tuple[str, ...]) -> None:
        """Ask in another way where the server does not understand the planned one."""
        state = self._states[kind]
        if not state.widened and any(found.refused in _NOT_UNDERSTOOD for found in state.narrow):
            self._widen(kind, plan, ids)
        elif any(found.refused == HTTPStatus.BAD_REQUEST for found in state.wide):
            self._read_by_category(kind, plan, ids)

    def _widen(self, kind: str, plan: TypePlan, ids: tuple[str, ...]) -> None:
        state = self._states[kind]
        state.widened = True
        state.wide.extend(self._gather(self._start(plan.wide, ids)))
        if any(found.refused == HTTPStatus.BAD_REQUEST for found in state.wide):
            self._read_by_category(kind, plan, ids)

    def _read_by_category(self, kind: str, plan: TypePlan, ids: tuple[str, ...]) -> None:
        """Read by the usual categories where a search without one is refused."""
        if not plan.by_category:
            return
        state = self._states[kind]
        state.demands_category = True
        state.wide = [found for found in state.wide if found.refused != HTTPStatus.BAD_REQUEST]
        state.wide.extend(self._gather(self._start(plan.by_category, ids)))
        if not plan.narrow:
            state.problems.append(
                "the FHIR server demands a category; the site file must name those in use"
            )

    def _search(self, query: Query, patient_id: str) -> Found:
        found = self._run(query, patient_id)
        if found.refused in _NOT_UNDERSTOOD and query.comfort:
            found = self._run(query.plain(), patient_id)
        if found.refused in _NOT_UNDERSTOOD:
            self.misunderstood = True
        return found

    def _run(self, query: Query, patient_id: str) -> Found:
        found = self._before.search(query, patient_id)
        if found is None:
            found = run(self._hospital, query, (patient_id,), self._deadline)
        return found

    # What the record refers to

    def _follow_references(self, plans: Mapping[str, TypePlan]) -> None:
        """Read medicines, studies and panel members that the searches did not bring."""
        observations = plans.get("Observation")
        if observations is not None and observations.narrow and self._leaves_panels_open():
            self._widen("Observation", observations, tuple(self._ids))
        done: set[str] = set()
        for _ in range(_NESTED_PANELS):
            missing = self._missing(plans, done)
            if not missing:
                return
            self._read_missing(missing, len(done))
            done.update(missing)
        if self._missing(plans, done):
            self._problem({"Observation"} & set(plans), "its panels are nested too deeply")

    def _leaves_panels_open(self) -> bool:
        """Whether searches by code alone left panels open: many members, or undated results.

        A result without a time takes its panel's (semantics 1.3), and a panel's own code
        is not asked for.
        """
        if self._states["Observation"].widened:
            return False
        members = sum(1 for _, target in self._references() if target.startswith("Observation/"))
        return members > _FEW or any(
            entry.peek.resource_type == "Observation" and observed(entry.peek, self._zone) is None
            for entry in self._entries.values()
        )

    def _references(self) -> Iterator[tuple[str, str]]:
        """Go through what is referred to but not here, as (type that refers, target)."""
        here = {f"{kind}/{found}" for kind, found, _ in self._entries}
        here |= {entry.item.full_url or "" for entry in self._entries.values()}
        for entry in self._entries.values():
            for kind, reference in targets(entry.peek):
                if reference.startswith("#") or reference in here:
                    continue
                found = self._local_id(reference, kind)
                target = reference if found is None else f"{kind}/{found}"
                if target not in here and (found is not None or _may_be(reference, kind)):
                    yield entry.peek.resource_type, target

    def _missing(self, plans: Mapping[str, TypePlan], done: set[str]) -> dict[str, set[str]]:
        """Give what is still to be read, each with the types that lack it."""
        missing: dict[str, set[str]] = {}
        for referring, target in self._references():
            # Results of a report are Observations: their lack is felt there.
            kind = "Observation" if referring == "DiagnosticReport" else referring
            if kind in plans and target not in done:
                missing.setdefault(target, set()).add(kind)
        return missing

    def _read_missing(self, missing: Mapping[str, set[str]], reads: int) -> None:
        running: list[tuple[set[str], Future[str | None]]] = []
        for target, kinds in missing.items():
            kind, _, found = target.partition("/")
            if not ID.fullmatch(found):
                self._problem(kinds, "it refers to a resource that is not on this FHIR server")
            elif reads + len(running) >= self._client.limits.references:
                self._problem(kinds, "it refers to more resources than are read one by one")
            else:
                running.append((kinds, self._pool.submit(self._read_one, kind, found)))
        for kinds, future in running:
            if problem := future.result():
                self._problem(kinds, problem)

    def _read_one(self, kind: str, found: str) -> str | None:
        """Read one resource; gives the problem, if there is one."""
        url = f"{self._client.base_url}/{kind}/{found}"
        try:
            reply = self._read(kind, found)
        except SourceError as error:
            return f"it refers to a {kind} that could not be read: {error}"
        if reply.status == HTTPStatus.GONE and kind == "Observation":
            return None  # deleted, so no longer a record
        if reply.status != HTTPStatus.OK:
            words = said(reply, (*self._ids, found))
            return f"it refers to a {kind} that could not be read ({words})"
        body = reply.body.removeprefix(_BOM)
        look = peek(body)
        if look is None or (look.resource_type, look.id) != (kind, found):
            return f"it refers to a {kind} that could not be read (the answer is another)"
        self._add(Entry(Item(body, url), look))
        return None

    def _problem(self, kinds: Iterable[str], text: str) -> None:
        for kind in kinds:
            self._states[kind].problems.append(text)

    def _add(self, entry: Entry) -> None:
        self._entries[entry.key] = entry

    def _local_id(self, reference: str, kind: str) -> str | None:
        return local_id(self._client.base_url, reference, kind)

    # What is handed on

    def _result(self, plans: Mapping[str, TypePlan]) -> Fetched:
        readings = {kind: self._reading(kind, plan) for kind, plan in plans.items()}
        messages = [
            Message(
                "warning",
                "not-supported" if reading.not_offered else "incomplete",
                reading.problem,
                kind,
            )
            for kind, reading in readings.items()
            if reading.problem is not None
        ]
        return Fetched(
            patient=f"Patient/{self._asked}",
            items=tuple(entry.item for entry in self._entries.values()),
            readings=readings,
            messages=tuple(messages),
            base_url=self._client.base_url,
        )

    def _reading(self, kind: str, plan: TypePlan) -> Reading:
        if plan.none_kept:
            return Reading(not_offered=True)
        if plan.problem is not None:
            return Reading(False, plan.problem, not_offered=plan.not_offered)
        state = self._states[kind]
        incomplete = [found for found in state.deciding() if not found.complete]
        certain = [*state.problems, *self._identity]
        if plan.narrowed is not None:
            certain.append(plan.narrowed)
        problems = [*certain, *(found.problem for found in incomplete if found.problem)]
        if not problems:
            return Reading()
        reached = [found.reached for found in incomplete if found.reached is not None]
        known = not certain and len(reached) == len(incomplete)
        return Reading(
            False,
            "; ".join(list(dict.fromkeys(problems))[:_SHOWN_PROBLEMS]),
            reached=max(reached) if known else None,
        )


def read_one(client: Client, kind: str, found: str, deadline: float) -> Reply:
    """Read one resource by its id; raises SourceError."""
    return client.get(f"{client.base_url}/{kind}/{found}", deadline=deadline)


def run(hospital: Hospital, query: Query, ids: Sequence[str], deadline: float) -> Found:
    """Search for one patient, or for several at once; never raises for what the server does."""
    return search(
        hospital.client,
        _first(hospital, query, ids, deadline),
        asked_of(hospital, query, ids, deadline),
    )


def asked_of(hospital: Hospital, query: Query, ids: Sequence[str], deadline: float) -> Asked:
    """Say how the reply to a search is judged."""
    return Asked(
        query.kind,
        deadline,
        harmless=hospital.site.harmless_outcomes,
        hidden=tuple(ids),
        newest_first=query.newest_first,
        zone=hospital.zone,
    )


def _first(
    hospital: Hospital, query: Query, ids: Sequence[str], deadline: float
) -> Callable[[], Reply]:
    client = hospital.client
    form = query.form(*ids)
    address = f"{client.base_url}/{query.kind}"
    url = f"{address}?{form}"
    post = hospital.site.use_post
    if post or (post is None and len(url) > URL_LIMIT):
        return lambda: client.post_form(f"{address}/_search", form, deadline=deadline)
    return lambda: client.get(url, deadline=deadline)


def _patient_error(reply: Reply, patient_id: str) -> SourceError | UnknownPatient:
    if reply.status in GONE:
        return UnknownPatient("the source has no such patient")
    words = said(reply, (patient_id,))
    if reply.status in _FORBIDDEN:
        return PatientRefused(f"the FHIR server refuses to give the patient ({words})")
    kind = SourceTimeout if reply.status in TIMED_OUT else SourceError
    return kind(f"the FHIR server could not give the patient ({words})")


def links(look: Peek) -> Iterator[tuple[str, str]]:
    """Go through a Patient's links as (type, reference)."""
    for link in look.link if isinstance(look.link, list) else ():
        if isinstance(link, dict) and isinstance(link.get("type"), str):
            yield link["type"], next(_reference(link.get("other")), "")


def local_id(base_url: str, reference: str, kind: str) -> str | None:
    """Give the id that a reference names on a server; None for any other reference."""
    if "://" in reference:
        if not inside(base_url, reference):
            return None
        reference = urlsplit(reference).path[len(urlsplit(base_url).path) + 1 :]
    named, _, rest = reference.partition("/")
    found, _, version = rest.partition("/")
    if named != kind or not ID.fullmatch(found):
        return None
    return found if not version or version.startswith("_history/") else None


def _reference(value: object) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(value.get("reference"), str):
        yield value["reference"]


def targets(look: Peek) -> Iterator[tuple[str, str]]:
    """Go through what a resource refers to that a rule may need, as (type, reference)."""
    yield from (("Medication", found) for found in _reference(look.medication_reference))
    if look.resource_type == "ResearchSubject":
        yield from (("ResearchStudy", found) for found in _reference(look.study))
    members = {"Observation": look.has_member, "DiagnosticReport": look.result}
    listed = members.get(look.resource_type)
    for member in listed if isinstance(listed, list) else ():
        yield from (("Observation", found) for found in _reference(member))


def _may_be(reference: str, kind: str) -> bool:
    """Whether a reference to elsewhere may name a type (a panel's member may be of another)."""
    named = [part for part in reference.split("/") if part[:1].isupper() and part.isalpha()]
    return kind in named or not named
