"""Runs to test with: verdicts of the shipped patients, and small invented ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from functools import cache

from service import __version__
from service.config import Settings
from service.fhir.source import Fetched
from service.nightly.model import Outcome, RunSpec, Statement, TrialCount
from service.nightly.partition import encode_record
from service.results.json import verdict_line
from service.storage.materials import materials_of
from service.storage.store import OpenRun, Run, Store, Writer
from service.wiring import build_screening, build_source, data_dir

TRIAL = "NCT06056752"
DAY, NEXT_DAY = "2026-11-01", "2026-11-02"
MATERIALS = materials_of(data_dir() / "mappings")


def spec_of(as_of: str = DAY, *trials: str, source: str = "export") -> RunSpec:
    """Make what is asked of a run."""
    return RunSpec(
        trials or (TRIAL,), source, as_of, versions={"service": __version__, "mappings": "x"}
    )


@cache
def shipped() -> dict[str, Fetched]:
    """Read the shipped patients."""
    settings = Settings()
    screening = build_screening(settings)
    source = build_source(settings, screening.site)
    wanted = screening.trial(TRIAL).wanted
    return {patient: source.fetch(patient, wanted) for patient in sorted(source.patient_ids())}


@cache
def outcomes(as_of: str = DAY) -> tuple[Outcome, ...]:
    """Evaluate the shipped patients."""
    screening = build_screening(Settings())
    trial = screening.trial(TRIAL)
    found = []
    for fetched in shipped().values():
        verdict = screening.evaluate_fetched(trial, fetched, date.fromisoformat(as_of))
        found.append(
            Outcome(
                verdict.patient,
                TRIAL,
                verdict_line(verdict).encode(),
                verdict.code.value,
                verdict.valid_until,
                encode_record(fetched),
            )
        )
    return tuple(sorted(found, key=lambda outcome: outcome.patient))


def invented(
    patient: str,
    criteria: Mapping[str, tuple[str, str]],
    *,
    as_of: str = DAY,
    trial: str = TRIAL,
    verdict: str = "potentially-eligible",
    valid_until: str | None = None,
    record: bytes | None = None,
) -> Outcome:
    """Make a verdict line of given outcomes and reasons."""
    line = {
        "trial": trial,
        "patient": f"Patient/{patient}",
        "asOf": as_of,
        "verdict": verdict,
        "validUntil": valid_until,
        "criteria": [
            {
                "id": name,
                "kind": "inclusion",
                "outcome": outcome,
                "reason": reason,
                "message": "",
                "evidence": [{"reference": f"Observation/{patient}-1", "version": "3"}],
                "assumptions": [],
                "settledBy": [f"a result for {name}"],
                "parts": [],
            }
            for name, (outcome, reason) in criteria.items()
        ],
    }
    text = json.dumps(line, separators=(",", ":")).encode()
    return Outcome(f"Patient/{patient}", trial, text, verdict, valid_until, record)


def statement_of(run: Run, *, complete: bool = True) -> Statement:
    """Make what a run says at its end."""
    counts = tuple(
        TrialCount(trial, "1.0.0", trial, 1, 1, 0, {"eligible": 1}) for trial in run.spec.trials
    )
    return Statement(
        source=run.spec.source,
        trials=counts,
        versions=run.spec.versions,
        as_of=run.spec.as_of,
        types={},
        patients_seen=1,
        in_population=1,
        evaluated=1,
        failed=0,
        failures=(),
        rejects=0,
        problems=(),
        started=run.started,
        finished=run.started,
        seconds=1.5,
        rates={},
        complete=complete,
    )


def begun(writer: Writer, key: str = "first", as_of: str = DAY, *trials: str) -> OpenRun:
    """Begin a run."""
    return writer.begin(spec_of(as_of, *trials), key=key, materials=MATERIALS)


def kept(
    store: Store,
    key: str,
    verdicts: tuple[Outcome, ...],
    as_of: str = DAY,
    *,
    complete: bool = True,
) -> Run:
    """Make a whole run of given verdicts."""
    with store.locked() as writer:
        run = begun(writer, key, as_of, *dict.fromkeys(one.trial for one in verdicts))
        run.add(verdicts)
        return run.finish(statement_of(run.run, complete=complete))
