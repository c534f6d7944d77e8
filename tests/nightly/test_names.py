"""Changes find the records they touch by names; lines are counted as verdicts are."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from service.criteria.model import Settles
from service.fhir.bundles import head_of
from service.fhir.record import Item, Pool
from service.nightly.changed import joined
from service.nightly.names import digest_of, digests_of, hits, names_in_change, names_of
from service.nightly.tally import Tally
from service.results.json import verdict_line
from tests.cases import criterion_cases
from tests.nightly.making import Json, condition, patient

WORDS = st.text("abc ()/äö-", max_size=12).map(lambda text: f"{text}.")
SETS = st.lists(st.sampled_from(["b-all", "ecog", "hcv-rna"]), max_size=3, unique=True)


def names(resource: Json) -> set[str]:
    """Give the names in a change."""
    head = head_of(json.dumps(resource).encode())
    assert head is not None
    return set(names_in_change(head))


def test_a_record_is_found_by_what_it_holds_and_refers_to() -> None:
    order = {
        "resourceType": "MedicationRequest",
        "id": "r",
        "status": "active",
        "intent": "order",
        "medicationReference": {"reference": "Medication/m"},
        "subject": {"reference": "Patient/p"},
    }
    identifier = {"system": "urn:s", "value": "7"}
    other = {"type": "replaces", "other": {"reference": "Patient/old"}}
    person = patient("p", identifier=[identifier], link=[other])
    record = [person, condition("c", "Patient/p"), order]
    kept = digests_of(names_of(Pool([Item(json.dumps(each).encode()) for each in record])))
    by_identifier = condition("c9", "Patient/p", subject={"identifier": identifier})
    for change in (
        patient("p"),
        patient("old"),
        patient("q", link=[{"type": "replaced-by", "other": {"reference": "Patient/p"}}]),
        condition("c", "Patient/q"),
        condition("c8", "Patient/p/_history/2"),
        by_identifier,
        {"resourceType": "Medication", "id": "m"},
    ):
        assert hits(kept, set(map(digest_of, names(change)))), change
    assert not hits(kept, set(map(digest_of, names(condition("c7", "Patient/q")))))


def test_merges_are_followed_at_any_remove_and_in_both_directions() -> None:
    links = [("a", "replaced-by", "b"), ("c", "replaces", "b"), ("x", "replaces", "y")]
    assert joined({"a"}, links) == {"a", "b", "c"}
    assert joined({"z"}, links) == {"z"}


@given(WORDS, st.sampled_from([None, "Observation", "Patient"]), SETS)
def test_what_would_settle_an_unknown_is_read_back_from_its_words(
    text: str, kind: str | None, sets: list[str]
) -> None:
    settles = Settles(text, kind, tuple(sets) if kind else ())
    assert Settles.read(settles.words) == settles


def test_lines_are_counted_as_the_verdicts_are() -> None:
    by_verdict, by_line = Tally(), Tally()
    for case in criterion_cases()[::40]:
        verdict = case.evaluate()
        by_verdict.add(verdict)
        by_line.add_line(verdict_line(verdict).encode())
    assert by_verdict.wanted
    assert by_verdict == by_line


def test_what_is_missing_names_records_by_their_type_with_the_right_article() -> None:
    tally = Tally()
    texts = ("a readable value for Observation/1", "the status of Condition/2", "see urn:uuid:3")
    for text in texts:
        line = {"verdict": "potentially-eligible", "criteria": [
            {"id": "I1", "outcome": "unknown", "settledBy": [Settles(text, None, ()).words]}
        ]}  # fmt: skip
        tally.add_line(json.dumps(line).encode())
    assert {each.text for each in tally.wanted.values()} == {
        "a readable value for an Observation", "the status of a Condition", "see a record",
    }  # fmt: skip
