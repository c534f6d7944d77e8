"""The nightly search of an export: rates with one and two workers, memory, three baselines.

All on the same files in the same run, each in a process of its own; starting Python and
importing modules are left out of all of them. Rates are given by the clock and by processor
time: where others use the machine too, only the latter tells anything of one process, and
the former is all there is for several.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.generate import generate, size_of
from tests.benchmarks.measuring import show

_MEGA = 1_000_000
_BRIEF = "60MB"
_USUAL = "1GB"
_OF_BARE = 0.8
_OF_MODELS = 150.0
_OF_DUCKDB = 1.0
_OF_WORKERS = 1.6
# Peak memory in MB, for input of up to so many bytes.
_MEMORY = ((1_200_000_000, 200.0), (12_000_000_000, 300.0))
_PATIENCE = 4 * 3600


class Options(NamedTuple):
    """What is measured: ``size`` as ``300MB``, or an export that is there already.

    ``scattered``: each patient's results are spread over all files; ``rounds``: so often,
    and the median counts; ``memory_only``: no rates.
    """

    size: str | None = None
    source: Path | None = None
    scattered: bool = False
    rounds: int | None = None
    memory_only: bool = False


class Spent(NamedTuple):
    """What something took: seconds by the clock, seconds of processors; and what it said."""

    clock: float
    processor: float
    said: Mapping[str, Any]


def run(*, brief: bool, options: Options | None = None) -> list[str]:
    """Generate an export (or take one), search it, measure the baselines; gives what is missed."""
    asked = options or Options()
    times = asked.rounds or (1 if brief else 5)
    with tempfile.TemporaryDirectory() as name:
        folder = asked.source or Path(name, "export")
        if asked.source is None:
            size = size_of(asked.size or (_BRIEF if brief else _USUAL))
            made = generate(folder, size, scattered=asked.scattered)
            note = f"{made.lines:,} lines, {made.patients:,} patients, {made.ill} with the disease"
            show("export", f"{made.size / _MEGA:.0f} MB", note)
        measured = _Measured(folder, Path(name), times)
        if not asked.memory_only:
            measured.rates(brief=brief)
        measured.memory()
        missed = measured.missed
    # A small export is mostly the reading of the trial's files: it is no measure of the rest.
    return [] if brief else missed


class _Measured:
    """The measures of one export, each against the search with one worker or two."""

    def __init__(self, folder: Path, work: Path, times: int) -> None:
        self.folder = folder
        self.work = work
        self.times = times
        self.size = sum(path.stat().st_size for path in folder.iterdir())
        self.missed: list[str] = []

    def rates(self, *, brief: bool) -> None:
        """Measure and print rates, and how they compare."""
        whole = str(self.folder)
        asked = {
            "one": ("search", whole, "1"),
            "two": ("search", whole, "2"),
            "facts": ("bare", whole, "facts"),
            "whose": ("bare", whole, "whose"),
        }
        if importlib.util.find_spec("duckdb"):
            asked |= {"sql one": ("sql", whole, "1"), "sql two": ("sql", whole, "2")}
        runs: dict[str, list[Spent]] = {name: [] for name in asked}
        # In turns, so that what else the machine does meets all of them alike.
        for _ in range(self.times):
            for name, arguments in asked.items():
                runs[name].append(alone(*arguments))
        spent = {name: _median(each) for name, each in runs.items()}
        one, two = spent["one"], spent["two"]
        patients = one.said["patients"]
        show("patients", f"{patients:,}", f"{one.said['population']} in the population")
        self._rate("search, 1 worker", one, patients)
        self._rate("search, 2 workers", two, patients)
        self._ratio("2 workers against 1", one.clock / two.clock, _OF_WORKERS)
        self._rate("(a) bare decode, fields that facts need", spent["facts"])
        self._of("search against (a)", one, spent["facts"], _OF_BARE)
        self._rate("(a') bare decode, whose it is and no more", spent["whose"])
        self._of("search against (a')", one, spent["whose"], None)
        self._models(one, two, 1_000_000 if brief else 8_000_000)
        if "sql one" in spent:
            self._rate("(c) DuckDB, 1 thread", spent["sql one"])
            self._of("search, 1 worker, against (c)", one, spent["sql one"], _OF_DUCKDB)
            self._rate("(c) DuckDB, 2 threads", spent["sql two"])
            ratio = spent["sql two"].clock / two.clock
            self._ratio("search, 2 workers, against (c)", ratio, _OF_DUCKDB)

    def _rate(self, name: str, spent: Spent, patients: int | None = None) -> None:
        note = f"{self.size / spent.processor / _MEGA:.0f} MB per second of processor time"
        if patients is not None:
            note += f"; {patients / spent.clock:,.0f} patients/s"
        show(name, f"{self.size / spent.clock / _MEGA:.0f} MB/s", note)

    def _of(self, name: str, mine: Spent, other: Spent, target: float | None) -> None:
        self._ratio(name, other.processor / mine.processor, target, "by processor time")

    def _ratio(self, name: str, ratio: float, target: float | None, note: str = "") -> None:
        if target is not None:
            note = f"{note}; target: {target:g}x".removeprefix("; ")
            if ratio < target:
                self.missed.append(f"{name}: {ratio:.2f} times, not {target:g}")
        show(name, f"{ratio:.2f}x", note)

    def memory(self) -> None:
        """Measure a search with two workers once more, looking at its processes all the time."""
        peak = Peak()
        alone("search", str(self.folder), "2", beside=peak.look)
        limit = next((limit for size, limit in _MEMORY if self.size <= size), None)
        target = "" if limit is None else f"target: under {limit:.0f} MB"
        show("peak memory, all processes", f"{peak.total:.0f} MB", target)
        show("peak memory of the first process", f"{peak.first:.0f} MB", "what it shares included")
        show("peak memory of the largest other", f"{peak.others:.0f} MB", "what it shares included")
        if limit is not None and peak.total > limit:
            self.missed.append(f"memory peaks at {peak.total:.0f} MB, not under {limit:.0f}")

    def _models(self, one: Spent, two: Spent, size: int) -> None:
        """Measure a sample: all of it would take hours."""
        sample = self.work / "sample"
        made = generate(sample, size, seed=2)
        spent = alone("models", str(sample))
        rate = made.size / spent.processor
        share = f"from a sample of {made.size / _MEGA:.0f} MB"
        show("(b) models of fhir.resources", f"{rate / _MEGA:.2f} MB/s", share)
        same = "verdicts of the sample are the same" if spent.said["same"] else "OTHER VERDICTS"
        show("verdicts with (b)", f"{spent.said['population']}", same)
        if not spent.said["same"]:
            self.missed.append("the baseline (b) gives other verdicts")
        mine = self.size / one.processor
        note = "by processor time, 1 worker"
        self._ratio("search against (b)", mine / rate, _OF_MODELS, note)
        show("search with 2 workers against (b)", f"{self.size / two.clock / rate:.0f}x")


def _median(runs: Sequence[Spent]) -> Spent:
    clock = statistics.median(run.clock for run in runs)
    return Spent(clock, statistics.median(run.processor for run in runs), runs[0].said)


def alone(*arguments: str, beside: Callable[[int], object] | None = None) -> Spent:
    """Run a measure in a process of its own; ``beside`` is called with its id all the time."""
    command = [sys.executable, "-m", "tests.benchmarks.alone", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while beside is not None and process.poll() is None:
            beside(process.pid)
            time.sleep(0.02)
        text, _ = process.communicate(timeout=_PATIENCE)
    if process.returncode:
        raise RuntimeError(f"the measure {arguments[0]} failed")
    said = json.loads(text)
    return Spent(said.pop("clock"), said.pop("processor"), said)


class Peak:
    """The most memory that a process and its children have held, in MB.

    ``total`` counts pages that several share once.
    """

    def __init__(self) -> None:
        self.total = self.first = self.others = 0.0

    def look(self, process: int) -> None:
        """Look once."""
        children = _children(process)
        held = [_kilobytes(each, "smaps_rollup", "Pss:") for each in (process, *children)]
        self.total = max(self.total, sum(held) * 1024 / _MEGA)
        self.first = max(self.first, _kilobytes(process, "status", "VmHWM:") * 1024 / _MEGA)
        for each in children:
            self.others = max(self.others, _kilobytes(each, "status", "VmHWM:") * 1024 / _MEGA)


def _children(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
        return [int(each) for each in text.split()]
    return []


def _kilobytes(process: int, file: str, name: str) -> int:
    # A process may end while it is looked at.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/{file}").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0
