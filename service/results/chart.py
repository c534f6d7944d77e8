"""The attrition chart: a bar per criterion, how many patients pass, are unknown, fail."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from service.nightly.model import CriterionCount, TrialCount
from service.results.fhirtypes import string

_LABEL = 90  # pixels for the criterion's id
_BAR = 640
_NUMBERS = 190
_ROW = 22
_TOP = 34
# Told apart also by those who don't see red and green alike, and in grey.
_COLOURS = (("pass", "#0f766e"), ("unknown", "#e2b93b"), ("fail", "#9f1239"))


def attrition_chart(trial: TrialCount) -> str:
    """Draw the chart as SVG; the numbers are in it as text as well."""
    rows = trial.attrition
    width, height = _LABEL + _BAR + _NUMBERS, _TOP + _ROW * len(rows) + 4
    name = escape(string(trial.name) or trial.trial)
    drawn = "".join(
        part for number, count in enumerate(rows) for part in _row(count, _TOP + _ROW * number)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">'
        f"<title>{name}: patients by criterion and outcome</title>{_legend()}{drawn}</svg>"
    )


def _legend() -> str:
    parts = []
    for place, (name, colour) in enumerate(_COLOURS):
        x = _LABEL + 90 * place
        parts.append(f'<rect x="{x}" y="6" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="16">{name}</text>')
    x = _LABEL + _BAR + 8
    parts.append(f'<text x="{x}" y="16">fail / alone in the way</text>')
    return "".join(parts)


def _row(count: CriterionCount, y: int) -> Iterator[str]:
    numbers = (count.passed, count.unknown, count.failed)
    total = sum(numbers)
    middle = y + 14
    label = escape(string(count.id) or "")
    said = ", ".join(
        f"{number} {name}" for (name, _), number in zip(_COLOURS, numbers, strict=True)
    )
    sentence = escape(string(count.text) or "")
    sentence = f" ({sentence})" if sentence else ""
    yield f"<g><title>{label}{sentence}: {said}, {count.alone} by this alone</title>"
    yield f'<text x="{_LABEL - 8}" y="{middle}" text-anchor="end">{label}</text>'
    x, seen = _LABEL, 0
    for (_, colour), number in zip(_COLOURS, numbers, strict=True):
        seen += number
        # Each end is rounded from the sum so far, so that the bars always end together.
        end = _LABEL + (_BAR * seen // total if total else 0)
        # Few among many must not vanish.
        end = max(end, x + 1) if number else end
        if end > x:
            yield (
                f'<rect x="{x}" y="{y + 2}" width="{end - x}" height="{_ROW - 6}" fill="{colour}"/>'
            )
        x = max(x, end)
    yield f'<text x="{_LABEL + _BAR + 8}" y="{middle}">{count.failed} / {count.alone}</text></g>'
