"""Tells by mail or webhook what changed in a run: once, or again when it could not be sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date

import msgspec

from service.config import Settings, check_channel
from service.errors import EligibilityError, UsageError
from service.nightly.sending import Mailbox, NotSent, post_signed, secret_of, send_mail
from service.results.digest import (
    Digest,
    Item,
    Reasoned,
    TrialDigest,
    digest_json,
    digest_text,
    ordered,
    subject_line,
)
from service.results.group import STATUS, subject_id
from service.storage.changes import Change
from service.storage.lapsing import lapsing
from service.storage.sent import Digests, DigestState
from service.storage.store import Run, Store
from service.storage.subjects import Filter, Shown, count_subjects

__all__ = ["CHANNELS", "channels_of", "deliver", "deliver_all", "digest_of"]

CHANNELS = ("mail", "webhook")
_INELIGIBLE = "ineligible"


def channels_of(choice: str) -> tuple[str, ...]:
    """Give the channels of ``off``, ``mail``, ``webhook`` or ``both``."""
    if choice == "off":
        return ()
    return CHANNELS if choice == "both" else (choice,)


def digest_of(
    store: Store, run: Run, *, days: int, base: str, doubtful: Iterable[int] = ()
) -> Digest:
    """Gather what changed in a finished run; raises UsageError for another."""
    if run.status != "finished" or run.purged is not None:
        raise UsageError(f"run {run.id} is not finished, or was purged")
    key = store.subject_key()
    statement = run.statement
    names = {one.trial: one.name for one in statement.trials} if statement else {}
    trials = tuple(
        _trial_digest(store, run, trial, names.get(trial, trial), days, key)
        for trial in run.spec.trials
    )
    # The day is the run's own, never one of a patient's record.
    day = date.fromisoformat(run.spec.as_of).isoformat()
    return Digest(run.id, day, bool(run.complete), base, trials, tuple(doubtful))


def _trial_digest(
    store: Store, run: Run, trial: str, name: str, days: int, key: bytes
) -> TrialDigest:
    new: list[Item] = []
    dropped: list[Item] = []
    unseen = 0

    def item(patient: str, criteria: tuple[Reasoned, ...] = ()) -> Item:
        return Item(subject_id(trial, patient, key), criteria)

    first = run.previous.get(trial) is None
    if first:
        found = store.verdicts(run.id, trial=trial, candidates=True)
        new = [item(verdict.patient) for verdict in found]
    for patient, changes in _by_patient(store.changes(run.id), trial):
        head = changes[0]
        was = head.before is not None and head.before != _INELIGIBLE
        is_now = head.after is not None and head.after != _INELIGIBLE
        if head.kind in ("entered", "not-evaluated-before") and is_now:
            new.append(item(patient))
        elif head.kind == "left" and was:
            dropped.append(item(patient))
        elif head.kind == "not-evaluated-now" and was:
            unseen += 1
        elif head.kind == "verdict" and is_now and not was:
            new.append(item(patient))
        elif head.kind == "verdict" and was and not is_now:
            dropped.append(item(patient, _failing(changes[1:])))
    shown = Shown(trial, run.id, bool(run.complete))
    return TrialDigest(
        trial,
        name,
        count_subjects(store.database, [shown], Filter(statuses=(STATUS,))),
        ordered(new),
        ordered(dropped),
        ordered([item(patient) for patient in lapsing(store, run, trial, days)]),
        unseen,
        days,
        first,
    )


def _by_patient(changes: Iterable[Change], trial: str) -> Iterator[tuple[str, list[Change]]]:
    """Put each patient's changes together; they come one after another."""
    together: list[Change] = []
    for change in changes:
        if change.trial != trial:
            continue
        if together and together[0].patient != change.patient:
            yield together[0].patient, together
            together = []
        together.append(change)
    if together:
        yield together[0].patient, together


def _failing(changes: Iterable[Change]) -> tuple[Reasoned, ...]:
    """List what fails now; of a criterion with parts the parts."""
    failing = [
        Reasoned(change.criterion, change.after_reason or "")
        for change in changes
        if change.criterion is not None and change.after == "fail"
    ]
    names = [one.criterion for one in failing]
    return tuple(
        one for one in failing if not any(name.startswith(f"{one.criterion}.") for name in names)
    )


def deliver(
    settings: Settings, store: Store, run: Run, channel: str, *, days: int | None = None
) -> DigestState:
    """Send a run's digest on a channel unless that was done; say what became of it.

    Raises ConfigurationError for a channel that isn't set up, UsageError, StoreError.
    """
    check_channel(settings, channel)
    digests = Digests(store)
    if digests.claim(run.id, channel):
        try:
            status, problem = _sent(settings, store, run, channel, days, digests)
        except EligibilityError:
            digests.settle(run.id, channel, "failed", "it could not be made")
            raise
        digests.settle(run.id, channel, status, problem)
    found = digests.state(run.id, channel)
    assert found is not None
    return found


def deliver_all(
    settings: Settings,
    store: Store,
    run: Run,
    channels: Iterable[str],
    *,
    days: int | None = None,
) -> list[DigestState]:
    """Send a run's digest, after those of earlier runs that could not be sent."""
    states: list[DigestState] = []
    for channel in channels:
        earlier = [number for number in Digests(store).failed(channel) if number < run.id]
        for number in earlier:
            states.append(deliver(settings, store, store.run(number), channel, days=days))
        states.append(deliver(settings, store, run, channel, days=days))
    return states


def _sent(
    settings: Settings,
    store: Store,
    run: Run,
    channel: str,
    days: int | None,
    digests: Digests,
) -> tuple[str, str | None]:
    """Make and send a digest; give status and problem."""
    assert settings.base_url is not None
    digest = digest_of(
        store,
        run,
        days=settings.digest_days if days is None else days,
        base=settings.base_url,
        doubtful=digests.doubtful(channel, run.id),
    )
    if digest.is_empty:
        return "nothing", None
    # The same for every attempt, and another for another store's run of this number.
    name = f"run-{run.id}-{subject_id(channel, str(run.id), store.subject_key())}"
    try:
        if channel == "mail":
            problem = send_mail(_mailbox(settings), subject_line(digest), digest_text(digest), name)
            return "sent", problem
        assert settings.webhook_url is not None
        assert settings.webhook_secret_file is not None
        body = msgspec.json.encode(digest_json(digest)).decode()
        post_signed(settings.webhook_url, secret_of(settings.webhook_secret_file), body, name)
    except NotSent as error:
        return "uncertain" if error.uncertain else "failed", error.message
    return "sent", None


def _mailbox(settings: Settings) -> Mailbox:
    assert settings.smtp_host is not None
    assert settings.smtp_from is not None
    file = settings.smtp_password_file
    return Mailbox(
        settings.smtp_host,
        settings.smtp_port,
        settings.smtp_security,
        settings.smtp_from,
        settings.smtp_to,
        settings.smtp_user,
        None if file is None else secret_of(file),
    )
