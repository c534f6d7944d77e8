"""What is installed, from what, and what travels inside the wheel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"[-_.]+")


def normal(name: str) -> str:
    """Bring a package's name to the form in which names are compared."""
    return NAME.sub("-", name).lower()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Read pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    """Read constraints.txt: package, version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pins}


def direct(project: dict[str, Any]) -> list[str]:
    """List all direct requirements, of the extras too."""
    extras = project["project"]["optional-dependencies"].values()
    found = [*project["project"]["dependencies"], *(line for extra in extras for line in extra)]
    return [line for line in found if not line.startswith(project["project"]["name"])]


def test_every_direct_dependency_has_one_exact_version(project: dict[str, Any]) -> None:
    for line in direct(project):
        assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z]+\])?==[0-9][0-9A-Za-z.]*", line), line


def test_the_constraints_hold_the_same_versions(
    project: dict[str, Any], constraints: dict[str, str]
) -> None:
    for line in direct(project):
        name, version = line.split("==")
        assert constraints[normal(name.split("[")[0])] == version


def test_the_constraints_name_versions_and_no_address(constraints: dict[str, str]) -> None:
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version) for version in constraints.values())


def test_every_runtime_dependency_is_used_and_explained(project: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## What it is made of")[1].split("\n## ")[0]
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "service").rglob("*.py"))
    )
    modules = {"pyjwt": "jwt", "prometheus-client": "prometheus_client", "pyyaml": "yaml"}
    for line in project["project"]["dependencies"]:
        name = line.split("==")[0]
        assert name in table, f"{name} is not explained in the README"
        if name == "tzdata":  # data that zoneinfo finds by itself
            continue
        module = modules.get(name, name)
        assert re.search(rf"^\s*(import|from) {module}\b", sources, re.MULTILINE), name


def test_the_wheel_takes_mappings_patients_and_their_cases_along(project: dict[str, Any]) -> None:
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) == {
        "service",
        "mappings",
        "fixtures/patients",
        "fixtures/cases",
    }
    assert wheel["sources"] == {
        "mappings": "service/data/mappings",
        "fixtures": "service/data/fixtures",
    }


def test_no_file_names_the_host_of_a_package_registry_or_a_path_of_one_machine() -> None:
    # Spelt in parts, or this file would name them.
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".", "index" + "-url"]
    paths = ["/" + "work/", "/" + "home/", "/" + "root/"]
    skipped = {"node_modules", "__pycache__", "volume", "patients"}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = parts[0].startswith(".") and parts[0] not in (".ci", ".gitignore")
        if not path.is_file() or hidden or skipped & set(parts) or path.stat().st_size > 2**20:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for word in (*hosts, *paths):
            assert word not in text, f"{path.relative_to(ROOT)} names {word}"
