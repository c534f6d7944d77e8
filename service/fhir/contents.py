"""Files' bytes and where in them resources are, without holding either in memory."""

from __future__ import annotations

import gzip
import mmap
import os
import tempfile
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

_CHUNK = 1024 * 1024


class Place(NamedTuple):
    """Where a resource's text is: number of the file, offset, length, line; its fullUrl."""

    file: int
    offset: int
    length: int
    line: int
    full_url: str | None = None


class Places:
    """Many places, packed: an export has millions of lines."""

    def __init__(self) -> None:
        self._numbers: array[int] = array("Q")
        self._full_urls: dict[int, str] = {}

    def add(self, place: Place) -> int:
        """Keep a place; gives its number."""
        number = len(self._numbers) // 4
        self._numbers.extend(place[:4])
        if place.full_url is not None:
            self._full_urls[number] = place.full_url
        return number

    def get(self, number: int) -> Place:
        """Give the place of a number."""
        file, offset, length, line = self._numbers[4 * number : 4 * number + 4]
        return Place(file, offset, length, line, self._full_urls.get(number))


class Content:
    """A file's bytes that can be read at any place, from any thread; a gzip is unpacked once.

    What is unpacked goes to a file without a name, so that it never outlives the process.
    ``problem`` tells that a gzip is damaged; what came before the damage still counts.
    Raises OSError if the file can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None
        self._file = _open(path)
        if _packed(path):
            self._unpack(path)
        self._number = self._file.fileno()
        self.size = os.fstat(self._number).st_size

    def _unpack(self, path: Path) -> None:
        with path.open("rb") as source, gzip.open(source, "rb") as packed:
            try:
                while chunk := packed.read(_CHUNK):
                    self._file.write(chunk)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self.problem = f"the gzip is damaged or cut short ({type(error).__name__})"
        self._file.flush()

    def read(self, offset: int, length: int) -> bytes:
        """Read at a place."""
        return os.pread(self._number, length, offset)

    @contextmanager
    def mapped(self) -> Iterator[mmap.mmap | bytes]:
        """Give the whole content without copying it into memory."""
        if self.size == 0:
            yield b""
            return
        with mmap.mmap(self._number, 0, access=mmap.ACCESS_READ) as view:
            yield view

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _open(path: Path) -> IO[bytes]:
    if _packed(path):
        return tempfile.TemporaryFile()
    return path.open("rb")


def _packed(path: Path) -> bool:
    return path.suffix == ".gz"
