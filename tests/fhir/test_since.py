"""What changed at a server is asked for where it says that it can tell, and all or nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from service.fhir.auth import NoAuth
from service.fhir.http import Client, Limits, Transport
from service.fhir.plan import Ability, Capabilities
from service.fhir.since import ChangesNotOffered, ServerChanges, changed_since
from service.fhir.source import SiteSearch

SINCE = "2026-11-01T00:00:00Z"
TELLS = Ability(frozenset({"_lastUpdated"}), history=True)
SILENT = Ability(frozenset({"_lastUpdated"}))


class Server(ThreadingHTTPServer):
    """Answers by path, each answer once; notes what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server_address[1]}/fhir"
        self.asked: list[str] = []
        self.answers: dict[str, list[Any]] = {}


class Handler(BaseHTTPRequestHandler):
    """Answers for the server."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answers = self.server.answers.get(self.path.split("?")[0].removeprefix("/fhir/"), [])
        body = json.dumps(answers.pop(0) if answers else {}).encode()
        self.send_response(200 if body != b"{}" else 403)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    """Run a server."""
    found = Server()
    thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def bundle(kind: str, *entries: Any, following: str | None = None) -> dict[str, Any]:
    """Make a Bundle."""
    links = [{"relation": "next", "url": following}] if following else []
    return {"resourceType": "Bundle", "type": kind, "link": links, "entry": list(entries)}


def asked(server: Server, ability: Ability, *kinds: str) -> ServerChanges:
    """Ask the server."""
    client = Client(server.base, NoAuth(), Transport(Limits(attempts=1)))
    able = Capabilities("4.0.1", dict.fromkeys(kinds, ability))
    try:
        return changed_since(client, able, SiteSearch(), (*kinds, "Consent"), SINCE)
    finally:
        client.close()


def found(key: str) -> dict[str, Any]:
    """Make an entry of a search."""
    resource = {"resourceType": "Observation", "id": key, "status": "final"}
    return {"resource": resource, "search": {"mode": "match"}}


def test_changed_resources_and_deletions_of_all_pages_are_found(server: Server) -> None:
    gone = {"request": {"method": "DELETE", "url": "Observation/o3"}}
    other = {"request": {"method": "PUT", "url": "Observation/o1"}}
    server.answers["Observation"] = [
        bundle("searchset", found("o1"), following=f"{server.base}/Observation?page=2"),
        bundle("searchset", found("o2")),
    ]
    server.answers["Observation/_history"] = [
        bundle("history", other, following=f"{server.base}/Observation/_history?page=2"),
        bundle("history", gone),
    ]
    given = asked(server, TELLS, "Observation")
    assert [json.loads(each)["id"] for each in given.resources] == ["o1", "o2"]
    assert (given.deleted, given.unseen) == (("Observation/o3",), ())
    assert f"_lastUpdated=ge{SINCE}" in server.asked[0].replace("%3A", ":")
    assert f"_since={SINCE}" in server.asked[2].replace("%3A", ":")


def test_a_type_without_history_is_named(server: Server) -> None:
    server.answers["Observation"] = [bundle("searchset")]
    given = asked(server, SILENT, "Observation")
    assert given == ServerChanges((), (), ("Observation",))


def test_a_type_that_is_not_searched_by_its_last_change_is_not_asked_for(server: Server) -> None:
    with pytest.raises(ChangesNotOffered, match="does not search Observation"):
        asked(server, Ability(frozenset({"patient"})), "Observation")
    assert server.asked == []


def test_a_refused_search_is_no_empty_one(server: Server) -> None:
    with pytest.raises(ChangesNotOffered, match="Observation could not be read"):
        asked(server, SILENT, "Observation")


def test_a_refused_history_is_no_empty_one(server: Server) -> None:
    server.answers["Observation"] = [bundle("searchset")]
    with pytest.raises(ChangesNotOffered, match="history of Observation"):
        asked(server, TELLS, "Observation")


def test_a_history_that_goes_in_circles_is_not_followed(server: Server) -> None:
    server.answers["Observation"] = [bundle("searchset")]
    again = f"{server.base}/Observation/_history?page=1"
    server.answers["Observation/_history"] = [bundle("history", following=again)] * 3
    with pytest.raises(ChangesNotOffered, match="to its end"):
        asked(server, TELLS, "Observation")


@pytest.mark.parametrize(
    "entry",
    [
        {"request": {"method": "DELETE", "url": "Observation/o3/_history/2"}},
        {"request": {"method": "DELETE", "url": "http://h.example/fhir/Observation/o3"}},
        {"request": {"method": "DELETE"}, "fullUrl": "http://h.example/fhir/Observation/o3"},
        {"request": {"method": "GET", "url": "Observation/o3/_history/2"}},
        {"fullUrl": "http://h.example/fhir/Observation/o3"},
    ],
)
def test_a_deletion_is_told_in_several_ways(server: Server, entry: Any) -> None:
    server.answers["Observation"] = [bundle("searchset")]
    server.answers["Observation/_history"] = [bundle("history", entry)]
    assert asked(server, TELLS, "Observation").deleted == ("Observation/o3",)


@pytest.mark.parametrize(
    "page",
    [
        bundle("searchset"),
        {"resourceType": "Observation"},
        bundle("history", {"request": {"method": "DELETE", "url": "Observation?code=1"}}),
        bundle("history", {"request": {"method": "DELETE", "url": "Patient/o3"}}),
        bundle(
            "history",
            {
                "resource": {
                    "resourceType": "OperationOutcome",
                    "issue": [{"severity": "warning", "code": "incomplete"}],
                }
            },
        ),
    ],
    ids=["a search", "no Bundle", "a condition", "another type", "a warning"],
)
def test_a_history_that_is_not_understood_is_no_empty_one(server: Server, page: Any) -> None:
    server.answers["Observation"] = [bundle("searchset")]
    server.answers["Observation/_history"] = [page]
    with pytest.raises(ChangesNotOffered, match="history of Observation"):
        asked(server, TELLS, "Observation")
