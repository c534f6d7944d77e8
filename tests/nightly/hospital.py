"""A hospital that changes: its state, and a server of Bulk Data exports of it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.fhir.bulkserver import Handler, Seen, ndjson
from tests.nightly.making import Json, write_types

_BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
REFERRED = ("Medication", "ResearchStudy")


def owner(resource: Json) -> str | None:
    """Give the id of the patient that a resource names, if it does so by reference."""
    if resource["resourceType"] == "Patient":
        return str(resource["id"])
    for name in ("subject", "patient", "individual"):
        reference = resource.get(name, {}).get("reference")
        if reference is not None:
            return str(reference).rsplit("/", 1)[-1]
    return None


@dataclass
class Hospital:
    """What a hospital has on record; each change counts the clock on by a minute."""

    resources: dict[str, Json] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    clock: int = 1000

    def put(self, resource: Json) -> None:
        """Create or update a resource."""
        self.clock += 1
        name = f"{resource['resourceType']}/{resource['id']}"
        self.resources[name] = resource
        self.changed[name] = self.clock
        self.deleted.pop(name, None)

    def delete(self, name: str) -> None:
        """Delete a resource."""
        self.clock += 1
        del self.resources[name]
        del self.changed[name]
        self.deleted[name] = self.clock

    def since(self, clock: int) -> list[Json]:
        """Give what changed at or after a time."""
        return [each for name, each in self.resources.items() if self.changed[name] >= clock]

    def patients(self) -> list[str]:
        """List the ids of all Patients."""
        return sorted(name[8:] for name in self.resources if name.startswith("Patient/"))

    def of(self, patients: set[str]) -> list[Json]:
        """Give the records of patients, and what belongs to none."""
        return [
            each
            for each in self.resources.values()
            if each["resourceType"] in REFERRED or owner(each) in patients
        ]

    def export(self, folder: Path) -> Path:
        """Write everything as files."""
        return write_types(folder, self.resources.values())


def instant(clock: int) -> str:
    """Write a time of the hospital's clock as an instant."""
    return (_BEGIN + clock * _MINUTE).isoformat().replace("+00:00", "Z")


class Server(ThreadingHTTPServer):
    """Exports a hospital; ``takes`` names the parameters it knows beyond `_type`.

    Resources come in another order each time. The types in ``lose`` are left out, and an
    error says so.
    """

    daemon_threads = True

    def __init__(self, hospital: Hospital) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hospital = hospital
        self.base = f"http://127.0.0.1:{self.server_address[1]}/fhir"
        self.root = self.base.removesuffix("/fhir")
        self.lock = threading.Lock()
        self.seen: list[Seen] = []
        self.faults: dict[str, list[Any]] = {}
        self.down = False
        self.takes = {"_since", "patient"}
        self.lose: set[str] = set()
        self.chance = random.Random(0)  # noqa: S311 - an order, nothing secret
        self.files: dict[str, bytes] = {}
        self.manifests: dict[str, Json] = {}
        self.kick_offs: list[dict[str, list[str]]] = []

    def answer(self, handler: Handler, seen: Seen) -> None:
        """Answer honestly."""
        if seen.path.endswith("/$export"):
            self._kick_off(handler, seen)
        elif seen.path in self.manifests and seen.method == "DELETE":
            handler.reply(202)
        elif seen.path in self.manifests:
            handler.reply(200, json.dumps(self.manifests[seen.path]).encode())
        elif seen.path in self.files:
            handler.reply(200, self.files[seen.path], Content_Type="application/fhir+ndjson")
        else:
            handler.reply(404)

    def _kick_off(self, handler: Handler, seen: Seen) -> None:
        asked = dict(seen.query)
        if seen.method == "POST":
            for each in json.loads(seen.body)["parameter"]:
                value = next(each[key] for key in each if key.startswith("value"))
                text = value["reference"] if isinstance(value, dict) else str(value)
                asked.setdefault(each["name"], []).append(text)
        if {"_since", "patient"} & asked.keys() - self.takes:
            handler.reply(400)
            return
        with self.lock:
            self.kick_offs.append(asked)
            handler.reply(202, Content_Location=f"{self.root}{self._export(asked)}")

    def _export(self, asked: dict[str, list[str]]) -> str:
        """Make the files of a job; gives its path."""
        number = len(self.kick_offs)
        hospital = self.hospital
        types = set(",".join(asked.get("_type", [])).split(","))
        found = list(hospital.resources.values())
        gone: list[str] = []
        if "_since" in asked:
            clock = _clock(asked["_since"][0])
            found = hospital.since(clock)
            gone = [name for name, when in hospital.deleted.items() if when >= clock]
        if "patient" in asked:
            found = hospital.of({each.removeprefix("Patient/") for each in asked["patient"]})
        self.chance.shuffle(found)
        kinds: dict[str, list[Json]] = {}
        for each in found:
            if each["resourceType"] in types:
                kinds.setdefault(each["resourceType"], []).append(each)
        output = []
        for kind, resources in sorted(kinds.items()):
            path = f"/files/{number}/{kind}"
            if kind in self.lose:
                continue
            self.files[path] = ndjson(resources)
            output.append({"type": kind, "url": self.root + path, "count": len(resources)})
        deletions = []
        if gone:
            entries = [{"request": {"method": "DELETE", "url": name}} for name in gone]
            bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
            path = f"/files/{number}/gone"
            self.files[path] = ndjson([bundle])
            deletions = [{"type": "Bundle", "url": self.root + path, "count": 1}]
        errors = []
        if self.lose:
            issue = {"severity": "error", "code": "exception"}
            self.files[f"/files/{number}/errors"] = ndjson(
                [{"resourceType": "OperationOutcome", "issue": [issue]}]
            )
            errors = [{"type": "OperationOutcome", "url": f"{self.root}/files/{number}/errors"}]
        job = f"/status/{number}"
        self.manifests[job] = {
            "transactionTime": instant(hospital.clock),
            "request": f"{self.base}/$export",
            "requiresAccessToken": False,
            "output": output,
            "deleted": deletions,
            "error": errors,
        }
        return job

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: some clients are killed."""


def _clock(text: str) -> int:
    return (datetime.fromisoformat(text) - _BEGIN) // _MINUTE


@contextmanager
def serving(hospital: Hospital) -> Iterator[Server]:
    """Run the hospital's server."""
    server = Server(hospital)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
