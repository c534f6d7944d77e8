"""``eligibility purge``: removes patients' data of old runs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from service.cli.options import settings_options
from service.cli.storing import opened
from service.storage.purge import purge

_EPILOG = """\
\b
Examples:
  eligibility purge --older-than 90d --store nights.db --dry-run
  eligibility purge --older-than 2026-01-01 --store nights.db --yes
\b
What is left of a run: when it ran, on which source, with which versions and files (by
digest), its counts, the digest over its verdicts, and when it was purged.
"""
_AGE = re.compile(r"([0-9]{1,5})([dw])", re.ASCII)
_DAYS = {"d": 1, "w": 7}


class _Before(click.ParamType[str]):
    """An age in days or weeks, or a day, as an instant in ISO form."""

    name = "age"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the age; click reports a wrong one as wrong usage."""
        try:
            if age := _AGE.fullmatch(value):
                days = int(age[1]) * _DAYS[age[2]]
                instant = datetime.now(UTC) - timedelta(days=days)
            elif len(value) == len("YYYY-MM-DD"):
                instant = datetime.fromisoformat(value).replace(tzinfo=UTC)
            else:
                raise ValueError
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither an age (90d, 12w) nor a day (YYYY-MM-DD)", param, ctx)
        return instant.isoformat(timespec="seconds").replace("+00:00", "Z")


@click.command(epilog=_EPILOG)
@click.option(
    "--older-than",
    metavar="AGE",
    required=True,
    type=_Before(),
    help="Age of the runs to purge, in days (90d) or weeks (12w), or the first day to keep.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@settings_options("store")
def command(older_than: str, dry_run: bool, yes: bool, store: str | None) -> None:
    """Remove verdicts, evidence, records, changes and rejects of runs older than AGE.

    It can't be undone. The audit facts stay; so does what a newer run still rests on.
    """
    with opened(store) as found:
        if not dry_run and not yes:
            due = purge(found, older_than, rehearse=True)
            click.confirm(f"purge {due.runs} runs written before {older_than}?", abort=True)
        done = purge(found, older_than, rehearse=dry_run)
    would = "would be " if dry_run else ""
    click.echo(
        f"runs {would}purged: {done.runs}; {would}removed: {done.verdicts} verdicts, "
        f"{done.facts} records, {done.rejects} rejects"
    )
