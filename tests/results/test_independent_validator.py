"""Every shape is valid for a validator that shares nothing with ours: npm's ``fhir``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.errors import RequestError
from service.results.fhir import guidance_response
from service.results.outcome import of_error
from tests.results.shapes import BASE, VERDICTS, definitions

pytestmark = pytest.mark.integration

PACKAGE = "fhir@4.12.0"
SCRIPT = Path(__file__).with_name("validate.js")


@pytest.fixture(scope="session")
def modules(request: pytest.FixtureRequest) -> Path:
    """Install the validator beside pytest's cache, once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        message = "NODE IS MISSING: the independent FHIR validator did not run"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = request.config.cache.mkdir("fhir-validator")  # type: ignore[union-attr]
    if not (folder / "node_modules" / "fhir").is_dir():
        options = [
            "--no-save",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
            str(folder),
        ]
        subprocess.run(["npm", "install", *options, PACKAGE], check=True, capture_output=True)  # noqa: S607
    return Path(folder) / "node_modules"


def validated(resources: list[dict[str, Any]], modules: Path) -> list[dict[str, Any]]:
    text = "".join(json.dumps(resource) + "\n" for resource in resources)
    done = subprocess.run(
        ["node", str(SCRIPT)],  # noqa: S607
        input=text,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"NODE_PATH": str(modules)},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_validator_finds_mistakes(modules: Path) -> None:
    """Otherwise the test below could not fail."""
    wrong: list[dict[str, Any]] = [
        {"resourceType": "GuidanceResponse", "status": "success"},
        {"resourceType": "GuidanceResponse", "moduleUri": "urn:x", "status": "perhaps"},
        {"resourceType": "OperationOutcome", "issue": [], "extra": 1},
    ]
    assert [found["valid"] for found in validated(wrong, modules)] == [False] * len(wrong)


def test_every_shape_is_valid(modules: Path) -> None:
    shapes = [guidance_response(verdict, canonical_base=BASE) for verdict in VERDICTS.values()]
    shapes += [contained for shape in shapes for contained in shape["contained"]]
    shapes += [of_error(RequestError("x", expression="Parameters")), *definitions()]
    found = validated(shapes, modules)
    assert len(found) == len(shapes)
    assert [one for one in found if not one["valid"]] == []
    # It knows the tag for shortened resources only in its older form.
    wrong = [entry for one in found for entry in one["wrong"]]
    assert [entry for entry in wrong if "SUBSETTED" not in entry["message"]] == []
