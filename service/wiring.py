"""Builds what runs from the settings; alone chooses implementations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.config import Settings, is_server
from service.criteria.attestation import load_attestations
from service.criteria.trial import Trial, load_trial
from service.errors import ConfigurationError
from service.fhir.auth import Auth, BearerToken, NoAuth, SmartBackend, signing_key
from service.fhir.bulk import BulkClient, BulkLimits
from service.fhir.files import FileSource
from service.fhir.http import Limits
from service.fhir.server import ServerSource
from service.fhir.source import Source
from service.screening import Screening
from service.site import Site, load_site
from service.terms import Terms, load_terms

__all__ = ["build_auth", "build_screening", "build_site", "build_source", "data_dir", "today"]


def data_dir() -> Path:
    """Find the folder that holds ``mappings`` and ``fixtures``.

    In an installed package it is ``service/data``; in a clone the repository itself.
    Raises ConfigurationError if neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "data", package.parent):
        if (folder / "mappings").is_dir():
            return folder
    raise ConfigurationError("the mappings are not where the service was installed")


def mappings_dir(settings: Settings) -> Path:
    """Give the folder of the mappings: the setting's, else the shipped one."""
    return settings.mappings or data_dir() / "mappings"


def build_site(settings: Settings) -> Site:
    """Read the site file, if one is set; raises MappingError."""
    return load_site(settings.site) if settings.site else Site()


def build_terms(settings: Settings, site: Site) -> Terms:
    """Load code sets and units with what the site adds; raises MappingError."""
    return load_terms(
        mappings_dir(settings),
        local_codes=site.local_codes,
        spellings=site.spellings,
        ulns=site.ulns,
    )


def build_trials(settings: Settings, terms: Terms) -> dict[str, Trial]:
    """Load all trial files by the trial's id; raises MappingError."""
    trials: dict[str, Trial] = {}
    for path in sorted((mappings_dir(settings) / "trials").glob("*.yaml")):
        trial = load_trial(path, terms)
        if trial.id in trials:
            raise ConfigurationError(f"two trial files have the id {trial.id}")
        trials[trial.id] = trial
    return trials


def build_screening(settings: Settings) -> Screening:
    """Load trials, terms and site; the source is built apart, since not all need one."""
    site = build_site(settings)
    terms = build_terms(settings, site)
    trials = build_trials(settings, terms)
    attested = settings.attestations
    attestations = load_attestations(attested, trials.values()) if attested else ()
    return Screening(trials, terms, site, attestations)


def screening_of(
    mappings: Path, site: Path | None = None, attestations: Path | None = None
) -> Screening:
    """Load trials, terms, site and attestations from given files; raises MappingError."""
    return build_screening(Settings(mappings=mappings, site=site, attestations=attestations))


def build_auth(settings: Settings) -> Auth:
    """Build how the service authenticates to its source; raises ConfigurationError."""
    if settings.source_auth == "none":
        return NoAuth()
    if settings.source_auth == "bearer":
        return BearerToken(settings.source_token, file=settings.source_token_file)
    assert settings.source is not None
    assert settings.source_client_id is not None
    return SmartBackend(
        settings.source,
        client_id=settings.source_client_id,
        key=signing_key(_key_text(settings)),
        scope=settings.source_scope,
        token_url=settings.source_token_url,
        limits=limits_of(settings),
    )


def _key_text(settings: Settings) -> str:
    if settings.source_key is not None:
        return settings.source_key
    assert settings.source_key_file is not None
    try:
        return settings.source_key_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("the file with the private key can't be read") from error


def limits_of(settings: Settings) -> Limits:
    """Give the bounds on requests to the source."""
    return Limits(
        connect=settings.source_connect_timeout,
        read=settings.source_read_timeout,
        fetch=settings.source_budget,
        parallel=settings.source_parallel,
        crowd=settings.search_parallel,
    )


def bulk_limits_of(settings: Settings) -> BulkLimits:
    """Give the bounds on a Bulk Data export."""
    usual = BulkLimits()
    return BulkLimits(
        job=settings.bulk_patience,
        poll_most=settings.bulk_poll_ceiling,
        busy=min(usual.busy, settings.bulk_patience),
        parallel=settings.bulk_parallel,
    )


def build_bulk(settings: Settings, report: Callable[[str], None]) -> BulkClient:
    """Build the client of the source's exports; raises ConfigurationError."""
    assert settings.source is not None
    return BulkClient(
        settings.source,
        build_auth(settings),
        limits_of(settings),
        bulk_limits_of(settings),
        trusted=settings.bulk_trusted,
        report=report,
    )


def build_source(settings: Settings, site: Site) -> Source:
    """Build the source: a FHIR server, files, or the fixtures shipped with the service."""
    if settings.source is None:
        return FileSource(data_dir() / "fixtures" / "patients", site.search)
    if not is_server(settings.source) and "://" in settings.source:
        raise ConfigurationError("only screen --engine spark reads files by such a URL")
    if is_server(settings.source):
        return ServerSource(
            settings.source, build_auth(settings), site.search, limits_of(settings), zone=site.zone
        )
    return FileSource(Path(settings.source), site.search)


def today(site: Site) -> str:
    """Give today's date in the site's time zone, as an ISO date."""
    return datetime.now(UTC).astimezone(site.zone).date().isoformat()
