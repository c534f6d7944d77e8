"""Files' bytes and where in them resources are, without holding either in memory."""

from __future__ import annotations

import gzip
import mmap
import os
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_GZ = ".gz"
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


def plain_name(name: str) -> str:
    """Give a file's name without the ending of a gzip, in any case."""
    return name[: -len(_GZ)] if name.lower().endswith(_GZ) else name


class Unpacked:
    """Where gzip files are unpacked to: one file without a name, gone with the process."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self.number = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.number)
        self._end = 0

    def add(self, path: Path) -> tuple[int, int, str | None]:
        """Unpack a file; gives where it starts, its size, and what is wrong with it.

        What came before a damage still counts. Raises OSError if the file can't be read.
        """
        start = self._end
        size, problem = 0, None
        with path.open("rb") as source, gzip.open(source, "rb") as packed:
            try:
                while chunk := packed.read1(_CHUNK):
                    size += os.pwrite(self.number, chunk, start + size)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                problem = f"the gzip is damaged or cut short ({type(error).__name__})"
        # A part of a file can be mapped only from certain places on.
        pages = -(-size // mmap.ALLOCATIONGRANULARITY)
        self._end = start + pages * mmap.ALLOCATIONGRANULARITY
        return start, size, problem


class Content:
    """A file's bytes, unpacked if it is a gzip, that can be read at any place.

    Files are opened only while they are read, since there can be very many. ``problem``
    tells that a gzip is damaged. Raises OSError if the file can't be read.
    """

    def __init__(self, path: Path, unpacked: Unpacked) -> None:
        self.problem: str | None = None
        self._path = path
        self._start = 0
        self._unpacked: Unpacked | None = None
        if path.name.lower().endswith(_GZ):
            self._unpacked = unpacked
            self._start, self.size, self.problem = unpacked.add(path)
        else:
            with self.opened() as number:
                self.size = os.fstat(number).st_size

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file for ``read``; gives its descriptor."""
        if self._unpacked is not None:
            yield self._unpacked.number
            return
        number = os.open(self._path, os.O_RDONLY)
        try:
            yield number
        finally:
            os.close(number)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Read at a place of the opened file, from any thread."""
        return os.pread(number, length, self._start + offset)

    @contextmanager
    def mapped(self) -> Iterator[mmap.mmap | bytes]:
        """Give the whole content without copying it into memory."""
        if self.size == 0:
            yield b""
            return
        with (
            self.opened() as number,
            mmap.mmap(number, self.size, access=mmap.ACCESS_READ, offset=self._start) as view,
        ):
            yield view
