"""Nights over an export: whatever goes wrong, all verdicts, or a gap that is named."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigurationError, SourceError, SourceTimeout, UsageError
from service.fhir.bulk import BulkLimits
from service.fhir.bulkjob import load_job
from service.nightly.bulk import types_of
from service.nightly.work import Work
from tests.faults import capability, cut, cut_chunked, outcome, reset, silent
from tests.fhir.bulkserver import BulkServer, Handler, bulk_server, ndjson, status
from tests.nightly.exporting import BULK, TOKEN, night
from tests.nightly.making import (
    TRIAL,
    hospital,
    observation,
    patient,
    patients_of,
    rejects,
    screening,
    search,
    settings_for,
    verdicts,
    write_types,
)

RESOURCES = list(hospital(8, 6))
SICK = 8
TRANSIENT = json.dumps(outcome("error", "transient")).encode()
OUTPUTS = ("verdicts.ndjson", "candidates.csv", "group.json", "list.json", "rejects.ndjson")
Json = dict[str, Any]


@pytest.fixture
def server() -> Iterator[BulkServer]:
    """Run a server whose export has several files of each type."""
    with bulk_server() as running:
        running.hold(RESOURCES, each=5)
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Give the outputs of a night in which nothing went wrong."""
    output = tmp_path_factory.mktemp("night") / "out"
    with bulk_server() as running:
        running.hold(RESOURCES, each=5)
        statement = night(running, output)
    assert statement.complete
    assert statement.evaluated == SICK
    return outputs(output)


def outputs(output: Path) -> dict[str, bytes]:
    """Read what must be the same."""
    return {name: (output / name).read_bytes() for name in OUTPUTS}


def links(server: BulkServer, kind: str) -> list[str]:
    """Give the paths of a type's files."""
    listed = server.manifest["output"]
    return [one["url"].removeprefix(server.root) for one in listed if one["type"] == kind]


def date_header(seconds: float) -> str:
    """Write a Retry-After as a date."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


# What ends as an undisturbed night

Breaking = Callable[[BulkServer], None]


def _at(what: str, *faults: Any) -> Breaking:
    return lambda server: server.fail(what, *faults)


def _later(name: str) -> Breaking:
    """Let every answer be put off, the first time, with both forms of Retry-After."""

    def put_off(server: BulkServer) -> None:
        code = 429 if name == "429" else 503
        for what in ("GET /fhir/$export", "GET /status/1", "GET /files/2"):
            server.fail(what, status(code, Retry_After="0"))
            server.fail(what, status(code, Retry_After=date_header(-5)))

    return put_off


def _packed(server: BulkServer) -> None:
    for path, body in server.files.items():
        server.files[path] = gzip.compress(body)


def _fewer_counted(server: BulkServer) -> None:
    for entry in server.manifest["output"]:
        entry["count"] = max(0, entry["count"] - 3)


def _uncounted(server: BulkServer) -> None:
    for entry in server.manifest["output"]:
        del entry["count"]


def _twice(server: BulkServer) -> None:
    server.manifest["output"] += [dict(entry) for entry in server.manifest["output"]]


def _parts(server: BulkServer) -> None:
    listed = server.manifest["output"]
    path = "/manifests/2"
    server.manifests[path] = {**server.manifest, "output": listed[3:]}
    server.manifest["output"] = listed[:3]
    server.manifest["link"] = [{"relation": "next", "url": f"{server.root}{path}"}]


def _paths_in_names(server: BulkServer) -> None:
    """Give files names that lead elsewhere, and the same name to all."""
    for number, entry in enumerate(server.manifest["output"]):
        path = f"/{number}%2F..%2F..%2F..%2Fverdicts.ndjson"
        old = entry["url"].removeprefix(server.root)
        server.files[path] = server.files.pop(old)
        entry["url"] = f"{server.root}{path}"
    # A type with a path in it is none, but its file may hold anything.
    server.manifest["output"][0]["type"] = "../../Patient"


def _public(server: BulkServer) -> None:
    server.manifest["requiresAccessToken"] = False


def _deleted(server: BulkServer) -> None:
    request = {"method": "DELETE", "url": "Patient/of-old"}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [{"request": request}]}
    server.files["/files/gone"] = ndjson([bundle])
    server.manifest["deleted"] = [{"type": "Bundle", "url": f"{server.root}/files/gone"}]


def _remarks(server: BulkServer) -> None:
    server.files["/files/said"] = ndjson([outcome("information", "informational", text="well")])
    said = {"type": "OperationOutcome", "url": f"{server.root}/files/said"}
    server.manifest["error"] = [said]


HARMLESS: dict[str, Breaking] = {
    "put off with 429": _later("429"),
    "put off with 503": _later("503"),
    "poll 500": _at("GET /status/1", status(500), status(502)),
    "poll reset": _at("GET /status/1", reset, silent),
    "job transient": _at("GET /status/1", status(500, TRANSIENT)),
    "job lost": _at("GET /status/1", status(404)),
    "file 500": _at("GET /files/1", status(500), status(503)),
    "file reset": _at("GET /files/1", reset, cut),
    "file cut": _at("GET /files/3", cut_chunked, status(200, ndjson(RESOURCES[:1])[:-20])),
    "file short": _at("GET /files/4", status(200, b"")),
    "file a page": _at("GET /files/4", status(200, b"<html>Sign in</html>")),
    "link expired": _at("GET /files/2", status(403), status(410)),
    "gzip": _packed,
    "fewer counted": _fewer_counted,
    "not counted": _uncounted,
    "listed twice": _twice,
    "manifest in parts": _parts,
    "paths in names": _paths_in_names,
    "no token": _public,
    "deleted": _deleted,
    "remarks": _remarks,
    "no delete": _at("DELETE /status/1", reset),
}  # fmt: skip


@pytest.mark.parametrize("breaking", HARMLESS.values(), ids=HARMLESS)
def test_what_can_be_mended_leaves_no_trace(
    server: BulkServer, undisturbed: dict[str, bytes], tmp_path: Path, breaking: Breaking
) -> None:
    breaking(server)
    statement = night(server, tmp_path / "out")
    assert statement.complete, statement.problems
    assert outputs(tmp_path / "out") == undisturbed
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert not (tmp_path / "out" / ".work").exists()


def test_an_export_gives_the_verdicts_that_its_files_in_a_directory_give(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    search(write_types(tmp_path / "in", RESOURCES), tmp_path / "out")
    assert outputs(tmp_path / "out") == undisturbed


# What leaves a gap


def _error(severity: str) -> Breaking:
    def report(server: BulkServer) -> None:
        server.files["/files/e"] = ndjson([outcome(severity, "exception", text="some failed")])
        server.manifest["error"] = [{"type": "OperationOutcome", "url": f"{server.root}/files/e"}]

    return report


def _report_lost(server: BulkServer) -> None:
    url = f"{server.root}/files/nothing"
    server.manifest["error"] = [{"type": "OperationOutcome", "url": url}]


def _next_lost(server: BulkServer) -> None:
    server.manifest["link"] = [{"relation": "next", "url": f"{server.root}/manifests/lost"}]


def _more_counted(kind: str) -> Breaking:
    def count(server: BulkServer) -> None:
        for entry in server.manifest["output"]:
            if entry["type"] == kind:
                entry["count"] += 1

    return count


def _file_lost(kind: str) -> Breaking:
    def lose(server: BulkServer) -> None:
        del server.files[links(server, kind)[-1]]

    return lose


def _broken_for_good(server: BulkServer) -> None:
    server.fail(f"GET {links(server, 'Condition')[0]}", cut, times=100)


def _no_patients(server: BulkServer) -> None:
    server.manifest["output"] = [
        one for one in server.manifest["output"] if one["type"] != "Patient"
    ]


def _short_patients(server: BulkServer) -> None:
    """Leave a whole file of Patients out, and say nothing of it."""
    _uncounted(server)
    path = links(server, "Patient")[0]
    server.manifest["output"] = [
        one for one in server.manifest["output"] if not one["url"].endswith(path)
    ]


def _nothing(server: BulkServer) -> None:
    server.manifest["output"] = []


def _elsewhere(server: BulkServer) -> None:
    """Name a file at another address that would need the token."""
    server.manifest["output"][-1]["url"] = "https://192.0.2.1/file"


def _type_refused(server: BulkServer) -> None:
    said = outcome("error", "not-supported", text="Resource type Condition is not exported")
    server.fail("GET /fhir/$export", status(400, json.dumps(said).encode()))
    server.manifest["output"] = [
        one for one in server.manifest["output"] if one["type"] != "Condition"
    ]


def _bad_line(server: BulkServer) -> None:
    path = links(server, "Observation")[0]
    server.files[path] += b'{"resourceType":"Observation","id":"broken",]}\n'


GAPS: dict[str, tuple[Breaking, str]] = {
    "errors reported": (_error("error"), "OperationOutcome of severity"),
    "warnings reported": (_error("warning"), "OperationOutcome of severity"),
    "report lost": (_report_lost, "reports errors"),
    "next manifest lost": (_next_lost, "next is missing"),
    "more observations counted": (_more_counted("Observation"), "fewer"),
    "more patients counted": (_more_counted("Patient"), "fewer"),
    "conditions lost": (_file_lost("Condition"), "Condition: a file that the manifest names"),
    "patients lost": (_file_lost("Patient"), "Patient: a file that the manifest names"),
    "broken for good": (_broken_for_good, "broke off"),
    "no patients": (_no_patients, "holds no Patient"),
    "patients left out": (_short_patients, "whom records of the diagnosis name"),
    "nothing at all": (_nothing, "holds no Patient"),
    "address not asked": (_elsewhere, "address"),
    "type refused": (_type_refused, "Condition: not in the export's _type"),
    "bad line": (_bad_line, "not a FHIR resource"),
}  # fmt: skip


@pytest.mark.parametrize(("breaking", "named"), GAPS.values(), ids=GAPS)
def test_what_can_not_be_mended_is_a_gap_that_is_named(
    server: BulkServer, tmp_path: Path, breaking: Breaking, named: str
) -> None:
    breaking(server)
    statement = night(server, tmp_path / "out")
    assert not statement.complete
    assert statement.exit == 3
    said = json.loads((tmp_path / "out" / "run.json").read_bytes())
    assert said["complete"] is False
    assert said["problems"] == list(statement.problems)
    assert named in " ".join(statement.problems), statement.problems
    text = " ".join(statement.problems)
    assert TOKEN not in text
    assert server.root not in text


def test_a_lost_file_of_conditions_leaves_nobody_out(server: BulkServer, tmp_path: Path) -> None:
    _file_lost("Condition")(server)
    night(server, tmp_path / "out")
    assert len(patients_of(tmp_path / "out")) == 14


# What fails, and is taken up by the same command


def test_a_server_that_goes_down_is_taken_up_when_it_is_back(
    server: BulkServer, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The files that came before are not fetched again."""
    given: list[str] = []
    answer = server.answer

    def give(handler: Handler, seen: Any) -> None:
        if seen.path.startswith("/files/"):
            given.append(seen.path)
            if len(given) == 4:
                server.down = True
        answer(handler, seen)

    server.answer = give  # type: ignore[method-assign] # the server is no thing under test
    with pytest.raises(SourceError):
        night(server, tmp_path / "out")
    assert not (tmp_path / "out" / "verdicts.ndjson").exists()
    assert server.asked("DELETE", "/status") == []
    server.down = False
    statement = night(server, tmp_path / "out")
    assert statement.complete
    assert statement.resumed == 1
    assert outputs(tmp_path / "out") == undisturbed
    assert len(server.jobs) == 1
    assert len(given) <= len(server.files) + BULK.parallel


def test_an_endless_export_is_given_up_and_taken_up(
    server: BulkServer, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    server.pending = 10**9
    for _ in range(2):
        with pytest.raises(SourceTimeout, match="--fresh"):
            night(server, tmp_path / "out", limits=BulkLimits(**{**_of(BULK), "job": 0.05}))
    server.pending = 0
    assert night(server, tmp_path / "out").resumed == 2
    assert outputs(tmp_path / "out") == undisturbed
    assert len(server.jobs) == 1
    assert len(server.asked("DELETE", "/status/1")) == 1


def test_an_export_that_expired_between_the_files_is_begun_anew(
    server: BulkServer, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    answer = server.answer

    def expire(handler: Handler, seen: Any) -> None:
        if seen.path == "/files/3" and server.jobs == ["/status/1"]:
            server.jobs[0] = "gone"
        if seen.path.startswith("/files/") and server.jobs == ["gone"]:
            handler.reply(410)
        else:
            answer(handler, seen)

    server.answer = expire  # type: ignore[method-assign] # the server is no thing under test
    assert night(server, tmp_path / "out").complete
    assert outputs(tmp_path / "out") == undisturbed
    assert len(server.jobs) == 2


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405])
def test_a_refused_export_is_a_configuration_error(
    server: BulkServer, tmp_path: Path, code: int
) -> None:
    for method in ("GET", "POST"):
        server.fail(f"{method} /fhir/$export", status(code), times=50)
    with pytest.raises(ConfigurationError, match=r"scope|--cohort"):
        night(server, tmp_path / "out")
    assert not (tmp_path / "out" / "verdicts.ndjson").exists()


def _of(limits: BulkLimits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in BulkLimits.__dataclass_fields__}


# Whom the token goes to


def test_a_redirect_to_another_host_goes_without_the_token(
    server: BulkServer, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with bulk_server() as other:
        other.files = dict(server.files)
        for path in server.files:
            server.fail(f"GET {path}", status(307, Location=f"{other.root}{path}"))
        assert night(server, tmp_path / "out").complete
        assert all("authorization" not in seen.headers for seen in other.asked("GET", "/"))
    assert all(
        seen.headers["authorization"] == f"Bearer {TOKEN}" for seen in server.asked("GET", "/files")
    )
    assert outputs(tmp_path / "out") == undisturbed


def test_files_that_need_no_token_get_none(server: BulkServer, tmp_path: Path) -> None:
    _public(server)
    assert night(server, tmp_path / "out").complete
    assert all("authorization" not in seen.headers for seen in server.asked("GET", "/files"))
    assert all("authorization" in seen.headers for seen in server.asked("GET", "/status"))


@pytest.mark.parametrize("trusted", [True, False])
def test_another_address_gets_the_token_only_if_it_is_set_as_the_servers(
    server: BulkServer, tmp_path: Path, trusted: bool
) -> None:
    with bulk_server() as other:
        other.files = dict(server.files)
        for entry in server.manifest["output"]:
            entry["url"] = entry["url"].replace(server.root, other.root)
        settings: dict[str, object] = {"bulk_trusted": other.root} if trusted else {}
        statement = night(server, tmp_path / "out", settings=settings)
        assert statement.complete is trusted
        found = other.asked("GET", "/files")
        assert bool(found) is trusted
        assert all(seen.headers["authorization"] == f"Bearer {TOKEN}" for seen in found)


# What is asked for


def test_only_what_the_trials_need_is_asked_for(server: BulkServer, tmp_path: Path) -> None:
    night(server, tmp_path / "out")
    (asked,) = server.asked("GET", "/fhir/$export")
    types = asked.query["_type"][0].split(",")
    trial = screening().trial(TRIAL)
    assert set(types) == {"Patient", "Medication", "ResearchStudy", *trial.wanted.codes}
    assert tuple(types) == types_of([trial])
    assert "Encounter" not in types
    assert "_since" not in asked.query


def test_a_type_that_the_server_lacks_is_unknown_but_no_gap(
    server: BulkServer, tmp_path: Path
) -> None:
    """As in a live search: nothing was lost, and nothing rests on its absence."""
    types = [kind for kind in types_of([screening().trial(TRIAL)]) if kind != "ResearchSubject"]
    server.metadata = capability({kind: [] for kind in types})
    statement = night(server, tmp_path / "out")
    assert statement.complete, statement.problems
    assert statement.notes == (
        "ResearchSubject: the FHIR server does not offer this resource type",
    )
    (asked,) = server.asked("GET", "/fhir/$export")
    assert "ResearchSubject" not in asked.query["_type"][0].split(",")
    reasons = {
        one["reason"]
        for line in verdicts(tmp_path / "out")
        for one in json.loads(line)["criteria"]
        if one["id"] == "E7"
    }
    assert reasons == {"source-unavailable"}
    said = json.loads((tmp_path / "out" / "run.json").read_bytes())
    assert said["notes"] == list(statement.notes)
    assert "does not offer" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_remarks_in_the_servers_report_are_stated_without_their_texts(
    server: BulkServer, tmp_path: Path
) -> None:
    _remarks(server)
    assert night(server, tmp_path / "out").notes == (
        "the FHIR server's report on the export holds remarks: informational 1",
    )


def test_a_group_is_exported(server: BulkServer, tmp_path: Path) -> None:
    night(server, tmp_path / "out", bulk="group/ward-7")
    assert len(server.asked("GET", "/fhir/Group/ward-7/$export")) == 1


@pytest.mark.parametrize("level", ["systems", "group", "group/", "group/a/b", "Patient", "all"])
def test_another_level_is_wrong_usage_before_anything_is_done(
    server: BulkServer, tmp_path: Path, level: str
) -> None:
    with pytest.raises(UsageError):
        night(server, tmp_path / "out", bulk=level)
    assert server.seen == []
    assert not (tmp_path / "out").exists()


# An export that is given up


@pytest.mark.parametrize("other", [{"bulk": "patient"}, {"fresh": True}])
def test_an_export_of_a_search_that_is_given_up_is_called_off(
    server: BulkServer, tmp_path: Path, other: Json
) -> None:
    server.pending = 10**9
    with pytest.raises(SourceTimeout):
        night(server, tmp_path / "out", limits=BulkLimits(**{**_of(BULK), "job": 0.05}))
    server.pending = 0
    assert night(server, tmp_path / "out", **other).complete
    assert len(server.asked("DELETE", "/status/1")) == 1
    order = [(one.method, one.path) for one in server.seen if one.path.endswith("$export")]
    assert len(order) == 2
    begun = max(i for i, one in enumerate(server.seen) if one.path.endswith("$export"))
    called = next(i for i, one in enumerate(server.seen) if one.method == "DELETE")
    assert called < begun


def test_an_export_that_can_not_be_called_off_is_kept(server: BulkServer, tmp_path: Path) -> None:
    server.pending = 10**9
    with pytest.raises(SourceTimeout):
        night(server, tmp_path / "out", limits=BulkLimits(**{**_of(BULK), "job": 0.05}))
    server.pending, server.down = 0, True
    with pytest.raises(SourceError, match="earlier export"):
        night(server, tmp_path / "out", fresh=True)
    (kept,) = (tmp_path / "out" / ".work").glob("*/export")
    assert load_job(kept) is not None
    server.down = False
    assert night(server, tmp_path / "out", fresh=True).complete
    assert len(server.asked("DELETE", "/status/1")) == 1


def test_a_search_of_a_directory_calls_off_the_export_without_the_token(
    server: BulkServer, tmp_path: Path
) -> None:
    server.pending = 10**9
    with pytest.raises(SourceTimeout):
        night(server, tmp_path / "out", limits=BulkLimits(**{**_of(BULK), "job": 0.05}))
    search(write_types(tmp_path / "in", RESOURCES), tmp_path / "out")
    (called,) = server.asked("DELETE", "/status/1")
    assert "authorization" not in called.headers
    assert settings_for(tmp_path / "in").source_auth == "none"


def test_a_search_of_another_server_never_gives_it_its_token(
    server: BulkServer, tmp_path: Path
) -> None:
    server.pending = 10**9
    with pytest.raises(SourceTimeout):
        night(server, tmp_path / "out", limits=BulkLimits(**{**_of(BULK), "job": 0.05}))
    before = len(server.seen)
    with bulk_server() as other:
        other.hold(RESOURCES)
        assert night(other, tmp_path / "out").complete
    assert [one.method for one in server.seen[before:]] == ["DELETE"]
    assert "authorization" not in server.seen[-1].headers


def test_what_is_left_of_a_search_is_told_before_it_is_removed(tmp_path: Path) -> None:
    with Work(tmp_path).locked() as work:
        work.begin("one")
        work.path("export/job.json").write_bytes(b"{}")
        left: list[bool] = []
        work.begin("two", leaving=lambda folder: left.append((folder / "export").is_dir()))
        assert left == [True]
        assert not (tmp_path / ".work" / "one").exists()
        work.begin("two", leaving=lambda folder: left.append(True))
        assert left == [True]


def test_steps_of_which_a_removal_left_a_part_are_not_taken_for_done(tmp_path: Path) -> None:
    with Work(tmp_path).locked() as work:
        work.begin("one")
        work.save("scan/1", [1])
        key = work.key
        work.path("attempts.json").unlink()  # As far as a removal that was cut short came.
        work.begin("one")
        assert not work.has("scan/1")
        assert work.key != key


# Everybody once


@pytest.mark.parametrize("number", [1, 49, 50, 51, 100, 101, 1000, 1001])
@pytest.mark.parametrize("counts", [True, False])
def test_everybody_is_seen_once_whatever_the_number_of_files(
    server: BulkServer, tmp_path: Path, number: int, counts: bool
) -> None:
    everybody = [patient(f"p-{each:04}") for each in range(number)]
    # The last of each file and the first of the next are of the population.
    sick = sorted({0, number - 1, *(each for each in range(number) if each % 50 in (0, 49))})
    found = [condition_of(each) for each in sick]
    results = [observation(f"o-{each:04}", f"Patient/p-{each:04}") for each in range(number)]
    server.hold([*everybody, *found, *results], each=50, counts=counts)
    statement = night(server, tmp_path / "out")
    assert statement.complete, statement.problems
    assert statement.patients_seen == number
    assert patients_of(tmp_path / "out") == [f"Patient/p-{each:04}" for each in sick]
    assert statement.types["Patient"].lines == number
    assert statement.types["Observation"].lines == number
    assert statement.types["Observation"].read == len(sick)


def condition_of(number: int) -> Json:
    """Give the diagnosis of one of the census."""
    return next(
        each | {"id": f"c-{number:04}", "subject": {"reference": f"Patient/p-{number:04}"}}
        for each in hospital(1, 0)
        if each["resourceType"] == "Condition"
    )


def test_a_bad_line_of_an_export_is_kept_with_file_and_line(
    server: BulkServer, tmp_path: Path
) -> None:
    _bad_line(server)
    night(server, tmp_path / "out")
    (found,) = rejects(tmp_path / "out")
    assert found["file"].startswith("Observation.")
    assert found["line"] == 6
    shutil.rmtree(tmp_path / "out")
