"""``eligibility coverage``: site readiness, before any screening."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli.options import SOURCE_SETTINGS, complete_trial, settings_options
from service.cli.progress import tracked
from service.cli.unread import name_unread
from service.config import load_settings
from service.coverage import Coverage, survey
from service.errors import SourceError, UsageError
from service.results.table import console
from service.wiring import build_screening, build_source

_EPILOG = """\
\b
Examples:
  eligibility coverage --source https://fhir.hospital.example/r4 --limit 500
  eligibility coverage --source export/ --format json
\b
What is unmapped goes into the site file: local_codes, unit_spellings, upper_limits.
Exit codes: 0 all was read, 1 some patient or file could not be (files are named on the
error stream), 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--trial",
    metavar="TRIAL",
    default="NCT06056752",
    show_default=True,
    shell_complete=complete_trial,
    help="The trial whose code sets are looked for.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Look at the first N patients only.  [all]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or one JSON object.",
)
@settings_options(*SOURCE_SETTINGS)
def command(trial: str, limit: int | None, form: str, **flags: str | None) -> None:
    """Tell which code sets have data at a source, and what is missing or unmapped there.

    Counts patients and names none. Most patients affected come first.
    """
    settings = load_settings(flags=flags)
    if settings.source is None:
        raise UsageError("say where the records are with --source URL|DIR|FILE")
    screening = build_screening(settings)
    source = build_source(settings, screening.site)
    wanted = screening.trial(trial)
    ids = list(islice(source.patient_ids(), limit))
    unread = name_unread(source)
    found = survey(source, tracked(ids, "reading"), wanted, screening.terms)
    if form == "json":
        click.echo(msgspec.json.encode(found).decode())
    else:
        _print(found, console())
    if ids and not found.patients:
        raise SourceError("no patient of the source could be read")
    if found.failed or unread:
        raise click.exceptions.Exit(1)


def _print(found: Coverage, out: Console) -> None:
    failed = f", {found.failed} could not be read" if found.failed else ""
    out.print(Text(f"{found.patients} patients{failed}", style="bold"))
    _table(
        out,
        "Code sets, by patients with a record in them",
        ("patients", "code set", "title"),
        ((one.patients, one.name, one.title) for one in found.sets),
    )
    _table(
        out,
        "Codes that are local or not in any set",
        ("patients", "type", "system", "code", "display", "may belong to"),
        (
            (one.patients, one.type, one.system, one.code, one.display, *_joined(one.may_belong_to))
            for one in found.unmapped
        ),
    )
    _table(
        out,
        "Units that do not convert",
        ("patients", "code set", "unit"),
        ((one.patients, one.set, one.unit or "(none)") for one in found.units),
    )
    _table(
        out,
        "Results without a reference range, where the limit of normal is needed",
        ("patients", "code set"),
        ((one.patients, one.set) for one in found.ranges),
    )
    _table(
        out,
        "Resource types that were not read completely",
        ("patients", "type", "why"),
        ((one.patients, one.type, one.problem) for one in found.incomplete),
    )


def _joined(names: tuple[str, ...]) -> tuple[str]:
    return (", ".join(names),)


def _table(
    out: Console, title: str, headings: tuple[str, ...], rows: Iterable[tuple[object, ...]]
) -> None:
    table = Table(box=None)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number else "right", overflow="fold")
    for row in rows:
        # Text, not markup: a code or display of a record must not steer the terminal.
        table.add_row(*(Text("".join(c for c in str(v) if c.isprintable())) for v in row))
    out.print(Text(f"\n{title}" if table.row_count else f"\n{title}: none", style="bold"))
    if table.row_count:
        out.print(table)
