"""The operation ``$screen``: asked for, polled, answered, cancelled, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from service.config import Settings
from service.jobs.board import MOST_OPEN, Board
from service.jobs.model import Asked, Job
from service.nightly.model import Outcome, RunSpec, Statement, TrialCount
from service.results.group import subject_id
from service.storage.models import RunRow
from service.storage.store import Store
from service.web import create_app
from service.web.callers import hash_key
from tests.results.shapes import check_r4b, screening
from tests.storage.making import outcomes
from tests.web.asking import FHIR, TRIAL, Hospital, as_of, parameters, refusal

NCT = "NCT06056752"
SCREEN = f"{TRIAL}/$screen"
ASYNC = {"Prefer": "respond-async"}
SERVER = "https://ehr.example/r4"
KEYS = {"one": "a" * 32, "two": "b" * 32, "evaluator": "c" * 32}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(source=SERVER, store=str(tmp_path / "store.db"), rate_per_minute=0)


@pytest.fixture
def app(settings: Settings) -> Flask:
    return create_app(settings, screening(), Hospital())


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    assert settings.store is not None
    with Store.open(settings.store) as opened:
        yield opened


@pytest.fixture
def board(store: Store) -> Board:
    return Board(store)


def cohort(reference: str = "Group/7") -> dict[str, Any]:
    return {"name": "cohort", "valueReference": {"reference": reference}}


def bulk(what: str = "system") -> dict[str, Any]:
    return {"name": "bulk", "valueString": what}


def kick_off(app: Flask, *given: dict[str, Any], **more: Any) -> TestResponse:
    options: dict[str, Any] = {"headers": ASYNC, "content_type": FHIR} | more
    body = options.pop("data", json.dumps(parameters(*given)).encode())
    return app.test_client().post(options.pop("path", SCREEN), data=body, **options)


def job_of(reply: TestResponse, board: Board) -> Job:
    assert reply.status_code == 202, reply.get_data(as_text=True)
    found = board.find(reply.headers["Content-Location"].rpartition("/")[2])
    assert found is not None
    return found


def path_of(job: Job) -> str:
    return f"/fhir/jobs/{job.key}"


def searched(store: Store, job: Job, *, complete: bool = True) -> int:
    """Do a job as a worker would, on the shipped patients' verdicts."""
    taken = Board(store).claim("w1")
    assert taken is not None
    found = outcomes()
    spec = RunSpec((NCT,), "export", "2026-11-01", versions={"service": "0"})
    with store.locked() as writer:
        run = writer.begin(spec, key=job.key)
        run.add(found)
        run.finish(_statement(found, complete))
    board = Board(store)
    board.begun(taken, run.id)
    assert board.finish(taken, complete=complete)
    return run.id


def _statement(found: tuple[Outcome, ...], complete: bool) -> Statement:
    codes = [outcome.code for outcome in found]
    verdicts = {code: codes.count(code) for code in sorted(set(codes))}
    trial = TrialCount(NCT, "1.0.0", "QH103", len(found), len(found), 0, verdicts)
    return Statement(
        source="export", trials=(trial,), versions={"service": "0"}, as_of="2026-11-01",
        types={}, patients_seen=len(found), in_population=len(found), evaluated=len(found),
        failed=0, failures=(), rejects=0, problems=() if complete else ("a page is missing",),
        started="2026-11-01T01:00:00+00:00", finished="2026-11-01T02:00:00+00:00",
        seconds=3600.0, rates={}, complete=complete,
    )  # fmt: skip


def test_a_search_is_asked_for_and_kept(app: Flask, board: Board) -> None:
    reply = kick_off(app, as_of(), bulk("group/G1"), {"name": "fresh", "valueBoolean": True})
    job = job_of(reply, board)
    assert job.asked == Asked((NCT,), "2026-11-01", bulk="group/G1", fresh=True)
    assert reply.headers["Content-Location"] == f"http://localhost{path_of(job)}"
    assert reply.headers["Preference-Applied"] == "respond-async"
    assert refusal(reply)["severity"] == "information"


def test_without_parameters_it_is_all_of_today(app: Flask, board: Board) -> None:
    asked = job_of(kick_off(app, data=b'{"resourceType":"Parameters"}'), board).asked
    assert asked == Asked((NCT,), asked.as_of)
    assert len(asked.as_of) == 10


@pytest.mark.parametrize(
    "prefer", [{}, {"Prefer": "return=minimal"}, {"Prefer": "x=respond-async"}]
)
def test_without_the_preference_it_says_which_to_send(
    app: Flask, board: Board, prefer: dict[str, str]
) -> None:
    reply = kick_off(app, headers=prefer)
    assert reply.status_code == 400
    assert "Prefer: respond-async" in refusal(reply)["diagnostics"]
    assert sum(board.counts().values()) == 0


@pytest.mark.parametrize(
    "prefer", ["respond-async", "Respond-Async", "return=minimal, respond-async; wait=10"]
)
def test_the_preference_may_be_one_of_several(app: Flask, prefer: str) -> None:
    assert kick_off(app, headers={"Prefer": prefer}).status_code == 202


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([as_of("yesterday")], "asOf"),
        ([bulk("everything")], "bulk"),
        ([bulk("group/../7")], "bulk"),
        ([cohort("Patient/7")], "cohort"),
        ([cohort("/etc/passwd")], "cohort"),
        ([{"name": "cohort", "valueString": "Group/7"}], "cohort"),
        ([bulk(), cohort()], "not both"),
        ([bulk(), bulk()], "more than once"),
        ([{"name": "fresh", "valueString": "yes"}], "fresh"),
        ([{"name": "subject", "valueReference": {"reference": "Patient/1"}}], "no such parameter"),
    ],
)
def test_a_wrong_parameter_is_named(
    app: Flask, board: Board, wrong: list[dict[str, Any]], says: str
) -> None:
    reply = kick_off(app, *wrong)
    assert reply.status_code == 400
    assert says in refusal(reply)["diagnostics"]
    assert sum(board.counts().values()) == 0


def test_a_directory_can_be_searched_whole_only(settings: Settings, tmp_path: Path) -> None:
    app = create_app(replace(settings, source=str(tmp_path)), screening(), Hospital())
    assert kick_off(app, bulk()).status_code == 400
    assert kick_off(app, cohort()).status_code == 400
    assert kick_off(app).status_code == 202


def test_an_unknown_trial_and_an_unknown_job_are_not_found(app: Flask) -> None:
    assert kick_off(app, path="/fhir/ResearchStudy/NONE/$screen").status_code == 404
    client = app.test_client()
    for reply in (client.get("/fhir/jobs/none"), client.delete("/fhir/jobs/none")):
        assert reply.status_code == 404
        assert refusal(reply)["code"] == "not-found"


@pytest.mark.parametrize("lacks", ["store", "source"])
def test_without_store_or_source_no_search_is_offered(settings: Settings, lacks: str) -> None:
    without = replace(settings, **{lacks: None})  # type: ignore[arg-type]  # a field's name
    app = create_app(without, screening(), Hospital())
    reply = kick_off(app)
    assert reply.status_code == 404
    assert refusal(reply)["code"] == "not-supported"
    client = app.test_client()
    study = next(
        one
        for one in client.get("/fhir/metadata").json["rest"][0]["resource"]
        if one["type"] == "ResearchStudy"
    )
    assert [one["name"] for one in study["operation"]] == ["evaluate-eligibility"]
    assert client.get("/fhir/OperationDefinition/screen").status_code == 404
    assert "/fhir/jobs/{job}" not in client.get("/openapi.json").json["paths"]


def test_the_operation_is_declared(app: Flask) -> None:
    client = app.test_client()
    definition = client.get("/fhir/OperationDefinition/screen").json
    check_r4b(definition)
    assert {one["name"] for one in definition["parameter"]} == {
        "asOf", "bulk", "cohort", "fresh", "return",
    }  # fmt: skip
    statement = client.get("/fhir/metadata").json
    check_r4b(statement)
    assert "OperationDefinition/screen" in json.dumps(statement)


def test_asked_again_it_is_the_same_search(app: Flask, board: Board) -> None:
    first = job_of(kick_off(app, as_of()), board)
    assert job_of(kick_off(app, as_of()), board) == first
    assert job_of(kick_off(app, as_of("2026-11-02")), board) != first


def test_too_many_open_searches_are_refused_for_now(app: Flask) -> None:
    for number in range(MOST_OPEN):
        assert kick_off(app, cohort(f"Group/{number}")).status_code == 202
    reply = kick_off(app, cohort("Group/last"))
    assert reply.status_code == 429
    assert int(reply.headers["Retry-After"]) > 0


def test_polling_tells_how_far_it_is(app: Flask, board: Board) -> None:
    job = job_of(kick_off(app), board)
    client = app.test_client()
    reply = client.get(path_of(job))
    assert (reply.status_code, reply.headers["X-Progress"]) == (202, "waiting")
    assert int(reply.headers["Retry-After"]) > 0
    taken = board.claim("w1")
    assert taken is not None
    board.beat(taken, "evaluating", 3, 4)
    reply = client.get(path_of(job))
    assert (reply.status_code, reply.headers["X-Progress"]) == (202, "evaluating: 75 %")


def test_when_done_it_gives_group_list_and_statement(
    app: Flask, board: Board, store: Store
) -> None:
    job = job_of(kick_off(app), board)
    run = searched(store, job)
    reply = app.test_client().get(path_of(job))
    assert reply.status_code == 200
    bundle = json.loads(reply.data)
    check_r4b(bundle)
    kinds = [entry["resource"]["resourceType"] for entry in bundle["entry"]]
    assert kinds == ["Group", "List", "Parameters"]
    group, listed, statement = (entry["resource"] for entry in bundle["entry"])
    candidates = [one for one in outcomes() if one.code != "ineligible"]
    assert {member["entity"]["reference"] for member in group["member"]} == {
        one.patient for one in candidates
    }
    assert len(listed["entry"]) == len(candidates)
    # The same ids as everywhere else, which nobody can compute without the store's key.
    assert {one["id"] for one in listed["contained"]} == {
        subject_id(NCT, one.patient, store.subject_key()) for one in candidates
    }
    said = {one["name"]: one for one in statement["parameter"]}
    assert said["complete"]["valueBoolean"] is True
    assert said["run"]["valueInteger"] == run
    assert said["evaluated"]["valueDecimal"] == len(outcomes())


def test_when_incomplete_it_says_so_first(app: Flask, board: Board, store: Store) -> None:
    job = job_of(kick_off(app), board)
    searched(store, job, complete=False)
    bundle = app.test_client().get(path_of(job)).json
    check_r4b(bundle)
    outcome = bundle["entry"][0]["resource"]
    assert outcome["resourceType"] == "OperationOutcome"
    assert outcome["issue"][0]["code"] == "incomplete"
    assert outcome["issue"][0]["diagnostics"] == "a page is missing"
    assert "patients may be missing" in json.dumps(bundle)


def test_when_failed_it_says_why(app: Flask, board: Board) -> None:
    job = job_of(kick_off(app), board)
    taken = board.claim("w1")
    assert taken is not None
    board.fail(taken, "timeout", "the server did not answer")
    reply = app.test_client().get(path_of(job))
    assert reply.status_code == 500
    assert refusal(reply) == {
        "severity": "error",
        "code": "timeout",
        "diagnostics": "the search failed: the server did not answer",
    }


def test_while_the_store_is_away_nobody_is_told_that_the_search_failed(
    app: Flask, settings: Settings, board: Board, tmp_path: Path
) -> None:
    job = job_of(kick_off(app), board)
    assert settings.store is not None
    path = Path(settings.store)
    path.rename(tmp_path / "away")
    reply = app.test_client().get(path_of(job))
    assert (reply.status_code, refusal(reply)["code"]) == (503, "no-store")
    (tmp_path / "away").rename(path)
    assert app.test_client().get(path_of(job)).status_code == 202


@pytest.mark.parametrize("done", [False, True])
def test_what_is_cancelled_or_given_up_is_gone(
    app: Flask, board: Board, store: Store, done: bool
) -> None:
    job = job_of(kick_off(app), board)
    if done:
        searched(store, job)
    client = app.test_client()
    assert client.delete(path_of(job)).status_code == 202
    assert client.get(path_of(job)).status_code == 404
    assert client.delete(path_of(job)).status_code == 404
    assert board.claim("w1") is None


def test_a_purged_result_is_gone(app: Flask, board: Board, store: Store) -> None:
    job = job_of(kick_off(app), board)
    searched(store, job)
    with store.database.writing() as connection:
        connection.execute(RunRow.__table__.update().values(purged=store.now()))
    assert app.test_client().get(path_of(job)).status_code == 404


def test_a_search_of_the_schedule_is_nobodys(app: Flask, board: Board) -> None:
    board.last_slot("night", "2026-11-01T00:00:00Z")
    now = "2026-11-02T01:31:00Z"
    job = board.slot("night", "2026-11-02T01:30:00Z", Asked((NCT,), "2026-11-02"), now)
    assert job is not None
    assert app.test_client().get(path_of(job)).status_code == 404


@pytest.fixture
def guarded(settings: Settings, tmp_path: Path) -> Flask:
    """Give a service whose callers need keys, two of which may start searches."""
    file = tmp_path / "keys"
    scopes = {"one": " eligibility.screen", "two": " other.scope  eligibility.screen"}
    lines = [f"{name} sha256:{hash_key(key)}{scopes.get(name, '')}" for name, key in KEYS.items()]
    file.write_text("\n".join(lines), encoding="utf-8")
    guarding = replace(settings, caller_auth="keys", caller_keys_file=file)
    return create_app(guarding, screening(), Hospital())


def shown(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}", **ASYNC}


def test_a_caller_needs_the_scope_to_search(guarded: Flask, board: Board) -> None:
    assert kick_off(guarded, headers=ASYNC).status_code == 401
    reply = kick_off(guarded, headers=shown("evaluator"))
    assert reply.status_code == 403
    assert "eligibility.screen" in refusal(reply)["diagnostics"]
    assert job_of(kick_off(guarded, headers=shown("two")), board).requester == "two"
    # The other way round: every key may evaluate and read.
    assert guarded.test_client().get(TRIAL, headers=shown("evaluator")).status_code == 200


def test_another_callers_search_is_as_if_it_were_not(guarded: Flask, board: Board) -> None:
    job = job_of(kick_off(guarded, headers=shown("one")), board)
    client = guarded.test_client()
    assert client.get(path_of(job), headers=shown("two")).status_code == 404
    assert client.delete(path_of(job), headers=shown("two")).status_code == 404
    assert client.get(path_of(job), headers=shown("one")).status_code == 202
    assert job_of(kick_off(guarded, headers=shown("two")), board) != job


def test_the_metrics_tell_of_searches(app: Flask, board: Board, store: Store) -> None:
    job = job_of(kick_off(app), board)
    page = app.test_client().get("/metrics").text
    assert 'eligibility_jobs{state="queued"} 1.0' in page
    assert "eligibility_job_waiting_seconds" in page
    searched(store, job, complete=False)
    page = app.test_client().get("/metrics").text
    assert 'eligibility_jobs{state="done"} 1.0' in page
    assert 'eligibility_last_search_complete{search=""} 0.0' in page
    assert "eligibility_store_readable 1.0" in page


def test_the_metrics_tell_that_the_store_is_away(settings: Settings, tmp_path: Path) -> None:
    away = replace(settings, store=str(tmp_path / "no folder" / "store.db"))
    reply = create_app(away, screening(), Hospital()).test_client().get("/metrics")
    assert reply.status_code == 200
    assert "eligibility_store_readable 0.0" in reply.text


def test_a_queue_that_is_lost_loses_no_search(app: Flask, board: Board, tmp_path: Path) -> None:
    (tmp_path / "store.db-queue").write_bytes(b"no database at all, but long enough" * 100)
    job_of(kick_off(app), board)
    assert board.claim("w1") is not None
