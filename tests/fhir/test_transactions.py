"""A record becomes one transaction that a server can take again and again."""

from __future__ import annotations

import json
from typing import Any

from service.fhir.record import Item
from service.fhir.transactions import Transaction, transaction

PATIENT = {"resourceType": "Patient", "id": "p"}


def made(*texts: str) -> tuple[Transaction, list[dict[str, Any]]]:
    """Make a transaction of resources given as JSON; give it and its entries."""
    done = transaction(Item(text.encode()) for text in texts)
    return done, json.loads(done.body)["entry"]


def test_each_resource_is_put_under_its_own_id() -> None:
    done, (entry,) = made(json.dumps(PATIENT))
    assert entry == {"resource": PATIENT, "request": {"method": "PUT", "url": "Patient/p"}}
    assert (done.loaded, done.left_out) == (1, 0)


def test_an_entry_keeps_its_full_url_by_which_others_refer_to_it() -> None:
    item = Item(json.dumps(PATIENT).encode(), "urn:uuid:5a0c2f4e-0000-4000-8000-000000000001")
    (entry,) = json.loads(transaction([item]).body)["entry"]
    assert entry["fullUrl"] == item.full_url


def test_decimals_keep_their_digits() -> None:
    text = (
        '{"resourceType":"Observation","id":"o","status":"final","code":{"text":"x"},'
        '"valueQuantity":{"value":1.80}}'
    )
    done, _ = made(text)
    assert b'"value":1.80' in done.body
    without_id = text.replace('"id":"o",', "")
    done, (entry,) = made(without_id)
    assert b'"value":1.80' in done.body
    assert entry["request"]["url"] == f"Observation/{entry['resource']['id']}"


def test_a_resource_without_an_id_gets_the_same_one_each_time() -> None:
    text = json.dumps({"resourceType": "Observation", "status": "final", "code": {"text": "x"}})
    assert made(text)[1] == made(text)[1]


def test_what_a_server_would_refuse_is_left_out() -> None:
    done, entries = made(
        json.dumps(PATIENT),
        '{"resourceType": "Horoscope", "id": "h"}',
        '{"resourceType": "Observation", "id": "o", "status": {"not": "a code"}}',
        "not JSON",
    )
    assert [entry["request"]["url"] for entry in entries] == ["Patient/p"]
    assert (done.loaded, done.left_out) == (1, 3)


def test_of_copies_the_newest_is_kept_whatever_their_order() -> None:
    older = json.dumps({**PATIENT, "meta": {"versionId": "9", "lastUpdated": "2026-01-01"}})
    newer = json.dumps({**PATIENT, "meta": {"versionId": "10", "lastUpdated": "2026-01-01"}})
    for texts in ((older, newer), (newer, older)):
        done, (entry,) = made(*texts)
        assert entry["resource"]["meta"]["versionId"] == "10"
        assert (done.loaded, done.left_out) == (1, 1)
