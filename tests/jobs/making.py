"""Jobs to test with, and workers that don't wait long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from service.config import Settings, load_settings
from service.jobs.model import Asked
from service.jobs.runner import Timing, Worker
from service.storage.store import Store

TRIAL = "NCT06056752"
DAY = "2026-11-01"
ASKED = Asked((TRIAL,), DAY)
QUICK = Timing(beat=0.05, patience=1.0, pause=0.1, busy=2.0, retry=0.0, retries=1, tidy=0.0)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: str = "2026-11-22T12:00:00+00:00") -> None:
        self.now = datetime.fromisoformat(now)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def settings_of(source: Path, store: str, data: Path, **more: Any) -> Settings:
    """Give a worker's settings."""
    flags = {"source": str(source), "store": store, "data": str(data), **more}
    return load_settings({}, flags)


def worker_of(settings: Settings, store: Store, **more: Any) -> Worker:
    """Make a worker that is not patient."""
    return Worker(settings, store, **({"timing": QUICK} | more))


def now() -> datetime:
    """Give the instant."""
    return datetime.now(UTC)
