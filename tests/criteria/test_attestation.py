"""Attestations settle what only a person can, and never overturn a proven fail (1.6, 1.7)."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from service.criteria.attestation import Attestation, load_attestations
from service.criteria.evaluate import evaluate
from service.criteria.model import Result, Verdict, VerdictCode
from service.errors import MappingError
from service.values.logic import Outcome, Reason
from tests.cases import ROOT, PatientCase, by_id, patient_cases, trial_with

CANDIDATE = next(case for case in patient_cases() if case.name == "baseline-candidate")
AS_OF = CANDIDATE.as_of


def attestation(criterion: str, outcome: str = "pass", day: str = "2026-10-30") -> Attestation:
    """Make an attestation of the candidate."""
    return Attestation(
        trial="NCT06056752",
        patient="baseline-candidate",
        criterion=criterion,
        outcome=Outcome(outcome),
        by="Dr. Invented",
        day=date.fromisoformat(day).toordinal(),
        why="seen by me",
    )


def verdict_with(*attestations: Attestation, case: PatientCase = CANDIDATE) -> Verdict:
    """Evaluate a patient with attestations."""
    return evaluate(trial_with(), case.facts(), case.as_of, attestations)


def result_with(criterion: str, *attestations: Attestation) -> Result:
    """Give one criterion's result with attestations."""
    return by_id(verdict_with(*attestations))[criterion]


@pytest.mark.parametrize("outcome", ["pass", "fail"])
def test_an_unknown_becomes_what_is_attested(outcome: str) -> None:
    """With the reason attested, and the computed outcome beside it."""
    result = result_with("I5", attestation("I5", outcome))
    assert (result.outcome, result.reason) == (Outcome(outcome), Reason.ATTESTED)
    assert result.computed == (Outcome.UNKNOWN, Reason.JUDGEMENT_REQUIRED)
    assert not result.settled_by


def test_a_computed_pass_can_be_attested_to_fail() -> None:
    """The person has seen what the record doesn't say."""
    result = result_with("I1", attestation("I1", "fail"))
    assert (result.outcome, result.computed) == (Outcome.FAIL, (Outcome.PASS, Reason.VALUE_MEETS))


def test_a_proven_fail_stands() -> None:
    """An attestation never overturns a fail that the record proves."""
    case = next(case for case in patient_cases() if case.name == "near-miss-ecog-3")
    result = by_id(verdict_with(attestation("I6"), case=case))["I6"]
    assert (result.outcome, result.reason) == (Outcome.FAIL, Reason.VALUE_VIOLATES)
    assert result.computed is None


def test_an_attested_pass_of_a_computed_pass_changes_nothing() -> None:
    """The record's own reason stays."""
    assert result_with("I1", attestation("I1")).reason is Reason.VALUE_MEETS


def test_an_attestation_of_a_part_settles_its_parent() -> None:
    """The parent is combined from the attested parts."""
    result = result_with("I8", attestation("I8.contraception"))
    assert result.outcome is Outcome.PASS
    assert result.computed is None


@pytest.mark.parametrize("named", ["I8.contraception", "E2.contraception"])
def test_one_attestation_of_contraception_serves_both(named: str) -> None:
    """Part 2, E2.contraception: the same attestation as I8.contraception serves both."""
    results = by_id(verdict_with(attestation(named)))
    for criterion in ("I8.contraception", "E2.contraception"):
        assert results[criterion].reason is Reason.ATTESTED


def test_with_everything_attested_the_candidate_is_eligible() -> None:
    """All criteria pass."""
    unknown = [result.id for result in verdict_with().criteria if result.outcome is Outcome.UNKNOWN]
    verdict = verdict_with(*(attestation(criterion) for criterion in unknown))
    assert verdict.code is VerdictCode.ELIGIBLE


def test_an_attestation_holds_from_its_day_to_its_last_day() -> None:
    """It ends the verdict's validity when it expires, and begins it when it is made."""
    base = attestation("I5")
    ends = replace(base, last_day=AS_OF.toordinal() + 3)
    verdict = verdict_with(ends)
    assert by_id(verdict)["I5"].reason is Reason.ATTESTED
    assert verdict.valid_until == "2026-11-04"
    over = replace(base, last_day=AS_OF.toordinal() - 1)
    assert result_with("I5", over).reason is Reason.JUDGEMENT_REQUIRED
    later = replace(base, day=AS_OF.toordinal() + 1)
    assert result_with("I5", later).reason is Reason.JUDGEMENT_REQUIRED


def test_a_withdrawn_attestation_no_longer_holds() -> None:
    """Withdrawn on a day, it holds until the day before."""
    base = attestation("I5")
    assert result_with("I5", replace(base, withdrawn=AS_OF.toordinal())).outcome is Outcome.UNKNOWN
    still = replace(base, withdrawn=AS_OF.toordinal() + 1)
    assert result_with("I5", still).outcome is Outcome.PASS


def test_the_newest_attestation_counts_and_of_one_day_the_one_against() -> None:
    """Two statements of one day that differ can't support enrolment."""
    older, newer = attestation("I5", "fail", "2026-10-01"), attestation("I5", "pass", "2026-10-02")
    assert result_with("I5", older, newer).outcome is Outcome.PASS
    same_day = attestation("I5", "fail", "2026-10-02")
    assert result_with("I5", newer, same_day).outcome is Outcome.FAIL


def test_attestations_are_read_from_a_file(tmp_path: Path) -> None:
    """The file's form is that of the README."""
    path = tmp_path / "attestations.yaml"
    path.write_text(
        "attestations:\n"
        "  - trial: NCT06056752\n    patient: baseline-candidate\n    criterion: I5\n"
        "    outcome: pass\n    by: Dr. Invented\n    when: 2026-10-30\n"
        "    why: seen by me\n    expires: 2026-12-01\n"
    )
    (read,) = load_attestations(path, [trial_with()])
    assert read == replace(attestation("I5"), last_day=date(2026, 12, 1).toordinal())


@pytest.mark.parametrize(
    ("change", "line"),
    [("trial: NCT00000000", 2), ("criterion: I99", 4), ("outcome: unknown", 5), ("when: soon", 7)],
)
def test_a_mistake_names_file_and_line(tmp_path: Path, change: str, line: int) -> None:
    """Nothing is silently ignored."""
    lines = [
        "attestations:",
        "  - trial: NCT06056752",
        "    patient: x",
        "    criterion: I5",
        "    outcome: pass",
        "    by: me",
        "    when: 2026-10-30",
        "    why: so",
    ]
    prefix = "  - " if line == 2 else "    "
    lines[line - 1] = prefix + change
    path = tmp_path / "attestations.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(MappingError, match=rf"attestations\.yaml:{line}: "):
        load_attestations(path, [trial_with()])


def test_the_readmes_attestations_are_read(tmp_path: Path) -> None:
    """The example of the README is a file that works."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = next(
        part for part in readme.split("```yaml\n")[1:] if part.startswith("attestations:")
    )
    path = tmp_path / "attestations.yaml"
    path.write_text(example.split("```")[0], encoding="utf-8")
    (read,) = load_attestations(path, [trial_with()])
    assert result_with("I5", read).reason is Reason.ATTESTED
