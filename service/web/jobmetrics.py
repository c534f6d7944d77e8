"""Metrics of searches, read from the store: how many, how the last ended, whether any waits.

They are the same whichever process of the service is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.errors import StoreError
from service.jobs.board import Board
from service.jobs.model import State


def jobs_page(board: Callable[[], Board]) -> bytes:
    """Write the metrics of a store's jobs; of one that can't be read, only that.

    ``board`` opens the store, if it isn't open.
    """
    registry = CollectorRegistry()
    registry.register(_Jobs(board))
    return generate_latest(registry)


class _Jobs(Collector):
    def __init__(self, board: Callable[[], Board]) -> None:
        self._opened = board

    def describe(self) -> list[Metric]:
        """Name nothing before it is read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the record of jobs."""
        readable = GaugeMetricFamily(
            "eligibility_store_readable", "Whether the store of searches can be read"
        )
        try:
            found = list(_read(self._opened()))
        except StoreError:
            readable.add_metric((), 0)
            found = []
        else:
            readable.add_metric((), 1)
        yield readable
        yield from found


def _read(board: Board) -> Iterator[Metric]:
    now = datetime.fromisoformat(board.store.now())
    jobs = GaugeMetricFamily("eligibility_jobs", "Searches by state", labels=("state",))
    for state, count in board.counts().items():
        jobs.add_metric((state.value,), count)
    yield jobs
    waiting = board.oldest_waiting()
    waits = GaugeMetricFamily(
        "eligibility_job_waiting_seconds",
        "Seconds for which a search that is due has waited: without a worker it grows",
    )
    waits.add_metric((), _age(waiting, now))
    yield waits
    labels = ("search",)
    age = GaugeMetricFamily(
        "eligibility_last_search_age_seconds",
        "Seconds since the last search of the schedule ended (no name: one of a caller's)",
        labels=labels,
    )
    complete = GaugeMetricFamily(
        "eligibility_last_search_complete",
        "Whether the last search was complete; 0: not complete, or failed",
        labels=labels,
    )
    for name, ended in board.last_ended().items():
        age.add_metric((name,), _age(ended.finished, now))
        complete.add_metric((name,), ended.state is State.DONE and bool(ended.complete))
    yield age
    yield complete


def _age(instant: str | None, now: datetime) -> float:
    if instant is None:
        return 0.0
    return max(0.0, (now - datetime.fromisoformat(instant)).total_seconds())
