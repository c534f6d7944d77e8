"""The Spark engine: the passes and the evaluation of the local engine, done by a cluster.

Files are read by Spark, from wherever it can read. Its executors lay what they were given of
a file out in a folder of their own and go through it with the very readers of the local
engine; what is kept of the population goes to whoever evaluates it by Spark's shuffle, so
that no disk needs to be shared. Only what is small, or is written anyway, comes to the driver.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import RDD, StorageLevel
from pyspark.errors import PySparkException
from pyspark.serializers import NoOpSerializer
from pyspark.sql import SparkSession

from service.errors import SourceError
from service.fhir.bundles import Reply
from service.fhir.files import FORM, has_ending, may_hold_data
from service.fhir.index import kind_in
from service.nightly import directory
from service.nightly.directory import Entry, Unit, listing, units_of
from service.nightly.engine import (
    Evaluation,
    Found,
    FromKept,
    Progress,
    evaluate_records,
    read_named,
)
from service.nightly.model import Outcome, SearchFailed
from service.nightly.partition import (
    SHARED,
    SHARED_LIMIT,
    UNREADABLE,
    Counted,
    Lost,
    Refer,
    Referred,
    Route,
    Routed,
    framed,
    kept_of,
    many_unreadable,
    read_frames,
)
from service.nightly.population import Named, Population, Scan, Scanned, interest_of
from service.nightly.work import Work, write_whole

# Up to this size a file is handed to an executor in one piece, which is fastest; a larger
# one, if it is plain NDJSON, line by line in stretches.
WHOLE = 128 * 1024 * 1024
# Up to this size the driver goes itself through a file that Spark does not look at.
_HERE = WHOLE
# Nothing larger fits into one row of Spark, however much memory there is.
_ROW = 1024 * 1024 * 1024
_PARTITION = 64 * 1024 * 1024
_MOST_PARTITIONS = 8192
# Slots of what a pass gives beside the population's partitions: what it found in short, and
# the Patients it met.
_HEAD = -2
_PATIENTS = -3
_GLOB = frozenset("{}[]*?\\")
# At most so many parts come to the driver, each by a job of its own.
_BROUGHT = 256
_OPEN_COST = 1024 * 1024
# A row is the file's URL, where in it the content starts, and the content: a whole file, or a
# line as it came, with its end. In one array of bytes, which Spark hands on as it is.
_HEAD_OF_ROW = (
    r"cast(concat(_metadata.file_path, '\n', _metadata.file_block_start, '\n') as binary)"
)
_FILE_ROW = f"concat({_HEAD_OF_ROW}, content)"
_LINE_ROW = f"concat({_HEAD_OF_ROW}, cast(value as binary), X'0A')"
_TOO_LARGE = "the file is too large to be read whole by Spark"
_UNREAD = "the file can't be read by Spark"
_NOT_WHOLE = "the file was not read whole by Spark"
_OUTCOME = msgspec.msgpack.Decoder(Outcome)
_T = TypeVar("_T")


class Piece(NamedTuple):
    """What a pass gives of one unit's part of a file: one slot of it.

    ``size``: bytes of the file that were read for it (with its ``_HEAD`` only).
    """

    slot: int
    file: int
    start: int
    data: bytes
    size: int = 0


class Pass(Protocol):
    """One of the passes over the files, as executors do it."""

    def read(self, root: Path, unit: Unit) -> Iterator[tuple[int, bytes]]:
        """Go through a unit of the files under ``root``; gives slots and their contents."""


@dataclass(frozen=True)
class _Scanning:
    entries: Sequence[Entry]
    harmless: frozenset[str]
    evaluation: Evaluation

    def read(self, root: Path, unit: Unit) -> Iterator[tuple[int, bytes]]:
        interest = interest_of(self.evaluation.trials, self.evaluation.screening.terms)
        scan = Scan(root, self.entries, self.harmless, interest)
        scan.read(unit)
        yield _HEAD, msgspec.json.encode(scan.scanned())
        if scan.patients:
            lines = (msgspec.json.encode(patient) + b"\n" for patient in scan.patients)
            yield _PATIENTS, b"".join(lines)


@dataclass(frozen=True)
class _Routing:
    entries: Sequence[Entry]
    harmless: frozenset[str]
    population: Population
    partitions: int
    scanned: frozenset[int]
    types: frozenset[str]

    def read(self, root: Path, unit: Unit) -> Iterator[tuple[int, bytes]]:
        route = Route(
            root,
            self.entries,
            self.harmless,
            self.population,
            self.partitions,
            self.scanned,
            self.types,
        )
        route.read(unit)
        routed, parts = route.routed()
        slots = sorted(routed.index)
        routed.index = {}
        yield _HEAD, msgspec.json.encode(routed)
        yield from zip(slots, map(bytes, parts), strict=True)


@dataclass(frozen=True)
class _Referring:
    entries: Sequence[Entry]
    harmless: frozenset[str]
    needed: dict[str, list[int]]

    def read(self, root: Path, unit: Unit) -> Iterator[tuple[int, bytes]]:
        refer = Refer(root, self.entries, self.harmless, self.needed)
        refer.read(unit)
        parts, index = refer.spool.written()
        yield _HEAD, msgspec.json.encode(Referred({}, dict(refer.read_by_type)))
        yield from zip(sorted(index), map(bytes, parts), strict=True)


# What travels to the executors.


def _proxy(content: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(content)


class _Pickler(pickle.Pickler):
    """Pickles mappings that only protect others from being written to as well."""

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, MappingProxyType):
            return _proxy, (dict(obj),)
        return NotImplemented


def pickled(value: object) -> bytes:
    """Pickle a state that all steps share."""
    target = io.BytesIO()
    _Pickler(target, pickle.HIGHEST_PROTOCOL).dump(value)
    return target.getvalue()


# The state that the process at hand worked with last: its steps share one.
_held: dict[str, Any] = {}


@dataclass(frozen=True)
class _Shipped:
    """A state on its way to the executors; unpickled once per process and pass."""

    broadcast: Any
    name: str

    def get(self) -> Any:
        if self.name not in _held:
            _held.clear()
            # It was written by this search's own driver.
            _held[self.name] = pickle.loads(self.broadcast.value)  # noqa: S301
        return _held[self.name]


@dataclass(frozen=True)
class _Reading:
    """A pass and the files it is for; ``numbers`` of files by plain URL, ``units`` of a file."""

    work: Pass
    entries: Sequence[Entry]
    numbers: Mapping[str, int]
    units: Mapping[int, Sequence[Unit]]

    def place(self, head: bytes) -> tuple[int, int]:
        """Give the file's number, and where in it the content starts."""
        url, start, _ = head.decode().split("\n")
        return self.numbers[plain(url)], int(start)


def _whole_files(shipped: _Shipped, rows: Iterable[bytes]) -> Iterator[Piece]:
    """Go through files that came in one piece each, unit by unit."""
    reading: _Reading = shipped.get()
    for row in rows:
        head = _head_of(row)
        number, _ = reading.place(head)
        with TemporaryDirectory() as folder:
            content = memoryview(row)[len(head) :]
            size = _place(Path(folder), reading.entries[number]).write_bytes(content)
            for unit in reading.units[number]:
                own = unit._replace(files=(number,))
                yield from _pieces(reading.work, Path(folder), own, unit.start, size)
                size = 0


def _stretches(shipped: _Shipped, rows: Iterable[bytes]) -> Iterator[Piece]:
    """Go through stretches of large files, which came line by line, each with its end."""
    reading: _Reading = shipped.get()
    for head, lines in groupby(rows, key=_head_of):
        number, start = reading.place(head)
        size = 0
        with TemporaryDirectory() as folder:
            with _place(Path(folder), reading.entries[number]).open("wb") as file:
                # After an empty line nothing is taken for the beginning of a file.
                file.write(b"\n" if start else b"")
                for line in lines:
                    size += file.write(line[len(head) :])
            unit = next(unit for unit in reading.units[number] if unit.start == start)
            own = unit._replace(start=1 if start else 0, end=None)
            yield from _pieces(reading.work, Path(folder), own, start, size)


def _head_of(row: bytes) -> bytes:
    """Give what comes before a row's content: two lines, of the file's URL and the start."""
    return row[: row.index(b"\n", row.index(b"\n") + 1) + 1]


def plain(url: str) -> str:
    """Bring a URL without a host to one form: Spark writes both ``file:/`` and ``file:///``."""
    return url.replace(":///", ":/", 1)


def _place(folder: Path, entry: Entry) -> Path:
    path = folder / entry.name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _pieces(work: Pass, root: Path, unit: Unit, start: int, size: int) -> Iterator[Piece]:
    for slot, data in work.read(root, unit):
        yield Piece(slot, unit.files[0], start, data, size if slot == _HEAD else 0)


# Where something kept came from: pass, file, start. The local engine reads in this order.
_Origin = tuple[int, int, int]


class _Evaluating:
    """Evaluates partitions, from what was kept of them in whatever order it comes."""

    def __init__(self, evaluation: Evaluation, loader: FromKept, shared: Sequence[bytes]) -> None:
        self.evaluation = evaluation
        self.loader = loader
        self.shared = shared

    def evaluate(
        self, partition: int, kept: Iterable[tuple[_Origin, bytes]]
    ) -> tuple[Found, list[Outcome]] | None:
        """Evaluate a partition; None if there is nothing in it."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "kept"
            places: list[tuple[_Origin, int, int]] = []
            shared: list[tuple[Path, int, int]] = []
            with path.open("wb") as file:
                for origin, data in kept:
                    places.append((origin, file.tell(), file.write(data)))
                for data in self.shared:
                    shared.append((path, file.tell(), file.write(data)))
            if not places:
                return None
            own = [(path, offset, length) for _, offset, length in sorted(places)]
            loader = self.loader.over({partition: own, SHARED: shared})
            return evaluate_records(self.evaluation, loader.records(partition))


# A partition's counts have no key; its outcomes are sorted by patient and trial.
_Key = tuple[str, int]


def _evaluated(
    shipped: _Shipped, partition: int, rows: Iterable[tuple[int, tuple[_Origin, bytes]]]
) -> Iterator[tuple[_Key | None, bytes]]:
    """Evaluate a partition on an executor."""
    state: _Evaluating = shipped.get()
    given = state.evaluate(partition, (kept for _, kept in rows))
    if given is None:
        return
    found, outcomes = given
    order = {trial.id: number for number, trial in enumerate(state.evaluation.trials)}
    yield None, msgspec.json.encode(found)
    for outcome in outcomes:
        yield (outcome.patient, order[outcome.trial]), framed(outcome)


def _to_shuffle(number: int, piece: Piece) -> tuple[int, tuple[_Origin, bytes]]:
    return piece.slot, ((number, piece.file, piece.start), piece.data)


def _is_kept(piece: Piece) -> bool:
    return piece.slot >= 0


def _is_slot(slot: int, piece: Piece) -> bool:
    return piece.slot == slot


def _same(partition: int) -> int:
    return partition


def _has_key(row: tuple[_Key | None, bytes]) -> bool:
    return row[0] is not None


# What the driver does.


@contextmanager
def guarded() -> Iterator[None]:
    """Say that Spark failed: its own log has the details, which may hold patients' data."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise SearchFailed(
            f"Spark could not do its part ({type(error).__name__}); its log says more"
        ) from error


@contextmanager
def session() -> Iterator[SparkSession]:
    """Give the Spark session at hand, or one made for the time being by Spark's own settings.

    Without a master set, all processors of this machine are used. Raises SearchFailed if
    Spark can't be started.
    """
    known = SparkSession.getActiveSession()
    if known is not None:
        yield known
        return
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        # Not started by spark-submit, which has its own way to name the executors' Python.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with guarded():
        builder = SparkSession.builder.appName("eligibility")
        made = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    try:
        yield made
    finally:
        made.stop()


@dataclass(frozen=True)
class Files:
    """The files of a source: as entries, and where Spark finds each.

    ``paths`` as Spark takes them, ``urls`` as it names them, both by the file's number;
    ``folder``: the source, if it is of this machine.
    """

    entries: Sequence[Entry]
    paths: Sequence[str]
    urls: Sequence[str]
    folder: Path | None


def files_of(spark: SparkSession, source: str) -> Files:
    """List a source's files: a folder or file of this machine, or any URL that Spark reads.

    Raises SourceError.
    """
    jvm: Any = spark.sparkContext._jvm
    path_of = jvm.org.apache.hadoop.fs.Path
    if "://" not in source:
        folder = Path(source)
        entries = listing(folder)
        base = (folder if folder.is_dir() else folder.parent).absolute()
        paths = [path_of(f"file://{base / entry.name}") for entry in entries]
        return Files(
            entries,
            [path.toString() for path in paths],
            [path.toUri().toString() for path in paths],
            folder,
        )
    found: list[tuple[PurePosixPath, Any]] = []
    try:
        root = path_of(source)
        system = root.getFileSystem(_hadoop(spark))
        base_name = system.makeQualified(root).toString().rstrip("/")
        if system.getFileStatus(root).isFile():
            base_name = base_name.rpartition("/")[0]
        listed = system.listFiles(root, True)
        while listed.hasNext():
            status = listed.next()
            name = PurePosixPath(status.getPath().toString().removeprefix(base_name + "/"))
            hidden = any(part.startswith(".") for part in name.parts)
            if may_hold_data(name.name) and not hidden:
                found.append((name, status))
    except Py4JJavaError as error:
        raise SourceError(f"Spark can't list the source ({_java_class(error)})") from error
    if not any(has_ending(name.name) for name, _ in found):
        raise SourceError("no FHIR files (.json, .ndjson, .gz) in the source")
    found.sort(key=itemgetter(0))
    return Files(
        [
            Entry(number, str(name), status.getLen(), status.getModificationTime())
            if has_ending(name.name)
            else Entry(number, str(name), 0, status.getModificationTime(), FORM)
            for number, (name, status) in enumerate(found)
        ],
        [status.getPath().toString() for _, status in found],
        [status.getPath().toUri().toString() for _, status in found],
        None,
    )


def _hadoop(spark: SparkSession) -> Any:
    context: Any = spark.sparkContext
    return context._jsc.hadoopConfiguration()


def _java_class(error: Any) -> str:
    return str(error.java_exception.getClass().getSimpleName())


class OnSpark:
    """Does the passes of a search by Spark."""

    def __init__(
        self,
        spark: SparkSession,
        files: Files,
        evaluation: Evaluation,
        harmless: frozenset[str],
        work: Work,
        progress: Progress,
    ) -> None:
        self.spark = spark
        self.context = spark.sparkContext
        self.files = files
        self.evaluation = evaluation
        self.harmless = harmless
        self.work = work
        self.progress = progress
        self.entries: Sequence[Entry] = files.entries
        self.units: Sequence[Unit] = units_of(self.entries)
        size = sum(entry.size for entry in self.entries)
        least = 2 * self.context.defaultParallelism
        self.partitions = min(max(least, -(-size // _PARTITION)), _MOST_PARTITIONS)
        self._numbers = {plain(url): number for number, url in enumerate(files.urls)}
        self._units: dict[int, list[Unit]] = {}
        for unit in self.units:
            for number in unit.files:
                self._units.setdefault(number, []).append(unit)
        # What the second and third pass kept, until it is evaluated.
        self._kept: list[RDD[Piece]] = []
        self._held: list[RDD[Piece]] = []

    # The passes.

    def scan(
        self, first: Sequence[Entry], stage: str
    ) -> tuple[Sequence[Scanned], Callable[[], Iterator[Named]]]:
        """Do the first pass."""
        interest = interest_of(self.evaluation.trials, self.evaluation.screening.terms)
        work = _Scanning(self.entries, self.harmless, self.evaluation)
        with self._done("finding the population", work, first) as (pieces, heads, problems):
            scans = [msgspec.json.decode(heads[key], type=Scanned) for key in sorted(heads)]
            for number in problems:
                kind = kind_in(self.entries[number].name)
                scans.append(Scanned(everyone=kind is None or kind in interest.sets))
            paths = {}
            for piece in self._brought(pieces.filter(partial(_is_slot, _PATIENTS))):
                path = self.work.path(f"spark/{piece.file:07}-{piece.start:013}.patients")
                write_whole(path, [piece.data])
                paths[piece.file, piece.start] = path
        ordered = [paths[key] for key in sorted(paths)]
        return scans, lambda: (named for path in ordered for named in read_named(path))

    def route(
        self,
        population: Population,
        scanned: frozenset[int],
        types: frozenset[str],
        stage: str,
    ) -> Sequence[Routed]:
        """Do the second pass."""
        self._forget()
        work = _Routing(self.entries, self.harmless, population, self.partitions, scanned, types)
        with self._done("reading records", work, self.entries, keep=True) as (_, heads, problems):
            found = {key: msgspec.json.decode(head, type=Routed) for key, head in heads.items()}
        for number, problem in problems.items():
            lost = Lost(problem, number, None, kind_in(self.entries[number].name))
            unit = self._units[number][-1]
            found.setdefault((number, unit.start), Routed(holds={number: {}})).lost.append(lost)
        return [
            together([found.get((number, unit.start), Routed()) for number in unit.files])
            for unit in self.units
        ]

    def refer(
        self, holding: Set[int], needed: dict[str, list[int]], stage: str
    ) -> Sequence[Referred]:
        """Do the third pass."""
        files = [entry for entry in self.entries if entry.number in holding]
        work = _Referring(self.entries, self.harmless, needed)
        with self._done("reading what they refer to", work, files, keep=True) as (_, heads, _):
            return [msgspec.json.decode(heads[key], type=Referred) for key in sorted(heads)]

    def evaluate(
        self,
        population: Population,
        replies: Sequence[Reply],
        before: Mapping[tuple[int, int], int],
        stage: str,
    ) -> tuple[Sequence[Found], Callable[[], Iterator[Outcome]]]:
        """Evaluate partition by partition, and bring the outcomes here, sorted."""
        self.progress("evaluating", 0, 1)
        loader = FromKept(self.entries, population, {}, replies, before)
        with guarded():
            shared = [
                ((number, piece.file, piece.start), piece.data)
                for number, kept in enumerate(self._kept)
                for piece in kept.filter(partial(_is_slot, SHARED)).collect()
            ]
            shipped = self._shipped(_Evaluating(self.evaluation, loader, self._first(shared)))
            given = (
                self.context.union(
                    [
                        kept.filter(_is_kept).map(partial(_to_shuffle, number))
                        for number, kept in enumerate(self._kept)
                    ]
                )
                .partitionBy(self.partitions, _same)
                .mapPartitionsWithIndex(partial(_evaluated, shipped))
                .persist(StorageLevel.DISK_ONLY)
            )
            founds = [
                msgspec.json.decode(data, type=Found)
                for key, data in given.filter(_is_summary).collect()
            ]
            outcomes: RDD[tuple[_Key, bytes]] = given.filter(_has_key).sortByKey(
                numPartitions=min(self.partitions, _BROUGHT)
            )
            path = self.work.path("spark/outcomes")
            write_whole(path, (data for _, data in self._brought(outcomes)))
            given.unpersist()
            self._forget()
        self.progress("evaluating", 1, 1)
        self.work.note_time()

        def sorted_outcomes() -> Iterator[Outcome]:
            with path.open("rb") as file:
                yield from map(_OUTCOME.decode, read_frames(file))

        return founds, sorted_outcomes

    def _first(self, shared: Iterable[tuple[_Origin, bytes]]) -> list[bytes]:
        """Give what every record must know of: so much of each unit."""
        numbers = {
            (file, unit.start): unit.number for file, units in self._units.items() for unit in units
        }
        taken: dict[int, list[bytes]] = {}
        for (_, file, start), data in sorted(shared):
            of_unit = taken.setdefault(numbers[file, start], [])
            of_unit.extend(framed(kept) for kept in kept_of(data))
        return [each for of_unit in taken.values() for each in of_unit[:SHARED_LIMIT]]

    # How they are done.

    def _forget(self) -> None:
        """Let go of what was kept."""
        for held in self._held:
            held.unpersist()
        self._kept, self._held = [], []

    @contextmanager
    def _done(
        self, label: str, work: Pass, files: Sequence[Entry], *, keep: bool = False
    ) -> Iterator[_Done]:
        """Do a pass over files: gives pieces, what was found by file and start, problems.

        A file that Spark fails on must not end the search: then everything is read again,
        passing over what can't be read, which is seen by what is missing.
        """
        size = sum(entry.size for entry in files)
        self.progress(label, 0, size)
        read = [entry for entry in files if self._readable(entry)]
        shipped = self._shipped(_Reading(work, self.entries, self._numbers, self._units))
        try:
            done = self._read(shipped, read, passing_over=False)
        except SearchFailed:
            with guarded():
                read = [entry for entry in read if self._is_there(entry)]
            done = self._read(shipped, read, passing_over=True)
        pieces, heads, problems = done
        with guarded():
            own, missing = self._by_driver(work, files, {number for number, _ in heads})
            if own:
                pieces = self.context.union([pieces, self.context.parallelize(own)])
            heads |= {(each.file, each.start): each.data for each in own if each.slot == _HEAD}
            if keep:
                self._kept.append(pieces)
                self._held.append(done.pieces)
            yield _Done(pieces, heads, {**problems, **missing})
            if not keep:
                done.pieces.unpersist()
        self.progress(label, size, size)
        self.work.note_time()

    def _readable(self, entry: Entry) -> bool:
        """Tell whether Spark can read a file: it leaves out what is empty, or begins with _."""
        name = PurePosixPath(entry.name).name
        return entry.size > 0 and not name.startswith("_") and self._size_is_fit(entry)

    def _is_there(self, entry: Entry) -> bool:
        jvm: Any = self.context._jvm
        path = jvm.org.apache.hadoop.fs.Path(self.files.paths[entry.number])
        return bool(path.getFileSystem(_hadoop(self.spark)).exists(path))

    def _size_is_fit(self, entry: Entry) -> bool:
        return entry.size <= _ROW or self._by_lines(entry)

    def _by_lines(self, entry: Entry) -> bool:
        return entry.by_lines and not entry.packed and entry.size > max(WHOLE, directory.UNIT)

    def _read(self, shipped: _Shipped, files: Sequence[Entry], *, passing_over: bool) -> _Done:
        """Have Spark read files; raises SearchFailed."""
        with guarded():
            parts: list[RDD[Any]] = []
            whole = [entry for entry in files if not self._by_lines(entry)]
            if whole:
                rows = self._rows("binaryFile", whole, _FILE_ROW, passing_over)
                parts.append(rows.mapPartitions(partial(_whole_files, shipped)))
            large = [entry for entry in files if self._by_lines(entry)]
            if large:
                rows = self._rows("text", large, _LINE_ROW, passing_over)
                parts.append(rows.mapPartitions(partial(_stretches, shipped)))
            pieces = self.context.union(parts) if parts else self.context.parallelize([], 1)
            pieces = pieces.persist(StorageLevel.DISK_ONLY)
            found = pieces.filter(partial(_is_slot, _HEAD)).collect()
        heads = {(piece.file, piece.start): piece.data for piece in found}
        sizes: dict[int, int] = {}
        for piece in found:
            sizes[piece.file] = sizes.get(piece.file, 0) + piece.size
        return _Done(
            pieces,
            heads,
            {number: _NOT_WHOLE for number, size in sizes.items() if not self._fits(number, size)},
        )

    def _fits(self, number: int, size: int) -> bool:
        """Tell whether as much was read of a file as it held when it was listed."""
        entry = self.entries[number]
        more = size - entry.size
        # Spark leaves out a mark at a file's beginning, and each line is given its end.
        return more in (0, 1, -3, -2) if self._by_lines(entry) else more == 0

    def _rows(self, form: str, files: Sequence[Entry], row: str, passing_over: bool) -> RDD[bytes]:
        """Have Spark read files into rows."""
        spark = self.spark.newSession()
        whole = form == "binaryFile"
        spark.conf.set("spark.sql.files.maxPartitionBytes", directory.UNIT)
        # At this cost no two stretches share a task, and none is cut anywhere else.
        cost = min(_OPEN_COST, directory.UNIT) if whole else directory.UNIT
        spark.conf.set("spark.sql.files.openCostInBytes", cost)
        reader = spark.read.format(form)
        if not whole:
            reader = reader.option("lineSep", "\n")
        reader = reader.option("ignoreCorruptFiles", passing_over)
        reader = reader.option("ignoreMissingFiles", passing_over)
        frame = reader.load([_escaped(self.files.paths[entry.number]) for entry in files])
        # The way by which PySpark gives rows of a frame to Python takes most of the time.
        jvm: Any = self.context._jvm
        as_bytes = getattr(frame.selectExpr(row)._jdf, "as")
        given = as_bytes(jvm.org.apache.spark.sql.Encoders.BINARY()).toJavaRDD()
        return RDD(given, self.context, NoOpSerializer())

    def _by_driver(
        self, work: Pass, files: Sequence[Entry], read: Set[int]
    ) -> tuple[list[Piece], dict[int, str]]:
        """Go here through what Spark gave nothing of: empty files, and odd ones of this machine."""
        own: list[Piece] = []
        problems: dict[int, str] = {}
        for entry in files:
            if entry.number in read:
                continue
            units = [unit._replace(files=(entry.number,)) for unit in self._units[entry.number]]
            if self.files.folder is not None and entry.size <= _HERE:
                for unit in units:
                    own.extend(_pieces(work, self.files.folder, unit, unit.start, entry.size))
                now = _size_now(self.files.folder, entry)
                if entry.unread is None and now not in (entry.size, None):
                    problems[entry.number] = _NOT_WHOLE
            elif entry.size == 0:
                with TemporaryDirectory() as folder:
                    _place(Path(folder), entry).touch()
                    own.extend(_pieces(work, Path(folder), units[0], 0, 0))
            elif not self._size_is_fit(entry):
                problems[entry.number] = _TOO_LARGE
            else:
                problems[entry.number] = _UNREAD
        return own, problems

    def _shipped(self, state: object) -> _Shipped:
        data = pickled(state)
        return _Shipped(self.context.broadcast(data), hashlib.sha256(data).hexdigest())

    def _brought(self, rows: RDD[_T]) -> Iterator[_T]:
        """Bring rows here, a part at a time."""
        return rows.coalesce(_BROUGHT).toLocalIterator(prefetchPartitions=True)


class _Done(NamedTuple):
    pieces: Any
    heads: dict[tuple[int, int], bytes]
    problems: dict[int, str]


def _is_summary(row: tuple[_Key | None, bytes]) -> bool:
    return row[0] is None


def _size_now(folder: Path, entry: Entry) -> int | None:
    """Give a file's size; None if it is not there, which its reader has said."""
    try:
        return (directory.base_of(folder) / entry.name).stat().st_size
    except OSError:
        return None


def _escaped(path: str) -> str:
    """Write a path so that Spark does not take signs in names for patterns."""
    return "".join(f"\\{sign}" if sign in _GLOB else sign for sign in path)


def together(parts: Sequence[Routed]) -> Routed:
    """Join what was found in the files of one unit."""
    if len(parts) == 1:
        return parts[0]
    whole = Routed()
    refers: dict[str, set[int]] = {}
    for part in parts:
        for kind, counted in part.types.items():
            sum_ = whole.types.setdefault(kind, Counted(skipped={}))
            sum_.bytes += counted.bytes
            sum_.lines += counted.lines
            sum_.read += counted.read
            for why, count in counted.skipped.items():
                sum_.skip(why, count)
        whole.lines |= part.lines
        whole.holds |= part.holds
        whole.replies += part.replies
        whole.manifests += part.manifests
        whole.lost += part.lost
        whole.surprises += part.surprises
        # A unit shares no more, however many files it has.
        room = max(0, SHARED_LIMIT - whole.shared)
        unreadable = [each.kind for each in part.lost if each.problem == UNREADABLE]
        whole.replies += map(many_unreadable, unreadable[room:SHARED_LIMIT])
        whole.shared += part.shared
        whole.bytes += part.bytes
        for name, partitions in part.refers.items():
            refers.setdefault(name, set()).update(partitions)
    whole.refers = {name: sorted(partitions) for name, partitions in refers.items()}
    return whole
