"""All outputs of a search beside the verdicts themselves, each as the parts of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from service.nightly.model import Reject, Statement
from service.results.candidates import candidates, candidates_csv
from service.results.fhir import CANONICAL_BASE
from service.results.group import Study, group_json, list_json
from service.results.report import Change, report_html
from service.results.statement import reject_lines, statement_bytes

Lines = Callable[[], Iterable[bytes]]


def output_files(
    statement: Statement,
    lines: Lines,
    rejects: Iterable[Reject],
    changes: Iterable[Change] | None = None,
    base: str = CANONICAL_BASE,
    key: bytes = b"",
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Give each output's name and content, the statement last.

    ``lines`` gives the verdicts' lines each time it is asked; nothing keeps them. ``key``
    is the store's, for candidates' ids. Where the statement is, the others are whole.
    """
    studies = [
        Study(trial.trial, trial.name, statement.as_of, statement.complete, base, key)
        for trial in statement.trials
    ]
    yield "rejects.ndjson", reject_lines(rejects)
    yield "candidates.csv", candidates_csv(candidates(lines()))
    yield "group.json", group_json(studies, lambda: candidates(lines()))
    yield "list.json", list_json(studies, lambda: candidates(lines()))
    yield "report.html", report_html(statement, candidates(lines()), changes)
    yield "run.json", iter((statement_bytes(statement),))
