"""Bulk Data Access: has a server export its patients, and brings the files into a directory.

The directory, with a manifest of its own, is then read like any export on disk. A process
that ends on the way is no loss: the next one takes up the same job and fetches only what is
not there yet.

Source: FHIR Bulk Data Access 2.0 and 3.0.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import msgspec

from service.errors import ConfigurationError, SourceError, SourceTimeout
from service.fhir.auth import NoAuth
from service.fhir.bulkjob import (
    MANIFEST,
    BulkRequest,
    File,
    Form,
    Job,
    Json,
    Page,
    check_folder,
    eased,
    finished,
    forget_job,
    load_job,
    local_manifest,
    read_page,
    register,
    save_job,
    sync_folder,
    write_safely,
)
from service.fhir.bundles import RECORD_TYPES
from service.fhir.download import SHORT, Addresses, Fetcher, NotWritten, Short, Stale, resolve
from service.fhir.http import Auth, Client, Limits, Outgoing, Reply, Transport, retry_after
from service.fhir.paging import outcome, said_openly
from service.fhir.plan import capabilities
from service.fhir.since import named_by

__all__ = ["BulkClient", "BulkLimits", "BulkRequest", "Export", "deleted_references"]

_KICK_OFFS = 12
_TEMPORARY = frozenset({408, 500, 502, 503, 504})
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_AS_JSON = {"Accept": "application/json"}
_PROGRESS = 100
_ACCIDENTS = 3
_CODE = re.compile(r"[a-z-]{1,30}")


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """Bounds on an export, in seconds and numbers.

    ``job``: how long one process waits for the server to finish. ``poll_least``,
    ``poll_most``: between two questions, whatever Retry-After says; ``poll_first``: the
    first wait without Retry-After, then growing. ``failures``: questions in a row that may
    fail. ``busy``: how long a server that runs another export is asked to start ours.
    ``file``: one download; ``attempts``: of one file; ``parallel``: downloads at a time;
    ``manifests``: that may be linked.
    """

    job: float = 86_400.0
    poll_least: float = 1.0
    poll_first: float = 2.0
    poll_most: float = 600.0
    failures: int = 10
    busy: float = 3_600.0
    file: float = 21_600.0
    attempts: int = 5
    parallel: int = 4
    manifests: int = 10_000


@dataclass(frozen=True, slots=True)
class Export:
    """An export that is on disk.

    ``transaction_time``: what the next export's ``since`` is. ``problems``: what of it did
    not come, or not whole. ``notes``: what the server could not do (a type it does not
    export is missing in the manifest's request). ``deleted``: files of Bundles that name
    what was deleted since.
    """

    folder: Path
    transaction_time: str
    files: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    deleted: tuple[Path, ...]


class _JobGone(SourceError):
    """The server knows nothing of the job (any more)."""


class _JobFailed(SourceError):
    """The server could not do the job."""


class BulkClient:
    """Exports from one server.

    ``trusted``: further addresses (scheme and host) of the same server, which get its
    token. ``report`` is told how far the export is, in words without patient data.
    """

    def __init__(
        self,
        base_url: str,
        auth: Auth | None = None,
        limits: Limits | None = None,
        bulk: BulkLimits | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        trusted: Iterable[str] = (),
        report: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
        lookup: Callable[[str], Iterable[str]] = resolve,
    ) -> None:
        limits = limits or Limits()
        self._bulk = bulk or BulkLimits()
        self._auth = auth or NoAuth()
        self._headers = headers or {}
        self._transport = Transport(limits)
        self._client = Client(base_url, self._auth, self._transport, headers=self._headers)
        self._base = self._client.base_url
        self._addresses = Addresses(self._base, trusted, lookup)
        self._fetcher = Fetcher(
            Transport(replace(limits, parallel=self._bulk.parallel), what="the file server"),
            self._auth,
            self._addresses,
        )
        self._report = report
        self._sleep = sleep

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def export(self, request: BulkRequest, folder: Path, *, fresh: bool = False) -> Export:
        """Export into a folder, taking up what was begun there; gives what is there then.

        An export that was finished there is given as it is; ``fresh`` does away with it, or
        with a job that runs. Files that the server does not give are problems, not errors;
        if it lost the job meanwhile, another is begun, once. Raises ConfigurationError when
        the server refuses, SourceError or SourceTimeout when it fails or can't be reached
        (the job is taken up next time, unless the server lost it), NotWritten.
        """
        asked = request.digest(self._base)
        if fresh:
            self.abandon(folder)
        check_folder(folder, asked)
        job = load_job(folder)
        manifest = finished(folder)
        if manifest is None:
            job = job or self._begin(request, asked, folder)
            try:
                manifest = self._bring(job, folder, last=False)
            except _JobGone:
                # Jobs expire. Their files are of another moment than those of a new job.
                self.abandon(folder)
                job = self._begin(request, asked, folder)
                manifest = self._bring(job, folder, last=True)
        if job is not None:
            self._end(job, folder)
        return _export(folder, manifest)

    def abandon(self, folder: Path) -> None:
        """Do away with an export in a folder, and with its job on the server."""
        job = load_job(folder)
        self.call_off(folder)
        if job is None and finished(folder) is None:
            return
        for path in sorted(folder.iterdir()):
            # Without the job's file, which goes last, the rest would be nobody's.
            if path.is_file() and path.name != "job.json":
                path.unlink()
        forget_job(folder)

    def call_off(self, folder: Path) -> bool:
        """Tell the server that a folder's job is over; False if it does not answer.

        A job that is only forgotten keeps some servers from doing another.
        """
        job = load_job(folder)
        return job is None or self._end(job, folder, forget=False)

    def trusts(self, url: str) -> bool:
        """Whether an address is of this server."""
        return self._addresses.trusts(url)

    # Kick-off

    def _begin(self, request: BulkRequest, asked: str, folder: Path) -> Job:
        notes: list[str] = []
        wanted = request.types or ("Patient", *RECORD_TYPES)
        offered = self._offered(wanted)
        not_offered = [kind for kind in wanted if kind not in offered]
        asking = Form(replace(request, types=offered), post=bool(request.patients))
        form, poll = self._kick_off(asking, notes)
        job = Job(asked, form.url(self._base), poll, notes, [], not_offered=not_offered)
        # Before the first question: a job that nobody knows of blocks the next one.
        save_job(folder, job)
        return job

    def _offered(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Give those of the types that the server has; all if it doesn't say."""
        reply = self._client.get(f"{self._base}/metadata", deadline=self._deadline())
        try:
            server = capabilities(reply.body)
        except SourceError:
            return wanted
        # Nobody can be searched for without Patients: a server that names none is asked.
        return tuple(kind for kind in wanted if kind == "Patient" or server.of(kind) is not None)

    def _kick_off(self, form: Form, notes: list[str]) -> tuple[Form, str]:
        for _ in range(_KICK_OFFS):
            reply = self._ask(form)
            location = reply.headers.get("Content-Location")
            if reply.status == HTTPStatus.ACCEPTED and location:
                return form, self._own(urljoin(reply.url, location))
            if reply.status in _REFUSED:
                words = said_openly(reply, self._client.hides)
                raise ConfigurationError(
                    f"the FHIR server refuses the export ({words}): the client needs a scope "
                    "that allows it"
                )
            easier = eased(form, reply)
            if easier is None:
                raise self._refusal(reply)
            form, note = easier
            if note is not None:
                notes.append(note)
        raise self._refusal(reply)

    def _ask(self, form: Form) -> Reply:
        """Send a kick-off; waits while the server runs another export."""
        until = time.monotonic() + self._bulk.busy
        wait, failures = self._bulk.poll_first, 0
        while True:
            reply, error = self._asked(_kick_off_request(form, self._base))
            if reply is not None and reply.status not in (*_TEMPORARY, 429):
                return reply
            # A job may have begun of which nobody tells us; asking again is all there is.
            failures += reply is None or reply.status != HTTPStatus.TOO_MANY_REQUESTS
            pause = self._pause(reply, wait)
            if failures >= self._client.limits.attempts or time.monotonic() + pause > until:
                words = said_openly(reply, self._client.hides) if reply else "no answer"
                raise error or SourceError(f"the FHIR server starts no export ({words})")
            self._report("the server is busy")
            self._sleep(pause)
            wait = self._longer(wait)

    def _refusal(self, reply: Reply) -> ConfigurationError:
        words = said_openly(reply, self._client.hides)
        return ConfigurationError(
            f"the FHIR server refuses the export ({words}): try another --bulk (system, "
            "patient, group/ID), or name the patients with --cohort"
        )

    # Polling

    def _poll(self, url: str) -> Page:
        """Ask until the manifest is there; raises _JobGone, _JobFailed, SourceError."""
        until = time.monotonic() + self._bulk.job
        wait, failures = self._bulk.poll_first, 0
        while True:
            reply, error = self._asked(Outgoing("GET", url, _AS_JSON))
            if reply is not None and reply.status == HTTPStatus.OK:
                page = read_page(reply.body)
                if page is None:
                    raise _JobFailed("the FHIR server's answer is not an export's manifest")
                return page
            waiting = reply is not None and reply.status in (HTTPStatus.ACCEPTED, 429)
            failures = 0 if waiting else failures + 1
            if reply is not None and not waiting:
                self._judge(reply, failures)
            if failures > self._bulk.failures:
                raise error or SourceError("the FHIR server does not tell how the export goes")
            pause = self._pause(reply, wait)
            if time.monotonic() + pause > until:
                raise SourceTimeout(
                    "the FHIR server did not finish the export in the time allowed; the same "
                    "command waits on, --fresh gives it up"
                )
            self._report(_progress(reply))
            self._sleep(pause)
            wait = self._longer(wait)

    def _asked(self, request: Outgoing) -> tuple[Reply | None, SourceError | None]:
        try:
            return self._send(request), None
        except SourceError as error:
            return None, error

    def _judge(self, reply: Reply, failures: int) -> None:
        """Raise if an answer to a question means that the job is lost."""
        words = said_openly(reply, self._client.hides)
        if reply.status in _GONE:
            raise _JobGone("the FHIR server no longer knows the export")
        if reply.status in _REFUSED:
            raise SourceError(f"the FHIR server does not tell how the export goes ({words})")
        found = outcome(reply.body)
        if found is not None and any(issue.code == "transient" for issue in found.issue):
            return
        # Other errors, 500 too, may be the job's end or an accident: asking again tells.
        if reply.status not in _TEMPORARY - {500} and failures >= _ACCIDENTS:
            raise _JobFailed(f"the FHIR server's export failed ({words})")

    def _pause(self, reply: Reply | None, otherwise: float) -> float:
        bulk = self._bulk
        value = reply.headers.get("Retry-After") if reply is not None else None
        told = retry_after(value, datetime.now(UTC), bulk.poll_most)
        return max(otherwise if told is None else told, bulk.poll_least)

    def _longer(self, wait: float) -> float:
        return min(wait * 1.5, self._bulk.poll_most, 60.0)

    # Files

    def _bring(self, job: Job, folder: Path, *, last: bool) -> Json:
        """Fetch all files of a job; gives the directory's manifest, which is written last.

        Raises _JobGone (once files were fetched only if this isn't the ``last`` try), and
        SourceError also for a job that failed, which is given up.
        """
        try:
            return self._files(job, folder, last=last)
        except _JobFailed:
            self.abandon(folder)
            raise

    def _files(self, job: Job, folder: Path, *, last: bool) -> Json:
        problems: dict[str, str] = {}
        whole = True
        total = 0
        for page_url, page in self._pages(job.poll):
            if page is None:
                whole = False
                break
            job.transaction_time = job.transaction_time or page.transaction_time
            download = _Download(self, job, folder, page_url, page, total)
            save_job(folder, job)
            problems |= download.run()
            total += len(download.files)
        if problems:
            self._doubt(job, last=last)
        listed = [f"{name}: {problems[name]}" for name in sorted(problems)]
        if not whole:
            listed.append("a further manifest of the export could not be read")
        lost = frozenset(name for name in problems if not (folder / name).exists())
        manifest = local_manifest(job, lost, whole=whole)
        manifest["extension"]["problems"] = listed
        sync_folder(folder)
        write_safely(folder / MANIFEST, msgspec.json.encode(manifest))
        return manifest

    def _doubt(self, job: Job, *, last: bool) -> None:
        """Raise if files did not come because the server can't be reached, or lost the job.

        What only the server's files lack is a gap in the export; a lost network is none, and
        what was fetched already serves the next try.
        """
        reply, error = self._asked(Outgoing("GET", job.poll, _AS_JSON))
        if reply is None:
            raise error or SourceError("the FHIR server does not answer")
        if reply.status in _GONE and not last:
            raise _JobGone("the FHIR server no longer knows the export")

    def _pages(self, first: str) -> Iterator[tuple[str, Page | None]]:
        """Give the manifest and those it leads to; None for one that can't be read."""
        url: str | None = first
        seen: set[str] = set()
        while url is not None:
            if url in seen or len(seen) >= self._bulk.manifests:
                yield url, None
                return
            seen.add(url)
            page = self._page(url, first)
            yield url, page
            following = page.following if page is not None else None
            url = None if following is None else self._own(urljoin(url, following))

    def _page(self, url: str, first: str) -> Page | None:
        try:
            return self._poll(url)
        except (_JobGone, _JobFailed):
            if url == first:
                raise
            return None

    def fetch(
        self, file: File, url: Callable[[bool], str], path: Path, *, token: bool
    ) -> str | None:
        """Fetch one file, again if it breaks; gives what is wrong with it at last, if anything.

        ``url`` gives the link; told that it was refused, a new one. Raises NotWritten.
        """
        wait = self._client.limits.backoff
        expected = file.count
        problem: str | None = None
        stale = False
        for _ in range(self._bulk.attempts):
            deadline = time.monotonic() + self._bulk.file
            try:
                lines = self._fetcher.fetch(
                    url(stale), path, expected, token=token, deadline=deadline
                )
            except Short as error:
                # If it is as short the second time, it is kept, and known to be short.
                expected, problem = None, error.message
            except SourceError as error:
                stale = isinstance(error, Stale)
                problem = error.message
            else:
                return None if lines >= (file.count or 0) else SHORT
            self._sleep(min(wait, self._client.limits.backoff_ceiling))
            wait *= 2
        return problem

    def renew(self, page_url: str) -> Page | None:
        """Read a manifest again, for links that hold; None if it is not there any more."""
        reply, _ = self._asked(Outgoing("GET", page_url, _AS_JSON))
        return read_page(reply.body) if reply is not None and reply.status == 200 else None

    @property
    def parallel(self) -> int:
        """How many files are fetched at a time."""
        return self._bulk.parallel

    def tell(self, text: str) -> None:
        """Report how far the export is."""
        self._report(text)

    # The end

    def _end(self, job: Job, folder: Path, *, forget: bool = True) -> bool:
        """Tell the server that its files may go; some allow no other export before."""
        told = True
        try:
            self._send(Outgoing("DELETE", job.poll))
        except SourceError:
            # The files expire there by themselves.
            self._report("the server could not be told that the export is over")
            told = False
        if forget:
            forget_job(folder)
        return told

    # Requests to the server itself

    def _send(self, request: Outgoing) -> Reply:
        """Send once, wherever on the server the address lies; to it alone with the token."""
        parts = urlsplit(request.url)
        root = f"{parts.scheme}://{parts.netloc}"
        # What was kept of a job may be of another server than the one asked now.
        own = self._addresses.trusts(request.url)
        auth, headers = (self._auth, self._headers) if own else (NoAuth(), {})
        client = Client(root, auth, self._transport, headers=headers)
        return client.send(replace(request, attempts=1), self._deadline())

    def _own(self, url: str) -> str:
        url = self._addresses.upgraded(url)
        self._addresses.check(url)
        if not self._addresses.trusts(url):
            raise ConfigurationError(
                "the FHIR server runs its exports at another address, which does not get the "
                "token unless it is trusted"
            )
        return url

    def _deadline(self) -> float:
        return time.monotonic() + self._client.limits.fetch


class _Download:
    """The files of one manifest on their way; links are renewed for all threads at once."""

    def __init__(
        self, client: BulkClient, job: Job, folder: Path, page_url: str, page: Page, first: int
    ) -> None:
        self._client = client
        self._job = job
        self._folder = folder
        self._page_url = page_url
        self._first = first
        self._token = page.requires_access_token
        self._lock = threading.Lock()
        self._done = 0
        listed = register(job, page, first)
        self.files = [file for file, _ in listed]
        self._urls = {file.name: urljoin(page_url, url) for file, url in listed}

    def run(self) -> dict[str, str]:
        """Fetch what is not there; gives what is wrong with files, by name."""
        waiting: queue.SimpleQueue[File] = queue.SimpleQueue()
        for file in self.files:
            if not (self._folder / file.name).exists():
                waiting.put(file)
        self._done = len(self.files) - waiting.qsize()
        problems: dict[str, str] = {}
        stop = threading.Event()
        with ThreadPoolExecutor(self._client.parallel, thread_name_prefix="bulk") as pool:
            workers = [
                pool.submit(self._work, waiting, problems, stop)
                for _ in range(self._client.parallel)
            ]
        for worker in workers:
            worker.result()
        return problems

    def _work(
        self, waiting: queue.SimpleQueue[File], problems: dict[str, str], stop: threading.Event
    ) -> None:
        while not stop.is_set():
            try:
                file = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                problem = self._one(file)
            except NotWritten:
                stop.set()
                raise
            if problem is not None:
                problems[file.name] = problem
            with self._lock:
                self._done += 1
                self._client.tell(f"{self._done} of {len(self.files)} files fetched")

    def _one(self, file: File) -> str | None:
        used = ""

        def link(stale: bool) -> str:
            nonlocal used
            used = self._link(file, used if stale else None)
            return used

        return self._client.fetch(file, link, self._folder / file.name, token=self._token)

    def _link(self, file: File, refused: str | None) -> str:
        """Give a file's link; after one was refused, that of the manifest read anew."""
        with self._lock:
            if self._urls[file.name] == refused:
                page = self._client.renew(self._page_url)
                if page is not None:
                    for found, url in register(self._job, page, self._first):
                        self._urls[found.name] = urljoin(self._page_url, url)
                    save_job(self._folder, self._job)
            return self._urls[file.name]


def _kick_off_request(form: Form, base: str) -> Outgoing:
    headers = {"Accept": "application/fhir+json", "Prefer": "respond-async"}
    if not form.post:
        return Outgoing("GET", form.url(base), headers)
    headers["Content-Type"] = "application/fhir+json"
    return Outgoing("POST", f"{base}{form.request.path}", headers, form.body)


def _progress(reply: Reply | None) -> str:
    """Say how far the server is, in its own words if they are fit to be shown."""
    words = reply.headers.get("X-Progress", "") if reply is not None else ""
    if words and words.isprintable():
        return f"the server exports: {words[:_PROGRESS]}"
    return "the server exports" if reply is not None else "the server does not answer"


def _export(folder: Path, manifest: Json) -> Export:
    extension = manifest.get("extension", {})
    reports = (folder / entry["url"] for entry in manifest["error"])
    return Export(
        folder,
        str(manifest["transactionTime"]),
        sum(len(manifest[section]) for section in ("output", "deleted", "error")),
        tuple(extension.get("problems", ())),
        (*extension.get("notes", ()), *_remarks(reports)),
        tuple(folder / entry["url"] for entry in manifest["deleted"]),
    )


def _remarks(reports: Iterable[Path]) -> Iterator[str]:
    """Count what the server's reports hold that is no error, by the issues' codes.

    Their texts may name patients. What can't be read is judged by the directory's reader.
    """
    codes: Counter[str] = Counter()
    for path in reports:
        with contextlib.suppress(OSError), path.open("rb") as file:
            for line in file:
                found = outcome(line)
                for issue in found.issue if found is not None else ():
                    if issue.severity in ("information", "success"):
                        code = str(issue.code)
                        codes[code if _CODE.fullmatch(code) else "other"] += 1
    if codes:
        listed = ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))
        yield f"the FHIR server's report on the export holds remarks: {listed}"


class _Request(msgspec.Struct):
    method: str = ""
    url: str = ""


class _Entry(msgspec.Struct):
    request: _Request = msgspec.field(default_factory=_Request)


class _Deletions(msgspec.Struct):
    entry: tuple[_Entry, ...] = ()


def deleted_references(export: Export) -> Iterator[str]:
    """Go through what the server says was deleted, as ``Type/id``.

    Raises SourceError if a file of deletions is missing or can't be read: what was deleted
    must not live on unnoticed.
    """
    for path in export.deleted:
        try:
            with path.open("rb") as file:
                for line in file:
                    if line.strip():
                        yield from _deleted(line)
        except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise SourceError("the export's deletions can't be read") from error


def _deleted(line: bytes) -> Iterator[str]:
    for entry in msgspec.json.decode(line, type=_Deletions).entry:
        if entry.request.method == "DELETE":
            name = named_by(entry.request.url)
            if name is None:
                raise SourceError("the export's deletions don't say what was deleted")
            yield name
