"""The OpenAPI document holds for every answer, also to hostile requests (schemathesis)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="SCHEMATHESIS IS MISSING: install the dev extra")

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.web.asking import searching_app

pytestmark = pytest.mark.integration

# With a store and a source, so that searches are offered too; nobody runs them.
folder = tempfile.TemporaryDirectory()
schema = schemathesis.openapi.from_wsgi("/openapi.json", searching_app(Path(folder.name)))


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(case: schemathesis.Case) -> None:
    # No schema can say that the Patient is known or that the types belong to data.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
