"""A FHIR server that misbehaves on demand, for what no mocked reply can show."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from service.fhir.http import Limits

# Waits short enough for tests, in the proportions of real ones.
QUICK = Limits(
    connect=2.0,
    read=0.5,
    fetch=10.0,
    attempts=3,
    backoff=0.001,
    backoff_ceiling=0.002,
    retry_after=0.01,
    circuit_failures=1000,
)


def capability(
    types: Mapping[str, list[str]],
    *,
    version: str = "4.0.1",
    includes: Mapping[str, list[str]] = {},
) -> dict[str, Any]:
    """Make a CapabilityStatement from search parameters by type."""
    return {
        "resourceType": "CapabilityStatement",
        "fhirVersion": version,
        "rest": [
            {
                "mode": "server",
                "resource": [
                    {
                        "type": kind,
                        "interaction": [{"code": "read"}, {"code": "search-type"}],
                        "searchParam": [{"name": name, "type": "token"} for name in names],
                        "searchInclude": (includes or {}).get(kind, []),
                    }
                    for kind, names in types.items()
                ],
            }
        ],
    }


def bundle(
    *resources: dict[str, Any],
    following: str | None = None,
    total: int | None = None,
    outcome: dict[str, Any] | None = None,
    modes: bool = True,
) -> dict[str, Any]:
    """Make a searchset of resources, with a next link, a total and an OperationOutcome."""
    entries: list[dict[str, Any]] = [{"resource": resource} for resource in resources]
    if modes:
        for entry in entries:
            entry["search"] = {"mode": "match"}
    if outcome is not None:
        entries.append({"resource": outcome, "search": {"mode": "outcome"}})
    found: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset", "entry": entries}
    if following is not None:
        found["link"] = [{"relation": "next", "url": following}]
    if total is not None:
        found["total"] = total
    return found


def outcome(severity: str, code: str, detail: str | None = None, text: str = "") -> dict[str, Any]:
    """Make an OperationOutcome with one issue."""
    issue: dict[str, Any] = {"severity": severity, "code": code, "diagnostics": text}
    if detail is not None:
        issue["details"] = {"coding": [{"system": "urn:example:outcomes", "code": detail}]}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def condition(found: str, patient: str = "p1") -> dict[str, Any]:
    """Make a Condition of a patient."""
    return {
        "resourceType": "Condition",
        "id": found,
        "subject": {"reference": f"Patient/{patient}"},
        "code": {"text": "a finding"},
    }


def observation(
    found: str, when: str | None = "2026-03-01", code: str = "718-7", **more: object
) -> dict[str, Any]:
    """Make an Observation of patient p1."""
    resource: dict[str, Any] = {
        "resourceType": "Observation",
        "id": found,
        "status": "final",
        "subject": {"reference": "Patient/p1"},
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        **more,
    }
    if when is not None:
        resource["effectiveDateTime"] = when
    return resource


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.seen.append(self.path)
        fault = self.server.faults.get(path)
        if fault is not None and self.server.times[path] > 0:
            self.server.times[path] -= 1
            fault(self)
            return
        answer = self.server.answers.get(path)
        self.reply(200 if answer is not None else 404, answer or outcome("error", "not-found"))

    def reply(self, status: int, answer: object, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON answer."""
        body = json.dumps(answer).encode()
        headers = headers or {}
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.compress(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class FaultyServer(ThreadingHTTPServer):
    """Answers by path; a fault replaces the answer as many times as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, object] = {}
        self.faults: dict[str, Callable[[_Handler], None]] = {}
        self.times: dict[str, int] = {}
        self.seen: list[str] = []

    def fail(self, path: str, fault: Callable[[_Handler], None], times: int = 1_000) -> None:
        """Let a path fail for a number of times."""
        self.faults[path] = fault
        self.times[path] = times

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients here hang up on purpose."""


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Run a server with patient p1, who has one Condition."""
    server = FaultyServer()
    server.answers = {
        "/metadata": capability({"Patient": ["_id"], "Condition": ["patient"]}),
        "/Patient/p1": {"resourceType": "Patient", "id": "p1"},
        "/Condition": bundle(condition("c1")),
    }
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reset(handler: _Handler) -> None:
    """Break the connection with a reset, without a word."""
    # Lingering for zero seconds makes the kernel send RST instead of FIN.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()
    handler.rfile.close()


def cut(handler: _Handler) -> None:
    """Announce a whole body and send half of it."""
    body = json.dumps(bundle(condition("c1"))).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/fhir+json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def cut_chunked(handler: _Handler) -> None:
    """Send a chunked body that never ends properly."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/fhir+json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'10\r\n{"resourceType":\r\n')
    handler.close_connection = True


def drip(handler: _Handler) -> None:
    """Send a body so slowly that no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with suppress(OSError):
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    handler.close_connection = True


def silent(handler: _Handler) -> None:
    """Say nothing for longer than the client waits."""
    time.sleep(1.0)
    handler.close_connection = True


def bomb(handler: _Handler) -> None:
    """Send a small body that unpacks to a large one."""
    handler.reply(200, "0" * 5_000_000, {"Content-Encoding": "gzip"})


def broken_gzip(handler: _Handler) -> None:
    """Claim gzip and send something else."""
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", "9")
    handler.end_headers()
    handler.wfile.write(b"not zipped"[:9])
