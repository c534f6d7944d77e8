"""The service as it is really served: several processes behind one port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from service.config import Settings
from service.web.server import options
from tests.web.asking import FHIR, OPERATION, PATIENT, data, parameters

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def served(folder: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith("ELIGIBILITY")
    }
    environ = plain | {
        "ELIGIBILITY_PORT": str(port),
        "ELIGIBILITY_SOURCE": str(folder),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder.parent),
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve"],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                requests.get(f"{base}/healthz", timeout=2)
                break
            except requests.ConnectionError:
                if process.poll() is not None:
                    break
                time.sleep(0.1)
        yield base, process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "records"
    found.mkdir()
    (found / "p1.json").write_text('{"resourceType":"Patient","id":"p1"}', encoding="utf-8")
    return found


def test_several_processes_answer_and_their_counts_are_added_up(folder: Path) -> None:
    with served(folder, ELIGIBILITY_WORKERS="2") as (base, process):
        answer = requests.post(
            f"{base}{OPERATION}",
            json=parameters(data(PATIENT)),
            headers={"Content-Type": FHIR},
            timeout=20,
        )
        assert answer.status_code == 200
        for _ in range(19):
            assert requests.get(f"{base}/fhir/ResearchStudy/NCT06056752", timeout=10).ok
        lines = requests.get(f"{base}/metrics", timeout=10).text.splitlines()
        counted = [line for line in lines if line.startswith("eligibility_request_seconds_count")]
        assert sum(float(line.rpartition(" ")[2]) for line in counted if "/fhir/" in line) == 20
        chunked = requests.post(
            f"{base}{OPERATION}",
            data=(b" " * 1_000_000 for _ in range(20)),
            headers={"Content-Type": FHIR},
            timeout=20,
        )
        assert chunked.status_code == 413
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert all(line.startswith("{") for line in log.splitlines()), log
    assert list(folder.parent.glob("eligibility-metrics-*")) == []


@pytest.mark.parametrize("level", ["info", "debug"])
def test_each_request_is_logged_once_by_its_route_and_names_no_patient(
    folder: Path, level: str
) -> None:
    with served(folder, ELIGIBILITY_LOG_LEVEL=level) as (base, process):
        for path in ("/fhir/Patient/secret-7", "/fhir/ResearchStudy/NCT06056752?subject=secret-7"):
            requests.get(base + path, timeout=20, headers={"Referer": f"{base}/secret-7"})
        named = {"name": "subject", "valueReference": {"reference": "Patient/secret-7"}}
        headers = {"Content-Type": FHIR, "User-Agent": "secret-7"}
        url = f"{base}{OPERATION}?subject=secret-7"
        unknown = requests.post(url, json=parameters(named), headers=headers, timeout=20)
        assert unknown.status_code == 404
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    lines = [json.loads(line) for line in log.splitlines()]
    assert "secret-7" not in log
    assert [line["logger"] for line in lines if "GET" in str(line) or "POST" in str(line)] == [
        "eligibility"
    ] * 3
    routes = {line["route"]: line["status"] for line in lines if "route" in line}
    assert list(routes.values()) == [404, 200, 404]
    assert routes["(none)"] == 404
    assert all("<" in route for route in routes if route != "(none)")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ELIGIBILITY_HOST": "0.0.0.0"}, "ELIGIBILITY_CALLER_AUTH"),  # noqa: S104
        ({"ELIGIBILITY_PORT": "http"}, "ELIGIBILITY_PORT"),
        ({"ELIGIBILITY_SOURCE": "/no/such/place"}, "ELIGIBILITY_SOURCE"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_a_clear_message(
    folder: Path, settings: dict[str, str], said: str
) -> None:
    with served(folder, **settings) as (_, process):
        _, log = process.communicate(timeout=20)
    assert process.returncode == 2
    assert said in log
    assert "Traceback" not in log


def test_gunicorn_gets_the_settings() -> None:
    found = options(Settings(host="::1", port=9000, workers=3, threads=5, time_limit=40))
    assert found["bind"] == "[::1]:9000"
    assert (found["workers"], found["threads"], found["timeout"]) == (3, 5, 70)
