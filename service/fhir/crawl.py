"""Reading many patients' records from a FHIR server by few requests.

Each record comes out as if it had been read alone (``ServerSource.fetch``): the same visit
puts it together, only that what it asks for has been read before, for many patients at once.
First a search names several patients (``patient=a,b,c``), then a batch Bundle holds several
searches, and what neither brings is asked for alone.

No server is believed to understand a list of patients. A reply counts only if it is complete,
holds no more and no fewer resources than it announces, no resource of anybody else, and some
of the first and of the last patient in the list: so a server that reads one value only, or
only so many, is found out by every reply. ``_revinclude`` is not used for records, since no
server says whether what it includes is all there is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import Any, NamedTuple, ParamSpec, TypeVar

from service.errors import EligibilityError, PatientRefused, SourceError, UnknownPatient
from service.fhir.batch import get_all
from service.fhir.bundles import head_of
from service.fhir.http import RETRIED, Reply, TooLarge
from service.fhir.index import subject_key
from service.fhir.paging import Entry, Found, Key, NotAPage, parse_page, peek, search
from service.fhir.plan import URL_LIMIT, Query, TypePlan
from service.fhir.server import Ready, ServerSource
from service.fhir.source import Fetched, Wanted
from service.fhir.visit import ID, asked_of, links, local_id, read_one, run, targets

# Patients who are read together, and requests in a batch Bundle.
CHUNK = 50
_BATCH = 50
# Parts up to this size are not divided further.
_LEAST = 3
_ENDS = 2
_ATTEMPTS = 3
# Replies in a row that can't be used before lists of this kind are given up.
_PATIENCE = 12
# From here on a round number of matches may be a server's own ceiling.
_ROUND = 50
_PAUSE = 5.0
# What a search may bring beside what is searched for: includes.
_MORE = frozenset({"Medication", "ResearchStudy"})
_TOO_LONG = frozenset({HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_URI_TOO_LONG})
_Shape = tuple[str, ...]
_Share = dict[str, dict[Key, Entry]]
_T = TypeVar("_T")
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class Unread:
    """A patient whose record could not be read, and why.

    ``unknown``: the server says that there is no such patient; ``refused``: it may not be
    given to whom the service asks as.
    """

    patient: str
    problem: str
    unknown: bool = False
    refused: bool = False


def read_records(
    source: ServerSource, ids: Sequence[str], wanted: Wanted
) -> Iterator[Fetched | Unread]:
    """Read patients' records, in the order of their ids, each as ``source.fetch`` gives it.

    What fails in passing is tried again; a patient who can't be read is given as Unread.
    Raises SourceError if the server is gone and does not come back in the time allowed.
    """
    if not ids:
        return
    with ThreadPoolExecutor(source.hospital.client.limits.crowd, "crawl") as pool:
        crawl = _Crawl(source, source.prepare(wanted), pool)
        for start in range(0, len(ids), CHUNK):
            yield from crawl.chunk(ids[start : start + CHUNK])


def survivor_of(fetched: Fetched) -> str:
    """Give the id of the patient a record is about: of merged ones the survivor."""
    replaced: dict[str, str] = {}
    asked = fetched.patient.removeprefix("Patient/")
    # A server may give the Patient asked for under another id: then that comes first.
    first = ""
    for item in fetched.items:
        look = peek(item.raw)
        if look is None or look.resource_type != "Patient" or look.id is None:
            continue
        first = asked if look.id == asked else first or look.id
        for kind, reference in links(look):
            other = local_id(fetched.base_url or "", reference, "Patient")
            if kind == "replaced-by" and other is not None:
                replaced.setdefault(look.id, other)
        if first == asked and not replaced:
            return first
    passed: set[str] = set()
    while first in replaced and first not in passed:
        passed.add(first)
        first = replaced[first]
    return first


class Inline(Executor):
    """Does at once what is submitted, in the thread that submits it."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Call the function; what it raises on purpose is raised by the result."""
        future: Future[_T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except (EligibilityError, _Wanting) as error:
            future.set_exception(error)
        return future


class _Wanting(Exception):
    """A visit needs what was not read yet; it has been noted."""


class _Before:
    """What was read for a chunk of patients; notes what visits ask for beyond it."""

    def __init__(self) -> None:
        self.reads: dict[tuple[str, str], Reply | SourceError] = {}
        self.found: dict[tuple[Query, str], Found] = {}
        self.wanted_reads: dict[tuple[str, str], None] = {}
        self.wanted: dict[Query, dict[str, None]] = {}

    def read(self, kind: str, found: str) -> Reply:
        """Give the answer for one resource; raises SourceError."""
        known = self.reads.get((kind, found))
        if known is None:
            self.wanted_reads[kind, found] = None
            raise _Wanting
        if isinstance(known, SourceError):
            raise known
        return known

    def search(self, query: Query, patient_id: str) -> Found:
        """Give what a search found for a patient."""
        known = self.found.get((query, patient_id))
        if known is None:
            self.want(query, patient_id)
            raise _Wanting
        return known

    def want(self, query: Query, patient_id: str) -> None:
        """Note that a search for a patient is needed."""
        if (query, patient_id) not in self.found:
            self.wanted.setdefault(query, {})[patient_id] = None


@dataclass(slots=True)
class _Trust:
    """What replies have shown of a server's understanding of lists, for one shape of search.

    ``ends``: two patients who have such resources, to stand first and last in a list;
    ``known``: those of whom a search for them alone has shown it. ``size``: the most
    patients in a list; 0: lists are not used.
    """

    size: int = CHUNK
    ends: tuple[str, ...] = ()
    known: dict[str, None] = field(default_factory=dict)
    failures: int = 0
    proven: bool = False

    def fail(self) -> None:
        """Note a reply that can't be used."""
        self.failures += 1
        if self.failures >= _PATIENCE:
            self.size = 0

    def witness(self, owners: Iterable[str]) -> None:
        """Take the two patients with the fewest resources (``owners`` is in this order)."""
        chosen = tuple(islice(owners, _ENDS))
        if len(chosen) == _ENDS:
            self.ends = chosen


class _Part(NamedTuple):
    """Patients to search for together: all queries of a shape."""

    shape: _Shape
    queries: tuple[Query, ...]
    patients: tuple[str, ...]
    probe: tuple[str, ...] = ()
    tried: bool = False

    def listed(self, trust: _Trust) -> tuple[str, ...]:
        """Give the patients in the order in which they are named to the server."""
        if self.probe:
            return self.probe
        if not trust.ends:
            return self.patients
        first, last = trust.ends
        return (first, *(who for who in self.patients if who not in trust.ends), last)


class _Job(NamedTuple):
    """A search for one patient."""

    query: Query
    patient: str


class _Crawl:
    """Reads chunk after chunk; holds what was learned of the server on the way."""

    def __init__(self, source: ServerSource, ready: Ready, pool: Executor) -> None:
        self._source = source
        self._hospital = source.hospital
        self._client = source.hospital.client
        self._ready = ready
        self._pool = pool
        self._inline = Inline()
        self._trust: dict[_Shape, _Trust] = {}
        self._none: dict[_Shape, bool] = {}
        self._batch = ready.server.batch
        # A search that is known to find something: every batch must show that it does.
        self._control: _Job | None = None

    def chunk(self, ids: Sequence[str]) -> Iterator[Fetched | Unread]:
        """Read the records of a chunk of patients."""
        before = _Before()
        ids = [each.removeprefix("Patient/") for each in ids]
        asked = list(dict.fromkeys(each for each in ids if ID.fullmatch(each)))
        before.wanted_reads = {("Patient", each): None for each in asked}
        for plan in self._ready.plans.values():
            for query in _first_queries(plan):
                before.wanted[query] = dict.fromkeys(asked)
        done: dict[str, Fetched | Unread] = {}
        pending = list(dict.fromkeys(ids))
        while pending:
            self._fulfil(before)
            pending = [each for each in pending if not self._visited(each, before, done)]
        for each in ids:
            yield done[each]

    def _visited(self, patient: str, before: _Before, done: dict[str, Fetched | Unread]) -> bool:
        """Put a record together from what was read; False if more must be read first."""
        try:
            done[patient] = self._source.visit(patient, self._ready, self._inline, before)
        except _Wanting:
            return False
        except UnknownPatient as error:
            done[patient] = Unread(patient, error.message, unknown=True)
        except SourceError as error:
            refused = isinstance(error, PatientRefused)
            done[patient] = Unread(patient, error.message, refused=refused)
        return True

    def _fulfil(self, before: _Before) -> None:
        """Read all that is wanted."""
        reads, wanted = before.wanted_reads, before.wanted
        before.wanted_reads, before.wanted = {}, {}
        self._read(reads, before)
        jobs = self._search_lists(wanted, before)
        jobs = self._search_batches(jobs, before)
        self._search_alone(jobs, before)

    # Resources by id

    def _read(self, reads: Iterable[tuple[str, str]], before: _Before) -> None:
        by_kind: dict[str, list[str]] = {}
        for kind, found in reads:
            by_kind.setdefault(kind, []).append(found)
        running: list[Future[dict[tuple[str, str], Reply]]] = []
        for kind, ids in by_kind.items():
            ability = self._ready.server.of(kind)
            if len(ids) > 1 and ability is not None and ability.declares("_id"):
                for start in range(0, len(ids), CHUNK):
                    part = ids[start : start + CHUNK]
                    running.append(self._pool.submit(self._by_ids, kind, part))
        for future in running:
            before.reads.update(future.result())
        left = [(kind, found) for kind, found in reads if (kind, found) not in before.reads]
        answers = self._patiently(left, self._read_one, _passing_reply)
        before.reads.update(zip(left, answers, strict=True))

    def _by_ids(self, kind: str, ids: Sequence[str]) -> dict[tuple[str, str], Reply]:
        """Read several resources by a search: each that comes proves itself."""
        count = ("_count", str(self._hospital.site.page_size))
        found = run(self._hospital, Query(kind, "_id", (count,)), ids, self._deadline())
        asked = set(ids)
        replies: dict[tuple[str, str], Reply] = {}
        for (of_kind, name, raw), _ in found.entries.items():
            # A shortened resource is not what reading it gives.
            if of_kind == kind and name in asked and b'"SUBSETTED"' not in raw:
                url = f"{self._client.base_url}/{kind}/{name}"
                replies[kind, name] = Reply(HTTPStatus.OK, {}, raw, url)
        return replies

    def _read_one(self, job: tuple[str, str]) -> Reply | SourceError:
        try:
            return read_one(self._client, *job, self._deadline())
        except SourceError as error:
            return error

    # Searches for several patients at once

    def _search_lists(self, wanted: dict[Query, dict[str, None]], before: _Before) -> list[_Job]:
        """Search by lists of patients; gives the searches that are still to be made."""
        left: list[_Job] = []
        parts: list[_Part] = []
        for shape, ids, queries in _by_shape(wanted):
            trust = self._trust.setdefault(shape, _Trust())
            room = self._room(queries, ids)
            size = min(trust.size, room)
            if len(ids) <= 1 or size < _LEAST:
                left.extend(_Job(query, who) for query in queries for who in ids)
            else:
                parts += [
                    _Part(shape, queries, ids[start : start + size])
                    for start in range(0, len(ids), size)
                ]
        while parts:
            listed = [part.listed(self._trust[part.shape]) for part in parts]
            running = [
                [self._pool.submit(self._search_list, query, ids) for query in part.queries]
                for part, ids in zip(parts, listed, strict=True)
            ]
            replies = [[future.result() for future in futures] for futures in running]
            following: list[_Part] = []
            for part, ids, founds in zip(parts, listed, replies, strict=True):
                more, alone = self._judge(part, ids, founds, before)
                following += more
                left += alone
            if any(part.tried for part in following):
                await_server(self._source)
            parts = following
        return left

    def _room(self, queries: Iterable[Query], ids: Sequence[str]) -> int:
        """Give how many patients fit in a URL, if nothing else can be sent."""
        if self._hospital.site.use_post is not False:
            return CHUNK
        longest = max(len(query.form("")) for query in queries)
        each = max(len(f"Patient/{who},") for who in ids)
        left = URL_LIMIT - len(self._client.base_url) - longest
        return max(0, left // each - 2)

    def _search_list(self, query: Query, ids: Sequence[str]) -> Found:
        found = run(self._hospital, query, ids, self._deadline())
        if found.refused is not None and query.comfort and not found.passing:
            plain = run(self._hospital, query.plain(), ids, self._deadline())
            return plain if plain.refused is None else found
        return found

    def _judge(
        self, part: _Part, ids: Sequence[str], founds: Sequence[Found], before: _Before
    ) -> tuple[list[_Part], list[_Job]]:
        """Take a reply to a list if it can be relied on; else say what is to be done."""
        trust = self._trust[part.shape]
        alone = [_Job(query, who) for query in part.queries for who in part.patients]
        if trust.size == 0:
            return [], alone
        refused = {found.refused for found in founds if found.refused and not found.passing}
        if refused - _TOO_LONG:
            trust.size = 0
            return [], alone
        if any(found.passing for found in founds) and not part.tried:
            return [part._replace(tried=True)], []
        shares: list[_Share] = []
        for query, found in zip(part.queries, founds, strict=True):
            share = self._shared_out(query, found, ids) if _is_whole(query, found) else None
            if share is None:
                trust.fail()
                halves = self._halved(part, trust)
                return halves, [] if halves else alone
            shares.append(share)
        owners = _owners(shares)
        if {ids[0], ids[-1]} <= set(owners) and len(ids) > 1:
            return self._proven(part, trust, shares, owners, alone, before)
        return self._unproven(part, ids, shares, owners, alone, before)

    def _proven(
        self,
        part: _Part,
        trust: _Trust,
        shares: Sequence[_Share],
        owners: Sequence[str],
        alone: list[_Job],
        before: _Before,
    ) -> tuple[list[_Part], list[_Job]]:
        trust.proven = True
        trust.failures = 0
        if not trust.ends:
            trust.witness(owners)
        if part.probe:
            # Two are understood, but not so many: the list was too long for this server.
            trust.size = max(len(part.patients) // 2, 1)
            halves = self._halved(part._replace(probe=()), trust)
            return halves, [] if halves else alone
        self._keep(part, shares, before)
        return [], []

    def _unproven(
        self,
        part: _Part,
        ids: Sequence[str],
        shares: Sequence[_Share],
        owners: Sequence[str],
        alone: list[_Job],
        before: _Before,
    ) -> tuple[list[_Part], list[_Job]]:
        """Judge a reply that does not show that the whole list was understood."""
        trust = self._trust[part.shape]
        if part.probe:
            trust.size = 0
            return [], alone
        if trust.ends and (ids[0], ids[-1]) != trust.ends:
            # Sent before it was known whom to put at the ends.
            return [part._replace(tried=False)], []
        if trust.ends:
            trust.fail()
            return [part._replace(probe=trust.ends, tried=False)], []
        if len(owners) > 1:
            # Some of them are known to have something now: ask again with them at the ends.
            trust.witness(owners)
            return [part._replace(tried=False)], []
        if not owners and self._has_none(part.queries[0]):
            self._keep(part, shares, before)
            return [], []
        return [], alone

    def _keep(
        self,
        part: _Part,
        shares: Sequence[_Share],
        before: _Before,
    ) -> None:
        for query, share in zip(part.queries, shares, strict=True):
            for who in part.patients:
                found = Found(entries=share.get(who, {}))
                before.found[query, who] = found
                if found.entries and self._control is None:
                    self._control = _Job(query, who)

    def _halved(self, part: _Part, trust: _Trust) -> list[_Part]:
        """Divide a part; gives nothing if it is too small for that."""
        count = len(part.patients)
        if count <= _LEAST or trust.size == 0:
            return []
        middle = (count + 1) // 2
        halves = part.patients[:middle], part.patients[middle:]
        return [part._replace(patients=half, probe=(), tried=False) for half in halves]

    def _has_none(self, query: Query) -> bool:
        """Tell whether the server has no resource of a kind at all.

        Asked where a list finds nobody's, in a server that has shown that it understands
        lists elsewhere: two replies that agree.
        """
        if not any(trust.proven for trust in self._trust.values()):
            return False
        shape = (query.kind, query.patient_parameter)
        if shape not in self._none:
            only = (("link:missing", "false"),) if query.patient_parameter == "link" else ()
            self._none[shape] = self._counts_none(query.kind, only)
        return self._none[shape]

    def _counts_none(self, kind: str, only: tuple[tuple[str, str], ...]) -> bool:
        form = "&".join(f"{name}={value}" for name, value in (*only, ("_summary", "count")))
        url = f"{self._client.base_url}/{kind}?{form}"
        try:
            reply = self._client.get(url, deadline=self._deadline())
            if reply.status != HTTPStatus.OK:
                return False
            page = parse_page(reply.body, kind, self._hospital.site.harmless_outcomes, ())
        except (SourceError, NotAPage):
            return False
        return page.total == 0 and not page.holes and not page.entries and not page.following

    def _shared_out(self, query: Query, found: Found, ids: Sequence[str]) -> _Share | None:
        """Share out what was found among the patients; None if something is nobody's of them."""
        asked = set(ids)
        shares: _Share = {}
        others: dict[str, Entry] = {}
        for key, entry in found.entries.items():
            if entry.peek.resource_type != query.kind:
                others[f"{entry.peek.resource_type}/{entry.peek.id}"] = entry
                continue
            owners = self._owners_of(query, entry) & asked
            if not owners:
                return None
            for who in owners:
                shares.setdefault(who, {})[key] = entry
        if others:
            for share in shares.values():
                for entry in list(share.values()):
                    for target in self._targets(entry):
                        if target in others:
                            share[others[target].key] = others[target]
        return shares

    def _targets(self, entry: Entry) -> Iterator[str]:
        for kind, reference in targets(entry.peek):
            found = local_id(self._client.base_url, reference, kind)
            if found is not None:
                yield f"{kind}/{found}"

    def _owners_of(self, query: Query, entry: Entry) -> set[str]:
        base = self._client.base_url
        if query.patient_parameter == "link":
            named = {local_id(base, reference, "Patient") for _, reference in links(entry.peek)}
            return {who for who in named if who is not None}
        head = head_of(entry.item.raw)
        who = local_id(base, subject_key(head.owner()), "Patient") if head else None
        return set() if who is None else {who}

    # Several searches in a batch

    def _search_batches(self, jobs: list[_Job], before: _Before) -> list[_Job]:
        """Search by batch Bundles; gives the searches that are still to be made."""
        if not self._batch or len(jobs) < _LEAST:
            return jobs
        # A batch shows that it was done by finding what is known to be there.
        while self._control is None and jobs:
            first = jobs[0].patient
            self._search_alone([job for job in jobs if job.patient == first], before)
            jobs = [job for job in jobs if job.patient != first]
        batches = [jobs[start : start + _BATCH] for start in range(0, len(jobs), _BATCH)]
        running = [self._pool.submit(self._search_batch, batch) for batch in batches]
        left: list[_Job] = []
        for batch, future in zip(batches, running, strict=True):
            founds = future.result()
            if founds is None:
                self._batch = False
                left += batch
                continue
            for job, found in zip(batch, founds, strict=True):
                if found is None:
                    left.append(job)
                else:
                    self._take(job, found, before)
        return left

    def _search_batch(self, jobs: Sequence[_Job]) -> list[Found | None] | None:
        """Search by one batch; None if the server does not do what a batch asks for.

        None for a search whose answer must be asked for alone.
        """
        control = self._control
        if not self._batch or control is None:
            return None
        deadline = self._deadline()
        named = {job.patient for job in jobs}
        every = [control, *jobs, control]
        urls = [f"{job.query.kind}?{job.query.form(job.patient)}" for job in every]
        try:
            replies = get_all(self._client, urls, deadline)
        except SourceError:
            return [None] * len(jobs)
        if replies is None:
            return None
        founds: list[Found | None] = []
        for job, reply in zip(every, replies, strict=True):
            if reply.status != HTTPStatus.OK:
                founds.append(None)
                continue
            asked = asked_of(self._hospital, job.query, (job.patient,), deadline)
            found = search(self._client, _given(reply), asked)
            if self._others(job, found) & named or not _kinds(found) <= {job.query.kind, *_MORE}:
                return None  # Answers got mixed up, or the patient's name was ignored.
            own = (job.patient,)
            sound = found.complete and self._shared_out(job.query, found, own) is not None
            founds.append(found if sound else None)
        ends = (founds[0], founds[-1])
        if not all(found is not None and found.entries for found in ends):
            return None
        return founds[1:-1]

    def _others(self, job: _Job, found: Found) -> set[str]:
        """List the patients whose resources came though they were not asked for."""
        return {
            owner
            for entry in found.entries.values()
            if entry.peek.resource_type == job.query.kind
            for owners in [self._owners_of(job.query, entry)]
            if job.patient not in owners
            for owner in owners
        }

    # Searches for one patient

    def _search_alone(self, jobs: Sequence[_Job], before: _Before) -> None:
        for job, found in zip(
            jobs, self._patiently(jobs, self._search_one, _passing_found), strict=True
        ):
            self._take(job, found, before)

    def _search_one(self, job: _Job) -> Found:
        return run(self._hospital, job.query, (job.patient,), self._deadline())

    def _take(self, job: _Job, found: Found, before: _Before) -> None:
        """Keep what was found for one patient, and who may stand at the ends of lists."""
        before.found[job.query, job.patient] = found
        if not found.complete or not self._shared_out(job.query, found, (job.patient,)):
            return
        if self._control is None:
            self._control = job
        trust = self._trust.setdefault(job.query.shape, _Trust())
        if not trust.ends:
            trust.known[job.patient] = None
            trust.witness(trust.known)

    # Trying again

    def _patiently(
        self,
        jobs: Sequence[_T],
        do: Callable[[_T], Any],
        passing: Callable[[Any], bool],
    ) -> list[Any]:
        """Do jobs in parallel; those that fail in passing again, once the server answers."""
        answers = [future.result() for future in [self._pool.submit(do, job) for job in jobs]]
        for _ in range(_ATTEMPTS - 1):
            again = [number for number, answer in enumerate(answers) if passing(answer)]
            if not again:
                break
            await_server(self._source)
            futures = [(number, self._pool.submit(do, jobs[number])) for number in again]
            for number, future in futures:
                answers[number] = future.result()
        if any(map(passing, answers)):
            await_server(self._source)
        return answers

    def _deadline(self) -> float:
        return time.monotonic() + self._client.limits.fetch


def _first_queries(plan: TypePlan) -> Iterator[Query]:
    """Give the searches that a visit makes of every patient."""
    yield from plan.narrow
    if plan.start_wide:
        yield from plan.wide


def _by_shape(
    wanted: dict[Query, dict[str, None]],
) -> Iterator[tuple[_Shape, tuple[str, ...], tuple[Query, ...]]]:
    """Join searches that differ in their values only and are wanted of the same patients."""
    groups: dict[tuple[_Shape, tuple[str, ...]], list[Query]] = {}
    for query, ids in wanted.items():
        groups.setdefault((query.shape, tuple(ids)), []).append(query)
    for (shape, patients), queries in groups.items():
        yield shape, patients, tuple(queries)


def _is_whole(query: Query, found: Found) -> bool:
    """Tell whether a reply about several patients is all there is, by all that can be seen."""
    if not found.complete:
        return False
    count = len({name for kind, name, _ in found.entries if kind == query.kind})
    if found.total is not None and found.total != count:
        return False
    # Halves of the list will show.
    return not may_be_ceiling(count)


def may_be_ceiling(count: int) -> bool:
    """Tell whether a number of matches is so round that the server may have stopped there."""
    return count >= _ROUND and (count % _ROUND == 0 or count & (count - 1) == 0)


def _owners(shares: Sequence[_Share]) -> list[str]:
    """List the patients who have any such resource, those with the fewest first."""
    counts: Counter[str] = Counter()
    for share in shares:
        for who, entries in share.items():
            counts[who] += len(entries)
    return sorted(counts, key=lambda who: (counts[who], who))


def _kinds(found: Found) -> set[str]:
    return {kind for kind, _, _ in found.entries}


def _given(reply: Reply) -> Callable[[], Reply]:
    return lambda: reply


def _passing_found(found: Found) -> bool:
    return found.passing


def _passing_reply(reply: Reply | SourceError) -> bool:
    if isinstance(reply, SourceError):
        return not isinstance(reply, TooLarge)
    return reply.status in RETRIED


def await_server(source: ServerSource) -> None:
    """Wait until the server answers; raises SourceError if it does not in the time allowed."""
    limits = source.hospital.client.limits
    until = time.monotonic() + limits.outage
    while True:
        try:
            source.check()
            return
        except SourceError:
            if time.monotonic() >= until:
                raise
        time.sleep(min(_PAUSE, limits.circuit_seconds))
