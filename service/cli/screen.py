"""``eligibility screen``: the search for candidates over many patients."""

from __future__ import annotations

import os
import sys
import time
from datetime import date
from pathlib import Path

import click

from service.cli.evaluate import Day
from service.cli.options import BULK_SETTINGS, SOURCE_SETTINGS, complete_trial, settings_options
from service.config import load_settings
from service.errors import UsageError
from service.nightly.model import Exit, Statement
from service.nightly.screen import Request, screen
from service.wiring import build_site, today

_EPILOG = """\
\b
Examples:
  eligibility screen NCT06056752 --source export/ --output night/
  eligibility screen NCT06056752 --source https://fhir.hospital.example/r4 --bulk system
  eligibility screen NCT06056752 --source https://fhir.hospital.example/r4 --cohort Group/7
\b
The same command takes up a search that was cut short.
\b
Exit codes: 0 complete, 3 done but not complete (run.json says why), 1 failed, 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@click.argument(
    "trials", metavar="TRIAL...", nargs=-1, required=True, shell_complete=complete_trial
)
@click.option(
    "--bulk",
    metavar="system|patient|group/ID",
    help="Fetch the records from the source by a Bulk Data export of this.",
)
@click.option(
    "--cohort",
    metavar="Group/ID|List/ID|FILE",
    help="Search these patients only; FILE holds an id or identifier (system|value) a line.",
)
@click.option(
    "--as-of", metavar="DATE", type=Day(), help="Day of the evaluation.  [today at the site]"
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("screening"),
    show_default=True,
    help="Folder that the results are written to.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    show_default=True,
    help="This machine, or an Apache Spark cluster.",
)
@click.option("--fresh", is_flag=True, help="Begin anew; take up nothing of an earlier search.")
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 256),
    default=None,
    help="Processes that work at the same time.  [one per processor]",
)
@settings_options(
    *SOURCE_SETTINGS, *BULK_SETTINGS, "search_parallel", "attestations", "store", "full_every"
)
def command(
    trials: tuple[str, ...],
    bulk: str | None,
    cohort: str | None,
    as_of: date | None,
    output: Path,
    engine: str,
    fresh: bool,
    workers: int | None,
    **flags: str | None,
) -> None:
    """Search a source for candidates of one or more TRIALs."""
    if bulk and cohort:
        raise UsageError("give --bulk or --cohort, not both")
    if len(set(trials)) < len(trials):
        raise UsageError("a trial is named twice")
    settings = load_settings(flags=flags)
    request = Request(
        trials=trials,
        as_of=as_of or date.fromisoformat(today(build_site(settings))),
        output=output,
        bulk=bulk,
        cohort=cohort,
        store=settings.store,
        engine=engine,
        fresh=fresh,
        workers=workers or processors(),
    )
    shown = Shown()
    try:
        statement = screen(settings, request, shown)
    finally:
        shown.end()
    click.echo(_summary(statement, output), err=True)
    if statement.exit is not Exit.COMPLETE:
        raise click.exceptions.Exit(statement.exit)


def processors() -> int:
    """Count the processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return 1


class Shown:
    """Shows how far a search is: one line that changes on a terminal, else plain lines."""

    _EVERY = 10.0

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._stage = ""
        self._began = self._shown = 0.0
        self._first = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show a stage's progress, in bytes or patients done of all."""
        now = time.monotonic()
        begins = stage != self._stage
        if begins:
            self._stage, self._began, self._first = stage, now, done
            if self._terminal and self._shown:
                click.echo(err=True)
        every = 0.2 if self._terminal else self._EVERY
        if not begins and done < total and now - self._shown < every:
            return
        self._shown = now
        text = self._text(done, total, now - self._began)
        if self._terminal:
            click.echo(f"\r{text}\x1b[K", err=True, nl=False)
        else:
            click.echo(text, err=True)

    def end(self) -> None:
        """End the line on a terminal, so that the result or message stands on its own."""
        if self._terminal and self._shown:
            click.echo(err=True)

    def _text(self, done: int, total: int, seconds: float) -> str:
        share = 100 * done // total if total else 100
        text = f"{self._stage}: {share} %"
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        if rate <= 0 or done >= total:
            return text
        left = round((total - done) / rate)
        size = f"{rate / 1e6:.0f} MB/s" if self._stage.startswith("reading") else f"{rate:.1f}/s"
        return f"{text}, {size}, {left // 60}:{left % 60:02} left"


def _summary(statement: Statement, output: Path) -> str:
    lines = [
        f"{statement.patients_seen} patients seen, {statement.in_population} in the population, "
        f"{statement.evaluated} evaluated, {statement.failed} failed"
    ]
    for trial in statement.trials:
        counts = ", ".join(f"{count} {code}" for code, count in trial.verdicts.items())
        lines.append(f"{trial.trial}: {counts}")
    if not statement.complete:
        lines.append(f"not complete: {_lacking(statement)}; see {output / 'run.json'}")
    return "\n".join(lines)


def _lacking(statement: Statement) -> str:
    """Count what makes a search incomplete, by kind; what there is none of is left out."""
    counts = (
        (len(statement.problems), "problem"),
        (statement.failed, "failed patient"),
        (statement.rejects, "reject"),
    )
    return ", ".join(
        f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts if count
    )
