"""A FHIR server nobody here wrote (sekmet-fhir), started on a free loopback port."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.fhir.record import Item
from service.fhir.transactions import transaction
from tests.benchmarks.ports import free_port

FIXTURES = Path(__file__).parents[2] / "fixtures" / "patients"
_START_SECONDS = 30.0
LOADER = "loader"  # the static token of whoever loads a guarded server


class Sekmet:
    """A running server: its base address, and keys of clients it knows."""

    def __init__(self, base: str, keys: dict[str, str]) -> None:
        self.base = base
        self.keys = keys

    def put(self, *resources: dict[str, Any]) -> None:
        """Store resources under their own ids, in one transaction."""
        self.send(transaction(Item(json.dumps(resource).encode()) for resource in resources).body)

    def send(self, body: bytes) -> None:
        """Send a transaction."""
        headers = {"Content-Type": "application/fhir+json", "Authorization": f"Bearer {LOADER}"}
        reply = requests.post(self.base, data=body, headers=headers, timeout=30)
        assert reply.status_code == 200, reply.text[:500]


def _keys() -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Make a key per algorithm: as PEM for the client, as public JWK for the server."""
    pems: dict[str, str] = {}
    clients: list[dict[str, Any]] = []
    for algorithm, key, kind in (
        ("RS384", rsa.generate_private_key(public_exponent=65537, key_size=2048), RSAAlgorithm),
        ("ES384", ec.generate_private_key(ec.SECP384R1()), ECAlgorithm),
    ):
        pems[algorithm] = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
        public = {**json.loads(kind.to_jwk(key.public_key())), "kid": "k1", "alg": algorithm}
        clients.append(
            {"client_id": algorithm, "jwks": {"keys": [public]}, "scopes": "system/*.cruds"}
        )
    return pems, clients


@contextmanager
def _running(folder: Path, **settings: object) -> Iterator[Sekmet]:
    port = free_port()
    pems, clients = _keys()
    base = f"http://127.0.0.1:{port}/fhir"
    auth = {"types": ["none"], "smart_clients": clients, "token_lifetime": 300}
    configured = {
        "base_url": base,
        "host": "127.0.0.1",
        "port": port,
        "data_dir": str(folder),
        "log_inbound": False,
        "validation": {"inbound": "off"},
        "simulator": {"enabled": False},
        **settings,
        "server_auth": {**auth, **settings.get("server_auth", {})},  # type: ignore[dict-item]
    }
    file = folder / "settings.yaml"
    file.write_text(json.dumps(configured), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-c", "from sekmet.cli import app; app()", "serve", "--config"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, str(file)], cwd=folder, stdout=log, stderr=log)
        try:
            _wait(base, process)
            yield Sekmet(base, pems)
        finally:
            process.terminate()
            process.wait(timeout=10)


def _wait(base: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, "the FHIR server ended at once"
        try:
            if requests.get(f"{base}/metadata", timeout=2).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    pytest.fail("the FHIR server did not start")


@pytest.fixture(scope="session")
def sekmet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sekmet]:
    """Run an open server that holds the shipped patients."""
    with _running(tmp_path_factory.mktemp("sekmet")) as server:
        for file in sorted(FIXTURES.glob("*.json")):
            server.send(transaction_of(file))
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sekmet]:
    """Run a server that wants SMART Backend Services, with a static token for loading."""
    auth = {"types": ["smart", "bearer"], "tokens": [LOADER], "token_lifetime": 300}
    with _running(tmp_path_factory.mktemp("guarded"), server_auth=auth) as server:
        yield server


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sekmet]:
    """Run a server whose tokens live for a second, whatever it says of them."""
    auth = {"types": ["smart", "bearer"], "tokens": [LOADER], "token_lifetime": 1}
    with _running(tmp_path_factory.mktemp("forgetful"), server_auth=auth) as server:
        yield server


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Close what a test opened."""
    opened: list[Any] = []

    def keep(found: Any) -> Any:
        opened.append(found)
        return found

    yield keep
    for found in opened:
        found.close()


def transaction_of(file: Path) -> bytes:
    """Make the transaction that puts a shipped patient on a server."""
    entries = json.loads(file.read_text(encoding="utf-8"))["entry"]
    items = [Item(json.dumps(one["resource"]).encode(), one.get("fullUrl")) for one in entries]
    return transaction(items).body
