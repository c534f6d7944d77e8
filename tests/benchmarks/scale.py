"""What the estimates of docs/scale.md rest on: rates of both engines over one generated export.

The shipped volume set again and again under other ids, in files of 64 MB; a share of the
patients is given the disease. Not part of the usual measures, since it takes minutes and needs
pyspark: ``python -m tests.benchmarks.scale``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from service.config import load_settings
from service.nightly.screen import Request, screen
from tests.benchmarks.measuring import show
from tests.nightly.making import DAY, TRIAL, condition, lines_of

VOLUME = Path(__file__).resolve().parents[2] / "fixtures" / "volume" / "clinosim-us"
_FILE = 64 * 1024 * 1024
_ID = re.compile(rb'"id":"([^"]+)"')
_REFERENCE = re.compile(rb'"reference":"([A-Za-z]+)/([^"]+)"')
_TICKS = os.sysconf("SC_CLK_TCK")


def _lines(kind: str) -> list[bytes]:
    raw = gzip.decompress((VOLUME / f"{kind}.ndjson.gz").read_bytes())
    return [
        json.dumps(json.loads(line), separators=(",", ":")).encode()
        for line in raw.splitlines()
        if line
    ]


def _renamed(line: bytes, copy: bytes) -> bytes:
    line = _ID.sub(rb'"id":"\1-' + copy + b'"', line, count=1)
    return _REFERENCE.sub(rb'"reference":"\1/\2-' + copy + b'"', line) + b"\n"


def write(folder: Path, copies: int, share: float, file_size: int) -> int:
    """Write an export in which a share of the patients has the disease; give their number."""
    patients = 0
    for path in sorted(VOLUME.glob("*.ndjson.gz")):
        kind = path.name.split(".")[0]
        lines = _lines(kind)
        patients += copies * len(lines) if kind == "Patient" else 0
        number = size = 0
        file = (folder / f"{kind}.000.ndjson").open("wb")
        for copy in range(copies):
            for line in (_renamed(line, b"%d" % copy) for line in lines):
                if size >= file_size:
                    file.close()
                    number, size = number + 1, 0
                    file = (folder / f"{kind}.{number:03}.ndjson").open("wb")
                size += file.write(line)
        file.close()
    keys = [json.loads(line)["id"] for line in _lines("Patient")]
    every = round(1 / share)
    sick = [
        condition(f"all-{number}", f"Patient/{keys[number % len(keys)]}-{number // len(keys)}")
        for number in range(0, patients, every)
    ]
    (folder / "Condition.all.ndjson").write_bytes(b"".join(lines_of(sick)))
    return patients


def _processes(root: int) -> Iterator[list[str]]:
    """Give the fields of /proc/PID/stat of a process and of all that it began."""
    found: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(") ")
        except OSError:
            continue
        found[int(name.split(" ")[0])] = rest.split()
    wanted = {root}
    while more := {pid for pid, fields in found.items() if int(fields[1]) in wanted} - wanted:
        wanted |= more
    yield from (found[pid] for pid in wanted if pid in found)


def cpu_seconds() -> float:
    """Give the processor time of this process and of all that it began, ended ones included."""
    return sum(sum(map(int, fields[11:15])) for fields in _processes(os.getpid())) / _TICKS


def measure(source: Path, engine: str, workers: int, whole: int | None) -> dict[str, float]:
    """Search in this process; gives seconds, and processor seconds of all processes."""

    def search(where: Path) -> None:
        with tempfile.TemporaryDirectory() as output:
            screen(
                load_settings({}, flags={"source": str(where)}),
                Request((TRIAL,), DAY, Path(output), engine=engine, workers=workers),
            )

    if engine == "local":
        began, used = time.monotonic(), cpu_seconds()
        search(source)
        return {"seconds": time.monotonic() - began, "cpu": cpu_seconds() - used}
    from service.nightly import spark  # noqa: PLC0415 - only this measure needs pyspark

    if whole is not None:
        spark.WHOLE = whole
    os.environ["PYSPARK_SUBMIT_ARGS"] = (
        f"--master local[{workers}] --driver-memory 2g --conf spark.ui.enabled=false pyspark-shell"
    )
    with spark.session():
        # The first search of a session also starts Python and compiles Java.
        search(source)
        began, used = time.monotonic(), cpu_seconds()
        search(source)
        return {"seconds": time.monotonic() - began, "cpu": cpu_seconds() - used}


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("--copies", type=int, default=20, help="times the volume set is written")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        source, engine, workers, whole = arguments.one
        limit = None if whole == "-" else int(whole)
        print(json.dumps(measure(Path(source), engine, int(workers), limit)))
        return
    for share in (0.01, 0.2):
        with tempfile.TemporaryDirectory() as name:
            patients = write(Path(name), arguments.copies, share, _FILE)
            size = sum(path.stat().st_size for path in Path(name).iterdir())
            print(f"{patients} patients, {size / 1e6:.0f} MB, {share:.0%} with the disease")
            for engine, workers, whole in (
                ("local", 1, "-"),
                ("local", 2, "-"),
                ("spark", 2, "-"),
                ("spark", 2, "0"),
            ):
                title = f"{engine}, {workers} workers{', line by line' if whole == '0' else ''}"
                module = "tests.benchmarks.scale"
                done = subprocess.run(
                    [sys.executable, "-m", module, "--one", name, engine, str(workers), whole],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found = json.loads(done.stdout.splitlines()[-1])
                show(
                    title,
                    f"{found['seconds']:.1f} s",
                    f"{found['cpu']:.1f} CPU s, {size / 1e6 / found['cpu']:.0f} MB per CPU s",
                )


if __name__ == "__main__":
    main()
