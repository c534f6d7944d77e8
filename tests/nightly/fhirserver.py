"""A FHIR server that keeps versions, and that tests can disturb between any two requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
TYPES = ("Group", "List", "ResearchSubject", "ResearchStudy", "Patient")
ALL = ("create", "read", "update", "search-type")


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Json | None


@dataclass
class Answer:
    """What a fault answers instead of the server; ``None`` as status: no answer at all."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    body: Json | None = None


class FhirServer:
    """Resources by type and id, each with all its versions.

    ``before`` is asked ahead of each request, ``after`` when its work is done: either may
    give an Answer instead, or change resources as a person does meanwhile.
    """

    def __init__(self, types: tuple[str, ...] = TYPES) -> None:
        self.types = types
        self.resources: dict[tuple[str, str], list[Json]] = {}
        self.gone: set[tuple[str, str]] = set()
        self.asked: list[Asked] = []
        self.before: Callable[[Asked], Answer | None] = lambda asked: None
        self.after: Callable[[Asked], Answer | None] = lambda asked: None
        self.heeds_if_none_exist = True
        self.gives_back = True
        self.base = ""
        self._next = 0

    # --- as a person at the server

    def put(self, resource: Json) -> Json:
        """Write a version, whoever else wrote meanwhile."""
        place = (resource["resourceType"], resource["id"])
        versions = self.resources.setdefault(place, [])
        meta = {**resource.get("meta", {}), "versionId": str(len(versions) + 1)}
        versions.append({**resource, "meta": meta})
        return versions[-1]

    def change(self, kind: str, name: str, **fields: Any) -> None:
        """Change some fields of a resource."""
        self.put({**self.get(kind, name), **fields})

    def remove(self, kind: str, name: str) -> None:
        """Delete a resource."""
        self.gone.add((kind, name))

    def get(self, kind: str, name: str) -> Json:
        """Give the newest version."""
        return self.resources[kind, name][-1]

    def all(self, kind: str) -> list[Json]:
        """List the newest versions of a type."""
        return [
            versions[-1]
            for place, versions in sorted(self.resources.items())
            if place[0] == kind and place not in self.gone
        ]

    def only(self, kind: str) -> Json:
        """Give the one resource of a type."""
        (found,) = self.all(kind)
        return found

    @property
    def writes(self) -> list[Asked]:
        """List the requests that were to change something."""
        return [one for one in self.asked if one.method in ("POST", "PUT")]

    # --- as a server

    def answer(self, asked: Asked) -> Answer:
        parts = urlsplit(asked.path)
        place = parts.path.removeprefix("/fhir/").split("/")
        if place == ["metadata"]:
            offered = [
                {"type": one, "interaction": [{"code": code} for code in ALL]} for one in self.types
            ]
            return Answer(200, body={
                "resourceType": "CapabilityStatement", "fhirVersion": "4.0.1",
                "rest": [{"mode": "server", "resource": offered}],
            })  # fmt: skip
        kind = place[0]
        if kind not in self.types:
            return Answer(404, body={"resourceType": "OperationOutcome", "issue": [
                {"severity": "error", "code": "not-supported"}]})  # fmt: skip
        if len(place) == 2:
            return self._one(asked, kind, place[1])
        if asked.method == "POST":
            assert asked.body is not None
            if self.heeds_if_none_exist:
                found = self._matching(kind, parse_qs(asked.headers["If-None-Exist"]))
                if len(found) > 1:
                    return Answer(412)
                if found:
                    return self._written(200, found[0])
            self._next += 1
            return self._written(201, self.put({**asked.body, "id": f"s{self._next}"}))
        matching = self._matching(kind, parse_qs(parts.query))
        entries = [{"resource": one, "search": {"mode": "match"}} for one in matching]
        return Answer(200, body={"resourceType": "Bundle", "type": "searchset", "entry": entries})

    def _one(self, asked: Asked, kind: str, name: str) -> Answer:
        if (kind, name) in self.gone:
            return Answer(410)
        if (kind, name) not in self.resources:
            return Answer(404)
        now = self.get(kind, name)
        if asked.method == "GET":
            return self._written(200, now)
        if asked.headers.get("If-Match") != f'W/"{now["meta"]["versionId"]}"':
            return Answer(412)
        assert asked.body is not None
        assert asked.body["id"] == name
        return self._written(200, self.put(asked.body))

    def _written(self, status: int, resource: Json) -> Answer:
        version = resource["meta"]["versionId"]
        place = f"{self.base}/{resource['resourceType']}/{resource['id']}/_history/{version}"
        headers = {"ETag": f'W/"{version}"', "Location": place}
        return Answer(status, headers, resource)

    def _matching(self, kind: str, query: dict[str, list[str]]) -> list[Json]:
        found = self.all(kind)
        for value in query.get("identifier", ()):
            wanted = value.rpartition("|")
            found = [
                one for one in found
                if any(each["value"] == wanted[2] and (not wanted[0] or each["system"] == wanted[0])
                       for each in one.get("identifier", ()))
            ]  # fmt: skip
        for value in query.get("individual", ()):
            found = [one for one in found if one["individual"]["reference"] == value]
        return found


@contextmanager
def serving(server: FhirServer) -> Iterator[FhirServer]:
    """Serve on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            asked = Asked(self.command, self.path, dict(self.headers), body)
            server.asked.append(asked)
            answer = server.before(asked)
            if answer is None:
                answer = server.answer(asked)
                answer = server.after(asked) or answer
            if answer.status is None:
                self.close_connection = True
                return
            minimal = self.command in ("POST", "PUT") and not server.gives_back
            text = b"" if answer.body is None or minimal else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/fhir+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.base = f"http://127.0.0.1:{http.server_address[1]}/fhir"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
