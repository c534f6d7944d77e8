"""The containers' files, as far as they can be checked without a container engine."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "service" / "Dockerfile"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Read the compose file's services."""
    content = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    found: dict[str, Any] = content["services"]
    return found


@pytest.mark.integration
def test_the_compose_file_follows_the_compose_specification() -> None:
    from compose_spec import PyOptions  # noqa: PLC0415 - of the dev extra

    reader = PyOptions(apply_merge=True)
    compose = reader.from_yaml(COMPOSE.read_text(encoding="utf-8"))
    compose.validate()
    assert set(compose.service_names()) == {
        "secrets", "db", "fhir", "loader", "eligibility", "worker",
    }  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("service_healthy", "service_healhty"),
        ("read_only: true", "read_olny: true"),
        ("networks: [storage]", "networks: [strage]"),
    ],
)
def test_the_check_of_the_compose_file_finds_mistakes(right: str, wrong: str) -> None:
    from compose_spec import PyOptions  # noqa: PLC0415 - of the dev extra

    text = COMPOSE.read_text(encoding="utf-8")
    assert right in text
    reader = PyOptions(apply_merge=True)
    with pytest.raises(ValueError, match=r"."):
        reader.from_yaml(text.replace(right, wrong, 1)).validate()


@pytest.mark.integration
def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    # DL3059 wants the two RUN lines merged, which would make the steps harder to follow.
    done = subprocess.run(
        [linter, "--ignore", "DL3059", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_images_have_exact_versions(services: dict[str, Any]) -> None:
    images = {service["image"] for service in services.values()}
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    for image in (*images, *bases):
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z0-9-]+)?$", image), image


def test_volumes_are_declared(services: dict[str, Any]) -> None:
    declared = set(yaml.safe_load(COMPOSE.read_text("utf-8"))["volumes"])
    used = {volume.split(":")[0] for one in services.values() for volume in one.get("volumes", [])}
    assert used == declared


def test_ports_are_published_on_the_loopback_address_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", ["loader", "eligibility", "worker"])
def test_our_containers_are_read_only_and_without_privileges(
    services: dict[str, Any], name: str
) -> None:
    assert services[name]["read_only"] is True
    assert services[name]["cap_drop"] == ["ALL"]
    assert services[name]["security_opt"] == ["no-new-privileges:true"]


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert user
    assert all(int(number) > 0 for number in user[-1])


def test_the_script_of_the_secrets_makes_each_once(
    services: dict[str, Any], tmp_path: Path
) -> None:
    (script,) = services["secrets"]["command"]
    folders = [volume.split(":")[1] for volume in services["secrets"]["volumes"]]
    script = script.replace("$$", "$")
    for folder in folders:
        (tmp_path / folder.lstrip("/")).mkdir()
        script = script.replace(f" {folder}/", f" {tmp_path}{folder}/")
    environment = {"PATH": os.environ["PATH"]}

    def run() -> dict[str, str]:
        done = subprocess.run(
            [*services["secrets"]["entrypoint"], script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert not done.stdout
        files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
        return {str(path.relative_to(tmp_path)): path.read_text("utf-8") for path in files}

    first = run()
    assert set(first) == {"db/password", "fhir/application.yaml", "callers/keys", "demo/key"}
    assert re.fullmatch(r"[0-9a-f]{48}", first["db/password"])
    settings = yaml.safe_load(first["fhir/application.yaml"])
    assert settings["spring"]["datasource"]["password"] == first["db/password"]
    digest = hashlib.sha256(first["demo/key"].encode()).hexdigest()
    assert first["callers/keys"] == f"demo sha256:{digest} eligibility.screen\n"
    assert first["demo/key"] != first["db/password"]
    assert run() == first
