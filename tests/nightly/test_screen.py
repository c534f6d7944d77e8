"""``eligibility screen`` by its command line: exit codes, files, what is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import main
from service.cli.screen import Shown
from tests.faults import QUICK
from tests.nightly.making import TRIAL, condition, hospital, write_types

OUTPUTS = {
    "verdicts.ndjson",
    "candidates.csv",
    "group.json",
    "list.json",
    "run.json",
    "rejects.ndjson",
    "report.html",
}


def run(*arguments: object) -> Result:
    """Run the command line."""
    return CliRunner().invoke(main, ["screen", *map(str, arguments)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give an export."""
    return write_types(tmp_path / "in", hospital(3, 5))


def test_a_complete_search_ends_with_0_and_writes_all_outputs(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    found = run(TRIAL, "--source", source, "--output", output, "--as-of", "2026-11-01")
    assert found.exit_code == 0, found.output
    assert {path.name for path in output.iterdir()} == OUTPUTS
    said = json.loads((output / "run.json").read_bytes())
    assert said["complete"] is True
    assert said["asOf"] == "2026-11-01"
    assert said["patients"] == {"seen": 8, "inPopulation": 3, "evaluated": 3, "failed": 0}
    assert said["versions"]["trial:" + TRIAL]
    assert said["types"]["Observation"]["lines"] == 8


def test_an_incomplete_search_ends_with_3(source: Path, tmp_path: Path) -> None:
    with (source / "Observation.ndjson").open("ab") as file:
        file.write(b"cut off")
    found = run(TRIAL, "--source", source, "--output", tmp_path / "out")
    assert found.exit_code == 3
    assert json.loads((tmp_path / "out" / "run.json").read_bytes())["complete"] is False


@pytest.mark.parametrize("output", ["in", "in/night"])
def test_what_a_search_writes_is_never_read_as_records(
    source: Path, tmp_path: Path, output: str
) -> None:
    found = run(TRIAL, "--source", source, "--output", tmp_path / output)
    assert found.exit_code == 2
    assert "lies in the source" in found.output
    assert not (tmp_path / "in/night").exists()


def test_a_failed_search_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = run(TRIAL, "--source", tmp_path / "empty", "--output", tmp_path / "out")
    assert found.exit_code == 1
    assert "no FHIR files" in found.output


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("NONE", "--source", "IN"),
        (TRIAL,),
        (TRIAL, TRIAL, "--source", "IN"),
        (TRIAL, "--source", "IN", "--bulk", "system"),
        (TRIAL, "--source", "IN", "--cohort", "Group/1"),
        (TRIAL, "--source", "IN", "--bulk", "system", "--cohort", "Group/1"),
        (TRIAL, "--source", "IN", "--workers", "0"),
        (TRIAL, "--source", "IN", "--as-of", "yesterday"),
        (TRIAL, "--source", "IN", "--engine", "steam"),
        (TRIAL, "--source", "https://fhir.example.org", "--bulk", "system", "--engine", "spark"),
        (TRIAL, "--source", "IN", "--bulk", "system", "--engine", "spark"),
        (TRIAL, "--source", "hdfs://cluster/export"),
    ],
)
def test_wrong_usage_ends_with_2(source: Path, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    arguments = [str(source) if each == "IN" else each for each in wrong]
    assert run(*arguments, "--output", tmp_path / "out").exit_code == 2


def test_without_pyspark_the_spark_engine_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.nightly.spark", raising=False)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    found = run(TRIAL, "--source", source, "--engine", "spark", "--output", tmp_path / "out")
    assert found.exit_code == 2
    assert "pip install 'trial-eligibility[spark]'" in found.output


def test_a_second_search_in_the_same_folder_replaces_the_first(
    source: Path, tmp_path: Path
) -> None:
    for day in ("2026-11-01", "2026-11-02"):
        arguments = (TRIAL, "--source", source, "--output", tmp_path / "out", "--as-of", day)
        assert run(*arguments).exit_code == 0
    lines = (tmp_path / "out" / "verdicts.ndjson").read_text().splitlines()
    assert {json.loads(line)["asOf"] for line in lines} == {"2026-11-02"}


def test_a_search_with_a_store_reports_what_changed(source: Path, tmp_path: Path) -> None:
    arguments = (TRIAL, "--source", source, "--output", tmp_path / "out")
    arguments += ("--store", tmp_path / "store.db")
    assert run(*arguments, "--as-of", "2026-11-01").exit_code == 0
    write_types(source, hospital(4, 5))
    assert run(*arguments, "--as-of", "2026-11-02").exit_code == 0
    assert "new in the population" in (tmp_path / "out" / "report.html").read_text("utf-8")


# What is wrong with the command, or around it


@pytest.mark.parametrize("level", ["systems", "group", "group/", "Group/7", "group/a/b"])
def test_a_bulk_value_that_there_is_not_says_which_there_are(tmp_path: Path, level: str) -> None:
    found = run(TRIAL, "--source", "http://127.0.0.1:9/fhir", "--bulk", level, "--output", tmp_path)
    assert found.exit_code == 2
    assert "system, patient or group/ID" in found.output
    assert list(tmp_path.iterdir()) == []


def test_bulk_on_a_directory_says_that_it_is_for_a_server(source: Path, tmp_path: Path) -> None:
    found = run(TRIAL, "--source", source, "--bulk", "system", "--output", tmp_path / "out")
    assert found.exit_code == 2
    assert "for a server" in found.output


def test_an_output_folder_that_can_not_be_made_is_a_matter_of_the_settings(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    found = run(TRIAL, "--source", source, "--output", tmp_path / "file" / "out")
    assert found.exit_code == 2
    assert "--output" in found.output
    assert "Not a directory" in found.output


@pytest.mark.parametrize("below", ["", "night", "night/2026"])
def test_results_are_not_written_where_the_next_search_would_read_them(
    source: Path, below: str
) -> None:
    before = sorted(source.rglob("*"))
    found = run(TRIAL, "--source", source, "--output", source / below)
    assert found.exit_code == 2
    assert "--output" in found.output
    assert sorted(source.rglob("*")) == before


def test_a_source_may_lie_in_the_output_folder(source: Path) -> None:
    found = run(TRIAL, "--source", source, "--output", source.parent, "--as-of", "2026-11-01")
    assert found.exit_code == 0


def test_what_an_incomplete_search_says_names_only_what_there_is(
    source: Path, tmp_path: Path
) -> None:
    arguments = (TRIAL, "--source", source, "--output", tmp_path / "out")
    with (source / "Observation.ndjson").open("ab") as file:
        file.write(b'{"resourceType": "Observation", "id": "x", "status": 7}\n')
    assert "not complete: 1 reject; see" in run(*arguments).output
    write_types(source, hospital(3, 5))
    with (source / "Condition.ndjson").open("ab") as file:
        file.write(json.dumps(condition("c9", "Patient/nobody")).encode() + b"\n")
    said = run(*arguments).output
    assert "not complete: 1 problem; see" in said
    assert "reject" not in said


def test_the_result_on_a_terminal_stands_on_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Shown()
    shown("evaluating", 1, 1)
    shown.end()
    assert capsys.readouterr().err == "\revaluating: 100 %\x1b[K\n"
    Shown().end()
    assert capsys.readouterr().err == ""


def test_a_database_that_does_not_answer_is_a_failure(source: Path, tmp_path: Path) -> None:
    url = "postgresql://someone:hidden@127.0.0.1:9/store"
    found = run(TRIAL, "--source", source, "--output", tmp_path / "out", "--store", url)
    assert found.exit_code == 1
    assert "the store" in found.output
    assert "hidden" not in found.output
    assert not (tmp_path / "out" / "verdicts.ndjson").exists()


def test_a_server_that_does_not_answer_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.wiring.limits_of", lambda _: QUICK)
    found = run(
        TRIAL,
        *("--source", "http://127.0.0.1:9/fhir", "--bulk", "system"),
        *("--output", tmp_path / "out", "--source-connect-timeout", "1"),
    )
    assert found.exit_code == 1
    assert "FHIR server" in found.output
    assert not (tmp_path / "out" / "verdicts.ndjson").exists()


def test_a_trusted_address_without_https_is_wrong_usage(source: Path, tmp_path: Path) -> None:
    found = run(TRIAL, "--source", source, "--bulk-trusted", "http://files.example.org")
    assert found.exit_code == 2
    assert "https://" in found.output
