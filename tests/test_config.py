"""The settings: flags before environment before defaults; a wrong value stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import SETTINGS, Settings, is_loopback, load_settings, settings_table
from service.errors import ConfigurationError


def test_without_anything_the_defaults_hold() -> None:
    assert load_settings({}) == Settings()


def test_flags_come_before_the_environment() -> None:
    environ = {"ELIGIBILITY_PORT": "1000", "ELIGIBILITY_WORKERS": "3", "HOME": "/"}
    found = load_settings(environ, {"port": "2000", "workers": None})
    assert (found.port, found.workers) == (2000, 3)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load_settings({"ELIGIBILITY_PORT": " "}).port == Settings().port


WRONG = {
    "port": "http",
    "workers": "0",
    "threads": "-1",
    "max_depth": "9999",
    "max_body_bytes": "1e6",
    "time_limit": "\u0663",
    "host": "bad host",
    "base_url": "ftp://x",
    "canonical_base": "https://user@x/fhir",
    "caller_auth": "basic",
    "caller_algorithms": "RS256,none",
    "caller_jwks_url": "http://login.example/jwks",
    "source_token_url": "http://login.example/token",
    "source_auth": "kerberos",
    "log_level": "chatty",
    "publish": "yes",
    "digest": "pigeon",
    "digest_days": "0",
    "smtp_security": "ssl",
    "smtp_from": "no address",
    "smtp_to": "a@b.example,Eve <e@b.example>",
    "webhook_url": "http://hooks.example/x",
    "site": "/no/such/file",
    "mappings": "/no/such/folder",
    "source": "/no/such/place",
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_value_is_named(field: str) -> None:
    variable = f"ELIGIBILITY_{field.upper()}"
    with pytest.raises(ConfigurationError, match=variable):
        load_settings({variable: WRONG[field]})


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"SOURCE_AUTH": "bearer"}, "SOURCE_AUTH needs"),
        ({"SOURCE_AUTH": "bearer", "SOURCE": "https://s/fhir"}, "SOURCE_TOKEN"),
        ({"SOURCE_AUTH": "bearer", "SOURCE": "http://s/fhir", "SOURCE_TOKEN": "x"}, "https"),
        ({"SOURCE_AUTH": "smart", "SOURCE": "https://s/fhir"}, "SOURCE_KEY"),
        ({"SOURCE_AUTH": "smart", "SOURCE": "https://s/fhir", "SOURCE_KEY": "k"}, "CLIENT_ID"),
        ({"CALLER_AUTH": "keys"}, "CALLER_KEYS_FILE"),
        ({"CALLER_AUTH": "jwt"}, "CALLER_ISSUER"),
        ({"CALLER_AUTH": "jwt", "CALLER_ISSUER": "i"}, "CALLER_JWKS_URL"),
        ({"DIGEST": "mail"}, "SMTP_HOST"),
        ({"DIGEST": "both", "SMTP_HOST": "h", "SMTP_FROM": "a@b.c"}, "SMTP_TO"),
        ({"DIGEST": "webhook", "WEBHOOK_URL": "https://h/x"}, "WEBHOOK_SECRET_FILE"),
        ({"SMTP_USER": "u"}, "SMTP_PASSWORD_FILE"),
        ({"SMTP_HOST": "h.example", "SMTP_SECURITY": "none"}, "loopback"),
    ],
)
def test_settings_that_do_not_fit_together_stop_the_start(
    environ: dict[str, str], missing: str
) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        load_settings({f"ELIGIBILITY_{name}": value for name, value in environ.items()})


def test_a_digest_needs_the_address_that_its_links_begin_with() -> None:
    given = {"DIGEST": "mail", "SMTP_HOST": "h", "SMTP_FROM": "a@b.c", "SMTP_TO": "d@e.f, g@h.i"}
    environ = {f"ELIGIBILITY_{name}": value for name, value in given.items()}
    with pytest.raises(ConfigurationError, match="BASE_URL"):
        load_settings(environ)
    settings = load_settings(environ | {"ELIGIBILITY_BASE_URL": "https://us.example/fhir"})
    assert settings.smtp_to == ("d@e.f", "g@h.i")
    hook = load_settings({"ELIGIBILITY_WEBHOOK_URL": "https://h.example/x?key=very-secret"})
    assert hook.webhook_url == "https://h.example/x?key=very-secret"
    assert "very-secret" not in repr(hook)


def test_a_misspelt_variable_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="ELIGIBILITY_SORUCE"):
        load_settings({"ELIGIBILITY_SORUCE": "x"})
    with pytest.raises(ConfigurationError, match="sorce"):
        load_settings({}, {"sorce": "x"})


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "ELIGIBILITY_SOURCE": "https://s/fhir",
            "ELIGIBILITY_SOURCE_AUTH": "bearer",
            "ELIGIBILITY_SOURCE_TOKEN": "very-secret",
        }
    )
    assert settings.source_token == "very-secret"  # noqa: S105
    assert "very-secret" not in repr(settings)


def test_the_table_names_every_setting() -> None:
    table = settings_table()
    for setting in SETTINGS:
        assert f"| `{setting.variable}` | `{setting.flag}` |" in table


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),  # noqa: S104
     ("localhost.example", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
