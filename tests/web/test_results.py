"""Group, List and ResearchSubjects of the candidates over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask

from service.nightly.model import Outcome
from service.results.candidates import candidates
from service.results.group import Study, group_json, list_json
from service.storage.purge import purge
from service.storage.store import Store
from tests.results.shapes import check_r4b
from tests.storage.making import DAY, TRIAL, invented, kept
from tests.web.asking import app_of, refusal

GROUP, LIST = f"/fhir/Group/{TRIAL}-candidates", f"/fhir/List/{TRIAL}-candidates"
SUBJECTS = "/fhir/ResearchSubject"
OPEN = {"I1": ("unknown", "no-data")}
OUT = {"I1": ("fail", "value-violates")}


def candidate(name: str) -> Outcome:
    return invented(name, OPEN)


def out(name: str) -> Outcome:
    return invented(name, OUT, verdict="ineligible")


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


@pytest.fixture
def filled(place: str) -> Iterator[Store]:
    """A store after a search: three candidates and one who is out."""
    with Store.open(place) as store:
        kept(store, "a", (*map(candidate, ("p1", "p2", "p3")), out("p4")))
        yield store


@pytest.fixture
def app(filled: Store, place: str) -> Flask:
    return app_of(store=place, base_url="http://us.example/fhir")


def get(app: Flask, path: str, status: int = 200, **headers: str) -> dict[str, Any]:
    reply = app.test_client().get(path, headers=headers)
    assert reply.status_code == status, reply.get_data(as_text=True)
    found: dict[str, Any] = json.loads(reply.data)
    check_r4b(found)
    return found


def local(url: str) -> str:
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc) == ("http", "us.example")
    return f"{parts.path}?{parts.query}"


def link(bundle: dict[str, Any], relation: str) -> str | None:
    found = [one["url"] for one in bundle["link"] if one["relation"] == relation]
    return local(found[0]) if found else None


def matches(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    entries = bundle.get("entry", ())
    return [one["resource"] for one in entries if one["search"]["mode"] == "match"]


def patients(bundle: dict[str, Any]) -> list[str]:
    return sorted(one["individual"]["reference"] for one in matches(bundle))


def test_group_and_list_are_those_of_the_search_s_files(app: Flask, filled: Store) -> None:
    study = Study(TRIAL, TRIAL, DAY, key=filled.subject_key())
    lines = [one.line for one in filled.verdicts(1)]

    def listed() -> Any:
        return candidates(lines)

    for path, written in ((GROUP, group_json), (LIST, list_json)):
        found = get(app, path)
        meta = found.pop("meta")
        assert meta["versionId"] == "1"
        file = json.loads(b"".join(written([study], listed)))
        for volatile in ("name", "title"):
            file.pop(volatile, None)
            found.pop(volatile, None)
        assert found == file


def test_the_ids_of_the_list_are_those_of_the_research_subjects(app: Flask) -> None:
    contained = {one["id"]: one["individual"] for one in get(app, LIST)["contained"]}
    found = {one["id"]: one["individual"] for one in matches(get(app, SUBJECTS))}
    assert contained == found
    for name, individual in found.items():
        assert get(app, f"{SUBJECTS}/{name}")["individual"] == individual


def test_an_id_says_nothing_without_the_store_s_key(tmp_path: Path, filled: Store) -> None:
    with Store.open(str(tmp_path / "other.db")) as other:
        kept(other, "a", (candidate("p1"),))
        assert len(other.subject_key()) == 32
        assert other.subject_key() != filled.subject_key()


def test_a_reader_who_has_the_version_gets_no_body(app: Flask) -> None:
    client = app.test_client()
    for path in (GROUP, LIST, f"{SUBJECTS}/{matches(get(app, SUBJECTS))[0]['id']}"):
        first = client.get(path)
        assert first.headers["ETag"] == 'W/"1"'
        again = client.get(path, headers={"If-None-Match": 'W/"1"'})
        assert (again.status_code, again.data) == (304, b"")
        since = {"If-Modified-Since": first.headers["Last-Modified"]}
        assert client.get(path, headers=since).status_code == 304


def test_an_earlier_run_can_still_be_read(app: Flask, filled: Store) -> None:
    kept(filled, "b", (candidate("p1"),))
    assert get(app, GROUP)["quantity"] == 1
    assert get(app, f"{GROUP}/_history/1")["quantity"] == 3
    assert get(app, f"{LIST}/_history/2")["meta"]["versionId"] == "2"
    for path in (f"{GROUP}/_history/9", f"{LIST}/_history/x", "/fhir/Group/no-candidates"):
        assert get(app, path, 404)["issue"][0]["code"] == "not-found"
    assert get(app, f"/fhir/Group/{TRIAL}")["actual"] is False


def test_a_purged_run_is_gone(app: Flask, filled: Store) -> None:
    purge(filled, "2999-01-01T00:00:00Z")
    assert get(app, f"{GROUP}/_history/1", 410)["issue"][0]["code"] == "deleted"
    assert "no search has been finished" in get(app, GROUP, 404)["issue"][0]["diagnostics"]
    assert patients(get(app, SUBJECTS)) == []


def test_searches_show_groups_and_lists_without_members(app: Flask) -> None:
    found = {one["id"]: one for one in matches(get(app, "/fhir/Group"))}
    assert set(found) == {TRIAL, f"{TRIAL}-candidates"}
    assert found[f"{TRIAL}-candidates"]["quantity"] == 3
    assert found[f"{TRIAL}-candidates"]["meta"]["tag"][0]["code"] == "SUBSETTED"
    assert "member" not in found[f"{TRIAL}-candidates"]
    only = matches(get(app, f"/fhir/List?_id={TRIAL}-candidates"))
    assert [one["resourceType"] for one in only] == ["List"]
    assert matches(get(app, "/fhir/List?_id=other")) == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["Patient/p1", "Patient/p2", "Patient/p3"]),
        (f"study={TRIAL}", ["Patient/p1", "Patient/p2", "Patient/p3"]),
        (f"study=ResearchStudy/{TRIAL}&patient=p2", ["Patient/p2"]),
        (f"study=http://x.example/fhir/ResearchStudy/{TRIAL}&individual=Patient/p1,Patient/p3",
         ["Patient/p1", "Patient/p3"]),
        ("study=other", []),
        ("status=potential-candidate", ["Patient/p1", "Patient/p2", "Patient/p3"]),
        ("status=http://hl7.org/fhir/research-subject-status|not-registered", []),
        ("status=other|potential-candidate", []),
        ("status=eligible", []),
        ("patient=Group/p1", []),
        ("patient=p4", []),
    ],
)  # fmt: skip
def test_candidates_are_searched(app: Flask, query: str, expected: list[str]) -> None:
    found = get(app, f"{SUBJECTS}?{query}")
    assert patients(found) == expected
    assert found["total"] == len(expected)


def test_candidates_are_searched_by_id_and_identifier(app: Flask) -> None:
    first, second, _ = matches(get(app, SUBJECTS))
    assert matches(get(app, f"{SUBJECTS}?_id={first['id']},x")) == [first]
    system = "https://eligibility.example.org/fhir/research-subject"
    assert matches(get(app, f"{SUBJECTS}?identifier={system}|{second['id']}")) == [second]
    assert matches(get(app, f"{SUBJECTS}?identifier=x|{second['id']}")) == []


def test_who_drops_out_is_not_registered_and_keeps_the_id(app: Flask, filled: Store) -> None:
    before = {one["individual"]["reference"]: one["id"] for one in matches(get(app, SUBJECTS))}
    kept(filled, "b", (candidate("p1"), out("p2"), candidate("p4")))
    found = {one["individual"]["reference"]: one for one in matches(get(app, SUBJECTS))}
    assert {name: one["status"] for name, one in found.items()} == {
        "Patient/p1": "potential-candidate",
        "Patient/p2": "not-registered",
        "Patient/p3": "not-registered",
        "Patient/p4": "potential-candidate",
    }
    assert all(found[name]["id"] == known for name, known in before.items())
    assert patients(get(app, f"{SUBJECTS}?status=not-registered")) == ["Patient/p2", "Patient/p3"]
    assert patients(get(app, f"{SUBJECTS}?run=1")) == ["Patient/p1", "Patient/p2", "Patient/p3"]


def test_whom_an_incomplete_run_did_not_reach_is_not_dropped(app: Flask, filled: Store) -> None:
    kept(filled, "b", (candidate("p1"), out("p2")), complete=False)
    for status, expected in (
        ("potential-candidate", ["Patient/p1", "Patient/p3"]),
        ("not-registered", ["Patient/p2"]),
    ):
        found = get(app, f"{SUBJECTS}?status={status}")
        assert patients(found) == expected
        notices = [one for one in found["entry"] if one["search"]["mode"] == "outcome"]
        assert notices[0]["resource"]["issue"][0]["severity"] == "warning"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_pages_hold_everyone_once_forward_and_back(place: str, size: int) -> None:
    names = [f"p{number}" for number in range(7)]
    with Store.open(place) as store:
        first = kept(store, "a", tuple(map(candidate, names)))
        app = app_of(store=place, base_url="http://us.example/fhir")
        pages = [get(app, f"{SUBJECTS}?study={TRIAL}&_count={size}")]
        # A search that ends in between does not change the pages that follow.
        kept(store, "b", (candidate("p0"), candidate("new")))
        while (url := link(pages[-1], "next")) is not None:
            assert f"_runs={first.id}" in url
            assert "Patient" not in url
            pages.append(get(app, url))
        found = [one for page in pages for one in matches(page)]
        assert sorted(one["individual"]["reference"] for one in found) == sorted(
            f"Patient/{name}" for name in names
        )
        assert {one["status"] for one in found} == {"potential-candidate"}
        assert {page["total"] for page in pages} == {7}
        assert link(pages[0], "previous") is None
        back = [pages[-1]]
        while (url := link(back[-1], "previous")) is not None:
            back.append(get(app, url))
        assert [matches(page) for page in reversed(back)] == [matches(page) for page in pages]
        assert matches(get(app, link(pages[-1], "self") or "")) == matches(pages[-1])


def test_a_count_of_none_only_counts(app: Flask) -> None:
    found = get(app, f"{SUBJECTS}?_count=0")
    assert (found["total"], matches(found)) == (3, [])
    assert link(found, "next") is None


@pytest.mark.parametrize("query", ["_count=x", "_count=-1", "run=x", "_runs=9", "_after=x"])
def test_what_cannot_be_meant_is_refused(app: Flask, query: str) -> None:
    reply = app.test_client().get(f"{SUBJECTS}?{query}")
    assert reply.status_code in (400, 404)
    assert refusal(reply)["code"] in ("value", "not-found")


@pytest.mark.parametrize("path", [GROUP, LIST, SUBJECTS, "/fhir/List", f"{SUBJECTS}/x"])
def test_without_a_store_it_is_said_what_to_set(path: str) -> None:
    reply = app_of().test_client().get(path)
    assert reply.status_code == 404
    found = refusal(reply)
    assert found["code"] == "not-supported"
    assert "ELIGIBILITY_STORE" in found["diagnostics"]


def test_without_a_store_the_trials_groups_are_still_found() -> None:
    assert [one["id"] for one in matches(get(app_of(), "/fhir/Group"))] == [TRIAL]


def test_before_the_first_search_it_is_said_what_to_do(place: str) -> None:
    app = app_of(store=place)
    assert "eligibility screen" in get(app, LIST, 404)["issue"][0]["diagnostics"]
    found = get(app, SUBJECTS)
    assert found["total"] == 0
    assert "eligibility screen" in found["entry"][0]["resource"]["issue"][0]["diagnostics"]
    assert get(app, f"{SUBJECTS}/{'0' * 32}", 404)["issue"][0]["code"] == "not-found"
    with Store.open(place) as store:
        kept(store, "a", (candidate("p1"),))
    assert patients(get(app, SUBJECTS)) == ["Patient/p1"]


def test_results_need_the_caller_s_key(filled: Store, place: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"someone sha256:{'0' * 64}\n", encoding="utf-8")
    client = app_of(store=place, caller_auth="keys", caller_keys_file=keys).test_client()
    assert {client.get(path).status_code for path in (GROUP, LIST, SUBJECTS)} == {401}


def test_logs_hold_the_route_and_nobody(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="eligibility"):
        app.test_client().get(f"{SUBJECTS}?patient=p1")
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    assert [one["route"] for one in fields if "route" in one] == [SUBJECTS]
    assert "p1" not in str(fields)
