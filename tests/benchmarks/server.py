"""The operation against a local FHIR server (sekmet-fhir), the server's share apart."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from service.config import load_settings
from service.fhir.source import Fetched, Source, Wanted
from service.web import create_app
from service.wiring import build_screening, build_source
from tests.benchmarks.baseline import of_json, parse_bundle
from tests.benchmarks.inline import call
from tests.benchmarks.measuring import milliseconds, once, show, summary
from tests.benchmarks.records import DAY, FIXTURES
from tests.integration.conftest import _running as running
from tests.integration.conftest import transaction_of


class _Timed:
    """A source that notes how long each patient's record took to read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.seconds: list[float] = []

    def fetch(self, patient_id: str, wanted: Wanted) -> Fetched:
        """Read a record and note the seconds."""
        start = time.perf_counter()
        try:
            return self._source.fetch(patient_id, wanted)
        finally:
            self.seconds.append(time.perf_counter() - start)

    def patient_ids(self) -> Iterator[str]:
        """Go through the ids."""
        return self._source.patient_ids()

    def check(self) -> None:
        """Check the source."""
        self._source.check()

    def describe(self) -> str:
        """Name the source."""
        return self._source.describe()


def run(*, brief: bool) -> list[str]:
    """Ask for shipped patients one after the other."""
    files = [path for path in sorted(FIXTURES.glob("*.json")) if "broken" not in path.stem]
    files = files[:: 10 if brief else 1]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        for file in files:
            server.send(transaction_of(file))
        settings = load_settings({}, {"source": server.base, "rate_per_minute": 0})
        screening = build_screening(settings)
        source = _Timed(build_source(settings, screening.site))
        app = create_app(settings, screening, source)
        call(app, _body(files[0].stem))
        source.seconds.clear()
        whole = [once(lambda name=file.stem: call(app, _body(name))) for file in files]
    reading = summary(source.seconds)
    own = summary([all_ - read for all_, read in zip(whole, source.seconds, strict=True)])
    texts = [of_json(json.loads(file.read_text("utf-8"))) for file in files]
    baseline = summary([once(lambda text=text: parse_bundle(text)) for text in texts])
    show("whole request, median", milliseconds(summary(whole).median), f"{len(files)} patients")
    show("of it reading from the server, median", milliseconds(reading.median))
    show("of it the service's own share, median", milliseconds(own.median))
    show("baseline: parsing the record with fhir.resources", milliseconds(baseline.median))
    show("ratio to the service's own share", f"{baseline.median / own.median:.1f}x")
    return []


def _body(patient: str) -> bytes:
    return json.dumps(
        {
            "resourceType": "Parameters",
            "parameter": [
                {"name": "subject", "valueReference": {"reference": f"Patient/{patient}"}},
                {"name": "asOf", "valueDate": DAY},
            ],
        }
    ).encode()
