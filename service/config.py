"""The settings of the service: read once from flags and environment into one frozen value.

``SETTINGS`` is the one table of them: the README's table is made from it, and the command
line takes its flags, names and defaults from it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from service.errors import ConfigurationError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_PREFIX = "ELIGIBILITY_"
_LEVELS = ("debug", "info", "warning", "error")
_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set; the meaning of each is in ``SETTINGS``."""

    source: str | None = None
    site: Path | None = None
    mappings: Path | None = None
    attestations: Path | None = None
    store: str | None = field(default=None, repr=False)
    data: Path = Path("eligibility-data")
    job_days: int = 7
    searches: Path | None = None
    full_every: int = 7
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 2
    threads: int = 8
    base_url: str | None = None
    canonical_base: str = "https://eligibility.example.org/fhir"
    source_auth: str = "none"
    source_token: str | None = field(default=None, repr=False)
    source_token_file: Path | None = None
    source_client_id: str | None = None
    source_key: str | None = field(default=None, repr=False)
    source_key_file: Path | None = None
    source_token_url: str | None = None
    source_scope: str = "system/*.rs"
    source_connect_timeout: int = 5
    source_read_timeout: int = 20
    source_budget: int = 45
    source_parallel: int = 6
    bulk_poll_ceiling: int = 600
    bulk_patience: int = 86_400
    bulk_parallel: int = 4
    bulk_trusted: tuple[str, ...] = ()
    search_parallel: int = 4
    caller_auth: str = "none"
    caller_keys_file: Path | None = None
    caller_issuer: str | None = None
    caller_jwks_url: str | None = None
    caller_audience: str | None = None
    caller_algorithms: tuple[str, ...] = ("RS256", "RS384", "ES256", "ES384")
    caller_scope: str = "eligibility.evaluate"
    screen_scope: str = "eligibility.screen"
    max_body_bytes: int = 16 * 1024 * 1024
    max_depth: int = 64
    max_entries: int = 20_000
    rate_per_minute: int = 600
    max_concurrent: int = 8
    time_limit: int = 60
    trusted_proxies: int = 0
    log_level: str = "info"
    publish: str = "off"
    publish_scope: str = (
        "system/Group.crus system/List.crus system/ResearchSubject.crus system/ResearchStudy.rs"
    )
    digest: str = "off"
    digest_days: int = 7
    smtp_host: str | None = None
    smtp_port: int = 587
    smtp_security: str = "starttls"
    smtp_user: str | None = None
    smtp_password_file: Path | None = None
    smtp_from: str | None = None
    smtp_to: tuple[str, ...] = ()
    webhook_url: str | None = field(default=None, repr=False)
    webhook_secret_file: Path | None = None


class Setting(NamedTuple):
    """One setting: field of ``Settings``, what it means, and how its text is read."""

    field: str
    meaning: str
    read: Callable[[str], Any]
    secret: bool = False

    @property
    def variable(self) -> str:
        """Give the name of the environment variable."""
        return _PREFIX + self.field.upper()

    @property
    def flag(self) -> str:
        """Give the name of the command line's flag."""
        return "--" + self.field.replace("_", "-")

    @property
    def default(self) -> object:
        """Give the default value."""
        return getattr(_DEFAULTS, self.field)

    def default_text(self) -> str:
        """Write the default as it would be set; empty if there is none."""
        value = self.default
        if value is None:
            return ""
        return ",".join(value) if isinstance(value, tuple) else str(value)


def _text(value: str) -> str:
    return value


def _path(value: str) -> Path:
    return Path(value)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not value.isascii() or not value.isdecimal() or not low <= int(value[:18]) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return read


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value

    return read


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", value):
        raise ValueError("must be a host name or address")
    return value


def _url(value: str) -> str:
    """Read a http(s) URL without user, query or fragment; https is not forced here."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be a URL without user, query and fragment")
    return value.rstrip("/")


def _secure_url(value: str) -> str:
    url = _url(value)
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ValueError("must be an https:// URL (http:// only for a loopback address)")
    return url


def _secure_urls(value: str) -> tuple[str, ...]:
    return tuple(_secure_url(part.strip()) for part in value.split(",") if part.strip())


def _webhook(value: str) -> str:
    """Read a https URL whose query may hold a key, as some receivers want."""
    parts = urlsplit(value)
    _secure_url(f"{parts.scheme}://{parts.netloc}{parts.path}")
    if parts.fragment:
        raise ValueError("must be a URL without fragment")
    return value


def _address(value: str) -> str:
    if not re.fullmatch(r"[^\s@<>,;:\"()\[\]\\]{1,64}@[A-Za-z0-9.-]{1,253}", value):
        raise ValueError("must be a mail address, as screening@hospital.example")
    return value


def _addresses(value: str) -> tuple[str, ...]:
    return tuple(_address(part.strip()) for part in value.split(",") if part.strip())


def _algorithms(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    unknown = [name for name in names if name not in ALGORITHMS]
    if not names or unknown:
        raise ValueError(f"must be a comma list of {', '.join(ALGORITHMS)}")
    return names


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "source",
        "where records are read: a FHIR base URL, a directory or a file; "
        "serve and demo without it: the shipped patients",
        _text,
    ),
    Setting("site", "the hospital's site file (YAML)", _path),
    Setting("mappings", "folder to use instead of the shipped mappings", _path),
    Setting("attestations", "file of attestations, by which a person settles criteria", _path),
    Setting(
        "store",
        "where runs and verdicts are kept: a file (SQLite) or a postgresql:// URL",
        _text,
        secret=True,
    ),
    Setting("data", "folder that the worker keeps its jobs' searches in", _path),
    Setting("job_days", "days for which a job's result is kept", _whole(1, 3_650)),
    Setting("searches", "file of the searches that the worker runs at their times", _path),
    Setting(
        "full_every",
        "after how many days a search with a store reads everything again, not only what "
        "changed; 1: each day",
        _whole(1, 365),
    ),
    Setting("host", "address to listen on", _host),
    Setting("port", "port to listen on; 0 takes a free one", _whole(0, _MAX_PORT)),
    Setting("workers", "number of server processes", _whole(1, 64)),
    Setting("threads", "threads per process", _whole(1, 64)),
    Setting(
        "base_url",
        "public base URL of the FHIR endpoint, for links; none: taken from the request",
        _url,
    ),
    Setting("canonical_base", "base of the canonical URLs of criteria and code sets", _url),
    Setting(
        "source_auth",
        "how the service authenticates to the source: none, bearer or smart",
        _one_of("none", "bearer", "smart"),
    ),
    Setting("source_token", "bearer token for the source", _text, secret=True),
    Setting("source_token_file", "file that holds the bearer token", _path),
    Setting("source_client_id", "client id for SMART Backend Services", _text),
    Setting(
        "source_key", "private key for SMART Backend Services (PEM or JWK)", _text, secret=True
    ),
    Setting("source_key_file", "file that holds the private key", _path),
    Setting("source_token_url", "token URL; none: discovered at the source", _secure_url),
    Setting("source_scope", "scopes asked for", _text),
    Setting("source_connect_timeout", "seconds to connect to the source", _whole(1, 600)),
    Setting("source_read_timeout", "seconds to wait for the source's next bytes", _whole(1, 600)),
    Setting("source_budget", "seconds that reading one patient may take in all", _whole(1, 3600)),
    Setting("source_parallel", "parallel searches of one patient", _whole(1, 32)),
    Setting(
        "bulk_poll_ceiling",
        "most seconds between two questions how a Bulk Data export goes, whatever the server says",
        _whole(1, 86_400),
    ),
    Setting(
        "bulk_patience",
        "seconds that a run waits for the server to finish an export",
        _whole(1, 30 * 86_400),
    ),
    Setting("bulk_parallel", "files of an export fetched at the same time", _whole(1, 32)),
    Setting(
        "bulk_trusted",
        "further addresses of the same server (comma list of https:// URLs) that get its token "
        "with an export",
        _secure_urls,
    ),
    Setting(
        "search_parallel",
        "parallel requests to the source of a search of many patients",
        _whole(1, 32),
    ),
    Setting(
        "caller_auth",
        "how callers authenticate: none (loopback only), keys or jwt",
        _one_of("none", "keys", "jwt"),
    ),
    Setting("caller_keys_file", "file of hashed keys, a line each: name sha256:HEX", _path),
    Setting("caller_issuer", "issuer (iss) of callers' tokens", _text),
    Setting("caller_jwks_url", "JSON Web Key Set of that issuer", _secure_url),
    Setting("caller_audience", "audience (aud) that callers' tokens must name", _text),
    Setting("caller_algorithms", "signature algorithms accepted", _algorithms),
    Setting("caller_scope", "scope that callers' tokens must hold", _text),
    Setting("screen_scope", "scope that a caller needs to start searches", _text),
    Setting("max_body_bytes", "greatest size of a request's body", _whole(1_024, 2**31)),
    Setting("max_depth", "greatest depth of a request's JSON", _whole(8, 256)),
    Setting("max_entries", "greatest number of resources in a request", _whole(1, 1_000_000)),
    Setting(
        "rate_per_minute",
        "requests per caller, minute and process; 0: no limit",
        _whole(0, 1_000_000),
    ),
    Setting("max_concurrent", "evaluations at the same time per process", _whole(1, 256)),
    Setting("time_limit", "seconds an evaluation may take", _whole(1, 3_600)),
    Setting(
        "trusted_proxies", "number of proxies whose X-Forwarded headers are believed", _whole(0, 10)
    ),
    Setting(
        "log_level", "least level that is logged: debug, info, warning or error", _one_of(*_LEVELS)
    ),
    Setting(
        "publish",
        "whether scheduled searches write candidates back to the source: off or on",
        _one_of("off", "on"),
    ),
    Setting("publish_scope", "scopes asked for to write back", _text),
    Setting(
        "digest",
        "where the digest of changes goes after scheduled searches: off, mail, webhook or both",
        _one_of("off", "mail", "webhook", "both"),
    ),
    Setting("digest_days", "days ahead for verdicts that will lapse", _whole(1, 365)),
    Setting("smtp_host", "mail server for the digest", _host),
    Setting("smtp_port", "its port", _whole(1, _MAX_PORT)),
    Setting(
        "smtp_security",
        "starttls, tls (from the first byte), or none (loopback only)",
        _one_of("starttls", "tls", "none"),
    ),
    Setting("smtp_user", "user at the mail server; none: no sign-in", _text),
    Setting("smtp_password_file", "file that holds that user's password", _path),
    Setting("smtp_from", "address that the digest comes from", _address),
    Setting("smtp_to", "addresses that the digest goes to, a comma list", _addresses),
    Setting("webhook_url", "address that the digest is posted to", _webhook, secret=True),
    Setting("webhook_secret_file", "file with the secret that signs posted digests", _path),
)
_DEFAULTS = Settings()
assert {setting.field for setting in SETTINGS} == {field.name for field in fields(Settings)}


def load_settings(
    environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> Settings:
    """Read the settings: flags (by field name) before environment before defaults.

    An empty variable and a flag that is None count as not set. Raises ConfigurationError,
    which names the setting, never a secret's value.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    known = {setting.variable for setting in SETTINGS}
    for variable in environ:
        if variable.startswith(_PREFIX) and variable not in known:
            raise ConfigurationError(f"no setting is called {variable}")
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if setting.field in given:
            name, value = setting.flag, _flag_text(given.pop(setting.field))
        else:
            name, value = setting.variable, environ.get(setting.variable, "").strip()
        if not value:
            continue
        try:
            values[setting.field] = setting.read(value)
        except ValueError as error:
            raise ConfigurationError(f"{name} {error}") from error
    if given:
        raise ConfigurationError(f"no setting is called {sorted(given)[0]}")
    settings = Settings(**values)
    _check(settings)
    return settings


def _flag_text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value)
    return str(value)


def _check(settings: Settings) -> None:
    """Refuse settings that don't fit together."""
    _check_files(settings)
    _check_source_auth(settings)
    _check_caller_auth(settings)
    _check_digest(settings)


def _check_files(settings: Settings) -> None:
    for setting in SETTINGS:
        path = getattr(settings, setting.field)
        if not isinstance(path, Path) or setting.field == "data":  # which is made when needed
            continue
        found = path.is_dir() if setting.field == "mappings" else path.is_file()
        if not found:
            raise ConfigurationError(f"{setting.variable}: there is no {path}")
    source = settings.source
    if source is None:
        return
    if "://" in source:
        try:
            if is_server(source):
                _url(source)
            elif urlsplit(source).password is not None:
                raise ValueError("must not hold a password: Spark has its own settings for it")
        except ValueError as error:
            raise ConfigurationError(f"{_PREFIX}SOURCE {error}") from error
    elif not Path(source).exists():
        raise ConfigurationError(f"{_PREFIX}SOURCE: there is no {source}")


def _check_source_auth(settings: Settings) -> None:
    if settings.source_auth == "none":
        return
    if settings.source is None or not is_server(settings.source):
        raise ConfigurationError(f"{_PREFIX}SOURCE_AUTH needs a FHIR server as source")
    parts = urlsplit(settings.source)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ConfigurationError(f"{_PREFIX}SOURCE must be https:// when a token is sent to it")
    pair = (
        ("source_token", "source_token_file")
        if settings.source_auth == "bearer"
        else ("source_key", "source_key_file")
    )
    given = [name for name in pair if getattr(settings, name) is not None]
    if len(given) != 1:
        names = " or ".join(_PREFIX + name.upper() for name in pair)
        raise ConfigurationError(f"{_PREFIX}SOURCE_AUTH={settings.source_auth} needs {names}")
    if settings.source_auth == "smart" and settings.source_client_id is None:
        raise ConfigurationError(f"{_PREFIX}SOURCE_AUTH=smart needs {_PREFIX}SOURCE_CLIENT_ID")


def _check_caller_auth(settings: Settings) -> None:
    if settings.caller_auth == "keys" and settings.caller_keys_file is None:
        raise ConfigurationError(f"{_PREFIX}CALLER_AUTH=keys needs {_PREFIX}CALLER_KEYS_FILE")
    if settings.caller_auth == "jwt":
        for name in ("caller_issuer", "caller_jwks_url", "caller_audience"):
            if getattr(settings, name) is None:
                raise ConfigurationError(f"{_PREFIX}CALLER_AUTH=jwt needs {_PREFIX}{name.upper()}")


def _check_digest(settings: Settings) -> None:
    channels = ("mail", "webhook") if settings.digest == "both" else (settings.digest,)
    for channel in channels:
        if channel != "off":
            check_channel(settings, channel)
    if (settings.smtp_user is None) != (settings.smtp_password_file is None):
        raise ConfigurationError(
            f"{_PREFIX}SMTP_USER and {_PREFIX}SMTP_PASSWORD_FILE are set together or not at all"
        )
    host = settings.smtp_host
    if settings.smtp_security == "none" and host is not None and not is_loopback(host):
        raise ConfigurationError(
            f"{_PREFIX}SMTP_SECURITY=none is only for a loopback address: set starttls or tls"
        )


_CHANNELS = {
    "mail": ("smtp_host", "smtp_from", "smtp_to"),
    "webhook": ("webhook_url", "webhook_secret_file"),
}


def check_channel(settings: Settings, channel: str) -> None:
    """Refuse a digest by a channel (mail, webhook) that isn't set up; ConfigurationError."""
    for name in (*_CHANNELS[channel], "base_url"):
        if not getattr(settings, name):
            raise ConfigurationError(f"a digest by {channel} needs {_PREFIX}{name.upper()}")


def check_exposure(settings: Settings) -> None:
    """Refuse to serve everyone without authentication; raises ConfigurationError.

    Apart from ``load_settings``, since only a service that listens can be exposed.
    """
    if settings.caller_auth == "none" and not is_loopback(settings.host):
        raise ConfigurationError(
            f"{_PREFIX}CALLER_AUTH=none is only for a loopback address, not {settings.host}: "
            "set keys or jwt"
        )


def is_server(source: str) -> bool:
    """Tell whether a source is a FHIR server, and no files (of this machine, or by a URL)."""
    return source.lower().startswith(("http://", "https://"))


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def settings_table() -> str:
    """Write the table of all settings in Markdown, as the README shows it."""
    lines = ["| variable | flag | default | meaning |", "| --- | --- | --- | --- |"]
    for setting in SETTINGS:
        default = setting.default_text()
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{setting.variable}` | `{setting.flag}` | {shown} | {setting.meaning} |")
    return "\n".join(lines)
