"""What is done after a scheduled search, and what its configuration may ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from service.config import Settings
from service.errors import ConfigurationError
from service.nightly.after import Wanted, after_run, read_wanted
from service.storage.store import Run, Store
from tests.nightly.fhirserver import Answer, FhirServer, serving
from tests.nightly.sinks import Receiver, running
from tests.storage.making import MATERIALS, invented, spec_of, statement_of

SECRET = "a secret of enough bytes"  # noqa: S105 - invented


@pytest.fixture
def server() -> Iterator[FhirServer]:
    with serving(FhirServer()) as made:
        yield made


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with running(Receiver) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(str(tmp_path / "store.db")) as made:
        yield made


@pytest.fixture
def settings(server: FhirServer, hook: Receiver, tmp_path: Path) -> Settings:
    secret = tmp_path / "secret"
    secret.write_text(SECRET, encoding="utf-8")
    return Settings(
        source=server.base, base_url=server.base, webhook_url=hook.url, webhook_secret_file=secret
    )


def finished(store: Store, server: FhirServer, key: str, *names: str) -> Run:
    with store.locked() as writer:
        opened = writer.begin(spec_of(source=server.base), key=key, materials=MATERIALS)
        opened.add([invented(name, {"I1": ("unknown", "no-data")}) for name in names])
        return opened.finish(statement_of(opened.run))


def test_nothing_is_done_unless_it_is_wanted(
    store: Store, server: FhirServer, hook: Receiver, settings: Settings
) -> None:
    run = finished(store, server, "a", "p1")
    assert run.statement is not None
    done = after_run(settings, {}, store, run.id, run.statement)
    assert (done.published, done.digests, done.problems) == ((), (), ())
    assert server.asked == hook.taken == []


@pytest.mark.parametrize("by_settings", [True, False])
def test_what_is_wanted_is_done(
    store: Store, server: FhirServer, hook: Receiver, settings: Settings, by_settings: bool
) -> None:
    run = finished(store, server, "a", "p1")
    assert run.statement is not None
    config: Mapping[str, object] = {"publish": {"enabled": True}, "digest": {"to": "webhook"}}
    if by_settings:
        settings, config = replace(settings, publish="on", digest="webhook"), {}
    done = after_run(settings, config, store, run.id, run.statement)
    assert done.problems == ()
    assert [one.created for one in done.published] == [3]
    assert [one.status for one in done.digests] == ["sent"]
    assert (len(server.all("Group")), len(hook.taken)) == (1, 1)


def test_what_goes_wrong_stops_nothing_and_is_done_the_next_time(
    store: Store, server: FhirServer, hook: Receiver, settings: Settings
) -> None:
    settings = replace(settings, publish="on", digest="webhook")
    first = finished(store, server, "a", "p1")
    assert first.statement is not None
    server.before = lambda asked: Answer(403)
    hook.status = 500
    done = after_run(settings, {}, store, first.id, first.statement)
    assert len(done.problems) == 2
    server.before = lambda asked: None
    hook.status = 200
    second = finished(store, server, "b", "p1", "p2")
    assert second.statement is not None
    done = after_run(settings, {}, store, second.id, second.statement)
    assert done.problems == ()
    assert [(one.run_id, one.status) for one in done.digests] == [
        (first.id, "sent"), (second.id, "sent")
    ]  # fmt: skip
    assert len(server.all("ResearchSubject")) == 2


def test_what_the_configuration_leaves_open_the_settings_say() -> None:
    settings = Settings(publish="on", digest="mail", digest_days=3)
    assert read_wanted(settings, {}) == Wanted(True, "mail", 3)
    config = {"publish": {"enabled": False}, "digest": {"to": False, "days": 5}}
    assert read_wanted(settings, config) == Wanted(False, "off", 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"publish": "yes"},
        {"publish": {"enabled": "yes"}},
        {"publish": {"enable": True}},
        {"digest": {"to": "pigeon"}},
        {"digest": {"to": "mail", "days": 0}},
        {"digest": {"to": "mail", "days": True}},
        {"digest": {"when": "now"}},
    ],
)
def test_a_wrong_configuration_is_refused(wrong: Mapping[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        read_wanted(Settings(), wrong)
