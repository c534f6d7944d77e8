"""Extraction: NDJSON of a Bulk Data export to typed resources, in MB/s.

The baseline parses lines and does no more, so the target is for parsing lines; the whole way
(files indexed, records put together, facts made) is shown beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from service.config import Settings
from service.facts.build import facts_of
from service.fhir.files import FileSource
from service.fhir.resources import decode
from service.fhir.source import record_of
from service.wiring import build_screening
from tests.benchmarks.baseline import parse_lines, sample
from tests.benchmarks.measuring import once, show
from tests.benchmarks.records import write_export

_TRIAL = "NCT06056752"
_MEGA = 1_000_000
_TARGET = 20.0


def run(*, brief: bool) -> list[str]:
    """Measure decoding alone and the whole way to facts."""
    screening = build_screening(Settings())
    trial = screening.trial(_TRIAL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_export(folder, 400 if brief else 3_000) / _MEGA
        lines = [
            line for path in sorted(folder.iterdir()) for line in path.read_bytes().splitlines()
        ]

        def decode_all() -> None:
            for line in lines:
                decode(line)

        def extract_all() -> None:
            source = FileSource(folder)
            for patient in source.patient_ids():
                record = record_of(source.fetch(patient, trial.wanted))
                facts_of(record, screening.terms, screening.site)

        decoding = size / min(once(decode_all) for _ in range(3))
        extracting = size / min(once(extract_all) for _ in range(2))
        taken = sample(folder, 150_000 if brief else 600_000)
        parse_lines(taken[:5])
        taken_size = sum(len(line) for line in taken) / _MEGA
        baseline = taken_size / once(lambda: parse_lines(taken))
    show("export", f"{size:.1f} MB")
    show("baseline: parsing each line with fhir.resources", f"{baseline:.2f} MB/s")
    ratio = decoding / baseline
    show("lines to resources", f"{decoding:.0f} MB/s", f"{ratio:.0f}x, target: {_TARGET:.0f}x")
    whole = f"{extracting:.0f} MB/s"
    show("files to facts of each patient", whole, f"{extracting / baseline:.0f}x")
    if ratio < _TARGET:
        return [f"extraction is {ratio:.0f} times as fast as the baseline, not {_TARGET:.0f}"]
    return []
