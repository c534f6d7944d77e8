"""``eligibility check``: finds mistakes in mapping files."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.options import settings_options
from service.config import load_settings
from service.criteria.check import check_files
from service.wiring import mappings_dir

_EPILOG = """\
\b
Examples:
  eligibility check
  eligibility check mappings/trials/NCT06056752.yaml
\b
Exit codes: 0 nothing found, 1 something is wrong, 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, path_type=Path)
)
@settings_options("mappings")
def command(files: tuple[Path, ...], mappings: str | None) -> None:
    """Check mapping files: trials, code sets, units, site files.

    Without FILE the shipped mappings are checked. Prints file, line and what is wrong.
    """
    folder = mappings_dir(load_settings(flags={"mappings": mappings}))
    findings = check_files(files or (folder,), folder)
    for finding in findings:
        place = finding.file if finding.line is None else f"{finding.file}:{finding.line}"
        click.echo(f"{place}: {finding.message}")
    if findings:
        raise click.exceptions.Exit(1)
    click.echo("nothing found", err=True)
