"""What is done after a scheduled search: writing back, and the digest, if they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.config import Settings, check_channel, is_server
from service.errors import ConfigurationError, EligibilityError
from service.nightly.digest import channels_of, deliver_all
from service.nightly.model import Statement
from service.nightly.publish import Published, publish
from service.storage.sent import DigestState
from service.storage.store import Store

__all__ = ["After", "Wanted", "after_run", "check_wanted", "read_wanted"]

_CHOICES = ("off", "mail", "webhook", "both")
_MOST_DAYS = 365


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done after a search."""

    publish: bool
    digest: str
    days: int


@dataclass(frozen=True, slots=True)
class After:
    """What was done; ``problems`` name no patient."""

    published: tuple[Published, ...] = ()
    digests: tuple[DigestState, ...] = ()
    problems: tuple[str, ...] = ()


def read_wanted(settings: Settings, search_config: Mapping[str, object]) -> Wanted:
    """Read what a search's configuration asks for; what it leaves open, the settings say.

    ``publish: {enabled: true}``; ``digest: {to: mail, days: 7}``. Raises
    ConfigurationError.
    """
    enabled = _mapping(search_config, "publish", "enabled").get("enabled", settings.publish == "on")
    if not isinstance(enabled, bool):
        raise ConfigurationError("publish.enabled must be true or false")
    digest = _mapping(search_config, "digest", "to", "days")
    # YAML 1.1 reads a bare `off` as false.
    to = digest.get("to", settings.digest)
    to = "off" if to is False else to
    if not isinstance(to, str) or to not in _CHOICES:
        raise ConfigurationError(f"digest.to must be one of {', '.join(_CHOICES)}")
    days = digest.get("days", settings.digest_days)
    if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= _MOST_DAYS:
        raise ConfigurationError(f"digest.days must be a whole number from 1 to {_MOST_DAYS}")
    return Wanted(enabled, to, days)


def check_wanted(settings: Settings, search_config: Mapping[str, object]) -> None:
    """Refuse what could not be done after a search as things are set; ConfigurationError."""
    wanted = read_wanted(settings, search_config)
    if wanted.publish and (settings.source is None or not is_server(settings.source)):
        raise ConfigurationError(
            "publish writes to the FHIR server that the records come from, and the source is none"
        )
    for channel in channels_of(wanted.digest):
        check_channel(settings, channel)


def _mapping(search_config: Mapping[str, object], name: str, *known: str) -> Mapping[str, object]:
    found = search_config.get(name) or {}
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"{name} must be a mapping with {', '.join(known)}")
    for key in found:
        if key not in known:
            raise ConfigurationError(f"{name} has no key {str(key)[:40]!r}")
    return found


def after_run(
    settings: Settings,
    search_config: Mapping[str, object],
    store: Store,
    run_id: int,
    statement: Statement,
) -> After:
    """Write a finished run's results back and send its digest, as far as that is wanted.

    Nothing that goes wrong in one stops the other, or the caller: it is among the problems,
    and tried again after the next search. Raises ConfigurationError only.
    """
    wanted = read_wanted(settings, search_config)
    published: list[Published] = []
    digests: list[DigestState] = []
    problems: list[str] = []
    if wanted.publish:
        for trial in statement.trials:
            try:
                done = publish(settings, store, store.run(run_id), trial.trial)
            except EligibilityError as error:
                problems.append(f"not written back: {error.message}")
                continue
            published.append(done)
            problems += [f"not written back: {problem}" for problem in done.problems]
    for channel in channels_of(wanted.digest):
        try:
            states = deliver_all(settings, store, store.run(run_id), [channel], days=wanted.days)
        except EligibilityError as error:
            problems.append(f"no digest by {channel}: {error.message}")
            continue
        digests += states
        problems += [
            f"digest of run {state.run_id} by {state.channel}: {state.status}, {state.problem}"
            for state in states
            if state.problem is not None
        ]
    return After(tuple(published), tuple(digests), tuple(problems))
