"""Does what the Dockerfile says without a container engine, each path moved to a folder of its own.

Copies what the build stage copies, runs its RUN lines, then starts the image's command with
the service bound to the loopback address and runs its health check against it. What a
container engine alone can show (base image, user, read-only file system) stays untested.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60
PORT = "8080"  # the image's own


def instructions(text: str) -> list[tuple[str, str]]:
    """Split a Dockerfile into instructions: continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.strip().split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(parts[0].upper(), parts[1]) for parts in split]


def stages(found: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Group instructions by stage."""
    grouped: list[list[tuple[str, str]]] = []
    for name, rest in found:
        if name == "FROM":
            grouped.append([])
        grouped[-1].append((name, rest))
    return grouped


def build(stage: list[tuple[str, str]], folder: Path) -> None:
    """Carry out COPY and RUN of the build stage below a folder."""
    workdir = folder
    for name, rest in stage:
        if name == "WORKDIR":
            workdir = folder / rest.lstrip("/")
            workdir.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, workdir / target, len(sources) > 1)
        elif name == "RUN":
            print("+", rest, flush=True)
            moved = rest.replace("/opt/", f"{folder}/opt/")
            subprocess.run(["sh", "-euc", moved], cwd=workdir, check=True)


def copy(source: Path, target: Path, into: bool) -> None:
    """Copy a file into a folder, or a folder's content."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if into else target)


def run(stage: list[tuple[str, str]], folder: Path) -> None:
    """Start the image's command and run its health check until it holds."""
    said = dict(stage)
    command = json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"])
    check = json.loads(said["HEALTHCHECK"].split(" CMD ", 1)[1])
    # Without a key for callers the service only binds to the loopback address.
    command[command.index("--host") + 1] = "127.0.0.1"
    port = free_port()
    command = [part.replace(PORT, port) for part in command]
    check = [part.replace(PORT, port) for part in check]
    environment = {
        "PATH": f"{folder}/opt/eligibility/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "TMPDIR": tempfile.mkdtemp(dir=folder),
    }
    print("+", shlex.join(command), flush=True)
    # The interpreter and the program are found on the image's PATH, not on this one's.
    service = subprocess.Popen(
        [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]],
        cwd=environment["TMPDIR"],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + START_SECONDS
        while subprocess.run(
            ["env", *check], env=environment, check=False, stderr=subprocess.DEVNULL
        ).returncode:
            if service.poll() is not None or time.monotonic() > until:
                sys.exit("the health check never held")
            time.sleep(0.5)
    finally:
        service.terminate()
        service.wait(timeout=30)
    print("the health check holds")
    print("+ eligibility demo --once", flush=True)
    demo = subprocess.run(
        ["env", "eligibility", "demo", "--once"],
        cwd=environment["TMPDIR"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    print(demo.stdout.splitlines()[0])


def free_port() -> str:
    """Ask the system for a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def main() -> None:
    """Build and run what the Dockerfile describes."""
    first, last = stages(instructions((ROOT / "service" / "Dockerfile").read_text()))
    with tempfile.TemporaryDirectory() as folder:
        build(first, Path(folder))
        run(last, Path(folder))


if __name__ == "__main__":
    main()
