"""Stores to test with: a file of SQLite's, and a PostgreSQL server of the tests' own."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from service.storage.store import Store

_MISSING = "POSTGRESQL IS NOT TESTED HERE: no initdb and postgres (Debian: apt install postgresql)"
_MAINTENANCE = "postgres"
_numbers = itertools.count(1)
_missed: list[str] = []


class PostgresServer:
    """A server on a socket in a folder of its own, run by a user that it accepts."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        # Not pytest's folder: another user must get in, and a socket's path be short.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self._data), "-U", "tests", "-A", "trust", "-E", "UTF8")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start and wait until it answers."""
        self._control("start", "-w", "-l", str(self.folder / "log"), "-o", self._options())

    def stop(self, mode: str = "fast") -> None:
        """Stop; ``immediate`` is as a crash."""
        self._control("stop", "-w", "-m", mode)

    def remove(self) -> None:
        """Stop and take everything away."""
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def fresh(self) -> str:
        """Make a database; give its URL."""
        name = f"store_{next(_numbers)}"
        self._run("createdb", "-h", str(self.folder), "-U", "tests", name)
        return f"postgresql://tests@/{name}?host={quote(str(self.folder))}"

    def _options(self) -> str:
        return f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            user=self._user,
            timeout=120,
        )


def _programs() -> Path | None:
    """Find the folder of the server's programs; Debian does not put it on the path."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders += [Path(found).resolve().parent] if found else []
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL server for the tests; without one, say so, and fail in CI."""
    programs = _programs()
    if programs is None:
        _missed.append(_MISSING)
        if os.environ.get("CI"):
            pytest.fail(_MISSING)
        pytest.skip(_MISSING)
    server = PostgresServer(programs)
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the place of a store that isn't made yet, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.fresh()


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    """Give a new store of either kind."""
    with Store.open(place) as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end, where it is seen, that half of the tests did not run."""
    if _missed:
        terminalreporter.write_line(_missed[0], red=True, bold=True)
