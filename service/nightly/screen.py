"""The use case of a search: from what is asked to the outputs and what is said of them."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec

from service import __version__
from service.config import Settings, is_server
from service.criteria.trial import Trial
from service.errors import ConfigurationError, UsageError
from service.nightly.approach import Approach
from service.nightly.bulk import bulk_request, call_off, exports_in
from service.nightly.directory import listing
from service.nightly.engine import Evaluation, Passes, Progress, Searched
from service.nightly.incremental import NOTE
from service.nightly.live import mark_of, named_openly
from service.nightly.model import Night, RunSpec, SearchFailed, Statement
from service.nightly.work import Work, clear_parts, fingerprint, write_whole
from service.results.report import Change
from service.results.search import output_files
from service.screening import Screening
from service.storage.materials import ATTESTATIONS, SITE, digest_of, materials_of
from service.storage.store import Store, Writer
from service.wiring import build_screening, mappings_dir

# Raised when the form of what is kept in the working folder changes.
_FORM = 1
_VERDICTS = "verdicts.ndjson"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a search, beside the settings.

    ``bulk`` and ``cohort`` as in ``RunSpec``; ``fresh``: nothing of an earlier, unfinished
    search is taken up. ``begun`` is told the number of the run that is kept in the store.
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
    begun: Callable[[int], None] | None = None


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def screen(settings: Settings, request: Request, progress: Progress = no_progress) -> Statement:
    """Search a source for candidates, and write the outputs; gives the statement.

    Taken up where it stopped if the same search was cut short. Raises UsageError,
    ConfigurationError, SourceError, StoreError, SearchFailed.
    """
    if settings.source is None:
        raise UsageError("say where the records are with --source URL|DIR|FILE")
    live = is_server(settings.source)
    if (request.bulk or request.cohort) and not live:
        raise UsageError("--bulk and --cohort are for a server; a directory is searched whole")
    if request.bulk is not None:
        bulk_request(request.bulk, ())  # Another value is wrong usage before anything is done.
    if request.engine == "spark" and live:
        raise UsageError(
            "--engine spark reads files: have the server export to where Spark can read"
        )
    if request.engine != "spark" and not live and "://" in settings.source:
        raise UsageError("only --engine spark reads files by a URL")
    if not live and "://" not in settings.source:
        _apart(request.output, Path(settings.source))
    screening = build_screening(settings)
    materials = materials_of(mappings_dir(settings), settings.site, settings.attestations)
    spec = RunSpec(
        trials=request.trials,
        source=described(settings.source),
        as_of=request.as_of.isoformat(),
        bulk=request.bulk,
        cohort=named_openly(request.cohort),
        workers=request.workers,
        versions=versions_of(screening, request.trials, materials),
    )
    evaluation = Evaluation(
        screening,
        tuple(screening.trial(trial) for trial in spec.trials),
        request.as_of,
        keep_records=request.store is not None,
    )
    _make(request.output)
    try:
        with Work(request.output).locked() as work, ExitStack() as stack:
            writer = None
            if request.store is not None:
                store = stack.enter_context(Store.open(request.store))
                writer = stack.enter_context(store.locked())
            passes = None
            if request.engine == "spark":
                passes = stack.enter_context(_on_spark(settings.source, evaluation, work, progress))
            search = _Search(settings, request, spec, evaluation, work, progress, passes)
            return search.run(writer, materials)
    except OSError as error:
        raise SearchFailed(_stopped(error)) from error


def _apart(output: Path, source: Path) -> None:
    """See to it that a search does not read what it, or an earlier one, wrote."""
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"the output folder {output} lies within the source, and would be read as records: "
            "choose another with --output"
        )


def _make(output: Path) -> None:
    """Make the output folder; raises ConfigurationError if nothing can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise SearchFailed(_stopped(error)) from error
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"nothing can be written to the folder {output} ({reason}): choose another with "
            "--output"
        ) from error


def _stopped(error: OSError) -> str:
    # What was done stays, and the same command goes on.
    reason = error.strerror or type(error).__name__
    return f"the search could not go on ({reason}); the same command takes it up again"


@contextmanager
def _on_spark(
    source: str, evaluation: Evaluation, work: Work, progress: Progress
) -> Iterator[Passes]:
    """Have the passes done by Spark; raises UsageError, SourceError, SearchFailed."""
    try:
        from service.nightly import spark  # noqa: PLC0415 - an extra, which need not be there
    except ModuleNotFoundError as error:
        raise UsageError(
            "--engine spark needs pyspark: pip install 'trial-eligibility[spark]'"
        ) from error
    with spark.session() as session:
        files = spark.files_of(session, source)
        harmless = evaluation.screening.site.search.harmless_outcomes
        yield spark.OnSpark(session, files, evaluation, harmless, work, progress)


@dataclass(frozen=True, slots=True)
class _Search:
    """One search: where it reads, where it works, where it writes."""

    settings: Settings
    request: Request
    spec: RunSpec
    evaluation: Evaluation
    work: Work
    progress: Progress
    passes: Passes | None = None

    def run(self, writer: Writer | None, materials: Mapping[str, bytes]) -> Statement:
        self.work.begin(fingerprint(self._asked()), fresh=self.request.fresh, leaving=self._leaving)
        opened = None
        if writer is not None:
            opened = writer.begin(self.spec, key=self.work.key, materials=materials)
            if self.request.begun is not None:
                self.request.begun(opened.id)
        approach = Approach(
            self.settings,
            self.spec,
            self.evaluation,
            self.work,
            self.progress,
            cohort=self.request.cohort,
            fresh=self.request.fresh,
            passes=self.passes,
            store=None if writer is None else writer.store,
            run=None if opened is None else opened.id,
        )
        got = approach.search()
        searched, night, kept = got.searched, got.night, got.kept
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
        key = b"" if writer is None else writer.store.subject_key()
        self._write(searched, statement, changes, key)
        self.work.end()
        return statement

    def _asked(self) -> dict[str, object]:
        """Give all that the result rests on: a search that rests on the same is taken up."""
        source = self.settings.source
        assert source is not None
        files: object = source
        if self.passes is not None:
            files = [source, *self.passes.entries]
        elif not is_server(source):
            files = [str(Path(source).absolute()), *listing(Path(source))]
        return {
            "form": _FORM,
            "engine": self.request.engine,
            "trials": self.spec.trials,
            "as_of": self.spec.as_of,
            "versions": self.spec.versions,
            "records": self.evaluation.keep_records,
            "bulk": self.spec.bulk,
            "cohort": mark_of(self.request.cohort),
            "files": files,
        }

    def _leaving(self, folder: Path) -> None:
        """Call off the exports of a search that is given up: servers do one at a time."""
        needed = self.request.bulk is not None
        for path in exports_in(folder):
            call_off(self.settings, path, self._report, needed=needed)

    def _report(self, text: str) -> None:
        self.progress(text, 0, 0)

    def _write(
        self,
        searched: Searched,
        statement: Statement,
        changes: Iterable[Change] | None,
        key: bytes,
    ) -> None:
        """Write all outputs, the statement last: where it is, the others are whole."""
        output = self.request.output

        def lines() -> Iterator[bytes]:
            return (outcome.line for outcome in searched.outcomes())

        clear_parts(output / _VERDICTS)
        write_whole(output / _VERDICTS, (line + b"\n" for line in lines()))
        files = output_files(
            statement, lines, searched.rejects, changes, self.settings.canonical_base, key
        )
        for name, parts in files:
            clear_parts(output / name)
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
        notes=searched.notes,
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
