"""What all of HTTP has in common: media types, headers, request ids, logs, metrics, limits."""

from __future__ import annotations

import json
import logging

import pytest
from flask import Flask

from service.errors import SourceError
from service.web.limits import Rate, TooManyRequests
from service.web.logs import JsonFormatter
from tests.web.asking import (
    FHIR,
    PATIENT,
    TRIAL,
    Hospital,
    app_of,
    parameters,
    post,
    refusal,
    subject,
)


@pytest.fixture
def app() -> Flask:
    return app_of()


@pytest.mark.parametrize(
    "accept",
    [
        FHIR,
        "application/json",
        "*/*",
        "application/*",
        f"{FHIR}; fhirVersion=4.0",
        "text/html, */*;q=0.1",
        None,
    ],
)
def test_json_is_offered_under_its_names(app: Flask, accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    reply = app.test_client().get(TRIAL, headers=headers)
    assert reply.status_code == 200
    expected = "application/json" if accept == "application/json" else FHIR
    assert reply.mimetype == expected


@pytest.mark.parametrize(
    "accept",
    [
        "application/fhir+xml",
        "text/html",
        f"{FHIR}; fhirVersion=5.0",
        f"{FHIR};q=0",
        "nonsense",
        "",
    ],
)
def test_other_media_types_are_not_acceptable(app: Flask, accept: str) -> None:
    reply = app.test_client().get(TRIAL, headers={"Accept": accept})
    assert reply.status_code == 406
    assert refusal(reply)["code"] == "not-supported"


@pytest.mark.parametrize(("wanted", "status"), [("json", 200), (FHIR, 200), ("xml", 406)])
def test_format_overrides_accept(app: Flask, wanted: str, status: int) -> None:
    query = {"_format": wanted}
    reply = app.test_client().get(TRIAL, query_string=query, headers={"Accept": "text/html"})
    assert reply.status_code == status


@pytest.mark.parametrize(
    "options",
    [
        {"content_type": "application/fhir+xml"},
        {"content_type": "text/plain"},
        {"content_type": ""},
        {"content_type": f"{FHIR}; charset=latin-1"},
        {"content_type": f"{FHIR}; fhirVersion=3.0"},
        {"headers": {"Content-Encoding": "gzip"}},
    ],
)
def test_bodies_of_other_media_types_are_refused(app: Flask, options: dict[str, object]) -> None:
    reply = post(app, parameters(subject()), **options)
    assert reply.status_code == 415
    assert refusal(reply)["code"] == "not-supported"


@pytest.mark.parametrize(
    "kind", [FHIR, "application/json", f"{FHIR}; charset=UTF-8; fhirVersion=4.0"]
)
def test_bodies_of_the_names_of_json_are_read(app: Flask, kind: str) -> None:
    assert post(app, parameters(subject()), content_type=kind).status_code == 200


@pytest.mark.parametrize("path", [TRIAL, "/fhir/nothing", "/healthz", "/metrics", "/fhir/metadata"])
def test_every_answer_carries_the_security_headers(app: Flask, path: str) -> None:
    headers = app.test_client().get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "Strict-Transport-Security" not in headers


def test_requests_keep_their_id_or_get_one(app: Flask) -> None:
    client = app.test_client()
    assert client.get(TRIAL, headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    given = client.get(TRIAL, headers={"X-Request-Id": "a b\x01"}).headers["X-Request-Id"]
    assert len(given) == 36


def test_logs_hold_the_route_and_no_patient(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "eligibility")
    post(app, parameters(subject("Patient/p1")), headers={"X-Request-Id": "r1"})
    app.test_client().get("/fhir/Patient/p1?name=Doe")
    lines = [JsonFormatter().format(record) for record in caplog.records]
    found = [json.loads(line) for line in lines]
    assert [one["route"] for one in found] == [
        "/fhir/ResearchStudy/<trial_id>/$evaluate-eligibility",
        "(none)",
    ]
    assert found[0]["request"] == "r1"
    assert found[0]["status"] == 200
    assert not any("p1" in line or "Doe" in line for line in lines)


def test_errors_are_logged_by_type_and_place_only() -> None:
    try:
        raise ValueError("Patient/p1")
    except ValueError as error:
        record = logging.makeLogRecord(
            {
                "msg": "Error handling request %s",
                "args": ("/x/p1",),
                "exc_info": (type(error), error, None),
            }
        )
        written = JsonFormatter().format(record)
    assert "p1" not in written
    assert json.loads(written)["error"] == "ValueError"
    record = logging.makeLogRecord({"msg": "Invalid request from ip=1.2.3.4: GET /Patient/p1"})
    assert json.loads(JsonFormatter().format(record))["message"] == "Invalid request"


def test_metrics_count_by_route_without_patients(app: Flask) -> None:
    post(app, parameters(subject()))
    reply = app.test_client().get("/metrics")
    text = reply.get_data(as_text=True)
    assert reply.mimetype == "text/plain"
    assert 'eligibility_verdicts_total{trial="NCT06056752"' in text
    assert '$evaluate-eligibility",status="200"} 1.0' in text
    assert "p1" not in text.replace("http1", "")


def test_it_is_ready_only_when_the_source_answers() -> None:
    source = Hospital(PATIENT)
    ready = app_of(source).test_client().get("/readyz")
    assert ready.status_code == 200
    assert ready.get_json()["trials"] == ["NCT06056752"]

    def fail() -> None:
        raise SourceError("the server does not answer")

    source.instead = fail
    app = app_of(source)
    assert app.test_client().get("/readyz").status_code == 503
    assert app.test_client().get("/healthz").status_code == 200


def test_callers_that_ask_too_often_wait() -> None:
    app = app_of(rate_per_minute=2)
    client = app.test_client()
    assert [client.get(TRIAL).status_code for _ in range(3)] == [200, 200, 429]
    reply = client.get(TRIAL)
    assert int(reply.headers["Retry-After"]) >= 1
    assert refusal(reply)["code"] == "throttled"
    assert client.get("/healthz").status_code == 200


def test_a_bucket_fills_again_with_time() -> None:
    now = [0.0]
    rate = Rate(60, clock=lambda: now[0])
    for _ in range(60):
        rate.take("a")
    with pytest.raises(TooManyRequests) as caught:
        rate.take("a")
    assert caught.value.retry_after >= 1
    rate.take("b")
    now[0] = 1.0
    rate.take("a")
    with pytest.raises(TooManyRequests):
        rate.take("a")


def test_forwarded_headers_are_believed_only_from_configured_proxies() -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "public.example"}
    for count, base in ((0, "http://localhost/fhir"), (1, "https://public.example/fhir")):
        reply = app_of(trusted_proxies=count).test_client().get("/fhir/metadata", headers=headers)
        assert json.loads(reply.data)["implementation"]["url"] == base
        assert ("Strict-Transport-Security" in reply.headers) is bool(count)
