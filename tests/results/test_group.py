"""group.json and list.json: valid FHIR, whatever was found, and no more than a proposal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.criteria.model import VerdictCode
from service.results.candidates import Candidate, candidates
from service.results.group import Study, group_json, list_json, research_subject, subject_id
from tests.results.searches import LINES, TRIAL, line
from tests.results.shapes import BASE, check_r4b

STUDY = Study(TRIAL, "QH103", "2026-11-01", base=BASE)
OTHER = Study("NCT00000000", "Other", "2026-11-01", complete=False, base=BASE)
TWO = [line("Patient/a"), line("Patient/b", VerdictCode.ELIGIBLE)]


def group(lines: Sequence[bytes], *studies: Study) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b"".join(group_json(studies, lambda: candidates(lines))))
    return found


def listed(lines: Sequence[bytes], *studies: Study) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b"".join(list_json(studies, lambda: candidates(lines))))
    return found


@pytest.mark.parametrize("study", [STUDY, Study(TRIAL, "QH103", "2026-11-01", complete=False)])
@pytest.mark.parametrize("lines", [[], TWO, LINES], ids=["none", "two", "every shape"])
def test_both_are_valid_fhir(lines: Sequence[bytes], study: Study) -> None:
    check_r4b(group(lines, study))
    check_r4b(listed(lines, study))


def test_the_group_holds_the_candidates_and_names_the_study() -> None:
    found = group([*TWO, line("Patient/c", VerdictCode.INELIGIBLE)], STUDY)
    assert [member["entity"]["reference"] for member in found["member"]] == [
        "Patient/a",
        "Patient/b",
    ]
    assert found["quantity"] == 2
    assert found["actual"] is True
    (said,) = found["characteristic"]
    assert said["valueReference"] == {"reference": f"ResearchStudy/{TRIAL}"}
    assert found["id"] == f"{TRIAL}-candidates"


def test_without_candidates_there_is_no_member_but_the_number_nought() -> None:
    found = group([], STUDY)
    assert "member" not in found
    assert found["quantity"] == 0


def test_the_list_holds_a_potential_candidate_for_each() -> None:
    found = listed(TWO, STUDY)
    subjects = {one["id"]: one for one in found["contained"]}
    entries = [subjects[entry["item"]["reference"][1:]] for entry in found["entry"]]
    assert [entry["individual"]["reference"] for entry in entries] == ["Patient/a", "Patient/b"]
    assert {entry["status"] for entry in entries} == {"potential-candidate"}
    assert {entry["study"]["reference"] for entry in entries} == {f"ResearchStudy/{TRIAL}"}
    assert [entry["flag"]["text"] for entry in found["entry"]] == [
        "potentially-eligible",
        "eligible",
    ]
    assert (found["status"], found["mode"], found["date"]) == ("current", "snapshot", "2026-11-01")


def test_an_empty_list_says_whether_nothing_was_found_or_nothing_is_known() -> None:
    assert "coding" not in listed([], STUDY)["emptyReason"]
    found = listed([], Study(TRIAL, "QH103", "2026-11-01", complete=False))
    assert found["emptyReason"]["coding"][0]["code"] == "unavailable"


def test_an_incomplete_search_is_noted() -> None:
    assert (
        "not complete" in listed(TWO, Study(TRIAL, "x", "2026", complete=False))["note"][0]["text"]
    )
    assert "note" not in listed(TWO, STUDY)


def test_several_trials_give_a_collection_with_one_each() -> None:
    for found in (group(TWO, STUDY, OTHER), listed(TWO, STUDY, OTHER)):
        check_r4b(found)
        assert [entry["resource"]["id"] for entry in found["entry"]] == [
            f"{TRIAL}-candidates",
            "NCT00000000-candidates",
        ]
    assert group(TWO, STUDY, OTHER)["entry"][1]["resource"]["quantity"] == 0


def test_a_candidate_keeps_the_id_in_every_search() -> None:
    assert subject_id(TRIAL, "Patient/a") == subject_id(TRIAL, "Patient/a")
    assert len({subject_id(t, p) for t in ("a", "b") for p in ("a", "b", "a b")}) == 6
    check_r4b(research_subject(TRIAL, "Patient/a", BASE))


def test_with_a_key_ids_cannot_be_computed_by_others() -> None:
    plain, keyed = subject_id(TRIAL, "Patient/a"), subject_id(TRIAL, "Patient/a", b"key")
    assert len({plain, keyed, subject_id(TRIAL, "Patient/a", b"other")}) == 3
    study = Study(TRIAL, "QH103", "2026-11-01", base=BASE, key=b"key")
    (contained, *_) = listed(TWO, study)["contained"]
    assert contained["id"] == contained["identifier"][0]["value"] == keyed
    assert plain not in json.dumps(listed(TWO, study))


@given(st.lists(st.text(max_size=20), max_size=3), st.text(max_size=20))
def test_no_id_or_name_makes_them_invalid(patients: list[str], name: str) -> None:
    made = [Candidate(one, TRIAL, "eligible", name, None, 1, *[()] * 5) for one in patients]
    study = Study(TRIAL, name, name, base=BASE)
    check_r4b(json.loads(b"".join(group_json([study], lambda: made))))
    check_r4b(json.loads(b"".join(list_json([study], lambda: made))))
