"""One criterion evaluated by itself comes out as among all."""

from __future__ import annotations

from datetime import date

import pytest

from service.config import Settings
from service.criteria.attestation import Attestation
from service.criteria.evaluate import evaluate, result_of
from service.criteria.model import Result, walk
from service.facts.build import facts_of
from service.fhir.files import FileSource
from service.fhir.source import record_of
from service.wiring import build_screening
from tests.nightly.making import DAY, PATIENTS, TRIAL


@pytest.mark.parametrize(
    "name", ["baseline-candidate", "b-all-mrd-after-hsct", "healthy-woman", "aml"]
)
def test_a_criterion_alone_comes_out_as_among_all(name: str) -> None:
    screening = build_screening(Settings())
    trial = screening.trial(TRIAL)
    fetched = FileSource(PATIENTS).fetch(name, trial.wanted)
    facts = facts_of(record_of(fetched), screening.terms, screening.site)
    own: tuple[Attestation, ...] = ()
    day: date = DAY
    found: dict[str, Result] = {}
    for result, _ in walk(evaluate(trial, facts, day, own).criteria):
        found[result.id] = result
    assert len(found) > 30
    for key, result in found.items():
        assert result_of(trial, facts, day, key, own) == result
