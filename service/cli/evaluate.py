"""``eligibility evaluate``: verdicts for patients of a source."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import click
import msgspec

from service.cli.options import SOURCE_SETTINGS, settings_options, trial_argument
from service.cli.progress import clear_line, tracked
from service.cli.unread import name_unread
from service.config import Settings, load_settings
from service.criteria.model import Verdict
from service.errors import EligibilityError, UsageError
from service.results.fhir import guidance_response
from service.results.json import verdict_line
from service.results.table import console, print_verdict
from service.wiring import build_screening, build_source, today

_EPILOG = """\
\b
Examples:
  eligibility evaluate NCT06056752 123 456 --source https://fhir.hospital.example/r4
  eligibility evaluate NCT06056752 --all --source export/ --format json > verdicts.ndjson
  eligibility evaluate NCT06056752 123 --source record.json --as-of 2026-11-01
\b
Exit codes: 0 all were evaluated, 1 some patient could not be, or with --all some file not
be read (each named on the error stream), 2 wrong usage.
"""


class Day(click.ParamType[date]):
    """A calendar day as YYYY-MM-DD."""

    name = "date"

    def convert(
        self, value: str | date, param: click.Parameter | None, ctx: click.Context | None
    ) -> date:
        """Read the day; click reports a wrong one as wrong usage."""
        if isinstance(value, date):
            return value
        try:
            if len(value) != len("YYYY-MM-DD"):
                raise ValueError
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a day written as YYYY-MM-DD", param, ctx)


@click.command(epilog=_EPILOG)
@trial_argument
@click.argument("patients", metavar="[PATIENT]...", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="Evaluate all patients of the source.")
@click.option(
    "--as-of",
    metavar="DATE",
    type=Day(),
    help="Day of the evaluation, YYYY-MM-DD.  [today at the site]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "fhir"]),
    default="table",
    show_default=True,
    help="For people; one line of JSON per patient; one GuidanceResponse per line.",
)
@settings_options(*SOURCE_SETTINGS, "attestations", "canonical_base")
def command(
    trial: str,
    patients: tuple[str, ...],
    everyone: bool,
    as_of: date | None,
    form: str,
    **flags: str | None,
) -> None:
    """Evaluate PATIENTs (ids) for TRIAL, or all of them with --all."""
    if everyone and patients:
        raise UsageError("either ids or --all, not both")
    if not everyone and not patients:
        raise UsageError("name patients' ids, or give --all")
    settings = load_settings(flags=flags)
    if settings.source is None:
        raise UsageError("say where the records are with --source URL|DIR|FILE")
    if not _evaluate(settings, trial, patients, as_of, _writer(form, settings)):
        raise click.exceptions.Exit(1)


def _evaluate(
    settings: Settings,
    trial_id: str,
    patients: tuple[str, ...],
    as_of: date | None,
    write: Callable[[Verdict], None],
) -> bool:
    """Evaluate and write the patients one by one; tell whether none asked for is missing."""
    screening = build_screening(settings)
    trial = screening.trial(trial_id)
    source = build_source(settings, screening.site)
    day = as_of or date.fromisoformat(today(screening.site))
    ids = [patient.removeprefix("Patient/") for patient in patients] or list(source.patient_ids())
    # Who is in a file that can't be read was not listed, so --all has not reached all.
    complete = bool(patients) or not name_unread(source)
    if not ids:
        click.echo("no patients were found in the source", err=True)
    for patient in tracked(ids, "evaluating"):
        try:
            verdict = screening.evaluate_patient(trial, source, patient, day)
        except EligibilityError as error:
            # One bad record stops nobody else's; the caller learns of it by name.
            complete = False
            clear_line()
            click.echo(f"Patient/{patient}: {error.message}", err=True)
            continue
        clear_line()
        write(verdict)
    return complete


def _writer(form: str, settings: Settings) -> Callable[[Verdict], None]:
    if form == "json":
        return _write_json
    if form == "fhir":
        return lambda verdict: click.echo(_fhir_line(verdict, settings))
    out = console()
    return lambda verdict: print_verdict(verdict, out)


def _write_json(verdict: Verdict) -> None:
    """Write the line; what was not used is reported beside it, on the error stream."""
    click.echo(verdict_line(verdict))
    for message in verdict.messages:
        about = (message.type, message.reference, message.place)
        named = " ".join(part for part in about if part)
        click.echo(": ".join(filter(None, (verdict.patient, named, message.text))), err=True)


def _fhir_line(verdict: Verdict, settings: Settings) -> str:
    response = guidance_response(verdict, canonical_base=settings.canonical_base)
    return msgspec.json.encode(response).decode()
