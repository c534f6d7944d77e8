"""``eligibility candidates``: who is not ineligible, by a run of the store."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from service.cli.options import complete_trial, settings_options
from service.cli.storing import LATEST, format_option, opened, print_table, run_of
from service.errors import UsageError
from service.storage.store import StoredVerdict

_EPILOG = """\
\b
Examples:
  eligibility candidates --store nights.db
  eligibility candidates --run 42 --trial NCT06056752 --store nights.db --format json
"""
_HEADINGS = ("trial", "patient", "verdict", "valid until", "open", "settled by")


@click.command(epilog=_EPILOG)
@click.option(
    "--run", metavar="RUN", default=LATEST, show_default=True, help="The run, by its number."
)
@click.option(
    "--trial", metavar="TRIAL", shell_complete=complete_trial, help="One trial only.  [all]"
)
@format_option
@settings_options("store")
def command(run: str, trial: str | None, form: str, store: str | None) -> None:
    """List the candidates of a run: eligible and potentially eligible patients.

    As JSON each is the whole verdict, as `evaluate --format json` prints it.
    """
    with opened(store) as found:
        chosen = run_of(found, run)
        if trial is not None and trial not in chosen.spec.trials:
            raise UsageError(f"run {chosen.id} is not of trial {trial[:64]!r}")
        if chosen.purged is not None:
            raise UsageError(f"the verdicts of run {chosen.id} were purged")
        if chosen.status != "finished":
            click.echo(f"run {chosen.id} is not finished: there may be more", err=True)
        elif not chosen.complete:
            click.echo(f"run {chosen.id} is not complete: there may be more", err=True)
        verdicts = found.verdicts(chosen.id, trial=trial, candidates=True)
        if form == "json":
            for verdict in verdicts:
                click.echo(verdict.line)
        elif not print_table(_HEADINGS, (_row(verdict) for verdict in verdicts)):
            click.echo("no candidates", err=True)


def _row(verdict: StoredVerdict) -> tuple[str, ...]:
    criteria = msgspec.json.decode(verdict.line)["criteria"]
    unknown = [result for result in criteria if result["outcome"] == "unknown"]
    settling = dict.fromkeys(text for result in unknown for text in _settling(result))
    return (
        verdict.trial,
        verdict.patient,
        verdict.code,
        verdict.valid_until or "",
        " ".join(result["id"] for result in unknown),
        "; ".join(settling),
    )


def _settling(result: dict[str, Any]) -> list[str]:
    """List what would settle a criterion, or its parts if they say it."""
    own: list[str] = list(result["settledBy"])
    inner = [
        text for part in result["parts"] if part["outcome"] == "unknown" for text in _settling(part)
    ]
    return own or inner
