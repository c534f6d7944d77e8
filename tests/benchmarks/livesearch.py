"""A search of a live server against reading one patient after the other.

Prints requests per patient of the population, seconds, and the server's own share of them.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from service.config import load_settings
from service.criteria.trial import Trial
from service.fhir.http import Outgoing, Reply, Transport
from service.fhir.record import Item
from service.fhir.server import ServerSource
from service.fhir.transactions import transaction
from service.nightly.model import Statement
from service.nightly.screen import Request, screen
from service.screening import Screening
from service.wiring import build_screening, build_source
from tests.benchmarks.measuring import show
from tests.integration.conftest import Sekmet
from tests.integration.conftest import _running as running
from tests.nightly.making import DAY, TRIAL, hospital, lines_of

_SICK, _WELL = 200, 300
_PER_TRANSACTION = 500


class _Server:
    """Notes how long at least one request is under way: the time the server has in hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.requests = 0
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch all requests that are sent meanwhile."""
        whole = Transport.send

        def send(transport: Transport, request: Outgoing, deadline: float) -> Reply:
            with self._lock:
                self.requests += 1
                self._running += 1
                if self._running == 1:
                    self._since = time.perf_counter()
            try:
                return whole(transport, request, deadline)
            finally:
                with self._lock:
                    self._running -= 1
                    if self._running == 0:
                        self.seconds += time.perf_counter() - self._since

        with patch.object(Transport, "send", send):
            yield


def run(*, brief: bool) -> list[str]:
    """Search a server that holds patients with and without the disease."""
    share = 4 if brief else 1
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as server:
        _load(server, _SICK // share, _WELL // share)
        settings = load_settings({}, {"source": server.base})
        watch = _Server()
        start = time.perf_counter()
        with watch.watched():
            statement = screen(settings, Request((TRIAL,), DAY, Path(name) / "out"))
        seconds = time.perf_counter() - start
        _show("search of the server", statement.in_population, watch, seconds)
        screening = build_screening(settings)
        source = build_source(settings, screening.site)
        assert isinstance(source, ServerSource)
        trial = screening.trial(TRIAL)
        watch, start = _Server(), time.perf_counter()
        with watch.watched():
            for patient in _population(statement, Path(name) / "out"):
                _evaluate(screening, trial, source, patient)
        crawled = time.perf_counter() - start
        _show("patient after patient", statement.in_population, watch, crawled)
        show("ratio of the seconds", f"{crawled / seconds:.1f}x")
        source.close()
    return []


def _evaluate(screening: Screening, trial: Trial, source: ServerSource, patient: str) -> Any:
    return screening.evaluate_patient(trial, source, patient, DAY)


def _population(statement: Statement, output: Path) -> Iterator[str]:
    assert statement.complete, statement.problems
    for line in (output / "verdicts.ndjson").read_text("utf-8").splitlines():
        yield line.partition('"patient":"')[2].partition('"')[0]


def _load(server: Sekmet, sick: int, well: int) -> None:
    items = [Item(line.strip()) for line in lines_of(hospital(sick, well))]
    for start in range(0, len(items), _PER_TRANSACTION):
        server.send(transaction(items[start : start + _PER_TRANSACTION]).body)


def _show(name: str, patients: int, watch: _Server, seconds: float) -> None:
    show(
        f"{name}: requests per patient", f"{watch.requests / patients:.2f}", f"{patients} patients"
    )
    show(f"{name}: seconds", f"{seconds:.1f} s")
    show(f"{name}: of it the server's share", f"{100 * watch.seconds / seconds:.0f} %")
