"""The local engine: reads the source in two passes, evaluates partition by partition, merges.

Every step (a unit of files scanned, routed; a partition evaluated) is done by any of several
processes and kept as a file of its own, so that the result neither depends on how many there
are nor on how often the search was cut short.
"""

from __future__ import annotations

import copy
import gc
import heapq
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import msgspec

from service.criteria.evaluate import evaluate, result_of, steady_until_of
from service.criteria.model import Verdict
from service.criteria.trial import Trial
from service.errors import EligibilityError
from service.facts.build import facts_of
from service.fhir.bundles import NO_REPLY, RECORD_TYPES, Reply, head_of, readings_of, whole
from service.fhir.index import subject_key
from service.fhir.manifest import judge
from service.fhir.record import Item, Message
from service.fhir.source import Fetched, record_of
from service.nightly.directory import Entry, Place, Unit, listing, units_of
from service.nightly.model import Failure, Outcome, Reject, SearchFailed, TypeCount
from service.nightly.names import digests_of, names_of
from service.nightly.partition import (
    REFERRED,
    SHARED,
    UNREADABLE,
    Counted,
    Kept,
    Lost,
    Refer,
    Referred,
    Route,
    Routed,
    decode_record,
    encode_record,
    framed,
    kept_of,
    read_frames,
)
from service.nightly.population import (
    Named,
    Population,
    Scan,
    Scanned,
    diagnosis_of,
    interest_of,
    is_in,
    local,
    resolve,
    wanted_first,
)
from service.nightly.tally import Tally
from service.nightly.work import Work, fingerprint, write_whole
from service.results.json import verdict_line
from service.screening import Screening

Progress = Callable[[str, int, int], None]
_PARTITION = 32 * 1024 * 1024
_PARTITIONS = (16, 512)
# What of a partition is held at a time; a larger one is gone through in rounds.
_HELD = 64 * 1024 * 1024
_WATCH = 0.5
_BUFFER = 16 * 1024
_COLLECT_AFTER = 50_000
_OUTCOME = msgspec.msgpack.Decoder(Outcome)
_NAMED = msgspec.json.Decoder(Named)
_T = TypeVar("_T")
_Step = TypeVar("_Step")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is evaluated, and how: the same for every patient."""

    screening: Screening
    trials: tuple[Trial, ...]
    as_of: date
    keep_records: bool = False


class Found(msgspec.Struct):
    """What came out of one partition (kept as its checkpoint).

    ``records``: evaluated; ``outside``: patients outside a trial's population, with the last
    day (ISO) on which that is certain if their records stay, or None; ``partial``: patients
    of whom not all could be read.
    """

    tallies: list[Tally] = []
    failures: list[Failure] = []
    rejects: list[Reject] = []
    failed: int = 0
    members: int = 0
    records: int = 0
    outside: list[tuple[str, str | None]] = []
    partial: list[str] = []


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search found, before it is written.

    ``outcomes`` can be gone through as often as needed, sorted by patient, then in the
    order of the trials. ``problems`` make the search incomplete, ``notes`` do not.
    ``records``: how many were evaluated. ``outside``: as of ``Found``; ``strangers``: names of
    whom records that bear on a diagnosis are, who isn't there; ``links``: all merges of the
    source (``Population``); ``everyone``: nobody could be left out, since something can't be
    read. ``partial``: patients of whom not all could be read. ``fresh``: those of the outcomes
    that are not taken over from an earlier run, if some are; ``carried``: per trial the
    patients of the others.
    """

    outcomes: Callable[[], Iterator[Outcome]]
    tallies: tuple[Tally, ...]
    failures: tuple[Failure, ...]
    rejects: tuple[Reject, ...]
    problems: tuple[str, ...]
    types: Mapping[str, TypeCount]
    seen: int
    members: int
    evaluated: int
    bytes: int
    notes: tuple[str, ...] = ()
    records: int = 0
    outside: tuple[tuple[str, str | None], ...] = ()
    strangers: tuple[str, ...] = ()
    links: tuple[tuple[str, str, str], ...] = ()
    everyone: bool = False
    partial: tuple[str, ...] = ()
    fresh: Callable[[], Iterator[Outcome]] | None = None
    carried: Mapping[str, Callable[[], Iterator[str]]] = field(default_factory=dict)


class Loader(Protocol):
    """Gives the records of a partition, one by one, and only what needs them."""

    def partitions(self) -> Sequence[int]:
        """List the partitions."""

    def records(self, partition: int) -> Iterator[Fetched]:
        """Go through the records of a partition."""


class Passes(Protocol):
    """Does the passes of a search over files: by processes here, or by a cluster.

    ``entries``: the files; ``units``: how they are shared out; ``partitions``: among how many
    the population is. The names of stages tell a repeated pass from an earlier one.
    """

    entries: Sequence[Entry]
    units: Sequence[Unit]
    partitions: int

    def scan(
        self, first: Sequence[Entry], stage: str
    ) -> tuple[Sequence[Scanned], Callable[[], Iterator[Named]]]:
        """Do the first pass over some files; gives its finds and the Patients."""

    def route(
        self,
        population: Population,
        scanned: frozenset[int],
        types: frozenset[str],
        stage: str,
    ) -> Sequence[Routed]:
        """Do the second pass over all files; gives what was found in each unit."""

    def refer(
        self, holding: Set[int], needed: dict[str, list[int]], stage: str
    ) -> Sequence[Referred]:
        """Do the third pass over the files that hold what is needed."""

    def evaluate(
        self,
        population: Population,
        replies: Sequence[Reply],
        before: Mapping[tuple[int, int], int],
        stage: str,
    ) -> tuple[Sequence[Found], Callable[[], Iterator[Outcome]]]:
        """Evaluate what the passes kept; gives the outcomes sorted by patient."""


# What the processes of one step share: set before they start, read by the steps' functions.
_shared: list[object] = []


def _start(state: object, parent: int, work: Work | None) -> None:
    """Prepare a process of a search: it ends when the one that started it is gone."""
    _shared[:] = [state]
    if work is not None:
        work.unlock()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _settled() -> Iterator[None]:
    """Spare the collector what is there already, and processes that fork off a copy of it.

    Records are freed by counting references; few are left for the collector to find.
    """
    if gc.get_freeze_count():  # A server has settled it for good.
        yield
        return
    threshold = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()


def in_parallel(
    function: Callable[[_Step], _T],
    steps: Sequence[_Step],
    state: object,
    workers: int,
    work: Work | None = None,
) -> Iterator[_T]:
    """Do steps in this process or in several; gives their results as they come.

    ``function`` finds ``state`` by ``shared``. Raises SearchFailed if a process dies.
    """
    if workers <= 1 or len(steps) <= 1:
        _shared[:] = [state]
        with _settled():
            try:
                yield from map(function, steps)
            finally:
                _shared.clear()
        return
    with _settled():
        yield from _in_processes(function, steps, state, workers, work)


def _in_processes(
    function: Callable[[_Step], _T],
    steps: Sequence[_Step],
    state: object,
    workers: int,
    work: Work | None,
) -> Iterator[_T]:
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    given = work if context.get_start_method() == "fork" else None
    pool = ProcessPoolExecutor(
        min(workers, len(steps)), context, _start, (state, os.getpid(), given)
    )
    try:
        pending: set[Future[_T]] = set()
        for step in steps:
            pending.add(pool.submit(function, step))
            if len(pending) >= 4 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise SearchFailed("a process of the search ended before its work was done") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Scanning:
    root: Path
    entries: Sequence[Entry]
    harmless: frozenset[str]
    evaluation: Evaluation
    stage: str
    work: Work


def _scan(unit: Unit) -> int:
    state = _shared[0]
    assert isinstance(state, _Scanning)
    interest = interest_of(state.evaluation.trials, state.evaluation.screening.terms)
    scan = Scan(state.root, state.entries, state.harmless, interest)
    scan.read(unit)
    name = f"{state.stage}/{step_name(unit)}"
    patients = b"".join(msgspec.json.encode(patient) + b"\n" for patient in scan.patients)
    write_whole(state.work.path(f"{name}.patients"), [patients])
    state.work.save(name, scan.scanned())
    return scan.bytes


def step_name(unit: Unit) -> str:
    """Name a unit's files in the working folder."""
    return f"{unit.files[0]:07}-{unit.start:013}"


@dataclass(frozen=True)
class _Routing:
    root: Path
    entries: Sequence[Entry]
    harmless: frozenset[str]
    population: Population
    partitions: int
    scanned: frozenset[int]
    types: frozenset[str]
    stage: str
    work: Work


def _route(unit: Unit) -> int:
    state = _shared[0]
    assert isinstance(state, _Routing)
    route = Route(
        state.root,
        state.entries,
        state.harmless,
        state.population,
        state.partitions,
        state.scanned,
        state.types,
    )
    route.read(unit)
    name = f"{state.stage}/{step_name(unit)}"
    routed, parts = route.routed()
    if parts:
        write_whole(state.work.path(f"{name}.spool"), parts)
    state.work.save(name, routed)
    return route.bytes


@dataclass(frozen=True)
class _Referring:
    root: Path
    entries: Sequence[Entry]
    harmless: frozenset[str]
    needed: dict[str, list[int]]
    stage: str
    work: Work


def _refer(unit: Unit) -> int:
    state = _shared[0]
    assert isinstance(state, _Referring)
    refer = Refer(state.root, state.entries, state.harmless, state.needed)
    refer.read(unit)
    name = f"{state.stage}/{step_name(unit)}"
    parts, index = refer.spool.written()
    if parts:
        write_whole(state.work.path(f"{name}.spool"), parts)
    state.work.save(name, Referred(index, dict(refer.read_by_type)))
    return refer.bytes


@dataclass(frozen=True)
class _Evaluating:
    evaluation: Evaluation
    loader: Loader
    stage: str
    work: Work


def _evaluate(partition: int) -> int:
    state = _shared[0]
    assert isinstance(state, _Evaluating)
    found, outcomes = evaluate_records(state.evaluation, state.loader.records(partition))
    name = f"{state.stage}/{partition:06}"
    write_whole(state.work.path(f"{name}.outcomes"), map(framed, outcomes))
    state.work.save(name, found)
    return found.members


def evaluate_records(
    evaluation: Evaluation, records: Iterable[Fetched]
) -> tuple[Found, list[Outcome]]:
    """Evaluate records for all trials; gives the outcomes sorted by patient."""
    work = _Evaluator(evaluation)
    for fetched in records:
        work.add(fetched)
    return work.found, [work.outcomes[key] for key in sorted(work.outcomes)]


class _Evaluator:
    """Evaluates one partition's records, one after the other."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.found = Found([Tally() for _ in evaluation.trials], [], [])
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        self._diagnoses = [diagnosis_of(trial) for trial in evaluation.trials]
        self._rejects: set[Reject] = set()

    def add(self, fetched: Fetched) -> None:
        """Evaluate one patient; whatever is wrong with the record stays with it."""
        self.found.records += 1
        if any(not each.complete and not each.not_offered for each in fetched.readings.values()):
            self.found.partial.append(fetched.patient)
        try:
            self._evaluate(fetched)
        except EligibilityError as error:
            self._fail(fetched, error.message)
        # What no rule foresaw must not keep the other patients from their verdicts: this is
        # the outermost place at which it concerns one patient alone.
        except Exception as error:  # noqa: BLE001
            self._fail(fetched, f"could not be evaluated ({type(error).__name__})")

    def _fail(self, fetched: Fetched, problem: str) -> None:
        self.found.members += 1
        self.found.failed += 1
        self.found.failures.append(Failure(fetched.patient, None, problem))
        for tally in self.found.tallies:
            tally.failed += 1

    def _evaluate(self, fetched: Fetched) -> None:
        evaluation = self.evaluation
        screening = evaluation.screening
        record = record_of(fetched)
        facts = facts_of(record, screening.terms, screening.site)
        attested = screening.attested(record)
        kept = names = None
        if evaluation.keep_records:
            kept = encode_record(fetched)
            names = digests_of(names_of(record.resolver))
        verdicts: dict[int, Verdict] = {}
        for number, trial in enumerate(evaluation.trials):
            diagnosis = self._diagnoses[number]
            # The other criteria say nothing of somebody outside the population.
            if diagnosis is None or is_in(
                result_of(trial, facts, evaluation.as_of, diagnosis.id, attested)
            ):
                verdicts[number] = evaluate(trial, facts, evaluation.as_of, attested)
            elif evaluation.keep_records:
                until = steady_until_of(trial, facts, evaluation.as_of, diagnosis.id)
                self.found.outside.append((facts.person.reference, until))
        known = False
        member = False
        for number, tally in enumerate(self.found.tallies):
            verdict = verdicts.get(number)
            if verdict is None:
                tally.outside += 1
                continue
            key = (verdict.patient, number)
            if key in self.outcomes:
                known = True  # Under another of its ids: two that name each other as merged.
                continue
            member = True
            tally.add(verdict)
            self.outcomes[key] = Outcome(
                verdict.patient,
                verdict.trial,
                verdict_line(verdict).encode(),
                verdict.code.value,
                verdict.valid_until,
                kept,
                verdict.steady_until,
                names,
            )
        for message in facts.messages:
            self._reject(message, fetched)
        self.found.members += member and not known

    def _reject(self, message: Message, fetched: Fetched) -> None:
        """Keep what of the record could not be used."""
        if message.code not in ("structure", "value"):
            return
        file, line = _file_and_line(message.place or _place_of(message.reference, fetched))
        reject = Reject(file, line, message.type, message.reference, message.text, fetched.patient)
        if reject not in self._rejects:
            self._rejects.add(reject)
            self.found.rejects.append(reject)


def _place_of(reference: str | None, fetched: Fetched) -> str | None:
    for item in fetched.items:
        head = head_of(item.raw)
        if head is not None and f"{head.resource_type}/{head.id}" == reference:
            return item.place
    return None


def _file_and_line(place: str | None) -> tuple[str | None, int | None]:
    name, _, line = (place or "").rpartition(":")
    return (name, int(line)) if name and line.isdecimal() else (place, None)


class FromKept:
    """Puts the records of a partition together from what the passes kept."""

    def __init__(
        self,
        entries: Sequence[Entry],
        population: Population,
        slices: Mapping[int, Sequence[tuple[Path, int, int]]],
        replies: Sequence[Reply],
        before: Mapping[tuple[int, int], int],
    ) -> None:
        self._entries = entries
        self._population = population
        self._slices = slices
        self._before = before
        self._replies = [reply for reply in replies if reply.patient is None]
        self._own: dict[str, list[Reply]] = {}
        for reply in replies:
            if reply.patient is not None:
                self._own.setdefault(reply.patient, []).append(reply)
        self._readings = readings_of(self._replies, set())

    def over(self, slices: Mapping[int, Sequence[tuple[Path, int, int]]]) -> FromKept:
        """Give the same for what was kept elsewhere."""
        other = copy.copy(self)
        other._slices = slices
        return other

    def partitions(self) -> Sequence[int]:
        """List the partitions that hold anything."""
        return sorted(number for number in self._slices if number != SHARED)

    def records(self, partition: int) -> Iterator[Fetched]:
        """Go through the records of a partition, in several rounds if it is large."""
        size = sum(length for _, _, length in self._slices[partition])
        rounds = max(1, -(-size // _HELD))
        shared = [self._item(kept) for kept in self._kept(SHARED)]
        for number in range(rounds):
            yield from self._round(partition, shared, number, rounds)

    def _kept(self, partition: int) -> Iterator[Kept]:
        for path, offset, length in self._slices.get(partition, ()):
            with path.open("rb") as file:
                file.seek(offset)
                yield from kept_of(file.read(length))

    def _round(
        self, partition: int, shared: Sequence[Item], number: int, rounds: int
    ) -> Iterator[Fetched]:
        group_of = self._population.group_of
        referred: dict[str, list[Item]] = {}
        patients: dict[int, list[Item]] = {}
        owned: dict[int, list[Item]] = {}
        groups: set[int] = set()
        for kept in self._kept(partition):
            if kept.owner is None:
                referred.setdefault(kept.name or "", []).append(self._item(kept))
            elif group_of[kept.owner] % rounds == number:
                groups.add(group_of[kept.owner])
                held = patients if kept.patient else owned
                held.setdefault(kept.owner, []).append(self._item(kept))
        for group in sorted(groups):
            items: list[Item] = []
            for key in self._population.groups[group]:
                items += patients.get(key, ())
                items += owned.get(key, ())
            if referred:
                items += self._referred(items, referred)
            items += shared
            yield from self._fetched(group, tuple(items))

    def _referred(
        self, items: Sequence[Item], referred: Mapping[str, Sequence[Item]]
    ) -> list[Item]:
        found: dict[Item, None] = {}
        for item in items:
            head = head_of(item.raw)
            for reference in (head.medication_reference, head.study) if head else ():
                if reference is not None and reference.reference:
                    name = local(subject_key(reference), self._population.bases)
                    found.update(dict.fromkeys(referred.get(name, ())))
        return list(found)

    def _fetched(self, group: int, items: tuple[Item, ...]) -> Iterator[Fetched]:
        population = self._population
        keys = [population.keys[number] for number in population.groups[group]]
        own = [reply for key in keys for reply in self._own.get(key, ())]
        readings = self._readings
        if own:
            readings = readings_of([*self._replies, *own], set(keys))
        for asked in population.asked[group]:
            yield Fetched(asked, items, readings, base_url=population.base_url)

    def _item(self, kept: Kept) -> Item:
        return Item(kept.raw, kept.full_url, place_text(kept.place, self._entries, self._before))


def place_text(
    place: Place, entries: Sequence[Entry], before: Mapping[tuple[int, int], int]
) -> str:
    """Write file and line; ``before``: the lines of a file that lie before a unit."""
    line = place.line + before.get((place.file, place.unit), 0)
    return f"{entries[place.file].name}:{line}"


class FromRecords:
    """Takes records that are on disk already, a file per partition (``encode_record``)."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def partitions(self) -> Sequence[int]:
        """List the files' numbers."""
        return range(len(self._files))

    def records(self, partition: int) -> Iterator[Fetched]:
        """Go through the records of a file."""
        with self._files[partition].open("rb") as file:
            yield from map(decode_record, file)


@dataclass(frozen=True)
class Engine:
    """A search as it is run here: what is evaluated, where it works, by how many processes."""

    evaluation: Evaluation
    work: Work
    workers: int
    progress: Progress

    def search_records(self, files: Sequence[Path], *, seen: int) -> Searched:
        """Evaluate the patients whose records are on disk already."""
        loader = FromRecords(files)
        founds = self.evaluated(loader, "evaluate")
        return self.searched(loader, "evaluate", founds, seen=seen)

    def search_directory(self, root: Path) -> Searched:
        """Search a directory of files; raises SourceError, SearchFailed."""
        passes = _Here(self, root)
        searched = search_files(self.evaluation, passes)
        # The passes read them one after the other, and must have read the same. A file that
        # came meanwhile is one for the next search.
        now = {entry.name: entry[2:] for entry in listing(root)}
        if any(now.get(entry.name) != entry[2:] for entry in passes.entries):
            raise SearchFailed(
                "files of the source changed while they were read; the same command begins anew"
            )
        return searched

    def steps(
        self,
        function: Callable[[Unit], int],
        stage: str,
        label: str,
        units: Sequence[Unit],
        entries: Sequence[Entry],
        state: object,
    ) -> None:
        """Do the units that are not done yet."""
        total = sum(map(_size_of(entries), units))
        todo = [unit for unit in units if not self.work.has(f"{stage}/{step_name(unit)}")]
        done = total - sum(map(_size_of(entries), todo))
        self.progress(label, done, total)
        for size in in_parallel(function, todo, state, self.workers, self.work):
            done += size
            self.progress(label, min(done, total), total)
        self.work.note_time()

    def evaluated(self, loader: Loader, stage: str) -> list[Found]:
        """Evaluate the partitions that are not done yet."""
        partitions = loader.partitions()
        todo = [each for each in partitions if not self.work.has(f"{stage}/{each:06}")]
        state = _Evaluating(self.evaluation, loader, stage, self.work)
        done = len(partitions) - len(todo)
        self.progress("evaluating", done, len(partitions))
        for _ in in_parallel(_evaluate, todo, state, self.workers, self.work):
            done += 1
            self.progress("evaluating", done, len(partitions))
        self.work.note_time()
        return [self.done_step(f"{stage}/{each:06}", Found) for each in partitions]

    def outcomes(self, loader: Loader, stage: str) -> Callable[[], Iterator[Outcome]]:
        """Give the partitions' outcomes, sorted by patient, as often as needed."""
        paths = [self.work.path(f"{stage}/{each:06}.outcomes") for each in loader.partitions()]
        order = {trial.id: number for number, trial in enumerate(self.evaluation.trials)}
        return lambda: merged(paths, order)

    def done_step(self, name: str, kind: type[_T]) -> _T:
        """Read a step's result back; raises SearchFailed if it is gone."""
        found = self.work.load(name, kind)
        if found is None:
            raise SearchFailed("the working folder was changed while the search ran")
        return found

    def searched(
        self,
        loader: Loader,
        stage: str,
        founds: Sequence[Found],
        *,
        seen: int,
        rejects: Sequence[Reject] = (),
        problems: Sequence[str] = (),
        notes: Sequence[str] = (),
        types: Mapping[str, TypeCount] | None = None,
        size: int = 0,
    ) -> Searched:
        """Put together what the partitions gave."""
        return joined(
            self.evaluation,
            founds,
            self.outcomes(loader, stage),
            seen=seen,
            rejects=rejects,
            problems=problems,
            notes=notes,
            types=types,
            size=size,
        )


def joined(
    evaluation: Evaluation,
    founds: Sequence[Found],
    outcomes: Callable[[], Iterator[Outcome]],
    *,
    seen: int,
    rejects: Sequence[Reject] = (),
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
    types: Mapping[str, TypeCount] | None = None,
    size: int = 0,
) -> Searched:
    """Put together what the partitions gave, whoever evaluated them."""
    tallies = [Tally() for _ in evaluation.trials]
    for found in founds:
        for tally, other in zip(tallies, found.tallies, strict=True):
            tally.join(other)
    return Searched(
        outcomes=outcomes,
        tallies=tuple(tallies),
        failures=tuple(
            sorted(
                (failure for found in founds for failure in found.failures),
                key=lambda failure: failure.patient,
            )
        ),
        rejects=in_order((*rejects, *(each for found in founds for each in found.rejects))),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(dict.fromkeys(notes)),
        types=types or {},
        seen=seen,
        members=sum(found.members for found in founds),
        evaluated=sum(found.members - found.failed for found in founds),
        bytes=size,
        records=sum(found.records for found in founds),
        partial=tuple(sorted({each for found in founds for each in found.partial})),
        outside=tuple(sorted({each for found in founds for each in found.outside}, key=str)),
    )


def _size_of(entries: Sequence[Entry]) -> Callable[[Unit], int]:
    def size(unit: Unit) -> int:
        if len(unit.files) > 1 or (unit.start == 0 and unit.end is None):
            return sum(entries[number].size for number in unit.files)
        end = entries[unit.files[0]].size if unit.end is None else unit.end
        return end - unit.start

    return size


def in_order(rejects: Iterable[Reject]) -> tuple[Reject, ...]:
    """Sort rejects by place, each once: what is nobody's was met with every patient."""
    found: dict[tuple[str, int, str, str, str], Reject] = {}
    listed = list(rejects)
    told = {(each.file, each.line, each.type) for each in listed if each.problem != UNREADABLE}
    for each in listed:
        # The patients' records say more of why it can't be read.
        if each.problem == UNREADABLE and (each.file, each.line, each.type) in told:
            continue
        key = (
            each.file or "",
            each.line or 0,
            each.type or "",
            each.reference or "",
            each.problem,
        )
        known = found.get(key)
        if known is None:
            found[key] = each
        elif known.patient != each.patient:
            found[key] = replace(known, patient=None)
    return tuple(found[key] for key in sorted(found))


def merged(paths: Sequence[Path], order: Mapping[str, int]) -> Iterator[Outcome]:
    """Merge the partitions' outcomes, each sorted by patient."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=_BUFFER)) for path in paths]
        readers = [map(_OUTCOME.decode, read_frames(file)) for file in files]
        yield from heapq.merge(*readers, key=lambda each: (each.patient, order[each.trial]))


def _without_patient(population: Population) -> Iterator[str]:
    """Say how many may have the disease of whom there is no Patient to evaluate."""
    if population.missing:
        yield (
            f"Patient: {population.missing} whom records of the diagnosis name are not in the "
            "source, and could not be evaluated"
        )
    if population.nobodys:
        yield (
            f"Patient: {population.nobodys} records of the diagnosis name nobody, and may be of "
            "patients who are not listed"
        )


class _Here:
    """Does the passes over a directory by processes of this machine, each step kept."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self.engine = engine
        self.work = engine.work
        self.root = root
        self.harmless = engine.evaluation.screening.site.search.harmless_outcomes
        self.entries: Sequence[Entry] = listing(root)
        self.units: Sequence[Unit] = units_of(self.entries)
        size = sum(entry.size for entry in self.entries)
        low, high = _PARTITIONS
        self.partitions = min(max(low, -(-size // _PARTITION)), high)
        # Where what was kept of each partition lies: file, offset, length.
        self.slices: dict[int, list[tuple[Path, int, int]]] = {}

    def scan(
        self, first: Sequence[Entry], stage: str
    ) -> tuple[Sequence[Scanned], Callable[[], Iterator[Named]]]:
        """Do the first pass."""
        units = units_of(first)
        state = _Scanning(
            self.root, self.entries, self.harmless, self.engine.evaluation, stage, self.work
        )
        self.engine.steps(_scan, stage, "finding the population", units, self.entries, state)
        names = [f"{stage}/{step_name(unit)}" for unit in units]

        def patients() -> Iterator[Named]:
            for name in names:
                yield from read_named(self.work.path(f"{name}.patients"))

        return [self.engine.done_step(name, Scanned) for name in names], patients

    def route(
        self,
        population: Population,
        scanned: frozenset[int],
        types: frozenset[str],
        stage: str,
    ) -> Sequence[Routed]:
        """Do the second pass."""
        state = _Routing(
            self.root,
            self.entries,
            self.harmless,
            population,
            self.partitions,
            scanned,
            types,
            stage,
            self.work,
        )
        self.engine.steps(_route, stage, "reading records", self.units, self.entries, state)
        names = [f"{stage}/{step_name(unit)}" for unit in self.units]
        routed = [self.engine.done_step(name, Routed) for name in names]
        self.slices = {}
        for name, each in zip(names, routed, strict=True):
            self._keep(name, each.index)
        return routed

    def _keep(self, name: str, index: Mapping[int, tuple[int, int]]) -> None:
        path = self.work.path(f"{name}.spool")
        for partition, (offset, length) in index.items():
            self.slices.setdefault(partition, []).append((path, offset, length))

    def refer(
        self, holding: Set[int], needed: dict[str, list[int]], stage: str
    ) -> Sequence[Referred]:
        """Do the third pass."""
        units = units_of([entry for entry in self.entries if entry.number in holding])
        state = _Referring(self.root, self.entries, self.harmless, needed, stage, self.work)
        # Places are told by the unit, so the units' numbers must be those of the reading.
        numbers = {(unit.files, unit.start): unit.number for unit in self.units}
        units = [unit._replace(number=numbers.get((unit.files, unit.start), -1)) for unit in units]
        self.engine.steps(_refer, stage, "reading what they refer to", units, self.entries, state)
        referred = []
        for unit in units:
            name = f"{stage}/{step_name(unit)}"
            found = self.engine.done_step(name, Referred)
            self._keep(name, found.index)
            referred.append(found)
        return referred

    def evaluate(
        self,
        population: Population,
        replies: Sequence[Reply],
        before: Mapping[tuple[int, int], int],
        stage: str,
    ) -> tuple[Sequence[Found], Callable[[], Iterator[Outcome]]]:
        """Evaluate partition by partition."""
        loader = FromKept(self.entries, population, self.slices, replies, before)
        founds = self.engine.evaluated(loader, stage)
        return founds, self.engine.outcomes(loader, stage)


def read_named(path: Path) -> Iterator[Named]:
    """Read Patients back that the first pass found."""
    with path.open("rb") as file:
        yield from map(_NAMED.decode, file)


def search_files(evaluation: Evaluation, passes: Passes) -> Searched:
    """Search files by whoever does the passes; raises SearchFailed."""
    return _FileSearch(evaluation, passes).run()


class _FileSearch:
    """One search of files: which passes are made, and what is made of their finds."""

    def __init__(self, evaluation: Evaluation, passes: Passes) -> None:
        self.evaluation = evaluation
        self.passes = passes
        self.entries = passes.entries
        self.units = passes.units
        self.interest = interest_of(evaluation.trials, evaluation.screening.terms)
        # Files that the first pass reads although their names show another type.
        self.extra: frozenset[int] = frozenset()
        self.everyone = not self.interest.sets

    def run(self) -> Searched:
        """Read what is needed, again if what was found shows that more is."""
        while True:
            scanned = self._scan()
            stage = f"{self._stage()}-{'all' if scanned.everyone else 'some'}"
            routed = self._route(scanned, stage)
            surprises = frozenset(file for each in routed for file in each.surprises)
            if surprises:
                self.extra |= surprises
                continue
            replies = self._replies(routed)
            if not scanned.everyone and self._doubtful(replies):
                self.everyone = True
                continue
            return self._evaluate(scanned, stage, routed, replies)

    def _stage(self) -> str:
        return fingerprint(sorted(self.extra))[:8] if self.extra else "plain"

    def _first(self) -> list[Entry]:
        return [
            entry
            for entry in self.entries
            if entry.number in self.extra or wanted_first(entry, self.interest.sets)
        ]

    def _scan(self) -> Population:
        scans, patients = self.passes.scan(self._first(), f"scan-{self._stage()}")
        # Each NDJSON file claims to be complete for everybody, also those not read yet.
        spoken = any(entry.by_lines for entry in self.entries)
        return resolve(scans, patients, everyone=self.everyone, spoken_of_all=spoken)

    def _route(self, population: Population, stage: str) -> Sequence[Routed]:
        return self.passes.route(
            population,
            frozenset(entry.number for entry in self._first()),
            frozenset(("Patient", *self.interest.sets)),
            f"route-{stage}",
        )

    def _replies(self, routed: Sequence[Routed]) -> list[Reply]:
        """Judge what was read completely, over all files together."""
        before = self._before(routed)
        replies: dict[Reply, None] = {}
        files: dict[str, dict[str, int]] = {}
        for each in routed:
            replies.update(dict.fromkeys(each.replies))
            replies.update(
                dict.fromkeys(
                    reply for lost in each.lost if (reply := self._reply(lost, before)) is not None
                )
            )
            for number, holds in each.holds.items():
                name = PurePosixPath(self.entries[number].name).name.removesuffix(".gz")
                counts = files.setdefault(name, {})
                for kind, count in holds.items():
                    counts[kind] = counts.get(kind, 0) + count
        manifests = [manifest for each in routed for manifest in each.manifests]
        return [*whole(replies), *judge(manifests, files, self.evaluation.screening.site.search)]

    def _reply(self, lost: Lost, before: Mapping[tuple[int, int], int]) -> Reply | None:
        if lost.problem == UNREADABLE:
            return None  # The resource itself goes with every record.
        if lost.kind is not None and lost.kind not in RECORD_TYPES:
            return None
        types = None if lost.kind is None else frozenset((lost.kind,))
        return Reply(types=types, problem=lost.problem, place=self._at(lost, before))

    def _at(self, lost: Lost, before: Mapping[tuple[int, int], int]) -> str:
        if lost.place is None:
            return self.entries[lost.file].name
        return place_text(lost.place, self.entries, before)

    def _doubtful(self, replies: Sequence[Reply]) -> bool:
        """Tell whether a type that tells the diagnosis was not read completely of everyone."""
        readings = readings_of([reply for reply in replies if reply.patient is None], set())
        spoken = any(reply.patient is None for reply in replies)
        return spoken and any(
            readings[kind].problem is not None and readings[kind].problem != NO_REPLY
            for kind in self.interest.sets
        )

    def _evaluate(
        self,
        population: Population,
        stage: str,
        routed: Sequence[Routed],
        replies: Sequence[Reply],
    ) -> Searched:
        referred = self._refer(stage, routed)
        before = self._before(routed)
        founds, outcomes = self.passes.evaluate(population, replies, before, f"evaluate-{stage}")
        wanted = {kind for trial in self.evaluation.trials for kind in trial.wanted.codes} | {
            "Patient",
            *REFERRED,
        }
        searched = joined(
            self.evaluation,
            founds,
            outcomes,
            seen=population.seen,
            rejects=self._rejects(routed, before),
            problems=[*_without_patient(population), *self._problems(replies, wanted)],
            notes=list(self._notes(replies, wanted)),
            types=self._types(routed, referred),
            size=sum(each.bytes for each in routed),
        )
        return replace(
            searched,
            strangers=population.strangers,
            links=population.links,
            everyone=population.everyone,
        )

    def _refer(self, stage: str, routed: Sequence[Routed]) -> dict[str, int]:
        """Fetch what the kept records refer to; gives how many were read by type."""
        needed: dict[str, set[int]] = {}
        for each in routed:
            for name, partitions in each.refers.items():
                needed.setdefault(name, set()).update(partitions)
        holding = {
            number
            for each in routed
            for number, holds in each.holds.items()
            if holds.keys() & set(REFERRED)
        }
        read: dict[str, int] = {}
        if not needed or not holding:
            return read
        sought = {name: sorted(partitions) for name, partitions in needed.items()}
        for found in self.passes.refer(holding, sought, f"refer-{stage}"):
            for kind, count in found.read.items():
                read[kind] = read.get(kind, 0) + count
        return read

    def _before(self, routed: Sequence[Routed]) -> dict[tuple[int, int], int]:
        before: dict[tuple[int, int], int] = {}
        lines: dict[int, int] = {}
        for unit, each in zip(self.units, routed, strict=True):
            for number in unit.files:
                before[number, unit.number] = lines.get(number, 0)
                lines[number] = lines.get(number, 0) + each.lines.get(number, 0)
        return before

    def _rejects(
        self, routed: Sequence[Routed], before: Mapping[tuple[int, int], int]
    ) -> list[Reject]:
        found: list[Reject] = []
        for each in routed:
            for lost in each.lost:
                file, line = _file_and_line(self._at(lost, before))
                found.append(Reject(file, line, lost.kind, None, lost.problem))
        return found

    def _problems(self, replies: Sequence[Reply], wanted: set[str]) -> Iterator[str]:
        for reply in replies:
            if reply.not_offered:
                continue
            if reply.problem and (reply.types is None or reply.types & wanted):
                named = sorted(reply.types & wanted) if reply.types is not None else ()
                kinds = f"{', '.join(named)}: " if named else ""
                where = f" ({reply.place})" if reply.place else ""
                yield f"{kinds}{reply.problem}{where}"

    def _notes(self, replies: Sequence[Reply], wanted: set[str]) -> Iterator[str]:
        """Say which types the server lacks: nothing was lost, but nothing is proven of them."""
        for reply in replies:
            if reply.not_offered and reply.problem and reply.types and reply.types & wanted:
                yield f"{', '.join(sorted(reply.types))}: {reply.problem}"

    def _types(self, routed: Sequence[Routed], referred: Mapping[str, int]) -> dict[str, TypeCount]:
        counts: dict[str, Counted] = {}
        files: dict[str, set[int]] = {}
        for each in routed:
            for kind, counted in each.types.items():
                sum_ = counts.setdefault(kind, Counted(skipped={}))
                sum_.bytes += counted.bytes
                sum_.lines += counted.lines
                sum_.read += counted.read
                for why, count in counted.skipped.items():
                    sum_.skip(why, count)
            for number, holds in each.holds.items():
                for kind in holds:
                    files.setdefault(kind, set()).add(number)
        for kind, count in referred.items():
            counts[kind].read += count
            counts[kind].skipped["not-referred-to"] -= count
        return {
            kind: TypeCount(
                len(files.get(kind, ())),
                counted.bytes,
                counted.lines,
                counted.read,
                {why: count for why, count in sorted(counted.skipped.items()) if count},
            )
            for kind, counted in sorted(counts.items())
        }
