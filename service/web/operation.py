"""The operation ``$evaluate-eligibility``: parse, evaluate, render."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime

from flask import Blueprint, Response, request

from service.criteria.model import Verdict
from service.criteria.trial import Trial
from service.errors import PatientUnreadable, RequestError, UnknownPatient
from service.results.fhir import guidance_response
from service.web.negotiation import answer, check_body_type
from service.web.parameters import Question, read_parameters
from service.web.records import gather
from service.web.state import State, state
from service.wiring import today

blueprint = Blueprint("operation", __name__)
_UNPROCESSABLE = 422


@blueprint.post("/fhir/ResearchStudy/<trial_id>/$evaluate-eligibility")
def evaluate(trial_id: str) -> Response:
    """Evaluate one patient for one trial."""
    current = state()
    trial = current.screening.trial(trial_id)
    check_body_type()
    question = read_parameters(body_of(current.settings.max_body_bytes), current.limits)
    verdict = current.gate.run(lambda: _evaluate(current, trial, question))
    current.metrics.verdicts.labels(verdict.trial, verdict.code.value).inc()
    return answer(
        guidance_response(
            verdict,
            canonical_base=current.settings.canonical_base,
            produced=datetime.now(UTC),
        )
    )


def body_of(limit: int) -> bytes:
    """Read the body; one sent in chunks is only known to be too large when it is read."""
    body = request.get_data(cache=False)
    if request.content_length is None and len(body) >= limit:
        raise RequestError("the body is too large", status=413, code="too-costly")
    return body


def _evaluate(current: State, trial: Trial, question: Question) -> Verdict:
    screening = current.screening
    as_of = question.as_of or date.fromisoformat(today(screening.site))
    started = time.perf_counter()
    with current.metrics.running.track_inprogress():
        harmless = screening.site.search.harmless_outcomes
        fetched = gather(question, current.source, trial.wanted, current.limits, harmless)
        if question.use_server:
            current.metrics.source_seconds.observe(time.perf_counter() - started)
        started = time.perf_counter()
        try:
            verdict = screening.evaluate_fetched(trial, fetched, as_of)
        except (PatientUnreadable, UnknownPatient) as error:
            if question.use_server:
                raise
            # The fault is in what was handed in, not in a server behind us.
            raise RequestError(
                "the Patient in data can't be read, so no verdict is given",
                status=_UNPROCESSABLE,
                code="structure",
            ) from error
        current.metrics.evaluation_seconds.observe(time.perf_counter() - started)
    return verdict
