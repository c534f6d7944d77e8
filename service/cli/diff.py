"""``eligibility diff``: what is different between two runs, per patient and criterion."""

from __future__ import annotations

import click
import msgspec

from service.cli.options import settings_options
from service.cli.storing import format_option, opened, print_table, run_of
from service.storage.changes import Change

_EPILOG = """\
\b
Examples:
  eligibility diff 41 42 --store nights.db
  eligibility diff 41 latest --store nights.db --format json
"""
_HEADINGS = ("trial", "patient", "what", "before", "after")


@click.command(epilog=_EPILOG)
@click.argument("before", metavar="RUN")
@click.argument("after", metavar="RUN")
@format_option
@settings_options("store")
def command(before: str, after: str, form: str, store: str | None) -> None:
    """Tell what is different in the second RUN (a number, or latest) against the first.

    Who entered or left the population, whose verdict changed, and by which criteria and
    reasons. A patient whom an incomplete run did not reach has not left: it says so.
    """
    with opened(store) as found:
        changes = found.diff(run_of(found, before).id, run_of(found, after).id)
        if form == "json":
            for change in changes:
                click.echo(msgspec.json.encode(_json(change)).decode())
        elif not print_table(_HEADINGS, (_row(change) for change in changes)):
            click.echo("no differences", err=True)


def _row(change: Change) -> tuple[str, ...]:
    what = change.criterion or change.kind
    before = _said(change.before, change.before_reason)
    return change.trial, change.patient, what, before, _said(change.after, change.after_reason)


def _said(outcome: str | None, reason: str | None) -> str:
    if outcome is None:
        return ""
    return f"{outcome} ({reason})" if reason else outcome


def _json(change: Change) -> dict[str, str | None]:
    return {
        "trial": change.trial,
        "patient": change.patient,
        "kind": change.kind,
        "criterion": change.criterion,
        "before": change.before,
        "beforeReason": change.before_reason,
        "after": change.after,
        "afterReason": change.after_reason,
    }
