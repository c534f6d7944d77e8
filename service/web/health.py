"""Whether the service is up and ready, its metrics, and its OpenAPI document."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint, Response

from service import __version__
from service.errors import EligibilityError
from service.web.jobmetrics import jobs_page
from service.web.openapi import openapi
from service.web.screen import board
from service.web.state import offers_searches, state

blueprint = Blueprint("health", __name__)

# Open to everyone: they tell nothing of patients or of who asks.
OPEN = frozenset((
    "health.healthz", "health.readyz", "health.metrics", "health.document", "definitions.metadata",
))  # fmt: skip
# Asked every few seconds by machines; not worth a line of log each.
QUIET = frozenset(("health.healthz", "health.readyz", "health.metrics"))


@blueprint.get("/healthz")
def healthz() -> Response:
    """Tell that the process answers."""
    return _json({"status": "up", "version": __version__})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Tell whether the mappings are loaded and the source can be reached."""
    current = state()
    trials = sorted(current.screening.trials)
    try:
        current.readiness.check()
    except EligibilityError as error:
        return _json({"status": "not ready", "trials": trials, "source": error.message}, 503)
    return _json({"status": "ready", "trials": trials, "source": current.source.describe()})


@blueprint.get("/metrics")
def metrics() -> Response:
    """Give the metrics to Prometheus."""
    current = state()
    page, media_type = current.metrics.page()
    if offers_searches(current.settings):
        page += jobs_page(board)
    return Response(page, content_type=media_type)


@blueprint.get("/openapi.json")
def document() -> Response:
    """Give the OpenAPI document."""
    current = state()
    return _json(openapi(sorted(current.screening.trials), current.settings))


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, content_type="application/json")
