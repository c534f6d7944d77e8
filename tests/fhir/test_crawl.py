"""Many patients' records by few requests are the records that each patient alone would give."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import EligibilityError, SourceError
from service.fhir import crawl
from service.fhir.crawl import Unread, read_records, survivor_of
from service.fhir.http import Limits
from service.fhir.server import ServerSource
from service.fhir.source import Fetched, SiteSearch, Wanted
from tests.faults import QUICK, cut, outcome, reset
from tests.fhir.hospital import Asked, Hospital, Json, Manners, running

HAEMOGLOBIN = ("http://loinc.org", "718-7")
WANTED = Wanted(
    {
        "Condition": None,
        "Observation": frozenset({HAEMOGLOBIN}),
        "MedicationRequest": None,
        "Procedure": None,
    }
)
PATIENT = replace(QUICK, outage=0.2, fetch=5.0, circuit_seconds=0.05)
Make = Callable[..., ServerSource]


@pytest.fixture(scope="module")
def server() -> Iterator[Hospital]:
    with running() as found:
        yield found


@pytest.fixture
def hospital(server: Hospital) -> Hospital:
    server.manners = Manners()
    server.held.clear()
    server.seen.clear()
    server.fault = lambda handler, asked: False
    return server


@pytest.fixture
def source() -> Iterator[Make]:
    made: list[ServerSource] = []

    def make(hospital: Hospital, limits: Limits = PATIENT, **site: Any) -> ServerSource:
        made.append(ServerSource(hospital.base, site=SiteSearch(**site), limits=limits))
        return made[-1]

    yield make
    for found in made:
        found.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in small chunks, so that few patients make many of them."""
    monkeypatch.setattr(crawl, "CHUNK", 12)
    monkeypatch.setattr(crawl, "_ROUND", 10)


def who(number: int) -> str:
    return f"p{number:05}"


def of(kind: str, found: str, number: int, **more: Any) -> Json:
    reference = {"reference": f"Patient/{who(number)}"}
    return {"resourceType": kind, "id": found, "subject": reference, **more}


def people(count: int) -> Iterator[Json]:
    """Give patients with none to four Conditions, some results, few medicines."""
    yield {"resourceType": "Medication", "id": "drug", "code": {"text": "a medicine"}}
    coding = {"system": HAEMOGLOBIN[0], "code": HAEMOGLOBIN[1]}
    for number in range(count):
        yield {"resourceType": "Patient", "id": who(number)}
        for each in range(number * 7 % 5):
            yield of("Condition", f"c{number}-{each}", number, code={"text": "a finding"})
        for each in range(number * 3 % 4):
            when = f"2026-01-{1 + each:02}"
            code = {"coding": [coding]}
            more = {"status": "final", "code": code, "effectiveDateTime": when}
            yield of("Observation", f"o{number}-{each}", number, **more)
        if number % 11 == 3:
            drug = {"reference": "Medication/drug"}
            yield of("MedicationRequest", f"m{number}", number, medicationReference=drug)


def alone(source: ServerSource, patient: str, wanted: Wanted = WANTED) -> Fetched | str:
    """Read one patient's record as it is read alone."""
    try:
        return source.fetch(patient, wanted)
    except EligibilityError as error:
        return error.message


def same(got: Fetched | Unread, one: Fetched | str) -> bool:
    """Tell whether two ways of reading gave the same."""
    if isinstance(got, Unread) or isinstance(one, str):
        return isinstance(got, Unread) and got.problem == one
    return (sorted(each.raw for each in got.items), got.readings, got.patient) == (
        sorted(each.raw for each in one.items),
        one.readings,
        one.patient,
    )


def check(hospital: Hospital, source: ServerSource, ids: list[str], wanted: Wanted = WANTED) -> int:
    """Read patients together and alone; gives how many requests together took."""
    hospital.seen.clear()
    got = list(read_records(source, ids, wanted))
    asked = len(hospital.seen)
    assert len(got) == len(ids)
    for patient, record in zip(ids, got, strict=True):
        assert same(record, alone(source, patient, wanted)), patient
    return asked


@pytest.mark.parametrize("count", [0, 1, 2, 49, 50, 51, 100, 101])
def test_every_patient_is_read_once_and_in_order(
    hospital: Hospital, source: Make, count: int
) -> None:
    hospital.put(*people(count))
    ids = [who(number) for number in range(count)]
    got = list(read_records(source(hospital), ids, WANTED))
    assert [each.patient for each in got] == [f"Patient/{each}" for each in ids]
    assert not any(isinstance(each, Unread) for each in got)


@pytest.mark.parametrize("count", [1_000, 1_001])
def test_a_thousand_patients_take_few_requests_each(
    hospital: Hospital, source: Make, count: int
) -> None:
    hospital.put(*people(count))
    ids = [who(number) for number in range(count)]
    got = list(read_records(source(hospital), ids, Wanted({"Condition": None})))
    assert [each.patient for each in got] == [f"Patient/{each}" for each in ids]
    conditions = sum(b'"Condition"' in item.raw for each in got for item in records(each))
    assert conditions == len(hospital.held["Condition"])
    assert len(hospital.seen) < count / 8


def records(got: Fetched | Unread) -> tuple[Any, ...]:
    assert isinstance(got, Fetched)
    return got.items


MANNERS = [
    Manners(),
    Manners(lists="first"),
    Manners(lists="last"),
    Manners(lists="none"),
    Manners(lists="others"),
    Manners(lists=6),
    Manners(lists=2),
    Manners(totals="none"),
    Manners(totals="wrong"),
    Manners(ceiling=10),
    Manners(ceiling=16, totals="none"),
    Manners(page=7),
    Manners(lists="first", batch="undeclared"),
    Manners(lists="first", batch="refused"),
    Manners(lists="first", batch="empty"),
    Manners(lists="first", batch="shuffled"),
    Manners(refused={"Condition": 403}),
    Manners(refused={"Observation": 404}),
    Manners(unknown=frozenset({"_include"})),
    Manners(unknown=frozenset({"_sort"})),
    Manners(unknown=frozenset({"_summary"})),
    Manners(outcomes={"Condition": outcome("warning", "incomplete")}),
    Manners(outcomes={"Condition": outcome("information", "informational")}),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("manners", MANNERS, ids=map(str, range(len(MANNERS))))
def test_a_record_is_what_it_is_when_read_alone_however_the_server_behaves(
    hospital: Hospital, source: Make, manners: Manners
) -> None:
    hospital.put(*people(30))
    hospital.manners = manners
    check(hospital, source(hospital), [who(number) for number in range(30)])


@pytest.mark.usefixtures("small")
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    owners=st.lists(st.integers(0, 19), max_size=40),
    lists=st.sampled_from(["all", "first", "last", "none", "others", 5, 10]),
    batch=st.sampled_from(["good", "undeclared", "refused", "empty", "shuffled"]),
    totals=st.sampled_from(["right", "none", "wrong"]),
    page=st.integers(3, 60),
)
def test_whoever_has_what_nothing_is_lost_or_given_to_another(
    hospital: Hospital,
    source: Make,
    owners: list[int],
    lists: str | int,
    batch: str,
    totals: str,
    page: int,
) -> None:
    hospital.held.clear()
    hospital.put(*({"resourceType": "Patient", "id": who(number)} for number in range(20)))
    hospital.put(*(of("Condition", f"c{at}", owner) for at, owner in enumerate(owners)))
    hospital.manners = Manners(lists=lists, batch=batch, totals=totals, page=page)
    ids = [who(number) for number in range(20)]
    check(hospital, source(hospital), ids, Wanted({"Condition": None}))


def test_lists_spare_requests_and_batches_spare_them_where_lists_are_not_understood(
    hospital: Hospital, source: Make
) -> None:
    hospital.put(*people(100))
    ids = [who(number) for number in range(100)]
    spent = {}
    for name, manners in (
        ("lists", Manners()),
        ("batches", Manners(lists="first")),
        ("alone", Manners(lists="first", batch="undeclared")),
    ):
        hospital.manners = manners
        spent[name] = check(hospital, source(hospital), ids) / 100
    assert spent["lists"] < 0.5
    assert spent["batches"] < 0.8
    assert 4 < spent["alone"] < 6


def test_a_list_is_not_believed_before_it_shows_the_first_and_the_last_patient(
    hospital: Hospital, source: Make
) -> None:
    """Nobody has a Procedure but one in the middle, and the server reads one value only."""
    hospital.put(*({"resourceType": "Patient", "id": who(number)} for number in range(40)))
    hospital.put(of("Procedure", "x", 20))
    hospital.manners = Manners(lists="first", batch="undeclared")
    check(hospital, source(hospital), [who(number) for number in range(40)])


@pytest.mark.parametrize("subject", [{"identifier": {"value": "7"}}, {"reference": "Patient/old"}])
def test_a_resource_that_names_its_patient_otherwise_is_not_lost(
    hospital: Hospital, source: Make, subject: Json
) -> None:
    hospital.put(*people(60))
    known = {"reference": f"Patient/{who(20)}"}
    hospital.put(of("Condition", "odd", 20) | {"subject": subject, "_known": known})
    one = source(hospital)
    check(hospital, one, [who(number) for number in range(60)])
    (record,) = read_records(one, [who(20)], WANTED)
    assert any(b'"odd"' in item.raw for item in records(record))


def test_no_patients_resource_is_given_to_others_as_a_witness(
    hospital: Hospital, source: Make
) -> None:
    hospital.put(*people(150))
    for record in read_records(source(hospital), [who(n) for n in range(150)], WANTED):
        assert isinstance(record, Fetched)
        for item in record.items:
            assert b'"subject"' not in item.raw or record.patient.encode() in item.raw


@pytest.mark.parametrize("lists", ["all", "first"])
def test_an_unreadable_resource_concerns_its_own_patient_only(
    hospital: Hospital, source: Make, lists: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.put(*people(60))
    whole = hospital.answer

    def answer(path: str, query: list[tuple[str, str]]) -> tuple[int, Json]:
        asked = dict(query).get("patient", "")
        if path == "Condition" and who(33) in asked.split(","):
            return 500, outcome("fatal", "required")
        return whole(path, query)

    hospital.manners = Manners(lists=lists)
    monkeypatch.setattr(hospital, "answer", answer)
    got = list(read_records(source(hospital), [who(n) for n in range(60)], WANTED))
    for number, record in enumerate(got):
        assert isinstance(record, Fetched)
        assert record.readings["Condition"].complete is (number != 33)


@pytest.mark.parametrize("fault", [reset, cut, "429", "500", "503"])
def test_a_fault_that_passes_is_not_noticed(hospital: Hospital, source: Make, fault: Any) -> None:
    """Every tenth request fails, on any way of reading."""
    hospital.put(*people(60))
    times = 0

    def failing(handler: Any, asked: Asked) -> bool:
        nonlocal times
        times += 1
        if times % 10 or asked.path == "metadata":
            return False
        if isinstance(fault, str):
            handler.reply(int(fault), outcome("error", "transient"))
        else:
            fault(handler)
        return True

    hospital.fault = failing
    ids = [who(number) for number in range(60)]
    got = list(read_records(source(hospital), ids, WANTED))
    hospital.fault = lambda handler, asked: False
    one = source(hospital)
    for patient, record in zip(ids, got, strict=True):
        assert same(record, alone(one, patient)), patient


def test_a_server_that_goes_away_for_a_while_is_waited_for(
    hospital: Hospital, source: Make
) -> None:
    hospital.put(*people(60))
    until = 0.0

    def away(handler: Any, asked: Asked) -> bool:
        nonlocal until
        if asked.path == "Condition" and not until:
            until = time.monotonic() + 0.4
        if time.monotonic() < until:
            reset(handler)
            return True
        return False

    hospital.fault = away
    ids = [who(number) for number in range(60)]
    limits = replace(PATIENT, outage=10.0)
    got = list(read_records(source(hospital, limits), ids, WANTED))
    one = source(hospital)
    assert all(same(each, alone(one, patient)) for patient, each in zip(ids, got, strict=True))


def test_a_server_that_stays_away_ends_the_reading(hospital: Hospital, source: Make) -> None:
    hospital.put(*people(120))
    gone = False

    def away(handler: Any, asked: Asked) -> bool:
        nonlocal gone
        gone = gone or who(70) in asked.value("patient")
        if gone:
            reset(handler)
        return gone

    hospital.fault = away
    got = []
    with pytest.raises(SourceError):
        for each in read_records(source(hospital), [who(n) for n in range(120)], WANTED):
            got.append(each)
    assert [each.patient for each in got] == [f"Patient/{who(n)}" for n in range(50)]
    assert all(isinstance(each, Fetched) for each in got)


def test_who_cannot_be_read_is_given_with_the_reason(hospital: Hospital, source: Make) -> None:
    hospital.put(*people(10))
    hospital.held["Patient"].pop(who(4))
    ids = [who(number) for number in range(10)]
    got = list(read_records(source(hospital), [*ids, "no id"], WANTED))
    assert got[4] == Unread(who(4), "the source has no such patient", unknown=True)
    assert got[10] == Unread("no id", "the source has no such patient", unknown=True)
    assert sum(isinstance(each, Unread) for each in got) == 2


def test_a_refused_patient_is_told_from_an_unknown_one(hospital: Hospital, source: Make) -> None:
    hospital.put(*people(3))
    hospital.manners.refused["Patient"] = 403
    (got,) = read_records(source(hospital), [who(1)], WANTED)
    assert isinstance(got, Unread)
    assert got.refused
    assert "403" in got.problem


def test_merged_patients_are_followed_from_both_sides(hospital: Hospital, source: Make) -> None:
    hospital.put(*people(60))
    link = {"type": "replaced-by", "other": {"reference": f"Patient/{who(8)}"}}
    hospital.put({"resourceType": "Patient", "id": who(31), "link": [link]})
    one = source(hospital)
    check(hospital, one, [who(number) for number in range(60)])
    got = list(read_records(one, [who(31), who(8)], WANTED))
    assert [survivor_of(each) for each in got if isinstance(each, Fetched)] == [who(8)] * 2


def test_members_of_panels_are_read_for_many_patients_at_once(
    hospital: Hospital, source: Make
) -> None:
    hospital.put(*people(40))
    for number in range(40):
        when = {"status": "final", "effectiveDateTime": "2026-02-01"}
        panel: Json = {"code": {"coding": [{"system": HAEMOGLOBIN[0], "code": HAEMOGLOBIN[1]}]}}
        panel["hasMember"] = [{"reference": f"Observation/x{number}"}]
        hospital.put(of("Observation", f"panel{number}", number, **panel, **when))
        other = {"code": {"text": "other"}, **when}
        hospital.put(of("Observation", f"x{number}", number, **other))
    asked = check(hospital, source(hospital), [who(number) for number in range(40)])
    assert asked < 30


def test_a_site_without_post_gets_no_url_that_is_too_long(hospital: Hospital, source: Make) -> None:
    hospital.put(*people(60))
    one = source(hospital, use_post=False)
    check(hospital, one, [who(number) for number in range(60)])
    assert all(
        sum(len(name) + len(value) + 2 for name, value in each.query) < 2_000
        for each in hospital.seen
        if each.method == "GET"
    )


def test_no_more_requests_run_at_a_time_than_the_limit(hospital: Hospital, source: Make) -> None:
    hospital.put(*people(60))
    running = [0, 0]

    def slow(handler: Any, asked: Asked) -> bool:
        with hospital.lock:
            running[0] += 1
            running[1] = max(running[1], running[0])
        time.sleep(0.01)
        with hospital.lock:
            running[0] -= 1
        return False

    hospital.fault = slow
    ids = [who(number) for number in range(60)]
    limits = replace(PATIENT, crowd=2)
    list(read_records(source(hospital, limits), ids, WANTED))
    assert running[1] == 2
