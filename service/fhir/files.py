"""The source of directories and files: Bundles, single resources, NDJSON, Bulk exports.

Source: FHIR R4 Bundle, FHIR Bulk Data Access 3.0; semantics 1.5 on completeness.
"""

from __future__ import annotations

import gzip
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

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
        """Go through the ids of all patients, those merged away left out."""
        index = self._index()
        for key in index.patients:
            if key not in index.merged_away:
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
        paths = sorted(_files(self._path))
        # A file named outright is read, whatever it is called.
        unread = {path for path in paths if path != self._path and not _readable(path)}
        if len(unread) == len(paths):
            raise SourceError(f"no FHIR files (.json, .ndjson, .gz) in {self._path.name}")
        index = Index(self._path, self._site)
        for path in paths:
            if path in unread:
                index.add_unread(path)
            else:
                index.add_file(path)
        index.finish()
        return index


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise SourceError(f"there is no directory or file {path.name}")
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            plain = plain_name(name).lower()
            if not plain.startswith((".", *_NOTES)) and not plain.endswith(_NO_DATA):
                yield Path(folder, name)


def _readable(path: Path) -> bool:
    """Tell whether a file is JSON or NDJSON: by its ending, else by how it starts."""
    plain = plain_name(path.name)
    if plain.lower().endswith(_ENDINGS):
        return True
    try:
        with gzip.open(path) if plain != path.name else path.open("rb") as file:
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
