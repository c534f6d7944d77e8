"""Metrics for Prometheus: counts and times of requests, by route; no patients' data.

With several processes (PROMETHEUS_MULTIPROC_DIR is set) the counts of all are added up.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What is counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "eligibility_requests",
            "Requests by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "eligibility_request_seconds",
            "Seconds to answer a request, by route",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.source_seconds = Histogram(
            "eligibility_source_seconds",
            "Seconds to read a patient's record from the source",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.evaluation_seconds = Histogram(
            "eligibility_evaluation_seconds",
            "Seconds from the record read to the verdict",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.verdicts = Counter(
            "eligibility_verdicts",
            "Verdicts by trial",
            ("trial", "verdict"),
            registry=self.registry,
        )
        self.running = Gauge(
            "eligibility_evaluations_running",
            "Evaluations that run now",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def page(self) -> tuple[bytes, str]:
        """Write all metrics, and give their media type."""
        registry = self.registry
        if MULTIPROC in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
