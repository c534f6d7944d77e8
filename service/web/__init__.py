"""The web service: a FHIR operation over HTTP, and the definitions it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from service.config import Settings
    from service.fhir.source import Source
    from service.screening import Screening

__all__ = ["create_app"]


def create_app(
    settings: Settings, screening: Screening | None = None, source: Source | None = None
) -> Flask:
    """Make the WSGI application; what isn't given is built from the settings.

    Raises ConfigurationError or MappingError when it must not start.
    """
    # Imported only now: the metrics' library decides when it is imported whether counts of
    # several processes are added up, and the server must tell it before.
    from service.web.app import build_app  # noqa: PLC0415

    return build_app(settings, screening, source)
