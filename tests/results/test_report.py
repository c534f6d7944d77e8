"""report.html: the search to look at, self-contained and inert."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from service.criteria.model import VerdictCode
from service.nightly.model import CriterionCount, Statement
from service.results.candidates import candidates
from service.results.chart import attrition_chart
from service.results.report import report_html
from tests.results.searches import INCOMPLETE, LINES, TRIAL, line, open_line, statement, trial
from tests.results.shapes import HOSTILE

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Told(NamedTuple):
    trial: str
    patient: str
    kind: str
    criterion: str | None = None
    before: str | None = None
    before_reason: str | None = None
    after: str | None = None
    after_reason: str | None = None


class Page(HTMLParser):
    """Collects elements, attributes and text; fails on what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def html(
    found: Statement, lines: Iterable[bytes] = LINES, changes: Iterable[Told] | None = None
) -> str:
    return b"".join(report_html(found, candidates(lines), changes)).decode()


def shown(text: str) -> str:
    return " ".join(" ".join(Page(text).text).split())


@pytest.mark.parametrize("found", [statement(), INCOMPLETE], ids=["complete", "incomplete"])
@pytest.mark.parametrize("lines", [[], LINES], ids=["none", "every shape"])
def test_it_is_well_formed(found: Statement, lines: list[bytes]) -> None:
    page = Page(html(found, lines, [Told(TRIAL, "Patient/1", "entered", after="eligible")]))
    assert page.tags[0] == "html"
    assert "svg" in page.tags


def test_it_holds_no_script_and_loads_nothing() -> None:
    text = html(INCOMPLETE, LINES, [Told(TRIAL, HOSTILE, "verdict", None, HOSTILE, None, HOSTILE)])
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "link", "img", "b"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "style", "srcset", "action"} & names
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in text
    assert "@import" not in text
    addresses = set(re.findall(r"https?://[^\"'<> ]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "https://s/fhir/Observation/1"}
    assert "default-src 'none'" in text


def test_hostile_text_stays_text() -> None:
    hostile = "<script>alert(1)</script>\"'&<!--"
    found = statement(source=hostile, trials=(trial(name=hostile),), problems=(hostile,))
    page = Page(html(found, [line(hostile)], [Told(TRIAL, hostile, hostile, hostile, hostile)]))
    assert "script" not in page.tags
    assert hostile in " ".join(page.text)


def test_a_complete_search_says_so() -> None:
    assert "The search was complete." in shown(html(statement()))


def test_an_incomplete_search_says_what_is_missing_first() -> None:
    text = shown(html(INCOMPLETE))
    assert "The search was complete." not in text
    for words in ("not complete", "the export reports errors", "Patient/p7", "rejects.ndjson"):
        assert text.index(words) < text.index("patients seen")


def test_it_shows_candidates_and_what_settles_them() -> None:
    text = shown(html(statement(), [line("Patient/a"), line("Patient/z", VerdictCode.INELIGIBLE)]))
    assert "Patient/a" in text
    assert "an ECOG status" in text
    assert "Patient/z" not in text


def test_of_very_many_candidates_those_nearest_are_shown_and_the_rest_is_named() -> None:
    lines = [open_line(f"Patient/far{number}", 3) for number in range(600)]
    lines.insert(300, open_line("Patient/near", 1))
    verdicts = {"eligible": 0, "potentially-eligible": 601, "ineligible": 0}
    text = shown(html(statement(trials=(trial(verdicts=verdicts),)), lines))
    assert text.count("Patient/far") == 499
    assert text.index("Patient/near") < text.index("Patient/far0 ")
    assert "500 of 601" in text


def test_changes_are_told_or_said_to_be_none() -> None:
    assert "no earlier search" in shown(html(statement()))
    assert "Changes since the search before None." in shown(html(statement(), [], []))
    told = Told(TRIAL, "Patient/1", "criterion", "I6", "unknown", "no-data", "pass", "value-meets")
    text = shown(html(statement(), [], [told, told._replace(trial="other")]))
    assert "Patient/1 I6 unknown (no-data) pass (value-meets)" in text
    assert text.count("Patient/1") == 1


def test_very_many_changes_are_not_all_shown() -> None:
    def many() -> Iterator[Told]:
        return (Told(TRIAL, f"Patient/{number}", "left", None, "x") for number in range(2_000))

    text = html(statement(), [], many())
    assert text.count("no longer in the population") == 500
    assert "first 500" in text


def bars(svg: str) -> list[list[int]]:
    """Give the widths of each row's bars."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    return [
        [int(bar.attrib["width"]) for bar in group.findall(f"{space}rect")]
        for group in root.findall(f"{space}g")
    ]


def test_very_many_problems_are_not_all_shown() -> None:
    problems = tuple(f"problem {number}" for number in range(1_000))
    text = shown(html(statement(complete=False, problems=problems)))
    assert "problem 99 " in text
    assert "problem 100 " not in text
    assert "900 further problems (run.json)" in text


def test_criteria_are_told_in_words() -> None:
    text = html(statement())
    assert "ECOG 0 to 2 & no <more>" in shown(text)
    assert "I6 (ECOG 0 to 2 &amp; no &lt;more&gt;): 1 pass" in text
    assert "<title>I1: 11 pass" in text


def test_the_source_is_called_so() -> None:
    assert "Source: export. Ended" in shown(html(statement(source="export")))


def test_the_charts_bars_are_as_long_as_their_share() -> None:
    attrition = (
        CriterionCount("all", "inclusion", 10, 0, 0),
        CriterionCount("half", "inclusion", 5, 0, 5),
        CriterionCount("thirds", "inclusion", 1, 1, 1),
        CriterionCount("few", "inclusion", 1_000_000, 1, 0),
        CriterionCount("none", "inclusion", 0, 0, 0),
    )
    everyone, half, thirds, few, none = bars(attrition_chart(trial(attrition=attrition)))
    assert everyone == [640]
    assert half == [320, 320]
    assert sum(thirds) == 640
    assert max(thirds) - min(thirds) <= 1
    assert few[1] == 1  # one among a million is still seen
    assert none == []


def test_the_chart_says_its_numbers_as_text_too() -> None:
    root = ElementTree.fromstring(attrition_chart(trial()))  # noqa: S314 - our own
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[:3] == [
        "QH103: patients by criterion and outcome",
        "I1: 11 pass, 0 unknown, 0 fail, 0 by this alone",
        "I6 (ECOG 0 to 2 & no <more>): 1 pass, 6 unknown, 4 fail, 3 by this alone",
    ]
