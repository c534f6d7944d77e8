"""Who is to be searched: found by code, or named; nobody is left out without a word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigurationError, SourceError, UsageError
from service.fhir.cohort import (
    Cohort,
    Rejected,
    Sought,
    by_code,
    by_file,
    by_reference,
    everyone,
    is_reference,
)
from service.fhir.server import ServerSource
from service.fhir.source import SiteSearch
from tests.faults import QUICK, outcome, reset
from tests.fhir.hospital import Asked, Hospital, Json, Manners, running

DAY = date(2026, 11, 1)
ICD = "http://hl7.org/fhir/sid/icd-10-cm"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
LIMITS = replace(QUICK, outage=0.1, circuit_seconds=0.05)


def bears(raw: bytes) -> bool:
    """Tell what may be leukaemia, as the trial's code sets would."""
    return b"C91" in raw or b"leuk" in raw or b'"I10"' not in raw


SOUGHT = Sought(
    "Condition", frozenset({(ICD, "C91.00"), (ICD, "C91.01")}), (ABSENT,), ("leuk",), bears
)


@pytest.fixture(scope="module")
def server() -> Iterator[Hospital]:
    with running() as found:
        yield found


@pytest.fixture
def hospital(server: Hospital) -> Hospital:
    server.manners = Manners()
    server.held.clear()
    server.seen.clear()
    server.fault = lambda handler, asked: False
    return server


@pytest.fixture
def source(hospital: Hospital) -> Iterator[ServerSource]:
    found = ServerSource(hospital.base, site=SiteSearch(page_size=10), limits=LIMITS)
    yield found
    found.close()


@pytest.fixture
def wide(hospital: Hospital) -> Iterator[ServerSource]:
    """Read the server in pages that show at a glance what it ignores."""
    found = ServerSource(hospital.base, site=SiteSearch(page_size=50), limits=LIMITS)
    yield found
    found.close()


def ids(cohort: Cohort) -> list[str]:
    return [member.id for member in cohort.members]


def condition(found: str, patient: str | None, icd: str | None = "C91.00", **more: Any) -> Json:
    concept = {"coding": [{"system": ICD, "code": icd}]} if icd else {}
    subject = {"subject": {"reference": f"Patient/{patient}"}} if patient else {}
    return {"resourceType": "Condition", "id": found, "code": concept} | subject | more


# By code


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 49, 50, 51, 100, 101])
def test_all_with_a_code_are_found_whatever_the_pages(
    hospital: Hospital, source: ServerSource, count: int
) -> None:
    hospital.put(*(condition(f"c{each}", f"p{each:03}") for each in range(count)))
    hospital.put(*(condition(f"x{each}", f"q{each:03}", "I10") for each in range(5)))
    found = by_code(source, [SOUGHT])
    assert ids(found) == [f"p{each:03}" for each in range(count)]
    assert found.problems == ()
    assert found.limits


def test_patients_with_several_diagnoses_are_found_once(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.put(condition("a", "p1"), condition("b", "p1", "C91.01"), condition("c", "p2"))
    assert ids(by_code(source, [SOUGHT])) == ["p1", "p2"]


@pytest.mark.parametrize(
    ("ceiling", "counts", "cut"),
    [(37, True, True), (50, False, True), (None, True, False), (None, False, False)],
)
def test_a_server_that_stops_without_a_word_is_found_out(
    hospital: Hospital, source: ServerSource, ceiling: int | None, counts: bool, cut: bool
) -> None:
    """It announces no total; a count, or a round number, shows that it may have stopped."""
    hospital.put(*(condition(f"c{each}", f"p{each:03}") for each in range(60)))
    hospital.manners.totals, hospital.manners.ceiling = "none", ceiling
    hospital.manners.counts = counts
    found = by_code(source, [SOUGHT])
    assert bool(found.problems) is cut
    assert len(ids(found)) == (ceiling or 60)


def test_diagnoses_by_text_or_masked_or_without_code_are_found(
    hospital: Hospital, source: ServerSource
) -> None:
    masked = {"coding": [{"system": ABSENT, "code": "masked"}]}
    hospital.put(
        condition("a", "text", None, code={"text": "Leukaemia"}),
        condition("b", "masked", None, code=masked),
        condition("c", "bare", None),
        condition("d", "well", "I10"),
    )
    assert ids(by_code(source, [SOUGHT])) == ["bare", "masked", "text"]


@pytest.mark.parametrize(
    ("unknown", "what"),
    [("code:text", "by text only"), ("code:missing", "without a code")],
)
def test_what_a_server_does_not_search_for_is_a_problem(
    hospital: Hospital, source: ServerSource, unknown: str, what: str
) -> None:
    hospital.put(condition("a", "p1"))
    hospital.manners.unknown = frozenset({unknown})
    found = by_code(source, [SOUGHT])
    assert ids(found) == ["p1"]
    assert any(what in each and "--cohort" in each for each in found.problems)


def test_a_server_that_ignores_a_condition_is_not_read_whole(
    hospital: Hospital, wide: ServerSource
) -> None:
    """It answers the search for those without a code with everybody."""
    hospital.put(condition("a", "p1"), *(condition(f"x{n}", "q", "I10") for n in range(200)))
    hospital.manners.ignored = frozenset({"code:missing"})
    found = by_code(wide, [SOUGHT])
    assert ids(found) == ["p1"]
    assert any("ignores the condition" in each for each in found.problems)
    assert sum(1 for each in hospital.asked("Condition") if each.value("code:missing")) == 1


def test_a_later_page_of_what_was_not_asked_for_is_a_problem(
    hospital: Hospital, wide: ServerSource
) -> None:
    """The link to it has lost the condition."""
    hospital.put(*(condition(f"x{n}", "q", "I10") for n in range(100)))
    hospital.put(*(condition(f"c{n}", f"p{n:03}") for n in range(60)))
    hospital.manners.totals = "none"

    def losing(handler: Any, asked: Asked) -> bool:
        if asked.value("code").startswith(ICD) and asked.value("_page"):
            status, page = hospital.answer("Condition", [("_count", "50")])
            del page["link"]
            handler.reply(status, page)
            return True
        return False

    hospital.fault = losing
    found = by_code(wide, [SOUGHT])
    assert len(found.members) == 50
    assert any("what was not asked for" in each for each in found.problems)


@pytest.mark.parametrize("read", [slice(1), slice(2), slice(-1, None), slice(0)])
@pytest.mark.parametrize("codes", [("C91.00",), ("C91.01",), ("C91.01", "C91.00"), ()])
def test_a_server_that_reads_not_all_of_a_list_of_codes_loses_nobody(
    hospital: Hospital,
    source: ServerSource,
    monkeypatch: pytest.MonkeyPatch,
    read: slice,
    codes: tuple[str, ...],
) -> None:
    hospital.put(*(condition(f"c{code}", f"p{code}", code) for code in codes))
    hospital.put(condition("text", "pt", None, code={"text": "leukaemia, acute"}))
    fits = hospital._fits

    def partly(resource: Json, name: str, value: str) -> bool:
        if name in ("code", "code:text") and "," in value:
            value = ",".join(value.split(",")[read])
        return fits(resource, name, value)

    monkeypatch.setattr(hospital, "_fits", partly)
    texts = ("acute", "leuk", "lymph")
    found = by_code(source, [replace(SOUGHT, texts=texts)])
    assert ids(found) == sorted([*(f"p{code}" for code in codes), "pt"])
    assert found.problems == ()


def test_a_server_that_reads_lists_is_not_asked_code_by_code(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.put(condition("a", "p1"))
    by_code(source, [SOUGHT])
    assert not any(each.value("code") == "C91.01" for each in hospital.asked("Condition"))


@pytest.mark.parametrize(
    "subject",
    [
        {"reference": "http://other.example/r4/Patient/p2"},
        {"reference": "urn:uuid:4e6a"},
        {"reference": "#p"},
        {"display": "somebody"},
        None,
    ],
)
def test_a_diagnosis_of_nobody_known_is_a_problem(
    hospital: Hospital, source: ServerSource, subject: Json | None
) -> None:
    hospital.put(condition("a", "p1"))
    hospital.put(condition("b", None, **({"subject": subject} if subject else {})))
    found = by_code(source, [SOUGHT])
    assert ids(found) == ["p1"]
    assert any("does not name a patient" in each for each in found.problems)
    assert not any("somebody" in each or "other.example" in each for each in found.problems)


def test_a_diagnosis_of_a_group_is_no_problem(hospital: Hospital, source: ServerSource) -> None:
    hospital.put(condition("b", None, subject={"reference": "Group/1"}))
    assert by_code(source, [SOUGHT]).problems == ()


@pytest.mark.parametrize(
    "more",
    [
        {
            "subject": {
                "reference": "http://other.example/r4/Patient/9",
                "identifier": {"system": "urn:mrn", "value": "7"},
            }
        },
        {
            "subject": {"reference": "#p"},
            "contained": [
                {
                    "resourceType": "Patient",
                    "id": "p",
                    "identifier": [{"system": "urn:mrn", "value": "7"}],
                }
            ],
        },
    ],
    ids=["elsewhere", "contained"],
)
def test_a_patient_named_by_an_identifier_beside_or_inside_is_found(
    hospital: Hospital, source: ServerSource, more: Json
) -> None:
    hospital.put(condition("b", None, **more))
    named = [{"system": "urn:mrn", "value": "7"}]
    hospital.put({"resourceType": "Patient", "id": "p7", "identifier": named})
    found = by_code(source, [SOUGHT])
    assert ids(found) == ["p7"]
    assert found.problems == ()


def test_a_server_that_ignores_the_code_is_a_configuration_error(
    hospital: Hospital, wide: ServerSource
) -> None:
    hospital.put(*(condition(f"x{n}", "q", "I10") for n in range(200)))
    hospital.manners.ignored = frozenset({"code"})
    with pytest.raises(ConfigurationError, match=r"ignores the code.*--cohort"):
        by_code(wide, [SOUGHT])


@pytest.mark.parametrize(
    ("status", "words"), [(401, "scope"), (403, "system/Condition.rs"), (400, "--cohort")]
)
def test_a_refused_search_says_what_to_change(
    hospital: Hospital, source: ServerSource, status: int, words: str
) -> None:
    hospital.manners.refused["Condition"] = status
    with pytest.raises(ConfigurationError, match=words) as error:
        by_code(source, [SOUGHT])
    assert error.value.exit_code == 2


@pytest.mark.parametrize("declared", [["patient"], []])
def test_a_server_that_declares_no_search_by_code_says_what_to_change(
    hospital: Hospital, source: ServerSource, declared: list[str]
) -> None:
    hospital.manners.parameters["Condition"] = declared
    with pytest.raises(ConfigurationError, match=r"by code.*--cohort"):
        by_code(source, [SOUGHT])


def test_a_page_that_stays_unreadable_makes_the_cohort_incomplete(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.put(*(condition(f"c{each}", f"p{each:03}") for each in range(30)))

    def broken(handler: Any, asked: Asked) -> bool:
        if asked.value("_page") == "20":
            handler.reply(500, outcome("error", "exception"))
            return True
        return False

    hospital.fault = broken
    found = by_code(source, [SOUGHT])
    assert len(found.members) == 20
    assert any("500" in each for each in found.problems)


@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_page_that_breaks_for_once_is_read_again(
    hospital: Hospital, source: ServerSource, times: int
) -> None:
    hospital.put(*(condition(f"c{each}", f"p{each:03}") for each in range(30)))
    left = times

    def broken(handler: Any, asked: Asked) -> bool:
        nonlocal left
        if asked.value("_page") == "20" and left:
            left -= 1
            reset(handler)
            return True
        return False

    hospital.fault = broken
    found = by_code(source, [SOUGHT])
    assert len(found.members) == 30
    assert found.problems == ()


def test_a_cursor_that_expires_is_followed_anew(hospital: Hospital, source: ServerSource) -> None:
    hospital.put(*(condition(f"c{each}", f"p{each:03}") for each in range(30)))
    left = 1

    def expired(handler: Any, asked: Asked) -> bool:
        nonlocal left
        if asked.value("_page") == "20" and left:
            left -= 1
            handler.reply(410, outcome("error", "not-found"))
            return True
        return False

    hospital.fault = expired
    found = by_code(source, [SOUGHT])
    assert len(found.members) == 30
    assert found.problems == ()


@pytest.mark.parametrize(
    ("manners", "words"),
    [
        (Manners(totals="wrong"), "fewer resources"),
        (Manners(outcomes={"Condition": outcome("warning", "incomplete")}), "warning"),
    ],
)
def test_a_reply_that_may_lack_something_makes_the_cohort_incomplete(
    hospital: Hospital, source: ServerSource, manners: Manners, words: str
) -> None:
    hospital.put(condition("a", "p1"))
    hospital.manners = manners
    assert any(words in each for each in by_code(source, [SOUGHT]).problems)


def test_a_patient_named_by_identifier_is_looked_up(
    hospital: Hospital, source: ServerSource
) -> None:
    token = {"system": "urn:mrn", "value": "7"}
    hospital.put({"resourceType": "Patient", "id": "p7", "identifier": [token]})
    hospital.put(condition("a", None, subject={"identifier": token}))
    hospital.put(condition("b", None, subject={"identifier": token | {"value": "8"}}))
    found = by_code(source, [SOUGHT])
    assert ids(found) == ["p7"]
    assert len(found.problems) == 1


def test_all_patients_are_the_cohort_of_a_trial_without_codes(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.put(*({"resourceType": "Patient", "id": f"p{n}"} for n in range(11)))
    assert len(everyone(source).members) == 11


# By Group and List


def group(found: str, *members: Json, **more: Any) -> Json:
    return {"resourceType": "Group", "id": found, "actual": True, "member": list(members), **more}


def member(reference: str, **more: Any) -> Json:
    return {"entity": {"reference": reference}, **more}


def test_a_groups_members_are_taken_who_are_members_on_the_day(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.put(
        group(
            "g",
            member("Patient/a"),
            member("Patient/inactive", inactive=True),
            member("Patient/past", period={"end": "2026-10-31"}),
            member("Patient/today", period={"start": "2026-11-01", "end": "2026-11-01"}),
            member("Patient/future", period={"start": "2026-11-02"}),
            member("Patient/maybe", period={"end": "2026"}),
            member(f"{hospital.base}/Patient/absolute"),
            member("Patient/versioned/_history/2"),
            member("Patient/a"),
        )
    )
    found = by_reference(source, "Group/g", DAY)
    assert ids(found) == ["a", "absolute", "maybe", "today", "versioned"]
    assert found.problems == ()
    assert found.rejected == ()


def test_groups_in_groups_are_followed_once(hospital: Hospital, source: ServerSource) -> None:
    hospital.put(
        group("g", member("Group/h"), member("Patient/a")),
        group("h", member("Group/g"), member("Patient/b"), member("Group/gone")),
    )
    found = by_reference(source, "Group/g", DAY)
    assert ids(found) == ["a", "b"]
    assert [each.reference for each in found.rejected] == ["Group/gone"]


def test_a_huge_group_is_read(hospital: Hospital, source: ServerSource) -> None:
    hospital.put(group("g", *(member(f"Patient/p{n:05}") for n in range(20_001))))
    assert len(by_reference(source, "Group/g", DAY).members) == 20_001


def test_a_group_that_counts_more_members_than_it_names_is_incomplete(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.put(group("g", member("Patient/a"), quantity=2))
    assert by_reference(source, "Group/g", DAY).problems


def test_members_who_are_no_patients_here_are_rejected(
    hospital: Hospital, source: ServerSource
) -> None:
    token = {"system": "urn:mrn", "value": "7"}
    hospital.put({"resourceType": "Patient", "id": "p7", "identifier": [token]})
    hospital.put(
        group(
            "g",
            member("Practitioner/x"),
            member("https://other.example/Patient/y"),
            {"entity": {"identifier": token}},
            {"entity": {"identifier": token | {"value": "9"}}},
            {},
        )
    )
    found = by_reference(source, "Group/g", DAY)
    assert ids(found) == ["p7"]
    assert len(found.rejected) == 4


@pytest.mark.parametrize(
    ("resource", "words"),
    [
        (None, "no such Group"),
        (group("g", actual=False), "names none"),
        (group("g"), "names no members"),
    ],
)
def test_a_group_that_names_nobody_is_a_configuration_error(
    hospital: Hospital, source: ServerSource, resource: Json | None, words: str
) -> None:
    hospital.put(*([resource] if resource else []))
    with pytest.raises(ConfigurationError, match=words):
        by_reference(source, "Group/g", DAY)


def test_an_empty_group_that_says_so_is_empty(hospital: Hospital, source: ServerSource) -> None:
    hospital.put(group("g", quantity=0))
    assert by_reference(source, "Group/g", DAY).members == ()


def test_a_refused_group_says_which_scope_it_needs(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.manners.refused["Group"] = 403
    with pytest.raises(ConfigurationError, match=r"system/Group\.rs"):
        by_reference(source, "Group/g", DAY)


def test_a_group_that_fails_to_come_is_a_source_error(
    hospital: Hospital, source: ServerSource
) -> None:
    hospital.manners.refused["Group"] = 500
    with pytest.raises(SourceError):
        by_reference(source, "Group/g", DAY)


def test_a_lists_entries_are_taken_but_those_deleted(
    hospital: Hospital, source: ServerSource
) -> None:
    items = [
        ({"reference": "Patient/a"}, False),
        ({"reference": "Patient/b"}, False),
        ({"reference": "Patient/b"}, True),
        ({"reference": "ResearchSubject/s"}, False),
        ({"display": "someone"}, False),
    ]
    entries = [{"item": item, "deleted": deleted} for item, deleted in items]
    hospital.put({"resourceType": "List", "id": "l", "status": "current", "entry": entries})
    individual = {"reference": "Patient/c"}
    hospital.put({"resourceType": "ResearchSubject", "id": "s", "individual": individual})
    found = by_reference(source, "List/l", DAY)
    assert ids(found) == ["a", "c"]
    assert len(found.rejected) == 1


def test_a_list_entered_in_error_is_refused(hospital: Hospital, source: ServerSource) -> None:
    hospital.put({"resourceType": "List", "id": "l", "status": "entered-in-error"})
    with pytest.raises(ConfigurationError, match="error"):
        by_reference(source, "List/l", DAY)


@pytest.mark.parametrize(
    ("text", "known"),
    [("Group/7", True), ("List/a-b.c", True), ("./Group/7", False), ("Patient/7", False)],
)
def test_a_group_or_list_is_told_from_a_file(text: str, known: bool) -> None:
    assert is_reference(text) is known


# By a file


def written(folder: Path, raw: bytes) -> Path:
    path = folder / "cohort.txt"
    path.write_bytes(raw)
    return path


def test_a_file_names_patients_by_id_or_identifier(
    hospital: Hospital, source: ServerSource, tmp_path: Path
) -> None:
    for number in range(3):
        token = {"system": "urn:mrn", "value": f"{number},|x"}
        hospital.put({"resourceType": "Patient", "id": f"p{number}", "identifier": [token]})
    raw = b"\xef\xbb\xbf# who\r\np9\r\n\r\n  Patient/p8  \r\nurn:mrn|1,|x\r\np9"
    found = by_file(source, written(tmp_path, raw))
    assert [(each.id, each.line) for each in found.members] == [("p1", 5), ("p8", 4), ("p9", 2)]
    assert found.rejected == ()


def test_a_line_that_names_nobody_or_several_is_rejected_with_its_number(
    hospital: Hospital, source: ServerSource, tmp_path: Path
) -> None:
    token = {"system": "urn:mrn", "value": "2"}
    for name in ("a", "b"):
        hospital.put({"resourceType": "Patient", "id": name, "identifier": [token]})
    lines = [b"urn:mrn|1", b"urn:mrn|2", b"not an id", b"\xff", b"urn:mrn|", b"fine"]
    found = by_file(source, written(tmp_path, b"\n".join(lines)))
    assert ids(found) == ["fine"]
    assert sorted(each.line or 0 for each in found.rejected) == [1, 2, 3, 4, 5]
    text = " ".join(each.problem for each in found.rejected)
    assert "several patients" in text
    assert "no patient" in text
    assert "urn:mrn" not in text


def test_of_merged_patients_with_one_identifier_the_survivor_is_meant(
    hospital: Hospital, source: ServerSource, tmp_path: Path
) -> None:
    token = {"system": "urn:mrn", "value": "2"}
    link = {"type": "replaced-by", "other": {"reference": "Patient/new"}}
    hospital.put({"resourceType": "Patient", "id": "new", "identifier": [token]})
    hospital.put({"resourceType": "Patient", "id": "old", "identifier": [token], "link": [link]})
    assert ids(by_file(source, written(tmp_path, b"urn:mrn|2"))) == ["new"]


@pytest.mark.parametrize("raw", [b"", b"# nobody\n\n"])
def test_a_file_that_names_nobody_is_a_mistake(
    source: ServerSource, tmp_path: Path, raw: bytes
) -> None:
    with pytest.raises(UsageError, match="names no patient"):
        by_file(source, written(tmp_path, raw))


def test_a_file_that_is_not_there_is_a_mistake(source: ServerSource, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        by_file(source, tmp_path / "none")


def test_a_server_that_does_not_search_by_identifier_says_so(
    hospital: Hospital, source: ServerSource, tmp_path: Path
) -> None:
    hospital.manners.parameters["Patient"] = ["_id"]
    with pytest.raises(ConfigurationError, match="by id"):
        by_file(source, written(tmp_path, b"urn:mrn|2"))


def test_a_rejected_line_says_no_more_than_where_it_is() -> None:
    assert Rejected("x", 3) == ("x", 3, None)
