"""Evaluation: from a parsed record to the verdict, per patient."""

from __future__ import annotations

import json
from datetime import date

from service.config import Settings
from service.fhir.files import FileSource
from service.fhir.source import record_of
from service.wiring import build_screening
from tests.benchmarks.baseline import of_json, parse_bundle
from tests.benchmarks.measuring import milliseconds, once, show, summary
from tests.benchmarks.records import DAY, FIXTURES

_TRIAL = "NCT06056752"


def run(*, brief: bool) -> list[str]:
    """Measure all shipped patients, several times over."""
    screening = build_screening(Settings())
    trial = screening.trial(_TRIAL)
    source = FileSource(FIXTURES)
    day = date.fromisoformat(DAY)
    records = [record_of(source.fetch(name, trial.wanted)) for name in source.patient_ids()]
    for record in records:
        screening.verdict(trial, record, day)
    rounds = 3 if brief else 20
    seconds = [
        once(lambda record=record: screening.verdict(trial, record, day))
        for _ in range(rounds)
        for record in records
    ]
    timing = summary(seconds)
    texts = [
        of_json(json.loads(path.read_text("utf-8")))
        for path in sorted(FIXTURES.glob("*.json"))
        if "broken" not in path.stem
    ]
    parse_bundle(texts[0])
    baseline = summary([once(lambda text=text: parse_bundle(text)) for text in texts])
    show("record to verdict, median", milliseconds(timing.median), f"{timing.count} evaluations")
    show("record to verdict, 95th percentile", milliseconds(timing.p95))
    show("patients per second and core", f"{len(seconds) / sum(seconds):.0f}")
    show("baseline: parsing the record with fhir.resources", milliseconds(baseline.median))
    show("ratio", f"{baseline.median / timing.median:.1f}x")
    return []
