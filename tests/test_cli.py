"""The command line through its real entry point: output, exit codes, error texts."""

from __future__ import annotations

import http.server
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service import __version__
from service.cli import demo, main

ROOT = Path(__file__).resolve().parent.parent
PATIENTS = ROOT / "fixtures" / "patients"
BASELINE = PATIENTS / "baseline-candidate.json"
TRIAL = "NCT06056752"
DAY = "2026-11-01"
CRITERIA = ["P1", *(f"I{n}" for n in range(1, 13)), *(f"E{n}" for n in range(1, 15))]
COMMANDS = ("evaluate", "serve", "demo", "explain", "check", "coverage", "load")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ELIGIBILITY_"):
            monkeypatch.delenv(name)


def run(*arguments: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def evaluate(*arguments: str | Path, source: Path = BASELINE) -> Result:
    """Run ``evaluate`` for the trial as of the cases' day."""
    return run("evaluate", TRIAL, *arguments, "--source", source, "--as-of", DAY)


def environment() -> dict[str, str]:
    """Give an environment in which the program is this one."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


# --- help, version, completion


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(option: str) -> None:
    done = run(option)
    assert done.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", done.output, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert f"eligibility {name}" in done.output


def test_version_is_that_of_the_package() -> None:
    assert run("--version").output == f"eligibility, version {__version__}\n"


def test_the_package_runs_as_a_module_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--version"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"eligibility, version {__version__}\n"


def test_the_shell_completes_commands_and_trials() -> None:
    def complete(words: str, number: int) -> str:
        more = {"COMP_WORDS": words, "COMP_CWORD": str(number)}
        return subprocess.run(
            [sys.executable, "-m", "service"],
            env={**environment(), "_ELIGIBILITY_COMPLETE": "bash_complete", **more},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "plain,evaluate" in complete("eligibility ev", 1)
    assert f"plain,{TRIAL}" in complete("eligibility evaluate NCT", 2)


def test_an_unknown_command_is_wrong_usage() -> None:
    assert run("evalute").exit_code == 2


# --- evaluate


def test_json_is_one_line_per_patient_with_all_criteria_in_order() -> None:
    done = evaluate("baseline-candidate", "--format", "json")
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    verdict = json.loads(line)
    assert {"trial", "patient", "asOf", "verdict", "validUntil", "criteria"} <= verdict.keys()
    assert verdict["trial"] == TRIAL
    assert verdict["patient"] == "Patient/baseline-candidate"
    assert verdict["asOf"] == DAY
    assert verdict["verdict"] == "potentially-eligible"
    assert [criterion["id"] for criterion in verdict["criteria"]] == CRITERIA


def test_json_of_a_criterion_has_the_keys_of_the_contract_and_so_have_its_parts() -> None:
    keys = {
        "id",
        "kind",
        "outcome",
        "reason",
        "message",
        "evidence",
        "assumptions",
        "settledBy",
        "parts",
    }

    def look(criterion: dict[str, Any]) -> None:
        assert keys <= criterion.keys()
        for evidence in criterion["evidence"]:
            assert {"reference", "date", "recorded", "compared"} <= evidence.keys()
        for part in criterion["parts"]:
            look(part)

    verdict = json.loads(evaluate("baseline-candidate", "--format", "json").stdout)
    for criterion in verdict["criteria"]:
        look(criterion)
    (organs,) = (one for one in verdict["criteria"] if one["id"] == "I7")
    assert [part["id"] for part in organs["parts"]] == [
        "I7.lvef",
        "I7.creatinine",
        "I7.alt",
        "I7.ast",
        "I7.bilirubin",
    ]


def test_fhir_is_one_guidance_response_per_line() -> None:
    done = evaluate("baseline-candidate", "--format", "fhir")
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    response = json.loads(line)
    assert response["resourceType"] == "GuidanceResponse"
    assert response["status"] == "data-required"
    assert response["subject"]["reference"] == "Patient/baseline-candidate"


def test_the_table_names_verdict_and_criteria_and_has_no_colours_when_piped() -> None:
    done = evaluate("baseline-candidate")
    assert done.exit_code == 0
    assert "potentially-eligible" in done.stdout
    for criterion in CRITERIA:
        assert re.search(rf"^ *{criterion} +\w", done.stdout, re.MULTILINE), criterion
    assert "\x1b" not in done.stdout


def test_all_evaluates_every_patient_of_a_folder() -> None:
    done = evaluate("--all", "--format", "json", source=PATIENTS)
    assert done.exit_code == 0, done.stderr
    found = {json.loads(line)["patient"] for line in done.stdout.splitlines()}
    assert found == {f"Patient/{path.stem}" for path in PATIENTS.glob("*.json")}


@pytest.mark.parametrize("command", ["evaluate", "coverage"])
@pytest.mark.parametrize("content", ["{", '{"resourceType": "Bundle", "type": "coll', "nonsense"])
def test_a_file_that_can_not_be_read_is_named_and_fails_the_command(
    command: str, content: str, tmp_path: Path
) -> None:
    shutil.copy(BASELINE, tmp_path)
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    for source in (tmp_path, tmp_path / "bad.json"):
        asked = [TRIAL, "--all", "--as-of", DAY] if command == "evaluate" else ["--trial", TRIAL]
        done = run(command, *asked, "--source", source, "--format", "json")
        assert done.exit_code == 1
        assert "bad.json" in done.stderr
        assert ("baseline-candidate" in done.stdout) == (
            command == "evaluate" and source == tmp_path
        )


def test_a_patient_that_can_not_be_read_in_a_whole_file_fails_all(tmp_path: Path) -> None:
    shutil.copy(BASELINE, tmp_path)
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"resource": {"resourceType": "Patient", "id": 7}}],
    }
    (tmp_path / "half.json").write_text(json.dumps(bundle), encoding="utf-8")
    done = evaluate("--all", "--format", "json", source=tmp_path)
    assert done.exit_code == 1
    assert "half.json" in done.stderr


def test_named_patients_do_not_depend_on_other_files(tmp_path: Path) -> None:
    shutil.copy(BASELINE, tmp_path)
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    assert evaluate("baseline-candidate", source=tmp_path).exit_code == 0


def test_a_result_on_a_terminal_stands_on_a_line_of_its_own() -> None:
    ours, theirs = pty.openpty()
    arguments = ["evaluate", TRIAL, "--all", "--source", str(BASELINE), "--as-of", DAY]
    process = subprocess.Popen(
        [sys.executable, "-m", "service", *arguments, "--format", "json"],
        env=environment(),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while more := os.read(ours, 65_536):
            said += more
    except OSError:
        pass  # the other end is closed
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert b"evaluating 1 of 1\r\x1b[K{" in said


def test_a_patient_may_be_named_as_reference() -> None:
    done = evaluate("Patient/baseline-candidate", "--format", "json")
    assert json.loads(done.stdout)["patient"] == "Patient/baseline-candidate"


def test_a_patient_that_is_not_there_is_named_and_the_others_are_evaluated() -> None:
    done = evaluate("nobody", "baseline-candidate", "--format", "json")
    assert done.exit_code == 1
    assert done.stderr.startswith("Patient/nobody: ")
    assert json.loads(done.stdout)["patient"] == "Patient/baseline-candidate"


def test_a_server_that_does_not_answer_fails_each_patient_by_name() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/fhir"
        done = run(
            "evaluate", TRIAL, "a", "b", "--source", url, "--as-of", DAY, "--source-budget", "1"
        )
    assert done.exit_code == 1
    assert "Patient/a: " in done.stderr
    assert "Patient/b: " in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", TRIAL, "--source", str(BASELINE)], "name patients' ids, or give --all"),
        (["evaluate", TRIAL, "x", "--all", "--source", str(BASELINE)], "either ids or --all"),
        (["evaluate", TRIAL, "x"], "--source"),
        (["evaluate", TRIAL, "x", "--source", "no/such/folder"], "no/such/folder"),
        (["evaluate", "NCT00000000", "x", "--source", str(BASELINE)], "NCT00000000"),
        (["evaluate", TRIAL, "x", "--source", str(BASELINE), "--as-of", "2026-13-01"], "2026-13"),
        (["evaluate", TRIAL, "x", "--source", str(BASELINE), "--as-of", "20261101"], "YYYY-MM-DD"),
        (["evaluate", TRIAL, "x", "--source", str(BASELINE), "--format", "xml"], "xml"),
        (["evaluate", TRIAL, "x", "--source", "ftp://host/"], "only screen --engine spark reads"),
        (["evaluate"], "TRIAL"),
        (["explain", "NCT00000000"], "NCT00000000"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--site", "no-such.yaml"], "no-such.yaml"),
        (["load"], "--to"),
        (["load", "--to", "ftp://host/"], "http"),
        (["check", "no-such.yaml"], "no-such.yaml"),
        (["demo", "--port", "x"], "--port"),
    ],
)
def test_wrong_usage_is_explained_and_exits_with_2(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_serving_others_without_a_key_is_refused() -> None:
    # A process of its own: the library of the metrics keeps what it saw when it was imported.
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--host", "0.0.0.0"],  # noqa: S104 - refused
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "loopback" in done.stderr


def test_a_wrong_setting_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELIGIBILITY_SOURCE_BUDGET", "soon")
    done = evaluate("baseline-candidate")
    assert done.exit_code == 2
    assert "ELIGIBILITY_SOURCE_BUDGET" in done.stderr


def test_the_source_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELIGIBILITY_SOURCE", str(BASELINE))
    done = run("evaluate", TRIAL, "baseline-candidate", "--as-of", DAY, "--format", "json")
    assert done.exit_code == 0, done.output


# --- check, explain, coverage


def test_check_finds_nothing_in_the_shipped_mappings() -> None:
    done = run("check")
    assert done.exit_code == 0, done.output


def test_check_names_file_and_line_and_exits_with_1(tmp_path: Path) -> None:
    text = (ROOT / "mappings" / "trials" / f"{TRIAL}.yaml").read_text(encoding="utf-8")
    number = next(n for n, line in enumerate(text.splitlines(), 1) if "marrow-blasts" in line)
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace("marrow-blasts", "marow-blasts"), encoding="utf-8")
    done = run("check", broken)
    assert done.exit_code == 1
    assert f"broken.yaml:{number}: " in done.stdout
    assert "marow-blasts" in done.stdout


def test_explain_prints_every_criterion() -> None:
    done = run("explain", TRIAL)
    assert done.exit_code == 0
    for criterion in CRITERIA:
        assert re.search(rf"\b{criterion}\b", done.stdout), criterion


def test_coverage_tells_what_a_source_has_and_lacks() -> None:
    done = run("coverage", "--source", PATIENTS)
    assert done.exit_code == 0, done.output
    assert "marrow-blasts" in done.stdout


# --- load


class _Recorder(http.server.BaseHTTPRequestHandler):
    """Answers as a FHIR server that takes every transaction but one patient's."""

    taken: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._answer(200, {"resourceType": "CapabilityStatement"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        bundle = json.loads(body)
        if any(entry["request"]["url"] == "Patient/aml" for entry in bundle["entry"]):
            issue = {"severity": "error", "code": "invalid", "diagnostics": "secret text"}
            self._answer(422, {"resourceType": "OperationOutcome", "issue": [issue]})
            return
        self.taken.append({"bundle": bundle, "type": self.headers["Content-Type"]})
        self._answer(200, {"resourceType": "Bundle", "type": "transaction-response"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run the recording server; give its base URL and what it took."""
    taken: list[dict[str, Any]] = []
    handler = type("Handler", (_Recorder,), {"taken": taken})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/fhir", taken
        server.shutdown()
        thread.join()


def test_load_puts_each_patient_in_a_transaction_and_names_those_refused(
    recorder: tuple[str, list[dict[str, Any]]],
) -> None:
    url, taken = recorder
    done = run("load", "--to", url)
    assert done.exit_code == 1
    assert done.stderr.startswith("Patient/aml: refused with 422")
    assert "secret text" not in done.output
    assert len(taken) == len(list(PATIENTS.glob("*.json"))) - 1
    for one in taken:
        bundle = one["bundle"]
        assert one["type"] == "application/fhir+json"
        assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "transaction")
        urls = [entry["request"]["url"] for entry in bundle["entry"]]
        assert len(urls) == len(set(urls))
        for entry in bundle["entry"]:
            resource = entry["resource"]
            place = f"{resource['resourceType']}/{resource['id']}"
            assert entry["request"] == {"method": "PUT", "url": place}


def test_load_again_sends_the_same(recorder: tuple[str, list[dict[str, Any]]]) -> None:
    url, taken = recorder
    run("load", "--to", url, "--from", BASELINE)
    run("load", "--to", url, "--from", BASELINE)
    assert len(taken) == 2
    assert taken[0] == taken[1]


def test_load_names_what_is_left_out_and_files_that_can_not_be_read(
    recorder: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    url, taken = recorder
    resources: list[dict[str, Any]] = [
        {"resourceType": "Patient", "id": "p"},
        {"resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/p"}},
        {"resourceType": "Condition", "id": "d", "subject": {"reference": "Patient/p"}},
    ]
    resources[2]["code"] = "not a CodeableConcept"
    entries = [{"resource": resource} for resource in resources]
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": entries}
    (tmp_path / "good.json").write_text(json.dumps(bundle), encoding="utf-8")
    assert (done := run("load", "--to", url, "--from", tmp_path)).exit_code == 0, done.output
    assert done.stderr == "left out: Condition/d: not readable as FHIR R4\n"
    assert "1 patients, 2 resources; 1 left out" in done.stdout
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    done = run("load", "--to", url, "--from", tmp_path)
    assert done.exit_code == 1
    assert "bad.json" in done.stderr
    assert len(taken) == 2


def test_load_waits_for_a_server_only_as_long_as_told() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        started = time.monotonic()
        done = run("load", "--to", f"http://127.0.0.1:{closed.getsockname()[1]}/fhir")
    assert done.exit_code == 1
    assert time.monotonic() - started < 30


# --- demo and serve, as processes


def test_demo_once_asks_for_every_shipped_patient_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "demo", "--once"],
        cwd=tmp_path,
        env={**environment(), "ELIGIBILITY_SOURCE": "http://nowhere.invalid/fhir"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for path in PATIENTS.glob("*.json"):
        assert path.stem in done.stdout
    for verdict in ("potentially-eligible", "ineligible"):
        assert verdict in done.stdout
    # The service is gone by now: a request to it would lead nowhere.
    assert "curl" not in done.stdout
    assert "eligibility demo" in done.stdout


def test_demo_on_a_port_in_use_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("demo", "--once", "--port", port)
    assert done.exit_code == 1
    assert f"port in use: {port}" in done.stderr


def test_demo_fails_when_a_shipped_patient_can_not_be_evaluated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def service(port: int) -> Iterator[str]:
        yield "http://127.0.0.1:1"

    def ask(base: str, case: demo._Case) -> demo._Row:
        return demo._Row(case, "no such patient", (), (), (), evaluated=case.patient != "aml")

    monkeypatch.setattr(demo, "_service", service)
    monkeypatch.setattr(demo, "_ask", ask)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run("demo", "--once").exit_code == 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_demo_serves_until_it_is_interrupted_and_ends_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "demo"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = ""
    for line in process.stdout:
        if found := line.startswith("curl ") and re.search(r"http://127\.0\.0\.1:\d+", line):
            address = found[0]
        if line.startswith("Serving until Ctrl-C"):
            break
    port = int(address.rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    with pytest.raises(OSError, match=r"."):
        socket.create_connection(("127.0.0.1", port), timeout=5)
