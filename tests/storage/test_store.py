"""What is put into the store comes out of it as it was, and nothing is ever overwritten."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, update

from service.errors import StoreError, UsageError
from service.nightly.model import Outcome, Reject
from service.storage.changes import Change
from service.storage.models import (
    CriterionRow,
    EvidenceRow,
    FactsRow,
    JobRow,
    MaterialRow,
    RunRow,
    RunVerdictRow,
    VerdictRow,
)
from service.storage.store import Store
from tests.storage.making import (
    DAY,
    MATERIALS,
    NEXT_DAY,
    TRIAL,
    begun,
    invented,
    kept,
    outcomes,
    shipped,
    spec_of,
    statement_of,
)

PASS, FAIL = ("pass", "value-meets"), ("fail", "value-violates")
OPEN, STALE = ("unknown", "no-data"), ("unknown", "stale-data")


def count(store: Store, model: type) -> int:
    """Count the rows of a table."""
    with store.database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(model)) or 0


def test_verdicts_come_out_byte_for_byte_sorted_by_patient(store: Store) -> None:
    run = kept(store, "a", tuple(reversed(outcomes())))
    assert [one.line for one in store.verdicts(run.id)] == [one.line for one in outcomes()]
    assert [one.patient for one in store.verdicts(run.id)] == sorted(
        one.patient for one in outcomes()
    )
    one = outcomes()[0]
    found = store.verdict(run.id, one.patient.removeprefix("Patient/"))
    assert [each.line for each in found] == [one.line]
    assert store.verdict(run.id, one.patient) == found


def test_facts_come_out_as_they_were_read(store: Store) -> None:
    run = kept(store, "a", outcomes())
    for patient, fetched in itertools.islice(shipped().items(), 5):
        assert store.facts(run.id, patient) == fetched


def test_candidates_are_those_who_are_not_ineligible(store: Store) -> None:
    run = kept(store, "a", outcomes())
    expected = [one.patient for one in outcomes() if one.code != "ineligible"]
    assert 0 < len(expected) < len(outcomes())
    assert [one.patient for one in store.verdicts(run.id, candidates=True)] == expected


def test_criteria_parts_and_evidence_can_be_asked_for(store: Store) -> None:
    kept(store, "a", outcomes())
    with store.database.reading() as connection:
        parts = connection.scalars(
            select(CriterionRow.criterion).where(CriterionRow.parent == "I2").distinct()
        ).all()
        assert "I2.diagnosis" in parts
        named = connection.scalars(select(EvidenceRow.reference).distinct()).all()
    assert any(reference.startswith("Condition/") for reference in named)


def test_a_night_without_change_keeps_no_verdict_twice(store: Store) -> None:
    kept(store, "a", (invented("p", {"I1": PASS}, record=b"{}"),))
    tables = (VerdictRow, CriterionRow, EvidenceRow, FactsRow, MaterialRow)
    before = [count(store, model) for model in tables]
    run = kept(store, "b", (invented("p", {"I1": PASS}, as_of=NEXT_DAY, record=b"{}"),), NEXT_DAY)
    assert [count(store, model) for model in tables] == before
    assert count(store, RunVerdictRow) == 2
    assert [one.line for one in store.verdicts(run.id)] == [
        invented("p", {"I1": PASS}, as_of=NEXT_DAY).line
    ]
    assert list(store.changes(run.id)) == []


def test_every_version_of_a_verdict_stays(store: Store) -> None:
    runs = [
        kept(store, str(number), (invented("p", {"I1": outcome}),))
        for number, outcome in enumerate((PASS, FAIL, PASS, OPEN))
    ]
    lines = [next(store.verdicts(run.id)).line for run in runs]
    assert lines[0] == lines[2]
    assert len({*lines}) == count(store, VerdictRow) == 3


def test_a_verdict_that_contradicts_a_kept_one_is_refused(store: Store) -> None:
    with store.locked() as writer:
        run = begun(writer)
        run.add([invented("p", {"I1": PASS})])
        run.add([invented("p", {"I1": PASS})])
        with pytest.raises(StoreError, match="none is overwritten"):
            run.add([invented("q", {"I1": PASS}), invented("p", {"I1": FAIL})])
        assert [one.patient for one in store.verdicts(run.id)] == ["Patient/p"]


def test_a_finished_run_stays_as_it_is(store: Store) -> None:
    run = kept(store, "a", (invented("p", {"I1": PASS}),))
    with store.locked() as writer:
        again = begun(writer, "a")
        assert again.is_finished
        again.add([invented("p", {"I1": PASS})])
        assert again.finish(statement_of(run, complete=False)) == run
        with pytest.raises(StoreError, match="finished"):
            again.add([invented("q", {"I1": PASS})])
    assert store.run(run.id).complete


@pytest.mark.parametrize(
    "outcome",
    [
        invented("p", {}, as_of=NEXT_DAY),
        invented("p", {}, trial="NCT00000000"),
        Outcome("Patient/p", TRIAL, b'{"trial": 1}', "eligible"),
    ],
    ids=["of another day", "of another trial", "no verdict"],
)
def test_what_does_not_belong_into_a_run_is_refused(store: Store, outcome: Outcome) -> None:
    with store.locked() as writer:
        run = begun(writer)
        with pytest.raises(StoreError):
            run.add([outcome])
    assert list(store.verdicts(run.id)) == []


def test_changes_are_kept_per_criterion_against_the_run_before(store: Store) -> None:
    first = kept(
        store,
        "a",
        (
            invented("gone", {"I1": PASS}),
            invented("other", {"I1": PASS, "E1": OPEN}),
            invented("same", {"I1": PASS}),
        ),
    )
    second = kept(
        store,
        "b",
        (
            invented("new", {"I1": PASS}),
            invented("other", {"I1": FAIL, "E1": STALE}, verdict="ineligible"),
            invented("same", {"I1": PASS}),
        ),
    )
    assert list(store.changes(first.id)) == []
    assert first.previous == {TRIAL: None}
    assert second.previous == {TRIAL: first.id}
    potential = "potentially-eligible"
    expected = [
        Change(TRIAL, "Patient/gone", "left", before=potential),
        Change(TRIAL, "Patient/new", "entered", after=potential),
        Change(TRIAL, "Patient/other", "verdict", before=potential, after="ineligible"),
        Change(TRIAL, "Patient/other", "criterion", "I1", *PASS, *FAIL),
        Change(TRIAL, "Patient/other", "criterion", "E1", *OPEN, *STALE),
    ]
    assert list(store.changes(second.id)) == expected
    assert list(store.diff(first.id, second.id)) == expected
    assert list(store.diff(first.id, first.id)) == []


def test_whom_an_incomplete_run_did_not_reach_has_not_left(store: Store) -> None:
    both = (invented("p", {"I1": PASS}), invented("q", {"I1": PASS}))
    kept(store, "a", both)
    second = kept(store, "b", both[:1], complete=False)
    third = kept(store, "c", both)
    assert [(one.patient, one.kind) for one in store.changes(second.id)] == [
        ("Patient/q", "not-evaluated-now")
    ]
    assert [(one.patient, one.kind) for one in store.changes(third.id)] == [
        ("Patient/q", "not-evaluated-before")
    ]


def test_each_trial_is_compared_with_the_last_run_that_had_it(store: Store) -> None:
    other = "NCT00000000"
    first = kept(store, "a", (invented("p", {"I1": PASS}), invented("p", {}, trial=other)))
    second = kept(store, "b", (invented("p", {"I1": FAIL}),))
    third = kept(store, "c", (invented("p", {"I1": FAIL}), invented("p", {}, trial=other)))
    assert third.previous == {TRIAL: second.id, other: first.id}
    assert list(store.changes(third.id)) == []


def test_runs_without_a_trial_in_common_or_unfinished_are_not_compared(store: Store) -> None:
    first = kept(store, "a", (invented("p", {}),))
    second = kept(store, "b", (invented("p", {}, trial="NCT00000000"),))
    with pytest.raises(UsageError, match="no trial in common"):
        list(store.diff(first.id, second.id))
    with store.locked() as writer:
        third = begun(writer, "c")
    with pytest.raises(UsageError, match="not finished"):
        list(store.diff(first.id, third.id))
    with pytest.raises(UsageError, match="no run 99"):
        store.run(99)


_outcome = st.sampled_from([PASS, FAIL, OPEN, STALE])
_night = st.dictionaries(
    st.text("abC\u00e9\U0001f600-", min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["I1", "I2", "E1"]), _outcome),
    max_size=6,
)
_keys = itertools.count()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_night, _night)
def test_differences_are_those_of_the_verdicts(
    store: Store,
    before: dict[str, dict[str, tuple[str, str]]],
    after: dict[str, dict[str, tuple[str, str]]],
) -> None:
    runs = []
    for night in (before, after):
        with store.locked() as writer:
            run = begun(writer, f"k{next(_keys)}")
            run.add([invented(patient, criteria) for patient, criteria in night.items()])
            runs.append(run.finish(statement_of(run.run)))
    found = list(store.diff(runs[0].id, runs[1].id))
    assert [one.patient for one in found] == sorted(one.patient for one in found)
    criteria = {(one.patient, one.criterion) for one in found if one.kind == "criterion"}
    assert criteria == {
        (f"Patient/{patient}", name)
        for patient in before.keys() & after.keys()
        for name in before[patient].keys() | after[patient].keys()
        if before[patient].get(name) != after[patient].get(name)
    }
    whole = {(one.patient, one.kind) for one in found if one.kind != "criterion"}
    assert whole == {(f"Patient/{patient}", "left") for patient in before.keys() - after.keys()} | {
        (f"Patient/{patient}", "entered") for patient in after.keys() - before.keys()
    }


@pytest.mark.parametrize("number", [1, 199, 200, 201, 1000, 1001, 2001])
def test_no_patient_is_lost_at_the_edge_of_a_batch(store: Store, number: int) -> None:
    patients = [f"p{each:05}" for each in range(number)]
    first = kept(store, "a", tuple(invented(each, {"I1": PASS}) for each in patients))
    second = kept(store, "b", tuple(invented(each, {"I1": FAIL}) for each in patients[1:]))
    names = [f"Patient/{each}" for each in patients]
    assert [one.patient for one in store.verdicts(first.id)] == names
    changed = [one.patient for one in store.changes(second.id) if one.kind == "criterion"]
    assert changed == names[1:]
    assert [one.patient for one in store.changes(second.id) if one.kind == "left"] == names[:1]
    third = kept(store, "c", tuple(invented(each, {"I1": FAIL}) for each in patients))
    assert [one.patient for one in store.changes(third.id)] == names[:1]


def test_rejected_input_is_kept_once_however_often_it_is_handed_in(store: Store) -> None:
    rejects = [
        Reject("a\0b.ndjson", 3, None, None, "not JSON"),
        Reject("odd\udcff.ndjson", None, "Condition", "Condition/1", "no", "Patient/p"),
    ]
    with store.locked() as writer:
        run = begun(writer)
        run.rejects(rejects[:1])
        run.rejects(rejects)
    found = list(store.rejects(run.id))
    assert [one.file for one in found] == ["a\ufffdb.ndjson", "odd?.ndjson"]
    assert found[1].patient == "Patient/p"


def test_verdicts_are_due_when_their_lines_may_read_otherwise(store: Store) -> None:
    run = kept(
        store,
        "a",
        (
            invented("ever", {}, valid_until=DAY),
            replace(invented("lapsed", {}), steady_until=DAY),
            replace(invented("today", {}), steady_until=NEXT_DAY),
        ),
    )
    assert list(store.due(run.id, TRIAL, NEXT_DAY)) == ["Patient/lapsed"]


def test_verdicts_are_carried_into_the_next_run(store: Store) -> None:
    first = kept(store, "a", (invented("p", {"I1": PASS}, record=b"{}"), invented("q", {})))
    with store.locked() as writer:
        run = begun(writer, "b", NEXT_DAY)
        assert run.carry(first.id, TRIAL, ["Patient/p", "Patient/nobody"]) == 1
        assert run.carry(first.id, TRIAL, ["Patient/p"]) == 1
        second = run.finish(statement_of(run.run))
    assert [one.line for one in store.verdicts(second.id)] == [
        invented("p", {"I1": PASS}, as_of=NEXT_DAY).line
    ]


def test_notes_are_found_again(store: Store) -> None:
    with store.locked() as writer:
        run = begun(writer)
        run.note("since", "2026-11-01T00:00:00Z")
        run.note("since", "2026-11-02T00:00:00Z")
    assert store.notes(run.id) == {"since": "2026-11-02T00:00:00Z"}


def test_a_run_is_taken_up_by_its_key_and_another_is_then_abandoned(store: Store) -> None:
    with store.locked() as writer:
        first = begun(writer, "a")
        first.add([invented("p", {})])
    with store.locked() as writer:
        again = begun(writer, "a")
        assert (again.id, again.run.attempts) == (first.id, 2)
    with store.locked() as writer:
        assert begun(writer, "b").id != first.id
    assert store.run(first.id).status == "abandoned"
    assert [one.patient for one in store.verdicts(first.id)] == ["Patient/p"]


def test_a_run_is_not_taken_up_for_something_else(store: Store) -> None:
    with store.locked() as writer:
        begun(writer, "a")
        with pytest.raises(StoreError, match="other options"):
            begun(writer, "a", NEXT_DAY)


def test_who_was_overtaken_writes_no_more(store: Store) -> None:
    with store.locked() as writer:
        first = begun(writer, "a")
        begun(writer, "a")
        with pytest.raises(StoreError, match="taken this run over"):
            first.add([invented("p", {})])
        second = begun(writer, "b")
        begun(writer, "c")
        with pytest.raises(StoreError, match="taken this run over"):
            second.finish(statement_of(second.run))


def test_runs_are_listed_newest_first_with_all_that_was_said(store: Store) -> None:
    runs = [kept(store, key, (invented("p", {}),)) for key in "ab"]
    assert store.runs() == runs[::-1]
    assert store.latest() == store.latest(TRIAL) == runs[1]
    assert store.latest("NCT00000000") is None
    statement = runs[0].statement
    assert statement is not None
    assert statement.trials[0].verdicts == {"eligible": 1}
    assert runs[0].spec == spec_of()
    assert runs[0].environment["tzdata"]
    assert runs[0].fingerprint == runs[1].fingerprint


def test_instants_are_in_utc(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "s.db")) as store:
        timed = Store(store.database, lambda: datetime(2026, 11, 1, 2, 3, 4, tzinfo=UTC))
        assert timed.now() == "2026-11-01T02:03:04Z"


def test_reading_goes_on_while_a_run_is_written(store: Store) -> None:
    first = kept(store, "a", outcomes())
    with store.locked() as writer:
        run = begun(writer, "b")
        lines: list[bytes] = []
        for verdict in store.verdicts(first.id):
            run.add([invented(f"x{len(lines)}", {})])
            lines.append(verdict.line)
    assert lines == [one.line for one in outcomes()]


def test_the_files_of_a_run_are_kept_with_it(store: Store) -> None:
    run = kept(store, "a", (invented("p", {}),))
    found = store.materials(run.id)
    assert {name: body for name, (_, body) in found.items()} == MATERIALS
    assert "mappings/trials/NCT06056752.yaml" in found


def test_only_searches_of_the_same_patients_are_compared(store: Store) -> None:
    """Whom another cohort does not hold has not gone."""
    runs = []
    for number, cohort in enumerate(("Group/1", "Group/2", "Group/1")):
        with store.locked() as writer:
            opened = writer.begin(replace(spec_of(), cohort=cohort), key=str(number))
            opened.add([invented(f"p{cohort[-1]}", {})])
            runs.append(opened.finish(statement_of(opened.run)))
    assert [run.previous[TRIAL] for run in runs] == [None, None, runs[0].id]
    assert list(store.changes(runs[1].id)) == []


def test_the_latest_run_is_that_of_the_latest_day(store: Store) -> None:
    """Whoever looks at a day gone by changes nothing in what is shown."""
    latest = kept(store, "now", (invented("p", {}),))
    past = kept(store, "then", (invented("p", {}, as_of="2020-01-01"),), "2020-01-01")
    assert store.latest(TRIAL) == latest
    assert past.previous == {TRIAL: None}


def test_what_a_caller_had_searched_is_shown_only_if_there_is_nothing_else(store: Store) -> None:
    """A caller may ask for any few patients."""
    night = kept(store, "night", (invented("p", {}),))
    asked = kept(store, "asked", (invented("q", {}),))
    job = dict.fromkeys(("asked", "digest", "created", "due", "stage"), "")
    with store.database.writing() as connection:
        connection.execute(
            insert(JobRow),
            job | {"key": "k", "state": "done", "requester": "ward", "attempt": 1, "setbacks": 0,
                   "done": 0, "total": 0, "run_id": asked.id},
        )  # fmt: skip
    assert store.latest(TRIAL) == night
    with store.database.writing() as connection:
        connection.execute(
            update(RunRow).where(RunRow.id == night.id).values(purged="2026-11-02T00:00:00Z")
        )
    assert store.latest(TRIAL) == asked
