"""The operation: what is asked, what is answered, and how a bad request is refused."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import PatientUnreadable, SourceError, SourceTimeout
from service.fhir.record import CLINICAL_TYPES
from tests.web.asking import (
    BASE,
    LEUKAEMIA,
    PATIENT,
    TRIAL,
    Hospital,
    app_of,
    as_of,
    ask,
    complete,
    condition,
    data,
    outcomes,
    parameters,
    post,
    refusal,
    subject,
    use_server,
)

ALIEN = condition("C50.9", "c2")


def test_a_patient_of_the_source_gets_a_verdict() -> None:
    source = Hospital(PATIENT, LEUKAEMIA)
    answer = ask(app_of(source), subject(), as_of())
    assert source.asked == ["p1"]
    assert answer["resourceType"] == "GuidanceResponse"
    assert answer["subject"] == {"reference": "Patient/p1"}
    assert answer["occurrenceDateTime"] == "2026-11-01"
    found = outcomes(answer)
    assert found["I2.diagnosis"] != "fail record-absent"
    assert found["I1"] == "pass value-meets"
    assert {"P1", *(f"I{n}" for n in range(1, 13)), *(f"E{n}" for n in range(1, 15))} <= set(found)


def test_without_as_of_it_is_today_at_the_site() -> None:
    answer = ask(app_of(), subject())
    assert answer["occurrenceDateTime"] == datetime.now(UTC).date().isoformat()


@pytest.mark.parametrize("reference", ["Patient/p1", f"{BASE}/Patient/p1", "Patient/p1/_history/2"])
def test_the_patient_may_be_named_by_id_or_url_of_the_source(reference: str) -> None:
    assert ask(app_of(), subject(reference))["subject"] == {"reference": "Patient/p1"}


def test_data_alone_is_evaluated_without_the_source() -> None:
    source = Hospital(PATIENT)
    answer = ask(app_of(source), data(PATIENT, LEUKAEMIA), as_of())
    assert source.asked == []
    assert outcomes(answer)["E3"] == "pass record-absent"


def test_a_single_resource_may_be_the_data() -> None:
    answer = ask(app_of(), {"name": "data", "resource": PATIENT}, as_of())
    assert answer["subject"] == {"reference": "Patient/p1"}
    assert outcomes(answer)["I2.diagnosis"] == "fail record-absent"


def test_data_with_its_subject_named_by_full_url() -> None:
    given = data({"resourceType": "Patient", "gender": "male"})
    given["resource"]["entry"][0]["fullUrl"] = "urn:uuid:1"
    assert ask(app_of(), given, subject("urn:uuid:1"))["subject"] == {"reference": "urn:uuid:1"}


def test_data_with_its_subject_named_by_identifier() -> None:
    given = data(
        {**PATIENT, "identifier": [{"system": "urn:mrn", "value": "7"}]}, {**PATIENT, "id": "p2"}
    )
    who = {"name": "subject", "valueReference": {"identifier": {"system": "urn:mrn", "value": "7"}}}
    assert ask(app_of(), given, who)["subject"] == {"reference": "Patient/p1"}


def test_complete_types_make_all_others_incomplete() -> None:
    found = outcomes(ask(app_of(), data(PATIENT, LEUKAEMIA), as_of(), *complete("Condition")))
    assert found["E3"] == "pass record-absent"
    assert found["E12"] == "unknown source-unavailable"


def test_a_search_reply_handed_in_is_judged_as_one() -> None:
    reply = data(
        PATIENT, LEUKAEMIA, kind="searchset", link=[{"relation": "next", "url": "https://s/2"}]
    )
    answer = ask(app_of(), reply, as_of())
    assert outcomes(answer)["E3"] == "unknown source-unavailable"
    (outcome,) = (one for one in answer["contained"] if one["resourceType"] == "OperationOutcome")
    assert "next page" in outcome["issue"][0]["diagnostics"]


def test_the_callers_word_does_not_mend_a_reply_that_was_cut_short() -> None:
    reply = data(PATIENT, kind="searchset", total=5)
    found = outcomes(ask(app_of(), reply, as_of(), *complete("Condition")))
    assert found["E3"] == "unknown source-unavailable"


def test_data_beside_the_sources_adds_to_the_record() -> None:
    source = Hospital(PATIENT, LEUKAEMIA)
    answer = ask(app_of(source), subject(), as_of(), data(ALIEN), use_server())
    assert source.asked == ["p1"]
    assert outcomes(answer)["E3"] == "fail record-present"


def test_data_beside_the_sources_never_hides_what_the_source_refused() -> None:
    """Handed in by itself a Bundle counts as complete; as an addition it does not."""
    source = Hospital(PATIENT, LEUKAEMIA, incomplete=("Condition", "AllergyIntolerance"))
    app = app_of(source)
    found = outcomes(ask(app, subject(), as_of(), data(PATIENT, LEUKAEMIA), use_server()))
    assert found["E3"] == "unknown source-unavailable"
    said = outcomes(
        ask(app, subject(), as_of(), data(LEUKAEMIA), use_server(), *complete("Condition"))
    )
    assert said["E3"] == "pass record-absent"
    assert said["E12"] == "unknown source-unavailable"


def test_the_patient_in_data_may_name_whom_to_read() -> None:
    source = Hospital(PATIENT, LEUKAEMIA)
    ask(app_of(source), as_of(), data(PATIENT), use_server())
    assert source.asked == ["p1"]


BAD: dict[str, tuple[Any, int, str]] = {
    "not JSON": (b"{", 400, "structure"),
    "empty": (b"", 400, "structure"),
    "not UTF-8": (b'{"resourceType": "\xff"}', 400, "structure"),
    "a list": ([], 400, "structure"),
    "not Parameters": ({"resourceType": "Bundle"}, 400, "invalid"),
    "no resourceType": ({}, 400, "structure"),
    "no subject": (parameters(), 400, "required"),
    "subject of wrong type": (parameters({"name": "subject", "valueString": "x"}), 400, "required"),
    "subject is a text": (
        parameters({"name": "subject", "valueReference": "Patient/1"}),
        400,
        "structure",
    ),
    "subject is empty": (parameters({"name": "subject", "valueReference": {}}), 400, "required"),
    "subject is a group": (parameters(subject("Group/1")), 422, "value"),
    "subject is no id": (parameters(subject("Patient/a b")), 422, "value"),
    "subject elsewhere": (parameters(subject("https://other/Patient/p1")), 422, "not-supported"),
    "subject by identifier": (
        parameters({"name": "subject", "valueReference": {"identifier": {"value": "1"}}}),
        422,
        "not-supported",
    ),
    "two subjects": (parameters(subject(), subject("Patient/p2")), 400, "invalid"),
    "unknown patient": (parameters(subject("Patient/p9")), 404, "not-found"),
    "partial asOf": (parameters(subject(), as_of("2026-11")), 400, "value"),
    "impossible asOf": (parameters(subject(), as_of("2026-02-30")), 400, "value"),
    "asOf of wrong type": (
        parameters(subject(), {"name": "asOf", "valueString": "x"}),
        400,
        "value",
    ),
    "unknown parameter": (parameters(subject(), {"name": "completeType"}), 400, "not-supported"),
    "no data": (parameters({"name": "data"}), 400, "required"),
    "data is a text": (parameters({"name": "data", "resource": "x"}), 400, "required"),
    "data of no Patient": (parameters(data(LEUKAEMIA)), 400, "required"),
    "data of two Patients": (
        parameters(data(PATIENT, {**PATIENT, "id": "p2"})),
        422,
        "multiple-matches",
    ),
    "data of another": (parameters(data(PATIENT), subject("Patient/p2")), 422, "not-found"),
    "data of broken Bundle": (
        parameters({"name": "data", "resource": {"resourceType": "Bundle", "entry": 1}}),
        400,
        "structure",
    ),
    "Patient unreadable": (parameters(data({**PATIENT, "birthDate": 7})), 422, "structure"),
    "flag of wrong type": (parameters(subject(), {"name": "useServerData"}), 400, "value"),
    "no source at all": (parameters(subject(), use_server(False)), 400, "required"),
    "type misspelt": (
        parameters(data(PATIENT), {"name": "completeTypes", "valueCode": "a b"}),
        400,
        "value",
    ),
    "type not read": (parameters(data(PATIENT), *complete("Observations")), 400, "value"),
    "types without data": (parameters(subject(), *complete("Condition")), 400, "invalid"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_its_reason(name: str) -> None:
    body, status, code = BAD[name]
    reply = post(app_of(), body)
    assert reply.status_code == status
    assert refusal(reply)["code"] == code


def test_a_refusal_says_where_the_mistake_is() -> None:
    issue = refusal(post(app_of(), parameters(subject(), as_of("x"))))
    assert issue["expression"] == ["Parameters.parameter[1].value"]
    issue = refusal(post(app_of(), parameters({"name": "asOf", "valueDate": 5})))
    assert issue["expression"][0].startswith("Parameters.parameter")


def test_a_refused_type_is_answered_with_those_there_are() -> None:
    issue = refusal(post(app_of(), parameters(data(PATIENT), *complete("Condition", "Encounter"))))
    assert issue["expression"] == ["Parameters.parameter[2].value"]
    for name in (*CLINICAL_TYPES, "Patient", "Medication", "ResearchStudy"):
        assert name in issue["diagnostics"]
        assert post(app_of(), parameters(data(PATIENT), *complete(name))).status_code == 200


def test_an_unknown_trial_is_not_found() -> None:
    reply = post(
        app_of(), parameters(subject()), path="/fhir/ResearchStudy/NCT1/$evaluate-eligibility"
    )
    assert reply.status_code == 404
    assert refusal(reply)["code"] == "not-found"


def test_the_operation_is_post_only() -> None:
    reply = app_of().test_client().get(f"{TRIAL}/$evaluate-eligibility?subject=Patient/p1")
    assert reply.status_code == 405
    assert "POST" in reply.headers["Allow"]
    assert refusal(reply)["code"] == "not-supported"


@pytest.mark.parametrize("error", [SourceError, SourceTimeout, PatientUnreadable])
def test_a_source_that_fails_gives_no_verdict(error: type[SourceError]) -> None:
    source = Hospital(PATIENT)

    def fail() -> None:
        raise error("the server refuses: 403")

    source.instead = fail
    reply = post(app_of(source), parameters(subject()))
    assert reply.status_code == error.status
    assert refusal(reply)["diagnostics"] == "the server refuses: 403"


def test_a_fault_of_ours_shows_nothing_of_the_record(caplog: pytest.LogCaptureFixture) -> None:
    source = Hospital(PATIENT)

    def fail() -> None:
        raise RuntimeError("secret of p1")

    source.instead = fail
    reply = post(app_of(source), parameters(subject()))
    assert reply.status_code == 500
    assert refusal(reply)["code"] == "exception"
    assert b"secret" not in reply.data
    assert "secret" not in "".join(str(record.__dict__["fields"]) for record in caplog.records)


def test_an_evaluation_that_takes_too_long_ends_in_time() -> None:
    source = Hospital(PATIENT)
    source.instead = lambda: time.sleep(1.5)
    started = time.monotonic()
    reply = post(app_of(source, time_limit=1), parameters(subject()))
    assert time.monotonic() - started < 1.4
    assert reply.status_code == 504
    assert refusal(reply)["code"] == "timeout"


def test_too_many_at_once_are_sent_away_for_a_while() -> None:
    source = Hospital(PATIENT)
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        leave.wait(10)

    source.instead = wait
    app = app_of(source, max_concurrent=1)
    thread = threading.Thread(target=post, args=(app, parameters(subject())))
    thread.start()
    try:
        assert entered.wait(10)
        reply = post(app, parameters(subject()))
    finally:
        leave.set()
        thread.join()
    assert reply.status_code == 503
    assert int(reply.headers["Retry-After"]) > 0
    assert refusal(reply)["code"] == "throttled"
    source.instead = None
    assert post(app, parameters(subject())).status_code == 200


def test_bodies_too_large_too_deep_or_too_full_are_refused() -> None:
    app = app_of(max_body_bytes=4_096, max_depth=16, max_entries=3)
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    bodies = [
        b"{" + b" " * 5_000,
        json.dumps(parameters({"name": "data", "resource": {**PATIENT, "extra": deep}})).encode(),
        json.dumps(parameters(data(*[PATIENT] * 4))).encode(),
        b'{"resourceType":"Parameters","parameter":' + b"[" * 2_000,
    ]
    for body in bodies:
        reply = post(app, body)
        assert reply.status_code in (400, 413)
        refusal(reply)
    assert post(app, bodies[0]).status_code == 413
    assert refusal(post(app, bodies[0]))["code"] == "too-costly"


def test_deep_nesting_never_breaks_the_decoder() -> None:
    raw = json.dumps(parameters(data(PATIENT))).encode()
    deep = raw.replace(b'"p1"', b"[" * 100_000 + b"]" * 100_000)
    reply = post(app_of(), deep)
    assert reply.status_code == 413
    refusal(reply)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["id", "code", "subject", "status", "onsetDateTime", "clinicalStatus", "meta", "link",
     "valueQuantity", "identifier", "birthDate", "gender", "contained", "referenceRange"]
)  # fmt: skip
TYPES = st.sampled_from(["Patient", "Condition", "Observation", "Consent", "Bundle", "Procedure"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(TYPES, st.dictionaries(FIELDS, JSON, max_size=4)), max_size=3), JSON)
def test_hostile_records_never_break_the_service(found: list[Any], extra: Any) -> None:
    """Whatever is handed in: a valid verdict or an OperationOutcome, and never eligible."""
    resources = [{"resourceType": kind, **fields} for kind, fields in found]
    reply = post(_APP, parameters(data(PATIENT, *resources, extra), subject()))
    assert reply.status_code in (200, 400, 413, 422), reply.get_data(as_text=True)
    if reply.status_code == 200:
        assert outcomes(json.loads(reply.data))["verdict"] != "eligible"
    else:
        refusal(reply)


@settings(max_examples=100, deadline=None)
@given(JSON | st.builds(lambda inner: parameters(inner), JSON))  # noqa: PLW0108 - typed as Any
def test_hostile_bodies_are_refused(body: Any) -> None:
    reply = post(_APP, body)
    assert reply.status_code in (400, 413, 422)
    refusal(reply)


_APP = app_of()
