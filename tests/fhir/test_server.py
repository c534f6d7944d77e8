"""Reading a patient's record from a server: what is asked, and how completely it was read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import responses
from hypothesis import given
from hypothesis import strategies as st

from service.errors import PatientUnreadable, SourceError, SourceTimeout, UnknownPatient
from service.fhir.auth import BearerToken
from service.fhir.http import Limits
from service.fhir.record import Reading
from service.fhir.server import ServerSource
from service.fhir.source import Fetched, SiteSearch, Wanted, record_of
from service.values.dates import parse
from tests.faults import QUICK, bundle, capability, condition, observation, outcome

BASE = "https://fhir.example.org/r4"
CONDITIONS = Wanted({"Condition": None})
OBSERVATIONS = Wanted({"Observation": frozenset({("http://loinc.org", "718-7")})})
ALL_OBSERVATIONS = Wanted({"Observation": None})
TYPES = {
    "Patient": ["_id"],
    "Condition": ["patient"],
    "Observation": ["patient", "date", "combo-code", "category"],
    "DiagnosticReport": ["patient"],
    "MedicationRequest": ["patient"],
    "ResearchSubject": ["individual"],
    "AdverseEvent": ["subject"],
}

Json = dict[str, object]
Make = Callable[..., ServerSource]


@pytest.fixture
def web() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        yield mocked


@pytest.fixture
def server(web: responses.RequestsMock) -> Iterator[Make]:
    """Make a source whose server offers TYPES (or others) and has patient p1."""
    made: list[ServerSource] = []

    def make(
        site: SiteSearch | None = None,
        limits: Limits = QUICK,
        types: dict[str, list[str]] | None = None,
        patient: Json | None = None,
    ) -> ServerSource:
        web.get(f"{BASE}/metadata", json=capability(types or TYPES))
        web.get(f"{BASE}/Patient/p1", json=patient or {"resourceType": "Patient", "id": "p1"})
        made.append(ServerSource(BASE, site=site, limits=limits))
        return made[-1]

    yield make
    for found in made:
        found.close()


def ids(fetched: Fetched) -> set[str]:
    found = [json.loads(item.raw) for item in fetched.items]
    return {f"{resource['resourceType']}/{resource['id']}" for resource in found}


def queries(web: responses.RequestsMock, kind: str) -> list[dict[str, list[str]]]:
    urls = [urlsplit(call.request.url or "") for call in web.calls]
    return [parse_qs(url.query) for url in urls if url.path == f"/r4/{kind}"]


def incomplete(fetched: Fetched, kind: str) -> str:
    """Give the problem of a type that must be incomplete."""
    reading = fetched.readings[kind]
    assert not reading.complete
    assert reading.problem
    assert any(message.type == kind for message in fetched.messages)
    return reading.problem


# The server


def test_a_record_is_read_with_the_patient_and_each_type(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Condition", json=bundle(condition("c1"), condition("c2"), total=2))
    fetched = server().fetch("p1", CONDITIONS)
    assert fetched.patient == "Patient/p1"
    assert fetched.base_url == BASE
    assert ids(fetched) == {"Patient/p1", "Condition/c1", "Condition/c2"}
    assert fetched.readings == {"Condition": Reading()}
    assert fetched.messages == ()
    assert len(record_of(fetched).resources["Condition"]) == 2


def test_the_capability_statement_is_read_once(web: responses.RequestsMock, server: Make) -> None:
    web.get(f"{BASE}/Condition", json=bundle())
    source = server()
    for _ in range(3):
        source.fetch("p1", CONDITIONS)
    assert len(queries(web, "metadata")) == 1


def test_an_outdated_capability_statement_serves_on_when_it_cannot_be_read_again(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Condition", json=bundle())
    source = server(limits=replace(QUICK, metadata_age=0.001))
    source.fetch("p1", CONDITIONS)
    web.replace(responses.GET, f"{BASE}/metadata", status=500)
    assert source.fetch("p1", CONDITIONS).readings["Condition"].complete


@pytest.mark.parametrize(
    ("answer", "error", "shown"),
    [
        ({"status": 404}, SourceError, "404 Not Found"),
        ({"status": 504}, SourceTimeout, "504 Gateway Timeout"),
        ({"body": requests.Timeout("x")}, SourceTimeout, "in time"),
        ({"body": requests.ConnectionError("x")}, SourceError, "could not be reached"),
        ({"body": "<html>maintenance</html>"}, SourceError, "CapabilityStatement"),
        ({"json": capability({}, version="3.0.2")}, SourceError, r"3\.0\.2"),
        (
            {"status": 403, "json": outcome("error", "forbidden", "E7", "licence expired")},
            SourceError,
            "403 Forbidden, forbidden, E7: licence expired",
        ),
        (
            {"status": 401, "json": outcome("error", "login", text="bad token tok3n")},
            SourceError,
            r"401 Unauthorized, login\)$",
        ),
    ],
)
def test_a_server_without_a_capability_statement_is_an_error_that_says_what_it_said(
    web: responses.RequestsMock, answer: Json, error: type[SourceError], shown: str
) -> None:
    web.get(f"{BASE}/metadata", **answer)  # type: ignore[arg-type]
    source = ServerSource(BASE, BearerToken("tok3n"), limits=QUICK)
    with pytest.raises(error, match=shown) as raised:
        source.fetch("p1", CONDITIONS)
    assert "tok3n" not in str(raised.value)
    with pytest.raises(error):
        source.check()
    source.close()


def test_check_passes_for_a_server_that_answers(server: Make) -> None:
    server().check()


def test_the_source_is_described_by_its_address(server: Make) -> None:
    assert server().describe() == f"FHIR server {BASE}"


# The patient


@pytest.mark.parametrize("status", [404, 410])
def test_a_patient_the_server_does_not_have_is_unknown(
    web: responses.RequestsMock, server: Make, status: int
) -> None:
    source = server()
    web.get(f"{BASE}/Patient/p2", status=status)
    with pytest.raises(UnknownPatient):
        source.fetch("p2", CONDITIONS)


@pytest.mark.parametrize("patient_id", ["", "a b", "../p1", "p1?x=1", "x" * 65, "ü"])
def test_an_impossible_id_is_unknown_and_not_asked_for(server: Make, patient_id: str) -> None:
    with pytest.raises(UnknownPatient):
        server().fetch(patient_id, CONDITIONS)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_patient_is_an_error_that_names_nobody(
    web: responses.RequestsMock, server: Make, status: int
) -> None:
    source = server()
    said = outcome("error", "forbidden", "p2", "Jane Doe (p2) is restricted")
    web.get(f"{BASE}/Patient/p2", status=status, json=said)
    with pytest.raises(SourceError, match=r"refuses.*forbidden") as raised:
        source.fetch("p2", CONDITIONS)
    assert "Jane" not in str(raised.value)
    assert "p2" not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 500}, SourceError),
        ({"status": 504}, SourceTimeout),
        ({"status": 408}, SourceTimeout),
        ({"body": requests.Timeout("x")}, SourceTimeout),
        ({"body": "<html>"}, PatientUnreadable),
        ({"body": ""}, PatientUnreadable),
        ({"json": outcome("error", "not-found")}, PatientUnreadable),
        ({"json": {"resourceType": "Group", "id": "p2"}}, PatientUnreadable),
        ({"json": {"resourceType": "Patient"}}, PatientUnreadable),
        ({"json": {"resourceType": "Patient", "id": "a/b"}}, PatientUnreadable),
    ],
)
def test_without_the_patient_there_is_no_record(
    web: responses.RequestsMock, server: Make, answer: Json, error: type[SourceError]
) -> None:
    source = server()
    web.get(f"{BASE}/Patient/p2", **answer)  # type: ignore[arg-type]
    with pytest.raises(error):
        source.fetch("p2", CONDITIONS)


def replaced(found: str, by: str) -> Json:
    link = {"type": "replaced-by", "other": {"reference": f"Patient/{by}"}}
    return {"resourceType": "Patient", "id": found, "link": [link]}


def by_patient(
    found: dict[str, Json],
) -> Callable[[requests.PreparedRequest], tuple[int, dict[str, str], str]]:
    """Answer a search of Conditions by its patient."""

    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        who = parse_qs(urlsplit(request.url or "").query)["patient"][0]
        return 200, {}, json.dumps(found[who])

    return answer


def test_a_merged_patient_is_followed_and_both_ids_are_read(
    web: responses.RequestsMock, server: Make
) -> None:
    source = server(patient=replaced("p1", "p9"))
    web.get(f"{BASE}/Patient/p9", json={"resourceType": "Patient", "id": "p9"})
    pages = {"p1": bundle(condition("old", "p1")), "p9": bundle(condition("new", "p9"))}
    web.add_callback(responses.GET, f"{BASE}/Condition", by_patient(pages))
    record = record_of(source.fetch("p1", CONDITIONS))
    assert record.patient_ids == ("p9", "p1")
    assert {found.reference for found in record.resources["Condition"]} == {
        "Condition/old", "Condition/new",
    }  # fmt: skip


def test_ids_merged_into_the_patient_are_searched_for_where_the_server_can(
    web: responses.RequestsMock, server: Make
) -> None:
    source = server(types={**TYPES, "Patient": ["link"]})

    def merged(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        asked = parse_qs(urlsplit(request.url or "").query)["link"][0]
        older = {"Patient/p1": [replaced("p0", "p1")], "Patient/p0": [replaced("pA", "p0")]}
        return 200, {}, json.dumps(bundle(*older.get(asked, [])))

    web.add_callback(responses.GET, f"{BASE}/Patient", merged)
    pages = {found: bundle(condition(f"c-{found}", found)) for found in ("p1", "p0", "pA")}
    web.add_callback(responses.GET, f"{BASE}/Condition", by_patient(pages))
    fetched = source.fetch("p1", CONDITIONS)
    assert fetched.readings["Condition"].complete
    record = record_of(fetched)
    assert set(record.patient_ids) == {"p1", "p0", "pA"}
    assert len(record.resources["Condition"]) == 3


def test_a_failing_search_for_merged_ids_leaves_every_type_incomplete(
    web: responses.RequestsMock, server: Make
) -> None:
    source = server(types={**TYPES, "Patient": ["link"]})
    web.get(f"{BASE}/Patient", status=503)
    web.get(f"{BASE}/Condition", json=bundle(condition("c1")))
    assert "merged" in incomplete(source.fetch("p1", CONDITIONS), "Condition")


@pytest.mark.parametrize("status", [400, 404, 422, 501])
def test_a_declared_search_for_merged_ids_that_is_refused_leaves_every_type_incomplete(
    web: responses.RequestsMock, server: Make, status: int
) -> None:
    source = server(types={**TYPES, "Patient": ["link"]})
    web.get(f"{BASE}/Patient", status=status)
    web.get(f"{BASE}/Condition", json=bundle(condition("c1")))
    assert "merged" in incomplete(source.fetch("p1", CONDITIONS), "Condition")


def test_a_site_parameter_that_narrows_is_named_in_the_reading(
    web: responses.RequestsMock, server: Make
) -> None:
    extra = {"Condition": {"clinical-status": "active"}}
    source = server(site=SiteSearch(extra_parameters=extra))
    web.get(f"{BASE}/Condition", json=bundle(condition("c1")))
    fetched = source.fetch("p1", CONDITIONS)
    assert "(clinical-status)" in incomplete(fetched, "Condition")
    assert "Condition/c1" in ids(fetched)


def test_the_records_of_an_id_that_the_patient_replaces_are_read(
    web: responses.RequestsMock, server: Make
) -> None:
    link = {"type": "replaces", "other": {"reference": "Patient/p0"}}
    source = server(patient={"resourceType": "Patient", "id": "p1", "link": [link]})
    pages = {"p1": bundle(), "p0": bundle(condition("old", "p0"))}
    web.add_callback(responses.GET, f"{BASE}/Condition", by_patient(pages))
    record = record_of(source.fetch("p1", CONDITIONS))
    assert [found.reference for found in record.resources["Condition"]] == ["Condition/old"]


def test_a_server_that_answers_with_the_survivor_is_understood(
    web: responses.RequestsMock, server: Make
) -> None:
    source = server()
    web.get(f"{BASE}/Patient/p0", status=301, headers={"Location": f"{BASE}/Patient/p1"})
    pages = {"p1": bundle(condition("new", "p1")), "p0": bundle(condition("old", "p0"))}
    web.add_callback(responses.GET, f"{BASE}/Condition", by_patient(pages))
    record = record_of(source.fetch("p0", CONDITIONS))
    assert record.patient_ids == ("p1", "p0")
    assert len(record.resources["Condition"]) == 2


@pytest.mark.parametrize("survivor", ["gone", "https://other.example.org/Patient/1"])
def test_a_merged_patient_without_a_readable_survivor_gives_no_record(
    web: responses.RequestsMock, server: Make, survivor: str
) -> None:
    link = {"type": "replaced-by", "other": {"reference": survivor}}
    if survivor == "gone":
        link["other"] = {"reference": "Patient/gone"}
    web.get(f"{BASE}/Patient/gone", status=410)
    source = server(patient={"resourceType": "Patient", "id": "p1", "link": [link]})
    with pytest.raises(PatientUnreadable, match="merged"):
        source.fetch("p1", CONDITIONS)


def test_patients_that_replace_each_other_do_not_go_round_for_ever(
    web: responses.RequestsMock, server: Make
) -> None:
    source = server(patient=replaced("p1", "p2"))
    web.get(f"{BASE}/Patient/p2", json=replaced("p2", "p1"))
    web.get(f"{BASE}/Condition", json=bundle())
    assert source.fetch("p1", CONDITIONS).readings["Condition"].complete


# Types


def test_a_type_the_server_does_not_offer_is_incomplete_unless_the_site_says_otherwise(
    web: responses.RequestsMock, server: Make
) -> None:
    wanted = Wanted({"Consent": None})
    fetched = server().fetch("p1", wanted)
    assert "does not offer" in incomplete(fetched, "Consent")
    assert fetched.readings["Consent"].not_offered
    site = SiteSearch(not_offered={"Consent": "none-kept"})
    assert server(site).fetch("p1", wanted).readings["Consent"] == Reading(not_offered=True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422, 500, 501, 503])
def test_a_refused_type_is_incomplete_and_the_others_are_read(
    web: responses.RequestsMock, server: Make, status: int
) -> None:
    said = outcome("error", "processing", text="Jane Doe")
    web.get(f"{BASE}/Condition", status=status, json=said)
    web.get(f"{BASE}/AdverseEvent", json=bundle())
    fetched = server().fetch("p1", Wanted({"Condition": None, "AdverseEvent": None}))
    problem = incomplete(fetched, "Condition")
    assert str(status) in problem
    assert "processing" in problem
    assert "Jane" not in problem
    assert not fetched.readings["Condition"].not_offered
    assert fetched.readings["AdverseEvent"].complete
    assert queries(web, "AdverseEvent")[0]["subject"] == ["Patient/p1"]


def test_a_record_of_which_every_search_failed_is_still_given(
    web: responses.RequestsMock, server: Make
) -> None:
    fetched = server(limits=replace(QUICK, circuit_failures=2)).fetch(
        "p1", Wanted({kind: None for kind in TYPES if kind != "Patient"})
    )
    assert ids(fetched) == {"Patient/p1"}
    assert not any(reading.complete for reading in fetched.readings.values())


def test_types_that_are_only_referred_to_are_not_searched(server: Make) -> None:
    fetched = server().fetch("p1", Wanted({"Patient": None, "Medication": None}))
    assert fetched.readings == {"Patient": Reading(), "Medication": Reading()}


def test_a_search_is_sent_by_post_where_the_site_says_so(
    web: responses.RequestsMock, server: Make
) -> None:
    web.post(f"{BASE}/Condition/_search", json=bundle(condition("c1"), following=f"{BASE}?page=2"))
    web.get(BASE, json=bundle(condition("c2")))
    fetched = server(SiteSearch(use_post=True)).fetch("p1", CONDITIONS)
    assert ids(fetched) == {"Patient/p1", "Condition/c1", "Condition/c2"}
    request = web.calls[2].request
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert parse_qs(str(request.body))["patient"] == ["p1"]
    assert "?" not in (request.url or "")


def test_an_address_that_would_be_too_long_is_sent_by_post(
    web: responses.RequestsMock, server: Make
) -> None:
    web.post(f"{BASE}/Observation/_search", json=bundle())
    long = Wanted({"Observation": frozenset({("http://loinc.org", "x" * 2000)})})
    assert server().fetch("p1", long).readings["Observation"].complete
    assert queries(web, "Observation") == []


def test_sorting_and_includes_are_left_out_where_the_server_refuses_them(
    web: responses.RequestsMock, server: Make
) -> None:
    def picky(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        if "_sort" in (request.url or ""):
            return 400, {}, json.dumps(outcome("error", "not-supported"))
        return 200, {}, json.dumps(bundle(observation("o1")))

    web.add_callback(responses.GET, f"{BASE}/Observation", picky)
    fetched = server().fetch("p1", ALL_OBSERVATIONS)
    assert fetched.readings["Observation"] == Reading()
    assert "Observation/o1" in ids(fetched)


def test_a_server_that_refuses_searches_by_code_is_read_wider(
    web: responses.RequestsMock, server: Make
) -> None:
    def picky(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        if "combo-code" in (request.url or ""):
            return 400, {}, json.dumps(outcome("error", "not-supported"))
        return 200, {}, json.dumps(bundle(observation("o1"), observation("o2", code="1-8")))

    web.add_callback(responses.GET, f"{BASE}/Observation", picky)
    fetched = server().fetch("p1", OBSERVATIONS)
    assert fetched.readings["Observation"] == Reading()
    assert {"Observation/o1", "Observation/o2"} <= ids(fetched)


def demands_category(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
    asked = parse_qs(urlsplit(request.url or "").query)
    if "category" not in asked and "code" not in asked:
        return 400, {}, json.dumps(outcome("fatal", "required"))
    found = [observation("o1")] if asked.get("category") == ["laboratory"] else []
    return 200, {}, json.dumps(bundle(*found))


def test_a_server_that_demands_a_category_is_read_by_the_usual_ones_and_by_code(
    web: responses.RequestsMock, server: Make
) -> None:
    """As Epic does; what has none of the usual categories is still found by its code."""
    web.add_callback(responses.GET, f"{BASE}/Observation", demands_category)
    types = {"Observation": ["patient", "code", "category", "date"]}
    fetched = server(types=types).fetch("p1", OBSERVATIONS)
    assert fetched.readings["Observation"] == Reading()
    assert "Observation/o1" in ids(fetched)


def test_a_search_by_code_that_fails_beside_the_usual_categories_leaves_the_type_incomplete(
    web: responses.RequestsMock, server: Make
) -> None:
    def without_codes(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        if "code" in parse_qs(urlsplit(request.url or "").query):
            return 500, {}, ""
        return demands_category(request)

    web.add_callback(responses.GET, f"{BASE}/Observation", without_codes)
    types = {"Observation": ["patient", "code", "category", "date"]}
    assert "500" in incomplete(server(types=types).fetch("p1", OBSERVATIONS), "Observation")


def test_without_codes_the_usual_categories_may_miss_some(
    web: responses.RequestsMock, server: Make
) -> None:
    web.add_callback(responses.GET, f"{BASE}/Observation", demands_category)
    types = {"Observation": ["patient", "code", "category", "date"]}
    fetched = server(types=types).fetch("p1", ALL_OBSERVATIONS)
    assert "category" in incomplete(fetched, "Observation")
    assert "Observation/o1" in ids(fetched)


def test_results_of_a_search_that_ignored_its_filters_are_kept_for_filtering_here(
    web: responses.RequestsMock, server: Make
) -> None:
    foreign = {**observation("o3"), "subject": {"reference": "Patient/other"}}
    web.get(
        f"{BASE}/Observation",
        json=bundle(observation("o1"), observation("o2", code="1-8"), foreign),
    )
    fetched = server().fetch("p1", OBSERVATIONS)
    assert fetched.readings["Observation"].complete
    found = record_of(fetched).resources["Observation"]
    assert {located.reference for located in found} == {"Observation/o1", "Observation/o2"}


# Pages


def pages(web: responses.RequestsMock, *answers: Json | None, kind: str = "Condition") -> None:
    """Answer a search with linked pages; None is a page that fails."""
    urls = [f"{BASE}/{kind}", *(f"{BASE}/pages/{number}" for number in range(1, len(answers)))]
    for number, (url, answer) in enumerate(zip(urls, answers, strict=True)):
        if answer is None:
            web.get(url, status=500)
            continue
        more = number + 1 < len(urls) and "link" not in answer
        link = {"link": [{"relation": "next", "url": urls[number + 1]}]} if more else {}
        web.get(url, json={**answer, **link})


def test_pages_are_read_to_the_end(web: responses.RequestsMock, server: Make) -> None:
    pages(web, *(bundle(condition(f"c{n}"), total=3) for n in range(3)))
    fetched = server().fetch("p1", CONDITIONS)
    assert fetched.readings["Condition"] == Reading()
    assert len(fetched.items) == 4


@pytest.mark.parametrize("following", ["/r4/pages/1", "pages/1", "?page=1", f"{BASE}/pages/1#x"])
def test_relative_links_are_resolved(
    web: responses.RequestsMock, server: Make, following: str
) -> None:
    second = bundle(condition("c2"))
    web.get(f"{BASE}/Condition?page=1", json=second)
    web.get(f"{BASE}/pages/1", json=second)
    web.get(f"{BASE}/Condition", json=bundle(condition("c1"), following=following))
    fetched = server().fetch("p1", CONDITIONS)
    assert fetched.readings["Condition"].complete
    assert "Condition/c2" in ids(fetched)


@pytest.mark.parametrize(
    "following",
    [
        "https://evil.test/r4/Condition?page=2",
        "http://fhir.example.org/r4/Condition?page=2",
        "https://fhir.example.org:8443/r4/Condition?page=2",
        "https://fhir.example.org/admin",
        "https://fhir.example.org/r4/../admin",
        "//evil.test/x",
        "file:///etc/passwd",
        "https://fhir.example.org:443:443/r4?page=2",
    ],
)
def test_links_to_another_address_are_not_followed(
    web: responses.RequestsMock, server: Make, following: str
) -> None:
    web.get(f"{BASE}/Condition", json=bundle(condition("c1"), following=following))
    fetched = server().fetch("p1", CONDITIONS)
    assert "another address" in incomplete(fetched, "Condition")
    assert "Condition/c1" in ids(fetched)
    assert len(web.calls) == 3


@given(st.text(max_size=60))
def test_no_link_whatever_leads_to_another_origin(following: str) -> None:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as web:
        web.get(f"{BASE}/metadata", json=capability(TYPES))
        web.get(f"{BASE}/Patient/p1", json={"resourceType": "Patient", "id": "p1"})
        web.get(f"{BASE}/Condition", json=bundle(condition("c1"), following=following))
        source = ServerSource(BASE, limits=replace(QUICK, attempts=1))
        fetched = source.fetch("p1", CONDITIONS)
        source.close()
        assert "Condition/c1" in ids(fetched)
        for call in web.calls:
            assert (call.request.url or "").startswith(BASE)


def test_links_that_loop_are_noticed(web: responses.RequestsMock, server: Make) -> None:
    pages(
        web,
        bundle(condition("c1")),
        bundle(condition("c2")),
        bundle(condition("c3"), following=f"{BASE}/pages/1"),
    )
    fetched = server().fetch("p1", CONDITIONS)
    assert "loop" in incomplete(fetched, "Condition")
    assert len(fetched.items) == 4


def test_a_link_back_to_the_first_page_is_a_loop(web: responses.RequestsMock, server: Make) -> None:
    def itself(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        return 200, {}, json.dumps(bundle(condition("c1"), following=request.url))

    web.add_callback(responses.GET, f"{BASE}/Condition", itself)
    assert "loop" in incomplete(server().fetch("p1", CONDITIONS), "Condition")
    assert len(queries(web, "Condition")) == 1


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        (replace(QUICK, pages=2), "2 pages"),
        (replace(QUICK, entries=2), "2 entries"),
        (replace(QUICK, search=100), "100 bytes"),
    ],
)
def test_caps_cut_a_search_short_and_say_so(
    web: responses.RequestsMock, server: Make, limits: Limits, shown: str
) -> None:
    pages(web, *(bundle(condition(f"c{n}")) for n in range(4)))
    fetched = server(limits=limits).fetch("p1", CONDITIONS)
    assert shown in incomplete(fetched, "Condition")
    assert "Condition/c0" in ids(fetched)


def test_a_reply_larger_than_the_limit_is_not_read(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Condition", json=bundle(*(condition(f"c{n}") for n in range(100))))
    fetched = server(limits=replace(QUICK, body=4000)).fetch("p1", CONDITIONS)
    assert "larger than 4000 bytes" in incomplete(fetched, "Condition")


@pytest.mark.parametrize("status", [400, 404, 410])
def test_an_expired_cursor_restarts_the_search_once(
    web: responses.RequestsMock, server: Make, status: int
) -> None:
    web.get(f"{BASE}/Condition", json=bundle(condition("c1"), following=f"{BASE}?cursor=a"))
    web.get(BASE, status=status)
    web.get(BASE, json=bundle(condition("c2")))
    fetched = server().fetch("p1", CONDITIONS)
    assert fetched.readings["Condition"] == Reading()
    assert {"Condition/c1", "Condition/c2"} <= ids(fetched)
    assert len(queries(web, "Condition")) == 2


def test_a_cursor_that_expires_again_leaves_the_type_incomplete(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Condition", json=bundle(condition("c1"), following=f"{BASE}?cursor=a"))
    web.get(BASE, status=410)
    fetched = server().fetch("p1", CONDITIONS)
    assert "410" in incomplete(fetched, "Condition")
    assert "Condition/c1" in ids(fetched)
    assert len(queries(web, "Condition")) == 2


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("", "not JSON"),
        ("<html>Service unavailable</html>", "not JSON"),
        ('{"resourceType":"Bundle","type":"searchset","entry":[{"reso', "not JSON"),
        ("[]", "not a Bundle"),
        ('{"resourceType":"Condition","id":"c1"}', "not a Bundle"),
        ('{"resourceType":"Bundle","type":"collection"}', "searchset"),
        ('{"resourceType":"Bundle"}', "searchset"),
        ('{"resourceType":"Bundle","type":"searchset","entry":{}}', "not a Bundle"),
        ('{"resourceType":"Bundle","type":"searchset","link":[{"relation":"next"}]}', "empty"),
        ('{"resourceType":"Bundle","type":"searchset","entry":[{}]}', "without a readable"),
        ('{"resourceType":"Bundle","type":"searchset","entry":[{"resource":null}]}', "readable"),
        ('{"resourceType":"Bundle","type":"searchset","entry":[{"resource":[]}]}', "readable"),
        ('{"resourceType":"Bundle","type":"searchset","total":1}', "fewer"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_reply_that_is_no_page_of_a_search_leaves_the_type_incomplete(
    web: responses.RequestsMock, server: Make, body: str, shown: str
) -> None:
    web.get(f"{BASE}/Condition", body=body)
    assert shown in incomplete(server().fetch("p1", CONDITIONS), "Condition")


@pytest.mark.parametrize("lost", [None, {"resourceType": "Parameters"}])
def test_what_came_before_a_lost_page_is_kept(
    web: responses.RequestsMock, server: Make, lost: Json | None
) -> None:
    pages(web, bundle(condition("c1")), bundle(condition("c2")), lost)
    fetched = server().fetch("p1", CONDITIONS)
    incomplete(fetched, "Condition")
    assert {"Condition/c1", "Condition/c2"} <= ids(fetched)


def test_fewer_matches_than_announced_leave_the_type_incomplete(
    web: responses.RequestsMock, server: Make
) -> None:
    """A repeated entry does not stand for one that is missing."""
    pages(web, bundle(condition("c1"), total=2), bundle(condition("c1"), total=2))
    assert "fewer" in incomplete(server().fetch("p1", CONDITIONS), "Condition")


def test_included_resources_are_kept_and_not_counted_as_matches(
    web: responses.RequestsMock, server: Make
) -> None:
    page = bundle(condition("c1"), total=1)
    page["entry"].append(
        {"resource": {"resourceType": "Medication", "id": "m1"}, "search": {"mode": "include"}}
    )
    web.get(f"{BASE}/Condition", json=page)
    fetched = server().fetch("p1", CONDITIONS)
    assert fetched.readings["Condition"] == Reading()
    assert "Medication/m1" in ids(fetched)


def test_a_resource_that_is_not_valid_is_handed_on_to_be_reported(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Condition", json=bundle({"resourceType": "Condition", "id": 3, "code": 4}))
    fetched = server().fetch("p1", CONDITIONS)
    assert len(fetched.items) == 2
    assert record_of(fetched).rejected


# What a server says on the side


@pytest.mark.parametrize("severity", ["warning", "error", "fatal", "WARNING", "odd", ""])
@pytest.mark.parametrize("modes", [True, False])
def test_a_warning_leaves_the_type_incomplete(
    web: responses.RequestsMock, server: Make, severity: str, modes: bool
) -> None:
    said = outcome(severity, "suppressed", "4119", "Jane Doe's record is restricted")
    page = bundle(condition("c1"), outcome=said, modes=modes)
    if not modes:
        del page["entry"][-1]["search"]
    web.get(f"{BASE}/Condition", json=page)
    fetched = server().fetch("p1", CONDITIONS)
    problem = incomplete(fetched, "Condition")
    assert "4119" in problem
    assert "Jane" not in problem
    assert "Condition/c1" in ids(fetched)
    assert {json.loads(item.raw)["resourceType"] for item in fetched.items} == {
        "Patient",
        "Condition",
    }


def test_information_does_not_leave_the_type_incomplete(
    web: responses.RequestsMock, server: Make
) -> None:
    said = outcome("information", "informational")
    web.get(f"{BASE}/Condition", json=bundle(condition("c1"), outcome=said))
    assert server().fetch("p1", CONDITIONS).readings["Condition"] == Reading()


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("code", ["4101", "not-found"])
def test_a_code_that_the_site_accepts_is_harmless(
    web: responses.RequestsMock, server: Make, alone: bool, code: str
) -> None:
    said = outcome("warning", "not-found", "4101")
    web.get(f"{BASE}/Condition", json=said if alone else bundle(outcome=said))
    site = SiteSearch(harmless_outcomes=frozenset({code}))
    assert server(site).fetch("p1", CONDITIONS).readings["Condition"] == Reading()


def test_one_harmless_issue_does_not_excuse_another(
    web: responses.RequestsMock, server: Make
) -> None:
    said = outcome("warning", "not-found", "4101")
    said["issue"] += outcome("warning", "incomplete", "4119")["issue"]
    web.get(f"{BASE}/Condition", json=bundle(outcome=said))
    site = SiteSearch(harmless_outcomes=frozenset({"4101"}))
    problem = incomplete(server(site).fetch("p1", CONDITIONS), "Condition")
    assert "4119" in problem
    assert "4101" not in problem


def test_an_outcome_instead_of_a_page_leaves_the_type_incomplete(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Condition", json=outcome("information", "informational"))
    assert "OperationOutcome" in incomplete(server().fetch("p1", CONDITIONS), "Condition")


@pytest.mark.parametrize(
    "said",
    [
        {"resourceType": "OperationOutcome"},
        {"resourceType": "OperationOutcome", "issue": []},
        {"resourceType": "OperationOutcome", "issue": [3]},
        {"resourceType": "OperationOutcome", "issue": [{}]},
    ],
)
def test_an_outcome_that_says_nothing_is_taken_for_a_warning(
    web: responses.RequestsMock, server: Make, said: Json
) -> None:
    web.get(f"{BASE}/Condition", json=bundle(outcome=said))
    incomplete(server().fetch("p1", CONDITIONS), "Condition")


# Newest first (semantics 1.3)


def test_a_sorted_reply_that_breaks_off_is_known_back_to_its_oldest_result(
    web: responses.RequestsMock, server: Make
) -> None:
    first = bundle(observation("o1", "2026-03-05T10:00:00Z"), observation("o2", "2026-03-01"))
    pages(web, first, None, kind="Observation")
    fetched = server().fetch("p1", ALL_OBSERVATIONS)
    incomplete(fetched, "Observation")
    assert fetched.readings["Observation"].reached == parse("2026-03-01", UTC).start


def test_a_reply_that_is_not_really_sorted_is_known_nowhere(
    web: responses.RequestsMock, server: Make
) -> None:
    first = bundle(observation("o1", "2026-03-01"), observation("o2", "2026-03-05"))
    pages(web, first, None, kind="Observation")
    assert server().fetch("p1", ALL_OBSERVATIONS).readings["Observation"].reached is None


def test_a_sorted_reply_with_a_warning_is_known_nowhere(
    web: responses.RequestsMock, server: Make
) -> None:
    """What was withheld may be the newest."""
    first = bundle(observation("o1"), outcome=outcome("warning", "suppressed"))
    pages(web, first, None, kind="Observation")
    assert server().fetch("p1", ALL_OBSERVATIONS).readings["Observation"].reached is None


def test_a_reply_that_was_not_sorted_is_known_nowhere(
    web: responses.RequestsMock, server: Make
) -> None:
    pages(web, bundle(observation("o1")), None, kind="Observation")
    source = server(types={"Observation": ["patient"]})
    assert source.fetch("p1", ALL_OBSERVATIONS).readings["Observation"].reached is None


def test_of_several_searches_the_one_that_reaches_least_far_counts(
    web: responses.RequestsMock, server: Make
) -> None:
    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        category = parse_qs(urlsplit(request.url or "").query)["category"][0]
        day = {"laboratory": "2026-03-01", "exam": "2026-02-01"}[category]
        found = bundle(observation(category, day), following=f"{BASE}/lost")
        return 200, {}, json.dumps(found)

    web.add_callback(responses.GET, f"{BASE}/Observation", answer)
    web.get(f"{BASE}/lost", status=500)
    site = SiteSearch(category_required={"Observation": ("laboratory", "exam")})
    reading = server(site).fetch("p1", ALL_OBSERVATIONS).readings["Observation"]
    assert reading.reached == parse("2026-03-01", UTC).start


# What a record refers to


def request_for(medication: str) -> Json:
    return {
        "resourceType": "MedicationRequest",
        "id": "r1",
        "subject": {"reference": "Patient/p1"},
        "medicationReference": {"reference": medication},
    }


MEDICINES = Wanted({"MedicationRequest": None})


@pytest.mark.parametrize(
    "reference", ["Medication/m1", f"{BASE}/Medication/m1", "Medication/m1/_history/2"]
)
def test_a_medicine_referred_to_is_read_once(
    web: responses.RequestsMock, server: Make, reference: str
) -> None:
    second = {**request_for(reference), "id": "r2"}
    web.get(f"{BASE}/MedicationRequest", json=bundle(request_for(reference), second))
    web.get(f"{BASE}/Medication/m1", json={"resourceType": "Medication", "id": "m1"})
    fetched = server().fetch("p1", MEDICINES)
    assert fetched.readings["MedicationRequest"] == Reading()
    assert "Medication/m1" in ids(fetched)
    assert len(queries(web, "Medication/m1")) == 1


def test_an_included_medicine_is_not_read_again(web: responses.RequestsMock, server: Make) -> None:
    included = {"resourceType": "Medication", "id": "m1"}
    web.get(f"{BASE}/MedicationRequest", json=bundle(request_for("Medication/m1"), included))
    assert server().fetch("p1", MEDICINES).readings["MedicationRequest"] == Reading()
    assert queries(web, "Medication/m1") == []


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 404},
        {"status": 410},
        {"status": 500},
        {"body": "<html>"},
        {"json": {"resourceType": "Medication", "id": "other"}},
        {"body": requests.Timeout("x")},
    ],
)
def test_a_medicine_that_cannot_be_read_leaves_what_refers_to_it_incomplete(
    web: responses.RequestsMock, server: Make, answer: Json
) -> None:
    web.get(f"{BASE}/MedicationRequest", json=bundle(request_for("Medication/m1")))
    web.get(f"{BASE}/Medication/m1", **answer)  # type: ignore[arg-type]
    web.get(f"{BASE}/Condition", json=bundle())
    fetched = server().fetch("p1", Wanted({**MEDICINES.codes, "Condition": None}))
    assert "Medication" in incomplete(fetched, "MedicationRequest")
    assert fetched.readings["Condition"].complete


@pytest.mark.parametrize(
    "reference",
    ["https://other.example.org/fhir/Medication/m1", "urn:uuid:1-2-3", "Medication/a b"],
)
def test_a_reference_to_elsewhere_is_not_followed(
    web: responses.RequestsMock, server: Make, reference: str
) -> None:
    web.get(f"{BASE}/MedicationRequest", json=bundle(request_for(reference)))
    problem = incomplete(server().fetch("p1", MEDICINES), "MedicationRequest")
    assert "not on this FHIR server" in problem
    assert len(web.calls) == 3


def test_a_contained_medicine_needs_no_reading(web: responses.RequestsMock, server: Make) -> None:
    web.get(f"{BASE}/MedicationRequest", json=bundle(request_for("#m1")))
    assert server().fetch("p1", MEDICINES).readings["MedicationRequest"] == Reading()


def test_the_study_of_a_participation_is_read(web: responses.RequestsMock, server: Make) -> None:
    subject = {
        "resourceType": "ResearchSubject",
        "id": "s1",
        "individual": {"reference": "Patient/p1"},
        "study": {"reference": "ResearchStudy/x"},
    }
    web.get(f"{BASE}/ResearchSubject", json=bundle(subject))
    web.get(f"{BASE}/ResearchStudy/x", json={"resourceType": "ResearchStudy", "id": "x"})
    fetched = server().fetch("p1", Wanted({"ResearchSubject": None}))
    assert fetched.readings["ResearchSubject"] == Reading()
    assert "ResearchStudy/x" in ids(fetched)


def panel(found: str, *members: str) -> Json:
    return observation(found, hasMember=[{"reference": member} for member in members])


def test_panel_members_missing_from_the_search_are_read_also_nested_ones(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Observation", json=bundle(panel("o1", "Observation/o2", "Task/t")))
    web.get(f"{BASE}/Observation/o2", json=panel("o2", "Observation/o3"))
    web.get(f"{BASE}/Observation/o3", json=observation("o3"))
    fetched = server().fetch("p1", ALL_OBSERVATIONS)
    assert fetched.readings["Observation"] == Reading()
    assert {"Observation/o2", "Observation/o3"} <= ids(fetched)


def test_results_of_a_report_are_read_and_their_lack_is_felt_in_the_observations(
    web: responses.RequestsMock, server: Make
) -> None:
    report = {
        "resourceType": "DiagnosticReport",
        "id": "d1",
        "subject": {"reference": "Patient/p1"},
        "result": [{"reference": f"Observation/{found}"} for found in ("o1", "o2", "o3")],
    }
    web.get(f"{BASE}/Observation", json=bundle(observation("o1")))
    web.get(f"{BASE}/DiagnosticReport", json=bundle(report))
    web.get(f"{BASE}/Observation/o2", json=observation("o2"))
    web.get(f"{BASE}/Observation/o3", status=403)
    wanted = Wanted({"Observation": None, "DiagnosticReport": None})
    fetched = server().fetch("p1", wanted)
    assert "Observation/o2" in ids(fetched)
    assert "403" in incomplete(fetched, "Observation")
    assert fetched.readings["DiagnosticReport"] == Reading()


def test_a_deleted_panel_member_is_no_longer_a_record(
    web: responses.RequestsMock, server: Make
) -> None:
    web.get(f"{BASE}/Observation", json=bundle(panel("o1", "Observation/o2")))
    web.get(f"{BASE}/Observation/o2", status=410)
    assert server().fetch("p1", ALL_OBSERVATIONS).readings["Observation"] == Reading()


def test_panels_without_end_are_given_up(web: responses.RequestsMock, server: Make) -> None:
    web.get(f"{BASE}/Observation", json=bundle(panel("o0", "Observation/o1")))
    for number in range(1, 9):
        found = panel(f"o{number}", f"Observation/o{number + 1}")
        web.get(f"{BASE}/Observation/o{number}", json=found)
    assert "nested" in incomplete(server().fetch("p1", ALL_OBSERVATIONS), "Observation")


def test_more_references_than_the_limit_leave_the_type_incomplete(
    web: responses.RequestsMock, server: Make
) -> None:
    members = [f"Observation/m{number}" for number in range(9)]
    web.get(f"{BASE}/Observation", json=bundle(panel("o1", *members)))
    for number in range(9):
        web.get(f"{BASE}/Observation/m{number}", json=observation(f"m{number}"))
    fetched = server(limits=replace(QUICK, references=5)).fetch("p1", ALL_OBSERVATIONS)
    assert "one by one" in incomplete(fetched, "Observation")
    assert len(fetched.items) == 2 + 5


def narrow_or_wide(
    narrow: Json, wide: Json
) -> Callable[[requests.PreparedRequest], tuple[int, dict[str, str], str]]:
    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        return 200, {}, json.dumps(narrow if "combo-code" in (request.url or "") else wide)

    return answer


def test_an_undated_result_found_by_code_makes_its_panel_be_read(
    web: responses.RequestsMock, server: Make
) -> None:
    """A result without a time takes its panel's (semantics 1.3)."""
    member = observation("o1", None)
    wide = bundle(member, panel("o9", "Observation/o1"))
    web.add_callback(responses.GET, f"{BASE}/Observation", narrow_or_wide(bundle(member), wide))
    fetched = server().fetch("p1", OBSERVATIONS)
    assert fetched.readings["Observation"] == Reading()
    assert "Observation/o9" in ids(fetched)


def test_many_results_of_reports_are_read_by_one_search(
    web: responses.RequestsMock, server: Make
) -> None:
    found = [observation(f"o{number}") for number in range(50)]
    report = {
        "resourceType": "DiagnosticReport",
        "id": "d1",
        "subject": {"reference": "Patient/p1"},
        "result": [{"reference": f"Observation/{one['id']}"} for one in found],
    }
    answer = narrow_or_wide(bundle(found[0]), bundle(*found))
    web.add_callback(responses.GET, f"{BASE}/Observation", answer)
    web.get(f"{BASE}/DiagnosticReport", json=bundle(report))
    fetched = server().fetch("p1", Wanted({**OBSERVATIONS.codes, "DiagnosticReport": None}))
    assert fetched.readings["Observation"] == Reading()
    assert len(fetched.items) == 52
    assert len(queries(web, "Observation")) == 2


# All patients


def test_all_patients_are_listed_without_those_merged_away(
    web: responses.RequestsMock, server: Make
) -> None:
    people = [{"resourceType": "Patient", "id": found} for found in ("a", "b")]
    pages(
        web,
        bundle(people[0], replaced("x", "a")),
        bundle(people[0], people[1], {"resourceType": "Patient"}),
        kind="Patient",
    )
    assert list(server().patient_ids()) == ["a", "b"]


def test_the_list_of_patients_is_restarted_when_its_cursor_expires(
    web: responses.RequestsMock, server: Make
) -> None:
    people = [{"resourceType": "Patient", "id": found} for found in ("a", "b")]
    web.get(f"{BASE}/Patient", json=bundle(people[0], following=f"{BASE}?cursor=1"))
    web.get(BASE, status=410)
    web.get(BASE, json=bundle(people[1]))
    assert list(server().patient_ids()) == ["a", "b"]


@pytest.mark.parametrize(
    "last",
    [
        None,
        {"resourceType": "Parameters"},
        bundle(outcome=outcome("warning", "incomplete")),
        bundle(following=f"{BASE}/Patient?_count=200"),
        bundle(following="https://evil.test/"),
        bundle(total=7),
    ],
)
def test_a_list_of_patients_that_is_not_whole_is_an_error(
    web: responses.RequestsMock, server: Make, last: Json | None
) -> None:
    pages(web, bundle({"resourceType": "Patient", "id": "a"}), last, kind="Patient")
    found: list[str] = []
    with pytest.raises(SourceError, match="list of patients"):
        found.extend(server().patient_ids())


# Tokens


class _Renewing:
    """Gives another token after each refusal."""

    def __init__(self) -> None:
        self.number = 1

    def token(self, deadline: float) -> str | None:
        return f"t{self.number}"

    def renew(self, refused: str, deadline: float) -> str | None:
        if refused == f"t{self.number}":
            self.number += 1
        return f"t{self.number}"


def test_a_token_that_expires_between_pages_is_renewed_and_the_page_replayed(
    web: responses.RequestsMock,
) -> None:
    web.get(f"{BASE}/metadata", json=capability(TYPES))
    web.get(f"{BASE}/Patient/p1", json={"resourceType": "Patient", "id": "p1"})
    web.get(f"{BASE}/Condition", json=bundle(condition("c1"), following=f"{BASE}?page=2"))

    def second(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        if request.headers["Authorization"] == "Bearer t1":
            return 401, {}, json.dumps(outcome("error", "expired"))
        return 200, {}, json.dumps(bundle(condition("c2")))

    web.add_callback(responses.GET, BASE, second)
    source = ServerSource(BASE, _Renewing(), limits=QUICK)
    fetched = source.fetch("p1", CONDITIONS)
    source.close()
    assert fetched.readings["Condition"] == Reading()
    assert "Condition/c2" in ids(fetched)


def test_a_token_refused_twice_leaves_the_type_incomplete(web: responses.RequestsMock) -> None:
    web.get(f"{BASE}/metadata", json=capability(TYPES))
    web.get(f"{BASE}/Patient/p1", json={"resourceType": "Patient", "id": "p1"})
    web.get(f"{BASE}/Condition", status=401)
    source = ServerSource(BASE, _Renewing(), limits=QUICK)
    assert "401" in incomplete(source.fetch("p1", CONDITIONS), "Condition")
    assert len(queries(web, "Condition")) == 2
    source.close()


def test_the_token_goes_to_the_server_alone(web: responses.RequestsMock) -> None:
    web.get(f"{BASE}/metadata", json=capability(TYPES))
    web.get(f"{BASE}/Patient/p1", json={"resourceType": "Patient", "id": "p1"})
    web.get(f"{BASE}/Condition", status=302, headers={"Location": "https://evil.test/r4"})
    source = ServerSource(BASE, BearerToken("tok3n"), limits=QUICK)
    incomplete(source.fetch("p1", CONDITIONS), "Condition")
    source.close()
    assert {urlsplit(call.request.url or "").hostname for call in web.calls} == {"fhir.example.org"}
