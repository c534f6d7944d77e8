"""candidates.csv: everyone who is not ineligible, and nothing a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.criteria.model import Settles, VerdictCode
from service.results.candidates import COLUMNS, Candidate, candidates, candidates_csv, safe
from service.results.json import verdict_line
from service.values.logic import Outcome, Reason
from tests.results.searches import CANDIDATES, LINES, line
from tests.results.shapes import OPEN, PASSED, result, verdict


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def written(*lines: bytes) -> list[dict[str, str]]:
    return rows(b"".join(candidates_csv(candidates(lines))))


def test_candidates_are_those_who_are_not_ineligible_in_the_order_of_the_verdicts() -> None:
    assert [row["Patient"] for row in written(*LINES)] == CANDIDATES


def test_a_row_says_what_is_open_and_what_would_settle_it() -> None:
    judged = result(
        "I5",
        Outcome.UNKNOWN,
        Reason.JUDGEMENT_REQUIRED,
        message="survival is not on record",
        settled_by=(Settles("is survival over 3 months expected?"),),
    )
    whole = result(
        "I2", Outcome.UNKNOWN, Reason.NO_DATA, parts=(PASSED, OPEN), settled_by=OPEN.settled_by
    )
    code = VerdictCode.POTENTIALLY_ELIGIBLE
    made = verdict(code, PASSED, whole, judged, valid_until="2026-11-17")
    (row,) = written(verdict_line(made).encode())
    assert row == {
        "Patient": "Patient/p1",
        "Trial": "NCT06056752",
        "Verdict": "potentially-eligible",
        "As of": "2026-11-01",
        "Valid until": "2026-11-17",
        "Criteria passed": "1",
        "Criteria open": "2",
        "Open criteria": "I2 I5",
        "Why they are open": "I2: blasts 7 %",
        "Data that would settle them": "an ECOG status (Observation in ecog); "
        "the investigator's judgement; the date of birth (Patient)",
        "Questions for the investigator": "is survival over 3 months expected?",
    }


def test_without_candidates_the_columns_remain() -> None:
    content = b"".join(candidates_csv(candidates([line("Patient/1", VerdictCode.INELIGIBLE)])))
    assert content.decode().splitlines() == [",".join(f'"{name}"' for name in COLUMNS)]


def test_a_line_that_is_no_verdict_is_not_passed_over() -> None:
    with pytest.raises(msgspec.DecodeError):
        list(candidates([b'{"patient":"Patient/1"}']))


def test_lines_are_read_one_by_one() -> None:
    asked = []

    def lines() -> Iterator[bytes]:
        for number in range(5):
            asked.append(number)
            yield line(f"Patient/{number}")

    parts = candidates_csv(candidates(lines()))
    next(parts)
    next(parts)
    assert len(asked) <= 2


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0", "\t=1", "\r=1", "\n=1", " =1",
        "\u00a0=1", "\ufeff=1", "\u200b=1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "|x",
        "\x00=1", "\u202e=1",
    ],
)  # fmt: skip
def test_no_cell_begins_a_formula(text: str) -> None:
    assert safe(text)[0] in "'\ufffd"


@given(st.text(max_size=40))
@example('",=1+1,"')
@example("a\r\n=1+1")
@example("a;=1+1")
@example("\x1b[2J")
def test_whatever_a_record_holds_every_cell_stays_in_its_place_and_is_text(text: str) -> None:
    made = Candidate(text, text, text, text, text, 1, *[(text,)] * 5)
    content = b"".join(candidates_csv([made]))
    lines = content.decode().split("\r\n")
    assert len(lines) == 3
    (row,) = rows(content)
    assert list(row) == list(COLUMNS)
    for cell in row.values():
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", " ", "\uff1d"))
        assert not {unicodedata.category(sign) for sign in cell} & {"Cc", "Zl", "Zp"}
    # Each is in quotes, so that no other separator (of a locale) parts it.
    assert lines[1].startswith('"')
    assert lines[1].endswith('"')


def test_a_very_long_text_fits_into_a_cell() -> None:
    assert len(safe("x" * 100_000)) < 32_767
