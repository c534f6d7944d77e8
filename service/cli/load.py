"""``eligibility load``: puts the shipped patients on a FHIR server."""

from __future__ import annotations

import time
from http import HTTPStatus
from pathlib import Path

import click
import msgspec

from service.cli.options import settings_options
from service.cli.progress import clear_line, tracked
from service.cli.unread import name_unread
from service.config import SETTINGS, is_server, load_settings
from service.errors import SourceError, UsageError
from service.fhir.auth import Auth
from service.fhir.files import FileSource
from service.fhir.http import Limits, Reply, Transport
from service.fhir.record import CLINICAL_TYPES
from service.fhir.source import Wanted
from service.fhir.transactions import transaction
from service.wiring import build_auth, data_dir

_EVERYTHING = Wanted(dict.fromkeys(CLINICAL_TYPES))
_SECONDS_PER_PATIENT = 120.0
_PAUSE = 2.0
_EPILOG = """\
\b
Examples:
  eligibility load --to http://localhost:8080/fhir
  eligibility load --to http://localhost:8080/fhir --wait 300
\b
Loading again replaces what was loaded: each resource is put under its own id.
Exit codes: 0 all loaded, 1 some patient was not or some file could not be read (each named),
2 wrong usage. Resources that are left out are named with the reason.
"""


class _Server:
    """The FHIR server that is loaded; sends with its token and renews that once."""

    def __init__(self, base: str, auth: Auth) -> None:
        self._base = base
        self._auth = auth
        self._transport = Transport(Limits(circuit_failures=1_000_000))

    def send(self, method: str, path: str, body: bytes | None, seconds: float) -> Reply:
        """Send one request; raises SourceError."""
        deadline = time.monotonic() + seconds
        token = self._auth.token(deadline)
        reply = self._once(method, path, body, deadline, token)
        if reply.status == HTTPStatus.UNAUTHORIZED and token is not None:
            renewed = self._auth.renew(token, deadline)
            if renewed is not None:
                reply = self._once(method, path, body, deadline, renewed)
        return reply

    def _once(
        self, method: str, path: str, body: bytes | None, deadline: float, token: str | None
    ) -> Reply:
        headers = {"Accept": "application/fhir+json"}
        if body is not None:
            headers["Content-Type"] = "application/fhir+json"
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        text = None if body is None else body.decode()
        return self._transport.request(
            method, self._base + path, headers=headers, form=text, deadline=deadline
        )

    def wait(self, seconds: int) -> None:
        """Wait until the server answers; raises SourceError when it does not in time."""
        until = time.monotonic() + seconds
        while True:
            try:
                if self.send("GET", "/metadata", None, 10.0).status == HTTPStatus.OK:
                    return
            except SourceError:
                if time.monotonic() >= until:
                    raise
            if time.monotonic() >= until:
                raise SourceError("the FHIR server did not get ready in time")
            time.sleep(_PAUSE)


class _Issue(msgspec.Struct):
    code: str = ""
    expression: list[str] = []


class _Outcome(msgspec.Struct):
    issue: list[_Issue] = []


def _refusal(reply: Reply) -> str:
    """Say how the server refused: status and issue codes, not its texts (they may quote data)."""
    try:
        issues = msgspec.json.decode(reply.body, type=_Outcome).issue
    except (msgspec.MsgspecError, UnicodeDecodeError):
        issues = []
    codes = ", ".join(" ".join((issue.code, *issue.expression[:1])) for issue in issues[:3])
    return f"refused with {reply.phrase}" + (f" ({codes})" if codes else "")


@click.command(epilog=_EPILOG)
@click.option("--to", "target", metavar="URL", required=True, help="Base URL of the FHIR server.")
@click.option(
    "--from",
    "folder",
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Folder or file with other patients than the shipped ones.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.IntRange(0, 3600),
    default=0,
    help="Wait up to so long for the server to answer.",
)
@settings_options(*(setting.field for setting in SETTINGS if setting.field.startswith("source_")))
def command(target: str, folder: Path | None, wait: int, **flags: str | None) -> None:
    """Put the shipped, invented patients on a FHIR server, a transaction for each."""
    settings = load_settings(flags={**flags, "source": target})
    assert settings.source is not None
    if not is_server(settings.source):
        raise UsageError("--to must be the http:// or https:// URL of a FHIR server")
    server = _Server(settings.source.rstrip("/"), build_auth(settings))
    server.wait(wait)
    source = FileSource(folder or data_dir() / "fixtures" / "patients")
    loaded = left_out = failed = 0
    patients = list(source.patient_ids())
    unread = name_unread(source)
    said: set[str] = set()
    for patient in tracked(patients, "loading"):
        prepared = transaction(source.fetch(patient, _EVERYTHING).items)
        reply = server.send("POST", "", prepared.body, _SECONDS_PER_PATIENT)
        if reply.status != HTTPStatus.OK:
            failed += 1
            clear_line()
            click.echo(f"Patient/{patient}: {_refusal(reply)}", err=True)
            continue
        loaded += prepared.loaded
        left_out += prepared.left_out
        # What can't be read and is nobody's comes with every patient, but is said once.
        for reason in dict.fromkeys(prepared.reasons):
            if reason not in said:
                said.add(reason)
                clear_line()
                click.echo(f"left out: {reason}", err=True)
    click.echo(f"{len(patients) - failed} patients, {loaded} resources; {left_out} left out")
    if failed or unread:
        raise click.exceptions.Exit(1)
