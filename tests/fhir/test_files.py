"""The source of directories and files (issue: Sources, point 2; semantics 1.5 and 1.8)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import PatientUnreadable, SourceError, UnknownPatient
from service.fhir.files import FileSource
from service.fhir.record import PatientRecord
from service.fhir.source import Fetched, Wanted, record_of

EVERYTHING = Wanted({})


def patient(name: str = "p1", **more: Any) -> Any:
    return {"resourceType": "Patient", "id": name, **more}


def observation(name: str = "o1", whose: str = "Patient/p1", **more: Any) -> Any:
    subject = {"reference": whose}
    code = {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]}
    return {
        "resourceType": "Observation", "id": name, "status": "final", "code": code,
        "subject": subject, **more,
    }  # fmt: skip


def ndjson(*resources: Any) -> bytes:
    return b"".join(json.dumps(resource).encode() + b"\n" for resource in resources)


def bundle(*resources: Any, **more: Any) -> bytes:
    entries = [{"resource": resource} for resource in resources]
    return json.dumps(
        {"resourceType": "Bundle", "type": "collection", "entry": entries, **more}
    ).encode()


def write(folder: Path, **files: bytes) -> FileSource:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return FileSource(folder)


def fetch(source: FileSource, name: str = "p1") -> Fetched:
    return source.fetch(name, EVERYTHING)


def record(source: FileSource, name: str = "p1") -> PatientRecord:
    return record_of(fetch(source, name))


def names(found: PatientRecord, kind: str = "Observation") -> list[str]:
    return [located.reference for located in found.resources.get(kind, ())]


def incomplete(found: Fetched) -> set[str]:
    return {kind for kind, reading in found.readings.items() if not reading.complete}


def test_all_forms_of_files_give_the_same_record(tmp_path: Path) -> None:
    """A Bundle, single resources, NDJSON and NDJSON.gz hold the same record."""
    content = (patient(), observation("o1"), observation("o2"))
    forms = {
        "bundle": {"all_json": bundle(*content)},
        "single": {f"r{n}_json": json.dumps(one).encode() for n, one in enumerate(content)},
        "lines": {"Patient_ndjson": ndjson(content[0]), "Observation_ndjson": ndjson(*content[1:])},
        "packed": {"Patient_ndjson_gz": gzip.compress(ndjson(content[0])),
                   "deep__Observation_ndjson_gz": gzip.compress(ndjson(*content[1:]))},
        "packed json": {"all_json_gz": gzip.compress(bundle(*content))},
    }  # fmt: skip
    for name, files in forms.items():
        source = write(tmp_path / name, **files)
        assert list(source.patient_ids()) == ["p1"], name
        assert sorted(names(record(source))) == ["Observation/o1", "Observation/o2"], name
        assert all(reading.assumed for reading in fetch(source).readings.values()), name


def test_one_file_is_a_source_too(tmp_path: Path) -> None:
    write(tmp_path, all_json=bundle(patient(), observation()))
    assert names(record(FileSource(tmp_path / "all.json"))) == ["Observation/o1"]


def test_many_patients_are_kept_apart(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        a_json=bundle(patient("a"), observation("o1", "Patient/a")),
        b_ndjson=ndjson(
            patient("b"), observation("o2", "Patient/b"), observation("o3", "Patient/a")
        ),
    )
    assert sorted(source.patient_ids()) == ["a", "b"]
    assert sorted(names(record(source, "a"))) == ["Observation/o1", "Observation/o3"]
    assert names(record(source, "b")) == ["Observation/o2"]


def test_byte_order_marks_blank_lines_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    lines = b"\xef\xbb\xbf" + ndjson(patient(), observation()).replace(b"\n", b"\r\n\r\n")
    source = write(
        tmp_path, all_ndjson=lines, o_json=b"\xef\xbb\xbf" + json.dumps(observation("o2")).encode()
    )
    found = fetch(source)
    assert incomplete(found) == set()
    assert sorted(names(record_of(found))) == ["Observation/o1", "Observation/o2"]


def test_lines_in_a_file_called_json_are_read_as_lines(tmp_path: Path) -> None:
    assert names(record(write(tmp_path, export_json=ndjson(patient(), observation())))) == [
        "Observation/o1"
    ]


def test_a_pretty_printed_bundle_is_found_again_at_its_place(tmp_path: Path) -> None:
    content = json.loads(bundle(patient(), observation("o1"), observation("o1"), observation("o2")))
    source = write(tmp_path, all_json=json.dumps(content, indent=2).encode())
    places = [item.place for item in fetch(source).items]
    assert len(places) == 4
    assert len(set(places)) == 4
    assert sorted(names(record(source))) == ["Observation/o1", "Observation/o2"]


def test_an_unreadable_line_leaves_its_type_incomplete_and_names_its_place(tmp_path: Path) -> None:
    lines = (
        ndjson(observation("o1"))
        + b'{"resourceType": "Observation", "id": \n'
        + ndjson(observation("o2"))
    )
    found = fetch(write(tmp_path, Patient_ndjson=ndjson(patient()), x_ndjson=lines))
    assert incomplete(found) == {"Observation"}
    assert [message.place for message in found.messages] == ["x.ndjson:2"]
    assert len(names(record_of(found))) == 2


def test_the_type_of_an_unreadable_line_comes_from_the_files_name(tmp_path: Path) -> None:
    source = write(tmp_path, p_ndjson=ndjson(patient()), Condition_2_ndjson=b"garbage\n")
    assert incomplete(fetch(source)) == {"Condition"}


def test_an_unreadable_line_of_unknown_type_leaves_all_types_incomplete(tmp_path: Path) -> None:
    found = fetch(write(tmp_path, all_ndjson=ndjson(patient(), observation()) + b"garbage\n"))
    assert incomplete(found) == set(found.readings)


def test_a_file_that_is_no_json_leaves_all_types_incomplete(tmp_path: Path) -> None:
    found = fetch(
        write(tmp_path, p_json=bundle(patient()), broken_json=b"<html>", notes_txt=b"hello")
    )
    assert incomplete(found) == set(found.readings)
    assert [message.place for message in found.messages] == ["broken.json"]


@pytest.mark.parametrize("name", ["all.JSON", "all.NDJSON", "All.Json", "all.JsonL", "all"])
def test_endings_are_read_in_any_case_or_without_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ndjson(patient(), observation()))
    (tmp_path / f"2{name}.GZ").write_bytes(gzip.compress(ndjson(observation("o2"))))
    found = fetch(FileSource(tmp_path))
    assert incomplete(found) == set()
    assert sorted(names(record_of(found))) == ["Observation/o1", "Observation/o2"]


@pytest.mark.parametrize(
    "name", ["o.xml", "o.ndjson.zst", "o.parquet", "o", "o.ndjson.bz2", "o.zip", "o.tar.gz"]
)
def test_a_file_of_a_form_that_is_not_read_leaves_all_types_incomplete(
    tmp_path: Path, name: str
) -> None:
    source = write(tmp_path, p_json=bundle(patient(), observation()))
    (tmp_path / name).write_bytes(b"<Observation/>")
    found = fetch(source)
    assert incomplete(found) == set(found.readings)
    assert [(message.place, message.code) for message in found.messages] == [(name, "incomplete")]


@pytest.mark.parametrize(
    "name",
    ["README", "readme.pdf", "LICENSE", "a.md", "a.TXT", "a.log", "a.csv", "a.html", ".hidden",
     "a.yaml", "a.log.gz"],
)  # fmt: skip
def test_notes_beside_the_files_are_no_data(tmp_path: Path, name: str) -> None:
    source = write(tmp_path, p_json=bundle(patient(), observation()))
    (tmp_path / name).write_bytes(b"words")
    found = fetch(source)
    assert incomplete(found) == set()
    assert found.messages == ()


def test_a_directory_with_nothing_that_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "all.xml").write_bytes(b"<Bundle/>")
    with pytest.raises(SourceError):
        FileSource(tmp_path).check()


@pytest.mark.parametrize("name", ["Observation_ndjson_gz", "x_ndjson_gz", "x_json_gz"])
def test_a_gzip_cut_short_keeps_what_was_read_and_is_incomplete(tmp_path: Path, name: str) -> None:
    many = ndjson(*(observation(f"o{number}", issued=str(number)) for number in range(500)))
    cut = gzip.compress(many)[:-200]
    found = fetch(write(tmp_path, p_json=bundle(patient()), **{name: cut}))
    assert "Observation" in incomplete(found)
    if name.startswith("Observation"):
        assert incomplete(found) == {"Observation"}
        assert 0 < len(names(record_of(found))) < 500
    assert any("gzip" in message.text for message in found.messages)


def test_a_file_that_is_no_gzip_is_incomplete(tmp_path: Path) -> None:
    found = fetch(write(tmp_path, p_json=bundle(patient()), Condition_ndjson_gz=b"not packed"))
    assert incomplete(found) == {"Condition"}


def test_a_search_reply_cut_short_concerns_only_its_patient(tmp_path: Path) -> None:
    reply = {"type": "searchset", "link": [{"relation": "next", "url": "https://s/2"}]}
    source = write(
        tmp_path,
        a_json=bundle(patient("a"), observation("o1", "Patient/a"), **reply),
        b_json=bundle(patient("b")),
    )
    assert "Observation" in incomplete(fetch(source, "a"))
    assert incomplete(fetch(source, "b")) == set()


def test_a_merged_patient_is_not_listed_and_leads_to_the_survivor(tmp_path: Path) -> None:
    old = patient("old", link=[{"type": "replaced-by", "other": {"reference": "Patient/new"}}])
    source = write(
        tmp_path,
        all_ndjson=ndjson(
            old, patient("new"), observation("o1", "Patient/old"), observation("o2", "Patient/new")
        ),
    )
    assert list(source.patient_ids()) == ["new"]
    for name in ("old", "new"):
        found = record(source, name)
        assert found.patient.reference == "Patient/new"
        assert sorted(names(found)) == ["Observation/o1", "Observation/o2"]


def test_records_of_an_id_that_is_only_linked_are_read(tmp_path: Path) -> None:
    new = patient("new", link=[{"type": "replaces", "other": {"reference": "Patient/old"}}])
    source = write(tmp_path, all_ndjson=ndjson(new, observation("o1", "Patient/old")))
    assert names(record(source, "new")) == ["Observation/o1"]


def test_subjects_by_url_identifier_version_and_full_url_find_their_patient(tmp_path: Path) -> None:
    whose = patient(identifier=[{"system": "urn:mrn", "value": "7"}])
    entries = [
        {"fullUrl": "https://s/fhir/Patient/p1", "resource": whose},
        {"resource": observation("o1", "https://s/fhir/Patient/p1")},
        {"resource": observation("o2", "Patient/p1/_history/2")},
        {
            "resource": {
                **observation("o3"),
                "subject": {"identifier": {"system": "urn:mrn", "value": "7"}},
            }
        },
        {"fullUrl": "urn:uuid:1", "resource": {"resourceType": "Patient", "gender": "male"}},
        {"resource": observation("o4", "urn:uuid:1")},
        {"resource": observation("o5", "https://other/Patient/p1")},
    ]
    content = {"resourceType": "Bundle", "type": "collection", "entry": entries}
    source = write(tmp_path, all_json=json.dumps(content).encode())
    assert sorted(names(record(source))) == ["Observation/o1", "Observation/o2", "Observation/o3"]
    assert names(record(source, "urn:uuid:1")) == ["Observation/o4"]
    assert [message.text for message in source.messages()] == [
        "1 resources name no patient that is known here; not used"
    ]


MRN = {"system": "urn:mrn", "value": "7"}


def test_a_contained_patient_with_the_patients_identifier_names_the_patient(tmp_path: Path) -> None:
    inside = {"resourceType": "Patient", "id": "me", "identifier": [MRN]}
    held = [
        observation("o1", "#me", contained=[inside]),
        observation("o2", "#you", contained=[inside]),
        observation("o3", "#me", contained=[{**inside, "identifier": [{**MRN, "value": "8"}]}]),
    ]
    source = write(tmp_path, all_ndjson=ndjson(patient(identifier=[MRN]), *held))
    assert names(record(source)) == ["Observation/o1"]


def test_an_identifier_helps_where_the_reference_is_not_known(tmp_path: Path) -> None:
    whose = {"reference": "https://other/Patient/x", "identifier": MRN}
    source = write(
        tmp_path, all_ndjson=ndjson(patient(identifier=[MRN]), observation("o1", subject=whose))
    )
    assert names(record(source)) == ["Observation/o1"]


def test_an_identifier_that_two_patients_bear_names_neither(tmp_path: Path) -> None:
    inside = {"resourceType": "Patient", "id": "me", "identifier": [MRN]}
    source = write(
        tmp_path,
        all_ndjson=ndjson(
            patient("p1", identifier=[MRN]),
            patient("p2", identifier=[MRN]),
            patient("p3", identifier=[MRN]),
            observation("o1", subject={"identifier": MRN}),
            observation("o2", "#me", contained=[inside]),
        ),
    )
    for name in ("p1", "p2", "p3"):
        assert names(record(source, name)) == []
    assert [message.text for message in source.messages()] == [
        "2 resources name no patient that is known here; not used"
    ]


def test_copies_of_one_patient_may_bear_one_identifier(tmp_path: Path) -> None:
    whose = patient(identifier=[MRN])
    lines = ndjson(whose, whose, observation("o1", subject={"identifier": MRN}))
    assert names(record(write(tmp_path, all_ndjson=lines))) == ["Observation/o1"]


def test_what_resources_refer_to_comes_with_them(tmp_path: Path) -> None:
    request = {
        "resourceType": "MedicationRequest", "id": "m1", "status": "active", "intent": "order",
        "subject": {"reference": "Patient/p1"},
        "medicationReference": {"reference": "Medication/drug/_history/1"},
    }  # fmt: skip
    drugs = [{"resourceType": "Medication", "id": name} for name in ("drug", "other")]
    found = record(write(tmp_path, all_ndjson=ndjson(patient(), request, *drugs)))
    held = {located.reference for located in found.resources["MedicationRequest"]}
    assert held == {"MedicationRequest/m1"}
    within = found.resources["MedicationRequest"][0]
    resolved = found.resolver.resolve(within.resource.medication_reference, within)  # type: ignore[union-attr]
    assert resolved is not None
    assert resolved.reference == "Medication/drug"


def test_an_unreadable_resource_that_names_nobody_is_known_to_every_record(tmp_path: Path) -> None:
    broken = {"resourceType": "Condition", "id": "c1", "code": "not a concept"}
    found = record(write(tmp_path, all_ndjson=ndjson(patient(), broken)))
    assert [rejected.reference for rejected in found.rejected] == ["Condition/c1"]
    assert found.rejected[0].place == "all.ndjson:2"


def test_other_types_are_passed_over(tmp_path: Path) -> None:
    others = [{"resourceType": "Encounter", "id": "e1", "subject": {"reference": "Patient/p1"}},
              {"resourceType": "Binary", "id": "b1", "link": 3, "identifier": {}}]  # fmt: skip
    found = fetch(write(tmp_path, all_ndjson=ndjson(patient(), *others)))
    assert len(found.items) == 1
    assert incomplete(found) == set()
    assert found.messages == ()


def test_unknown_and_unreadable_patients_are_told_apart(tmp_path: Path) -> None:
    source = write(tmp_path / "1", all_ndjson=ndjson(patient()))
    with pytest.raises(UnknownPatient):
        fetch(source, "p2")
    source = write(
        tmp_path / "2", Patient_ndjson=ndjson(patient()) + b'{"resourceType":"Patient","id"\n'
    )
    with pytest.raises(PatientUnreadable):
        fetch(source, "p2")
    source = write(tmp_path / "3", all_ndjson=ndjson(patient(birthDate=7), observation()))
    with pytest.raises(PatientUnreadable):
        record(source)


def test_an_operation_outcome_beside_the_files_leaves_all_incomplete(tmp_path: Path) -> None:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "x"}]}
    found = fetch(write(tmp_path, all_ndjson=ndjson(patient()), errors_ndjson=ndjson(outcome)))
    assert incomplete(found) == set(found.readings)


def test_whoever_is_merged_into_nobody_here_is_listed_once(tmp_path: Path) -> None:
    def link(other: str) -> Any:
        return [{"type": "replaced-by", "other": {"reference": other}}]

    lost = patient("p1", link=link("Patient/gone"))
    ring = patient("p2", link=link("Patient/p3")), patient("p3", link=link("Patient/p2"))
    merged = patient("p4", link=link("Patient/p5")), patient("p5")
    source = write(tmp_path, all_ndjson=ndjson(lost, *ring, *merged))
    assert list(source.patient_ids()) == ["p1", "p2", "p5"]


def test_nothing_to_read_is_an_error_of_the_source(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SourceError):
            FileSource(path).check()


def test_memory_does_not_hold_the_resources(tmp_path: Path) -> None:
    """The index keeps places, some tens of bytes a resource, whatever its size."""
    import tracemalloc  # noqa: PLC0415

    large = "x" * 2_000
    lines = ndjson(patient(), *(observation(f"o{n}", valueString=large) for n in range(5_000)))
    source = write(tmp_path, all_ndjson_gz=gzip.compress(lines, 1))
    tracemalloc.start()
    try:
        source.check()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < len(lines) / 4
