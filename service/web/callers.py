"""Who calls: bearer tokens of a configured issuer, or keys of which only hashes are kept.

Source: RFC 6750, RFC 7519, RFC 8725.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from pathlib import Path
from typing import Protocol

import jwt

from service.config import Settings, check_exposure
from service.errors import ConfigurationError, EligibilityError

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9._-]{1,64})\s+sha256:(?P<hash>[0-9a-f]{64})(?P<scopes>(\s+[!-~]+)*)"
)
_BEARER = re.compile(r"[Bb]earer +([A-Za-z0-9._~+/=-]{1,16384})")
_SHORTEST_KEY = 24
_LEEWAY_SECONDS = 30
_JWKS_SECONDS = 5
_JWKS_LIFESPAN = 600
_RETRY_SECONDS = 30.0


class NotAuthenticated(EligibilityError):
    """The caller did not show who it is."""

    status = 401
    code = "login"


class NotAllowed(EligibilityError):
    """The caller is known but may not do this."""

    status = 403
    code = "forbidden"


class IssuerUnreachable(EligibilityError):
    """The issuer's keys can't be read, so that nobody can be let in or refused."""

    status = 503
    code = "transient"


class Callers(Protocol):
    """Finds out who calls."""

    def identify(self, authorization: str | None, scope: str | None = None) -> str | None:
        """Give the caller's name, or None if callers aren't asked for one.

        ``scope``: what the caller must hold instead of the scope to evaluate. Raises
        NotAuthenticated, NotAllowed, IssuerUnreachable.
        """


class Anyone:
    """Lets everyone in: only for a service that listens on a loopback address."""

    def identify(self, authorization: str | None, scope: str | None = None) -> str | None:
        """Ask nothing."""
        return None


class KeyHolders:
    """Callers with keys; the file holds a name and the SHA-256 of each key.

    After these may come scopes beside the one to evaluate, which every key has. Keys are
    random, so that a plain hash can't be reversed; comparing digests takes the same time for
    each.
    """

    def __init__(self, file: Path) -> None:
        self._names, self._scopes = _read_keys(file)

    def identify(self, authorization: str | None, scope: str | None = None) -> str | None:
        """Find the key's holder."""
        key = _bearer(authorization)
        if len(key) < _SHORTEST_KEY:
            raise NotAuthenticated("the key is not known")
        digest = hash_key(key)
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise NotAuthenticated("the key is not known")
        if scope is not None and scope not in self._scopes[digest]:
            raise NotAllowed(f"the key lacks the scope {scope}")
        return found


def hash_key(key: str) -> str:
    """Hash a key as the file of keys holds it, without the prefix ``sha256:``."""
    return hashlib.sha256(key.encode()).hexdigest()


def _read_keys(file: Path) -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """Give the names and the scopes of keys by their hashes."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the file of keys {file.name} can't be read") from error
    names: dict[str, str] = {}
    scopes: dict[str, frozenset[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ConfigurationError(
                f"{file.name}:{number}: a line is `name sha256:HEX [SCOPE...]`"
            )
        names[found["hash"]] = found["name"]
        scopes[found["hash"]] = frozenset(found["scopes"].split())
    if not names:
        raise ConfigurationError(f"the file of keys {file.name} holds none")
    return names, scopes


class TokenHolders:
    """Callers with a signed token of one issuer, for one audience, with one scope."""

    def __init__(self, settings: Settings) -> None:
        assert settings.caller_jwks_url is not None
        self._settings = settings
        self._keys = jwt.PyJWKClient(
            settings.caller_jwks_url,
            cache_jwk_set=True,
            lifespan=_JWKS_LIFESPAN,
            timeout=_JWKS_SECONDS,
        )
        self._lock = threading.Lock()
        self._unknown_until = 0.0

    def identify(self, authorization: str | None, scope: str | None = None) -> str | None:
        """Check signature, algorithm, issuer, audience, times and scope."""
        token = _bearer(authorization)
        key = self._key(token)
        try:
            # With a PyJWK the token's algorithm must also be the key's own (RFC 8725, 3.1).
            claims = jwt.decode(
                token,
                key,
                algorithms=list(self._settings.caller_algorithms),
                issuer=self._settings.caller_issuer,
                audience=self._settings.caller_audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise NotAuthenticated("the token is not valid") from error
        scopes = claims.get("scope", "")
        granted = scopes.split() if isinstance(scopes, str) else scopes
        wanted = self._settings.caller_scope if scope is None else scope
        if not isinstance(granted, list) or wanted not in granted:
            raise NotAllowed(f"the token lacks the scope {wanted}")
        caller = claims.get("client_id") or claims.get("azp") or claims.get("sub")
        return caller if isinstance(caller, str) else "token"

    def _key(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise NotAuthenticated("the token is not valid") from error
        kid = header.get("kid")
        if header.get("alg") not in self._settings.caller_algorithms or not isinstance(kid, str):
            raise NotAuthenticated("the token is not valid")
        with self._lock:
            return self._find(kid)

    def _find(self, kid: str) -> jwt.PyJWK:
        """Find a key by its id; an unknown one makes the set be read again, but not often."""
        try:
            for key in self._keys.get_signing_keys():
                if key.key_id == kid:
                    return key
            if time.monotonic() < self._unknown_until:
                raise NotAuthenticated("the token is not valid")
            self._unknown_until = time.monotonic() + _RETRY_SECONDS
            return self._keys.get_signing_key(kid)
        except jwt.PyJWKClientConnectionError as error:
            raise IssuerUnreachable("the issuer's keys can't be read") from error
        except jwt.PyJWTError as error:
            raise NotAuthenticated("the token is not valid") from error


def _bearer(authorization: str | None) -> str:
    found = _BEARER.fullmatch((authorization or "").strip())
    if found is None:
        raise NotAuthenticated("a bearer token is needed")
    return found[1]


def build_callers(settings: Settings) -> Callers:
    """Build what finds out who calls; raises ConfigurationError."""
    check_exposure(settings)
    if settings.caller_auth == "keys":
        assert settings.caller_keys_file is not None
        return KeyHolders(settings.caller_keys_file)
    if settings.caller_auth == "jwt":
        return TokenHolders(settings)
    return Anyone()
