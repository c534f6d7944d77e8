"""The operation with a record of 500 Observations handed in, in process and over HTTP."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.util import setup_testing_defaults

import requests

from service.config import load_settings
from service.web import create_app
from service.web.server import settle_memory
from tests.benchmarks.baseline import parse_bundle
from tests.benchmarks.measuring import milliseconds, show, timed
from tests.benchmarks.ports import free_port
from tests.benchmarks.records import request_body, with_observations

PATH = "/fhir/ResearchStudy/NCT06056752/$evaluate-eligibility"
HEADERS = {"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"}
_TARGET_SECONDS = 0.010
_OBSERVATIONS = 500
_START_SECONDS = 30.0

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Any]


def call(app: Wsgi, body: bytes) -> bytes:
    """Call the application as its server would, without any client's work beside it."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update(
        REQUEST_METHOD="POST",
        PATH_INFO=PATH,
        REMOTE_ADDR="127.0.0.1",
        CONTENT_TYPE=HEADERS["Content-Type"],
        HTTP_ACCEPT=HEADERS["Accept"],
        CONTENT_LENGTH=str(len(body)),
    )
    environ["wsgi.input"] = io.BytesIO(body)
    said: list[str] = []
    answer = app(environ, lambda status, headers, _=None: said.append(status))
    try:
        text = b"".join(answer)
    finally:
        if hasattr(answer, "close"):
            answer.close()
    assert said[0].startswith("200"), (said, text[:300])
    return text


@contextmanager
def running_service() -> Iterator[str]:
    """Run ``eligibility serve`` with one worker; give its base URL."""
    port = free_port()
    arguments = ["serve", "--port", str(port), "--workers", "1", "--rate-per-minute", "0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ELIGIBILITY_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", *arguments, "--log-level", "error"],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                if requests.get(f"{base}/healthz", timeout=1).ok:
                    break
            except requests.RequestException:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield base
    finally:
        process.terminate()
        process.wait(timeout=20)


def run(*, brief: bool) -> list[str]:
    """Measure both ways and the baseline."""
    record = with_observations(_OBSERVATIONS)
    body = request_body(record)
    app = create_app(load_settings({}, {"rate_per_minute": 0, "log_level": "error"}))
    call(app, body)
    settle_memory()
    count = 40 if brief else 300
    own = timed(lambda: call(app, body), count)
    with running_service() as base, requests.Session() as session:
        session.trust_env = False

        def ask() -> None:
            reply = session.post(base + PATH, data=body, headers=HEADERS, timeout=30)
            assert reply.status_code == 200, reply.text[:300]

        whole = timed(ask, count)
    text = json.dumps(record)
    baseline = timed(lambda: parse_bundle(text), 3 if brief else 10, warm_up=1)
    show("request", f"{len(body) / 1000:.0f} kB", f"{_OBSERVATIONS} Observations")
    show("the service's own share, median", milliseconds(own.median), "target: under 10 ms")
    show("the service's own share, 95th percentile", milliseconds(own.p95))
    show("over HTTP by gunicorn, median", milliseconds(whole.median), "client included")
    show("over HTTP by gunicorn, 95th percentile", milliseconds(whole.p95))
    show("baseline: parsing the Bundle with fhir.resources", milliseconds(baseline.median))
    show("ratio to the service's own share", f"{baseline.median / own.median:.0f}x")
    if own.median > _TARGET_SECONDS:
        return [f"an inline request takes {milliseconds(own.median)}, not under 10 ms"]
    return []
