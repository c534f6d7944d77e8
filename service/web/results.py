"""What searches found, as FHIR: Group and List of candidates, a ResearchSubject for each.

Group and List can't be paged in R4, so they are sent as they are read. ResearchSubjects are
searched; the links to further pages name the runs they show, so that a run that ends in
between changes nothing in them. Source: FHIR R4 RESTful API, search (3.1.1), paging
(3.1.0.4.5), conditional read (3.1.0.5.1).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
from flask import Blueprint, Response, current_app, request

from service.config import Settings
from service.errors import ConfigurationError, RequestError, UsageError
from service.results.candidates import Candidate, candidates
from service.results.fhirtypes import is_id
from service.results.group import STATUS, Study, group_id, group_json, list_json, subject_json
from service.results.outcome import issue, operation_outcome
from service.results.study import searchset
from service.storage.store import Run, Store
from service.storage.subjects import (
    Filter,
    Place,
    Shown,
    Subject,
    count_subjects,
    subjects,
    trial_of,
)
from service.web import definitions
from service.web.negotiation import answer
from service.web.state import base_url, state

blueprint = Blueprint("results", __name__, url_prefix="/fhir")

Json = dict[str, Any]

_EXTENSION = "eligibility-results"
_SUFFIX = group_id("")
_PAGE = 100
_LONGEST_PAGE = 1_000
_STATUS_SYSTEM = "http://hl7.org/fhir/research-subject-status"
_NO_STORE = (
    "results are not served: no store is set; set ELIGIBILITY_STORE to the one that the searches "
    "are kept in"
)
_NO_RUN = "no search has been finished yet; `eligibility screen TRIAL --store STORE` makes one"
_RUN = re.compile(r"[0-9]{1,18}")
_SUBJECT_ID = re.compile(r"[0-9a-f]{32}")
_REFERENCE = re.compile(r"(?:.*/)?(?P<type>[A-Za-z]+)/(?P<id>[A-Za-z0-9.-]{1,64})")


class Shelf:
    """The store that results are read from: opened when first asked, once per process.

    Not before, since a server forks, and since the first search may be still to come.
    """

    def __init__(self, place: str | None) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._store: Store | None = None

    def store(self) -> Store | None:
        """Give the store; None if it is not made yet. Raises RequestError if none is set."""
        if self._place is None:
            raise RequestError(_NO_STORE, status=404, code="not-supported")
        with self._lock:
            if self._store is None:
                try:
                    self._store = Store.open(self._place, create=False)
                except ConfigurationError:
                    # No search has made it so far.
                    return None
            return self._store


def put_up(settings: Settings) -> tuple[str, Shelf]:
    """Give what an application keeps to serve results, with the name it is kept under."""
    return _EXTENSION, Shelf(settings.store)


def _store() -> Store | None:
    shelf = current_app.extensions[_EXTENSION]
    assert isinstance(shelf, Shelf)
    return shelf.store()


@dataclass(frozen=True, slots=True)
class _Result:
    """A trial's results by one run."""

    store: Store
    run: Run
    trial: str

    @property
    def study(self) -> Study:
        """Give what the FHIR resources say of the trial."""
        statement = self.run.statement
        named = {one.trial: one.name for one in statement.trials} if statement else {}
        return Study(
            self.trial,
            named.get(self.trial, self.trial),
            self.run.spec.as_of,
            bool(self.run.complete),
            state().settings.canonical_base,
            self.store.subject_key(),
        )

    @property
    def shown(self) -> Shown:
        """Give what is shown, for the store."""
        return Shown(self.trial, self.run.id, bool(self.run.complete))

    def listed(self) -> Iterator[Candidate]:
        """Go through the candidates."""
        verdicts = self.store.verdicts(self.run.id, trial=self.trial, candidates=True)
        return candidates(verdict.line for verdict in verdicts)


def _latest(store: Store | None, trial: str) -> _Result | None:
    run = None if store is None else store.latest(trial)
    return None if run is None or store is None else _Result(store, run, trial)


def _of_run(store: Store | None, number: str) -> Run:
    """Find a finished run by its number; raises RequestError."""
    if store is None or not _RUN.fullmatch(number):
        raise RequestError("there is no such run", status=404, code="not-found")
    try:
        run = store.run(int(number))
    except UsageError as error:
        raise RequestError("there is no such run", status=404, code="not-found") from error
    if run.purged is not None:
        raise RequestError("the run's results were purged", status=410, code="deleted")
    if run.status != "finished":
        raise RequestError("the run is not finished", status=404, code="not-found")
    return run


def _trials(store: Store | None) -> list[str]:
    """Name the trials that there may be results of: those known, and those of earlier runs."""
    found = dict.fromkeys(state().screening.trials)
    if store is not None and (run := store.latest()) is not None:
        found |= dict.fromkeys(run.spec.trials)
    return list(found)


# --- Group and List: of the latest run, or as one run left them


@blueprint.get("/Group")
def search_groups() -> Response:
    """Search the Groups: whom trials look for, and whom the searches found."""
    return _search_collections("Group", definitions.matching("Group"))


@blueprint.get("/List")
def search_lists() -> Response:
    """Search the Lists of candidates."""
    return _search_collections("List", [])


@blueprint.get("/Group/<name>")
def read_group(name: str) -> Response:
    """Read a Group: of the candidates of a trial, or of whom it looks for."""
    if not name.endswith(_SUFFIX):
        return definitions.read("Group", name)
    return _collection("Group", name)


@blueprint.get("/List/<name>")
def read_list(name: str) -> Response:
    """Read the List of a trial's candidates."""
    return _collection("List", name)


@blueprint.get("/Group/<name>/_history/<run>")
def read_group_of_run(name: str, run: str) -> Response:
    """Read the Group of a trial's candidates as a run left it."""
    return _collection("Group", name, run)


@blueprint.get("/List/<name>/_history/<run>")
def read_list_of_run(name: str, run: str) -> Response:
    """Read the List of a trial's candidates as a run left it."""
    return _collection("List", name, run)


def _collection(kind: str, name: str, number: str | None = None) -> Response:
    """Send a Group or List as it is read: no number of candidates is too large."""
    store = _store()
    if number is None:
        result = next((_latest(store, trial) for trial in _trials(store)
                       if group_id(trial) == name), None)  # fmt: skip
        if result is None:
            known = any(group_id(trial) == name for trial in _trials(store))
            text = _NO_RUN if known else f"there is no such {kind}"
            raise RequestError(text, status=404, code="not-found")
    else:
        run = _of_run(store, number)
        trial = next((one for one in run.spec.trials if group_id(one) == name), None)
        if trial is None or store is None:
            raise RequestError(f"there is no such {kind}", status=404, code="not-found")
        result = _Result(store, run, trial)
    study, written = result.study, group_json if kind == "Group" else list_json
    response = answer({})
    response.response = _versioned(written([study], result.listed), result.run)
    response.headers.pop("Content-Length", None)
    return _conditional(response, result.run)


def _versioned(parts: Iterable[bytes], run: Run) -> Iterator[bytes]:
    """Write the version into a resource that is being sent: the run's number."""
    opened = False
    for part in parts:
        if opened:
            yield part
            continue
        opened = True
        yield b'{"meta":' + msgspec.json.encode(_meta(run)) + b"," + part.removeprefix(b"{")


def _meta(run: Run) -> Json:
    return {"versionId": str(run.id)} | ({"lastUpdated": run.finished} if run.finished else {})


def _conditional(response: Response, run: Run) -> Response:
    """Name the version, and answer 304 to who has it already."""
    response.set_etag(str(run.id), weak=True)
    if run.finished is not None:
        response.last_modified = datetime.fromisoformat(run.finished)
    made = response.make_conditional(request)
    assert isinstance(made, Response)
    return made


def _search_collections(kind: str, others: list[Json]) -> Response:
    """Answer a search with what each holds but its members, which a read gives."""
    asked = request.args.get("_id")
    wanted = None if asked is None else asked.split(",")
    named = request.args.get("identifier")
    found = list(others)
    store = _store() if kind == "List" or state().settings.store is not None else None
    for trial in _trials(store) if store is not None and named is None else ():
        if wanted is not None and group_id(trial) not in wanted:
            continue
        if (result := _latest(store, trial)) is not None:
            found.append(_head(kind, result))
    used = {name: request.args[name] for name in ("_id", "identifier") if name in request.args}
    query = f"?{urlencode(used)}" if used else ""
    return answer(searchset(found, f"{base_url()}/{kind}{query}", base_url()))


_SUBSETTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "SUBSETTED",
}


def _head(kind: str, result: _Result) -> Json:
    """Write a Group or List without its members, marked so."""
    written = group_json if kind == "Group" else list_json
    head: Json = msgspec.json.decode(b"".join(written([result.study], lambda: ())))
    count = count_subjects(result.store.database, [result.shown], Filter(statuses=(STATUS,)))
    if kind == "Group":
        head["quantity"] = count
    elif count:
        head.pop("emptyReason", None)
    return head | {"meta": _meta(result.run) | {"tag": [_SUBSETTED]}}


# --- ResearchSubject


@blueprint.get("/ResearchSubject/<name>")
def read_subject(name: str) -> Response:
    """Read a candidate by its id; one who no longer is a candidate is not-registered."""
    store = _store()
    unknown = RequestError("there is no such ResearchSubject", status=404, code="not-found")
    if store is None or not _SUBJECT_ID.fullmatch(name):
        raise unknown
    trial = trial_of(store.database, name)
    result = None if trial is None else _latest(store, trial)
    if result is None:
        raise unknown
    found = subjects(store.database, [result.shown], Filter(ids=(name,)))
    if not found:
        raise unknown
    return _conditional(answer(_subject(found[0], result.run)), result.run)


def _subject(subject: Subject, run: Run) -> Json:
    base = state().settings.canonical_base
    written = subject_json(subject.id, subject.trial, subject.patient, base, subject.status)
    return written | {"meta": _meta(run)}


@dataclass(frozen=True, slots=True)
class _Search:
    """A search of ResearchSubjects: what is wanted, and the page of it."""

    trials: tuple[str, ...] | None
    wanted: Filter
    runs: tuple[str, ...] | None
    count: int
    place: Place | None


@blueprint.get("/ResearchSubject")
def search_subjects() -> Response:
    """Search the candidates by study, status, patient, id or identifier; paged by id."""
    asked = _asked()
    store = _store()
    results = _results(store, asked)
    if store is None or not results:
        bundle = searchset([], _url(_kept()), base_url())
        bundle["entry"] = [_notice(_NO_RUN)]
        return answer(bundle)
    shown = [result.shown for result in results]
    by_trial = {result.trial: result for result in results}
    # One more than fits tells whether another page follows.
    found = subjects(
        store.database, shown, asked.wanted, place=asked.place, limit=asked.count + 1
    ) if asked.count else []  # fmt: skip
    back = asked.place is not None and asked.place.back
    more = len(found) > asked.count
    if more:
        found = found[1:] if back else found[:-1]
    page = [_subject(one, by_trial[one.trial].run) for one in found]
    runs = ",".join(str(number) for number in sorted({one.run.id for one in results}))
    fixed = _kept() | {"_runs": runs, "_count": str(asked.count)}
    place = {} if asked.place is None else {"_before" if back else "_after": asked.place.id}
    bundle = searchset(page, _url(fixed | place), base_url())
    bundle["total"] = count_subjects(store.database, shown, asked.wanted)
    forward = found and (more or back)
    backward = found and (more if back else asked.place is not None)
    if forward:
        bundle["link"].append({"relation": "next", "url": _url(fixed | {"_after": found[-1].id})})
    if backward:
        url = _url(fixed | {"_before": found[0].id})
        bundle["link"].append({"relation": "previous", "url": url})
    if incomplete := [one.trial for one in results if not one.run.complete]:
        text = f"the search for {', '.join(incomplete)} was not complete: candidates may be missing"
        bundle.setdefault("entry", []).append(_notice(text, "warning", "incomplete"))
    return answer(bundle)


def _asked() -> _Search:
    """Read the query; raises RequestError for what can't be meant."""
    given = request.args
    count = given.get("_count", str(_PAGE))
    if not _RUN.fullmatch(count):
        raise RequestError("_count must be a whole number", code="value")
    for name in ("_after", "_before"):
        if name in given and not _SUBJECT_ID.fullmatch(given[name]):
            raise RequestError("this page does not exist", status=404, code="not-found")
    place = None
    if "_after" in given:
        place = Place(given["_after"])
    elif "_before" in given:
        place = Place(given["_before"], back=True)
    patients = _references("patient", "Patient") + _references("individual", "Patient")
    identifiers = _tokens("identifier", f"{state().settings.canonical_base}/research-subject")
    ids = _listed("_id")
    if identifiers is not None:
        ids = identifiers if ids is None else [one for one in ids if one in identifiers]
    return _Search(
        trials=tuple(_references("study", "ResearchStudy")) if "study" in given else None,
        wanted=Filter(
            ids=ids,
            patients=[f"Patient/{one}" for one in patients]
            if "patient" in given or "individual" in given
            else None,
            statuses=_tokens("status", _STATUS_SYSTEM),
        ),
        runs=tuple(given["_runs"].split(",")) if "_runs" in given else _run_asked(),
        count=min(int(count), _LONGEST_PAGE),
        place=place,
    )


def _run_asked() -> tuple[str, ...] | None:
    return (request.args["run"],) if "run" in request.args else None


def _listed(name: str) -> list[str] | None:
    return request.args[name].split(",") if name in request.args else None


def _tokens(name: str, system: str) -> list[str] | None:
    """Give the codes of a token parameter; those of another system can match nothing."""
    found = _listed(name)
    if found is None:
        return None
    parts = [one.rpartition("|") for one in found]
    return [code for given, bar, code in parts if not bar or given == system]


def _references(name: str, kind: str) -> list[str]:
    """Give the ids of a reference parameter: ``id``, ``Type/id`` or a URL."""
    found = []
    for one in _listed(name) or ():
        literal = _REFERENCE.fullmatch(one)
        if literal is not None and literal["type"] == kind:
            found.append(literal["id"])
        elif is_id(one):
            found.append(one)
    return found


def _results(store: Store | None, asked: _Search) -> list[_Result]:
    """Find the run that is shown of each trial: the latest, or those that the page names."""
    if store is None:
        return []
    if asked.runs is None:
        trials = _trials(store) if asked.trials is None else asked.trials
        return [one for trial in trials if (one := _latest(store, trial)) is not None]
    by_trial: dict[str, _Result] = {}
    for run in sorted((_of_run(store, number) for number in set(asked.runs)), key=_number):
        for trial in run.spec.trials:
            if asked.trials is None or trial in asked.trials:
                by_trial[trial] = _Result(store, run, trial)
    return list(by_trial.values())


def _number(run: Run) -> int:
    return run.id


_USED = ("_id", "identifier", "individual", "patient", "run", "status", "study")


def _kept() -> dict[str, str]:
    """Give the parameters that were understood."""
    return {name: request.args[name] for name in _USED if name in request.args}


def _url(parameters: dict[str, str]) -> str:
    query = f"?{urlencode(parameters)}" if parameters else ""
    return f"{base_url()}/ResearchSubject{query}"


def _notice(text: str, severity: str = "information", code: str = "informational") -> Json:
    outcome = operation_outcome(issue(severity, code, text))
    return {"resource": outcome, "search": {"mode": "outcome"}}
