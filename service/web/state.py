"""What all requests of an application share."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field

from flask import current_app, request

from service.config import Settings
from service.errors import EligibilityError
from service.fhir.bundles import Limits
from service.fhir.source import Source
from service.screening import Screening
from service.web.callers import Callers
from service.web.limits import Gate, Rate
from service.web.metrics import Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CHECK_SECONDS = 10.0


class Readiness:
    """Whether the source can be reached; asked anew only now and then."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._until = 0.0
        self._error: EligibilityError | None = None

    def check(self) -> None:
        """Raise SourceError (or another of our errors) if the source can't be read."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._error = self._ask()
                self._until = time.monotonic() + _CHECK_SECONDS
            error = self._error
        if error is not None:
            raise error

    def _ask(self) -> EligibilityError | None:
        try:
            self._source.check()
        except EligibilityError as error:
            return error
        return None


@dataclass(frozen=True, slots=True)
class State:
    """Built once per application."""

    settings: Settings
    screening: Screening
    source: Source
    callers: Callers
    rate: Rate
    gate: Gate
    limits: Limits
    readiness: Readiness
    metrics: Metrics = field(default_factory=Metrics)


def build_state(
    settings: Settings, screening: Screening, source: Source, callers: Callers
) -> State:
    """Put together what requests share."""
    return State(
        settings=settings,
        screening=screening,
        source=source,
        callers=callers,
        rate=Rate(settings.rate_per_minute),
        gate=Gate(settings.max_concurrent, settings.time_limit),
        limits=Limits(settings.max_depth, settings.max_entries),
        readiness=Readiness(source),
    )


def state() -> State:
    """Give what the current application's requests share."""
    found = current_app.extensions["eligibility"]
    assert isinstance(found, State)
    return found


def offers_searches(settings: Settings) -> bool:
    """Tell whether callers can ask for searches: these need a source and a store."""
    return settings.store is not None and settings.source is not None


def base_url() -> str:
    """Give the public base URL of the FHIR endpoint."""
    return state().settings.base_url or f"{request.root_url.rstrip('/')}/fhir"
