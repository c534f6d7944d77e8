"""The source of directories and files: Bundles, single resources, NDJSON, Bulk exports.

Source: FHIR R4 Bundle, FHIR Bulk Data Access 3.0; semantics 1.5 on completeness.
"""

from __future__ import annotations

import gzip
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.errors import PatientUnreadable, SourceError, UnknownPatient
from service.fhir.bundles import kind_of, problems_of, readings_of
from service.fhir.contents import plain_name
from service.fhir.index import Index
from service.fhir.record import Message
from service.fhir.source import Fetched, SiteSearch, Wanted

_ENDINGS = (".json", ".ndjson", ".jsonl")
# What lies beside an export without being a part of it.
_NO_DATA = (
    ".md", ".txt", ".log", ".csv", ".html", ".htm", ".yaml", ".yml", ".md5", ".sha256",
)  # fmt: skip
_NOTES = ("readme", "license", "licence")
_LOST = ("incomplete", "required")
_MESSAGES = 50
_START = 256
FORM = "the file is of a form that is not read"
_LINK = "the folder is only linked to, and is not read"


class Listed(NamedTuple):
    """A file (or folder) of a source: its name there; ``problem`` says why it isn't read."""

    path: Path
    name: str
    problem: str | None = None


class FileSource:
    """Reads records from a directory (with its folders) or one file; shared by threads.

    The files are gone through once, on first use; a patient's resources are read from disk
    when asked for. Files must not change while the source is in use.
    """

    def __init__(self, path: Path, site: SiteSearch | None = None) -> None:
        self._path = path
        self._site = site or SiteSearch()
        self._lock = threading.Lock()
        self._built: Index | None = None

    def describe(self) -> str:
        """Name the directory or file for people."""
        return f"{'directory' if self._path.is_dir() else 'file'} {self._path.name}"

    def check(self) -> None:
        """Raise SourceError if there is no such directory or file, or nothing to read in it."""
        self._index()

    def patient_ids(self) -> Iterator[str]:
        """Go through the ids of all patients, each of those merged with each other once."""
        index = self._index()
        for key in index.patients:
            if index.stands_for_itself(key):
                yield key.removeprefix("Patient/")

    def messages(self) -> tuple[Message, ...]:
        """Give what was wrong with the files whoever is asked for."""
        return tuple(self._index().messages)

    def fetch(self, patient_id: str, wanted: Wanted) -> Fetched:
        """Read one patient's record, whole: local files need no narrowing to ``wanted``.

        Raises UnknownPatient, PatientUnreadable or SourceError.
        """
        index = self._index()
        asked = patient_id if patient_id in index.patients else f"Patient/{patient_id}"
        key = asked if asked in index.patients else index.key_of(patient_id)
        if key is None or key not in index.patients:
            if index.lost_patients:
                raise PatientUnreadable("a Patient that can't be read may be the one asked for")
            raise UnknownPatient("the source has no such patient")
        keys = index.group(key)
        readings = readings_of(index.replies, keys)
        messages = (*problems_of(index.replies, keys), *index.messages)
        return Fetched(
            patient=key,
            items=tuple(index.items(keys)),
            readings=readings,
            messages=_first(messages),
            base_url=index.base_url,
        )

    def unread(self) -> tuple[Message, ...]:
        """Name what could not be read and may hold anybody's record, even a whole patient's."""
        index = self._index()
        # A type that the server lacks is no loss: what rests on it is unknown of everybody.
        messages = (*problems_of(index.replies, set()), *index.messages)
        lost = [message for message in messages if message.code in _LOST]
        for item in index.items(set()):
            # Nobody's and unreadable: a Patient among them is in no list of patients.
            if (kind := kind_of(item.raw)) in (None, "Patient"):
                text = "a resource can't be read"
                lost.append(Message("warning", "incomplete", text, kind, place=item.place))
        return _first(tuple(dict.fromkeys(lost)))

    def _index(self) -> Index:
        with self._lock:
            if self._built is None:
                self._built = self._build()
            return self._built

    def _build(self) -> Index:
        listed = files_of(self._path)
        index = Index(self._path, self._site)
        for each in listed:
            if each.problem is None:
                index.add_file(each.path)
            else:
                index.add_unread(each.name, each.problem)
        index.finish()
        return index


def files_of(root: Path) -> list[Listed]:
    """List the files of a directory (or the one file) in the order of their paths.

    Those that may hold data but aren't read, and folders that can't be, are listed with the
    reason. Raises SourceError if there is nothing to read.
    """
    if root.is_file():
        # A file named outright is read, whatever it is called.
        return [Listed(root, root.name)]
    if not root.is_dir():
        raise SourceError(f"there is no directory or file {root.name}")
    found = sorted(_within(root), key=lambda each: each.path)
    if all(each.problem == FORM for each in found):
        raise SourceError(f"no FHIR files (.json, .ndjson, .gz) in {root.name}")
    return found


def may_hold_data(name: str) -> bool:
    """Tell by a file's name whether it may be a part of an export, not something beside it."""
    plain = plain_name(name).lower()
    if plain.startswith((".", *_NOTES)) or plain.endswith(_NO_DATA):
        return False
    # What writes an export on many machines marks so that it is finished.
    return has_ending(name) or not plain.startswith("_")


def has_ending(name: str) -> bool:
    """Tell whether a file is JSON or NDJSON by its name, be it packed."""
    return plain_name(name).lower().endswith(_ENDINGS)


def _within(root: Path) -> Iterator[Listed]:
    broken: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=broken.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in folders):
            if path.is_symlink():  # It may lead to where it is itself.
                yield _listed(root, path, _LINK)
        for path in (Path(folder, name) for name in names if may_hold_data(name)):
            yield _listed(root, path, _problem(path))
    for error in broken:
        problem = f"the folder can't be read ({type(error).__name__})"
        yield _listed(root, Path(error.filename), problem)


def _listed(root: Path, path: Path, problem: str | None) -> Listed:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        # Neither outputs nor the store can hold such a name.
        name = os.fsencode(name).decode(errors="backslashreplace")
        return Listed(path, name, problem or "the file's name is not UTF-8, and is not read")
    return Listed(path, name, problem)


def _problem(path: Path) -> str | None:
    """Say why a file isn't read, if it isn't."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "it is no file that can be read twice"
    except OSError:
        return None if has_ending(path.name) else FORM  # Reading it will say what is wrong.
    return None if _readable(path) else FORM


def _readable(path: Path) -> bool:
    """Tell whether a file is JSON or NDJSON: by its ending, else by how it starts."""
    if has_ending(path.name):
        return True
    packed = plain_name(path.name) != path.name
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(_START)
    except (OSError, EOFError, zlib.error):
        return False
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _first(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Keep the first messages of many, and say how many there are."""
    if len(messages) <= _MESSAGES:
        return messages
    text = f"{len(messages) - _MESSAGES} further problems with the files"
    return (*messages[:_MESSAGES], Message("warning", "incomplete", text))
