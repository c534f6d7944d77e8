"""``eligibility explain``: a trial's criteria in words."""

from __future__ import annotations

import click

from service.cli.options import settings_options, trial_argument
from service.config import load_settings
from service.criteria.explain import explain
from service.wiring import build_screening

_EPILOG = """\
\b
Examples:
  eligibility explain NCT06056752
  eligibility explain NCT06056752 --all-codes
  eligibility explain NCT06056752 > docs/criteria/NCT06056752.md
"""


@click.command(epilog=_EPILOG)
@trial_argument
@click.option("--all-codes", is_flag=True, help="List every code of every set.")
@settings_options("mappings")
def command(trial: str, all_codes: bool, mappings: str | None) -> None:
    """Print each criterion of TRIAL: sentence, rule in words, codes, windows, unknowns.

    The output is Markdown; the pages of docs/criteria are made with it.
    """
    screening = build_screening(load_settings(flags={"mappings": mappings}))
    click.echo(explain(screening.trial(trial), screening.terms, all_codes=all_codes), nl=False)
