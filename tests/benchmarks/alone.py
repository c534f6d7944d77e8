"""One measure of the nightly search in a process of its own; prints what it took as JSON.

``search FOLDER WORKERS``, ``bare FOLDER facts|whose``, ``sql FOLDER THREADS``, ``models FOLDER``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
from fhir.resources.R4B import get_fhir_model_class

from service.config import Settings, load_settings
from service.criteria.trial import Trial
from service.fhir.record import ASSUMED, Item
from service.fhir.resources import Condition, Observation, Patient
from service.fhir.source import Fetched
from service.nightly.population import Interest, diagnosis_of, interest_of, is_member
from service.nightly.screen import Request, screen
from service.results.json import verdict_line
from service.screening import Screening
from service.wiring import build_screening
from tests.benchmarks.records import DAY

TRIAL = "NCT06056752"
_BLOCK = 256 * 1024

# Age, diagnosis and creatinine, as a statistician would ask for them.
_SQL = """
WITH person AS (
  SELECT 'Patient/' || id AS who, left(birthDate || '-01-01', 10)::DATE AS born
  FROM read_json('{0}/Patient.*', format = 'newline_delimited',
    columns = {{id: 'VARCHAR', birthDate: 'VARCHAR'}})
), ill AS (
  SELECT DISTINCT subject.reference AS who
  FROM read_json('{0}/Condition.*', format = 'newline_delimited', columns = {{
    code: 'STRUCT(coding STRUCT("system" VARCHAR, code VARCHAR)[])',
    subject: 'STRUCT(reference VARCHAR)'}})
  WHERE len(list_filter(code.coding, lambda each:
    replace(each.code, '.', '') LIKE 'C910%' OR each.code IN ('277571004', '91857003'))) > 0
), result AS (
  SELECT subject.reference AS who, max(effectiveDateTime) AS day,
    arg_max(valueQuantity.value, effectiveDateTime) AS value,
    arg_max(referenceRange[1].high.value, effectiveDateTime) AS high
  FROM read_json('{0}/Observation.*', format = 'newline_delimited', columns = {{
    status: 'VARCHAR', code: 'STRUCT(coding STRUCT("system" VARCHAR, code VARCHAR)[])',
    subject: 'STRUCT(reference VARCHAR)', effectiveDateTime: 'VARCHAR',
    valueQuantity: 'STRUCT("value" DOUBLE, code VARCHAR)',
    referenceRange: 'STRUCT(high STRUCT("value" DOUBLE))[]'}})
  WHERE status IN ('final', 'amended', 'corrected') AND code.coding[1].code = '2160-0'
  GROUP BY 1
)
SELECT person.who, date_diff('year', born, DATE '{1}')
    - (strftime(born, '%m%d') > strftime(DATE '{1}', '%m%d'))::INT AS age,
  value <= 1.5 * high AND day >= strftime(DATE '{1}' - INTERVAL 28 DAYS, '%Y-%m-%d') AS creatinine
FROM person JOIN ill USING (who) LEFT JOIN result USING (who) ORDER BY 1
"""


class _Named(msgspec.Struct, gc=False):
    reference: str | None = None


class _Whose(msgspec.Struct, gc=False, rename="camel"):
    resource_type: str
    id: str | None = None
    subject: _Named | None = None


@contextmanager
def _timed() -> Iterator[dict[str, Any]]:
    """Note the seconds by the clock and of processors (of child processes too)."""
    said: dict[str, Any] = {}
    clock, processor = time.perf_counter(), _processor()
    yield said
    said |= {"clock": time.perf_counter() - clock, "processor": _processor() - processor}


def _processor() -> float:
    used = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _search(folder: str, workers: str) -> dict[str, Any]:
    """Search as the command does; the outputs are written to a folder of their own."""
    settings = load_settings({}, {"source": folder})
    day = date.fromisoformat(DAY)
    with tempfile.TemporaryDirectory() as output:
        request = Request((TRIAL,), day, Path(output), workers=int(workers))
        with _timed() as said:
            statement = screen(settings, request)
    # Some of the shipped patients, of whom the export is made, are merged with nobody in it.
    assert not statement.failures
    assert not statement.rejects
    population, patients = statement.in_population, statement.patients_seen
    return said | {"patients": patients, "population": population}


def _bare(folder: str, what: str) -> dict[str, Any]:
    """Decode every line and throw it away.

    ``facts``: to what facts need (``service.fhir.resources``); ``whose``: to type, id and the
    subject's reference.
    """
    kind: Any = _Whose if what == "whose" else Patient | Condition | Observation
    decode = msgspec.json.Decoder(kind).decode_lines
    lines = 0
    with _timed() as said:
        for path in sorted(Path(folder).iterdir()):
            with path.open("rb", buffering=0) as file:
                position = 0
                while block := os.pread(file.fileno(), _BLOCK, position):
                    end = block.rfind(b"\n") + 1
                    lines += len(decode(memoryview(block)[:end]))
                    position += end
    return said | {"lines": lines}


def _sql(folder: str, threads: str) -> dict[str, Any]:
    """Let DuckDB compute age, diagnosis and creatinine."""
    import duckdb  # noqa: PLC0415 - only this measure needs it

    with _timed() as said:
        connection = duckdb.connect(config={"threads": int(threads)})
        found = connection.execute(_SQL.format(folder, DAY)).fetchall()
    return said | {"population": len(found)}


def _models(folder: str) -> dict[str, Any]:
    """Make a model of every line, and evaluate those with the disease from their models."""
    with _timed() as said:
        screening = build_screening(Settings())
        found = _from_models(Path(folder), screening, screening.trial(TRIAL))
    with tempfile.TemporaryDirectory() as output:
        request = Request((TRIAL,), date.fromisoformat(DAY), Path(output))
        screen(load_settings({}, {"source": folder}), request)
        lines = (Path(output) / "verdicts.ndjson").read_text("utf-8").splitlines()
    return said | {"population": len(found), "same": found == lines}


def _from_models(folder: Path, screening: Screening, trial: Trial) -> list[str]:
    interest = interest_of((trial,), screening.terms)
    records: dict[str, list[tuple[str, Any]]] = {}
    ill: set[str] = set()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                kind = json.loads(line)["resourceType"]
                model: Any = get_fhir_model_class(kind).model_validate_json(line)
                whose = f"Patient/{model.id}" if kind == "Patient" else model.subject.reference
                records.setdefault(whose, []).append((f"{path.name}:{number}", model))
                if kind == "Condition" and _concerned(model, interest):
                    ill.add(whose)
    diagnosis = diagnosis_of(trial)
    assert diagnosis is not None
    readings = dict.fromkeys(trial.wanted.codes, ASSUMED)
    lines = []
    for whose in sorted(ill):
        items = tuple(
            Item(model.model_dump_json().encode(), None, place) for place, model in records[whose]
        )
        fetched = Fetched(whose, items, readings)
        verdict = screening.evaluate_fetched(trial, fetched, date.fromisoformat(DAY))
        if is_member(diagnosis.id, verdict):
            lines.append(verdict_line(verdict))
    return lines


def _concerned(model: Any, interest: Interest) -> bool:
    code = model.code.model_dump_json().encode() if model.code is not None else b""
    return interest.named(msgspec.Raw(code), msgspec.Raw(), "Condition")


_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "search": _search,
    "bare": _bare,
    "sql": _sql,
    "models": _models,
}


def main() -> None:
    """Run one measure and print what it took."""
    name, *arguments = sys.argv[1:]
    print(json.dumps(_MEASURES[name](*arguments)))


if __name__ == "__main__":
    main()
