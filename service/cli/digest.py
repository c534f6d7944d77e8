"""``eligibility digest``: what changed in a run, by mail, by webhook, or to look at."""

from __future__ import annotations

import click

from service.cli.options import settings_options
from service.cli.storing import LATEST, run_of
from service.config import SETTINGS, load_settings
from service.errors import UsageError
from service.nightly.digest import CHANNELS, channels_of, deliver_all, digest_of
from service.nightly.model import Exit
from service.results.digest import digest_text
from service.storage.store import Store

_EPILOG = """\
\b
Examples:
  eligibility digest --print --store nights.db
  eligibility digest --run 42 --to mail --store nights.db
\b
What was sent is never sent again; what could not be sent is, with the next one.
\b
Exit codes: 0 sent, or nothing to say; 3 it isn't known whether it arrived; 1 not sent;
2 wrong usage.
"""
_OWN = ("smtp_", "webhook_", "digest")
_PLACEHOLDER = "https://eligibility.example.org/fhir"


@click.command(epilog=_EPILOG)
@click.option(
    "--run", metavar="RUN", default=LATEST, show_default=True, help="The run, by its number."
)
@click.option(
    "--to",
    "channel",
    type=click.Choice(CHANNELS),
    help="Where it goes.  [as ELIGIBILITY_DIGEST says]",
)
@click.option("--print", "only_print", is_flag=True, help="Print it; send nothing.")
@settings_options(
    "store", "base_url", *(one.field for one in SETTINGS if one.field.startswith(_OWN))
)
def command(run: str, channel: str | None, only_print: bool, **flags: str | None) -> None:
    """Tell what changed in a run: new candidates, who dropped out and why, what will lapse.

    Nothing in it tells who anybody is: patients are links that the service resolves.
    """
    settings = load_settings(flags=flags)
    if settings.store is None:
        raise UsageError("say where the store is with --store FILE|URL")
    with Store.open(settings.store, create=False) as store:
        found = run_of(store, run)
        if only_print:
            base = settings.base_url or _PLACEHOLDER
            digest = digest_of(store, found, days=settings.digest_days, base=base)
            if digest.is_empty:
                click.echo("nothing changed", err=True)
            else:
                click.echo(digest_text(digest), nl=False)
            return
        channels = (channel,) if channel else channels_of(settings.digest)
        if not channels:
            raise UsageError("say where it goes with --to mail|webhook, or --print it")
        states = deliver_all(settings, store, found, channels)
    for state in states:
        why = f": {state.problem}" if state.problem else ""
        click.echo(f"run {state.run_id} by {state.channel}: {state.status}{why}", err=True)
    statuses = {state.status for state in states}
    if "failed" in statuses:
        raise click.exceptions.Exit(Exit.FAILED)
    if statuses & {"uncertain", "sending"}:
        raise click.exceptions.Exit(Exit.INCOMPLETE)
