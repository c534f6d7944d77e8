"""The folder in which a search keeps what it has done, so that it can be taken up again.

Each step's result is a file that is there whole or not at all: written beside its place,
flushed to the disk, then renamed. Steps give the same result whenever they are repeated, so
a step that was cut short is simply done again.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from service.nightly.model import SearchFailed

if sys.platform != "win32":
    import fcntl

_NAME = ".work"
_LOCK = ".lock"
_ATTEMPTS = "attempts.json"
_PATIENCE = 10.0
_T = TypeVar("_T")


def fingerprint(value: object) -> str:
    """Give a short name for what a search rests on."""
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:24]


def write_whole(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file so that it is there whole or not at all, also after a power loss."""
    # Two processes may write the same file for a moment: one whose parent was killed, and
    # the one that does its work again.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    flush_folder(path.parent)


def clear_parts(path: Path) -> None:
    """Remove what writers of a file left beside it that were killed; none may be at work."""
    for beside in path.parent.glob(f".{path.name}.*"):
        if beside.name.rpartition(".")[2].isdecimal():
            beside.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder's own entries to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class Work:
    """The working folder of one search in one output folder.

    Holds a lock while open, so that no two searches write to one folder. ``resumed`` tells
    how often this search had been begun before, ``began`` when it first was; ``key`` is its
    own name, that of no other search, before or after it.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.resumed = 0
        self.spent = 0.0
        self.began = ""
        self.key = ""
        self._root = output / _NAME
        self._began = time.monotonic()
        self._lock: int | None = None
        self._folder: Path | None = None

    @contextmanager
    def locked(self) -> Iterator[Work]:
        """Hold the folder's lock; raises SearchFailed if another search has it."""
        # The processes of a search that was just killed need a moment to notice.
        until = time.monotonic() + _PATIENCE
        while not self._locked(until):
            pass
        try:
            yield self
        finally:
            self._tidy()
            self.unlock()

    def _locked(self, until: float) -> bool:
        """Take the lock; False if another search removed its file meanwhile."""
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root / _LOCK
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._wait(until)
            if path.stat().st_ino == os.fstat(self._lock).st_ino:
                return True
        except FileNotFoundError:
            pass
        except BaseException:
            self.unlock()
            raise
        self.unlock()
        return False

    def _tidy(self) -> None:
        """Remove the folder if nothing is left in it to take up."""
        with contextlib.suppress(OSError):
            if [path.name for path in self._root.iterdir()] == [_LOCK]:
                (self._root / _LOCK).unlink()
                self._root.rmdir()

    def _wait(self, until: float) -> None:
        if sys.platform == "win32":  # Nothing keeps two searches apart there.
            return
        assert self._lock is not None
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise SearchFailed("another search is writing to this output folder") from error
                time.sleep(0.2)

    def unlock(self) -> None:
        """Let go of the lock (in a process of the search too, which inherits it)."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def begin(
        self,
        print_: str,
        *,
        fresh: bool = False,
        leaving: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Take up the search of this fingerprint, or begin it; others' leftovers are removed.

        ``leaving`` gets the folder of each search before it is removed.
        """
        folder = self._root / print_
        for entry in sorted(self._root.iterdir()):
            # One that doesn't say which search it was is what an end that was cut short left.
            known_one = entry == folder and (entry / _ATTEMPTS).exists()
            if entry.is_dir() and (fresh or not known_one):
                leaving(entry)
                _remove(entry)
        folder.mkdir(exist_ok=True)
        self._folder = folder
        known = self.load("attempts", _Attempts)
        if known is None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            known = _Attempts(f"{print_}-{secrets.token_hex(8)}", now)
        self.resumed, self.spent = known.count, known.seconds
        self.key, self.began = known.key, known.began
        self.note_time()

    def part(self, name: str) -> Work:
        """Give a folder within it, for steps that must not be taken for others of their name."""
        part = copy.copy(self)
        part._folder = self.path(f"{name}/attempts.json").parent
        return part

    def note_time(self) -> None:
        """Note how long the search has taken so far."""
        self.save("attempts", _Attempts(self.key, self.began, self.resumed + 1, self.seconds()))

    def seconds(self) -> float:
        """Give what all attempts took together, as far as they noted it."""
        return self.spent + time.monotonic() - self._began

    def path(self, name: str) -> Path:
        """Give the place of a step's file."""
        assert self._folder is not None
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name: str, value: object) -> None:
        """Keep a step's result."""
        write_whole(self.path(f"{name}.json"), [msgspec.json.encode(value)])

    def load(self, name: str, kind: type[_T]) -> _T | None:
        """Read a step's result back; None if the step is not done."""
        try:
            raw = self.path(f"{name}.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.DecodeError:
            return None  # Not written by this version: the step is done again.

    def has(self, name: str) -> bool:
        """Tell whether a step is done."""
        return self.path(f"{name}.json").exists()

    def end(self) -> None:
        """Remove what was kept, when all outputs are written."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                _remove(self._folder)
            self._folder = None


def _remove(folder: Path) -> None:
    """Remove a search's folder; cut short, what is left of it is nobody's."""
    # What says which search this was goes first, and is gone whatever happens then: steps of
    # which only a part is left must not be taken for done.
    (folder / _ATTEMPTS).unlink(missing_ok=True)
    flush_folder(folder)
    shutil.rmtree(folder)


class _Attempts(msgspec.Struct):
    key: str
    began: str
    count: int = 0
    seconds: float = 0.0
