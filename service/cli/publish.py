"""``eligibility publish``: writes the candidates back to the hospital's FHIR server."""

from __future__ import annotations

import click

from service.cli.options import SOURCE_SETTINGS, complete_trial, settings_options
from service.cli.storing import LATEST, run_of
from service.config import load_settings
from service.errors import UsageError
from service.nightly.model import Exit
from service.nightly.publish import Published, publish
from service.storage.store import Store

_EPILOG = """\
\b
Examples:
  eligibility publish --store nights.db --source https://fhir.hospital.example/r4 --dry-run
  eligibility publish --run 42 --trial NCT06056752 --store nights.db --source ...
\b
Writing the same run again writes nothing; what a person has changed stays.
\b
Exit codes: 0 all written, 3 some resources could not be (each named), 1 failed, 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--run", metavar="RUN", default=LATEST, show_default=True, help="The run, by its number."
)
@click.option(
    "--trial", metavar="TRIAL", shell_complete=complete_trial, help="One trial only.  [all]"
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be written.")
@settings_options(*SOURCE_SETTINGS, "canonical_base", "publish_scope", "store")
def command(run: str, trial: str | None, dry_run: bool, **flags: str | None) -> None:
    """Write a run's candidates to the FHIR server that they were found on.

    A ResearchSubject per candidate, and a Group and a List of them.
    """
    settings = load_settings(flags=flags)
    if settings.store is None:
        raise UsageError("say where the store is with --store FILE|URL")
    worst = Exit.COMPLETE
    with Store.open(settings.store, create=False) as store:
        found = run_of(store, run)
        for each in (trial,) if trial else found.spec.trials:
            published = publish(settings, store, found, each, rehearse=dry_run)
            _show(published, "would be " if dry_run else "")
            worst = max(worst, published.exit)
    if worst is not Exit.COMPLETE:
        raise click.exceptions.Exit(worst)


def _show(published: Published, would: str) -> None:
    for line in published.done:
        click.echo(line)
    for line in published.kept:
        click.echo(f"left as it is: {line}")
    for kind in published.absent:
        click.echo(f"not offered by the server, so left out: {kind}", err=True)
    for line in published.problems:
        click.echo(f"not written: {line}", err=True)
    click.echo(
        f"{published.trial}, run {published.run}: {would}{published.created} created, "
        f"{published.updated} updated, {published.unchanged} unchanged, "
        f"{len(published.kept)} left as others made them, {len(published.problems)} not written",
        err=True,
    )
