"""The use case of a search: from what is asked to the outputs and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec

from service import __version__
from service.config import Settings
from service.criteria.trial import Trial
from service.errors import UsageError
from service.fhir.bulk import BulkClient, BulkRequest
from service.nightly.directory import listing
from service.nightly.engine import Engine, Evaluation, Progress, Searched
from service.nightly.incremental import (
    NOTE,
    Chosen,
    Exported,
    Incremental,
    Kept,
    NotIncremental,
    base_for,
    base_of,
)
from service.nightly.model import Night, RunSpec, SearchFailed, Statement
from service.nightly.work import Work, fingerprint, write_whole
from service.results.report import Change
from service.results.search import output_files
from service.screening import Screening
from service.storage.materials import ATTESTATIONS, SITE, digest_of, materials_of
from service.storage.store import OpenRun, Store, Writer
from service.wiring import build_auth, build_screening, limits_of, mappings_dir

# Raised when the form of what is kept in the working folder changes.
_FORM = 1


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a search, beside the settings.

    ``bulk`` and ``cohort`` as in ``RunSpec``; ``fresh``: nothing of an earlier, unfinished
    search is taken up.
    """

    trials: tuple[str, ...]
    as_of: date
    output: Path
    bulk: str | None = None
    cohort: str | None = None
    store: str | None = None
    engine: str = "local"
    fresh: bool = False
    workers: int = 1


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def screen(settings: Settings, request: Request, progress: Progress = no_progress) -> Statement:
    """Search a source for candidates, and write the outputs; gives the statement.

    Taken up where it stopped if the same search was cut short. Raises UsageError,
    ConfigurationError, SourceError, StoreError, SearchFailed.
    """
    if settings.source is None:
        raise UsageError("say where the records are with --source URL|DIR|FILE")
    live = "://" in settings.source
    if (request.bulk or request.cohort) and not live:
        raise UsageError("--bulk and --cohort are for a server; a directory is searched whole")
    if request.engine != "local":
        raise UsageError(f"the engine {request.engine!r} is not available here")
    screening = build_screening(settings)
    materials = materials_of(mappings_dir(settings), settings.site, settings.attestations)
    spec = RunSpec(
        trials=request.trials,
        source=described(settings.source),
        as_of=request.as_of.isoformat(),
        bulk=request.bulk,
        cohort=request.cohort,
        workers=request.workers,
        versions=versions_of(screening, request.trials, materials),
    )
    evaluation = Evaluation(
        screening,
        tuple(screening.trial(trial) for trial in spec.trials),
        request.as_of,
        keep_records=request.store is not None,
    )
    try:
        request.output.mkdir(parents=True, exist_ok=True)
        with Work(request.output).locked() as work, ExitStack() as stack:
            writer = None
            if request.store is not None:
                store = stack.enter_context(Store.open(request.store))
                writer = stack.enter_context(store.locked())
            search = _Search(settings, request, spec, evaluation, work, progress)
            return search.run(writer, materials)
    except OSError as error:
        # A full disk, a lost folder: what was done stays, and the same command goes on.
        reason = error.strerror or type(error).__name__
        raise SearchFailed(f"the search could not go on: {reason}") from error


@dataclass(frozen=True, slots=True)
class _Search:
    """One search: where it reads, where it works, where it writes."""

    settings: Settings
    request: Request
    spec: RunSpec
    evaluation: Evaluation
    work: Work
    progress: Progress

    def run(self, writer: Writer | None, materials: Mapping[str, bytes]) -> Statement:
        self.work.begin(fingerprint(self._asked()), fresh=self.request.fresh)
        opened = None
        if writer is not None:
            opened = writer.begin(self.spec, key=self.work.key, materials=materials)
        searched, night, kept = self._searched(opened, writer)
        statement = stated(self.spec, self.evaluation.trials, searched, self.work, night)
        changes: Iterable[Change] | None = None
        if opened is not None and writer is not None:
            opened.add((searched.fresh or searched.outcomes)())
            for trial, patients in searched.carried.items():
                assert night.base is not None
                opened.carry(night.base, trial, patients())
            opened.rejects(searched.rejects)
            if kept is not None and not opened.is_finished:
                opened.note(NOTE, msgspec.json.encode(kept).decode())
            run = opened.finish(statement)
            if any(previous is not None for previous in run.previous.values()):
                changes = writer.store.changes(run.id)
        self._write(searched, statement, changes)
        self.work.end()
        return statement

    def _asked(self) -> dict[str, object]:
        """Give all that the result rests on: a search that rests on the same is taken up."""
        source = self.settings.source
        assert source is not None
        files: object = source
        if "://" not in source:
            files = [str(Path(source).absolute()), *listing(Path(source))]
        return {
            "form": _FORM,
            "trials": self.spec.trials,
            "as_of": self.spec.as_of,
            "versions": self.spec.versions,
            "records": self.evaluation.keep_records,
            "bulk": self.spec.bulk,
            "cohort": self.spec.cohort,
            "files": files,
        }

    def _searched(
        self, opened: OpenRun | None, writer: Writer | None
    ) -> tuple[Searched, Night, Kept | None]:
        """Give the result, how it came about, and what the next search may go on from."""
        source = self.settings.source
        assert source is not None
        if "://" not in source:
            searched = self._engine(self.work).search_directory(Path(source), self._harmless)
            return searched, Night(evaluated=searched.records), None
        if self.request.bulk is not None:
            return self._by_export(opened, writer, self.request.bulk)
        raise UsageError("say how to search the server: --bulk system, or --cohort")

    @property
    def _harmless(self) -> frozenset[str]:
        return self.evaluation.screening.site.search.harmless_outcomes

    def _engine(self, work: Work) -> Engine:
        return Engine(self.evaluation, work, self.request.workers, self.progress)

    def _by_export(
        self, opened: OpenRun | None, writer: Writer | None, level: str
    ) -> tuple[Searched, Night, Kept | None]:
        """Have the server export what changed, else everything, and search that."""
        assert self.settings.source is not None
        client = BulkClient(
            self.settings.source,
            build_auth(self.settings),
            limits_of(self.settings),
            report=lambda text: self.progress(text, 0, 0),
        )
        with closing(client):
            try:
                night = self._going_on(opened, writer, "bulk").by_export(client, level)
            except NotIncremental as reason:
                why = str(reason)
                self._read_all(why)
            else:
                return night.searched, night.night, night.kept
            folder = self.work.path("export/manifest.json").parent
            exported = Exported.of(client.export(BulkRequest(level), folder))
        searched = self._engine(self.work).search_directory(folder, self._harmless)
        kept = exported.kept(searched, self.spec.as_of)
        return searched, Night(why=why, evaluated=searched.records), kept

    def _going_on(self, opened: OpenRun | None, writer: Writer | None, mode: str) -> Incremental:
        """Prepare an incremental search; raises NotIncremental with the reason against it."""
        if opened is None or writer is None:
            raise NotIncremental("without a store nothing is known of earlier searches")
        chosen = self.work.load("chosen", Chosen)
        if chosen is None:
            chosen = self._chosen(writer.store, opened.id, mode)
            self.work.save("chosen", chosen)
        if chosen.run is None:
            raise NotIncremental(chosen.why)
        base = base_of(writer.store, chosen.run)
        engine = self._engine(self.work.part("night"))
        return Incremental(engine, writer.store, base, self.spec.as_of, self._harmless)

    def _chosen(self, store: Store, own: int, mode: str) -> Chosen:
        if self.request.fresh:
            return Chosen(None, "--fresh was asked for")
        try:
            return Chosen(base_for(store, self.spec, mode, self.settings.full_every, own))
        except NotIncremental as reason:
            return Chosen(None, str(reason))

    def _read_all(self, why: str) -> None:
        """Note, also for whoever takes this search up, that all is read."""
        self.work.save("chosen", Chosen(None, why))

    def _write(
        self, searched: Searched, statement: Statement, changes: Iterable[Change] | None
    ) -> None:
        """Write all outputs, the statement last: where it is, the others are whole."""
        output = self.request.output

        def lines() -> Iterator[bytes]:
            return (outcome.line for outcome in searched.outcomes())

        write_whole(output / "verdicts.ndjson", (line + b"\n" for line in lines()))
        files = output_files(
            statement, lines, searched.rejects, changes, self.settings.canonical_base
        )
        for name, parts in files:
            write_whole(output / name, parts)


def stated(
    spec: RunSpec,
    trials: Sequence[Trial],
    searched: Searched,
    work: Work,
    night: Night | None = None,
) -> Statement:
    """Say what was searched and how completely."""
    seconds = work.seconds()
    problems = searched.problems
    return Statement(
        source=spec.source,
        trials=tuple(
            tally.counted(trial) for tally, trial in zip(searched.tallies, trials, strict=True)
        ),
        versions=spec.versions,
        as_of=spec.as_of,
        types=searched.types,
        patients_seen=searched.seen,
        in_population=searched.members,
        evaluated=searched.evaluated,
        failed=len(searched.failures),
        failures=searched.failures,
        rejects=len(searched.rejects),
        problems=problems,
        started=work.began,
        finished=_now(),
        seconds=round(seconds, 3),
        rates={
            "bytesPerSecond": round(searched.bytes / seconds, 1) if seconds else 0.0,
            "patientsPerSecond": round(searched.seen / seconds, 1) if seconds else 0.0,
        },
        complete=not (problems or searched.failures or searched.rejects),
        bulk=spec.bulk,
        cohort=spec.cohort,
        resumed=work.resumed,
        night=night or Night(evaluated=searched.records),
    )


def versions_of(
    screening: Screening, trials: Sequence[str], materials: Mapping[str, bytes]
) -> dict[str, str]:
    """Name what a search's results rest on besides the records.

    Versions of service and trials; digests of the mappings, site file and attestations.
    """
    versions = {"service": __version__}
    for trial in trials:
        versions[f"trial:{trial}"] = screening.trial(trial).version
    own = (SITE, ATTESTATIONS)
    mappings = {name: body for name, body in materials.items() if name not in own}
    versions["mappings"] = digest_of(mappings)
    for name in own:
        if name in materials:
            versions[name] = digest_of({name: materials[name]})
    return versions


def described(source: str) -> str:
    """Name a source without secrets: a URL without user and query, a folder by its name."""
    if "://" not in source:
        return Path(source).name or source
    scheme, _, rest = source.partition("://")
    return f"{scheme}://{rest.split('?', 1)[0].rsplit('@', 1)[-1]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
