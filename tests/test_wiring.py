"""What is built from the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import Settings
from service.errors import ConfigurationError
from service.fhir.auth import BearerToken, NoAuth
from service.fhir.files import FileSource
from service.fhir.server import ServerSource
from service.site import Site
from service.wiring import build_auth, build_screening, build_source, data_dir, today


def test_the_data_lie_beside_the_package_or_in_it() -> None:
    assert (data_dir() / "mappings" / "trials" / "NCT06056752.yaml").is_file()


def test_the_trials_are_loaded_by_id() -> None:
    assert list(build_screening(Settings()).trials) == ["NCT06056752"]


def test_the_source_is_a_server_a_folder_or_the_shipped_fixtures(tmp_path: Path) -> None:
    site = Site()
    server = build_source(Settings(source="https://ehr.example/r4"), site)
    assert isinstance(server, ServerSource)
    assert isinstance(build_source(Settings(source=str(tmp_path)), site), FileSource)
    assert isinstance(build_source(Settings(), site), FileSource)


def test_files_by_a_url_are_no_source_of_single_patients() -> None:
    with pytest.raises(ConfigurationError, match="--engine spark"):
        build_source(Settings(source="s3a://bucket/export"), Site())


def test_the_source_is_asked_as_configured(tmp_path: Path) -> None:
    source = "https://ehr.example/r4"
    token = tmp_path / "token"
    token.write_text("abc", encoding="utf-8")
    assert isinstance(build_auth(Settings()), NoAuth)
    settings = Settings(source=source, source_auth="bearer", source_token_file=token)
    assert isinstance(build_auth(settings), BearerToken)
    key = tmp_path / "key"
    key.write_text("not a key", encoding="utf-8")
    smart = Settings(source=source, source_auth="smart", source_client_id="c", source_key_file=key)
    with pytest.raises(ConfigurationError, match="private key"):
        build_auth(smart)


def test_today_is_that_of_the_site() -> None:
    assert len(today(Site())) == len("2026-11-01")
