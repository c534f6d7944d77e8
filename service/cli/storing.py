"""What the subcommands that read the store share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
from rich.table import Table
from rich.text import Text

from service.config import load_settings
from service.errors import UsageError
from service.results.fhirtypes import string
from service.results.table import console
from service.storage.store import Run, Store

LATEST = "latest"
run_argument = click.argument("run", metavar="RUN")
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or one line of JSON each.",
)


def opened(place: str | None) -> Store:
    """Open the store that is set; raises UsageError, ConfigurationError, StoreError."""
    settings = load_settings(flags={"store": place})
    if settings.store is None:
        raise UsageError("say where the store is with --store FILE|URL")
    return Store.open(settings.store, create=False)


def run_of(store: Store, text: str) -> Run:
    """Find a run by its number, or the latest finished one; raises UsageError."""
    if text == LATEST:
        found = store.latest()
        if found is None:
            raise UsageError("the store has no finished run")
        return found
    if not text.isascii() or not text.isdecimal():
        raise UsageError(f"{text[:64]!r} is no run: give a number, or {LATEST}")
    return store.run(int(text[:18]))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """Print rows as a table; give their number."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # Text, not markup: what a record says must not steer the terminal.
        table.add_row(*(Text(" ".join((string(str(cell)) or "").split())) for cell in row))
    if table.row_count:
        console().print(table)
    return table.row_count
