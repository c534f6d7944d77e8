"""Tokens: where they come from, how long they are used, and that none is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import jwt
import pytest
import requests
import responses
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.errors import ConfigurationError, SourceError
from service.fhir.auth import BearerToken, NoAuth, SigningKey, SmartBackend, signing_key
from tests.faults import QUICK

BASE = "https://fhir.example.org/r4"
TOKEN_URL = "https://login.example.org/token"  # noqa: S105 - an address
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP384R1())


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def soon() -> float:
    return time.monotonic() + 5


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def web() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        yield mocked


@pytest.fixture
def backend() -> Iterator[Callable[..., SmartBackend]]:
    made: list[SmartBackend] = []

    def make(key: SigningKey | None = None, **more: object) -> SmartBackend:
        settings: dict[str, object] = {"token_url": TOKEN_URL, **more}
        found = SmartBackend(
            BASE,
            client_id="trial-service",
            key=key or SigningKey(RSA, "RS384", "k1"),
            limits=QUICK,
            **settings,  # type: ignore[arg-type]
        )
        made.append(found)
        return found

    yield make
    for found in made:
        found.close()


def grant(web: responses.RequestsMock, *tokens: str, expires_in: object = 300) -> None:
    for token in tokens:
        answer = {"access_token": token, "token_type": "bearer", "expires_in": expires_in}
        web.post(TOKEN_URL, json={k: v for k, v in answer.items() if v is not None})


def test_no_authorisation_gives_no_token() -> None:
    assert NoAuth().token(soon()) is None
    assert NoAuth().renew("x", soon()) is None


def test_a_bearer_token_is_trimmed_and_not_renewed() -> None:
    auth = BearerToken(" secret\n")
    assert auth.token(soon()) == "secret"
    assert auth.renew("secret", soon()) is None


def test_a_bearer_token_in_a_file_is_read_again_after_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    auth = BearerToken(file=file)
    assert auth.renew("old", soon()) is None
    file.write_text("new\n")
    assert auth.renew("old", soon()) == "new"
    file.unlink()
    assert auth.renew("new", soon()) is None


@pytest.mark.parametrize("text", ["", "two words", "line\nbreak", "ümlaut"])
def test_a_token_that_could_split_a_header_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        BearerToken(text)
    assert not text or text not in str(error.value)


def test_a_bearer_token_comes_from_exactly_one_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        BearerToken()
    with pytest.raises(ConfigurationError):
        BearerToken("x", file=tmp_path)
    with pytest.raises(ConfigurationError):
        BearerToken(file=tmp_path / "none")


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS384"), (EC, "ES384")], ids=["rsa", "ec"])
def test_keys_are_read_from_pem_and_jwk(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, algorithm: str
) -> None:
    assert signing_key(pem(key)).algorithm == algorithm
    kind = RSAAlgorithm if algorithm == "RS384" else ECAlgorithm
    jwk = json.loads(kind.to_jwk(key))  # type: ignore[attr-defined]
    public = json.loads(kind.to_jwk(key.public_key()))  # type: ignore[attr-defined]
    found = signing_key(json.dumps({**jwk, "kid": "k7"}))
    assert (found.algorithm, found.kid) == (algorithm, "k7")
    keys = {"keys": [{**public, "kid": "a"}, {**jwk, "kid": "b"}]}
    assert signing_key(json.dumps(keys)).kid == "b"
    assert signing_key(json.dumps(jwk), kid="c").kid == "c"


def other_keys() -> list[str]:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - too small
    p256 = ec.generate_private_key(ec.SECP256R1())
    return [pem(small), pem(p256), "", "-----BEGIN", "{", "{}", '{"keys":[{}]}', '{"d":1}']


@pytest.mark.parametrize("text", other_keys())
def test_other_keys_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        signing_key(text)
    assert len(text) < 3 or text not in str(error.value)


def test_a_signing_key_does_not_show_itself() -> None:
    assert repr(SigningKey(RSA, "RS384", None)) == "SigningKey(RS384)"


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS384"), (EC, "ES384")], ids=["rsa", "ec"])
def test_the_assertion_is_as_the_specification_wants_it(
    web: responses.RequestsMock,
    backend: Callable[..., SmartBackend],
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    algorithm: str,
) -> None:
    grant(web, "t1")
    auth = backend(SigningKey(key, algorithm, "k1"), scope="system/Observation.rs")
    assert auth.token(soon()) == "t1"
    body = web.calls[0].request.body
    assert isinstance(body, str)
    form = {name: values[0] for name, values in parse_qs(body).items()}
    assert form["grant_type"] == "client_credentials"
    assert form["scope"] == "system/Observation.rs"
    assert form["client_assertion_type"].endswith(":jwt-bearer")
    assertion = form["client_assertion"]
    assert jwt.get_unverified_header(assertion) == {"typ": "JWT", "kid": "k1", "alg": algorithm}
    claims = jwt.decode(
        assertion,
        key.public_key(),
        algorithms=[algorithm],
        audience=TOKEN_URL,
        issuer="trial-service",
        options={"require": ["iss", "sub", "aud", "exp", "jti"]},
    )
    assert claims["sub"] == "trial-service"
    assert 0 < claims["exp"] - time.time() <= 300


def test_a_token_is_used_until_shortly_before_it_expires(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend]
) -> None:
    grant(web, "t1", "t2")
    clock = Clock()
    auth = backend(clock=clock)
    assert auth.token(soon()) == "t1"
    clock.now = 269
    assert auth.token(soon()) == "t1"
    clock.now = 271
    assert auth.token(soon()) == "t2"


def test_a_token_without_a_stated_life_is_used_for_five_minutes_at_most(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend]
) -> None:
    grant(web, "t1", "t2", expires_in=None)
    clock = Clock()
    auth = backend(clock=clock)
    assert auth.token(soon()) == "t1"
    clock.now = 301
    assert auth.token(soon()) == "t2"


def test_each_assertion_has_its_own_jti_even_when_an_exchange_is_repeated(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend]
) -> None:
    web.post(TOKEN_URL, status=503)
    grant(web, "t1")
    assert backend().token(soon()) == "t1"
    sent = [parse_qs(str(call.request.body))["client_assertion"][0] for call in web.calls]
    jtis = {jwt.decode(found, options={"verify_signature": False})["jti"] for found in sent}
    assert len(jtis) == 2


def test_threads_refused_together_renew_once(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend]
) -> None:
    grant(web, "t1", "t2")
    auth = backend()
    assert auth.token(soon()) == "t1"
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(auth.renew("t1", soon()))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["t2"] * 5
    assert len(web.calls) == 2


def test_the_token_endpoint_is_discovered_once(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend]
) -> None:
    web.get(f"{BASE}/.well-known/smart-configuration", json={"token_endpoint": TOKEN_URL})
    grant(web, "t1", "t2")
    auth = backend(token_url=None)
    assert auth.token(soon()) == "t1"
    assert auth.renew("t1", soon()) == "t2"
    assert [call.request.method for call in web.calls] == ["GET", "POST", "POST"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [("token", f"{BASE}/token"), ("/token", "https://fhir.example.org/token")],
)
def test_a_relative_token_endpoint_is_resolved_against_the_base(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend], endpoint: str, url: str
) -> None:
    web.get(f"{BASE}/.well-known/smart-configuration", json={"token_endpoint": endpoint})
    web.post(url, json={"access_token": "t1"})
    assert backend(token_url=None).token(soon()) == "t1"


@pytest.mark.parametrize(
    "endpoint",
    ["http://login.example.org/token", "ftp://x/", "https://user@login.example.org/"],
)
def test_a_token_endpoint_that_is_not_https_is_refused(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend], endpoint: str
) -> None:
    web.get(f"{BASE}/.well-known/smart-configuration", json={"token_endpoint": endpoint})
    with pytest.raises(SourceError, match="https"):
        backend(token_url=None).token(soon())
    with pytest.raises(ConfigurationError, match="https"):
        backend(token_url=endpoint)


def test_a_token_endpoint_on_this_machine_may_be_http(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend]
) -> None:
    here = "http://127.0.0.1:9000/token"
    web.post(here, json={"access_token": "t1"})
    assert backend(token_url=here).token(soon()) == "t1"


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 404},
        {"body": "<html>"},
        {"json": {}},
        {"json": {"token_endpoint": 3}},
        {"body": requests.ConnectionError("no route")},
    ],
)
def test_a_failing_discovery_is_a_source_error(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend], answer: dict[str, object]
) -> None:
    web.get(f"{BASE}/.well-known/smart-configuration", **answer)  # type: ignore[arg-type]
    with pytest.raises(SourceError):
        backend(token_url=None).token(soon())


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (401, {"error": "invalid_client", "error_description": "SECRET"}, "invalid_client"),
        (400, {"error": "SECRET value!"}, "400 Bad Request"),
        (500, {"error": 3}, "500 Internal Server Error"),
        (200, {"access_token": "two words"}, "no usable"),
        (200, {"access_token": "SECRET", "token_type": "mac"}, "no usable"),
        (200, {"token": "SECRET"}, "holds no token"),
        (200, {"access_token": "SECRET", "expires_in": "soon"}, "holds no token"),
    ],
)
def test_a_refused_token_is_a_source_error_that_tells_no_secret(
    web: responses.RequestsMock,
    backend: Callable[..., SmartBackend],
    status: int,
    body: dict[str, object],
    shown: str,
) -> None:
    web.post(TOKEN_URL, json=body, status=status)
    with pytest.raises(SourceError, match=shown) as error:
        backend().token(soon())
    assert "SECRET" not in str(error.value)


def test_redirects_of_the_token_endpoint_are_not_followed(
    web: responses.RequestsMock, backend: Callable[..., SmartBackend]
) -> None:
    web.post(TOKEN_URL, status=307, headers={"Location": "https://evil.example.org/token"})
    with pytest.raises(SourceError, match="307"):
        backend().token(soon())
    assert len(web.calls) == 1
