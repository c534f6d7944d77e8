"""The result of a job as FHIR: a Bundle of Group, List and statement.

Source: FHIR R4 Bundle, Parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from service.nightly.model import Statement, TrialCount
from service.results.candidates import candidates
from service.results.fhir import CANONICAL_BASE
from service.results.fhirtypes import date_time, string
from service.results.group import Study, group_json, list_json
from service.results.outcome import issue, operation_outcome

Json = dict[str, Any]
Lines = Callable[[], Iterable[bytes]]


def result_bundle(
    key: str,
    run_id: int,
    statement: Statement,
    lines: Lines,
    *,
    url: str,
    base: str = CANONICAL_BASE,
    subjects: bytes = b"",
) -> Json:
    """Write what a search of one trial found: Group, List, and the statement as Parameters.

    An OperationOutcome says so, first, if the search was not complete. ``lines`` gives the
    verdicts' lines each time it is asked; ``url`` is the service's own base URL; ``subjects``
    the secret that candidates' ids are made with.
    """
    (trial,) = statement.trials
    study = Study(trial.trial, trial.name, statement.as_of, statement.complete, base, subjects)
    entries: list[Json] = []
    if not statement.complete:
        problems = statement.problems or ("some of the input could not be read or evaluated",)
        issues = (issue("warning", "incomplete", problem) for problem in problems)
        entries.append({"resource": operation_outcome(*issues)})
    for write in (group_json, list_json):
        resource: Json = msgspec.json.decode(b"".join(write([study], lambda: candidates(lines()))))
        address = f"{url}/{resource['resourceType']}/{resource['id']}"
        entries.append({"fullUrl": address, "resource": resource})
    entries.append({"resource": statement_parameters(statement, run_id)})
    return {
        "resourceType": "Bundle",
        "id": key,
        "type": "collection",
        "timestamp": date_time(statement.finished),
        "entry": entries,
    }


def statement_parameters(statement: Statement, run_id: int) -> Json:
    """Write a statement as Parameters: what was searched, and how completely.

    Who could not be evaluated is counted, not named: that is in ``run.json``.
    """
    counts = {
        "patientsSeen": statement.patients_seen,
        "inPopulation": statement.in_population,
        "evaluated": statement.evaluated,
        "failed": statement.failed,
        "rejects": statement.rejects,
    }
    written = [
        {"name": "complete", "valueBoolean": statement.complete},
        *(_text("problem", problem) for problem in statement.problems),
        {"name": "run", "valueInteger": run_id},
        _text("source", statement.source),
        *(_text(name, value) for name, value in _where(statement).items() if value),
        {"name": "asOf", "valueDate": statement.as_of},
        *_counts(counts),
        *(
            _parts("type", code=kind, **{
                "files": count.files,
                "bytes": count.bytes,
                "lines": count.lines,
                "read": count.read,
                "skipped": sum(count.skipped.values()),
            })
            for kind, count in statement.types.items()
        ),
        *(_trial(trial) for trial in statement.trials),
        *(_text("version", f"{name} {value}") for name, value in statement.versions.items()),
    ]  # fmt: skip
    return {"resourceType": "Parameters", "id": "statement", "parameter": written}


def _where(statement: Statement) -> dict[str, str | None]:
    return {"bulk": statement.bulk, "cohort": statement.cohort}


def _trial(trial: TrialCount) -> Json:
    parts = [
        _text("id", trial.trial),
        _text("version", trial.version),
        *_counts({
            "population": trial.population,
            "evaluated": trial.evaluated,
            "failed": trial.failed,
        }),
        *(_parts("verdict", code=code, patients=count) for code, count in trial.verdicts.items()),
        *(
            _parts("criterion", code=each.id, **{
                "pass": each.passed,
                "fail": each.failed,
                "unknown": each.unknown,
                "alone": each.alone,
                "aloneOpen": each.alone_open,
            })
            for each in trial.attrition
        ),
        *(_missing(each.text, each.criteria, each.patients) for each in trial.missing),
    ]  # fmt: skip
    return {"name": "trial", "part": parts}


def _missing(text: str, criteria: Iterable[str], patients: int) -> Json:
    parts = [_text("text", text), *(_text("criterion", each) for each in criteria)]
    return {"name": "missing", "part": [*parts, *_counts({"patients": patients})]}


def _parts(name: str, *, code: str, **numbers: int) -> Json:
    return {"name": name, "part": [{"name": "code", "valueCode": code}, *_counts(numbers)]}


def _counts(numbers: Mapping[str, int]) -> list[Json]:
    # A decimal has no upper limit, as an integer of FHIR's has, which bytes soon exceed.
    return [{"name": name, "valueDecimal": number} for name, number in numbers.items()]


def _text(name: str, value: str) -> Json:
    return {"name": name, "valueString": string(value) or "unknown"}
