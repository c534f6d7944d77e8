"""Bundles taken apart, and what a search reply's completeness is judged by (semantics 1.5)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RequestError
from service.fhir.bundles import (
    Limits,
    NotABundle,
    Taken,
    deeper_than,
    problems_of,
    readings_of,
    take_apart,
    whole,
)

PATIENT = {"resourceType": "Patient", "id": "p1"}
WARNING = {"resourceType": "OperationOutcome", "issue": [{"severity": "warning", "code": "x"}]}


def bundle(*resources: Any, kind: str = "collection", **more: Any) -> Any:
    entries = [{"resource": resource} for resource in resources]
    return {"resourceType": "Bundle", "type": kind, "entry": entries, **more}


def searchset(
    *resources: Any, url: str | None = None, following: str | None = None, **more: Any
) -> Any:
    links = [{"relation": "self", "url": url}] if url else []
    links += [{"relation": "next", "url": following}] if following else []
    return bundle(*resources, kind="searchset", link=links, **more)


def observation(name: str = "o1") -> Any:
    return {"resourceType": "Observation", "id": name, "subject": {"reference": "Patient/p1"}}


def taken(resource: Any, **options: Any) -> Taken:
    return take_apart(json.dumps(resource).encode(), **options)


def incomplete(*resources: Any, patient: str = "Patient/p1", **options: Any) -> set[str]:
    replies = [reply for resource in resources for reply in taken(resource, **options).replies]
    readings = readings_of(whole(replies), {patient})
    return {kind for kind, reading in readings.items() if not reading.complete}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab[]{}"\\\u00e9 ', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth(inner) for inner in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth(inner) for inner in value), default=0)
    return 0


@given(json_values, st.booleans())
def test_depth_is_exactly_that_of_the_json(value: Any, escaped: bool) -> None:
    raw = json.dumps(value, ensure_ascii=escaped).encode()
    deep = depth(value)
    assert not deeper_than(raw, deep)
    assert deep == 0 or deeper_than(raw, deep - 1)


@pytest.mark.parametrize("kind", ["collection", "transaction", "batch", "document", "history"])
def test_a_bundle_is_taken_as_complete_for_all_types(kind: str) -> None:
    found = taken(bundle(PATIENT, observation(), kind=kind))
    assert len(found.items) == 2
    assert [patient.key for patient in found.patients] == ["Patient/p1"]
    readings = readings_of(whole(found.replies), {"Patient/p1"})
    assert all(reading.complete and reading.assumed for reading in readings.values())


def test_nested_bundles_are_taken_apart_too() -> None:
    found = taken(bundle(PATIENT, bundle(observation("o1"), bundle(observation("o2")))))
    assert len(found.items) == 3


def test_the_responses_of_a_batch_are_judged_each_by_itself() -> None:
    """A batch's answer holds search replies; one cut short makes only its type incomplete."""
    lost = searchset(url="https://s/Condition?patient=p1", following="https://s/more")
    reply = bundle(
        bundle(PATIENT),
        searchset(observation(), url="https://s/Observation?patient=p1"),
        lost,
        kind="batch-response",
    )
    assert incomplete(reply) == {"Condition"}


def test_a_part_of_a_batch_that_was_refused_leaves_all_incomplete() -> None:
    reply = bundle(PATIENT, kind="batch-response")
    reply["entry"].append({"response": {"status": "403 Forbidden"}})
    assert "Observation" in incomplete(reply)


def test_a_search_reply_speaks_only_for_the_type_its_self_link_names() -> None:
    missing = incomplete(
        searchset(PATIENT, observation(), url="https://s/fhir/Observation?patient=p1")
    )
    assert "Observation" not in missing
    assert "Condition" in missing


def test_a_search_reply_without_self_link_speaks_for_all_types() -> None:
    assert incomplete(searchset(PATIENT, observation())) == set()


def test_a_search_reply_may_speak_for_types_it_includes_in_reverse() -> None:
    url = "https://s/Patient?_id=p1&_revinclude=Observation:patient&_revinclude=Condition:patient"
    missing = incomplete(searchset(PATIENT, url=url))
    assert not {"Observation", "Condition"} & missing
    assert "Procedure" in missing


@pytest.mark.parametrize(
    "reply",
    [
        searchset(PATIENT, observation(), following="https://s/page2"),
        searchset(PATIENT, observation(), WARNING),
        searchset(PATIENT, observation(), total=3),
        searchset(PATIENT, {"resourceType": "OperationOutcome", "issue": "?"}),
        bundle(PATIENT, WARNING),
    ],
    ids=["next link", "warning", "total", "unreadable outcome", "warning in a collection"],
)
def test_a_reply_cut_short_is_incomplete(reply: Any) -> None:
    assert "Observation" in incomplete(reply)


@pytest.mark.parametrize(
    "narrowing", ["code=x", "category=laboratory", "date=ge2026", "_elements=id"]
)
def test_a_narrowed_search_proves_no_absence(narrowing: str) -> None:
    url = f"https://s/Observation?patient=p1&{narrowing}"
    assert "Observation" in incomplete(searchset(PATIENT, observation(), url=url))


@pytest.mark.parametrize(
    "narrowing",
    ["_id=o1", "onset-info=x", "asserter=Practitioner/1", "_maxresults=5", "never-heard-of=1",
     "_count=0", "_summary=count", "code:in=x"],
)  # fmt: skip
def test_a_parameter_that_is_not_known_to_be_harmless_proves_no_absence(narrowing: str) -> None:
    url = f"https://s/Condition?patient=p1&{narrowing}"
    assert "Condition" in incomplete(searchset(PATIENT, url=url))


@pytest.mark.parametrize(
    "neutral",
    ["_count=50", "_sort=-date", "_format=json", "_getpages=abc", "_pretty=true", "_total=accurate",
     "_include=Observation:patient", "_summary=false", "_page_token=x", "-pageContext=x",
     "sessionID=x", "ct=x", "__t=3&__page-id=x", "_getpagesoffset=20&_bundletype=searchset",
     "subject:Patient=p1"],
)  # fmt: skip
def test_paging_and_sorting_do_not_narrow_a_search(neutral: str) -> None:
    url = f"https://s/Observation?patient=p1&{neutral}"
    assert "Observation" not in incomplete(searchset(PATIENT, observation(), url=url))


@pytest.mark.parametrize("path", ["Patient/p1/$everything?", "?patient=p1&"])
def test_a_reply_for_named_types_speaks_for_no_others(path: str) -> None:
    url = f"https://s/fhir/{path}_type=Observation,Condition"
    missing = incomplete(searchset(PATIENT, url=url))
    assert not {"Observation", "Condition"} & missing
    assert {"Procedure", "MedicationRequest"} <= missing


@pytest.mark.parametrize("narrowing", ["_since=2026", "start=2026", "end=2026", "_elements=id"])
def test_a_whole_record_narrowed_leaves_all_types_incomplete(narrowing: str) -> None:
    url = f"https://s/Patient/p1/$everything?{narrowing}"
    assert {"Observation", "Condition"} <= incomplete(searchset(PATIENT, url=url))
    both = f"{url}&_type=Observation"
    assert "Observation" in incomplete(searchset(PATIENT, url=both))


@pytest.mark.parametrize("path", ["Patient/p1/$everything", "Patient/p1/$everything?_count=9"])
def test_a_whole_record_speaks_for_all_types_of_its_patient(path: str) -> None:
    reply = searchset(PATIENT, url=f"https://s/{path}")
    assert incomplete(reply) == set()
    assert "Observation" in incomplete(reply, patient="Patient/p2")


def test_the_whole_of_an_encounter_is_not_the_patients_record() -> None:
    for path in ("Encounter/e1/$everything", "Encounter/e1/Observation"):
        assert "Observation" in incomplete(searchset(PATIENT, url=f"https://s/{path}"))
    own = searchset(PATIENT, url="https://s/Patient/p1/Observation")
    assert "Observation" not in incomplete(own)


def test_what_is_included_by_another_role_is_not_all_of_the_patients() -> None:
    url = "https://s/Patient?_id=p1&_revinclude=Observation:performer"
    assert "Observation" in incomplete(searchset(PATIENT, url=url))


@pytest.mark.parametrize("following", ["https://s/fhir?x=91c", "https://s/Observation?x=91c"])
def test_a_cursor_of_any_form_is_no_narrowing_of_the_search_it_goes_on_with(
    following: str,
) -> None:
    url = "https://s/Observation?patient=p1"
    first = searchset(observation("o1"), url=url, following=following)
    second = searchset(observation("o2"), url=following)
    assert "Observation" not in incomplete(first, second)
    narrowed = searchset(observation("o1"), url=f"{url}&code=x", following=following)
    assert "Observation" in incomplete(narrowed, second)


def test_information_and_accepted_codes_leave_a_reply_complete() -> None:
    said = {"severity": "warning", "code": "processing", "details": {"coding": [{"code": "4101"}]}}
    hint = {"severity": "information", "code": "informational"}
    outcome = {"resourceType": "OperationOutcome", "issue": [said, hint]}
    assert incomplete(searchset(PATIENT, outcome), harmless=frozenset({"4101"})) == set()
    assert "Condition" in incomplete(searchset(PATIENT, outcome))


def test_pages_of_one_search_are_joined() -> None:
    first = searchset(
        observation("o1"), url="https://s/Observation?patient=p1", following="https://s/2", total=2
    )
    second = searchset(observation("o2"), url="https://s/2", total=2)
    assert "Observation" in incomplete(first)
    assert "Observation" not in incomplete(second, first)


def test_pages_that_lead_in_a_circle_are_incomplete() -> None:
    first = searchset(observation("o1"), url="https://s/1", following="https://s/2")
    second = searchset(observation("o2"), url="https://s/2", following="https://s/1")
    assert "Observation" in incomplete(first, second)


def test_a_reply_about_another_patient_says_nothing_of_this_one() -> None:
    mine = bundle(PATIENT)
    other = searchset(url="https://s/Observation?patient=p2", following="https://s/2")
    assert incomplete(mine, other) == set()
    assert incomplete(mine, other, patient="Patient/p2") != set()


def test_each_problem_is_reported_once() -> None:
    replies = whole(taken(searchset(PATIENT, following="https://s/2")).replies)
    assert [message.text for message in problems_of(replies, {"Patient/p1"})] == [
        "the reply lacks its next page"
    ]


def test_a_patient_is_found_by_id_url_and_identifier() -> None:
    patient = {**PATIENT, "identifier": [{"system": "urn:mrn", "value": "7"}]}
    whose = bundle()
    whose["entry"] = [{"fullUrl": "https://s/fhir/Patient/p1", "resource": patient}]
    found = taken(whose)
    for reference in ("Patient/p1", "Patient/p1/_history/3", "https://s/fhir/Patient/p1"):
        assert found.patient_key(reference) == "Patient/p1"
    assert found.patient_key("https://other/Patient/p1") is None
    assert found.identified("urn:mrn", "7") == "Patient/p1"


def test_an_identifier_that_two_patients_bear_names_neither() -> None:
    shared = {"identifier": [{"system": "urn:mrn", "value": "7"}]}
    other = {"resourceType": "Patient", "id": "p2", **shared}
    assert taken(bundle({**PATIENT, **shared}, other)).identified("urn:mrn", "7") is None
    link = {"type": "replaced-by", "other": {"reference": "Patient/p1"}}
    merged = taken(bundle({**PATIENT, **shared}, {**other, "link": [link]}))
    assert merged.identified("urn:mrn", "7") == "Patient/p1"


def test_a_patient_without_any_name_can_still_be_evaluated() -> None:
    found = taken(bundle({"resourceType": "Patient"}))
    assert found.patients[0].key == found.items[0].full_url


@pytest.mark.parametrize(
    "raw", [b'{"resourceType":"Bundle","entry":{}}', b'{"resourceType":"Bundle","total":"x"}']
)
def test_a_bundle_of_wrong_structure_is_named_without_its_content(raw: bytes) -> None:
    with pytest.raises(NotABundle, match=r"not a valid Bundle at \$\."):
        take_apart(raw)


def test_too_many_resources_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        taken(bundle(*[PATIENT] * 4), limits=Limits(entries=3))
    assert caught.value.status == 413


def test_bundles_nested_too_deep_are_refused() -> None:
    deep: Any = PATIENT
    for _ in range(12):
        deep = bundle(deep)
    with pytest.raises(RequestError) as caught:
        taken(deep)
    assert caught.value.status == 413
