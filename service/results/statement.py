"""The statement of a search (``run.json``) and its rejected input (``rejects.ndjson``).

Names of keys are a contract with other programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from service.nightly.model import (
    CriterionCount,
    Failure,
    Missing,
    Night,
    Reject,
    Statement,
    TrialCount,
    TypeCount,
)

Json = dict[str, Any]


def statement_bytes(statement: Statement) -> bytes:
    """Write the statement as indented JSON, for programs and people."""
    return msgspec.json.format(msgspec.json.encode(statement_json(statement)), indent=2) + b"\n"


def statement_json(statement: Statement) -> Json:
    """Write the statement: what was searched, what came out, and whether all of it was seen."""
    return {
        "complete": statement.complete,
        "problems": list(statement.problems),
        "notes": list(statement.notes),
        "source": statement.source,
        "bulk": statement.bulk,
        "cohort": statement.cohort,
        "asOf": statement.as_of,
        "versions": dict(statement.versions),
        "started": statement.started,
        "finished": statement.finished,
        "seconds": round(statement.seconds, 3),
        "rates": {name: round(rate, 1) for name, rate in statement.rates.items()},
        "resumed": statement.resumed,
        "night": _night(statement.night),
        "patients": {
            "seen": statement.patients_seen,
            "inPopulation": statement.in_population,
            "evaluated": statement.evaluated,
            "failed": statement.failed,
        },
        "failures": [_failure(failure) for failure in statement.failures],
        "rejects": statement.rejects,
        "types": {kind: _type(count) for kind, count in statement.types.items()},
        "trials": [_trial(trial) for trial in statement.trials],
    }


def _night(night: Night) -> Json:
    return {
        "read": "full" if night.since is None else "incremental",
        "since": night.since,
        "why": night.why,
        "base": night.base,
        "evaluated": night.evaluated,
        "touched": night.touched,
        "joined": night.joined,
        "lapsed": night.lapsed,
        "carried": night.carried,
        "deletionsUnseen": list(night.unseen),
    }


def _failure(failure: Failure) -> Json:
    return {"patient": failure.patient, "trial": failure.trial, "problem": failure.problem}


def _type(count: TypeCount) -> Json:
    return {
        "files": count.files,
        "bytes": count.bytes,
        "lines": count.lines,
        "read": count.read,
        "skipped": dict(count.skipped),
        **({"requests": count.requests} if count.requests else {}),
    }


def _trial(trial: TrialCount) -> Json:
    return {
        "trial": trial.trial,
        "version": trial.version,
        "name": trial.name,
        "population": trial.population,
        "evaluated": trial.evaluated,
        "failed": trial.failed,
        "verdicts": dict(trial.verdicts),
        "attrition": [_criterion(criterion) for criterion in trial.attrition],
        "missing": [_missing(missing) for missing in trial.missing],
    }


def _criterion(count: CriterionCount) -> Json:
    return {
        "id": count.id,
        "kind": count.kind,
        "pass": count.passed,
        "fail": count.failed,
        "unknown": count.unknown,
        "alone": count.alone,
        "aloneOpen": count.alone_open,
    }


def _missing(missing: Missing) -> Json:
    return {
        "text": missing.text,
        "type": missing.type,
        "sets": list(missing.sets),
        "criteria": list(missing.criteria),
        "patients": missing.patients,
    }


def reject_lines(rejects: Iterable[Reject]) -> Iterator[bytes]:
    """Write rejected input, a line of JSON each; where it is, never what it holds."""
    for reject in rejects:
        yield msgspec.json.encode(_reject(reject)) + b"\n"


def _reject(reject: Reject) -> Json:
    return {
        "file": reject.file,
        "line": reject.line,
        "type": reject.type,
        "reference": reject.reference,
        "patient": reject.patient,
        "problem": reject.problem,
    }
