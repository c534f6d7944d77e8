"""Sends a digest: by mail (SMTP), or to a webhook (a signed POST).

Source: RFC 5321, RFC 3207 (STARTTLS); Standard Webhooks 1.0 (headers and signature). No text
of an error holds an address, a password or a server's words.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import smtplib
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from pathlib import Path

import requests
import urllib3

from service.errors import ConfigurationError, EligibilityError, SourceError
from service.fhir.http import Limits, Outgoing, Transport

_SECONDS = 30.0
_OK = 250
_RELAYED = 251
_SHORTEST_SECRET = 16
_REPLY = 64 * 1024


class NotSent(EligibilityError):
    """A message was not sent; ``uncertain``: it may have been, all the same."""

    code = "transient"

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mail server, and who writes to whom; ``security``: starttls, tls or none."""

    host: str
    port: int
    security: str
    sender: str
    receivers: tuple[str, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def secret_of(file: Path) -> str:
    """Read a password or secret; raises ConfigurationError."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file.name} can't be read") from error
    if not text:
        raise ConfigurationError(f"{file.name} is empty")
    return text


def send_mail(mailbox: Mailbox, subject: str, text: str, name: str) -> str | None:
    """Send a mail; ``name`` goes to its Message-ID, the same whenever it is tried.

    Gives a problem if some receivers were refused. Raises NotSent.
    """
    message = _message(mailbox, subject, text, name)
    server = _connected(mailbox)
    try:
        with suppress(smtplib.SMTPException, OSError):
            return _handed_over(server, mailbox, message)
    finally:
        with suppress(smtplib.SMTPException, OSError):
            server.quit()
        server.close()
    raise NotSent("the connection to the mail server was lost before the message was sent")


def _message(mailbox: Mailbox, subject: str, text: str, name: str) -> bytes:
    message = EmailMessage(policy=SMTP)
    message["From"] = mailbox.sender
    message["To"] = ", ".join(mailbox.receivers)
    message["Subject"] = " ".join(subject.split())
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{name}@{mailbox.sender.rpartition('@')[2]}>"
    # So that nobody's absence notice answers (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text, cte="quoted-printable")
    return message.as_bytes()


def _connected(mailbox: Mailbox) -> smtplib.SMTP:
    """Connect, encrypt and sign in."""
    server: smtplib.SMTP | None = None
    try:
        if mailbox.security == "tls":
            context = ssl.create_default_context()
            server = smtplib.SMTP_SSL(mailbox.host, mailbox.port, timeout=_SECONDS, context=context)
        else:
            server = smtplib.SMTP(mailbox.host, mailbox.port, timeout=_SECONDS)
            if mailbox.security == "starttls":
                server.starttls(context=ssl.create_default_context())
        server.ehlo_or_helo_if_needed()
        if mailbox.user is not None and mailbox.password is not None:
            server.login(mailbox.user, mailbox.password)
    except (smtplib.SMTPException, OSError) as error:
        if server is not None:
            server.close()
        raise NotSent(_why(error)) from error
    return server


def _why(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"the mail server refuses the user ({error.smtp_code})"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "the mail server offers no STARTTLS, or no sign-in"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the mail server's certificate is not trusted (set SSL_CERT_FILE)"
    return f"the mail server could not be used ({type(error).__name__})"


def _handed_over(server: smtplib.SMTP, mailbox: Mailbox, message: bytes) -> str | None:
    """Hand a message over, step by step, so as to know whether it may have arrived."""
    code, _ = server.mail(mailbox.sender)
    if code != _OK:
        raise NotSent(f"the mail server refuses the sender ({code})")
    codes = [server.rcpt(receiver)[0] for receiver in mailbox.receivers]
    refused = [code for code in codes if code not in (_OK, _RELAYED)]
    if len(refused) == len(codes):
        raise NotSent(f"the mail server refuses all receivers ({refused[0]})")
    try:
        code, _ = server.data(message)
    except smtplib.SMTPDataError as error:
        raise NotSent(f"the mail server refuses the message ({error.smtp_code})") from error
    except (smtplib.SMTPException, OSError) as error:
        raise NotSent(
            "the mail server did not confirm the message, which may have been sent",
            uncertain=True,
        ) from error
    if code != _OK:
        raise NotSent(f"the mail server refuses the message ({code})")
    if refused:
        return f"{len(refused)} of {len(codes)} receivers were refused ({refused[0]})"
    return None


def signature(secret: str, name: str, instant: int, body: str) -> str:
    """Sign a message as Standard Webhooks do: HMAC-SHA256 over id, time and body."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error as error:
            raise ConfigurationError("the webhook's secret is not base64 after whsec_") from error
    if len(key) < _SHORTEST_SECRET:
        raise ConfigurationError(f"the webhook's secret is shorter than {_SHORTEST_SECRET} bytes")
    digest = hmac.new(key, f"{name}.{instant}.{body}".encode(), "sha256").digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def post_signed(url: str, secret: str, body: str, name: str) -> None:
    """POST a JSON text once; redirects are not followed. Raises NotSent.

    ``name`` is the message's id, by which the receiver knows one that it has already.
    """
    instant = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "Accept": "*/*",
        "webhook-id": name,
        "webhook-timestamp": str(instant),
        "webhook-signature": signature(secret, name, instant, body),
    }
    limits = Limits(read=_SECONDS, attempts=1, body=_REPLY)
    transport = Transport(limits, what="the webhook")
    try:
        outgoing = Outgoing("POST", url, headers, lambda: body, attempts=1)
        reply = transport.send(outgoing, time.monotonic() + 2 * _SECONDS)
    except SourceError as error:
        never = _never_sent(error.__cause__)
        raise NotSent(error.message, uncertain=not never) from error
    finally:
        transport.close()
    if not 200 <= reply.status < 300:
        raise NotSent(f"the webhook answers {reply.phrase}")


def _never_sent(error: BaseException | None) -> bool:
    """Tell whether no connection was made, so that nothing can have arrived."""
    if isinstance(error, requests.ConnectTimeout | requests.exceptions.SSLError):
        return True
    if not isinstance(error, requests.ConnectionError) or not error.args:
        return False
    reason = getattr(error.args[0], "reason", None)
    return isinstance(reason, urllib3.exceptions.NewConnectionError)
