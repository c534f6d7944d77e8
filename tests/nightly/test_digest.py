"""The digest: only what changed, nobody's data, never twice."""

from __future__ import annotations

import base64
import email
import hmac
import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import default
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.cli import main
from service.config import Settings
from service.errors import ConfigurationError, UsageError
from service.nightly import digest as sending_of
from service.nightly.digest import channels_of, deliver, deliver_all, digest_of
from service.nightly.model import Outcome
from service.nightly.sending import signature
from service.results.digest import Digest, Item, digest_json, digest_text, subject_line
from service.results.group import subject_id
from service.storage.sent import Digests
from service.storage.store import Run, Store
from tests.nightly.sinks import MailServer, Receiver, running
from tests.storage.making import DAY, NEXT_DAY, TRIAL, begun, invented, kept, outcomes, shipped

OPEN = {"I1": ("unknown", "no-data"), "I7": ("pass", "value-meets"),
        "I7.alt": ("pass", "value-meets")}  # fmt: skip
OUT = {"I1": ("fail", "value-violates"), "I7": ("fail", "value-violates"),
       "I7.alt": ("fail", "value-violates")}  # fmt: skip
BASE = "https://us.example/fhir"
SECRET = "a secret of enough bytes"  # noqa: S105 - invented


def candidate(name: str, until: str | None = None, as_of: str = DAY) -> Outcome:
    return invented(name, OPEN, valid_until=until, as_of=as_of)


def out(name: str, as_of: str = DAY) -> Outcome:
    return invented(name, OUT, verdict="ineligible", as_of=as_of)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(str(tmp_path / "store.db")) as made:
        yield made


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with running(MailServer) as server:
        yield server


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with running(Receiver) as server:
        yield server


def by_mail(server: MailServer, **more: Any) -> Settings:
    given = {
        "base_url": BASE, "smtp_host": "127.0.0.1", "smtp_port": server.port,
        "smtp_security": "none", "smtp_from": "us@site.example", "smtp_to": ("a@site.example",),
    }  # fmt: skip
    return Settings(**(given | more))


def by_hook(server: Receiver, tmp_path: Path) -> Settings:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    return Settings(base_url=BASE, webhook_url=server.url, webhook_secret_file=file)


def ids(store: Store, *names: str) -> list[str]:
    return sorted(subject_id(TRIAL, f"Patient/{name}", store.subject_key()) for name in names)


def told(store: Store, run: Run, days: int = 7) -> Digest:
    return digest_of(store, run, days=days, base=BASE)


def of(items: tuple[Item, ...]) -> list[str]:
    return [item.id for item in items]


def test_only_what_changed_is_told(store: Store) -> None:
    kept(store, "a", (*map(candidate, ("p1", "p2", "p3")), out("p4"), out("p5")))
    run = kept(store, "b", (candidate("p1"), out("p2"), candidate("p4"), out("p5"),
                            candidate("p6")))  # fmt: skip
    (trial,) = told(store, run).trials
    assert of(trial.new) == ids(store, "p4", "p6")
    assert of(trial.dropped) == ids(store, "p2", "p3")
    reasons = {item.id: [(one.criterion, one.reason) for one in item.criteria]
               for item in trial.dropped}  # fmt: skip
    assert reasons == {
        ids(store, "p2")[0]: [("I1", "value-violates"), ("I7.alt", "value-violates")],
        ids(store, "p3")[0]: [],
    }
    assert (trial.candidates, trial.unseen, trial.lapsing) == (3, 0, ())


def test_the_first_search_tells_all_candidates(store: Store) -> None:
    run = kept(store, "a", (candidate("p1"), out("p2")))
    digest = told(store, run)
    assert of(digest.trials[0].new) == ids(store, "p1")
    assert "Candidates of the first search: 1" in digest_text(digest)


def test_a_night_without_change_has_nothing_to_say(store: Store) -> None:
    kept(store, "a", (candidate("p1"), out("p2")))
    assert told(store, kept(store, "b", (candidate("p1"), out("p2")))).is_empty


def test_whom_an_incomplete_search_did_not_reach_has_not_dropped_out(store: Store) -> None:
    kept(store, "a", (candidate("p1"), candidate("p2"), out("p3")))
    digest = told(store, kept(store, "b", (candidate("p1"),), complete=False))
    assert (digest.trials[0].dropped, digest.trials[0].unseen) == ((), 1)
    assert "not complete" in digest_text(digest)
    assert digest.trials[0].candidates == 2


def test_a_verdict_that_will_lapse_is_told_once(store: Store) -> None:
    near, far = "2026-11-08", "2026-11-09"
    first = kept(store, "a", (candidate("p1", near), candidate("p2", far), out("p3")))
    assert of(told(store, first).trials[0].lapsing) == ids(store, "p1")
    second = (candidate("p1", near, NEXT_DAY), candidate("p2", far, NEXT_DAY))
    run = kept(store, "b", second, NEXT_DAY)
    assert of(told(store, run).trials[0].lapsing) == ids(store, "p2")
    assert of(told(store, run, 5).trials[0].lapsing) == []


def test_a_new_last_day_is_told_anew(store: Store) -> None:
    kept(store, "a", (candidate("p1", "2026-11-05"),))
    run = kept(store, "b", (candidate("p1", "2026-11-06", NEXT_DAY),), NEXT_DAY)
    assert of(told(store, run).trials[0].lapsing) == ids(store, "p1")


def test_nothing_of_a_patient_is_in_it(store: Store) -> None:
    """Over all shipped patients, in each part: no id, name, date or value."""
    everyone = outcomes()
    kept(store, "a", tuple(invented(one.patient[8:], OPEN) for one in everyone[::2]))
    digest = told(store, kept(store, "b", everyone[1:]))
    text = digest_text(digest) + subject_line(digest) + json.dumps(digest_json(digest))
    assert digest.trials[0].new
    assert digest.trials[0].dropped
    assert digest.trials[0].lapsing
    for patient, fetched in shipped().items():
        assert patient not in text
        for item in fetched.items:
            resource = json.loads(item.raw)
            if len(resource.get("id", "")) > 3:
                assert resource["id"] not in text
            if resource["resourceType"] == "Patient":
                for name in resource.get("name", ()):
                    assert name.get("family", "?!") not in text
                assert resource.get("birthDate", "?!") not in text
    for outcome in everyone:
        if outcome.valid_until is not None:
            assert outcome.valid_until not in text


def test_entries_are_in_an_order_that_tells_nothing(store: Store) -> None:
    names = [f"p{number}" for number in range(9)]
    digest = told(store, kept(store, "a", tuple(map(candidate, names))))
    links = [line.strip() for line in digest_text(digest).splitlines() if BASE in line]
    assert links == [f"{BASE}/ResearchSubject/{name}" for name in ids(store, *names)]


def test_a_long_list_is_cut_and_counted(store: Store) -> None:
    names = [f"p{number}" for number in range(203)]
    digest = told(store, kept(store, "a", tuple(map(candidate, names))))
    assert "and 3 more" in digest_text(digest)
    (trial,) = digest_json(digest)["trials"]
    assert (trial["counts"]["new"], len(trial["new"])) == (203, 200)


def test_a_run_that_is_not_finished_has_no_digest(store: Store) -> None:
    with store.locked() as writer, pytest.raises(UsageError):
        told(store, begun(writer).run)


def sent(server: MailServer) -> EmailMessage:
    message = email.message_from_string(server.messages[-1], policy=default)
    assert isinstance(message, EmailMessage)
    return message


def test_a_mail_is_sent_once(store: Store, mail: MailServer) -> None:
    run = kept(store, "a", (candidate("p1"),))
    settings = by_mail(mail, smtp_to=("a@site.example", "b@site.example"))
    assert deliver(settings, store, run, "mail").status == "sent"
    message = sent(mail)
    assert message["To"] == "a@site.example, b@site.example"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Subject"] == f"Candidates, {DAY}: {TRIAL}: 1 new"
    assert f"{BASE}/ResearchSubject/{ids(store, 'p1')[0]}" in message.get_content()
    assert "p1" not in mail.messages[0].replace(ids(store, "p1")[0], "")
    assert deliver(settings, store, run, "mail").status == "sent"
    assert len(mail.messages) == 1


def test_nothing_to_say_sends_nothing(store: Store, mail: MailServer) -> None:
    kept(store, "a", (candidate("p1"),))
    run = kept(store, "b", (candidate("p1"),))
    assert deliver(by_mail(mail), store, run, "mail").status == "nothing"
    assert mail.said == []


@pytest.mark.parametrize("command", ["EHLO", "MAIL", "RCPT", "DATA"])
def test_what_was_refused_is_sent_with_the_next_one(
    store: Store, mail: MailServer, command: str
) -> None:
    settings = by_mail(mail)
    first = kept(store, "a", (candidate("p1"),))
    mail.answers = {command: 451, "HELO": 451}
    state = deliver(settings, store, first, "mail")
    assert state.status == "failed"
    assert "site.example" not in str(state.problem)
    mail.answers = {}
    second = kept(store, "b", (candidate("p1"), candidate("p2")))
    found = deliver_all(settings, store, second, ["mail"])
    assert [(one.run_id, one.status, one.attempts) for one in found] == [
        (first.id, "sent", 2), (second.id, "sent", 1)
    ]  # fmt: skip
    assert len(mail.messages) == 2


def test_a_mail_server_that_is_not_there_is_tried_later(store: Store, mail: MailServer) -> None:
    run = kept(store, "a", (candidate("p1"),))
    nowhere = by_mail(mail, smtp_port=1)
    assert deliver(nowhere, store, run, "mail").status == "failed"
    assert deliver(by_mail(mail), store, run, "mail").status == "sent"


def test_what_may_have_arrived_is_not_sent_again_but_told(store: Store, mail: MailServer) -> None:
    settings = by_mail(mail)
    first = kept(store, "a", (candidate("p1"),))
    mail.answers = {"MESSAGE": 0}
    assert deliver(settings, store, first, "mail").status == "uncertain"
    mail.answers = {}
    second = kept(store, "b", (candidate("p1"), candidate("p2")))
    deliver_all(settings, store, second, ["mail"])
    (message,) = mail.messages
    assert f"not known whether the digest of run {first.id} arrived" in message


def test_a_process_that_died_while_sending_sends_no_second_one(
    store: Store, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        """The process dies."""

    def die(*given: object) -> None:
        raise Crash

    run = kept(store, "a", (candidate("p1"),))
    with monkeypatch.context() as patched:
        patched.setattr(sending_of, "send_mail", die)
        with pytest.raises(Crash):
            deliver(by_mail(mail), store, run, "mail")
    assert deliver(by_mail(mail), store, run, "mail").status == "sending"
    assert mail.messages == []
    assert Digests(store).doubtful("mail", run.id + 1) == [run.id]


def test_receivers_that_are_refused_are_told(store: Store, mail: MailServer) -> None:
    run = kept(store, "a", (candidate("p1"),))
    settings = by_mail(mail, smtp_to=("unknown@site.example", "b@site.example"))
    state = deliver(settings, store, run, "mail")
    assert (state.status, state.problem) == ("sent", "1 of 2 receivers were refused (550)")


def certificate(folder: Path) -> Path:
    """Make a certificate of this machine, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


def test_passwords_go_only_over_an_encrypted_connection(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    password = tmp_path / "password"
    password.write_text("open sesame\n", encoding="utf-8")
    run = kept(store, "a", (candidate("p1"),))
    more = {"smtp_security": "starttls", "smtp_user": "me", "smtp_password_file": password}
    with running(partial(MailServer, context)) as mail:
        state = deliver(by_mail(mail, **more), store, run, "mail")
        assert (state.status, "certificate" in str(state.problem)) == ("failed", True)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert deliver(by_mail(mail, **more), store, run, "mail").status == "sent"
        (signed_in,) = (one for one in mail.said if one.startswith("AUTH"))
        assert base64.b64decode(signed_in.split()[-1]) == b"\0me\0open sesame"
        assert mail.said.index("STARTTLS") < mail.said.index(signed_in)
    with running(MailServer) as mail:
        again = kept(store, "b", (candidate("p2"),))
        state = deliver(by_mail(mail, **more), store, again, "mail")
        assert (state.status, "STARTTLS" in str(state.problem)) == ("failed", True)
        assert not any(one.startswith("AUTH") for one in mail.said)


def test_a_webhook_is_signed_and_posted_once(store: Store, hook: Receiver, tmp_path: Path) -> None:
    run = kept(store, "a", (candidate("p1"),))
    settings = by_hook(hook, tmp_path)
    assert deliver(settings, store, run, "webhook").status == "sent"
    assert deliver(settings, store, run, "webhook").status == "sent"
    ((headers, body),) = hook.taken
    signed = b".".join(
        (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body)
    )
    expected = base64.b64encode(hmac.new(SECRET.encode(), signed, "sha256").digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    (trial,) = json.loads(body)["trials"]
    assert trial["new"] == [{"link": f"{BASE}/ResearchSubject/{ids(store, 'p1')[0]}"}]
    assert "p1" not in body.decode().replace(ids(store, "p1")[0], "")


@pytest.mark.parametrize(
    ("status", "expected"), [(302, "failed"), (500, "failed"), (410, "failed"), (None, "uncertain")]
)
def test_a_webhook_that_does_not_take_it_gets_it_later_with_the_same_id(
    store: Store, hook: Receiver, tmp_path: Path, status: int | None, expected: str
) -> None:
    run = kept(store, "a", (candidate("p1"),))
    settings = by_hook(hook, tmp_path)
    hook.status, hook.headers = status, {"Location": hook.url}
    assert deliver(settings, store, run, "webhook").status == expected
    assert len(hook.taken) == 1
    hook.status = 200
    state = deliver(settings, store, run, "webhook")
    if expected == "failed":
        assert state.status == "sent"
        assert len({headers["webhook-id"] for headers, _ in hook.taken}) == 1
    else:
        assert state.status == "uncertain"
        assert len(hook.taken) == 1


def test_a_webhook_that_cannot_be_reached_gets_it_later(
    store: Store, hook: Receiver, tmp_path: Path
) -> None:
    run = kept(store, "a", (candidate("p1"),))
    settings = replace(by_hook(hook, tmp_path), webhook_url="http://127.0.0.1:1/")
    assert deliver(settings, store, run, "webhook").status == "failed"


def test_secrets_may_be_written_as_standard_webhooks_do() -> None:
    key = b"0123456789abcdef"
    written = f"whsec_{base64.b64encode(key).decode()}"
    assert signature(written, "a", 1, "{}") == signature(key.decode(), "a", 1, "{}")
    for wrong in ("short", "whsec_AAAA", "whsec_!"):
        with pytest.raises(ConfigurationError):
            signature(wrong, "a", 1, "{}")


def test_a_channel_that_is_not_set_up_is_named(store: Store) -> None:
    run = kept(store, "a", (candidate("p1"),))
    for channel in channels_of("both"):
        with pytest.raises(ConfigurationError, match="ELIGIBILITY_"):
            deliver(Settings(), store, run, channel)
        assert Digests(store).state(run.id, channel) is None
    assert channels_of("off") == ()


def test_the_command_prints_and_sends(store: Store, hook: Receiver, tmp_path: Path) -> None:
    kept(store, "a", (candidate("p1"),))
    by_hook(hook, tmp_path)
    given = ["digest", "--store", str(tmp_path / "store.db"), "--base-url", BASE]
    printed = CliRunner().invoke(main, [*given, "--print"])
    assert printed.exit_code == 0
    assert ids(store, "p1")[0] in printed.stdout
    assert hook.taken == []
    options = [*given, "--webhook-url", hook.url, "--webhook-secret-file", str(tmp_path / "secret")]
    assert CliRunner().invoke(main, options).exit_code == 2
    hook.status = 500
    assert CliRunner().invoke(main, [*options, "--to", "webhook"]).exit_code == 1
    hook.status = 200
    done = CliRunner().invoke(main, [*options, "--to", "webhook"])
    assert (done.exit_code, "sent" in done.stderr) == (0, True)
    kept(store, "b", (candidate("p1"),))
    assert "nothing changed" in CliRunner().invoke(main, [*given, "--print"]).stderr
