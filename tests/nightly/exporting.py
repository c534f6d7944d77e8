"""Nights over an export: a search by Bulk Data of a server that can misbehave anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from service.config import Settings, load_settings
from service.fhir.bulk import BulkLimits
from service.nightly.model import Statement
from service.nightly.screen import Request, screen
from tests.faults import QUICK
from tests.fhir.bulkserver import BulkServer
from tests.nightly.making import DAY, TRIAL, screening

TOKEN = "-".join(("a", "token", "of", "the", "hospital"))
# Waits short enough for tests, in the proportions of real ones.
BULK = BulkLimits(
    job=5.0, poll_least=0.001, poll_first=0.001, poll_most=0.05, failures=4, busy=2.0, parallel=2
)


def settings_of(base: str, **more: object) -> Settings:
    """Give the settings to search a server."""
    flags = {"source": base, "source_auth": "bearer", "source_token": TOKEN, **more}
    return load_settings({}, flags=flags)


def night(
    server: BulkServer,
    output: Path,
    *,
    limits: BulkLimits = BULK,
    settings: dict[str, object] | None = None,
    **more: Any,
) -> Statement:
    """Search a server by an export; raises what the search raises."""
    request = Request((TRIAL,), DAY, output, **{"bulk": "system", **more})
    with (
        patch("service.nightly.screen.build_screening", lambda _: screening()),
        patch("service.wiring.bulk_limits_of", lambda _: limits),
        patch("service.wiring.limits_of", lambda _: QUICK),
        patch("service.nightly.bulk.limits_of", lambda _: QUICK),
    ):
        return screen(settings_of(server.base, **(settings or {})), request)


def counted(resources: Sequence[dict[str, Any]], kind: str) -> int:
    """Count the resources of a type."""
    return sum(each["resourceType"] == kind for each in resources)
