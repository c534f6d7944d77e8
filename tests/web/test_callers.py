"""Authentication of callers: keys, tokens of an issuer, and nobody only on loopback."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from flask import Flask
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.config import Settings
from service.errors import ConfigurationError
from service.web.callers import TokenHolders, build_callers, hash_key
from tests.web.asking import OPERATION, TRIAL, app_of, refusal

KEY = "correct-horse-battery-staple-0123"
ISSUER = "https://login.example"
JWKS = f"{ISSUER}/jwks"


@pytest.fixture
def keyed(tmp_path: Path) -> Flask:
    file = tmp_path / "keys"
    file.write_text(f"# callers\n\nward-1 sha256:{hash_key(KEY)}\n", encoding="utf-8")
    return app_of(caller_auth="keys", caller_keys_file=file, host="0.0.0.0")  # noqa: S104


def status(app: Flask, authorization: str | None, path: str = TRIAL) -> int:
    headers = {} if authorization is None else {"Authorization": authorization}
    return app.test_client().get(path, headers=headers).status_code


def test_a_key_lets_its_holder_in(keyed: Flask) -> None:
    assert status(keyed, f"Bearer {KEY}") == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", f"Basic {KEY}", "Bearer wrong", f"Bearer {KEY}x", KEY,
     f"Bearer {hash_key(KEY)}", f"Bearer {KEY} {KEY}"],
)  # fmt: skip
def test_nobody_else_gets_in(keyed: Flask, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization is not None else {}
    reply = keyed.test_client().get(TRIAL, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert refusal(reply)["code"] == "login"
    assert KEY.encode() not in reply.data


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/fhir/metadata"]
)
def test_what_tells_nothing_is_open(keyed: Flask, path: str) -> None:
    assert status(keyed, None, path) == 200


def test_the_operation_is_closed_before_its_body_is_read(keyed: Flask) -> None:
    reply = keyed.test_client().post(OPERATION, data=b"{", content_type="application/fhir+json")
    assert reply.status_code == 401


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"a sha256:{hash_key(KEY)}", encoding="utf-8")
    app = app_of(caller_auth="keys", caller_keys_file=file, rate_per_minute=3)
    assert [status(app, "Bearer wrong") for _ in range(4)] == [401, 401, 401, 429]
    assert status(app, f"Bearer {KEY}") == 200


@pytest.mark.parametrize(
    "content", ["", "# none\n", "a b", f"a sha256:{'A' * 64}", f"a {'0' * 64}"]
)
def test_a_bad_file_of_keys_stops_the_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError):
        app_of(caller_auth="keys", caller_keys_file=file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "service.example"])  # noqa: S104
def test_nobody_is_let_in_unasked_from_outside(host: str) -> None:
    with pytest.raises(ConfigurationError, match="loopback"):
        build_callers(Settings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_on_loopback_nobody_is_asked(host: str) -> None:
    assert build_callers(Settings(host=host)).identify(None) is None


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP384R1())
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SETTINGS = Settings(
    caller_auth="jwt",
    caller_issuer=ISSUER,
    caller_jwks_url=JWKS,
    caller_audience="eligibility",
    host="0.0.0.0",  # noqa: S104
)


def published() -> dict[str, Any]:
    keys = [
        json.loads(RSAAlgorithm.to_jwk(RSA.public_key()))
        | {"kid": "r1", "alg": "RS384", "use": "sig"},
        json.loads(ECAlgorithm.to_jwk(EC.public_key()))
        | {"kid": "e1", "alg": "ES384", "use": "sig"},
    ]
    return {"keys": keys}


def token(
    key: RSAPrivateKey | EllipticCurvePrivateKey = RSA,
    algorithm: str = "RS384",
    kid: str | None = "r1",
    expired_for: int = -60,
    **claims: Any,
) -> str:
    content: dict[str, Any] = {
        "iss": ISSUER, "aud": "eligibility", "sub": "ward-1", "exp": int(time.time()) - expired_for,
        "scope": "openid eligibility.evaluate",
    }  # fmt: skip
    content = {name: value for name, value in (content | claims).items() if value is not None}
    return jwt.encode(content, key, algorithm, headers={"kid": kid} if kid else None)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Flask:
    monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", lambda self: published())
    return app_of(**{name: getattr(SETTINGS, name) for name in (
        "caller_auth", "caller_issuer", "caller_jwks_url", "caller_audience", "host")})  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"key": EC, "algorithm": "ES384", "kid": "e1"},
        {"aud": ["other", "eligibility"]},
        {"scope": ["eligibility.evaluate"]},
        {"expired_for": 10},
    ],
    ids=["RS384", "ES384", "several audiences", "scopes as a list", "within the leeway"],
)
def test_a_good_token_lets_in(guarded: Flask, given: dict[str, Any]) -> None:
    assert status(guarded, f"Bearer {token(**given)}") == 200


@pytest.mark.parametrize(
    "given",
    [
        {"exp": int(time.time()) - 120},
        {"exp": None},
        {"aud": "other"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"nbf": int(time.time()) + 86_400},
        {"key": STRANGER},
        {"kid": "unknown"},
        {"kid": None},
        {"algorithm": "RS512"},
        {"algorithm": "RS256"},
        {"kid": "e1"},
    ],
    ids=",".join,
)
def test_a_bad_token_does_not(guarded: Flask, given: dict[str, Any]) -> None:
    assert status(guarded, f"Bearer {token(**given)}") == 401


def test_unsigned_and_symmetric_tokens_do_not(guarded: Flask) -> None:
    claims = {
        "iss": ISSUER,
        "aud": "eligibility",
        "exp": int(time.time()) + 60,
        "scope": "eligibility.evaluate",
    }
    unsigned = jwt.encode(claims, None, "none", headers={"kid": "r1"})
    shared = jwt.encode(claims, "0" * 64, "HS256", headers={"kid": "r1"})
    for bad in (unsigned, shared, "a.b.c", "abc"):
        assert status(guarded, f"Bearer {bad}") == 401


@pytest.mark.parametrize("scope", ["openid", "", None, 7, "eligibility.evaluate2"])
def test_a_token_without_the_scope_may_not(guarded: Flask, scope: object) -> None:
    reply = guarded.test_client().get(
        TRIAL, headers={"Authorization": f"Bearer {token(scope=scope)}"}
    )
    assert reply.status_code == 403
    assert refusal(reply)["code"] == "forbidden"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("eligibility.evaluate", 403), ("eligibility.screen", 404), ("x eligibility.screen", 404)],
)
def test_a_search_needs_a_scope_of_its_own(guarded: Flask, scope: str, expected: int) -> None:
    """404: past the door, there is no such search."""
    headers = {"Authorization": f"Bearer {token(scope=scope)}"}
    assert guarded.test_client().get("/fhir/jobs/none", headers=headers).status_code == expected


def test_an_issuer_that_cannot_be_reached_is_no_answer_on_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: jwt.PyJWKClient) -> Any:
        raise jwt.PyJWKClientConnectionError("secret detail")

    monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", fail)
    app = app_of(**{name: getattr(SETTINGS, name) for name in (
        "caller_auth", "caller_issuer", "caller_jwks_url", "caller_audience")})  # fmt: skip
    reply = app.test_client().get(TRIAL, headers={"Authorization": f"Bearer {token()}"})
    assert reply.status_code == 503
    assert b"secret" not in reply.data


def test_unknown_key_ids_do_not_make_the_issuer_be_asked_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def fetch(self: jwt.PyJWKClient) -> Any:
        asked.append(1)
        keys = published()
        if self.jwk_set_cache is not None:
            self.jwk_set_cache.put(keys)
        return keys

    monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", fetch)
    holders = TokenHolders(SETTINGS)
    for number in range(20):
        with pytest.raises(Exception, match="not valid"):
            holders.identify(f"Bearer {token(kid=f'x{number}')}")
    assert len(asked) <= 2
