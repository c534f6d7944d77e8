"""Bulk Data exports: whatever happens on the way, what is missing is known (issue: nightly)."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import responses

from service.errors import ConfigurationError, SourceError, SourceTimeout, UsageError
from service.fhir import download
from service.fhir.auth import BearerToken
from service.fhir.bulk import (
    BulkClient,
    BulkLimits,
    BulkRequest,
    Export,
    deleted_references,
)
from service.fhir.bulkjob import Form, eased
from service.fhir.download import Addresses, NotWritten
from service.fhir.files import FileSource
from service.fhir.http import Reply
from service.fhir.record import Reading
from service.fhir.source import NOT_OFFERED, SiteSearch, Wanted
from tests.faults import QUICK, capability, cut, cut_chunked, outcome, reset, silent
from tests.fhir.bulkserver import (
    PATIENTS,
    RESULTS,
    BulkServer,
    Handler,
    Seen,
    bulk_server,
    ndjson,
    status,
)

BULK = BulkLimits(
    job=5.0, poll_least=0.001, poll_first=0.001, poll_most=0.05, failures=4, busy=2.0, parallel=2
)
SYSTEM = BulkRequest("system", ("Patient", "Observation"))
BASE = "https://fhir.example.org/r4"


@pytest.fixture
def server() -> Iterator[BulkServer]:
    with bulk_server() as running:
        yield running


def client(server: BulkServer | str, **more: Any) -> BulkClient:
    base = server if isinstance(server, str) else server.base
    more = {"auth": BearerToken("secret"), "limits": QUICK, "bulk": BULK, **more}
    return BulkClient(base, **more)


def export(server: BulkServer, folder: Path, request: BulkRequest = SYSTEM, **more: Any) -> Export:
    bulk = client(server, **more)
    try:
        return bulk.export(request, folder)
    finally:
        bulk.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def incomplete(folder: Path, patient: str = "p1") -> set[str]:
    """Name the types that the reader of the directory takes as incomplete."""
    found = FileSource(folder).fetch(patient, Wanted({}))
    return {kind for kind, reading in found.readings.items() if not reading.complete}


WHOLE = {"Patient.00001.ndjson": ndjson(PATIENTS), "Observation.00002.ndjson": ndjson(RESULTS)}


def assert_whole(folder: Path) -> None:
    assert {name: text for name, text in contents(folder).items() if name != "manifest.json"} == (
        WHOLE
    )


# The whole way


def test_an_export_ends_as_a_directory_that_the_reader_takes_as_complete(
    server: BulkServer, tmp_path: Path
) -> None:
    found = export(server, tmp_path / "export")
    assert found.problems == ()
    assert found.transaction_time == "2026-11-01T00:00:00Z"
    assert_whole(tmp_path / "export")
    assert not {"Observation"} & incomplete(tmp_path / "export")
    assert "Condition" in incomplete(tmp_path / "export")  # not in _type
    source = FileSource(tmp_path / "export")
    assert sorted(source.patient_ids()) == ["p1", "p2"]
    assert len(source.fetch("p1", Wanted({})).items) == 51


@pytest.mark.parametrize(
    ("level", "path"),
    [
        ("system", "/fhir/$export"),
        ("patient", "/fhir/Patient/$export"),
        ("group/G.7", "/fhir/Group/G.7/$export"),
    ],
)
def test_system_patients_and_group_are_exported(
    server: BulkServer, tmp_path: Path, level: str, path: str
) -> None:
    since = "2026-10-01T00:00:00+02:00"
    filters = ("Observation?status=final&code=a%2Cb", "Observation?status=amended")
    export(server, tmp_path / "e", BulkRequest(level, ("Patient", "Observation"), since, filters))
    (asked,) = server.asked("GET", path)
    assert asked.query == {
        "_outputFormat": ["application/fhir+ndjson"],
        "_type": ["Patient,Observation"],
        "_since": [since],
        "_typeFilter": list(filters),
    }
    assert asked.headers["prefer"] == "respond-async"
    assert asked.headers["accept"].startswith("application/fhir+json")
    assert asked.headers["authorization"] == "Bearer secret"
    request = manifest(tmp_path / "e")["request"]
    assert request.startswith(f"{server.root}{path}?")
    assert FileSource(tmp_path / "e").fetch("p1", Wanted({})).base_url == server.base


@pytest.mark.parametrize("level", ["", "group", "group/", "group/a b", "group/../x", "all"])
def test_another_level_is_wrong_usage(level: str) -> None:
    with pytest.raises(UsageError):
        BulkRequest(level)


def test_the_server_is_told_at_the_end_that_its_files_may_go(
    server: BulkServer, tmp_path: Path
) -> None:
    export(server, tmp_path / "e")
    (deleted,) = server.asked("DELETE", "/status/1")
    assert deleted.headers["authorization"] == "Bearer secret"
    assert server.seen[-1] is deleted
    assert "job.json" not in contents(tmp_path / "e")


@pytest.mark.parametrize("answer", [404, 405, 500])
def test_a_server_that_takes_no_delete_spoils_nothing(
    server: BulkServer, tmp_path: Path, answer: int
) -> None:
    server.fail("DELETE /status/1", status(answer))
    assert export(server, tmp_path / "e").problems == ()


def test_without_types_what_a_record_is_made_of_is_asked_for(
    server: BulkServer, tmp_path: Path
) -> None:
    said = capability({"Patient": [], "Observation": [], "Encounter": []})
    server.fail("GET /fhir/metadata", status(200, json.dumps(said).encode()))
    export(server, tmp_path / "e", BulkRequest("system"))
    assert server.asked("GET", "/fhir/$export")[0].query["_type"] == ["Patient,Observation"]


def test_a_type_that_the_server_lacks_is_not_asked_for_and_read_as_not_offered(
    server: BulkServer, tmp_path: Path
) -> None:
    server.metadata = capability({"Patient": [], "Observation": []})
    request = BulkRequest("system", (*SYSTEM.types, "AdverseEvent", "Consent"))
    assert export(server, tmp_path / "e", request).notes == ()
    assert server.asked("GET", "/fhir/$export")[0].query["_type"] == ["Patient,Observation"]
    site = SiteSearch(not_offered={"Consent": "none-kept"})
    found = FileSource(tmp_path / "e", site).fetch("p1", Wanted({})).readings
    assert found["AdverseEvent"] == Reading(False, NOT_OFFERED, not_offered=True)
    assert found["Consent"] == Reading(not_offered=True)
    assert not found["Procedure"].complete
    assert not found["Procedure"].not_offered
    # What was not asked for is a gap of the files; what the server lacks is none.
    unread = FileSource(tmp_path / "e").unread()
    assert not any(message.type == "AdverseEvent" for message in unread)


def test_a_server_that_says_nothing_of_itself_is_asked_for_everything(
    server: BulkServer, tmp_path: Path
) -> None:
    request = BulkRequest("system", (*SYSTEM.types, "Consent"))
    export(server, tmp_path / "e", request)
    assert server.asked("GET", "/fhir/$export")[0].query["_type"] == ["Patient,Observation,Consent"]
    assert "Consent" not in incomplete(tmp_path / "e")


# Kick-off


@pytest.mark.parametrize("answer", [404, 405, 415, 501])
def test_a_server_that_wants_post_gets_parameters(
    server: BulkServer, tmp_path: Path, answer: int
) -> None:
    server.fail("GET /fhir/$export", status(answer))
    filters = ("Observation?status=final",)
    since = "2026-10-01T00:00:00Z"
    request = BulkRequest("system", ("Patient", "Observation"), since, filters)
    export(server, tmp_path / "e", request)
    (asked,) = server.asked("POST", "/fhir/$export")
    assert asked.headers["content-type"] == "application/fhir+json"
    assert json.loads(asked.body) == {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "_outputFormat", "valueString": "application/fhir+ndjson"},
            {"name": "_type", "valueString": "Patient,Observation"},
            {"name": "_since", "valueInstant": since},
            {"name": "_typeFilter", "valueString": "Observation?status=final"},
        ],
    }


def test_a_comma_list_that_is_refused_is_repeated(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /fhir/$export", status(400))
    export(server, tmp_path / "e")
    assert server.asked("GET", "/fhir/$export")[1].query["_type"] == ["Patient", "Observation"]


def test_a_filter_that_is_refused_is_left_out(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /fhir/$export", status(400))
    request = BulkRequest("system", SYSTEM.types, None, ("Observation?status=final",))
    found = export(server, tmp_path / "e", request)
    assert "_typeFilter" not in server.asked("GET", "/fhir/$export")[1].query
    assert found.notes == ("the FHIR server takes no _typeFilter",)
    assert "Observation" not in incomplete(tmp_path / "e")


def test_a_type_that_the_server_does_not_export_is_known_to_be_missing(
    server: BulkServer, tmp_path: Path
) -> None:
    said = outcome("error", "not-supported", text="Type MedicationAdministration not supported")
    server.fail("GET /fhir/$export", status(400, json.dumps(said).encode()))
    request = BulkRequest("system", (*SYSTEM.types, "MedicationAdministration"))
    found = export(server, tmp_path / "e", request)
    assert found.notes == ("the FHIR server does not export MedicationAdministration",)
    assert server.asked("GET", "/fhir/$export")[1].query["_type"] == ["Patient,Observation"]
    assert "MedicationAdministration" in incomplete(tmp_path / "e")


@pytest.mark.parametrize("answer", [400, 401, 403, 404, 405, 422])
def test_a_refusal_is_a_configuration_error_that_says_what_to_change(
    server: BulkServer, tmp_path: Path, answer: int
) -> None:
    said = json.dumps(outcome("error", "forbidden", text="no such thing")).encode()
    server.fail("GET /fhir/$export", status(answer, said), times=20)
    server.fail("POST /fhir/$export", status(answer, said), times=20)
    with pytest.raises(ConfigurationError, match=r"no such thing.*(scope|--cohort)"):
        export(server, tmp_path / "e")
    assert len(server.seen) <= 12
    assert contents(tmp_path / "e") == {}


def test_a_busy_server_is_asked_again_when_it_says(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /fhir/$export", status(429, Retry_After="7"), status(503), status(429))
    waits: list[float] = []
    bulk = BulkLimits(**{**_fields(BULK), "poll_most": 30.0, "busy": 60.0})
    export(server, tmp_path / "e", bulk=bulk, sleep=waits.append)
    assert waits[0] == 7.0
    assert len(server.jobs) == 1


def test_a_server_that_stays_busy_is_given_up(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /fhir/$export", status(429, Retry_After="3600"), times=1000)
    bulk = BulkLimits(**{**_fields(BULK), "busy": 0.2})
    with pytest.raises(SourceError, match="starts no export"):
        export(server, tmp_path / "e", bulk=bulk)


def test_a_kick_off_without_an_address_is_no_kick_off(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /fhir/$export", status(202), times=20)
    with pytest.raises(ConfigurationError):
        export(server, tmp_path / "e")


@responses.activate
@pytest.mark.parametrize("poll", ["https://evil.example/status", "https://u:p@fhir.example.org/x"])
def test_a_job_at_another_address_never_gets_the_token(tmp_path: Path, poll: str) -> None:
    responses.get(f"{BASE}/metadata", status=404)
    responses.get(f"{BASE}/$export", status=202, headers={"Content-Location": poll})
    with pytest.raises(SourceError if "@" in poll else ConfigurationError):
        client(BASE, lookup=_public).export(SYSTEM, tmp_path / "e")
    assert [call.request.url.split("?")[0] for call in responses.calls] == [
        f"{BASE}/metadata",
        f"{BASE}/$export",
    ]


@responses.activate
def test_a_server_that_names_itself_with_http_is_asked_with_https(tmp_path: Path) -> None:
    poll = "http://fhir.example.org/status"
    responses.get(f"{BASE}/$export", status=202, headers={"Content-Location": poll})
    responses.get("https://fhir.example.org/status", status=500)
    with pytest.raises(SourceError):
        client(BASE).export(SYSTEM, tmp_path / "e")
    assert {call.request.url.split(":")[0] for call in responses.calls if call.request.url} == {
        "https"
    }


# Polling


def _fields(limits: BulkLimits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in limits.__slots__}


def _public(host: str) -> list[str]:
    return ["93.184.215.14"]


def polls(server: BulkServer, folder: Path, *answers: str) -> list[float]:
    """Export from a server that answers polls with these Retry-Afters; gives the waits."""
    server.pending = 0
    server.fail("GET /status/1", *(status(202, Retry_After=value) for value in answers))
    waits: list[float] = []
    bulk = BulkLimits(**{**_fields(BULK), "poll_least": 1.0, "poll_most": 600.0, "job": 1e6})
    export(server, folder, bulk=bulk, sleep=waits.append)
    return waits


def test_retry_after_is_followed_in_both_forms_within_floor_and_ceiling(
    server: BulkServer, tmp_path: Path
) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    seconds, dated, ceiling, floor, unclear = polls(
        server, tmp_path / "e", "120", soon, "86400", "0", "soon"
    )
    assert seconds == 120.0
    assert 90.0 < dated <= 100.0
    assert ceiling == 600.0
    assert floor == 1.0
    assert 1.0 <= unclear <= 60.0


def test_an_endless_poll_ends_and_the_job_can_be_taken_up(
    server: BulkServer, tmp_path: Path
) -> None:
    server.pending = 10**9
    bulk = BulkLimits(**{**_fields(BULK), "job": 0.2})
    begun = time.monotonic()
    with pytest.raises(SourceTimeout, match="waits on"):
        export(server, tmp_path / "e", bulk=bulk)
    assert time.monotonic() - begun < 5.0
    server.pending = 0
    export(server, tmp_path / "e")
    assert len(server.asked("GET", "/fhir/$export")) == 1
    assert_whole(tmp_path / "e")


def test_accidents_while_polling_do_not_end_the_job(server: BulkServer, tmp_path: Path) -> None:
    transient = json.dumps(outcome("error", "transient")).encode()
    server.fail(
        "GET /status/1",
        status(429),
        status(503),
        reset,
        silent,
        status(202),
        status(500, transient),
        status(500, transient),
        status(500, transient),
        status(202),
        status(400),
        status(500),
    )
    assert export(server, tmp_path / "e").problems == ()
    assert_whole(tmp_path / "e")


def test_a_server_that_falls_silent_leaves_the_job_to_the_next_try(
    server: BulkServer, tmp_path: Path
) -> None:
    server.fail("GET /status/1", status(503), times=BULK.failures + 1)
    with pytest.raises(SourceError, match="does not tell"):
        export(server, tmp_path / "e")
    assert server.asked("DELETE", "/") == []
    export(server, tmp_path / "e")
    assert len(server.asked("GET", "/fhir/$export")) == 1
    assert_whole(tmp_path / "e")


@pytest.mark.parametrize(
    "answer",
    [status(500), status(400), status(200, b"<html>"), status(200, b"{}")],
    ids=["error", "refused", "no JSON", "no manifest"],
)
def test_a_job_that_failed_is_given_up_and_removed(
    server: BulkServer, tmp_path: Path, answer: Any
) -> None:
    server.fail("GET /status/1", answer, times=3)
    with pytest.raises(SourceError):
        export(server, tmp_path / "e")
    assert len(server.asked("DELETE", "/status/1")) == 1
    assert contents(tmp_path / "e") == {}
    export(server, tmp_path / "e")
    assert_whole(tmp_path / "e")


def test_progress_is_told_without_what_could_steer_a_terminal(
    server: BulkServer, tmp_path: Path
) -> None:
    server.pending = 0
    server.fail("GET /status/1", status(202, X_Progress="50%"), status(202, X_Progress="\x1b[2J"))
    told: list[str] = []
    export(server, tmp_path / "e", report=told.append)
    assert "the server exports: 50%" in told
    assert all(text.isprintable() for text in told)


# A process that ends on the way


def test_the_polls_address_is_kept_before_the_first_poll(
    server: BulkServer, tmp_path: Path
) -> None:
    kept: list[Any] = []

    def look(handler: Handler) -> None:
        path = tmp_path / "e" / "job.json"
        kept.append((json.loads(path.read_text(encoding="utf-8")), path.stat().st_mode & 0o077))
        handler.reply(202)

    server.fail("GET /status/1", look)
    export(server, tmp_path / "e")
    ((job, others),) = kept
    assert job["poll"] == f"{server.root}/status/1"
    assert others == 0


PROGRAM = """
import sys
from pathlib import Path
from service.fhir.bulk import BulkClient, BulkLimits, BulkRequest
from tests.fhir.test_bulk import BULK, SYSTEM
BulkClient(sys.argv[1], bulk=BULK).export(SYSTEM, Path(sys.argv[2]))
"""


def test_a_killed_process_is_followed_by_one_that_takes_up_the_same_job(
    server: BulkServer, tmp_path: Path
) -> None:
    """Killed in the midst of a poll, and again in the midst of a download."""
    for what in ("GET /status/1", "GET /files/2"):
        process: list[subprocess.Popen[bytes]] = []

        def kill(handler: Handler, process: list[subprocess.Popen[bytes]] = process) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"resourceType":')
            handler.wfile.flush()
            process[0].send_signal(signal.SIGKILL)
            handler.close_connection = True

        server.fail(what, kill)
        command = [sys.executable, "-c", PROGRAM, server.base, str(tmp_path / "e")]
        process.append(subprocess.Popen(command))
        assert process[0].wait(60) == -signal.SIGKILL
    bulk = BulkClient(server.base, bulk=BULK, limits=QUICK)
    bulk.export(SYSTEM, tmp_path / "e")
    assert len(server.asked("GET", "/fhir/$export")) == 1
    assert len(server.asked("GET", "/files/1")) <= 2
    assert_whole(tmp_path / "e")


def test_files_that_a_lost_network_kept_away_are_left_to_the_next_try(
    server: BulkServer, tmp_path: Path
) -> None:
    server.pending = 0
    server.fail("GET /files/2", cut, times=BULK.attempts)
    server.fail("GET /status/1", status(200, json.dumps(server.manifest).encode()), reset)
    with pytest.raises(SourceError):
        export(server, tmp_path / "e")
    assert not (tmp_path / "e" / "manifest.json").exists()
    assert server.asked("DELETE", "/status") == []
    assert export(server, tmp_path / "e").problems == ()
    assert_whole(tmp_path / "e")
    assert len(server.asked("GET", "/files/1")) == 1


def test_what_was_fetched_is_not_fetched_again(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /files/2", status(200, b"x"), times=BULK.attempts)
    found = export(server, tmp_path / "e")
    assert len(found.problems) == 1
    # As if the process had ended before the manifest was written, and the job still there.
    server.jobs[0] = "/status/1"
    (tmp_path / "e" / "manifest.json").unlink()
    job = {
        "asked": SYSTEM.digest(server.base),
        "request": f"{server.base}/$export",
        "poll": f"{server.root}/status/1",
        "notes": [],
        "files": [],
    }
    (tmp_path / "e" / "job.json").write_text(json.dumps(job), encoding="utf-8")
    export(server, tmp_path / "e")
    assert len(server.asked("GET", "/files/1")) == 1
    assert_whole(tmp_path / "e")


def test_a_job_that_expired_meanwhile_is_begun_anew(server: BulkServer, tmp_path: Path) -> None:
    server.pending = 10**9
    bulk = BulkLimits(**{**_fields(BULK), "job": 0.05})
    with pytest.raises(SourceTimeout):
        export(server, tmp_path / "e", bulk=bulk)
    (tmp_path / "e" / "Patient.00001.ndjson").write_bytes(b"of another moment\n")
    server.jobs.clear()
    server.pending = 0
    export(server, tmp_path / "e")
    assert_whole(tmp_path / "e")


def test_a_finished_export_is_given_as_it_is_unless_afresh(
    server: BulkServer, tmp_path: Path
) -> None:
    first = export(server, tmp_path / "e")
    assert export(server, tmp_path / "e") == first
    assert len(server.jobs) == 1
    client(server).export(SYSTEM, tmp_path / "e", fresh=True)
    assert len(server.jobs) == 2
    assert_whole(tmp_path / "e")


def test_an_export_that_is_abandoned_is_so_on_the_server_too(
    server: BulkServer, tmp_path: Path
) -> None:
    server.pending = 10**9
    bulk = BulkLimits(**{**_fields(BULK), "job": 0.05})
    with pytest.raises(SourceTimeout):
        export(server, tmp_path / "e", bulk=bulk)
    client(server).abandon(tmp_path / "e")
    assert len(server.asked("DELETE", "/status/1")) == 1
    assert contents(tmp_path / "e") == {}
    client(server).abandon(tmp_path / "nothing")


def test_a_folder_with_other_files_or_another_export_is_refused(
    server: BulkServer, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Patient.ndjson").write_bytes(ndjson(PATIENTS))
    with pytest.raises(ConfigurationError, match="other files"):
        client(server).export(SYSTEM, tmp_path / "other", fresh=True)
    assert len(contents(tmp_path / "other")) == 1
    export(server, tmp_path / "e")
    with pytest.raises(ConfigurationError, match="another export"):
        export(server, tmp_path / "e", BulkRequest("patient"))


def test_a_job_whose_file_was_being_written_at_a_kill_is_begun_anew(
    server: BulkServer, tmp_path: Path
) -> None:
    (tmp_path / ".job.json.part").write_bytes(b'{"asked":')
    assert not export(server, tmp_path).problems
    assert not (tmp_path / ".job.json.part").exists()


# Manifests


def test_no_address_decides_a_name_on_disk(server: BulkServer, tmp_path: Path) -> None:
    paths = ["/files/../../../etc/passwd", "/files/..%2F..%2Fx.ndjson", "/files/a?f=/etc/x"]
    for path in ("/etc/passwd", "/files/..%2F..%2Fx.ndjson", "/files/a"):
        server.files[path] = ndjson(RESULTS)
    server.manifest["output"] = [
        {"type": kind, "url": f"{server.root}{path}"}
        for kind, path in zip(("../Patient", "Observation", "/etc/x"), paths, strict=True)
    ]
    export(server, tmp_path / "deep" / "e")
    assert sorted(contents(tmp_path / "deep" / "e")) == [
        "Observation.00002.ndjson",
        "manifest.json",
        "output.00001.ndjson",
        "output.00003.ndjson",
    ]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()].count("manifest.json") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_types_that_nobody_reads_are_not_fetched(server: BulkServer, tmp_path: Path) -> None:
    server.manifest["output"].append({"type": "Binary", "url": f"{server.root}/files/huge"})
    assert export(server, tmp_path / "e").problems == ()
    assert server.asked("GET", "/files/huge") == []
    assert_whole(tmp_path / "e")


def test_manifests_that_are_linked_are_all_read(server: BulkServer, tmp_path: Path) -> None:
    first, second = server.manifest["output"]
    following = {**server.manifest, "output": [second]}
    server.manifests["/more"] = following
    server.fail("GET /more", status(202, Retry_After="0"))
    server.manifest |= {"output": [first], "link": [{"relation": "next", "url": "/more"}]}
    assert export(server, tmp_path / "e").problems == ()
    assert_whole(tmp_path / "e")


@pytest.mark.parametrize("fault", [404, 500, 200])
def test_a_linked_manifest_that_is_lost_leaves_everything_incomplete(
    server: BulkServer, tmp_path: Path, fault: int
) -> None:
    server.manifest["link"] = [{"relation": "next", "url": f"{server.root}/more"}]
    server.fail("GET /more", status(fault), times=5)
    found = export(server, tmp_path / "e")
    assert found.problems == ("a further manifest of the export could not be read",)
    assert "Observation" in incomplete(tmp_path / "e")


def test_manifests_that_lead_round_in_a_circle_end(server: BulkServer, tmp_path: Path) -> None:
    server.manifest["link"] = [{"relation": "next", "url": f"{server.root}/status/1"}]
    assert len(export(server, tmp_path / "e").problems) == 1


@pytest.mark.parametrize("section", ["error", "outcome"])
@pytest.mark.parametrize(("severity", "complete"), [("information", True), ("error", False)])
def test_error_files_are_kept_and_judged_by_what_they_say(
    server: BulkServer, tmp_path: Path, section: str, severity: str, complete: bool
) -> None:
    server.files["/files/e"] = ndjson([outcome(severity, "exception")])
    server.manifest[section] = [{"type": "OperationOutcome", "url": f"{server.root}/files/e"}]
    export(server, tmp_path / "e")
    assert ("Observation" not in incomplete(tmp_path / "e")) is complete


def test_an_error_file_that_is_lost_leaves_everything_incomplete(
    server: BulkServer, tmp_path: Path
) -> None:
    server.manifest["error"] = [{"url": f"{server.root}/files/lost"}]
    assert export(server, tmp_path / "e").problems
    assert "Observation" in incomplete(tmp_path / "e")


def test_deletions_are_kept_and_read(server: BulkServer, tmp_path: Path) -> None:
    urls = ["Patient/p9", f"{server.base}/Observation/o9", "Condition/c9/_history/2"]
    entries = [{"request": {"method": "DELETE", "url": url}} for url in urls]
    put = {"request": {"method": "PUT", "url": "Patient/p8"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [*entries, put]}
    server.files["/files/d"] = ndjson([bundle])
    server.manifest["deleted"] = [{"type": "Bundle", "url": f"{server.root}/files/d"}]
    found = export(server, tmp_path / "e")
    names = ["Patient/p9", "Observation/o9", "Condition/c9"]
    assert list(deleted_references(found)) == names
    assert "Observation" not in incomplete(tmp_path / "e")
    found.deleted[0].unlink()
    with pytest.raises(SourceError):
        list(deleted_references(found))


@pytest.mark.parametrize("url", ["Observation?x=1", "Observation", ""])
def test_deletions_that_name_no_resource_are_not_passed_over(
    server: BulkServer, tmp_path: Path, url: str
) -> None:
    entries = [{"request": {"method": "DELETE", "url": url}}]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    server.files["/files/d"] = ndjson([bundle])
    server.manifest["deleted"] = [{"type": "Bundle", "url": f"{server.root}/files/d"}]
    found = export(server, tmp_path / "e")
    with pytest.raises(SourceError, match="what was deleted"):
        list(deleted_references(found))


# Files


@pytest.mark.parametrize(
    "fault",
    [
        reset,
        cut,
        cut_chunked,
        silent,
        status(429, Retry_After="0"),
        status(500),
        status(503),
        status(200, ndjson(RESULTS)[:-700]),
        status(200, ndjson(RESULTS[:-1])),
        status(200, b"<html>Sign in</html>"),
        status(200, gzip.compress(ndjson(RESULTS))[:-30], Content_Encoding="gzip"),
        status(200, b"\x1f\x8bnot gzip", Content_Encoding="gzip"),
    ],
    ids=[
        "reset", "cut", "chunks cut", "silent", "429", "500", "503", "cut in a line",
        "cut at a line", "a page", "gzip cut", "gzip damaged",
    ],
)  # fmt: skip
def test_a_broken_download_is_begun_anew(server: BulkServer, tmp_path: Path, fault: Any) -> None:
    server.fail("GET /files/2", fault)
    assert export(server, tmp_path / "e").problems == ()
    assert_whole(tmp_path / "e")


def test_a_file_that_never_comes_is_known_to_be_missing(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /files/2", cut, times=BULK.attempts)
    found = export(server, tmp_path / "e")
    assert [text.split(":")[0] for text in found.problems] == ["Observation.00002.ndjson"]
    assert sorted(contents(tmp_path / "e")) == ["Patient.00001.ndjson", "manifest.json"]
    assert "Observation" in incomplete(tmp_path / "e")
    assert len(server.asked("DELETE", "/status/1")) == 1


def test_a_file_said_to_be_empty_is_known_to_be_missing_all_the_same(
    server: BulkServer, tmp_path: Path
) -> None:
    server.manifest["output"][1]["count"] = 0
    server.fail("GET /files/2", status(500), times=BULK.attempts)
    export(server, tmp_path / "e")
    assert "Observation" in incomplete(tmp_path / "e")


def test_a_file_that_stays_shorter_than_announced_is_kept_and_known(
    server: BulkServer, tmp_path: Path
) -> None:
    server.manifest["output"][1]["count"] = 51
    found = export(server, tmp_path / "e")
    assert [text.split(":")[0] for text in found.problems] == ["Observation.00002.ndjson"]
    assert len(server.asked("GET", "/files/2")) == 2
    assert_whole(tmp_path / "e")
    assert "Observation" in incomplete(tmp_path / "e")


def test_a_file_longer_than_announced_is_whole(server: BulkServer, tmp_path: Path) -> None:
    server.manifest["output"][1]["count"] = 49
    assert export(server, tmp_path / "e").problems == ()
    assert "Observation" not in incomplete(tmp_path / "e")


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {}], ids=["coded", "a gzip"])
def test_gzip_is_unpacked(server: BulkServer, tmp_path: Path, headers: dict[str, str]) -> None:
    half = len(ndjson(RESULTS)) // 2
    packed = gzip.compress(ndjson(RESULTS)[:half]) + gzip.compress(ndjson(RESULTS)[half:])
    server.fail("GET /files/2", status(200, packed, **headers))
    assert export(server, tmp_path / "e").problems == ()
    assert_whole(tmp_path / "e")
    assert server.asked("GET", "/files/2")[0].headers["accept-encoding"] == "gzip"


def test_an_expired_link_is_renewed_from_the_manifest(server: BulkServer, tmp_path: Path) -> None:
    server.files["/new/1"], server.files["/new/2"] = server.files["/files/1"], ndjson(RESULTS)

    def expire(handler: Handler) -> None:
        for entry in server.manifest["output"]:
            entry["url"] = entry["url"].replace("/files/", "/new/")
        handler.reply(403)

    server.fail("GET /files/2", expire)
    assert export(server, tmp_path / "e").problems == ()
    assert len(server.asked("GET", "/new/2")) == 1
    assert_whole(tmp_path / "e")


def test_links_that_differ_only_in_the_query_are_different_files(
    server: BulkServer, tmp_path: Path
) -> None:
    """Also where a signature is in the query beside the file's number."""
    server.files["/get"] = ndjson(RESULTS)
    server.manifest["output"] = [
        {"type": "Observation", "url": f"{server.root}/get?file={number}&sig={number}"}
        for number in range(5)
    ]
    export(server, tmp_path / "e")
    assert len(server.asked("GET", "/get")) == 5
    assert len(contents(tmp_path / "e")) == 6


def test_downloads_run_side_by_side(server: BulkServer, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=5)

    def meet(handler: Handler) -> None:
        both.wait()
        server.answer(handler, Seen("GET", handler.path, {}, {}, b""))

    server.fail("GET /files/1", meet)
    server.fail("GET /files/2", meet)
    bulk = BulkLimits(**{**_fields(BULK), "attempts": 1})
    assert export(server, tmp_path / "e", bulk=bulk).problems == ()


def test_a_full_disk_stops_the_export_and_the_next_try_goes_on(
    server: BulkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, content: bytes) -> None:
        raise download._not_written(OSError(28, "No space left on device"))

    with monkeypatch.context() as patched:
        patched.setattr(download.Part, "_write", full)
        with pytest.raises(NotWritten, match="No space left"):
            export(server, tmp_path / "e")
    assert sorted(contents(tmp_path / "e")) == ["job.json"]
    export(server, tmp_path / "e")
    assert len(server.jobs) == 1
    assert_whole(tmp_path / "e")


# Who gets the token


@pytest.mark.parametrize("required", [True, False])
def test_files_get_the_token_only_if_the_manifest_says_so(
    server: BulkServer, tmp_path: Path, required: bool
) -> None:
    server.manifest["requiresAccessToken"] = required
    export(server, tmp_path / "e")
    for number in (1, 2):
        (asked,) = server.asked("GET", f"/files/{number}")
        assert ("authorization" in asked.headers) is required


def test_a_redirect_is_followed_without_the_token(server: BulkServer, tmp_path: Path) -> None:
    """Also within the server, whose signed links refuse a second authorisation."""
    with bulk_server() as store:
        store.files["/signed"] = ndjson(RESULTS)
        server.files["/signed"] = ndjson(PATIENTS)
        server.fail("GET /files/1", status(307, Location="/signed"))
        server.fail("GET /files/2", status(302, Location=f"{store.root}/signed"))
        export(server, tmp_path / "e")
        assert "authorization" in server.asked("GET", "/files/2")[0].headers
        assert "authorization" not in server.asked("GET", "/signed")[0].headers
        assert "authorization" not in store.asked("GET", "/signed")[0].headers
    assert_whole(tmp_path / "e")


def test_a_redirect_within_the_server_that_wants_the_token_gets_it(
    server: BulkServer, tmp_path: Path
) -> None:
    server.files["/moved"] = ndjson(PATIENTS)
    server.fail("GET /files/1", status(307, Location="/moved"))
    server.fail("GET /moved", status(401))
    export(server, tmp_path / "e")
    assert "authorization" in server.asked("GET", "/moved")[1].headers
    assert_whole(tmp_path / "e")


def test_redirects_without_end_end(server: BulkServer, tmp_path: Path) -> None:
    server.fail("GET /files/1", status(302, Location="/files/1"), times=1000)
    assert len(export(server, tmp_path / "e").problems) == 1


def test_a_file_elsewhere_never_gets_the_token(server: BulkServer, tmp_path: Path) -> None:
    with bulk_server() as store:
        server.manifest["output"][1]["url"] = f"{store.root}/files/2"
        assert "needs the token" in export(server, tmp_path / "e").problems[0]
        assert store.seen == []
        server.manifest["requiresAccessToken"] = False
        assert export(server, tmp_path / "open").problems == ()
        assert "authorization" not in store.seen[0].headers
        server.manifest["requiresAccessToken"] = True
        found = export(server, tmp_path / "trusted", trusted=(store.root,))
        assert found.problems == ()
        assert store.seen[1].headers["authorization"] == "Bearer secret"


def test_a_token_that_expired_is_renewed(server: BulkServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old", encoding="utf-8")
    auth = BearerToken(file=token)
    token.write_text("new", encoding="utf-8")
    server.fail("GET /status/1", status(401))
    server.fail("GET /files/1", status(401))
    assert export(server, tmp_path / "e", auth=auth).problems == ()
    assert server.asked("GET", "/files/1")[-1].headers["authorization"] == "Bearer new"


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("https://store.example/x", True),
        ("http://store.example/x", False),
        ("https://internal.example/x", False),
        ("https://127.0.0.1/x", False),
        ("https://169.254.169.254/latest/meta-data", False),
        ("https://[::1]/x", False),
        ("https://10.0.0.1/x", False),
        ("https://user:pass@store.example/x", False),
        ("https://fhir.example.org/any/where", True),
        ("https://fhir.example.org\\@evil.example/", False),
        ("https://store.example:99999/x", False),
        ("file:///etc/passwd", False),
        ("ftp://store.example/x", False),
        ("https:///x", False),
        ("/x", False),
        ("https://store.example/a b", False),
    ],
)
def test_only_public_https_hosts_are_asked_besides_the_server(url: str, asked: bool) -> None:
    def lookup(host: str) -> list[str]:
        return {"internal.example": ["93.184.215.14", "10.1.2.3"]}.get(host, ["93.184.215.14"])

    addresses = Addresses(BASE, lookup=lookup)
    if asked:
        addresses.check(url)
        return
    with pytest.raises(SourceError) as error:
        addresses.check(url)
    assert "pass" not in str(error.value)


def test_no_problem_holds_an_address_or_token(server: BulkServer, tmp_path: Path) -> None:
    server.manifest["output"][1]["url"] = f"{server.root}/files/gone?sig=s3cr3t"
    found = export(server, tmp_path / "e")
    assert found.problems
    said = " ".join(found.problems) + (tmp_path / "e" / "manifest.json").read_text("utf-8")
    assert not any(word in said for word in ("s3cr3t", "secret", "/files/"))


def test_patients_are_named_in_the_body_of_a_post_only() -> None:
    request = BulkRequest("patient", ("Patient",), patients=("p1", "p2"))
    form = Form(request, post=True)
    assert "p1" not in form.url("http://127.0.0.1/fhir")
    named = [each for each in json.loads(form.body())["parameter"] if each["name"] == "patient"]
    assert [each["valueReference"]["reference"] for each in named] == ["Patient/p1", "Patient/p2"]


@pytest.mark.parametrize("code", [400, 404, 405, 415, 422])
def test_a_refused_export_of_patients_is_never_asked_for_without_them(code: int) -> None:
    form: Form | None = Form(BulkRequest("patient", ("Patient",), patients=("p1",)), post=True)
    reply = Reply(code, {}, b"", "http://127.0.0.1/fhir/Patient/$export")
    while form is not None:
        assert form.post
        assert form.request.patients == ("p1",)
        found = eased(form, reply)
        form = found[0] if found is not None else None
