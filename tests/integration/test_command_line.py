"""The command line against a FHIR server nobody here wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.cli import main
from tests.integration.conftest import LOADER, Sekmet

PATIENTS = Path(__file__).parents[2] / "fixtures" / "patients"
TRIAL = "NCT06056752"
CHOSEN = ("baseline-candidate", "t-all", "near-miss-hiv")


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, arguments)


def outcomes(source: str, *more: str) -> dict[str, Any]:
    """Evaluate some patients and give each one's verdict and outcomes."""
    options = ("--source", source, "--as-of", "2026-11-01", "--format", "json", *more)
    done = run("evaluate", TRIAL, *CHOSEN, *options)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        line["patient"]: (
            line["verdict"],
            line["validUntil"],
            [(one["id"], one["outcome"], one["reason"]) for one in line["criteria"]],
        )
        for line in lines
    }


@pytest.mark.parametrize("time", ["first", "second"])
def test_load_puts_all_patients_on_the_server_again_and_again(sekmet: Sekmet, time: str) -> None:
    done = run("load", "--to", sekmet.base, "--wait", "10")
    assert done.exit_code == 0, (time, done.output)
    count = len(list(PATIENTS.glob("*.json")))
    assert done.stdout.startswith(f"{count} patients, ")


def test_load_signs_in_with_a_token(
    guarded: Sekmet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = str(PATIENTS / "t-all.json")
    refused = run("load", "--to", guarded.base, "--from", patient)
    assert refused.exit_code == 1
    assert "401" in refused.stderr
    token = tmp_path / "token"
    token.write_text(LOADER, encoding="utf-8")
    monkeypatch.setenv("ELIGIBILITY_SOURCE_AUTH", "bearer")
    monkeypatch.setenv("ELIGIBILITY_SOURCE_TOKEN_FILE", str(token))
    done = run("load", "--to", guarded.base, "--from", patient)
    assert done.exit_code == 0, done.output


def test_verdicts_from_the_server_are_those_from_the_files(sekmet: Sekmet, tmp_path: Path) -> None:
    # The server does not offer ResearchSubject; only the site knows what that means.
    site = tmp_path / "site.yaml"
    site.write_text("not_offered: {ResearchSubject: none-kept}\n", encoding="utf-8")
    assert outcomes(sekmet.base, "--site", str(site)) == outcomes(str(PATIENTS))


def test_a_type_the_server_does_not_offer_leaves_unknown_what_rests_on_it(sekmet: Sekmet) -> None:
    for patient, (_, _, criteria) in outcomes(sekmet.base).items():
        expected = outcomes(str(PATIENTS))[patient][2]
        differing = [one for one, other in zip(criteria, expected, strict=True) if one != other]
        assert differing == [("E7", "unknown", "source-unavailable")]


def test_coverage_reads_a_server(sekmet: Sekmet) -> None:
    done = run("coverage", "--source", sekmet.base, "--limit", "5", "--format", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["patients"] == 5
