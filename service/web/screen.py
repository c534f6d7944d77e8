"""The operation ``$screen``: asks for a search, tells how far it is, gives its result.

The search itself is done by a worker. Source: FHIR R4 Asynchronous Request Pattern
(http://hl7.org/fhir/R4/async.html), finished with a Bundle as in R5's; RFC 7240.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from flask import Blueprint, Response, current_app, g, request
from werkzeug.http import parse_list_header

from service.errors import RequestError
from service.fhir.bundles import Limits
from service.jobs.board import Board
from service.jobs.model import Asked, Job, State
from service.jobs.queue import Queue
from service.jobs.searches import check_bulk, check_cohort
from service.results.job import result_bundle
from service.results.outcome import issue, operation_outcome
from service.storage.store import Store
from service.web.logs import LOGGER
from service.web.negotiation import answer, check_body_type
from service.web.operation import body_of
from service.web.parameters import Parameter, at, day_of, flag_of, named_parameters, one
from service.web.state import base_url, state
from service.wiring import today

blueprint = Blueprint("screen", __name__)
KNOWN = ("asOf", "bulk", "cohort", "fresh")
# Seconds after which it is worth asking again: a search takes minutes to hours.
POLL_SECONDS = 10
_PREFERENCE = "respond-async"
_EXTENSION = "eligibility-jobs"


def board() -> Board:
    """Give the record of jobs of this application's store; raises RequestError without one."""
    found = current_app.extensions.get(_EXTENSION)
    if found is None:
        place = state().settings.store
        if place is None:
            raise RequestError(
                "searches need a store, and none is set", status=404, code="not-supported"
            )
        # Opened when it is first asked for: after a server's fork, not before. Two threads
        # that open it at once do no harm; one of them is kept.
        found = current_app.extensions.setdefault(_EXTENSION, Board(Store.open(place)))
    assert isinstance(found, Board)
    return found


@blueprint.post("/fhir/ResearchStudy/<trial_id>/$screen")
def kick_off(trial_id: str) -> Response:
    """Ask for a search for candidates of one trial."""
    current = state()
    trial = current.screening.trial(trial_id)
    jobs = board()
    if _PREFERENCE not in _preferences():
        raise RequestError(
            "a search takes minutes to hours: send the header Prefer: respond-async, and ask "
            "for the result at the address that the answer gives",
            code="required",
        )
    check_body_type()
    source = current.settings.source
    if source is None:
        raise RequestError("there is no source to search", status=404, code="not-supported")
    asked = read_asked(body_of(current.settings.max_body_bytes), trial.id, current.limits)
    if (asked.bulk or asked.cohort) and "://" not in source:
        raise RequestError("bulk and cohort are for a source that is a server")
    job = jobs.ask(asked, g.get("caller"))
    queue = Queue(jobs.store.database)
    if not queue.wake(job.key):
        # A worker will find it all the same, a little later.
        LOGGER.warning("queue", extra={"fields": {"request": g.get("request_id")}})
    queue.close()
    reply = answer(_note(f"the search is taken up: {job.progress()}"), 202)
    reply.headers["Content-Location"] = _address(job)
    reply.headers["Preference-Applied"] = _PREFERENCE
    return _to_poll(reply, job)


@blueprint.get("/fhir/jobs/<key>")
def poll(key: str) -> Response:
    """Tell how far a search is; give its result when it is done."""
    job = _own(key)
    if job.is_open:
        return _to_poll(answer(_note(job.progress()), 202), job)
    if job.state is State.FAILED:
        text = f"the search failed: {job.problem}"
        return answer(operation_outcome(issue("error", job.code or "exception", text)), 500)
    return answer(_result(job))


@blueprint.delete("/fhir/jobs/<key>")
def cancel(key: str) -> Response:
    """Cancel a search, or give up its result."""
    job = _own(key)
    board().cancel(job.key)
    return answer(_note("the search is cancelled, or its result given up"), 202)


def read_asked(body: bytes, trial: str, limits: Limits) -> Asked:
    """Read the body of the operation; raises RequestError naming what is wrong with it."""
    by_name = named_parameters(body, limits, KNOWN, KNOWN)
    found = {name: one(by_name, name) for name in KNOWN}
    day, fresh = found["asOf"], found["fresh"]
    bulk = None if found["bulk"] is None else _bulk(*found["bulk"])
    cohort = None if found["cohort"] is None else _cohort(*found["cohort"])
    if bulk and cohort:
        raise RequestError("give bulk or cohort, not both")
    as_of = date.fromisoformat(today(state().screening.site)) if day is None else day_of(*day)
    return Asked(
        trials=(trial,),
        as_of=as_of.isoformat(),
        bulk=bulk,
        cohort=cohort,
        fresh=fresh is not None and flag_of(*fresh),
    )


def _bulk(index: int, parameter: Parameter) -> str:
    text = parameter.value_string or ""
    if not check_bulk(text):
        raise RequestError(
            "bulk needs a valueString: system, patient or group/ID",
            code="value",
            expression=at(index, "value"),
        )
    return text


def _cohort(index: int, parameter: Parameter) -> str:
    reference = parameter.value_reference
    text = (reference.reference if reference else None) or ""
    # Never a file, which a caller could otherwise have read by the worker.
    if not check_cohort(text):
        raise RequestError(
            "cohort needs a valueReference to a Group or List of the source, as Group/7",
            code="value",
            expression=at(index, "value"),
        )
    return text


def _preferences() -> set[str]:
    """Give the names of the caller's preferences (RFC 7240)."""
    listed = parse_list_header(",".join(request.headers.getlist("Prefer")))
    return {part.strip().lower() for item in listed for part in item.split(";")[:1]}


def _own(key: str) -> Job:
    """Find a job of the caller's; raises RequestError for any other, as if there were none."""
    job = board().find(key)
    ended = (State.CANCELLED, State.EXPIRED)
    if (
        job is None
        or job.search is not None
        or job.requester != g.get("caller")
        or job.state in ended
    ):
        raise RequestError("there is no such search", status=404, code="not-found")
    return job


def _result(job: Job) -> dict[str, object]:
    assert job.run_id is not None
    store, run_id = board().store, job.run_id
    run = store.run(run_id)
    if run.statement is None or run.purged is not None:
        raise RequestError("the result was purged", status=404, code="not-found")

    def lines() -> Iterator[bytes]:
        return (verdict.line for verdict in store.verdicts(run_id, candidates=True))

    base = state().settings.canonical_base
    return result_bundle(
        job.key, run_id, run.statement, lines,
        url=base_url(), base=base, subjects=store.subject_key(),
    )  # fmt: skip


def _address(job: Job) -> str:
    return f"{base_url()}/jobs/{job.key}"


def _to_poll(reply: Response, job: Job) -> Response:
    reply.headers["X-Progress"] = job.progress()
    reply.headers["Retry-After"] = str(POLL_SECONDS)
    return reply


def _note(text: str) -> dict[str, object]:
    return operation_outcome(issue("information", "informational", text))
