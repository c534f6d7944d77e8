"""``eligibility worker`` and the check of a file of searches, by the command line."""

from __future__ import annotations

import logging.config
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result

from service.cli import main
from service.jobs.board import Board
from service.jobs.model import State
from service.storage.store import Store
from tests.jobs.making import ASKED, TRIAL
from tests.jobs.test_searches import GOOD, written
from tests.nightly.making import hospital, screening, write_types

# Without what follows a search, for which the settings would be needed.
PLAIN = f"""\
searches:
  - name: night
    trials: [{TRIAL}]
    at: "30 2 * * *"
    output: night
"""


@pytest.fixture(autouse=True)
def loaded() -> Iterator[None]:
    """Load trials and terms once, and leave logging as it was."""
    with (
        patch("service.nightly.screen.build_screening", lambda _: screening()),
        patch.object(logging.config, "dictConfig"),
        patch("signal.signal"),
    ):
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_types(tmp_path / "in", hospital(2, 3))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def worker(source: Path, folder: Path, *more: object) -> Result:
    places = ("--store", folder / "store.db", "--source", source, "--data", folder / "data")
    return run("worker", "--once", "--workers", 1, *places, *more)


@pytest.mark.parametrize(("cut", "code"), [(False, 0), (True, 3)])
def test_once_it_runs_what_is_there_and_ends_as_the_search_did(
    source: Path, tmp_path: Path, cut: bool, code: int
) -> None:
    if cut:
        with (source / "Patient.ndjson").open("ab") as file:
            file.write(b"cut off")
    with Store.open(str(tmp_path / "store.db")) as store:
        job = Board(store).ask(ASKED, None)
        done = worker(source, tmp_path)
        assert done.exit_code == code, done.output
        assert Board(store).states([job.key]) == {job.key: State.DONE}


def test_once_it_ends_with_1_if_a_search_failed(source: Path, tmp_path: Path) -> None:
    for path in source.iterdir():
        path.unlink()
    with Store.open(str(tmp_path / "store.db")) as store:
        Board(store).ask(ASKED, None)
        assert worker(source, tmp_path).exit_code == 1


def test_with_nothing_to_do_it_ends_with_0(source: Path, tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    assert worker(source, tmp_path, "--schedule", "--searches", path).exit_code == 0


@pytest.mark.parametrize(
    "wrong",
    [
        ("--source", "IN"),
        ("--store", "STORE"),
        ("--store", "STORE", "--source", "IN", "--schedule"),
        ("--store", "STORE", "--source", "IN", "--searches", "nowhere.yaml"),
        ("--store", "STORE", "--source", "IN", "--job-days", "0"),
    ],
)
def test_wrong_usage_ends_with_2(source: Path, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    given = {"IN": str(source), "STORE": str(tmp_path / "store.db")}
    done = run("worker", "--once", *(given.get(each, each) for each in wrong))
    assert done.exit_code == 2, done.output


def test_a_wrong_file_of_searches_stops_the_start(source: Path, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("Europe/Berlin", "Europe/Atlantis"))
    done = worker(source, tmp_path, "--schedule", "--searches", path)
    assert done.exit_code == 1
    assert "searches.yaml:6" in done.output


@pytest.mark.parametrize(
    ("wanted", "says"),
    [("digest: {to: webhook}", "WEBHOOK_URL"), ("publish: {enabled: true}", "FHIR server")],
)
def test_what_could_not_be_done_after_a_search_stops_the_start(
    source: Path, tmp_path: Path, wanted: str, says: str
) -> None:
    path = written(tmp_path, f"{PLAIN}    {wanted}\n")
    done = worker(source, tmp_path, "--schedule", "--searches", path)
    assert done.exit_code == 2
    assert says in done.output


def test_check_finds_mistakes_in_a_file_of_searches(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert run("check", path).exit_code == 0
    written(tmp_path, GOOD.replace("bulk: system", "bulk: everything"))
    for arguments in (("check", path), ("check", "--searches", path)):
        done = run(*arguments)
        assert done.exit_code == 1
        assert f"{path}:4: bulk must be" in done.output
