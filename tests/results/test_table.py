"""The table for people."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from service.results.table import print_verdict
from tests.results.shapes import HOSTILE, VERDICTS


def printed(name: str, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=terminal, highlight=False)
    print_verdict(VERDICTS[name], console)
    return out.getvalue()


def test_it_names_patient_verdict_failures_and_what_is_open() -> None:
    text = printed("ineligible-open")
    assert "Patient/p1  NCT06056752  as of 2026-11-01  ineligible" in text
    assert "fails: E3" in text
    assert "open: I2" in text
    assert "settled by: an ECOG status" in text
    assert "the line is not a FHIR resource" in text


def test_parts_stand_below_their_criterion() -> None:
    lines = printed("open").splitlines()
    assert any(line.startswith("  I6") for line in lines)


@pytest.mark.parametrize("name", VERDICTS)
def test_there_are_no_control_characters_without_a_terminal(name: str) -> None:
    text = printed(name)
    assert "\x1b" not in text
    assert HOSTILE not in text
    assert not any(ord(character) < 32 and character != "\n" for character in text)


def test_a_terminal_gets_colours() -> None:
    assert "\x1b[" in printed("eligible", terminal=True)
