"""``eligibility check``: finds mistakes in mapping files."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.options import settings_options
from service.config import Settings, load_settings
from service.criteria.check import Finding, check_files
from service.errors import MappingError
from service.jobs.searches import load_searches
from service.wiring import build_screening, mappings_dir
from service.yamlfile import load_yaml

_EPILOG = """\
\b
Examples:
  eligibility check
  eligibility check mappings/trials/NCT06056752.yaml
  eligibility check searches.yaml
\b
Exit codes: 0 nothing found, 1 something is wrong, 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, path_type=Path)
)
@settings_options("mappings", "site", "searches")
def command(files: tuple[Path, ...], **flags: str | None) -> None:
    """Check mapping files: trials, code sets, units, site files, files of searches.

    Without FILE the shipped mappings are checked, and the file of searches if one is set.
    Prints file, line and what is wrong.
    """
    settings = load_settings(flags=flags)
    folder = mappings_dir(settings)
    searches = [path for path in files if _is_searches(path)]
    others = [path for path in files if path not in searches]
    if not files and settings.searches is not None:
        searches.append(settings.searches)
    findings = check_files(others or (folder,), folder) if others or not files else []
    for path in searches:
        findings += _check_searches(path, settings)
    for finding in findings:
        place = finding.file if finding.line is None else f"{finding.file}:{finding.line}"
        click.echo(f"{place}: {finding.message}")
    if findings:
        raise click.exceptions.Exit(1)
    click.echo("nothing found", err=True)


def _is_searches(path: Path) -> bool:
    """Tell whether a file is one of searches; what can't be read is none."""
    try:
        return path.suffix in (".yaml", ".yml") and "searches" in load_yaml(path)
    except MappingError:
        return False


def _check_searches(path: Path, settings: Settings) -> list[Finding]:
    try:
        screening = build_screening(settings)
        load_searches(path, screening.site.zone, screening.trials)
    except MappingError as error:
        return [Finding(str(path), error.line, error.problem)]
    return []
