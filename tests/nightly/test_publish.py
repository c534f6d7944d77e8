"""Writing candidates back: nothing twice, nothing of anybody else's overwritten."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service.cli import main
from service.config import Settings
from service.errors import SourceError, UsageError
from service.fhir.writing import Writing
from service.nightly.model import Outcome
from service.nightly.publish import Published, publish
from service.results.merging import merge
from service.storage.purge import purge
from service.storage.sent import Marks
from service.storage.store import Run, Store
from tests.nightly.fhirserver import TYPES, Answer, Asked, FhirServer, serving
from tests.results.shapes import check_r4b
from tests.storage.making import MATERIALS, TRIAL, invented, spec_of, statement_of

OPEN, OUT = {"I1": ("unknown", "no-data")}, {"I1": ("fail", "value-violates")}
NO_SUBJECTS = tuple(one for one in TYPES if one != "ResearchSubject")


def candidate(name: str) -> Outcome:
    return invented(name, OPEN)


def out(name: str) -> Outcome:
    return invented(name, OUT, verdict="ineligible")


@pytest.fixture
def server() -> Iterator[FhirServer]:
    with serving(FhirServer()) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(str(tmp_path / "store.db")) as made:
        yield made


class Site:
    """A hospital: its server, our store, and the nights that follow each other."""

    def __init__(self, server: FhirServer, store: Store) -> None:
        self.server, self.store = server, store
        self.settings = Settings(source=server.base)
        self.nights = 0

    def night(self, *outcomes: Outcome, complete: bool = True, cohort: str | None = None) -> Run:
        self.nights += 1
        spec = replace(spec_of(source=self.server.base), cohort=cohort)
        with self.store.locked() as writer:
            opened = writer.begin(spec, key=f"night {self.nights}", materials=MATERIALS)
            opened.add(outcomes)
            return opened.finish(statement_of(opened.run, complete=complete))

    def publish(self, run: Run, **more: Any) -> Published:
        more = {"pause": lambda seconds: None} | more
        return publish(self.settings, self.store, run, TRIAL, **more)

    def statuses(self) -> dict[str, str]:
        return {
            one["individual"]["reference"]: one["status"]
            for one in self.server.all("ResearchSubject")
        }

    def subject(self, name: str) -> dict[str, Any]:
        (found,) = (
            one for one in self.server.all("ResearchSubject")
            if one["individual"]["reference"] == f"Patient/{name}"
        )  # fmt: skip
        return found

    def members(self) -> list[str]:
        found = self.server.only("Group").get("member", ())
        return sorted(one["entity"]["reference"] for one in found)

    def listed(self) -> list[str]:
        """Give the patients of the List's entries."""
        found = []
        for entry in self.server.only("List").get("entry", ()):
            kind, _, name = entry["item"]["reference"].partition("/")
            found.append(self.server.get(kind, name)["individual"]["reference"])
        return sorted(found)


@pytest.fixture
def site(server: FhirServer, store: Store) -> Site:
    return Site(server, store)


def state(server: FhirServer) -> Any:
    """Give what is on the server, apart from versions and the order of creation."""
    found = copy.deepcopy([server.all(kind) for kind in TYPES])
    text = json.dumps(found)
    for one in server.all("ResearchSubject"):
        reference = json.dumps(f"ResearchSubject/{one['id']}")
        text = text.replace(reference, json.dumps(one["individual"]["reference"]))
    plain = json.loads(text)
    for resources in plain:
        for one in resources:
            del one["meta"]["versionId"], one["id"]
    return [sorted(resources, key=json.dumps) for resources in plain]


def test_candidates_are_written_and_valid(site: Site) -> None:
    done = site.publish(site.night(candidate("p1"), candidate("p2"), out("p3")))
    assert (done.created, done.updated, done.problems, done.kept) == (4, 0, (), ())
    assert site.statuses() == {
        "Patient/p1": "potential-candidate",
        "Patient/p2": "potential-candidate",
    }
    assert site.members() == site.listed() == ["Patient/p1", "Patient/p2"]
    for kind in ("Group", "List", "ResearchSubject"):
        for one in site.server.all(kind):
            check_r4b(one)
            assert one["meta"]["tag"][0]["code"] == "trial-eligibility"
    for asked in site.server.writes:
        assert "If-None-Exist" in asked.headers or "If-Match" in asked.headers
        assert asked.body is not None
        assert "p3" not in json.dumps(asked.body)


@pytest.mark.parametrize("status", [403, 500, 503, None])
def test_a_study_that_can_t_be_looked_for_makes_nobody_s_second_subject(
    site: Site, status: int | None
) -> None:
    study = {"reference": "ResearchStudy/77"}
    site.server.put({
        "resourceType": "ResearchStudy", "id": "77", "identifier": [{"value": TRIAL}],
    })  # fmt: skip
    site.server.put({
        "resourceType": "ResearchSubject", "id": "theirs", "status": "on-study", "study": study,
        "individual": {"reference": "Patient/p1"},
    })  # fmt: skip
    run = site.night(candidate("p1"))
    site.server.before = lambda asked: Answer(status) if "ResearchStudy" in asked.path else None
    with pytest.raises(SourceError):
        site.publish(run)
    assert site.server.writes == []
    site.server.before = lambda asked: None
    assert len(site.publish(run).kept) == 1
    assert site.statuses() == {"Patient/p1": "on-study"}


def test_what_people_did_to_group_and_list_stays_in_all_later_nights(site: Site) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2"), candidate("p3")))
    group, listed = site.server.only("Group"), site.server.only("List")
    # One is taken out, one is marked, one is added, and there is another name.
    member = [
        *(one for one in group["member"] if one["entity"]["reference"] == "Patient/p3"),
        {"entity": {"reference": "Patient/p2"}, "inactive": True},
        {"entity": {"reference": "Patient/theirs"}},
        {"entity": {"display": "of another hospital"}},
    ]
    site.server.put({**group, "name": "Clinic", "member": member})
    added = {"item": {"reference": "ResearchSubject/theirs"}}
    site.server.put({**listed, "title": "Clinic", "entry": [*listed["entry"][1:], added]})
    for night in ("q1", "q2", "q3"):
        site.publish(site.night(candidate("p1"), candidate("p2"), candidate(night)))
        group, now = site.server.only("Group"), site.server.only("List")
        mine = {"entity": {"reference": f"Patient/{night}"}}
        assert sorted(group["member"], key=json.dumps) == sorted(
            [*member[1:], mine], key=json.dumps
        )
        assert added in now["entry"]
        assert listed["entry"][0]["item"] not in [one["item"] for one in now["entry"]]
        assert (group["name"], now["title"]) == ("Clinic", "Clinic")


@pytest.mark.parametrize("odd", [None, "x", [None], ["x"], [{"entity": None}], [{"entity": "x"}]])
def test_members_of_any_form_do_no_harm(site: Site, odd: Any) -> None:
    site.publish(site.night(candidate("p1")))
    site.server.put({**site.server.only("Group"), "member": odd})
    done = site.publish(site.night(candidate("p1"), candidate("p2")))
    assert done.problems == ()
    assert {"entity": {"reference": "Patient/p2"}} in site.server.only("Group")["member"]


def test_the_trial_s_own_study_is_referred_to_if_the_server_has_it(site: Site) -> None:
    site.publish(site.night(candidate("p1")))
    assert site.subject("p1")["study"]["identifier"]["value"] == TRIAL
    other = FhirServer()
    with serving(other), Store.open(site.store.database.url.database + "2") as store:  # type: ignore[operator]
        again = Site(other, store)
        other.put({"resourceType": "ResearchStudy", "id": "s", "identifier": [
            {"system": "https://clinicaltrials.gov", "value": TRIAL}]})  # fmt: skip
        again.publish(again.night(candidate("p1")))
        assert again.subject("p1")["study"] == {"reference": "ResearchStudy/s"}
        (found,) = other.only("Group")["characteristic"]
        assert found["valueReference"] == {"reference": "ResearchStudy/s"}


def test_the_same_run_again_writes_nothing(site: Site) -> None:
    run = site.night(candidate("p1"), candidate("p2"))
    site.publish(run)
    before = state(site.server)
    site.server.asked.clear()
    done = site.publish(run)
    assert (done.created, done.updated, done.unchanged) == (0, 0, 4)
    assert site.server.writes == []
    assert state(site.server) == before
    # Not even a request for each candidate.
    assert len(site.server.asked) == 2


def test_who_drops_out_loses_our_status_and_gets_it_back_on_return(site: Site) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2"), candidate("p3")))
    done = site.publish(site.night(candidate("p1"), out("p2")))
    assert (done.created, done.updated) == (0, 4)
    assert site.statuses() == {
        "Patient/p1": "potential-candidate",
        "Patient/p2": "not-registered",
        "Patient/p3": "not-registered",
    }
    assert site.members() == site.listed() == ["Patient/p1"]
    site.publish(site.night(candidate("p1"), candidate("p2")))
    assert site.statuses()["Patient/p2"] == "potential-candidate"
    assert site.members() == site.listed() == ["Patient/p1", "Patient/p2"]


def test_whom_an_incomplete_run_did_not_reach_stays(site: Site) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2"), candidate("p3")))
    site.publish(site.night(out("p2"), candidate("p3"), complete=False))
    assert site.statuses()["Patient/p1"] == "potential-candidate"
    assert site.statuses()["Patient/p2"] == "not-registered"
    assert site.members() == site.listed() == ["Patient/p1", "Patient/p3"]


def test_a_search_elsewhere_says_nothing_of_those_it_did_not_look_at(site: Site) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2")))
    for _ in range(3):
        site.publish(site.night(candidate("p2"), cohort="Group/7"))
        assert site.statuses()["Patient/p1"] == "potential-candidate"
        assert site.members() == site.listed() == ["Patient/p1", "Patient/p2"]
    site.publish(site.night(candidate("p2")))
    assert site.members() == ["Patient/p2"]


@pytest.mark.parametrize("status", ["screening", "on-study", "withdrawn", "not-registered"])
def test_a_status_that_a_person_has_set_stays(site: Site, status: str) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2")))
    site.server.change("ResearchSubject", site.subject("p1")["id"], status=status)
    last = site.night(candidate("p1"), candidate("p2"))
    for run in (site.night(out("p1")), site.night(candidate("p1")), site.night(out("p1"))):
        done = site.publish(run)
        assert site.statuses()["Patient/p1"] == status
        assert all("p1" not in line for line in (*done.kept, *done.problems, *done.done))
        assert done.problems == ()
    assert last.id < site.nights
    assert site.statuses()["Patient/p2"] == "not-registered"


def test_what_a_person_touched_without_changing_the_status_stays_too(site: Site) -> None:
    site.publish(site.night(candidate("p1")))
    site.server.change("ResearchSubject", site.subject("p1")["id"], actualArm="A")
    done = site.publish(site.night(out("p1")))
    assert site.statuses() == {"Patient/p1": "potential-candidate"}
    assert "others have changed it" in done.kept[0]


def test_another_author_s_research_subject_is_listed_and_not_doubled(site: Site) -> None:
    theirs = {
        "resourceType": "ResearchSubject", "id": "x", "status": "on-study",
        "study": {"reference": f"ResearchStudy/{TRIAL}"}, "individual": {"reference": "Patient/p1"},
    }  # fmt: skip
    site.server.put(theirs)
    site.server.put({**theirs, "id": "y", "study": {"reference": "ResearchStudy/other"},
                     "individual": {"reference": "Patient/p2"}})  # fmt: skip
    done = site.publish(site.night(candidate("p1"), candidate("p2")))
    assert site.server.get("ResearchSubject", "x")["status"] == "on-study"
    assert len(site.server.all("ResearchSubject")) == 3
    assert "another author" in done.kept[0]
    references = [one["item"]["reference"] for one in site.server.only("List")["entry"]]
    assert "ResearchSubject/x" in references


def test_what_a_person_removed_is_not_made_again(site: Site) -> None:
    site.publish(site.night(candidate("p1")))
    site.server.remove("ResearchSubject", site.subject("p1")["id"])
    site.server.remove("Group", site.server.only("Group")["id"])
    done = site.publish(site.night(out("p1")))
    assert site.server.all("ResearchSubject") == site.server.all("Group") == []
    assert len(done.kept) == 2


def test_a_list_or_group_taken_out_of_use_stays_so(site: Site) -> None:
    site.publish(site.night(candidate("p1")))
    site.server.change("List", site.server.only("List")["id"], status="retired")
    site.server.change("Group", site.server.only("Group")["id"], active=False)
    done = site.publish(site.night(candidate("p1"), candidate("p2")))
    assert site.server.only("List")["status"] == "retired"
    assert site.members() == ["Patient/p1"]
    assert [line.split(":")[0] for line in done.kept] == ["Group", "List"]


def test_what_people_add_to_the_group_and_list_stays(site: Site) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2")))
    group, found = site.server.only("Group"), site.server.only("List")
    mine = {"entity": {"reference": "Patient/p9"}}
    kept_member = {**group["member"][0], "inactive": True}
    site.server.change("Group", group["id"], member=[kept_member, mine], managingEntity={"x": 1})
    site.server.change("List", found["id"], note=[{"text": "call before noon"}])
    site.publish(site.night(candidate("p1"), candidate("p2"), candidate("p3")))
    group = site.server.only("Group")
    # p2 was taken out by a person, p1 set inactive, p9 added.
    assert group["member"] == [kept_member, mine, {"entity": {"reference": "Patient/p3"}}]
    assert group["managingEntity"] == {"x": 1}
    assert group["quantity"] == 3
    assert site.server.only("List")["note"] == [{"text": "call before noon"}]
    assert len(site.server.only("List")["entry"]) == 3


def test_a_change_between_our_reading_and_writing_is_seen(site: Site) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2")))
    name = site.subject("p1")["id"]

    def edit(asked: Asked) -> Answer | None:
        if asked.method == "PUT" and asked.path.endswith(name):
            site.server.before = lambda asked: None
            site.server.change("ResearchSubject", name, status="screening")
        return None

    site.server.before = edit
    done = site.publish(site.night(out("p1"), candidate("p2")))
    assert site.statuses()["Patient/p1"] == "screening"
    assert (len(done.kept), done.problems) == (1, ())


def test_versions_that_never_hold_still_are_given_up_after_some_attempts(site: Site) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2")))
    site.server.asked.clear()
    group = site.server.only("Group")["id"]

    def storm(asked: Asked) -> Answer | None:
        return Answer(412) if asked.method == "PUT" and group in asked.path else None

    site.server.before = storm
    run = site.night(out("p1"), candidate("p2"))
    done = site.publish(run)
    assert len([one for one in site.server.writes if one.path.endswith(f"Group/{group}")]) == 4
    assert len(done.problems) == 1
    assert done.exit == 3
    assert site.listed() == ["Patient/p2"]
    site.server.before = lambda asked: None
    assert site.publish(run).exit == 0
    assert site.members() == ["Patient/p2"]


@pytest.mark.parametrize(
    ("status", "advice"),
    [(403, "ELIGIBILITY_PUBLISH_SCOPE"), (409, "conflicts"), (422, "profiles"), (400, "rules")],
)
def test_a_refusal_of_one_is_told_and_stops_no_other(site: Site, status: int, advice: str) -> None:
    def refuse(asked: Asked) -> Answer | None:
        wanted = asked.method == "POST"
        about = json.dumps(asked.body or {})
        if wanted and "Patient/p1" in about and "ResearchSubject" in asked.path:
            issue = {"severity": "error", "code": "business-rule", "diagnostics": "Patient p1"}
            return Answer(status, body={"resourceType": "OperationOutcome", "issue": [issue]})
        return None

    site.server.before = refuse
    done = site.publish(site.night(candidate("p1"), candidate("p2")))
    assert site.statuses() == {"Patient/p2": "potential-candidate"}
    assert site.listed() == ["Patient/p2"]
    assert site.members() == ["Patient/p1", "Patient/p2"]
    (problem,) = done.problems
    assert advice in problem
    assert "business-rule" in problem
    assert "p1" not in problem


def test_a_busy_server_is_waited_for_as_long_as_it_asks(site: Site) -> None:
    waits: list[float] = []
    times = iter((429, 503))

    def busy(asked: Asked) -> Answer | None:
        status = next(times, None) if asked.method == "POST" else None
        return Answer(status, {"Retry-After": "7"}) if status else None

    site.server.before = busy
    done = site.publish(site.night(candidate("p1")), pause=waits.append)
    assert waits == [7.0, 7.0]
    assert (done.created, done.problems) == (3, ())


@pytest.mark.parametrize("heeds", [True, False])
def test_a_lost_answer_to_a_create_makes_no_second_one(site: Site, heeds: bool) -> None:
    lost: list[str] = []
    site.server.heeds_if_none_exist = heeds

    def lose(asked: Asked) -> Answer | None:
        if asked.method == "POST" and asked.path not in lost:
            lost.append(asked.path)
            return Answer(None)
        return None

    site.server.after = lose
    done = site.publish(site.night(candidate("p1")))
    assert len(lost) == 3
    assert done.problems == ()
    assert [len(site.server.all(kind)) for kind in ("ResearchSubject", "Group", "List")] == [1] * 3
    site.server.asked.clear()
    site.publish(site.night(out("p1")))
    assert site.statuses() == {"Patient/p1": "not-registered"}


def test_a_server_that_gives_nothing_back_is_read_again(site: Site) -> None:
    site.server.gives_back = False
    run = site.night(candidate("p1"))
    assert site.publish(run).created == 3
    assert site.publish(run).unchanged == 3
    site.publish(site.night(out("p1")))
    assert site.statuses() == {"Patient/p1": "not-registered"}


def test_redirects_of_writes_are_not_followed(site: Site) -> None:
    def redirect(asked: Asked) -> Answer | None:
        place = {"Location": f"{site.server.base}/Group"}
        return Answer(303, place) if asked.method == "POST" else None

    site.server.before = redirect
    done = site.publish(site.night(candidate("p1")))
    assert done.created == 0
    assert len(done.problems) == 3


def test_a_server_without_research_subjects_gets_them_within_the_list(store: Store) -> None:
    with serving(FhirServer(NO_SUBJECTS)) as server:
        site = Site(server, store)
        run = site.night(candidate("p1"), candidate("p2"))
        assert site.publish(run).created == 2
        found = server.only("List")
        check_r4b(found)
        assert len(found["contained"]) == len(found["entry"]) == 2
        first = found["contained"][0]
        changed = [{**first, "status": "screening"}, *found["contained"][1:]]
        server.change("List", found["id"], contained=changed)
        assert site.publish(run).updated == 0
        site.publish(site.night(out("p1"), out("p2"), candidate("p3")))
        found = server.only("List")
        check_r4b(found)
        whose = {one["individual"]["reference"]: one["status"] for one in found["contained"]}
        assert whose == {
            first["individual"]["reference"]: "screening", "Patient/p3": "potential-candidate"
        }  # fmt: skip
        assert len(found["entry"]) == 2


def test_a_server_without_lists_is_named(store: Store) -> None:
    with serving(FhirServer(("ResearchSubject", "Group"))) as server:
        site = Site(server, store)
        done = site.publish(site.night(candidate("p1")))
        assert (done.absent, done.exit) == (("List",), 0)
        assert len(server.all("Group")) == 1


def test_a_server_that_takes_nothing_is_an_error(store: Store) -> None:
    with serving(FhirServer(("Patient",))) as server:
        site = Site(server, store)
        with pytest.raises(SourceError, match="Group, List or ResearchSubject"):
            site.publish(site.night(candidate("p1")))


class Crash(BaseException):
    """The process dies."""


class Fuse:
    """Lets so many steps pass, then the process dies: before or after a step's work."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def fused(*given: Any, **named: Any) -> Any:
            self._burn()
            found = function(*given, **named)
            self._burn()
            return found

        return fused

    def _burn(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


def test_cut_short_anywhere_the_same_again_ends_the_same(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2")))
    run = site.night(candidate("p1"), out("p2"), candidate("p3"))
    last = site.night(out("p1"), candidate("p2"), candidate("p3"))
    site.store.close()
    there = copy.deepcopy(site.server.resources)
    stored = (tmp_path / "store.db").read_bytes()

    def nights(steps: int | None) -> tuple[Any, bool]:
        """Go on from the first night; the process dies after so many steps of the second."""
        site.server.resources = copy.deepcopy(there)
        place = tmp_path / f"at-{steps}.db"
        place.write_bytes(stored)
        crashed = False
        with Store.open(str(place)) as store, monkeypatch.context() as patched:
            site.store = store
            if steps is not None:
                fuse = Fuse(steps)
                for owner, method in (
                    (Writing, "create"), (Writing, "update"), (Marks, "_keep")
                ):  # fmt: skip
                    patched.setattr(owner, method, fuse.around(getattr(owner, method)))
            try:
                site.publish(run)
            except Crash:
                crashed = True
        with Store.open(str(place)) as store:
            site.store = store
            done = site.publish(run)
            assert (done.problems, done.kept) == ((), ())
            site.publish(last)
        place.unlink()
        return state(site.server), crashed

    expected, _ = nights(None)
    steps, crashed = 0, True
    while crashed:
        found, crashed = nights(steps)
        assert found == expected, steps
        steps += 1
    assert steps > 20


def test_a_lost_store_neither_doubles_nor_overwrites(site: Site, tmp_path: Path) -> None:
    site.publish(site.night(candidate("p1"), candidate("p2")))
    key = site.store.subject_key()
    with Store.open(str(tmp_path / "new.db")) as store:
        again = Site(site.server, store)
        site.server.change("ResearchSubject", site.subject("p1")["id"], status="screening")
        done = again.publish(again.night(candidate("p1"), candidate("p2")))
        assert store.subject_key() != key
        assert len(site.server.all("ResearchSubject")) == 2
        assert site.statuses()["Patient/p1"] == "screening"
        assert done.problems == ()
        assert len(site.server.all("Group")) == len(site.server.all("List")) == 1
        assert site.listed() == ["Patient/p1", "Patient/p2"]


def test_a_rehearsal_tells_and_writes_nothing(site: Site) -> None:
    run = site.night(candidate("p1"))
    done = site.publish(run, rehearse=True)
    assert done.created == 3
    assert all(line.startswith("would create") for line in done.done)
    assert "p1" not in str(done)
    assert site.server.writes == []
    assert site.publish(run).created == 3
    later = site.publish(site.night(out("p1")), rehearse=True)
    assert later.updated == 3
    assert site.statuses() == {"Patient/p1": "potential-candidate"}


def test_an_older_run_undoes_no_newer_one(site: Site) -> None:
    first = site.night(candidate("p1"))
    site.publish(site.night(out("p1")))
    with pytest.raises(UsageError, match="newer"):
        site.publish(first)


def test_runs_of_other_sources_are_not_written(site: Site) -> None:
    run = site.night(candidate("p1"))
    for source in ("export", None, "http://127.0.0.1:1/fhir"):
        site.settings = Settings(source=source)
        with pytest.raises(UsageError):
            site.publish(run)
    assert site.server.asked == []


def test_a_server_that_does_not_answer_is_an_error(site: Site) -> None:
    run = site.night(candidate("p1"))
    site.server.before = lambda asked: Answer(404)
    with pytest.raises(SourceError):
        site.publish(run)


def test_a_purge_takes_the_marks_away_too(site: Site) -> None:
    site.publish(site.night(candidate("p1")))
    purge(site.store, "2999-01-01T00:00:00Z")
    marks = Marks(site.store, site.server.base, TRIAL, 1)
    assert marks.of("ResearchSubject") == marks.of("Group") == {}


def test_the_command_writes_and_tells_how_it_went(site: Site) -> None:
    site.night(candidate("p1"))
    place = site.store.database.url.database
    options = ["publish", "--store", str(place), "--source", site.server.base]
    rehearsed = CliRunner().invoke(main, [*options, "--dry-run"])
    assert (rehearsed.exit_code, site.server.writes) == (0, [])
    assert "would create Group" in rehearsed.stdout
    assert "would be 3 created" in rehearsed.stderr
    done = CliRunner().invoke(main, [*options, "--trial", TRIAL])
    assert done.exit_code == 0, done.output
    assert "3 created" in done.stderr
    assert "p1" not in done.output.replace(site.server.base, "")
    site.night(out("p1"))
    site.server.before = lambda asked: Answer(422) if asked.method == "PUT" else None
    assert CliRunner().invoke(main, options).exit_code == 3


PARTS = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)


@given(PARTS, PARTS, PARTS)
def test_merging_keeps_what_each_side_changed(
    base: list[str], theirs: list[str], ours: list[str]
) -> None:
    def group(names: list[str]) -> dict[str, Any]:
        members = [{"entity": {"reference": name}} for name in names]
        return {"resourceType": "Group", "quantity": len(names)} | (
            {"member": members} if members else {}
        )

    merged = merge(group(base), group(theirs), group(ours))
    found = {one["entity"]["reference"] for one in merged.get("member", ())}
    # In what nobody else touched ours counts; what somebody added or took out stays so.
    before, there, wanted = set(base), set(theirs), set(ours)
    assert found == ((there - before) | (wanted & there) | (wanted - before))
    assert merged["quantity"] == len(found)
    assert merge(group(base), merged, group(ours)) == merged
