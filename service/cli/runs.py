"""``eligibility runs``: the runs of a store."""

from __future__ import annotations

import click
import msgspec

from service.cli.options import settings_options
from service.cli.storing import format_option, opened, print_table
from service.storage.store import Run

_EPILOG = """\
\b
Examples:
  eligibility runs --store nights.db
  eligibility runs --store postgresql://screening@db.hospital.example/screening --format json
"""
_HEADINGS = (
    "run", "status", "as of", "trials", "source", "started", "finished", "evaluated", "failed",
    "verdicts",
)  # fmt: skip


@click.command(epilog=_EPILOG)
@format_option
@settings_options("store")
def command(form: str, store: str | None) -> None:
    """List the runs of a store, newest first: what was asked, and what came out."""
    with opened(store) as found:
        runs = found.runs()
        going = any(run.status == "running" for run in runs) and found.busy()
    if form == "json":
        for run in runs:
            click.echo(msgspec.json.encode(_json(run, going)).decode())
    elif not print_table(_HEADINGS, (_row(run, going) for run in runs)):
        click.echo("no runs", err=True)


def _status(run: Run, going: bool) -> str:
    """Say how a run stands: one that nobody works on was interrupted."""
    if run.purged is not None:
        return "purged"
    if run.status == "running" and not going:
        return "interrupted"
    if run.status == "finished":
        return "complete" if run.complete else "incomplete"
    return run.status


def _where(run: Run) -> str:
    """Name the source, and by what its patients were come by."""
    spec = run.spec
    ways = (("bulk", spec.bulk), ("cohort", spec.cohort))
    return " ".join([spec.source, *(f"{word} {value}" for word, value in ways if value)])


def _row(run: Run, going: bool) -> tuple[object, ...]:
    said = run.statement
    verdicts = (
        "; ".join(
            " ".join(f"{code} {number}" for code, number in trial.verdicts.items())
            for trial in said.trials
        )
        if said
        else ""
    )
    return (
        run.id,
        _status(run, going),
        run.spec.as_of,
        " ".join(run.spec.trials),
        _where(run),
        run.started,
        run.finished or "",
        said.evaluated if said else "",
        said.failed if said else "",
        verdicts,
    )


def _json(run: Run, going: bool) -> dict[str, object]:
    said = run.statement
    return {
        "run": run.id,
        "status": _status(run, going),
        "asOf": run.spec.as_of,
        "trials": run.spec.trials,
        "source": run.spec.source,
        "bulk": run.spec.bulk,
        "cohort": run.spec.cohort,
        "started": run.started,
        "finished": run.finished,
        "purged": run.purged,
        "complete": run.complete,
        "versions": run.spec.versions,
        "fingerprint": run.fingerprint,
        "inPopulation": said.in_population if said else None,
        "evaluated": said.evaluated if said else None,
        "failed": said.failed if said else None,
        "verdicts": {one.trial: one.verdicts for one in said.trials} if said else None,
    }
