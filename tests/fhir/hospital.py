"""A small FHIR server with search, batch and paging, honest by default, that can be made not to be.

It knows just what a search of many patients asks for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.faults import outcome

Json = dict[str, Any]
PARAMETERS = {
    "Patient": ["_id", "identifier", "link"],
    "Condition": ["_id", "patient", "code"],
    "Observation": ["_id", "patient", "combo-code", "date"],
    "MedicationRequest": ["_id", "patient"],
    "Medication": ["_id"],
    "Procedure": ["_id", "patient"],
}
WHO = ("patient", "subject", "individual")
# When what was there from the beginning was changed last.
_LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Manners:
    """How the server behaves.

    ``lists``: which of several values it understands: all, first, last, none, others (all
    patients' whatever is named) or a number of them. ``totals``: right, none or wrong.
    ``batch``: good, undeclared, refused, empty or shuffled. ``ceiling``: matches after which
    a reply ends without a word. ``page``: the most matches on a page. ``unknown``: parameters
    that are refused; ``ignored``: those that are passed over. ``history``: what it tells of
    deletions: nothing (None), or with addresses of resources (plain) or of versions (versions).
    ``clock``: what its clock is off by. ``counts``: it counts (`_summary=count`) what is
    beyond the ceiling.
    """

    lists: str | int = "all"
    totals: str = "right"
    batch: str = "good"
    ceiling: int | None = None
    page: int = 50
    refused: dict[str, int] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    outcomes: dict[str, Json] = field(default_factory=dict)
    parameters: dict[str, list[str]] = field(default_factory=lambda: dict(PARAMETERS))
    history: str | None = None
    clock: timedelta = timedelta()
    counts: bool = False


@dataclass(frozen=True)
class Asked:
    """One request: what was asked for."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]

    def value(self, name: str) -> str:
        """Give a parameter's value."""
        return dict(self.query).get(name, "")


class Hospital(ThreadingHTTPServer):
    """The server; ``fault`` may answer a request itself, and then gives True."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, resources: Iterable[Json] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base = f"http://127.0.0.1:{self.server_address[1]}/r4"
        self.manners = Manners()
        self.held: dict[str, dict[str, Json]] = {}
        self.changed: dict[str, datetime] = {}
        self.deleted: dict[str, datetime] = {}
        self.seen: list[Asked] = []
        self.lock = threading.Lock()
        self.fault: Callable[[Any, Asked], bool] = lambda handler, asked: False
        self.put(*resources)

    def put(self, *resources: Json) -> None:
        """Store resources."""
        for each in resources:
            self.held.setdefault(each["resourceType"], {})[each["id"]] = each

    def change(self, resource: Json) -> None:
        """Create or update a resource now, which the server tells by its clock."""
        self.put(resource)
        name = f"{resource['resourceType']}/{resource['id']}"
        self.changed[name] = self.now()
        self.deleted.pop(name, None)

    def delete(self, name: str) -> None:
        """Delete a resource now."""
        kind, _, found = name.partition("/")
        del self.held[kind][found]
        self.changed.pop(name, None)
        self.deleted[name] = self.now()

    def now(self) -> datetime:
        """Give the time by the server's clock."""
        return datetime.now(UTC) + self.manners.clock

    def asked(self, path: str) -> list[Asked]:
        """List the requests for a path."""
        with self.lock:
            return [each for each in self.seen if each.path == path]

    def answer(self, path: str, query: list[tuple[str, str]]) -> tuple[int, Json]:
        """Answer a GET below the base."""
        kind, _, found = path.partition("/")
        if kind == "metadata":
            return 200, self._metadata()
        if kind in self.manners.refused:
            return self.manners.refused[kind], outcome("error", "forbidden")
        if found == "_history":
            return self._history(kind, dict(query))
        if found:
            held = self.held.get(kind, {}).get(found)
            return (200, held) if held else (404, outcome("error", "not-found"))
        return self._search(kind, query)

    def _metadata(self) -> Json:
        batch = [] if self.manners.batch == "undeclared" else [{"code": "batch"}]
        interactions = ["read", "search-type"]
        if self.manners.history is not None:
            interactions.append("history-type")
        resources = [
            {
                "type": kind,
                "interaction": [{"code": each} for each in interactions],
                "searchParam": [{"name": name, "type": "token"} for name in names],
                "searchInclude": ["MedicationRequest:medication"],
            }
            for kind, names in self.manners.parameters.items()
        ]
        rest = [{"mode": "server", "interaction": batch, "resource": resources}]
        return {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": rest}

    def _history(self, kind: str, asked: dict[str, str]) -> tuple[int, Json]:
        if self.manners.history is None:
            return 400, outcome("error", "not-supported")
        since = datetime.fromisoformat(asked["_since"])
        tail = "/_history/2" if self.manners.history == "versions" else ""
        entries: list[Json] = [
            {"request": {"method": "DELETE", "url": f"{name}{tail}"}}
            for name, when in self.deleted.items()
            if name.startswith(f"{kind}/") and when >= since
        ]
        return 200, {"resourceType": "Bundle", "type": "history", "entry": entries}

    def _search(self, kind: str, query: list[tuple[str, str]]) -> tuple[int, Json]:
        asked = dict(query)
        for name in asked:
            if name in self.manners.unknown:
                return 400, outcome("error", "not-supported")
        found = [
            each
            for each in self.held.get(kind, {}).values()
            if all(self._fits(each, name, value) for name, value in query)
        ]
        everything = len(found)
        if self.manners.ceiling is not None:
            found = found[: self.manners.ceiling]
        total = len(found)
        start = int(asked.get("_page", "0"))
        size = min(int(asked.get("_count", "50")), self.manners.page)
        shown = [] if asked.get("_summary") == "count" else found[start : start + size]
        bundle: Json = {
            "resourceType": "Bundle",
            "type": "searchset",
            "entry": [{"resource": each, "search": {"mode": "match"}} for each in shown],
        }
        if "_include" in asked:
            drugs = {each.get("medicationReference", {}).get("reference") for each in shown}
            held = self.held.get("Medication", {}).values()
            for each in held:
                if f"Medication/{each['id']}" in drugs:
                    bundle["entry"].append({"resource": each, "search": {"mode": "include"}})
        if kind in self.manners.outcomes:
            warning = self.manners.outcomes[kind]
            bundle["entry"].append({"resource": warning, "search": {"mode": "outcome"}})
        if self.manners.totals != "none":
            bundle["total"] = total + (3 if self.manners.totals == "wrong" else 0)
        if self.manners.counts and asked.get("_summary") == "count":
            bundle["total"] = everything
        if start + size < total and asked.get("_summary") != "count":
            form = urlencode([*((n, v) for n, v in query if n != "_page"), ("_page", start + size)])
            bundle["link"] = [{"relation": "next", "url": f"{self.base}/{kind}?{form}"}]
        return 200, bundle

    def _fits(self, resource: Json, name: str, value: str) -> bool:
        if name in self.manners.ignored:
            return True
        if name == "_lastUpdated":
            own = f"{resource['resourceType']}/{resource['id']}"
            since = datetime.fromisoformat(value.removeprefix("ge"))
            return self.changed.get(own, _LONG_AGO) >= since
        if name == "_id":
            return resource["id"] in value.split(",")
        if name in WHO:
            values = self._understood([each.removeprefix("Patient/") for each in value.split(",")])
            # Servers also know patients by what a resource itself does not say.
            named = resource.get("_known") or resource.get("subject") or {}
            return values is None or named.get("reference", "").removeprefix("Patient/") in values
        if name == "link":
            named = {each["other"]["reference"] for each in resource.get("link", [])}
            return bool(named & set(value.split(",")))
        if name == "link:missing":
            return ("link" not in resource) is (value == "true")
        if name == "identifier":
            held = resource.get("identifier", [])
            tokens = {f"{each['system']}|{each['value']}" for each in held}
            return value.replace("\\,", ",").replace("\\|", "|") in tokens
        if name in ("code", "combo-code"):
            codes: set[str] = set()
            for each in resource.get("code", {}).get("coding", []):
                system = each.get("system", "")
                codes |= {each["code"], f"{system}|{each['code']}", f"{system}|"}
            return bool(codes & set(value.split(",")))
        if name == "code:missing":
            return not resource.get("code", {}).get("coding")
        if name == "code:text":
            text = resource.get("code", {}).get("text", "").lower()
            return any(text.startswith(each) for each in value.split(","))
        return True

    def _understood(self, values: list[str]) -> set[str] | None:
        lists = self.manners.lists
        if len(values) == 1 or lists == "all":
            return set(values)
        if lists == "others":
            return None
        if isinstance(lists, int):
            return set(values[:lists])
        return {"first": {values[0]}, "last": {values[-1]}, "none": set[str]()}[lists]

    def batch(self, bundle: Json) -> tuple[int, Json]:
        """Answer a batch."""
        manner = self.manners.batch
        if manner == "refused":
            return 405, outcome("error", "not-supported")
        entries = []
        for each in bundle["entry"]:
            parts = urlsplit(each["request"]["url"])
            status, found = self.answer(parts.path, parse_qsl(parts.query))
            if manner == "empty":
                status, found = 200, {"resourceType": "Bundle", "type": "searchset", "total": 0}
            entries.append({"response": {"status": f"{status} X"}, "resource": found})
        if manner == "shuffled":
            entries = [entries[0], *reversed(entries[1:-1]), entries[-1]]
        return 200, {"resourceType": "Bundle", "type": "batch-response", "entry": entries}

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients here hang up on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet, at once: else each reply waits for an acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Hospital

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self._any("GET", parts.path, parse_qsl(parts.query), None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = urlsplit(self.path).path
        if path.endswith("/_search"):
            self._any("POST", path.removesuffix("/_search"), parse_qsl(body), None)
        else:
            self._any("POST", path, [], json.loads(body))

    def _any(self, method: str, path: str, query: list[tuple[str, str]], body: Any) -> None:
        path = path.removeprefix("/r4").strip("/")
        asked = Asked(method, path, tuple(query))
        with self.server.lock:
            self.server.seen.append(asked)
        if self.server.fault(self, asked):
            return
        if body is not None:
            self.reply(*self.server.batch(body))
        else:
            self.reply(*self.server.answer(path, query))

    def reply(self, status: int, answer: object) -> None:
        """Send a whole JSON answer."""
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Tell the time by the server's clock."""
        return format_datetime(self.server.now(), usegmt=True)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def running(resources: Iterable[Json] = ()) -> Iterator[Hospital]:
    """Run a server with these resources."""
    server = Hospital(resources)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
