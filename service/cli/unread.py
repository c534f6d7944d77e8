"""Names the files of a source that could not be read: somebody's record may be in them."""

from __future__ import annotations

import click

from service.fhir.files import FileSource
from service.fhir.source import Source


def name_unread(source: Source) -> bool:
    """Name on the error stream what a source of files could not read; tell whether any was."""
    unread = source.unread() if isinstance(source, FileSource) else ()
    for message in unread:
        named = " ".join(part for part in (message.place, message.type) if part)
        click.echo(f"{named}: {message.text}" if named else message.text, err=True)
    return bool(unread)
