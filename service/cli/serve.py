"""``eligibility serve``: the HTTP API behind gunicorn."""

from __future__ import annotations

import click

from service.cli.options import settings_options
from service.config import SETTINGS, load_settings

_EPILOG = """\
\b
Examples:
  eligibility serve --source https://fhir.hospital.example/r4 --site site.yaml
  eligibility serve --host 0.0.0.0 --caller-auth keys --caller-keys-file keys.txt
\b
Every flag is also an environment variable; a flag wins.
"""


@click.command(epilog=_EPILOG)
@settings_options(*(setting.field for setting in SETTINGS))
def command(**flags: str | None) -> None:
    """Serve the HTTP API until it is told to stop.

    Without a source it serves the shipped, invented patients.
    """
    from service.web.server import serve  # noqa: PLC0415 - gunicorn only when it serves

    serve(load_settings(flags=flags))
