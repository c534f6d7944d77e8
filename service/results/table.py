"""A verdict for people: a line per patient, a row per criterion and part."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.criteria.model import Evidence, Result, Verdict, VerdictCode
from service.fhir.record import Message
from service.results.fhirtypes import string
from service.values.logic import Outcome

_PIPED_WIDTH = 160
_OUTCOME_STYLE = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.UNKNOWN: "yellow"}
_VERDICT_STYLE = {
    VerdictCode.ELIGIBLE: "bold green",
    VerdictCode.POTENTIALLY_ELIGIBLE: "bold yellow",
    VerdictCode.INELIGIBLE: "bold red",
}


def console() -> Console:
    """Give a console for standard output: colours on a terminal, wide lines when piped."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_verdict(verdict: Verdict, out: Console | None = None) -> None:
    """Print a verdict: the summary, the criteria, and what went wrong on the way."""
    out = out or console()
    out.print(_summary(verdict))
    out.print(_criteria(verdict))
    for message in verdict.messages:
        out.print(Text(f"  {message.severity}: {_message(message)}", style="dim"))
    out.print()


def _summary(verdict: Verdict) -> Text:
    results = verdict.criteria
    failed = [result.id for result in results if result.outcome is Outcome.FAIL]
    unknown = [result.id for result in results if result.outcome is Outcome.UNKNOWN]
    line = Text.assemble(
        (_plain(verdict.patient), "bold"),
        f"  {verdict.trial}  as of {verdict.as_of}  ",
        (verdict.code.value, _VERDICT_STYLE[verdict.code]),
    )
    if verdict.valid_until is not None:
        line.append(f"  valid until {verdict.valid_until}")
    if failed:
        line.append(f"\n  fails: {' '.join(failed)}")
    if unknown:
        line.append(f"\n  open: {' '.join(unknown)}")
    return line


def _criteria(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("criterion", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("reason", no_wrap=True)
    table.add_column("why, and what would settle it", ratio=1, overflow="fold")
    for result in verdict.criteria:
        _rows(table, result, 0)
    return table


def _rows(table: Table, result: Result, level: int) -> None:
    table.add_row(
        "  " * level + result.id,
        Text(result.outcome.value, style=_OUTCOME_STYLE[result.outcome]),
        result.reason.value,
        _why(result),
    )
    for part in result.parts:
        _rows(table, part, level + 1)


def _why(result: Result) -> Text:
    why = Text(_plain(result.message))
    if result.parts:
        # The parts below show their own evidence.
        return why
    for evidence in result.evidence:
        why.append(f"\n{_shown(evidence)}", style="dim")
    for assumption in result.assumptions:
        why.append(f"\nassumed: {_plain(assumption)}", style="dim italic")
    if result.outcome is Outcome.UNKNOWN:
        for settles in result.settled_by:
            why.append(f"\nsettled by: {_plain(settles.text)}", style="cyan")
    return why


def _shown(evidence: Evidence) -> str:
    parts = [evidence.reference, evidence.date, evidence.code, evidence.recorded]
    text = "  ".join(_plain(part) for part in parts if part)
    if evidence.compared:
        text += f"  = {_plain(evidence.compared)}"
    if evidence.threshold:
        text += f"  ({_plain(evidence.threshold)})"
    return text


def _message(message: Message) -> str:
    where = [part for part in (message.type, message.reference, message.place) if part]
    return _plain(message.text + (f" ({', '.join(where)})" if where else ""))


def _plain(text: str) -> str:
    """Keep a record's text from steering the terminal or breaking the table."""
    return " ".join((string(text) or "").split())
