"""Reading from a real FHIR server that nobody here wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from service.errors import SourceError, UnknownPatient
from service.fhir.auth import BearerToken, SigningKey, SmartBackend, signing_key
from service.fhir.record import CLINICAL_TYPES, Reading
from service.fhir.server import ServerSource
from service.fhir.source import Fetched, SiteSearch, Wanted, record_of
from tests.faults import QUICK, condition, observation
from tests.integration.conftest import FIXTURES, Sekmet, transaction_of

EVERYTHING = Wanted(dict.fromkeys(CLINICAL_TYPES))
# This server has neither; all other types of the record it does have.
NOT_OFFERED = {"ResearchSubject", "AdverseEvent"}
Closing = Callable[[Any], Any]


def ids(fetched: Fetched) -> set[str]:
    found = [json.loads(item.raw) for item in fetched.items]
    return {f"{resource['resourceType']}/{resource['id']}" for resource in found}


def shipped() -> dict[str, list[dict[str, Any]]]:
    """Give what was loaded of each shipped patient and says so, by the Patient's id."""
    found = {}
    for file in sorted(FIXTURES.glob("*.json")):
        entries = json.loads(transaction_of(file))["entry"]
        people = [one for one in entries if one["resource"]["resourceType"] == "Patient"]
        if len(people) == 1:
            (person,) = people
            names = {f"Patient/{person['resource']['id']}", person.get("fullUrl")}
            own = [one["resource"] for one in entries if names & _named(one["resource"])]
            found[person["resource"]["id"]] = [person["resource"], *own]
    return found


def _named(resource: dict[str, Any]) -> set[str]:
    """Give whom a resource names as its patient."""
    fields = (resource.get(name, {}) for name in ("subject", "patient", "individual"))
    return {field["reference"] for field in fields if "reference" in field}


@pytest.mark.parametrize("page_size", [3, 200])
def test_every_shipped_patient_is_read_whole(
    sekmet: Sekmet, closing: Closing, page_size: int
) -> None:
    """What the server gives back is what was put there, with small pages and large."""
    source = closing(ServerSource(sekmet.base, site=SiteSearch(page_size=page_size)))
    patients = shipped()
    assert patients
    for patient, resources in patients.items():
        fetched = source.fetch(patient, EVERYTHING)
        expected = {f"{one['resourceType']}/{one['id']}" for one in resources}
        kept = {found for found in expected if found.split("/")[0] not in NOT_OFFERED}
        assert kept <= ids(fetched), patient
        for kind, reading in fetched.readings.items():
            if kind in NOT_OFFERED:
                assert reading.not_offered
            else:
                assert reading == Reading(), (patient, kind)


def test_all_shipped_patients_are_listed(sekmet: Sekmet, closing: Closing) -> None:
    source = closing(ServerSource(sekmet.base, site=SiteSearch(page_size=7)))
    assert set(shipped()) <= set(source.patient_ids())
    source.check()


@pytest.mark.parametrize("use_post", [None, True])
def test_a_search_by_code_finds_what_a_search_of_all_finds(
    sekmet: Sekmet, closing: Closing, use_post: bool | None
) -> None:
    """Also under other names of a code system, and in components."""
    site = SiteSearch(use_post=use_post, codes_per_search=5)
    source = closing(ServerSource(sekmet.base, site=site))
    loinc = "http://loinc.org"
    codes = set()
    for resources in shipped().values():
        for one in resources:
            if one["resourceType"] == "Observation":
                for concept in (one["code"], *(c["code"] for c in one.get("component", []))):
                    codes |= _codes(concept)
    wanted = frozenset((loinc, code) for code in sorted(codes)[::2])
    asked = {code for _, code in wanted}
    for patient, resources in shipped().items():
        fetched = source.fetch(patient, Wanted({"Observation": wanted}))
        assert fetched.readings["Observation"] == Reading(), patient
        for one in resources:
            if one["resourceType"] != "Observation":
                continue
            concepts = (one["code"], *(c["code"] for c in one.get("component", [])))
            if any(_codes(concept) & asked for concept in concepts):
                assert f"Observation/{one['id']}" in ids(fetched)


def _codes(concept: dict[str, Any]) -> set[str]:
    return {coding["code"] for coding in concept.get("coding", []) if "code" in coding}


def test_an_unknown_patient_is_unknown(sekmet: Sekmet, closing: Closing) -> None:
    with pytest.raises(UnknownPatient):
        closing(ServerSource(sekmet.base)).fetch("nobody", EVERYTHING)


def test_merged_patients_are_found_from_both_sides(sekmet: Sekmet, closing: Closing) -> None:
    link = {"type": "replaced-by", "other": {"reference": "Patient/merge-new"}}
    sekmet.put(
        {"resourceType": "Patient", "id": "merge-new"},
        {"resourceType": "Patient", "id": "merge-old", "link": [link]},
        condition("merge-c1", "merge-old"),
        condition("merge-c2", "merge-new"),
    )
    source = closing(ServerSource(sekmet.base))
    for asked in ("merge-old", "merge-new"):
        record = record_of(source.fetch(asked, Wanted({"Condition": None})))
        assert record.patient_ids == ("merge-new", "merge-old")
        assert len(record.resources["Condition"]) == 2
    listed = set(source.patient_ids())
    assert "merge-new" in listed
    assert "merge-old" not in listed


def test_medicines_and_panel_members_come_with_the_record(sekmet: Sekmet, closing: Closing) -> None:
    who = {"reference": "Patient/refers"}
    member = {**observation("member", None), "subject": who}
    sekmet.put(
        {"resourceType": "Patient", "id": "refers"},
        {"resourceType": "Medication", "id": "drug", "code": {"text": "a medicine"}},
        {
            "resourceType": "MedicationRequest",
            "id": "order",
            "status": "active",
            "intent": "order",
            "subject": who,
            "medicationReference": {"reference": "Medication/drug"},
        },
        member,
        {
            **observation("panel", code="58410-2"),
            "subject": who,
            "hasMember": [{"reference": "Observation/member"}],
        },
    )
    haemoglobin = frozenset({("http://loinc.org", "718-7")})
    wanted = Wanted({"MedicationRequest": None, "Observation": haemoglobin})
    fetched = closing(ServerSource(sekmet.base)).fetch("refers", wanted)
    assert {"Medication/drug", "Observation/panel", "Observation/member"} <= ids(fetched)
    assert set(fetched.readings.values()) == {Reading()}


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
@pytest.mark.parametrize("discovered", [True, False])
def test_smart_backend_services_open_a_guarded_server(
    guarded: Sekmet, closing: Closing, algorithm: str, discovered: bool
) -> None:
    guarded.put({"resourceType": "Patient", "id": "p1"}, condition("c1"))
    root = guarded.base.removesuffix("/fhir")
    auth = closing(
        SmartBackend(
            guarded.base,
            client_id=algorithm,
            key=signing_key(guarded.keys[algorithm], kid="k1"),
            scope="system/*.rs",
            token_url=None if discovered else f"{root}/auth/token",
        )
    )
    source = closing(ServerSource(guarded.base, auth))
    fetched = source.fetch("p1", Wanted({"Condition": None}))
    assert fetched.readings["Condition"] == Reading()
    assert "Condition/c1" in ids(fetched)


def test_a_guarded_server_refuses_without_and_with_a_wrong_token(
    guarded: Sekmet, closing: Closing
) -> None:
    for auth in (None, BearerToken("wrong-token")):
        source = closing(ServerSource(guarded.base, auth))
        with pytest.raises(SourceError, match="401") as error:
            source.fetch("p1", EVERYTHING)
        assert "wrong-token" not in str(error.value)


def test_a_scope_that_lacks_a_type_leaves_it_incomplete(guarded: Sekmet, closing: Closing) -> None:
    guarded.put({"resourceType": "Patient", "id": "p1"}, condition("c1"))
    auth = closing(
        SmartBackend(
            guarded.base,
            client_id="RS384",
            key=signing_key(guarded.keys["RS384"], kid="k1"),
            scope="system/Patient.rs system/Procedure.rs",
        )
    )
    fetched = closing(ServerSource(guarded.base, auth)).fetch("p1", EVERYTHING)
    assert fetched.readings["Procedure"] == Reading()
    assert "403" in (fetched.readings["Condition"].problem or "")


def test_a_wrong_key_is_refused_by_name_of_the_oauth_error(
    guarded: Sekmet, closing: Closing
) -> None:
    other = SigningKey(rsa.generate_private_key(65537, 2048), "RS384", "k1")
    auth = closing(SmartBackend(guarded.base, client_id="RS384", key=other))
    with pytest.raises(SourceError, match="invalid_client"):
        closing(ServerSource(guarded.base, auth)).fetch("p1", EVERYTHING)


def test_tokens_that_expire_early_are_renewed_on_the_way(
    forgetful: Sekmet, closing: Closing
) -> None:
    """Between two pages the token expires; the page is replayed with a new one."""
    found = [condition(f"c{number}") for number in range(4)]
    forgetful.put({"resourceType": "Patient", "id": "p1"}, *found)
    auth = closing(
        SmartBackend(
            forgetful.base,
            client_id="RS384",
            key=signing_key(forgetful.keys["RS384"], kid="k1"),
            # A clock that stands still: the token never looks expired from here.
            clock=lambda: 0.0,
        )
    )
    source = closing(ServerSource(forgetful.base, auth, SiteSearch(page_size=1)))
    first = auth.token(time.monotonic() + 5)
    time.sleep(2.1)
    fetched = source.fetch("p1", Wanted({"Condition": None}))
    assert fetched.readings["Condition"] == Reading()
    assert len(fetched.items) == 5
    assert auth.token(time.monotonic() + 5) != first


def test_a_server_that_is_gone_is_an_error(closing: Closing) -> None:
    source = closing(ServerSource("http://127.0.0.1:9/fhir", limits=replace(QUICK, attempts=1)))
    with pytest.raises(SourceError):
        source.check()
