"""``eligibility replay``: a stored verdict, given again with the versions then used."""

from __future__ import annotations

import click

from service.cli.options import complete_trial, settings_options
from service.cli.storing import opened, run_argument, run_of
from service.results.table import console, print_verdict
from service.storage.replay import Replayed, differences, replay
from service.storage.store import environment
from service.wiring import screening_of

_EPILOG = """\
\b
Examples:
  eligibility replay 42 123 --store nights.db
  eligibility replay latest Patient/123 --store nights.db --format json
\b
Exit codes: 0 the same verdict; 1 another verdict, or a version, file or fact of then is
missing (it says which); 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.argument("patient", metavar="PATIENT")
@click.option(
    "--trial", metavar="TRIAL", shell_complete=complete_trial, help="One trial only.  [all]"
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or one line of JSON, as in verdicts.ndjson.",
)
@settings_options("store")
def command(run: str, patient: str, trial: str | None, form: str, store: str | None) -> None:
    """Evaluate PATIENT again as RUN (a number, or latest) did, and compare the verdicts.

    The record, trial file, code sets, site file and attestations are those that the store
    kept with the run; nothing is read from the source.
    """
    with opened(store) as found:
        chosen = run_of(found, run)
        replayed = replay(found, chosen.id, patient, screening_of, trial=trial)
    for one in replayed:
        _print(one, form)
    if all(one.same for one in replayed):
        click.echo(f"the same as in run {chosen.id}, byte for byte", err=True)
        return
    click.echo(f"not the verdict that run {chosen.id} gave", err=True)
    for difference in differences(chosen, environment()):
        click.echo(f"another version: {difference}", err=True)
    raise click.exceptions.Exit(1)


def _print(one: Replayed, form: str) -> None:
    if form == "json":
        click.echo(one.line)
    else:
        print_verdict(one.verdict, console())
