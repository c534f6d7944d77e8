"""Files of a Bulk Data export: from where they may be fetched, and brought safely to disk.

Source: FHIR Bulk Data Access 3.0, "Bulk Data Output File Request". A file's address comes
from the server's manifest: it decides neither a name on disk nor who gets the token.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from urllib.parse import urljoin, urlsplit

from service.errors import EligibilityError, SourceError
from service.fhir.http import Auth, Cut, Outgoing, Reply, Transport, is_loopback, origin

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_GZIP = b"\x1f"  # JSON never begins so
_STEP = 1_048_576
_AS_GZIP = 31  # tells zlib to expect gzip's header and checksum
_NOT_AN_ADDRESS = re.compile(r"[\x00-\x20\\\x7f]")

SHORT = "it holds fewer resources than its manifest counts"


class NotWritten(EligibilityError):
    """A file could not be written to disk (full, read-only)."""


class Stale(SourceError):
    """A file's link does not hold, or no longer."""

    code = "expired"


def resolve(host: str) -> list[str]:
    """Look up a host's addresses; none if that fails (as behind a proxy)."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):
        return []


class Short(Cut):
    """A file holds less than its manifest says."""


class Addresses:
    """Which addresses may be asked for files, and which get the token.

    The server's own origin and those in ``trusted`` do; of others only public https hosts
    are asked, never with the token: a manifest must not lead into the local network.
    """

    def __init__(
        self,
        base: str,
        trusted: Iterable[str] = (),
        lookup: Callable[[str], Iterable[str]] = resolve,
    ) -> None:
        self._base = urlsplit(base)
        self._trusted = {origin(urlsplit(url)) for url in (base, *trusted)}
        self._lookup = lookup
        self._public: set[str] = set()

    def upgraded(self, url: str) -> str:
        """Give an address of this server's with its own scheme.

        Servers behind a proxy often name themselves with http.
        """
        parts = urlsplit(url)
        own = self._base.scheme == "https" and parts.scheme == "http" and parts.port in (None, 80)
        same = (parts.hostname or "").lower() == (self._base.hostname or "").lower()
        if own and same and self._base.port in (None, 443):
            return parts._replace(scheme="https", netloc=self._base.netloc).geturl()
        return url

    def trusts(self, url: str) -> bool:
        """Whether an address may have the token."""
        return origin(urlsplit(url)) in self._trusted

    def check(self, url: str) -> None:
        """Raise SourceError for an address that is not to be asked."""
        refused = SourceError("the FHIR server names a file at an address that is not asked")
        if _NOT_AN_ADDRESS.search(url):
            raise refused
        try:
            parts = urlsplit(url)
            scheme, host, _ = origin(parts)
        except ValueError as error:
            raise refused from error
        if scheme not in ("http", "https") or not host or parts.username is not None:
            raise refused
        if self.trusts(url) or (is_loopback(parts) and is_loopback(self._base)):
            return
        if scheme != "https" or not self._is_public(host):
            raise refused

    def _is_public(self, host: str) -> bool:
        if host not in self._public:
            if not all(_is_global(address) for address in self._found(host)):
                return False
            self._public.add(host)
        return True

    def _found(self, host: str) -> Iterable[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            return self._lookup(host)


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.split("%", maxsplit=1)[0]).is_global
    except ValueError:
        return False


class Fetcher:
    """Fetches files of one export; shared by threads."""

    def __init__(self, transport: Transport, auth: Auth, addresses: Addresses) -> None:
        self._transport = transport
        self._auth = auth
        self._addresses = addresses

    def fetch(
        self, url: str, path: Path, expected: int | None, *, token: bool, deadline: float
    ) -> int:
        """Bring a file of at least ``expected`` lines to disk; gives how many it has.

        ``token``: whether the manifest says that files need the access token. The file
        appears only when it is whole. Raises SourceError (Cut, Short, Stale) or NotWritten.
        """
        with Part(path) as part:
            reply = self._follow(self._addresses.upgraded(url), part, token, deadline)
            if reply.status in (*_REFUSED, HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise Stale(f"a file of the export was refused ({reply.phrase})")
            if reply.status != HTTPStatus.OK:
                raise SourceError(f"a file of the export was not given ({reply.phrase})")
            return part.finish(expected)

    def _follow(self, url: str, part: Part, token: bool, deadline: float) -> Reply:
        redirected = False
        for _ in range(_MOST_REDIRECTS + 1):
            self._addresses.check(url)
            own = self._addresses.trusts(url)
            if token and not own and not redirected:
                raise SourceError(
                    "a file of the export needs the token but is at another address, which "
                    "does not get it"
                )
            # A redirect leads to signed links, which refuse a token or need none; only our
            # own server, asking for one, gets it there.
            reply = self._ask(url, part, token and not redirected, deadline)
            if reply.status in _REFUSED and token and redirected and own:
                reply = self._ask(url, part, True, deadline)
            location = reply.headers.get("Location")
            if reply.status not in _REDIRECTS or not location:
                return reply
            url, redirected = urljoin(url, location), True
        raise SourceError("a file of the export is redirected without end")

    def _ask(self, url: str, part: Part, token: bool, deadline: float) -> Reply:
        request = Outgoing("GET", url, {"Accept": "application/fhir+ndjson"})
        if not token:
            return self._transport.download(request, part.take, deadline)
        value = self._auth.token(deadline)
        reply = self._transport.download(_with(request, value), part.take, deadline)
        if reply.status == HTTPStatus.UNAUTHORIZED and value is not None:
            renewed = self._auth.renew(value, deadline)
            if renewed is not None:
                return self._transport.download(_with(request, renewed), part.take, deadline)
        return reply


def _with(request: Outgoing, token: str | None) -> Outgoing:
    if token is None:
        return request
    return replace(request, headers={**request.headers, "Authorization": f"Bearer {token}"})


class Part:
    """A file on its way: unpacked, counted, checked, and given its name only when whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._unpack: zlib._Decompress | None = None
        self._begun = False
        self._first = self._last = b""
        self._lines = 0

    def __enter__(self) -> Part:
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise _not_written(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What is left of a broken file is of no use; closing may fail on a full disk again.
        try:
            self._file.close()
            self._part.unlink(missing_ok=True)
        except OSError as failed:
            if kind is None:
                raise _not_written(failed) from failed

    def take(self, piece: bytes) -> None:
        """Take what came next; raises Cut for a damaged gzip, NotWritten."""
        if not self._begun:
            self._begun = True
            self._unpack = zlib.decompressobj(_AS_GZIP) if piece.startswith(_GZIP) else None
        if self._unpack is None:
            self._write(piece)
            return
        try:
            self._unpacked(self._unpack, piece)
        except zlib.error as error:
            raise Cut("a file of the export is damaged") from error

    def _unpacked(self, unpack: zlib._Decompress, piece: bytes) -> None:
        """Unpack in steps, since little gzip may hold very much; members may follow another."""
        if unpack.eof:
            unpack = self._unpack = zlib.decompressobj(_AS_GZIP)
        while True:
            content = unpack.decompress(piece, _STEP)
            self._write(content)
            if unpack.eof:
                piece = unpack.unused_data.lstrip(b"\0")
                if not piece:
                    return
                unpack = self._unpack = zlib.decompressobj(_AS_GZIP)
            else:
                piece = unpack.unconsumed_tail
                if not piece and len(content) < _STEP:
                    return

    def _write(self, content: bytes) -> None:
        if not content:
            return
        try:
            self._file.write(content)
        except OSError as error:
            raise _not_written(error) from error
        self._lines += content.count(b"\n")
        self._first = self._first or content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        # The last line may end without a line's end, or with blanks after it.
        tail = (self._last + content[-64:])[-64:]
        self._last = tail

    def finish(self, expected: int | None) -> int:
        """Check the file, make it safe and give it its name; gives its number of lines.

        Raises Cut if its end is missing or it holds no JSON lines, Short, or NotWritten.
        """
        if self._unpack is not None and not self._unpack.eof:
            raise Cut("a file of the export broke off")
        end = self._last.rstrip()
        if self._first not in (b"", b"{") or (end and not end.endswith(b"}")):
            raise Cut("a file of the export broke off or is not NDJSON")
        lines = self._lines + (0 if self._last.endswith(b"\n") or not self._last else 1)
        if expected is not None and lines < expected:
            raise Short(SHORT)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._part.replace(self._path)
        except OSError as error:
            raise _not_written(error) from error
        return lines


def _not_written(error: OSError) -> NotWritten:
    return NotWritten(f"the export can't be written to disk ({os.strerror(error.errno or 0)})")
