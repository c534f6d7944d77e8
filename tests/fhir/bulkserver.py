"""A server of Bulk Data exports, honest by default, that can be made to misbehave anywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

# Faults of ``tests.faults`` know their own handler only, of which they use what both have.
Fault = Callable[[Any], None]

PATIENTS = [{"resourceType": "Patient", "id": name} for name in ("p1", "p2")]
RESULTS = [
    {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "subject": {"reference": "Patient/p1"},
        "code": {"text": "x" * 200},
    }
    for number in range(50)
]


def ndjson(resources: list[Any]) -> bytes:
    """Write resources as NDJSON."""
    return b"".join(json.dumps(resource).encode() + b"\n" for resource in resources)


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """Answers for the server."""

    protocol_version = "HTTP/1.1"
    server: BulkServer

    def do_GET(self) -> None:
        self._any("GET")

    def do_POST(self) -> None:
        self._any("POST")

    def do_DELETE(self) -> None:
        self._any("DELETE")

    def _any(self, method: str) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(method, parts.path, parse_qs(parts.query), headers, body)
        if self.server.down:
            self.close_connection = True
            return
        with self.server.lock:
            self.server.seen.append(seen)
            faults = self.server.faults.get(f"{method} {parts.path}")
            fault = faults.pop(0) if faults else None
        if fault is not None:
            fault(self)
        else:
            self.server.answer(self, seen)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; header names are written with underscores."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class BulkServer(ThreadingHTTPServer):
    """Answers a kick-off, polls, manifests and files; faults come first, each once.

    ``faults``: by method and path, in the order in which they are to happen. ``metadata``:
    its CapabilityStatement; without one it has none. ``down``: it hangs up on everybody.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server_address[1]}/fhir"
        self.root = self.base.removesuffix("/fhir")
        self.lock = threading.Lock()
        self.seen: list[Seen] = []
        self.faults: dict[str, list[Fault]] = {}
        self.files = {"/files/1": ndjson(PATIENTS), "/files/2": ndjson(RESULTS)}
        self.metadata: dict[str, Any] | None = None
        self.down = False
        self.pending = 1
        self.jobs: list[str] = []
        self.manifest: dict[str, Any] = {
            "transactionTime": "2026-11-01T00:00:00Z",
            "request": f"{self.base}/$export",
            "requiresAccessToken": True,
            "output": [
                {"type": "Patient", "url": f"{self.root}/files/1", "count": 2},
                {"type": "Observation", "url": f"{self.root}/files/2", "count": 50},
            ],
            "error": [],
        }
        self.manifests: dict[str, dict[str, Any]] = {}

    def answer(self, handler: Handler, seen: Seen) -> None:
        """Answer honestly."""
        if seen.path.endswith("/$export"):
            job = f"/status/{len(self.jobs) + 1}"
            self.jobs.append(job)
            handler.reply(202, Content_Location=f"{self.root}{job}")
        elif seen.path == "/fhir/metadata" and self.metadata is not None:
            handler.reply(200, json.dumps(self.metadata).encode())
        elif seen.path in self.jobs:
            self._job(handler, seen)
        elif seen.path in self.manifests:
            handler.reply(200, json.dumps(self.manifests[seen.path]).encode())
        elif seen.path in self.files:
            handler.reply(200, self.files[seen.path], Content_Type="application/fhir+ndjson")
        else:
            handler.reply(404)

    def _job(self, handler: Handler, seen: Seen) -> None:
        if seen.method == "DELETE":
            self.jobs[self.jobs.index(seen.path)] = "gone"
            handler.reply(202)
        elif self.pending > 0:
            self.pending -= 1
            handler.reply(202, X_Progress="half", Retry_After="0")
        else:
            handler.reply(200, json.dumps(self.manifest).encode())

    def hold(self, resources: Iterable[Any], *, each: int = 50, counts: bool = True) -> None:
        """Let the export be of these resources: files of one type, ``each`` in a file."""
        by_type: dict[str, list[Any]] = {}
        for resource in resources:
            by_type.setdefault(resource["resourceType"], []).append(resource)
        self.files = {}
        output = []
        for kind, found in by_type.items():
            for start in range(0, len(found), each):
                path = f"/files/{len(self.files) + 1}"
                part = found[start : start + each]
                self.files[path] = ndjson(part)
                entry = {"type": kind, "url": f"{self.root}{path}"}
                output.append({**entry, "count": len(part)} if counts else entry)
        self.manifest["output"] = output

    def fail(self, what: str, *faults: Fault, times: int = 1) -> None:
        """Let requests (``GET /files/1``) go wrong, one after the other."""
        self.faults.setdefault(what, []).extend(list(faults) * times)

    def asked(self, method: str, path: str) -> list[Seen]:
        """Give the requests of a method to paths that begin so."""
        with self.lock:
            return [
                seen for seen in self.seen if seen.method == method and seen.path.startswith(path)
            ]

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: some faults hang up."""


@contextmanager
def bulk_server() -> Iterator[BulkServer]:
    """Run a server that exports two patients and fifty results."""
    server = BulkServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """Make a fault of an answer."""
    return lambda handler: handler.reply(code, body, **headers)
