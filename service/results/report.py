"""The report of a search for people: one HTML file without script or anything from elsewhere."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import islice
from typing import Protocol

from service.criteria.model import VerdictCode
from service.nightly.model import (
    CriterionCount,
    Missing,
    Night,
    Statement,
    TrialCount,
    TypeCount,
)
from service.results.candidates import Candidate
from service.results.chart import attrition_chart
from service.results.fhirtypes import string

_CANDIDATES = 500
_CHANGES = 500
_MISSING = 25
_FAILURES = 100
_PROBLEMS = 100
_STYLE = """
:root { color-scheme: light; --line: #c9ced6; --dim: #55606e; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1b2430; margin: 0 auto; padding: 1.5rem;
  max-width: 72rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0; } .dim { color: var(--dim); }
.state { padding: .6rem .9rem; border-left: .4rem solid; margin: 1rem 0; }
.whole { border-color: #1b7f5c; background: #e9f6f1; }
.lacking { border-color: #b3261e; background: #fdeceb; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: .75rem 0; }
dt { color: var(--dim); font-size: .85rem; } dd { margin: 0; font-size: 1.3rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
ul { margin: .3rem 0; padding-left: 1.2rem; } td ul { margin: 0; padding-left: 1rem; }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
@media print { body { padding: 0; max-width: none; } h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; } }
"""
_KINDS = {
    "entered": "new in the population",
    "left": "no longer in the population",
    "not-evaluated-before": "not evaluated last time",
    "not-evaluated-now": "not evaluated this time",
}


class Change(Protocol):
    """A difference from the search before, as the store tells it."""

    @property
    def trial(self) -> str:
        """The trial's id."""

    @property
    def patient(self) -> str:
        """The patient's key."""

    @property
    def kind(self) -> str:
        """``verdict``, ``criterion``, or what became of the patient."""

    @property
    def criterion(self) -> str | None:
        """The criterion's id."""

    @property
    def before(self) -> str | None:
        """Verdict or outcome then."""

    @property
    def after(self) -> str | None:
        """Verdict or outcome now."""

    @property
    def before_reason(self) -> str | None:
        """The criterion's reason then."""

    @property
    def after_reason(self) -> str | None:
        """The criterion's reason now."""


def report_html(
    statement: Statement,
    candidates: Iterable[Candidate],
    changes: Iterable[Change] | None = None,
) -> Iterator[bytes]:
    """Write the report; ``changes`` is None if there is nothing to compare with.

    Of very many candidates and changes the first are shown, those nearest to being
    eligible first; all are in the other outputs.
    """
    nearest = _nearest(statement, candidates)
    told = _first_changes(statement, changes)
    yield from (part.encode() for part in _page(statement, nearest, told))


def _nearest(
    statement: Statement, candidates: Iterable[Candidate]
) -> Mapping[str, list[Candidate]]:
    """Keep the candidates with the fewest open criteria, by trial, in one go."""
    kept: dict[str, list[tuple[tuple[int, int], Candidate]]] = {
        trial.trial: [] for trial in statement.trials
    }
    for number, candidate in enumerate(candidates):
        heap = kept.get(candidate.trial)
        if heap is None:
            continue
        # Turned round, since the heap's least is what gives way.
        entry = ((-len(candidate.open), -number), candidate)
        if len(heap) < _CANDIDATES:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    return {
        trial: [candidate for _, candidate in sorted(heap, key=lambda entry: entry[0])[::-1]]
        for trial, heap in kept.items()
    }


def _first_changes(
    statement: Statement, changes: Iterable[Change] | None
) -> Mapping[str, list[Change]] | None:
    if changes is None:
        return None
    told: dict[str, list[Change]] = {trial.trial: [] for trial in statement.trials}
    for change in changes:
        listed = told.get(change.trial)
        if listed is not None and len(listed) <= _CHANGES:
            listed.append(change)
    return told


def _page(
    statement: Statement,
    nearest: Mapping[str, list[Candidate]],
    told: Mapping[str, list[Change]] | None,
) -> Iterator[str]:
    title = f"Candidate search as of {statement.as_of}"
    yield "<!DOCTYPE html>\n"
    yield '<html lang="en"><head><meta charset="utf-8">'
    # Whatever a record's text may hold: nothing runs here and nothing is loaded.
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="referrer" content="no-referrer">'
    yield f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
    yield f"<h1>{_text(title)}</h1>"
    yield from _state(statement)
    for trial in statement.trials:
        yield from _trial(trial, nearest[trial.trial], None if told is None else told[trial.trial])
    yield from _reading(statement)
    yield "</main></body></html>\n"


def _state(statement: Statement) -> Iterator[str]:
    where = f"Source: {statement.source}"
    for word, value in (("bulk", statement.bulk), ("cohort", statement.cohort)):
        where += f", {word} {value}" if value else ""
    yield f'<p class="dim">{_text(where)}. Ended {_text(statement.finished)}, '
    yield f"{_duration(statement.seconds)}.</p>"
    if statement.complete:
        yield '<p class="state whole">The search was complete.</p>'
    else:
        yield '<div class="state lacking"><p><strong>The search was not complete:</strong> '
        yield "patients or records may be missing below.</p>"
        yield _list(_lacking(statement)) + "</div>"
    if statement.notes:
        yield '<p class="dim">Of the source:</p>' + _list(statement.notes)
    yield _figures(
        ("patients seen", statement.patients_seen),
        ("in the population", statement.in_population),
        ("evaluated", statement.evaluated),
        ("could not be evaluated", statement.failed),
        ("rejected resources", statement.rejects),
    )


def _lacking(statement: Statement) -> Iterator[str]:
    yield from statement.problems[:_PROBLEMS]
    if len(statement.problems) > _PROBLEMS:
        yield f"{len(statement.problems) - _PROBLEMS} further problems (run.json)"
    if statement.rejects:
        yield f"{statement.rejects} resources or lines could not be used (rejects.ndjson)"
    for failure in islice(statement.failures, _FAILURES):
        yield f"{failure.patient}: {failure.problem}"
    if len(statement.failures) > _FAILURES:
        yield f"{len(statement.failures) - _FAILURES} further patients (run.json)"


def _trial(
    trial: TrialCount, candidates: Sequence[Candidate], changes: Sequence[Change] | None
) -> Iterator[str]:
    yield f"<section><h2>{_text(trial.name)} ({_text(trial.trial)})</h2>"
    yield f'<p class="dim">Criteria of version {_text(trial.version)}.</p>'
    yield _figures(
        *((code.value.replace("-", " "), trial.verdicts.get(code.value, 0)) for code in VerdictCode)
    )
    yield "<h3>What stands in the way</h3>"
    yield f'<div class="scroll">{attrition_chart(trial)}</div>'
    yield "<details><summary>The criteria in words, and the chart as a table</summary>"
    yield _table(
        (
            "Criterion",
            "Kind",
            "Sentence",
            "n:pass",
            "n:unknown",
            "n:fail",
            "n:fails alone",
            "n:open alone",
        ),
        map(_attrition_row, trial.attrition),
    )
    yield "</details>"
    yield from _candidates(trial, candidates)
    yield from _changes(changes)
    yield from _missing(trial.missing)
    yield "</section>\n"


def _attrition_row(count: CriterionCount) -> tuple[str, ...]:
    numbers = (count.passed, count.unknown, count.failed, count.alone, count.alone_open)
    return (count.id, count.kind, count.text, *map(str, numbers))


def _candidates(trial: TrialCount, candidates: Sequence[Candidate]) -> Iterator[str]:
    total = sum(
        count for code, count in trial.verdicts.items() if code != VerdictCode.INELIGIBLE.value
    )
    yield "<h3>Candidates</h3>"
    if not candidates:
        yield "<p>None.</p>"
        return
    if total > len(candidates):
        yield f"<p>{len(candidates)} of {total}, those with the fewest open criteria; all are in "
        yield "candidates.csv.</p>"
    rows = (
        (
            _text(candidate.patient),
            _text(candidate.code.replace("-", " ")),
            _text(candidate.valid_until or "the record changes"),
            str(len(candidate.open)),
            _list((*candidate.why, *_to_judge(candidate))),
            _list(candidate.data),
        )
        for candidate in candidates
    )
    heads = ("Patient", "Verdict", "Valid until", "n:Open", "Open criteria", "Missing data")
    yield _table(heads, rows, html=True)
    questions = Counter(question for one in candidates for question in one.questions)
    if questions:
        # Most are the same for everyone, and would drown the rest in each row.
        yield "<h3>Questions for the investigator</h3>"
        yield _table(
            ("n:Candidates", "Question"),
            ((str(count), question) for question, count in questions.most_common(_MISSING)),
        )


def _to_judge(candidate: Candidate) -> Iterator[str]:
    if candidate.judged:
        yield f"to judge: {' '.join(candidate.judged)}"


def _changes(changes: Sequence[Change] | None) -> Iterator[str]:
    yield "<h3>Changes since the search before</h3>"
    if changes is None:
        yield "<p>There is no earlier search to compare with.</p>"
    elif not changes:
        yield "<p>None.</p>"
    else:
        yield _table(("Patient", "What", "Before", "Now"), map(_change_row, changes[:_CHANGES]))
        if len(changes) > _CHANGES:
            yield f"<p>Only the first {_CHANGES} are shown.</p>"


def _change_row(change: Change) -> tuple[str, ...]:
    what = change.criterion or _KINDS.get(change.kind, change.kind)
    return (
        change.patient,
        what,
        _side(change.before, change.before_reason),
        _side(change.after, change.after_reason),
    )


def _side(outcome: str | None, reason: str | None) -> str:
    return (outcome or "") + (f" ({reason})" if outcome and reason else "")


def _missing(missing: Sequence[Missing]) -> Iterator[str]:
    yield "<h3>What would settle most</h3>"
    if not missing:
        yield "<p>Nothing is missing.</p>"
        return
    yield _table(
        ("n:Patients", "What", "Where", "For"),
        (
            (
                str(each.patients),
                each.text,
                each.type or "the investigator",
                " ".join(each.criteria),
            )
            for each in missing[:_MISSING]
        ),
    )


def _reading(statement: Statement) -> Iterator[str]:
    yield "<section><h2>What was read</h2>"
    yield f"<p>{_text(_night(statement.night))}</p>"
    yield _table(
        ("Type", "n:Files", "n:Bytes", "n:Lines", "n:Read", "Skipped"),
        (_type_row(kind, count) for kind, count in statement.types.items()),
    )
    yield "<h3>Versions</h3>"
    yield _list(f"{name}: {version}" for name, version in statement.versions.items())
    yield "</section>"


def _night(night: Night) -> str:
    """Say whether all was read or what changed, and how much was evaluated."""
    if night.since is None:
        why = f" ({night.why})" if night.why else ""
        return f"Everything was read{why}; {night.evaluated} records were evaluated."
    unseen = (
        f" The server does not tell what was deleted of {', '.join(night.unseen)}."
        if night.unseen
        else ""
    )
    return (
        f"What changed since {night.since} was read: {night.evaluated} records were evaluated "
        f"({night.touched} changed, {night.joined} read anew, {night.lapsed} lapsed); "
        f"{night.carried} verdicts were taken over from run {night.base}.{unseen}"
    )


def _type_row(kind: str, count: TypeCount) -> tuple[str, ...]:
    skipped = ", ".join(f"{reason} {number}" for reason, number in count.skipped.items())
    return (
        kind,
        *(str(number) for number in (count.files, count.bytes, count.lines, count.read)),
        skipped,
    )


def _figures(*figures: tuple[str, int]) -> str:
    items = "".join(f"<div><dt>{_text(name)}</dt><dd>{count}</dd></div>" for name, count in figures)
    return f"<dl>{items}</dl>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, html: bool = False) -> str:
    """Write a table; a head that begins with ``n:`` is of a column of numbers."""
    numbers = [head.startswith("n:") for head in heads]
    classes = [' class="n"' if number else "" for number in numbers]
    head = "".join(
        f'<th scope="col"{kind}>{_text(name.removeprefix("n:"))}</th>'
        for name, kind in zip(heads, classes, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{cell if html else _text(cell)}</td>"
            for cell, kind in zip(row, classes, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>\n"
    )


def _list(items: Iterable[str]) -> str:
    written = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f"<ul>{written}</ul>" if written else ""


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{seconds:.1f} s"


def _text(text: str) -> str:
    """Write a record's or setting's text so that it stays text."""
    return escape(string(text) or "")
