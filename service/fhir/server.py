"""A live FHIR R4 server as a source of patients' records.

A type that the server lacks, refuses or fails on is incomplete, and the evaluation goes on
(semantics 1.5); only a Patient that can't be read is an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urljoin

from service.errors import SourceError, SourceTimeout, UnknownPatient
from service.fhir.auth import NoAuth
from service.fhir.http import Auth, Client, Limits, Reply, Transport, inside
from service.fhir.paging import NotAPage, Peek, parse_page, said, said_openly
from service.fhir.plan import Capabilities, TypePlan, capabilities, encode, plan_type
from service.fhir.record import COMPLETE
from service.fhir.since import ServerChanges, changed_since
from service.fhir.source import Fetched, SiteSearch, Wanted
from service.fhir.visit import GONE, ID, TIMED_OUT, Before, Hospital, Visit, links

# Read with the Patient or by reference, never searched for.
_NOT_SEARCHED = frozenset({"Patient", "Medication", "ResearchStudy"})
# How soon the CapabilityStatement is read again after it proved wrong.
_REREAD_SECONDS = 60.0


@dataclass(slots=True)
class _Known:
    """What a server said it can do, when, and the plans made from it."""

    server: Capabilities
    read: float
    doubted: bool = False
    plans: dict[tuple[str, frozenset[tuple[str, str]] | None], TypePlan] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """How records are read from a server: the same for every patient.

    ``plans``: by type that is searched for; ``others``: types that come with these.
    """

    server: Capabilities
    plans: Mapping[str, TypePlan]
    others: tuple[str, ...] = ()


class ServerSource:
    """Reads records from a FHIR R4 server; shared by threads.

    ``zone`` is the site's time zone (for times without offset). ``headers`` are sent with
    each request, as some servers want their own (Epic-Client-ID).
    """

    def __init__(
        self,
        base_url: str,
        auth: Auth | None = None,
        site: SiteSearch | None = None,
        limits: Limits | None = None,
        *,
        zone: tzinfo = UTC,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._client = Client(base_url, auth or NoAuth(), Transport(self._limits), headers=headers)
        self._hospital = Hospital(self._client, site or SiteSearch(), zone)
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._clock: datetime | None = None

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._client.base_url

    @property
    def hospital(self) -> Hospital:
        """The server with what is known of it."""
        return self._hospital

    def abilities(self) -> Capabilities:
        """Say what the server can do; raises SourceError."""
        return self._capabilities(time.monotonic() + self._limits.fetch).server

    def clock(self) -> datetime | None:
        """Tell the time by the server's clock when its abilities were read, if it said so.

        Raises SourceError.
        """
        self.abilities()
        return self._clock

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def describe(self) -> str:
        """Name the server for people."""
        return f"FHIR server {self.base_url}"

    def check(self) -> None:
        """Raise SourceError if the server can't be reached or is not of R4."""
        deadline = time.monotonic() + self._limits.connect + self._limits.read
        server = self._read_metadata(deadline, attempts=1)
        with self._lock:
            self._learn(server)

    def patient_ids(self) -> Iterator[str]:
        """Go through the ids of all patients, those merged away left out.

        Raises SourceError when the list can't be read to its end, since a shorter one would
        silently leave patients out.
        """
        site = self._hospital.site
        extra = site.extra_parameters.get("Patient", {})
        form = encode((*extra.items(), ("_count", str(site.page_size))))
        seen: set[str] = set()
        for look in _population(self._client, f"{self.base_url}/Patient?{form}", site):
            if look.id is None or not ID.fullmatch(look.id) or look.id in seen:
                continue
            seen.add(look.id)
            if not any(kind == "replaced-by" for kind, _ in links(look)):
                yield look.id

    def fetch(self, patient_id: str, wanted: Wanted) -> Fetched:
        """Read one patient's record.

        Raises UnknownPatient, PatientUnreadable, SourceError or SourceTimeout; once the
        Patient is read, whatever fails only leaves types incomplete.
        """
        if not ID.fullmatch(patient_id.removeprefix("Patient/")):
            raise UnknownPatient("the source has no such patient")
        ready = self.prepare(wanted)
        with ThreadPoolExecutor(self._limits.parallel, thread_name_prefix="fhir") as pool:
            return self.visit(patient_id, ready, pool)

    def prepare(self, wanted: Wanted) -> Ready:
        """Plan how what is wanted is read of any patient; raises SourceError."""
        known = self._capabilities(time.monotonic() + self._limits.fetch)
        searched = {k: codes for k, codes in wanted.codes.items() if k not in _NOT_SEARCHED}
        plans = {kind: self._plan(known, kind, codes) for kind, codes in searched.items()}
        others = tuple(kind for kind in wanted.codes if kind in _NOT_SEARCHED)
        return Ready(known.server, plans, others)

    def visit(
        self, patient_id: str, ready: Ready, pool: Executor, before: Before | None = None
    ) -> Fetched:
        """Read one patient's record as planned; ``before``: what was read of it already.

        Raises as ``fetch`` does.
        """
        patient_id = patient_id.removeprefix("Patient/")
        if not ID.fullmatch(patient_id):
            raise UnknownPatient("the source has no such patient")
        deadline = time.monotonic() + self._limits.fetch
        visit = Visit(self._hospital, patient_id, deadline, pool, before)
        fetched = visit.read(ready.server, ready.plans)
        if visit.misunderstood:
            with self._lock:
                if self._known is not None:
                    self._known.doubted = True
        others = dict.fromkeys(ready.others, COMPLETE)
        return replace(fetched, readings={**fetched.readings, **others})

    def changed_since(self, kinds: Iterable[str], since: str) -> ServerChanges:
        """Ask for all resources of some types that changed since an instant (ISO).

        Raises ChangesNotOffered if the server can't tell, SourceError or SourceTimeout.
        """
        known = self._capabilities(time.monotonic() + self._limits.fetch)
        return changed_since(self._client, known.server, self._hospital.site, kinds, since)

    def _plan(self, known: _Known, kind: str, codes: frozenset[tuple[str, str]] | None) -> TypePlan:
        found = known.plans.get((kind, codes))
        if found is None:
            found = plan_type(kind, codes, known.server, self._hospital.site)
            known.plans[kind, codes] = found
        return found

    def _capabilities(self, deadline: float) -> _Known:
        with self._lock:
            known = self._known
            if known is not None:
                limit = _REREAD_SECONDS if known.doubted else self._limits.metadata_age
                if time.monotonic() - known.read < limit:
                    return known
            try:
                return self._learn(self._read_metadata(deadline))
            except SourceError:
                # What was known serves on, as long as the server gives patients.
                if known is None:
                    raise
                known.read = time.monotonic()
                return known

    def _learn(self, server: Capabilities) -> _Known:
        if self._known is None or self._known.server != server:
            self._known = _Known(server, 0.0)
        self._known.read = time.monotonic()
        self._known.doubted = False
        return self._known

    def _read_metadata(self, deadline: float, attempts: int | None = None) -> Capabilities:
        url = f"{self.base_url}/metadata"
        reply = self._client.get(url, deadline=deadline, attempts=attempts)
        if reply.status != HTTPStatus.OK:
            words = said_openly(reply, self._client.hides)
            kind = SourceTimeout if reply.status in TIMED_OUT else SourceError
            raise kind(f"the FHIR server's /metadata could not be read ({words})")
        self._clock = _time_of(reply)
        return capabilities(reply.body)


def _time_of(reply: Reply) -> datetime | None:
    """Read when a reply was sent, by the server's clock."""
    try:
        found = parsedate_to_datetime(reply.headers.get("Date", ""))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _population(client: Client, first: str, site: SiteSearch) -> Iterator[Peek]:
    """Go through all Patients of a server; raises SourceError if that isn't possible."""
    limits = client.limits
    url, restarted = first, False
    seen: set[str] = set()
    holes: set[str] = set()
    ids: set[str | None] = set()
    for _ in range(limits.population):
        seen.add(url)
        reply = client.get(url, deadline=time.monotonic() + limits.fetch)
        if reply.status in GONE and url != first and not restarted:
            url, restarted, seen = first, True, set()
            continue
        if reply.status != HTTPStatus.OK:
            raise SourceError(f"the list of patients could not be read ({said(reply)})")
        try:
            page = parse_page(reply.body, "Patient", site.harmless_outcomes, ())
        except NotAPage as error:
            raise SourceError(f"the list of patients could not be read: {error}") from error
        yield from page.matches
        holes.update(page.holes)
        ids.update(look.id for look in page.matches)
        if page.following is None:
            if page.total is not None and page.total > len(ids):
                holes.add("it holds fewer patients than it announces")
            if holes:
                raise SourceError(f"the list of patients is incomplete: {sorted(holes)[0]}")
            return
        url = urljoin(reply.url, page.following)
        if url in seen or not inside(client.base_url, url):
            raise SourceError("the list of patients could not be read to its end")
    raise SourceError("the list of patients has too many pages")
