"""A search that is killed at any moment, then started again, ends as an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.nightly.model import SearchFailed
from service.nightly.work import Work
from tests.nightly.making import TRIAL, hospital, search, write_types

ROOT = Path(__file__).resolve().parents[2]
TRIES = 6
# Many small steps, so that there are many places at which to be cut short.
PROGRAM = """
import sys
from service.nightly import directory, engine
directory.UNIT, directory.CHUNK = 4000, 1500
engine._PARTITIONS = (24, 24)
from service.cli import main
main(sys.argv[1:], standalone_mode=True)
"""


def started(source: Path, output: Path, workers: int, *more: str) -> subprocess.Popen[bytes]:
    """Start a search in a process of its own."""
    arguments = ["screen", TRIAL, "--source", str(source), "--output", str(output)]
    arguments += ["--as-of", "2026-11-01", "--workers", str(workers), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for the end; gives exit code and what was said."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said.decode()


@pytest.fixture(scope="module")
def hospital_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an export with one bad line."""
    folder = write_types(tmp_path_factory.mktemp("in") / "export", hospital(40, 60))
    with (folder / "Observation.ndjson").open("ab") as file:
        file.write(b"cut off\n")
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    hospital_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Give the outputs of a search that nothing disturbed, and how long it took."""
    output = tmp_path_factory.mktemp("undisturbed")
    code, said = ended(started(hospital_folder, output, 2))
    assert code == 3, said
    return outputs(output)


def outputs(output: Path) -> dict[str, bytes]:
    """Read the outputs that must be the same."""
    names = ("verdicts.ndjson", "rejects.ndjson", "candidates.csv", "group.json")
    return {name: (output / name).read_bytes() for name in names}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("store", [False, True])
def test_killed_at_random_moments_it_ends_the_same(
    hospital_folder: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    workers: int,
    store: bool,
) -> None:
    output = tmp_path / "out"
    more = ("--store", str(tmp_path / "store.db")) if store else ()
    chance = random.Random(100 * workers + store)  # noqa: S311 - which moment, nothing secret
    killed = 0
    for _ in range(TRIES):
        process = started(hospital_folder, output, workers, *more)
        time.sleep(chance.uniform(0.7, 2.0))
        if process.poll() is None:
            # Only the first process: those it started must notice by themselves.
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate(timeout=60)
    assert killed
    code, said = ended(started(hospital_folder, output, workers, *more))
    assert code == 3, said
    assert outputs(output) == undisturbed
    assert not (output / ".work").exists()


def test_what_was_done_before_the_kill_is_not_done_again(
    hospital_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = started(hospital_folder, output, 1)
    while not list(output.glob(".work/*/evaluate-*/*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = {path: path.stat().st_mtime_ns for path in output.glob(".work/*/*/*.json")}
    second = started(hospital_folder, output, 1)
    while second.poll() is None:
        for path, changed in done.items():
            try:
                assert path.stat().st_mtime_ns == changed
            except FileNotFoundError:
                break  # The search is over, and has tidied up.
        time.sleep(0.005)
    second.communicate()
    assert second.returncode == 3


def test_other_options_begin_another_search(
    hospital_folder: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = started(hospital_folder, output, 1, "--as-of", "2020-01-01")
    while not list(output.glob(".work/*/scan-*/*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert ended(started(hospital_folder, output, 2))[0] == 3
    assert outputs(output) == undisturbed


def test_a_full_disk_fails_and_the_next_try_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_types(tmp_path / "in", hospital(5, 5))
    search(source, tmp_path / "whole")
    whole = os.fsync
    left = 4

    def full(number: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        whole(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SearchFailed, match="No space left"):
        search(source, tmp_path / "out")
    monkeypatch.setattr(os, "fsync", whole)
    statement = search(source, tmp_path / "out")
    assert statement.resumed == 1
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_a_second_search_on_one_folder_says_so_and_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.nightly.work._PATIENCE", 0.1)
    with Work(tmp_path).locked(), pytest.raises(SearchFailed, match="another search"):  # noqa: SIM117
        with Work(tmp_path).locked():
            pass
    with Work(tmp_path).locked():
        pass
    assert list(tmp_path.iterdir()) == []
