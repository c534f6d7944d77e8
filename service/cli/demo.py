"""``eligibility demo``: the real service on the shipped patients, tried over real HTTP."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

import click
import requests
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli import Failed
from service.cli.progress import tracked
from service.errors import SourceError
from service.wiring import data_dir
from service.yamlfile import load_yaml

_TRIAL = "NCT06056752"
_DEFAULT_DAY = "2026-11-01"
_START_SECONDS = 60.0
_REQUEST_SECONDS = 60
_WIDTH_WITHOUT_TERMINAL = 160
_EPILOG = """\
\b
Examples:
  eligibility demo
  eligibility demo --port 8080
  eligibility demo --once
\b
Exit codes: 0 all were evaluated, 1 some patient could not be, or the service can't start
(as on a port in use), 2 wrong usage.
"""


class _Case(NamedTuple):
    """A shipped patient: id, what the record shows, and the day of the evaluation."""

    patient: str
    title: str
    as_of: str


class _Row(NamedTuple):
    """What the service answered for one patient."""

    case: _Case
    verdict: str
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    to_judge: tuple[str, ...]
    evaluated: bool = True


@click.command(epilog=_EPILOG)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    metavar="PORT",
    help="Port on the loopback address.  [a free one]",
)
@click.option("--once", is_flag=True, help="Exit after the table instead of serving on.")
def command(port: int, once: bool) -> None:
    """Start the service on the shipped patients and ask it for each one's verdict.

    The patients are invented. Every verdict comes from a real HTTP request to the service.
    """
    cases = shipped_cases(data_dir() / "fixtures")
    signal.signal(signal.SIGTERM, _interrupt)
    with _service(port) as base:
        rows = [_ask(base, case) for case in tracked(cases, "evaluating")]
        _print(rows)
        if once:
            click.echo("\nTo ask it yourself, let it serve on: eligibility demo")
        else:
            _print_request(rows, base)
            click.echo("\nServing until Ctrl-C.")
            _until_stopped()
    if not all(row.evaluated for row in rows):
        raise click.exceptions.Exit(1)


def shipped_cases(fixtures: Path) -> list[_Case]:
    """Read the case files of the shipped patients; a patient without one gets the default day."""
    described: dict[str, _Case] = {}
    for path in sorted((fixtures / "cases").glob("*.yaml")):
        case = load_yaml(path)
        day = case.raw("as_of")
        name = case.text("patient")
        described[name] = _Case(name, case.text("title", ""), str(day or _DEFAULT_DAY))
    names = sorted(path.stem for path in (fixtures / "patients").glob("*.json"))
    return [described.get(name, _Case(name, "", _DEFAULT_DAY)) for name in names]


@contextmanager
def _service(port: int) -> Iterator[str]:
    """Run ``eligibility serve`` on the loopback address; give its base URL."""
    port = _usable(port) if port else _free_port()
    base = f"http://127.0.0.1:{port}"
    # The demo is about the shipped patients, whatever is configured for the real service.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ELIGIBILITY_")
    }
    arguments = ["serve", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    limits = ["--log-level", "warning", "--rate-per-minute", "0"]
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C reaches this process, which then ends the service.
        process = subprocess.Popen(  # noqa: S603 - this program itself, fixed arguments
            [sys.executable, "-m", "service", *arguments, *limits],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            _wait_for(f"{base}/healthz", process, log)
            yield base
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _usable(port: int) -> int:
    """Refuse a port that is taken: whoever has it would answer in the service's place."""
    with socket.socket() as probe:
        # As the service does: connections that have just ended don't keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = "port in use" if taken else "the port can't be used"
            raise Failed(f"{what}: {port}") from error
    return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            if requests.get(url, timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    log.seek(0)
    said = log.read().decode(errors="replace").strip()
    raise SourceError(f"the service did not start\n{said[-2000:]}")


def _parameters(case: _Case) -> dict[str, Any]:
    return {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "subject", "valueReference": {"reference": f"Patient/{case.patient}"}},
            {"name": "asOf", "valueDate": case.as_of},
        ],
    }


def _address(base: str) -> str:
    return f"{base}/fhir/ResearchStudy/{_TRIAL}/$evaluate-eligibility"


def _ask(base: str, case: _Case) -> _Row:
    try:
        reply = requests.post(
            _address(base),
            data=json.dumps(_parameters(case)),
            headers={
                "Content-Type": "application/fhir+json",
                "Accept": "application/fhir+json",
            },
            timeout=_REQUEST_SECONDS,
        )
        answer = reply.json()
    except requests.RequestException as error:
        raise SourceError(f"the service did not answer ({type(error).__name__})") from error
    if not reply.ok:
        issue = answer.get("issue", [{}])[0]
        return _Row(case, issue.get("diagnostics", reply.reason), (), (), (), evaluated=False)
    return _row(case, answer)


def _row(case: _Case, answer: dict[str, Any]) -> _Row:
    """Read the parts of a GuidanceResponse that the table shows."""
    (contained,) = (
        resource
        for resource in answer["contained"]
        if "#" + resource["id"] == answer["outputParameters"]["reference"]
    )
    verdict = ""
    criteria: list[dict[str, str]] = []
    for parameter in contained["parameter"]:
        if parameter["name"] == "verdict":
            verdict = _value(parameter)
        elif parameter["name"] == "criterion":
            criteria.append({part["name"]: _value(part) for part in parameter["part"]})
    open_ones = _open(criteria)
    judged = [one["id"] for one in open_ones if one["reason"] == "judgement-required"]
    missing = [one["id"] for one in open_ones if one["reason"] != "judgement-required"]
    failed = [
        criterion["id"]
        for criterion in criteria
        if criterion["outcome"] == "fail" and not criterion.get("parent")
    ]
    return _Row(case, verdict, tuple(failed), tuple(missing), tuple(judged))


def _open(criteria: list[dict[str, str]]) -> list[dict[str, str]]:
    """List what is open: unknown, without parts of its own, in nothing that is decided."""
    unknown = {one["id"] for one in criteria if one["outcome"] == "unknown"}
    parents = {one["id"]: one.get("parent") for one in criteria}

    def is_open(name: str | None) -> bool:
        return name is None or (name in unknown and is_open(parents[name]))

    inner = set(parents.values())
    return [one for one in criteria if one["id"] not in inner and is_open(one["id"])]


def _value(parameter: dict[str, Any]) -> str:
    return next((str(value) for key, value in parameter.items() if key.startswith("value")), "")


_COLOURS = {"eligible": "green", "potentially-eligible": "yellow", "ineligible": "red"}


def _print(rows: list[_Row]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    # What only a person can settle is the same for nearly all; it is said once.
    always = [
        name for name in (rows[0].to_judge if rows else ()) if all(name in r.to_judge for r in rows)
    ]
    table = Table(title=f"{_TRIAL}: {len(rows)} invented patients", title_justify="left")
    longest = max((len(row.case.patient) for row in rows), default=0)
    table.add_column("patient", min_width=min(longest, console.width // 3), overflow="fold")
    for heading in ("as of", "verdict", "fails", "open: data", "open: judgement"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            Text.assemble(row.case.patient, "\n", (row.case.title, "dim")),
            row.case.as_of,
            Text(row.verdict, style=_COLOURS.get(row.verdict, "magenta")),
            " ".join(row.failed),
            " ".join(row.missing),
            " ".join(name for name in row.to_judge if name not in always),
        )
    console.print(table)
    counts = Counter(row.verdict for row in rows)
    click.echo(", ".join(f"{number} {verdict}" for verdict, number in counts.most_common()))
    if always:
        click.echo(f"Open for each of them, for a person to judge: {' '.join(always)}")


def _print_request(rows: list[_Row], base: str) -> None:
    click.echo("\nTry one yourself:")
    click.echo(
        f"curl -sS {shlex.quote(_address(base))} -H 'Content-Type: application/fhir+json' "
        f"-d {shlex.quote(json.dumps(_parameters(_example(rows)), separators=(',', ':')))}"
    )


def _example(rows: list[_Row]) -> _Case:
    """Choose a patient who may be eligible, as there is most to see."""
    open_ones = [row for row in rows if row.verdict == "potentially-eligible"]
    return min(open_ones or rows, key=lambda row: len(row.missing)).case


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Take being told to end like Ctrl-C, so that the service is ended too."""
    raise KeyboardInterrupt


def _until_stopped() -> None:
    """Wait for Ctrl-C, which is a clean end."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        click.echo("\nStopped.")
