"""How a search comes by its records: from files, an export or a live server, all or what changed.

With a store, a search of a server goes on from the last one where it can; where it can't, it
reads everything and says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.config import Settings, is_server
from service.fhir.bulk import BulkClient
from service.fhir.server import ServerSource
from service.nightly.bulk import EXPORT, bulk_request, with_export
from service.nightly.engine import Engine, Evaluation, Passes, Progress, Searched, search_files
from service.nightly.incremental import (
    Chosen,
    Exported,
    Incremental,
    Kept,
    NotIncremental,
    base_for,
    base_of,
    kept_of,
)
from service.nightly.live import LiveSearch
from service.nightly.model import Night, RunSpec
from service.nightly.work import Work
from service.storage.store import Store
from service.wiring import build_bulk, build_source

__all__ = ["Approach", "Got"]


@dataclass(frozen=True, slots=True)
class Got:
    """The result, how it came about, and what the next search may go on from."""

    searched: Searched
    night: Night
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class Approach:
    """How one search reads.

    ``fresh``: nothing of earlier searches is gone on from. ``cohort`` as it was given.
    ``passes``: who goes through files, if not this machine. ``store`` and ``run``: where the
    search is kept, and its number there.
    """

    settings: Settings
    spec: RunSpec
    evaluation: Evaluation
    work: Work
    progress: Progress
    cohort: str | None = None
    fresh: bool = False
    passes: Passes | None = None
    store: Store | None = None
    run: int | None = None

    def search(self) -> Got:
        """Read and evaluate; raises ConfigurationError, SourceError, StoreError, SearchFailed."""
        source = self.settings.source
        assert source is not None
        if self.passes is not None:
            return _whole(search_files(self.evaluation, self.passes))
        if not is_server(source):
            return _whole(self._engine(self.work).search_directory(Path(source)))
        if self.spec.bulk is not None:
            with closing(build_bulk(self.settings, self._report)) as client:
                return self._by_export(client, self.spec.bulk)
        with self._server() as server:
            return self._by_search(server)

    def _by_export(self, client: BulkClient, level: str) -> Got:
        """Have the server export what changed, else everything, and search that."""
        request = bulk_request(level, self.evaluation.trials)
        try:
            found = self._going_on("bulk").by_export(client, request)
        except NotIncremental as reason:
            why = self._all(reason)
        else:
            return Got(found.searched, found.night, found.kept)
        folder = self.work.path(f"{EXPORT}/manifest.json").parent
        export = client.export(request, folder)
        searched = with_export(self._engine(self.work).search_directory(folder), export)
        kept = Exported.of(export).kept(searched, self.spec.as_of)
        return _whole(searched, why, kept)

    def _by_search(self, server: ServerSource) -> Got:
        """Search the server for what changed, else for everything."""
        live = LiveSearch(self._engine(self.work), server, self.cohort, self.evaluation.as_of)
        # What changes from here on is read by the next search.
        now = live.asked_at()
        try:
            found = live.run_on(self._going_on("search"), now)
        except NotIncremental as reason:
            why = self._all(reason)
        else:
            return Got(found.searched, found.night, found.kept)
        searched = live.run()
        return _whole(searched, why, kept_of("search", searched, self.spec.as_of, now))

    def _going_on(self, mode: str) -> Incremental:
        """Prepare an incremental search; raises NotIncremental with the reason against it."""
        if self.store is None or self.run is None:
            raise NotIncremental("without a store nothing is known of earlier searches")
        chosen = self.work.load("chosen", Chosen)
        if chosen is None:
            chosen = self._chosen(self.store, self.run, mode)
            self.work.save("chosen", chosen)
        if chosen.run is None:
            raise NotIncremental(chosen.why)
        base = base_of(self.store, chosen.run)
        return Incremental(self._engine(self.work.part("night")), self.store, base, self.spec.as_of)

    def _chosen(self, store: Store, own: int, mode: str) -> Chosen:
        if self.fresh:
            return Chosen(None, "--fresh was asked for")
        try:
            return Chosen(base_for(store, self.spec, mode, self.settings.full_every, own))
        except NotIncremental as reason:
            return Chosen(None, str(reason))

    def _all(self, reason: NotIncremental) -> str:
        """Note, also for whoever takes this search up, that all is read; gives the reason."""
        why = str(reason)
        self.work.save("chosen", Chosen(None, why))
        return why

    def _engine(self, work: Work) -> Engine:
        return Engine(self.evaluation, work, self.spec.workers, self.progress)

    @contextmanager
    def _server(self) -> Iterator[ServerSource]:
        server = build_source(self.settings, self.evaluation.screening.site)
        assert isinstance(server, ServerSource)
        with closing(server):
            yield server

    def _report(self, text: str) -> None:
        self.progress(text, 0, 0)


def _whole(searched: Searched, why: str = "", kept: Kept | None = None) -> Got:
    return Got(searched, Night(why=why, evaluated=searched.records), kept)
