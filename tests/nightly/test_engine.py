"""The search gives what evaluating patient by patient gives, whatever the files are like."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from service.nightly import directory, engine
from service.nightly.model import SearchFailed
from tests.nightly.making import (
    OTHER_CODE,
    PATIENTS,
    Json,
    condition,
    hospital,
    lines_of,
    observation,
    one_by_one,
    patient,
    patients_of,
    rejects,
    search,
    shipped,
    verdicts,
    write_types,
)

SICK = 6


def small_pieces(monkeypatch: pytest.MonkeyPatch, unit: int = 900, chunk: int = 350) -> None:
    """Cut files so small that every boundary lies within the data."""
    monkeypatch.setattr(directory, "UNIT", unit)
    monkeypatch.setattr(directory, "CHUNK", chunk)


@pytest.mark.parametrize("count", [1, 49, 50, 51, 100, 101, 1000, 1001])
def test_no_patient_is_dropped_at_any_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    if count < 1000:
        small_pieces(monkeypatch, unit=5000)
    resources: list[Json] = []
    for number in range(count):
        resources += [patient(f"p{number}"), condition(f"c{number}", f"Patient/p{number}")]
    statement = search(write_types(tmp_path / "in", resources), tmp_path / "out", workers=2)
    expected = sorted(f"Patient/p{number}" for number in range(count))
    assert patients_of(tmp_path / "out") == expected
    assert statement.complete
    assert statement.patients_seen == statement.in_population == statement.evaluated == count


def test_one_two_and_seven_workers_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    source = write_types(tmp_path / "in", hospital(40, 60))
    given = []
    for workers in (1, 2, 7):
        output = tmp_path / f"out{workers}"
        search(source, output, workers=workers)
        names = ("verdicts.ndjson", "candidates.csv", "group.json", "rejects.ndjson")
        given.append([(output / name).read_bytes() for name in names])
    assert given[0] == given[1] == given[2]
    assert len(patients_of(tmp_path / "out1")) == 40


@pytest.mark.parametrize("shape", ["types", "packed", "mixed", "bundles", "shuffled"])
def test_the_search_equals_evaluating_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    small_pieces(monkeypatch, unit=40_000, chunk=5000)
    source = tmp_path / "in"
    if shape == "bundles":
        source = PATIENTS
    elif shape in ("types", "packed"):
        write_types(source, shipped(), packed=shape == "packed")
    else:
        source.mkdir()
        lines = lines_of(shipped())
        if shape == "shuffled":
            random.Random(5).shuffle(lines)  # noqa: S311 - an order, nothing secret
        third = len(lines) // 3
        (source / "one.ndjson").write_bytes(b"".join(lines[:third]))
        (source / "two.ndjson.gz").write_bytes(gzip.compress(b"".join(lines[third : 2 * third])))
        (source / "three.ndjson").write_bytes(b"".join(lines[2 * third :]))
    search(source, tmp_path / "out", workers=2)
    assert verdicts(tmp_path / "out") == one_by_one(source)
    assert len(verdicts(tmp_path / "out")) > 60


def test_others_are_counted_not_listed(tmp_path: Path) -> None:
    statement = search(write_types(tmp_path / "in", hospital(SICK, 20)), tmp_path / "out")
    assert statement.patients_seen == SICK + 20
    assert statement.in_population == SICK
    assert statement.types["Observation"].lines == SICK + 20
    assert statement.types["Observation"].read == SICK
    assert statement.types["Observation"].skipped == {"other-patient": 20}
    assert sum(statement.trials[0].verdicts.values()) == SICK


BAD_LINES = [
    b'{"resourceType":"Observation","id":"cut","subject":{"reference":"Patient/p-00001"},"co\n',
    b"garbage\n",
    b'{"resourceType":"Observation","subject":"Patient/p-00001"}\n',
]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_stops_nobody_and_is_kept_with_its_place(tmp_path: Path, bad: bytes) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 20))
    file = source / "Observation.ndjson"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:11], bad, *lines[11:]]))
    statement = search(source, tmp_path / "out")
    assert not statement.complete
    assert statement.evaluated == SICK
    assert [(each["file"], each["line"]) for each in rejects(tmp_path / "out")] == [
        ("Observation.ndjson", 12)
    ]
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_the_place_of_a_bad_line_is_right_in_a_later_stretch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    source = write_types(tmp_path / "in", hospital(SICK, 20))
    file = source / "Observation.ndjson"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:21], b"garbage\n", *lines[21:]]))
    search(source, tmp_path / "out", workers=2)
    assert [each["line"] for each in rejects(tmp_path / "out")] == [22]


def test_a_patient_named_by_an_identifier_is_found_whatever_else_names_him(
    tmp_path: Path,
) -> None:
    def bearer(key: str) -> Json:
        return patient(key, identifier=[{"system": "urn:example:mrn", "value": key}])

    def named(key: str, subject: Json, **more: Any) -> Json:
        return condition(f"c-{key}", "") | {"subject": subject} | more

    def mrn(key: str) -> Json:
        return {"identifier": {"system": "urn:example:mrn", "value": key}}

    folder = write_types(
        tmp_path / "in",
        [
            *map(bearer, ("p1", "p2", "p3", "p4")),
            named("1", mrn("p1")),
            named("2", {"reference": "https://other.example/Patient/x"} | mrn("p2")),
            named("3", {"reference": "#a"}, contained=[bearer("p3") | {"id": "a"}]),
            observation("o-2", "", subject={"reference": "urn:uuid:x"} | mrn("p2")),
        ],
    )
    statement = search(folder, tmp_path / "out")
    assert statement.complete, statement.problems
    assert patients_of(tmp_path / "out") == ["Patient/p1", "Patient/p2", "Patient/p3"]
    assert verdicts(tmp_path / "out") == one_by_one(folder)


@pytest.mark.parametrize(
    "subject",
    [
        "Patient/gone",
        "urn:uuid:00000000-0000-4000-8000-000000000001",
        "https://x.example/Patient/9",
    ],
)
def test_a_diagnosis_of_whom_there_is_no_patient_is_counted_and_a_gap(
    tmp_path: Path, subject: str
) -> None:
    known = [*hospital(1, 1), condition("c-gone", subject), condition("c-again", subject)]
    others = [condition("c-group", "Group/1"), condition("c-well", "Patient/x", OTHER_CODE)]
    statement = search(write_types(tmp_path / "in", [*known, *others]), tmp_path / "out")
    assert not statement.complete
    assert [text.split()[1] for text in statement.problems] == ["1"]
    assert "not in the source" in statement.problems[0]
    assert statement.evaluated == 1


@pytest.mark.parametrize("subject", [None, {"display": "N. N."}])
def test_a_diagnosis_that_names_nobody_makes_a_search_incomplete(
    tmp_path: Path, subject: Json | None
) -> None:
    stray, well = condition("c-x", "Patient/x"), condition("c-y", "Patient/y", OTHER_CODE)
    stray["subject"] = well["subject"] = subject
    known = [patient("p"), condition("c", "Patient/p")]
    statement = search(write_types(tmp_path / "in", [*known, stray, well]), tmp_path / "out")
    assert not statement.complete
    assert [text.split()[1] for text in statement.problems] == ["1"]
    assert "name nobody" in statement.problems[0]
    assert statement.in_population == statement.evaluated == 1


def test_a_lost_condition_leaves_nobody_out(tmp_path: Path) -> None:
    """Whose it was isn't known, so that anyone may have the disease."""
    source = write_types(tmp_path / "in", hospital(SICK, 20))
    file = source / "Condition.ndjson"
    file.write_bytes(file.read_bytes() + b'{"resourceType":"Condition","code":{"cod\n')
    statement = search(source, tmp_path / "out")
    assert not statement.complete
    assert statement.in_population == SICK + 20
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_a_condition_in_a_file_of_another_name_is_found(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 20))
    (source / "Procedure.ndjson").write_bytes(
        b"".join(lines_of([patient("q"), condition("cq", "Patient/q")]))
    )
    search(source, tmp_path / "out")
    assert "Patient/q" in patients_of(tmp_path / "out")
    assert verdicts(tmp_path / "out") == one_by_one(source)


def masked(code: Json | None) -> Json:
    """Give a Condition whose code says nothing."""
    found = condition("m", "Patient/m")
    if code is None:
        del found["code"]
        return found
    return found | {"code": code}


UNMAPPED = {"coding": [{"system": "urn:local", "code": "1", "display": "B-ALL, relapsed"}]}
HIDDEN = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/data-absent-reason",
            "code": "masked",
        }
    ]
}


@pytest.mark.parametrize(
    "record",
    [
        masked(None),
        masked(HIDDEN),
        masked(UNMAPPED),
        masked({"text": "acute lymphoblastic leukemia"}),
        condition("m", "Patient/m", verificationStatus={"coding": [{"code": "provisional"}]}),
        condition("m", "Patient/m", clinicalStatus="active"),
        condition("m", "Patient/m", onsetDateTime="no date"),
        condition("m", "Patient/m/_history/3"),
    ],
)
def test_whoever_may_have_the_disease_is_in_the_population(tmp_path: Path, record: Json) -> None:
    resources = [*hospital(SICK, 10), patient("m"), record]
    source = write_types(tmp_path / "in", resources)
    search(source, tmp_path / "out")
    assert "Patient/m" in patients_of(tmp_path / "out")
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_records_that_name_a_patient_by_identifier_or_address_are_found(tmp_path: Path) -> None:
    base = "https://fhir.example.org/r4"
    number = {"system": "urn:mrn", "value": "7"}
    resources = [
        patient("a", identifier=[number]),
        condition("ca", "", subject={"identifier": number}),
        patient("b"),
        condition("cb", f"{base}/Patient/b"),
        patient("c"),
        condition("cc", "Patient/c", OTHER_CODE),
    ]
    source = write_types(tmp_path / "in", resources)
    manifest = {
        "transactionTime": "2026-11-01T00:00:00Z",
        "request": f"{base}/$export",
        "output": [],
        "error": [],
    }
    (source / "manifest.json").write_text(json.dumps(manifest))
    search(source, tmp_path / "out")
    assert patients_of(tmp_path / "out") == ["Patient/a", "Patient/b"]
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_merged_patients_are_one_with_both_ids_records(tmp_path: Path) -> None:
    resources = [
        patient("old", link=[{"other": {"reference": "Patient/new"}, "type": "replaced-by"}]),
        patient("new"),
        patient("other"),
        condition("c", "Patient/old"),
        observation("o", "Patient/new"),
        condition("d", "Patient/other", OTHER_CODE),
    ]
    source = write_types(tmp_path / "in", resources)
    statement = search(source, tmp_path / "out")
    assert patients_of(tmp_path / "out") == ["Patient/new"]
    assert statement.patients_seen == 2
    assert statement.in_population == 1
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_a_patient_merged_into_one_that_is_missing_is_named_as_failed(tmp_path: Path) -> None:
    gone = patient("old", link=[{"other": {"reference": "Patient/new"}, "type": "replaced-by"}])
    source = write_types(tmp_path / "in", [gone, condition("c", "Patient/old")])
    statement = search(source, tmp_path / "out")
    assert [failure.patient for failure in statement.failures] == ["Patient/old"]
    assert not statement.complete


@pytest.mark.parametrize(
    "other",
    [
        {"reference": "Patient/old"},
        {"reference": "RelatedPerson/new"},
        {"reference": "https://other.example/Patient/new"},
        {"display": "somebody"},
    ],
)
def test_a_patient_merged_into_nobody_known_is_not_lost(tmp_path: Path, other: Json) -> None:
    gone = patient("old", link=[{"other": other, "type": "replaced-by"}])
    source = write_types(tmp_path / "in", [gone, condition("c", "Patient/old")])
    search(source, tmp_path / "out")
    assert patients_of(tmp_path / "out") == ["Patient/old"]
    assert verdicts(tmp_path / "out") == one_by_one(source)


@pytest.mark.parametrize(
    "name",
    ["x.NDJSON", "x.ndjson.GZ", "x.gz", "x.fhir", "x.ndjson.part", "part-0001", "sub/y.JSON"],
)
def test_files_are_read_whatever_their_names(tmp_path: Path, name: str) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    raw = b"".join(lines_of([patient("x"), condition("cx", "Patient/x")]))
    path = source / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
    statement = search(source, tmp_path / "out")
    assert statement.complete
    assert "Patient/x" in patients_of(tmp_path / "out")
    assert verdicts(tmp_path / "out") == one_by_one(source)


@pytest.mark.parametrize("name", ["x.ndjson.zst", "Condition.xml", "x.parquet"])
def test_a_file_of_another_form_is_a_gap(tmp_path: Path, name: str) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    (source / name).write_bytes(b"\x28\xb5\x2f\xfd")
    statement = search(source, tmp_path / "out")
    assert not statement.complete
    assert rejects(tmp_path / "out")[0]["file"] == name
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_a_folder_that_is_only_linked_to_is_a_gap(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    beside = write_types(tmp_path / "beside", [patient("x"), condition("cx", "Patient/x")])
    (source / "more").symlink_to(beside, target_is_directory=True)
    assert not search(source, tmp_path / "out").complete
    assert rejects(tmp_path / "out")[0]["file"] == "more"
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_files_that_change_between_the_passes_give_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    path = source / "Condition.ndjson"
    raw = path.read_bytes()
    once = engine.search_files

    def cut(*given: Any) -> Any:
        path.write_bytes(raw[: raw.index(b"\n") + 1])
        return once(*given)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "search_files", cut)
        with pytest.raises(SearchFailed, match="changed while they were read"):
            search(source, tmp_path / "out")
    path.write_bytes(raw)
    assert search(source, tmp_path / "out").in_population == SICK


def test_what_stands_beside_an_export_is_no_gap(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    for name in ("README.md", "_SUCCESS", "export.log", ".DS_Store", "sums.sha256"):
        (source / name).write_bytes(b"x")
    assert search(source, tmp_path / "out").complete


def test_a_name_that_is_not_utf_8_is_a_gap_and_no_end(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    name = os.fsdecode(b"\xff.ndjson")
    try:
        (source / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    assert not search(source, tmp_path / "out").complete
    assert rejects(tmp_path / "out")[0]["file"] == "\\xff.ndjson"
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_an_identifier_that_two_bear_names_nobody(tmp_path: Path) -> None:
    own = [{"system": "urn:mrn", "value": "1"}]
    resources = [
        patient("a", identifier=own),
        patient("b", identifier=own),
        condition("ca", "Patient/b"),
        condition("c", "", subject={"identifier": own[0]}),
        observation("o", "", 9.9, subject={"identifier": own[0]}),
    ]
    source = write_types(tmp_path / "in", resources)
    assert not search(source, tmp_path / "out").complete
    assert patients_of(tmp_path / "out") == ["Patient/b"]
    assert "Observation/o" not in verdicts(tmp_path / "out")[0]
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_a_patient_without_id_is_a_gap(tmp_path: Path) -> None:
    nobody = {"resourceType": "Patient", "gender": "female"}
    source = write_types(tmp_path / "in", [*hospital(SICK, 4), nobody])
    assert not search(source, tmp_path / "out").complete
    assert [each["problem"] for each in rejects(tmp_path / "out")] == [
        "a Patient without id; not used"
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"resourceType":"Patient","id":"x","identifier":[{"value":"\xff"}]}',
        b'{"resourceType":"Patient","id":"x","link":[{"type":"\xff"}]}',
        b'{"resourceType":"Observation","id":"\xff","subject":{"reference":"Patient/p-00000"}}',
        b'{"resourceType":"Condition","id":"x","code":{"coding":[{"system":'
        b'"http://hl7.org/fhir/sid/icd-10-cm","code":"I10"}]},"clinicalStatus":{"text":"\xff"}}',
    ],
)
def test_damaged_text_is_no_more_than_it_is(tmp_path: Path, line: bytes) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    (source / "more.ndjson").write_bytes(line + b"\n")
    search(source, tmp_path / "out")
    assert len(patients_of(tmp_path / "out")) == SICK
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_an_unreadable_patient_is_named_and_the_others_are_evaluated(tmp_path: Path) -> None:
    resources = [*hospital(SICK, 4), patient("u", gender=5), condition("cu", "Patient/u")]
    source = write_types(tmp_path / "in", resources)
    statement = search(source, tmp_path / "out")
    assert statement.evaluated == SICK
    assert [failure.patient for failure in statement.failures] == ["Patient/u"]
    assert not statement.complete


def test_a_patient_on_whom_the_rules_break_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.record_of

    def broken(fetched: engine.Fetched) -> object:
        if fetched.patient == "Patient/p-00000":
            raise ZeroDivisionError
        return whole(fetched)

    monkeypatch.setattr(engine, "record_of", broken)
    statement = search(write_types(tmp_path / "in", hospital(SICK, 4)), tmp_path / "out")
    assert statement.evaluated == SICK - 1
    assert statement.failures[0].problem == "could not be evaluated (ZeroDivisionError)"


def test_medications_are_found_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch, unit=400, chunk=150)
    resources: list[Json] = [*hospital(SICK, 10)]
    for number in range(12):
        code = {"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "1597257"}
        resources.append(
            {"resourceType": "Medication", "id": f"m{number}", "code": {"coding": [code]}}
        )
        resources.append(
            {
                "resourceType": "MedicationAdministration",
                "id": f"a{number}",
                "status": "completed",
                "medicationReference": {"reference": f"Medication/m{number}"},
                "subject": {"reference": f"Patient/p-{number:05}"},
                "effectiveDateTime": "2026-05-01",
            }
        )
    source = write_types(tmp_path / "in", resources)
    statement = search(source, tmp_path / "out", workers=2)
    assert verdicts(tmp_path / "out") == one_by_one(source)
    assert 0 < statement.types["Medication"].read < 12
    assert statement.types["Medication"].lines == 12


def test_an_export_that_left_types_out_is_not_complete(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(SICK, 4))
    manifest = {
        "transactionTime": "2026-11-01T00:00:00Z",
        "request": "https://fhir.example.org/$export?_type=Patient,Condition,Observation",
        "output": [],
        "error": [],
    }
    (source / "manifest.json").write_text(json.dumps(manifest))
    statement = search(source, tmp_path / "out")
    assert not statement.complete
    assert any("_type" in problem for problem in statement.problems)
    assert statement.in_population == SICK
    assert verdicts(tmp_path / "out") == one_by_one(source)


def test_searchsets_that_say_nothing_of_conditions_leave_nobody_out(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for key in "ab":
        bundle = {
            "resourceType": "Bundle",
            "type": "searchset",
            "link": [{"relation": "self", "url": f"https://x.org/Observation?patient={key}"}],
            "entry": [
                {"resource": patient(key), "search": {"mode": "include"}},
                {"resource": observation(f"o{key}", f"Patient/{key}")},
            ],
        }
        (source / f"{key}.json").write_text(json.dumps(bundle))
    search(source, tmp_path / "out")
    assert verdicts(tmp_path / "out") == one_by_one(source)
    assert patients_of(tmp_path / "out") == ["Patient/a", "Patient/b"]


def test_a_large_partition_is_gone_through_in_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_types(tmp_path / "in", hospital(30, 0))
    search(source, tmp_path / "out")
    monkeypatch.setattr(engine, "_HELD", 1000)
    search(source, tmp_path / "again")
    assert verdicts(tmp_path / "again") == verdicts(tmp_path / "out")


def test_copies_of_a_patient_count_once(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(3, 3))
    (source / "Patient.2.ndjson").write_bytes((source / "Patient.ndjson").read_bytes())
    statement = search(source, tmp_path / "out")
    assert statement.patients_seen == 6
    assert statement.in_population == 3
