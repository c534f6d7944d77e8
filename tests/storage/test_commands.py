"""The subcommands that read the store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import main
from service.storage.store import Store
from tests.storage.making import MATERIALS, TRIAL, begun, invented, kept, outcomes, spec_of

PASS, FAIL = ("pass", "value-meets"), ("fail", "value-violates")


def run(*arguments: object) -> Result:
    """Run a subcommand."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_runs_are_listed(store: Store, place: str) -> None:
    kept(store, "a", (invented("p", {}),))
    kept(store, "b", (invented("p", {}),), complete=False)
    with store.locked() as writer:
        begun(writer, "c")
        assert "running" in run("runs", "--store", place).stdout
    done = run("runs", "--store", place, "--format", "json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["run"], one["status"]) for one in found] == [
        (3, "interrupted"),
        (2, "incomplete"),
        (1, "complete"),
    ]
    assert found[2]["verdicts"] == {TRIAL: {"eligible": 1}}
    table = run("runs", "--store", place)
    assert table.exit_code == 0
    assert "interrupted" in table.stdout


def test_runs_say_whom_they_looked_at(store: Store, place: str) -> None:
    cohort = replace(spec_of(), bulk=None, cohort="Group/7")
    with store.locked() as writer:
        writer.begin(cohort, key="a", materials=MATERIALS)
    assert "cohort Group/7" in " ".join(run("runs", "--store", place).stdout.split())


def test_a_store_that_is_not_there_is_named_as_it_was_given() -> None:
    done = run("runs", "--store", "none.db")
    assert (done.exit_code, done.stderr) == (2, "Error: there is no store at none.db\n")


def test_an_empty_store_has_no_runs(store: Store, place: str) -> None:
    done = run("runs", "--store", place)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no runs\n")
    assert run("candidates", "--store", place).exit_code == 2


def test_differences_are_told_per_criterion(store: Store, place: str) -> None:
    kept(store, "a", (invented("p", {"I1": PASS}),))
    kept(store, "b", (invented("p", {"I1": FAIL}, verdict="ineligible"),))
    done = run("diff", 1, "latest", "--store", place, "--format", "json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["kind"] for one in found] == ["verdict", "criterion"]
    assert found[1] == {
        "trial": TRIAL, "patient": "Patient/p", "kind": "criterion", "criterion": "I1",
        "before": "pass", "beforeReason": "value-meets",
        "after": "fail", "afterReason": "value-violates",
    }  # fmt: skip
    table = run("diff", 1, 2, "--store", place)
    assert "pass (value-meets)" in table.stdout
    assert run("diff", 1, 1, "--store", place).stderr == "no differences\n"


def test_candidates_of_the_latest_run_are_listed(store: Store, place: str) -> None:
    kept(store, "a", outcomes())
    done = run("candidates", "--store", place, "--format", "json")
    lines = [one.line.decode() for one in outcomes() if one.code != "ineligible"]
    assert done.stdout.splitlines() == lines
    table = run("candidates", "--run", 1, "--trial", TRIAL, "--store", place)
    assert table.exit_code == 0
    assert "potentially-eligible" in table.stdout


def test_candidates_of_an_unfinished_or_incomplete_run_come_with_a_warning(
    store: Store, place: str
) -> None:
    kept(store, "a", (invented("p", {}),), complete=False)
    assert "there may be more" in run("candidates", "--store", place).stderr
    with store.locked() as writer:
        begun(writer, "b")
    assert "not finished" in run("candidates", "--run", 2, "--store", place).stderr


def test_a_replay_says_whether_it_is_the_same(store: Store, place: str) -> None:
    one = outcomes()[0]
    changed = one.line.replace(b'"message":"', b'"message":"x')
    kept(store, "a", (one,))
    patient = one.patient.removeprefix("Patient/")
    done = run("replay", "latest", patient, "--store", place, "--format", "json")
    assert (done.exit_code, done.stdout) == (0, one.line.decode() + "\n")
    assert "byte for byte" in done.stderr
    assert one.code in run("replay", 1, patient, "--store", place).stdout
    kept(store, "b", (replace(one, line=changed),))
    done = run("replay", 2, patient, "--store", place)
    assert done.exit_code == 1
    assert "not the verdict" in done.stderr
    done = run("replay", 1, "nobody", "--store", place)
    assert done.exit_code == 1
    assert "nobody" not in done.stderr


def test_a_purge_asks_first(store: Store, place: str) -> None:
    kept(store, "a", (invented("p", {}),))
    assert run("purge", "--older-than", "2999-01-01", "--store", place).exit_code == 1
    rehearsed = run("purge", "--older-than", "0d", "--dry-run", "--store", place)
    assert "would be removed" in rehearsed.stdout
    assert store.runs()[0].purged is None
    done = run("purge", "--older-than", "2999-01-01", "--yes", "--store", place)
    assert done.stdout.startswith("runs purged: 1; removed: 1 verdicts")
    assert "purged" in run("runs", "--store", place).stdout
    assert run("candidates", "--run", 1, "--store", place).exit_code == 2


@pytest.mark.parametrize("age", ["3", "3m", "2026-13-01", "99999w9", "\u0663d"])
def test_an_age_that_cannot_be_read_is_wrong_usage(store: Store, place: str, age: str) -> None:
    done = run("purge", "--older-than", age, "--yes", "--store", place)
    assert done.exit_code == 2


@pytest.mark.parametrize("command", [["runs"], ["diff", 1, 2], ["candidates"], ["replay", 1, "p"]])
def test_without_a_store_it_says_so(command: list[object], tmp_path: Path) -> None:
    assert run(*command).exit_code == 2
    done = run(*command, "--store", tmp_path / "none.db")
    assert done.exit_code == 2
    assert "no store" in done.stderr


@pytest.mark.parametrize("number", ["0", "x", "-1", "1.5", "9" * 30])
def test_a_run_that_is_none_is_wrong_usage(store: Store, place: str, number: str) -> None:
    assert run("candidates", "--run", number, "--store", place).exit_code == 2
