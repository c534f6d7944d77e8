"""Authorisation at a FHIR server: none, a bearer token, SMART Backend Services.

Source: SMART App Launch 2.2.0, "Backend Services" and "Asymmetric (Public Key) Client
Authentication" (private_key_jwt with RS384 or ES384). No error text holds a secret.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service.errors import ConfigurationError, SourceError
from service.fhir.http import Auth, Limits, Outgoing, Reply, Transport, base_of, is_loopback

__all__ = ["Auth", "BearerToken", "NoAuth", "SigningKey", "SmartBackend", "signing_key"]

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_SECONDS = 240  # the specification allows five minutes at most
_EARLY_SECONDS = 30.0  # renew before a token expires on the way
_DEFAULT_LIFETIME = 300.0  # what the specification recommends, if the server doesn't say
_HTTP_OK = 200
_TOKEN = re.compile(r"[\x21-\x7e]+")
_OAUTH_ERROR = re.compile(r"[a-z_]{1,40}")
_RSA_BITS = 2048


class NoAuth:
    """No authorisation."""

    def token(self, deadline: float) -> str | None:
        """Give no token."""
        return None

    def renew(self, refused: str, deadline: float) -> str | None:
        """Give no token."""
        return None


class BearerToken:
    """A token given as text, or read from a file that something else keeps fresh."""

    def __init__(self, value: str | None = None, *, file: Path | None = None) -> None:
        self._file = file
        if value is not None and file is None:
            self._token = _checked(value)
        elif file is not None and value is None:
            self._token = _read(file)
        else:
            raise ConfigurationError("a bearer token is given either as text or as a file")

    def token(self, deadline: float) -> str | None:
        """Give the token."""
        return self._token

    def renew(self, refused: str, deadline: float) -> str | None:
        """Read the file again; None if the token is given as text or is still the same."""
        if self._file is None:
            return None
        try:
            self._token = _read(self._file)
        except ConfigurationError:
            return None
        return self._token if self._token != refused else None


def _read(file: Path) -> str:
    try:
        return _checked(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("the file with the bearer token can't be read") from error


def _checked(token: str) -> str:
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigurationError("the bearer token is empty or holds characters no token has")
    return token


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A client's private key with the algorithm it signs with."""

    key: RSAPrivateKey | EllipticCurvePrivateKey
    algorithm: str
    kid: str | None

    def __repr__(self) -> str:
        return f"SigningKey({self.algorithm})"


def signing_key(text: str, *, kid: str | None = None) -> SigningKey:
    """Read a private key: PEM, a JWK, or a JWK Set (its first private RS384 or ES384 key).

    A PEM has no key id; ``kid`` gives one and overrides a JWK's. Raises ConfigurationError.
    """
    text = text.strip()
    if text.startswith("{"):
        return _from_jwk(text, kid)
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            "the private key is neither a PEM without password nor a JWK"
        ) from error
    return _usable(key, kid)


def _from_jwk(text: str, kid: str | None) -> SigningKey:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigurationError("the private key is not valid JSON") from error
    listed = found.get("keys")
    candidates = listed if isinstance(listed, list) else [found]
    private = [jwk for jwk in candidates if isinstance(jwk, dict) and "d" in jwk]
    for jwk in private:
        if kid is not None and len(private) > 1 and jwk.get("kid") != kid:
            continue
        try:
            return _usable(jwt.PyJWK(_with_algorithm(jwk)).key, kid or _text(jwk.get("kid")))
        except (jwt.PyJWTError, ConfigurationError, ValueError, TypeError, KeyError):
            continue
    raise ConfigurationError("no private key for RS384 or ES384 (curve P-384) is in the JWK")


def _with_algorithm(jwk: dict[str, Any]) -> dict[str, Any]:
    algorithm = {"RSA": "RS384", "EC": "ES384"}.get(str(jwk.get("kty")))
    if algorithm is None or jwk.get("alg", algorithm) != algorithm:
        raise ConfigurationError("the JWK is not for RS384 or ES384")
    return {**jwk, "alg": algorithm}


def _usable(key: object, kid: str | None) -> SigningKey:
    if isinstance(key, RSAPrivateKey):
        if key.key_size < _RSA_BITS:
            raise ConfigurationError(f"an RSA key needs at least {_RSA_BITS} bits")
        return SigningKey(key, "RS384", kid)
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1):
        return SigningKey(key, "ES384", kid)
    raise ConfigurationError("the private key must be RSA (RS384) or on the curve P-384 (ES384)")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class _Smart(msgspec.Struct):
    token_endpoint: str


class _Granted(msgspec.Struct):
    access_token: str
    token_type: str = "bearer"  # noqa: S105 - the kind of token, not one
    expires_in: float | None = None


class _Refused(msgspec.Struct):
    error: str


class SmartBackend:
    """SMART Backend Services: a signed assertion is exchanged for a short-lived token.

    The token is shared by threads, renewed shortly before it expires and after a 401. The
    token endpoint comes from the server's ``.well-known/smart-configuration`` unless given.
    """

    def __init__(
        self,
        base_url: str,
        *,
        client_id: str,
        key: SigningKey,
        scope: str = "system/*.rs",
        token_url: str | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not client_id:
            raise ConfigurationError("SMART Backend Services needs a client id")
        self._base = base_of(base_url)
        self._client_id = client_id
        self._key = key
        self._scope = scope
        self._token_url = token_url and _token_address(token_url, ConfigurationError)
        self._transport = Transport(limits or Limits(), what="the authorisation server")
        self._clock = clock
        self._lock = threading.Lock()
        self._token: str | None = None
        self._until = 0.0

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def token(self, deadline: float) -> str | None:
        """Give a valid token, a new one if need be; raises SourceError."""
        with self._lock:
            if self._token is None or self._clock() >= self._until:
                self._obtain(deadline)
            return self._token

    def renew(self, refused: str, deadline: float) -> str | None:
        """Give a token other than the refused one; raises SourceError."""
        with self._lock:
            # Of several threads refused at once, the first renews for all.
            if self._token is None or self._token == refused:
                self._obtain(deadline)
            return self._token

    def _obtain(self, deadline: float) -> None:
        self._token = None
        url = self._token_url or self._discover(deadline)
        asked = self._clock()
        granted = self._exchange(url, deadline)
        self._token_url = url
        lifetime = _DEFAULT_LIFETIME if granted.expires_in is None else granted.expires_in
        # A very short life is used for most of its length rather than not at all.
        self._until = asked + max(lifetime - _EARLY_SECONDS, lifetime * 0.5, 0.0)
        self._token = granted.access_token

    def _discover(self, deadline: float) -> str:
        address = f"{self._base}/.well-known/smart-configuration"
        request = Outgoing("GET", address, {"Accept": "application/json"})
        reply = self._transport.send(request, deadline)
        if reply.status != _HTTP_OK:
            raise SourceError(
                f"the FHIR server's smart-configuration could not be read ({reply.phrase})"
            )
        try:
            found = msgspec.json.decode(reply.body, type=_Smart).token_endpoint
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise SourceError(
                "the FHIR server's smart-configuration names no token endpoint"
            ) from error
        return _token_address(urljoin(f"{self._base}/", found), SourceError)

    def _exchange(self, url: str, deadline: float) -> _Granted:
        form = {
            "grant_type": "client_credentials",
            "scope": self._scope,
            "client_assertion_type": _ASSERTION_TYPE,
        }
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        # An assertion may be used only once, so each attempt sends a new one.
        request = Outgoing(
            "POST",
            url,
            headers,
            lambda: urlencode({**form, "client_assertion": self._assertion(url)}),
        )
        reply = self._transport.send(request, deadline)
        if reply.status != _HTTP_OK:
            raise SourceError(f"the authorisation server refused a token ({_reason(reply)})")
        try:
            granted = msgspec.json.decode(reply.body, type=_Granted)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise SourceError("the authorisation server's answer holds no token") from error
        if granted.token_type.lower() != "bearer" or not _TOKEN.fullmatch(granted.access_token):
            raise SourceError("the authorisation server's answer holds no usable bearer token")
        return granted

    def _assertion(self, url: str) -> str:
        now = int(time.time())
        headers = {"typ": "JWT"} if self._key.kid is None else {"typ": "JWT", "kid": self._key.kid}
        return jwt.encode(
            {
                "iss": self._client_id,
                "sub": self._client_id,
                "aud": url,
                "iat": now,
                "exp": now + _ASSERTION_SECONDS,
                "jti": str(uuid.uuid4()),
            },
            self._key.key,
            algorithm=self._key.algorithm,
            headers=headers,
        )


def _reason(reply: Reply) -> str:
    """Say why a token was refused: status and OAuth error code, never the description."""
    try:
        error = msgspec.json.decode(reply.body, type=_Refused).error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return reply.phrase
    return f"{reply.phrase}, {error}" if _OAUTH_ERROR.fullmatch(error) else reply.phrase


def _token_address(url: str, kind: type[ConfigurationError] | type[SourceError]) -> str:
    """Accept a token endpoint only over https, or on this machine."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.username is None and not parts.fragment
        secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts))
        _ = parts.port
    except ValueError as error:
        raise kind("the token endpoint is not a URL") from error
    if not usable or not secure:
        raise kind("the token endpoint must be an https address")
    return url
