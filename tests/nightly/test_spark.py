"""The Spark engine gives what the local engine gives, byte for byte, on a Spark of this machine.

It needs Java and pyspark (the dev extra). Where they are missing these tests fail, and say so:
they run with ``-m integration`` only, as in the gate.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.config import load_settings
from service.errors import SourceError
from service.nightly import directory
from service.nightly.model import Statement
from service.nightly.screen import Request, screen
from service.wiring import screening_of
from tests.nightly.making import (
    DAY,
    OTHER_CODE,
    PATIENTS,
    TRIAL,
    Json,
    condition,
    hospital,
    lines_of,
    observation,
    patient,
    patients_of,
    rejects,
    screening,
    search,
    shipped,
    write_types,
)

pytestmark = [
    pytest.mark.integration,
    # Of pyspark's own pipes and sockets, which it leaves to be closed by the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

OTHER = "NCT01234567"
EQUAL = (
    "verdicts.ndjson",
    "rejects.ndjson",
    "candidates.csv",
    "group.json",
    "list.json",
)


@pytest.fixture(scope="module", autouse=True)
def spark() -> Iterator[Any]:
    """Keep one Spark with two executor threads; every search of these tests finds it."""
    if shutil.which("java") is None:
        pytest.fail("JAVA IS MISSING: the Spark engine can't be tested (Java 17 or newer)")
    try:
        from service.nightly.spark import session  # noqa: PLC0415 - only where these tests run
    except ImportError:
        pytest.fail("PYSPARK IS MISSING: pip install '.[dev]'")
    options = "--master local[2] --conf spark.ui.enabled=false pyspark-shell"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", options)
        with session() as made:
            assert made.sparkContext.master == "local[2]"
            yield made


@pytest.fixture
def stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have NDJSON files read line by line in small stretches, as very large ones are."""
    monkeypatch.setattr(directory, "UNIT", 4000)
    monkeypatch.setattr("service.nightly.spark.WHOLE", 0)


def said(output: Path) -> dict[str, Any]:
    """Read the statement without what differs between any two runs."""
    found: dict[str, Any] = json.loads((output / "run.json").read_bytes())
    for name in ("started", "finished", "seconds", "rates", "duration"):
        found.pop(name, None)
    return found


def both(source: Path, folder: Path, **more: Any) -> tuple[Statement, Path]:
    """Search by both engines, and compare all that they wrote."""
    search(source, folder / "local", **more)
    statement = search(source, folder / "spark", engine="spark", **more)
    for name in EQUAL:
        assert (folder / "spark" / name).read_bytes() == (folder / "local" / name).read_bytes()
    assert said(folder / "spark") == said(folder / "local")
    assert (folder / "spark" / "report.html").is_file()
    return statement, folder / "spark"


@pytest.mark.parametrize("shape", ["types", "packed", "bundles"])
def test_the_shipped_patients_get_the_same_verdicts(tmp_path: Path, shape: str) -> None:
    source = PATIENTS
    if shape != "bundles":
        source = write_types(tmp_path / "in", shipped(), packed=shape == "packed")
    _, output = both(source, tmp_path)
    assert len(patients_of(output)) > 60


@pytest.mark.usefixtures("stretched")
def test_files_read_in_stretches_give_the_same_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "UNIT", 150_000)
    source = write_types(tmp_path / "in", shipped())
    _, output = both(source, tmp_path)
    assert len(patients_of(output)) > 60


BAD_LINES = (
    b"\n",
    b'{"resourceType":"Observation","id":"cut","subject":{"reference":"Patient/p-00001"},"co\n',
    b'\xef\xbb\xbf{"resourceType":"Observation","id":"marked"}\n',
    b'{"resourceType":"Observation","id":"\xff\xfe","subject":{"reference":"Patient/p-00001"}}\n',
    b'{"resourceType":"Observation","id":"fed","subject":{"reference":"Patient/p-00002"}}\r\n',
    b'{"resourceType":"Observation","subject":"Patient/p-00001"}\n',
)


def with_bad_lines(folder: Path, *, mark: bool) -> Path:
    """Give an export with every kind of bad line, with and without a mark at its beginning."""
    source = write_types(folder, hospital(6, 40))
    file = source / "Observation.ndjson"
    lines = file.read_bytes().splitlines(keepends=True)
    for number, bad in enumerate(BAD_LINES):
        lines.insert(7 + 6 * number, bad)
    file.write_bytes((b"\xef\xbb\xbf" if mark else b"") + b"".join(lines))
    return source


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_bad_lines_are_rejected_with_the_same_file_and_line(
    tmp_path: Path, request: pytest.FixtureRequest, large: bool, mark: bool
) -> None:
    if large:
        request.getfixturevalue("stretched")
    statement, output = both(with_bad_lines(tmp_path / "in", mark=mark), tmp_path)
    assert not statement.complete
    places = {(each["file"], each["line"]) for each in rejects(output)}
    assert {("Observation.ndjson", line) for line in (14, 20, 26, 38)} <= places
    assert len(patients_of(output)) == 6


def odd_records() -> Iterator[Json]:
    """Give merged patients, records of Medications, copies, and masked codes."""
    yield from hospital(6, 10)
    link = {"other": {"reference": "Patient/new"}, "type": "replaced-by"}
    yield patient("old", link=[link])
    yield patient("new", identifier=[{"system": "urn:mrn", "value": "7"}])
    yield condition("c-old", "Patient/old")
    yield observation("o-new", "Patient/new")
    yield patient("masked")
    hidden = {"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason"}
    yield condition("c-masked", "Patient/masked", code={"coding": [hidden | {"code": "masked"}]})
    yield patient("well")
    yield condition("c-well", "Patient/well", OTHER_CODE)
    yield observation("copy", "Patient/p-00000")
    yield observation("copy", "Patient/p-00000")
    code = {"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "1597257"}
    for number in range(8):
        yield {"resourceType": "Medication", "id": f"m{number}", "code": {"coding": [code]}}
        yield {
            "resourceType": "MedicationAdministration",
            "id": f"a{number}",
            "status": "completed",
            "medicationReference": {"reference": f"Medication/m{number}"},
            "subject": {"reference": f"Patient/p-{number:05}"},
            "effectiveDateTime": "2026-05-01",
        }


def searchset(key: str) -> Json:
    """Give a searchset that says nothing of Conditions."""
    address = f"https://fhir.example.org/r4/Observation?patient={key}"
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "link": [{"relation": "self", "url": address}],
        "entry": [
            {"resource": patient(key), "search": {"mode": "include"}},
            {"resource": observation(f"o{key}", f"Patient/{key}")},
            {"resource": {"resourceType": "Observation", "id": 5}},
        ],
    }


MANIFEST = {
    "transactionTime": "2026-11-01T00:00:00Z",
    "request": "https://fhir.example.org/r4/$export?_type=Patient,Condition,Observation",
    "output": [{"type": "Patient", "url": "https://x.example.org/Patient.ndjson", "count": 3}],
    "error": [],
}


def odd_files(folder: Path) -> Path:
    """Give files of odd names, forms and places around odd records."""
    write_types(folder, odd_records())
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "_left out?.ndjson").write_bytes(b"".join(lines_of([patient("under")])))
    (folder / "empty.ndjson").touch()
    (folder / "Encounter.ndjson").symlink_to("gone")
    deep = folder / "a[1] {x}*" / "é %41"
    deep.mkdir(parents=True)
    (deep / "Procedure.ndjson").write_bytes(
        b"".join(lines_of([patient("q"), condition("cq", "Patient/q")]))
    )
    (deep / "Observation.2.ndjson").write_bytes((folder / "Observation.ndjson").read_bytes())
    (folder / ".hidden.ndjson").write_bytes(b"nothing of it is read\n")
    for key in "ab":
        (deep / f"{key}.json").write_text(json.dumps(searchset(key)))
    packed = gzip.compress(b"".join(lines_of([observation("z", "Patient/p-00001")] * 300)))
    (folder / "Observation.3.ndjson.gz").write_bytes(packed[:-20])
    return folder


@pytest.mark.parametrize("large", [True, False])
def test_odd_files_and_records_give_the_same_outputs(
    tmp_path: Path, request: pytest.FixtureRequest, large: bool
) -> None:
    if large:
        request.getfixturevalue("stretched")
    statement, output = both(odd_files(tmp_path / "in"), tmp_path)
    assert not statement.complete
    assert {"Patient/new", "Patient/masked", "Patient/q"} <= set(patients_of(output))
    assert "Patient/old" not in patients_of(output)
    assert statement.types["Medication"].read > 0
    assert {"Encounter.ndjson", "Observation.3.ndjson.gz"} <= {
        each["file"] for each in rejects(output)
    }


def test_a_lost_condition_leaves_nobody_out_here_either(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(6, 20))
    with (source / "Condition.ndjson").open("ab") as file:
        file.write(b'{"resourceType":"Condition","code":{"cod\n')
    statement, _ = both(source, tmp_path)
    assert statement.in_population == 26


def test_very_many_unreadable_resources_are_judged_alike(tmp_path: Path) -> None:
    """Of a unit of small files only the first hundred go with every record."""
    source = write_types(tmp_path / "in", hospital(2, 3))
    for number in range(130):
        kind = "Observation" if number < 120 else "Procedure"
        broken = {"resourceType": kind, "id": 5, "note": number}
        bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": broken}]}
        (source / f"{number:03}.json").write_text(json.dumps(bundle))
    statement, _ = both(source, tmp_path)
    assert any("many resources" in problem for problem in statement.problems)


def of_the_source(name: str, folder: Path) -> str:
    """Write a folder as a URL; ``viewfs`` stands for file systems that are no local one."""
    return f"viewfs://hospital/{folder.name}" if name == "viewfs" else f"{name}://{folder}"


@pytest.mark.parametrize("system", ["file", "viewfs"])
def test_a_source_may_be_any_url_that_spark_reads(
    tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    source = write_types(tmp_path / "in", odd_records())
    (source / "empty.ndjson").touch()
    spark.sparkContext._jsc.hadoopConfiguration().set(
        "fs.viewfs.mounttable.hospital.link./in", f"file://{source}"
    )
    search(source, tmp_path / "local")
    monkeypatch.setattr("service.nightly.screen.build_screening", lambda _: screening())
    settings = load_settings({}, flags={"source": of_the_source(system, source)})
    screen(settings, Request((TRIAL,), DAY, tmp_path / "spark", engine="spark"))
    for name in EQUAL:
        assert (tmp_path / "spark" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


Change = Callable[[Path], object]


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b""), Path.unlink])
def test_a_file_that_spark_can_not_read_whole_is_named(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    large: bool,
    change: Change,
) -> None:
    """It is emptied, or gone, after it was listed."""
    if large:
        request.getfixturevalue("stretched")
    from service.nightly import spark as engine  # noqa: PLC0415 - needs pyspark

    source = write_types(tmp_path / "in", hospital(6, 20))
    listed = engine.files_of

    def changed(session: Any, name: str) -> Any:
        found = listed(session, name)
        change(source / "Observation.ndjson")
        return found

    monkeypatch.setattr(engine, "files_of", changed)
    statement = search(source, tmp_path / "out", engine="spark")
    assert not statement.complete
    assert [each["file"] for each in rejects(tmp_path / "out")] == ["Observation.ndjson"]
    assert len(patients_of(tmp_path / "out")) == 6


def test_a_source_that_is_not_there_is_said(tmp_path: Path) -> None:
    settings = load_settings({}, flags={"source": f"file://{tmp_path}/nothing"})
    with pytest.raises(SourceError, match="list the source"):
        screen(settings, Request((TRIAL,), DAY, tmp_path / "out", engine="spark"))


def test_several_trials_are_searched_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mappings = tmp_path / "mappings"
    shutil.copytree(PATIENTS.parents[1] / "mappings", mappings)
    text = (mappings / "trials" / f"{TRIAL}.yaml").read_text("utf-8").replace(TRIAL, OTHER)
    (mappings / "trials" / f"{OTHER}.yaml").write_text(text, "utf-8")
    monkeypatch.setattr("tests.nightly.making.screening", lambda: screening_of(mappings))
    monkeypatch.setattr("tests.nightly.making.Request", of_two_trials)
    _, output = both(write_types(tmp_path / "in", odd_records()), tmp_path)
    lines = [json.loads(line) for line in (output / "verdicts.ndjson").read_bytes().splitlines()]
    pairs = [(line["patient"], line["trial"]) for line in lines]
    patients = sorted({name for name, _ in pairs})
    assert pairs == [(name, trial) for name in patients for trial in (TRIAL, OTHER)]


def of_two_trials(_: tuple[str, ...], *others: Any, **more: Any) -> Request:
    """Ask for two trials, not in the order of their names."""
    return Request((TRIAL, OTHER), *others, **more)


def test_a_search_with_a_store_keeps_the_same_verdicts(tmp_path: Path) -> None:
    source = write_types(tmp_path / "in", hospital(3, 5))
    output = tmp_path / "out"
    for name in ("local", "spark"):
        search(source, output, engine=name, store=str(tmp_path / "store.db"))
    report = (output / "report.html").read_text("utf-8")
    assert "Changes since the search before</h3><p>None.</p>" in report
