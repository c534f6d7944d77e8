"""Runs the command line in processes of its own that can be ended at any of their steps.

A process that has everything loaded makes a copy of itself for each command, so that a command
takes a fraction of a second. Steps are what outlasts the process: files opened for writing,
renamed or removed, folders made or removed, statements to the database.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.nightly.making import TRIAL, numbered

ROOT = Path(__file__).resolve().parents[2]
KILLED = -9
# Small pieces, so that there are many places at which to be cut short.
PROGRAM = """
import functools, json, os, resource, signal, sys, time
from sqlalchemy import event
from sqlalchemy.engine import Engine
from service.cli import main
from service.cli import screen as _
from service.nightly import directory, engine, screen
from service.config import load_settings
from service.wiring import build_screening

directory.UNIT, directory.CHUNK = 4000, 1500
engine._PARTITIONS = (24, 24)
# The mappings are read once: no step writes them.
loaded = build_screening(load_settings({}, {}))
screen.build_screening = lambda settings: loaded


def steps(asked):
    own, count = os.getpid(), 0

    def step(named=False):
        nonlocal count
        if os.getpid() != own:
            return
        count += 1
        if count == asked["step"] or named:
            if asked["wait"]:
                open(asked["wait"] + ".here", "x").close()
                while not os.path.exists(asked["wait"] + ".on"):
                    time.sleep(0.005)
            elif asked["group"]:
                os.killpg(own, signal.SIGKILL)
            else:
                os.kill(own, signal.SIGKILL)

    def audit(name, arguments):
        if name in ("os.remove", "os.rmdir", "os.mkdir"):
            step()
        elif name == "os.rename":
            step(bool(asked["naming"]) and str(arguments[-3]).endswith(asked["naming"]))
        elif name == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            step()

    sys.addaudithook(audit)
    event.listen(Engine, "before_cursor_execute", lambda *_: step())
    event.listen(Engine, "commit", lambda *_: step())
    return lambda: count


def run(asked):
    os.setsid()
    said = os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if asked["largest"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest"], asked["largest"]))
    taken = steps(asked)
    try:
        main(asked["arguments"], standalone_mode=True)
    finally:
        print("steps", taken())


for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(asked)
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (-9: killed), and what it said."""

    code: int
    said: str

    @property
    def steps(self) -> int:
        """How many steps it took."""
        return int(self.said.rsplit("steps ", 1)[1])


class Commands:
    """Runs commands, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._said = folder / "said"
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def begin(
        self,
        *arguments: object,
        step: int = 0,
        group: bool = False,
        wait: Path | None = None,
        largest: int = 0,
        naming: str = "",
    ) -> None:
        """Start a command.

        ``step``: the one at which it is killed, before it (``group``: with all processes
        that it has started), or at which it waits for a file ``wait.on`` (having made
        ``wait.here``). ``naming``: it is killed before a file gets its name that ends so.
        ``largest``: bytes that a file may have.
        """
        assert self._process.stdin is not None
        asked: dict[str, Any] = {
            "arguments": [str(each) for each in arguments],
            "said": str(self._said),
            "step": step,
            "group": group,
            "wait": str(wait) if wait else None,
            "largest": largest,
            "naming": naming,
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def end(self) -> Ended:
        """Wait for its end."""
        assert self._process.stdout is not None
        code = int(self._process.stdout.readline())
        return Ended(code, self._said.read_text(encoding="utf-8"))

    def run(self, *arguments: object, **more: Any) -> Ended:
        """Run a command to its end."""
        self.begin(*arguments, **more)
        return self.end()

    def screen(self, source: object, output: Path, *arguments: object, **more: Any) -> Ended:
        """Search a source."""
        return self.run(*screening(source, output), *arguments, **more)


def screening(source: object, output: Path) -> tuple[object, ...]:
    """Give the command line of a search."""
    named = ("--source", source, "--output", output, "--as-of", "2026-11-01")
    return ("screen", TRIAL, *named)


def wait_for(path: Path, seconds: float = 20.0) -> None:
    """Wait until a file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} did not come"
        time.sleep(0.005)


def outputs(output: Path) -> dict[str, object]:
    """Read all that two runs of the same search must have in common."""
    names = ("verdicts.ndjson", "rejects.ndjson", "candidates.csv", "group.json", "list.json")
    found: dict[str, object] = {name: numbered((output / name).read_bytes()) for name in names}
    said = json.loads((output / "run.json").read_bytes())
    for name in ("started", "finished", "seconds", "rates", "resumed"):
        del said[name]
    found["run.json"] = said
    assert {path.name for path in output.iterdir()} == {*found, "report.html"}
    return found
