"""Workers as processes of their own, on one store: each job once, also when one is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from service.jobs.board import Board
from service.jobs.model import State, folder_of
from service.storage.store import Store
from tests.jobs.making import ASKED
from tests.nightly.making import hospital, search, write_types

ROOT = Path(__file__).resolve().parents[2]
# Impatient, with many small steps; SLOW makes each of them take a moment.
PROGRAM = """
import sys, time
from service.nightly import directory, engine
directory.UNIT, directory.CHUNK = 4000, 1500
engine._PARTITIONS = (24, 24)
real, slow = engine._evaluate, float(sys.argv.pop(1))
def evaluate(partition):
    time.sleep(slow)
    return real(partition)
engine._evaluate = evaluate
from service.jobs import runner
quick = runner.Timing(beat=0.1, patience=1.0, pause=0.2, busy=1.0, retry=0.0)
runner.Timing = lambda: quick
from service.cli import main
main(sys.argv[1:], standalone_mode=True)
"""


@contextmanager
def working(
    place: str, source: Path, data: Path, *more: str, slow: float = 0.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker; it is killed at the end if it still runs."""
    arguments = ["worker", "--store", place, "--source", str(source), "--data", str(data)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(slow), *arguments, "--workers", "2", *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_types(tmp_path_factory.mktemp("in") / "export", hospital(30, 30))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give the verdicts of a search that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed")
    search(source, output)
    return (output / "verdicts.ndjson").read_bytes()


def states(board: Board, keys: list[str]) -> set[State]:
    return set(board.states(keys).values())


def test_two_workers_run_each_job_once(
    place: str, source: Path, expected: bytes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with Store.open(place) as store:
        board = Board(store)
        asked = [(ASKED, "a"), (ASKED, "b"), (replace(ASKED, fresh=True), "b")]
        jobs = [board.ask(what, whose) for what, whose in asked]
        keys = [job.key for job in jobs]
        with working(place, source, data) as first, working(place, source, data) as second:
            until(lambda: states(board, keys) == {State.DONE})
            for process in (first, second):
                process.send_signal(signal.SIGTERM)
            said = [process.communicate(timeout=60)[1].decode() for process in (first, second)]
            assert [first.returncode, second.returncode] == [0, 0], said
        assert len(store.runs()) == len(jobs)
        found = [board.find(key) for key in keys]
        assert [job.attempt for job in found if job is not None] == [1] * len(jobs)
    begun = re.findall(r'"job begins", "job": "(\w+)"', "".join(said))
    assert sorted(begun) == sorted(keys)
    for job in jobs:
        assert (folder_of(data, job) / "verdicts.ndjson").read_bytes() == expected


def test_a_killed_workers_job_is_finished_by_another(
    place: str, source: Path, expected: bytes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with Store.open(place) as store:
        board = Board(store)
        job = board.ask(ASKED, None)
        steps = folder_of(data, job) / ".work"
        with working(place, source, data, slow=0.2) as first:
            until(lambda: len(list(steps.glob("*/*/*.outcomes"))) >= 2)
            first.send_signal(signal.SIGKILL)
            first.wait(60)
        left = board.find(job.key)
        assert left is not None
        assert left.state is State.RUNNING
        done = {path: path.stat().st_mtime_ns for path in steps.glob("*/*/*.outcomes")}
        assert done
        with working(place, source, data, slow=0.02) as second:
            until(lambda: states(board, [job.key]) == {State.DONE})
            second.send_signal(signal.SIGTERM)
            said = second.communicate(timeout=60)[1].decode()
        assert "job without a worker" in said
        finished = board.find(job.key)
        assert finished is not None
        assert (finished.attempt, finished.setbacks) == (2, 1)
        assert finished.run_id is not None
        run = store.run(finished.run_id)
        assert run.statement is not None
        assert (run.statement.complete, run.statement.resumed) == (True, 1)
        lines = [verdict.line for verdict in store.verdicts(run.id)]
    assert (folder_of(data, job) / "verdicts.ndjson").read_bytes() == expected
    assert b"".join(line + b"\n" for line in lines) == expected


def test_told_to_stop_a_worker_ends_politely_in_the_middle_of_a_search(
    source: Path, expected: bytes, tmp_path: Path
) -> None:
    place, data = str(tmp_path / "store.db"), tmp_path / "data"
    with Store.open(place) as store:
        board = Board(store)
        job = board.ask(ASKED, None)
        steps = folder_of(data, job) / ".work"
        with working(place, source, data, slow=0.2) as first:
            until(lambda: len(list(steps.glob("*/*/*.outcomes"))) >= 2)
            first.send_signal(signal.SIGTERM)
            said = first.communicate(timeout=60)[1].decode()
            assert first.returncode == 0, said
        left = board.find(job.key)
        assert left is not None
        assert (left.state, left.setbacks) == (State.QUEUED, 0)
        with working(place, source, data, "--once") as second:
            said = second.communicate(timeout=60)[1].decode()
            assert second.returncode == 0, said
    assert (folder_of(data, job) / "verdicts.ndjson").read_bytes() == expected
    assert "p-0" not in said
