"""What is asked of a server, given what it says it can do."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SourceError
from service.fhir.plan import (
    URL_LIMIT,
    Ability,
    Capabilities,
    Query,
    capabilities,
    code_lists,
    escape,
    plan_type,
)
from service.fhir.source import SiteSearch
from tests.faults import capability

LOINC = "http://loinc.org"
HAEMOGLOBIN = frozenset({(LOINC, "718-7")})


def server(**types: list[str]) -> Capabilities:
    return capabilities(json.dumps(capability(types)).encode())


def parameters(query: Query, patient: str = "p1") -> dict[str, list[str]]:
    return parse_qs(query.form(patient), strict_parsing=True)


@pytest.mark.parametrize("version", ["4.0.0", "4.0.1", "4.0", "4.3.0"])
def test_servers_of_r4_and_r4b_are_read(version: str) -> None:
    statement = capability({"Patient": []}, version=version)
    assert capabilities(json.dumps(statement).encode()).version == version


@pytest.mark.parametrize("version", ["3.0.2", "5.0.0", "4.6.0", "4.1.0", "", "\n4.0.1"])
def test_servers_of_other_versions_are_refused(version: str) -> None:
    statement = capability({"Patient": []}, version=version)
    with pytest.raises(SourceError, match="not R4"):
        capabilities(json.dumps(statement).encode())


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"resourceType":"Patient"}', b'{"rest":3}', b"\xff\xfe"]
)
def test_anything_but_a_capability_statement_is_refused(body: bytes) -> None:
    with pytest.raises(SourceError, match="CapabilityStatement"):
        capabilities(body)


def test_a_type_that_is_not_listed_is_not_offered() -> None:
    plan = plan_type("AdverseEvent", None, server(Patient=[]), SiteSearch())
    assert plan.not_offered
    assert plan.problem is not None
    assert not plan.none_kept


@pytest.mark.parametrize("meaning", ["complete", "none-kept"])
def test_the_site_file_can_say_that_a_missing_type_means_none(meaning: str) -> None:
    site = SiteSearch(not_offered={"AdverseEvent": meaning})
    assert plan_type("AdverseEvent", None, server(Patient=[]), site).none_kept


def test_the_site_file_can_leave_open_what_a_missing_type_means() -> None:
    site = SiteSearch(not_offered={"AdverseEvent": "unknown"})
    assert not plan_type("AdverseEvent", None, server(Patient=[]), site).none_kept


def test_a_server_that_lists_no_types_is_asked_for_all() -> None:
    body = b'{"resourceType":"CapabilityStatement","fhirVersion":"4.0.1"}'
    plan = plan_type("Condition", None, capabilities(body), SiteSearch())
    assert plan.problem is None
    assert parameters(plan.wide[0])["patient"] == ["p1"]


def test_a_type_without_search_is_not_searched() -> None:
    ability = Ability(frozenset({"patient"}), searchable=False)
    offered = Capabilities("4.0.1", {"Condition": ability})
    plan = plan_type("Condition", None, offered, SiteSearch())
    assert plan.problem is not None
    assert not plan.not_offered


def test_a_type_that_cannot_be_searched_by_patient_is_not_searched() -> None:
    plan = plan_type("Condition", None, server(Condition=["code"]), SiteSearch())
    assert plan.problem is not None
    assert plan.wide == ()


@pytest.mark.parametrize(
    ("kind", "declared", "expected"),
    [
        ("Condition", ["subject", "patient"], ("patient", "p1")),
        ("AdverseEvent", ["subject"], ("subject", "Patient/p1")),
        ("ResearchSubject", ["individual", "study"], ("individual", "Patient/p1")),
        ("ResearchSubject", ["patient"], ("patient", "p1")),
    ],
)
def test_the_patient_is_named_by_what_the_server_declares(
    kind: str, declared: list[str], expected: tuple[str, str]
) -> None:
    plan = plan_type(kind, None, server(**{kind: declared}), SiteSearch())
    assert parameters(plan.wide[0])[expected[0]] == [expected[1]]


def test_observations_are_searched_by_code_in_components_too_where_the_server_can() -> None:
    offered = server(Observation=["patient", "code", "combo-code", "date"])
    plan = plan_type("Observation", HAEMOGLOBIN, offered, SiteSearch())
    (query,) = plan.narrow
    assert parameters(query)["combo-code"] == ["http://loinc.org|718-7,718-7"]
    assert parameters(query)["_sort"] == ["-date"]
    assert query.newest_first
    assert not plan.start_wide


def test_code_and_component_code_together_are_as_good() -> None:
    offered = server(Observation=["patient", "code", "component-code"])
    plan = plan_type("Observation", HAEMOGLOBIN, offered, SiteSearch())
    names = {name for query in plan.narrow for name in parameters(query)}
    assert {"code", "component-code"} <= names
    assert not plan.start_wide


def test_a_server_that_misses_components_is_read_wider_as_well() -> None:
    """A result in a component counts (semantics 1.3), and `code` alone would not find it."""
    offered = server(Observation=["patient", "code"])
    plan = plan_type("Observation", HAEMOGLOBIN, offered, SiteSearch())
    assert parameters(plan.narrow[0])["code"] == ["http://loinc.org|718-7,718-7"]
    assert plan.start_wide
    site = SiteSearch(results_in_components=False)
    assert not plan_type("Observation", HAEMOGLOBIN, offered, site).start_wide


def test_without_a_code_parameter_everything_is_read() -> None:
    plan = plan_type("Observation", HAEMOGLOBIN, server(Observation=["patient"]), SiteSearch())
    assert plan.narrow == ()
    assert plan.start_wide
    assert "_sort" not in parameters(plan.wide[0])


def test_other_types_are_not_searched_by_code() -> None:
    """Their classes go by prefix and text as well, which no code list asks for."""
    offered = server(Condition=["patient", "code"])
    plan = plan_type("Condition", frozenset({("urn:s", "1")}), offered, SiteSearch())
    assert plan.narrow == ()
    assert "code" not in parameters(plan.wide[0])


def test_categories_are_asked_for_one_by_one_where_the_site_demands_them() -> None:
    offered = server(Observation=["patient", "category"])
    site = SiteSearch(category_required={"Observation": ("laboratory", "exam")})
    plan = plan_type("Observation", None, offered, site)
    assert [parameters(query)["category"] for query in plan.wide] == [["laboratory"], ["exam"]]


def test_page_size_and_extra_parameters_come_from_the_site_file() -> None:
    site = SiteSearch(extra_parameters={"Condition": {"status": "active"}}, page_size=17)
    plan = plan_type("Condition", None, server(Condition=["patient"]), site)
    assert parameters(plan.wide[0])["_count"] == ["17"]
    assert parameters(plan.wide[0])["status"] == ["active"]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("Condition", {"clinical-status": "active"}),
        ("Condition", {"category": "problem-list-item"}),
        ("Condition", {"status": "final,amended,corrected"}),
        ("Observation", {"status": "final"}),
        ("Observation", {"status": "final,amended,corrected", "date": "ge2026"}),
        ("Observation", {"status:not": "final,amended,corrected"}),
        ("Observation", {"patient": "p2"}),
    ],
)
def test_a_parameter_of_the_site_that_may_narrow_leaves_the_type_incomplete(
    kind: str, extra: dict[str, str]
) -> None:
    site = SiteSearch(extra_parameters={kind: extra})
    plan = plan_type(kind, None, server(**{kind: ["patient"]}), site)
    assert plan.narrowed is not None
    assert list(extra)[-1] in plan.narrowed
    assert plan.wide, "what can be found is still read"


@pytest.mark.parametrize(
    "extra",
    [
        {"status": "final,amended,corrected"},
        {"status": "final,amended,corrected,preliminary"},
        {"_sort": "-date", "_total": "none"},
    ],
)
def test_a_parameter_of_the_site_that_misses_nothing_leaves_the_type_whole(
    extra: dict[str, str],
) -> None:
    site = SiteSearch(extra_parameters={"Observation": extra, "Condition": {"code": "x"}})
    assert plan_type("Observation", None, server(Observation=["patient"]), site).narrowed is None


@pytest.mark.parametrize("declared", [["MedicationRequest:medication"], []])
def test_medicines_are_included_where_the_server_declares_it(declared: list[str]) -> None:
    statement = capability(
        {"MedicationRequest": ["patient"]}, includes={"MedicationRequest": declared}
    )
    plan = plan_type(
        "MedicationRequest", None, capabilities(json.dumps(statement).encode()), SiteSearch()
    )
    assert parameters(plan.wide[0]).get("_include", []) == declared


def test_separators_in_a_code_are_escaped() -> None:
    assert escape("a,b|c$d\\e") == "a\\,b\\|c\\$d\\\\e"


CODES = st.frozensets(
    st.tuples(
        st.sampled_from([LOINC, "http://snomed.info/sct", "urn:oid:1.2.3", ""]),
        st.text("0123456789-,|ABÄ", min_size=1, max_size=20),
    ),
    max_size=120,
)


@given(codes=CODES, most=st.integers(1, 50), room=st.integers(200, 2000))
def test_no_code_is_lost_when_lists_are_split(
    codes: frozenset[tuple[str, str]], most: int, room: int
) -> None:
    lists = list(code_lists(codes, most, room))
    for system, code in codes:
        token = f"{system}|{escape(code)}," if system else escape(code)
        assert any(token in f"{listed}," for listed in lists)


def test_searches_by_code_keep_below_the_usual_limit_of_an_address() -> None:
    codes = frozenset((LOINC, f"{number}-7") for number in range(10_000, 10_400))
    offered = server(Observation=["patient", "combo-code", "date", "category"])
    plan = plan_type("Observation", codes, offered, SiteSearch(codes_per_search=1000))
    assert len(plan.narrow) > 1
    for query in plan.narrow:
        assert len(query.form("x" * 64)) <= URL_LIMIT - 200
