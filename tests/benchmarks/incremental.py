"""An incremental night in which few patients changed, against a search of everything."""

from __future__ import annotations

import resource
import tempfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from service.config import load_settings
from service.nightly.model import Statement
from service.nightly.screen import Request, screen
from tests.benchmarks.measuring import show
from tests.nightly.hospital import Hospital, Server, serving
from tests.nightly.making import TRIAL, observation
from tests.nightly.making import hospital as resources_of

_TARGET = 0.03
_CHANGED = 0.01
_OBSERVATIONS = 30
_DAY = date(2026, 11, 1)


@dataclass(frozen=True)
class _Measured:
    statement: Statement
    seconds: float


def run(*, brief: bool) -> list[str]:
    """Change one patient in a hundred; print evaluated patients and CPU time of both searches."""
    patients = 300 if brief else 2_000
    hospital = _filled(patients)
    with tempfile.TemporaryDirectory() as folder, serving(hospital) as server:
        _night(server, Path(folder), _DAY)
        hospital.clock += 100
        members = sorted(hospital.patients())
        for key in members[:: round(1 / _CHANGED)]:
            hospital.put(observation(f"new-{key}", f"Patient/{key}", 1.0))
        few = _night(server, Path(folder), _DAY + timedelta(1))
        whole = _night(server, Path(folder), _DAY + timedelta(1), fresh=True)
    share = few.statement.night.evaluated / whole.statement.night.evaluated
    show("patients evaluated in a search of everything", str(whole.statement.night.evaluated))
    show("patients evaluated in an incremental one", str(few.statement.night.evaluated))
    show("share of the evaluation", f"{share * 100:.1f} %", f"target: {_TARGET * 100:.0f} %")
    show("share of the CPU time", f"{few.seconds / whole.seconds * 100:.1f} %", "all of it")
    if few.statement.night.since is None or share > _TARGET:
        return [f"an incremental night took {share * 100:.1f} % of the evaluation"]
    return []


def _filled(patients: int) -> Hospital:
    """Give a hospital in which all have the disease and many results."""
    hospital = Hospital()
    for each in resources_of(patients, 0):
        hospital.put(each)
    for key in hospital.patients():
        for number in range(_OBSERVATIONS):
            hospital.put(observation(f"o{number}-{key}", f"Patient/{key}", 0.7))
    return hospital


def _night(server: Server, folder: Path, day: date, *, fresh: bool = False) -> _Measured:
    before = _cpu()
    settings = load_settings({}, flags={"source": server.base})
    store = str(folder / "store.db")
    request = Request(
        (TRIAL,), day, folder / "out", bulk="system", store=store, fresh=fresh, workers=1
    )
    statement = screen(settings, request)
    return _Measured(statement, _cpu() - before)


def _cpu() -> float:
    """Give the seconds of processor time of this process (with the server's small part)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
