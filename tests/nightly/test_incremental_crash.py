"""An incremental search that is killed, then started again, ends as a search of everything."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.nightly.hospital import serving
from tests.nightly.making import TRIAL, condition, numbered, observation, patient
from tests.nightly.test_incremental import COMPARED, filled, is_sick, sick

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from service.nightly import engine
engine._PARTITIONS = (6, 6)
from service.cli import main
main(sys.argv[1:], standalone_mode=True)
"""
TRIES = 4


def started(source: str, folder: Path, output: str, *more: str) -> subprocess.Popen[bytes]:
    """Start a search by export in a process of its own."""
    arguments = ["screen", TRIAL, "--source", source, "--bulk", "system", *more]
    arguments += ["--output", str(folder / output), "--as-of", "2026-11-02", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for a good end."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()


def test_killed_at_random_moments_it_ends_as_a_search_of_everything(tmp_path: Path) -> None:
    hospital = filled(16, 8)
    chance = random.Random(5)  # noqa: S311 - which moment, nothing secret
    store = ("--store", str(tmp_path / "store.db"))
    with serving(hospital) as server:
        ended(started(server.base, tmp_path, "night", *store))
        well = next(key for key in hospital.patients() if not is_sick(hospital, key))
        hospital.put(condition("c-joined", f"Patient/{well}"))
        hospital.put(observation("o-new", f"Patient/{sick(hospital)}", 9.9))
        other = {"reference": f"Patient/{sick(hospital, 2)}"}
        link = [{"type": "replaced-by", "other": other}]
        hospital.put(patient(sick(hospital, 1), link=link))
        before = time.monotonic()
        ended(started(server.base, tmp_path, "whole"))
        length = time.monotonic() - before
        killed = 0
        for _ in range(TRIES):
            process = started(server.base, tmp_path, "night", *store)
            time.sleep(chance.uniform(0.5, 1.0) * length)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.communicate(timeout=60)
        ended(started(server.base, tmp_path, "night", *store))
    assert killed
    for name in COMPARED:
        given = numbered((tmp_path / "night" / name).read_bytes())
        assert given == numbered((tmp_path / "whole" / name).read_bytes()), name
    assert b'"read": "incremental"' in (tmp_path / "night" / "run.json").read_bytes()
