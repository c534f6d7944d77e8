"""HTTP to one server: limits, retries, a circuit for a dead server, and rules on origins.

Nothing here knows FHIR. Texts of errors name hosts, statuses and exceptions' kinds, never
a URL's path or query (they hold patients' ids), a body, or a token.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Protocol
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from service import __version__
from service.errors import ConfigurationError, SourceError, SourceTimeout

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
# A 500 may concern one resource only (Oracle Health answers so for a single bad record),
# and 408 and 429 come from a server that is alive: they don't open the circuit.
_DEAD = frozenset({502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# After these a POST becomes a GET, as browsers and libraries have always done.
_TO_GET = frozenset({301, 302, 303})
_PORTS = {"http": 80, "https": 443}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CHUNK = 65_536
_MAY_BE_NONE = frozenset({"backoff", "redirects", "outage"})
_MOST_DIGITS = 9  # of a Retry-After; more is decades
_NETWORK_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on time, size and number of requests; seconds and bytes.

    ``fetch``: for everything read of one patient. ``retry_after``: the longest wait that a
    server's Retry-After can impose. ``body``: one reply, decompressed; ``search``: all
    pages of one search. ``pages`` and ``entries``: of one search. ``population``: pages of
    the list of patients. ``references``: single reads of what a record refers to.
    ``parallel``: searches of one patient at a time; ``crowd``: requests of a search of many
    patients at a time. ``outage``: how long such a search waits for a server that is gone.
    """

    connect: float = 5.0
    read: float = 30.0
    fetch: float = 90.0
    attempts: int = 4
    backoff: float = 0.5
    backoff_ceiling: float = 8.0
    retry_after: float = 30.0
    body: int = 64 * 1024 * 1024
    search: int = 256 * 1024 * 1024
    pages: int = 500
    entries: int = 50_000
    population: int = 100_000
    references: int = 200
    redirects: int = 5
    parallel: int = 6
    crowd: int = 4
    outage: float = 300.0
    circuit_failures: int = 3
    circuit_seconds: float = 30.0
    metadata_age: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse numbers that would make the source useless."""
        for name in self.__slots__:
            if getattr(self, name) < (0 if name in _MAY_BE_NONE else 0.001):
                raise ConfigurationError(f"the limit {name} must be above zero")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request; ``form`` makes its body anew for each attempt, as some may be sent only once.

    ``attempts`` bounds the retries more tightly than the limits do.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    form: Callable[[], str] | None = None
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer; ``body`` is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    @property
    def phrase(self) -> str:
        """Give the status with the standard's own words for it (not the server's)."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)


class TooLarge(SourceError):
    """A reply exceeds the limit on its size."""

    code = "too-costly"


class Cut(SourceError):
    """A reply broke off before its end."""

    code = "incomplete"


class Auth(Protocol):
    """How requests to a server are authorised."""

    def token(self, deadline: float) -> str | None:
        """Give a bearer token that is valid now, or None; raises SourceError."""

    def renew(self, refused: str, deadline: float) -> str | None:
        """Give another token after the server refused one with 401, or None if there is none."""


def origin(url: SplitResult) -> tuple[str, str, int | None]:
    """Give scheme, host and effective port; raises ValueError for an impossible port."""
    scheme = url.scheme.lower()
    return scheme, (url.hostname or "").lower(), url.port or _PORTS.get(scheme)


def is_loopback(url: SplitResult) -> bool:
    """Whether a URL's host is this machine."""
    return (url.hostname or "").lower() in _LOOPBACK


def base_of(url: str) -> str:
    """Check and clean a server's base URL; raises ConfigurationError."""
    try:
        parts = urlsplit(url.strip())
        scheme, host, _ = origin(parts)
    except ValueError as error:
        raise ConfigurationError("the FHIR server's address is not a URL") from error
    if scheme not in _PORTS or not host:
        raise ConfigurationError("the FHIR server's address must start with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("the FHIR server's address must not hold a user name or password")
    if parts.query or parts.fragment:
        raise ConfigurationError("the FHIR server's address must have no query and no fragment")
    return f"{scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def inside(base: str, url: str) -> bool:
    """Whether a URL has the base's origin and lies at or below its path.

    Refuses what two parsers may read differently: user names, backslashes, dot segments,
    control characters.
    """
    if re.search(r"[\x00-\x20\\\x7f]", url):
        return False
    try:
        target, root = urlsplit(url), urlsplit(base)
        if origin(target) != origin(root):
            return False
    except ValueError:
        return False
    if target.username is not None or target.password is not None:
        return False
    path = target.path.rstrip("/")
    # Twice, since a proxy in front of the server may decode once more.
    if any(part in (".", "..") for part in re.split(r"[/\\]", unquote(unquote(path)))):
        return False
    below = root.path.rstrip("/")
    return path == below or path.startswith(below + "/")


def retry_after(value: str | None, now: datetime, ceiling: float) -> float | None:
    """Read a Retry-After header (seconds or HTTP-date) as seconds between 0 and a ceiling.

    None if there is none or it can't be read. Source: RFC 9110 section 10.2.3.
    """
    if value is None:
        return None
    value = value.strip()
    if number := re.fullmatch(r"([+-]?)([0-9]+)(?:\.[0-9]*)?", value):
        if number[1] == "-":
            return 0.0
        # Counting digits first spares converting an absurdly long number.
        digits = number[2].lstrip("0")
        return ceiling if len(digits) > _MOST_DIGITS else min(float(digits or 0), ceiling)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - now).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), ceiling)


class Circuit:
    """Lets requests through while the server lives; after repeated failures fails fast.

    Once the pause is over one request is let through as a probe.
    """

    def __init__(
        self,
        failures: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        what: str = "the FHIR server",
    ) -> None:
        self._what = what
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0

    def enter(self) -> None:
        """Raise SourceError while the server counts as dead."""
        with self._lock:
            if self._failures < self._limit:
                return
            now = self._clock()
            if now < self._closed_until:
                raise SourceError(f"{self._what} failed repeatedly and is not asked for a while")
            self._closed_until = now + self._seconds

    def success(self) -> None:
        """Note that the server answered."""
        with self._lock:
            self._failures = 0

    def failure(self) -> None:
        """Note that a request was given up."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._limit:
                self._closed_until = self._clock() + self._seconds


class Transport:
    """Sends requests with time limits and retries; shared by threads, holds connections."""

    def __init__(self, limits: Limits, *, what: str = "the FHIR server") -> None:
        self.limits = limits
        self._what = what
        self._circuit = Circuit(limits.circuit_failures, limits.circuit_seconds, what=what)
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=max(32, limits.parallel))
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._session.headers.clear()

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        form: str | None = None,
        deadline: float,
    ) -> Reply:
        """Send one request whose body may be sent more than once; see ``send``."""
        body = None if form is None else lambda: form
        return self.send(Outgoing(method, url, headers, body), deadline)

    def send(self, request: Outgoing, deadline: float) -> Reply:
        """Send one request and read its whole reply; retries what may pass.

        Redirects are given back, not followed. Raises SourceError, SourceTimeout, TooLarge,
        Cut.
        """
        self._circuit.enter()
        attempts = request.attempts or self.limits.attempts
        attempt = 0
        while True:
            attempt += 1
            outcome: Reply | SourceError
            try:
                outcome = self._once(request, deadline)
            except TooLarge:
                self._circuit.success()
                raise
            except SourceError as error:
                outcome = error
            if isinstance(outcome, Reply) and outcome.status not in RETRIED:
                self._circuit.success()
                return outcome
            wait = self._wait(attempt, outcome)
            if attempt >= attempts or time.monotonic() + wait >= deadline:
                return self._give_up(outcome)
            time.sleep(wait)

    def _give_up(self, outcome: Reply | SourceError) -> Reply:
        if isinstance(outcome, SourceError):
            self._circuit.failure()
            raise outcome
        if outcome.status in _DEAD:
            self._circuit.failure()
        else:
            self._circuit.success()
        return outcome

    def _wait(self, attempt: int, outcome: Reply | SourceError) -> float:
        limits = self.limits
        if isinstance(outcome, Reply):
            asked = retry_after(
                outcome.headers.get("Retry-After"), datetime.now(UTC), limits.retry_after
            )
            if asked is not None:
                return asked
        # Jitter: parallel searches that failed together must not return together.
        spread = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
        return spread * min(limits.backoff * 2.0 ** (attempt - 1), limits.backoff_ceiling)

    def download(
        self, request: Outgoing, take: Callable[[bytes], object], deadline: float
    ) -> Reply:
        """Send one request once; hand on what it brings, piece by piece, as it was sent.

        The pieces may be gzip. Only status 200 brings any; of other replies the body is in
        the reply, as usual. ``take`` must not raise OSError, which would read as the
        network's. Raises SourceError, SourceTimeout, Cut.
        """

        def read(response: requests.Response, deadline: float) -> bytes:
            if response.status_code != HTTPStatus.OK:
                return self._body(response, deadline)
            while chunk := response.raw.read1(_CHUNK, decode_content=False):
                if time.monotonic() > deadline:
                    raise SourceTimeout(f"{self._what} did not finish a file in the time allowed")
                take(chunk)
            return b""

        return self._exchange(request, deadline, read)

    def _once(self, request: Outgoing, deadline: float) -> Reply:
        return self._exchange(request, deadline, self._body)

    def _exchange(
        self,
        request: Outgoing,
        deadline: float,
        read: Callable[[requests.Response, float], bytes],
    ) -> Reply:
        left = deadline - time.monotonic()
        if left <= 0:
            raise SourceTimeout(f"{self._what} did not answer in the time allowed")
        limits = self.limits
        try:
            response = self._session.request(
                request.method,
                request.url,
                headers={
                    "User-Agent": f"trial-eligibility/{__version__}",
                    "Accept-Encoding": "gzip",
                    **request.headers,
                },
                data=request.form() if request.form else None,
                stream=True,
                allow_redirects=False,
                auth=_as_given,
                timeout=(min(limits.connect, left), min(limits.read, left)),
            )
            with closing(response):
                body = read(response, deadline)
                return Reply(response.status_code, response.headers, body, request.url)
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError) as error:
            raise SourceTimeout(f"{self._what} did not answer in time") from error
        except (urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError) as error:
            raise Cut(f"{self._what}'s reply broke off or is damaged") from error
        except _NETWORK_ERRORS as error:
            raise SourceError(
                f"{self._what} could not be reached ({type(error).__name__})"
            ) from error

    def _body(self, response: requests.Response, deadline: float) -> bytes:
        # read1 gives back what one network read brings, so that a server that drips bytes
        # can't hold the thread beyond the deadline.
        chunks: list[bytes] = []
        size = 0
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            size += len(chunk)
            if size > self.limits.body:
                raise TooLarge(f"{self._what}'s reply is larger than {self.limits.body} bytes")
            if time.monotonic() > deadline:
                raise SourceTimeout(f"{self._what} did not finish its reply in the time allowed")
            chunks.append(chunk)
        return b"".join(chunks)


def _as_given(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave a request as it is: given as `auth` it keeps credentials of a netrc file out."""
    return request


class Client:
    """Requests to one server: its origin only, with its token, redirects checked."""

    def __init__(
        self,
        base_url: str,
        auth: Auth,
        transport: Transport,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.base_url = base_of(base_url)
        self._auth = auth
        self._transport = transport
        self._headers = {
            "Accept": "application/fhir+json, application/json;q=0.9",
            **(headers or {}),
        }
        self._sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def sent(self) -> Counter[str]:
        """Count the requests so far by what lies first below the base: mostly a type."""
        with self._lock:
            return self._sent.copy()

    def _count(self, url: str) -> None:
        below = urlsplit(url).path[len(urlsplit(self.base_url).path) :].strip("/")
        with self._lock:
            self._sent[below.partition("/")[0]] += 1

    @property
    def limits(self) -> Limits:
        """The limits that hold for this server."""
        return self._transport.limits

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def get(self, url: str, *, deadline: float, attempts: int | None = None) -> Reply:
        """GET a URL below the base; raises SourceError, also for a URL elsewhere."""
        return self._send(Outgoing("GET", url, attempts=attempts), deadline)

    def post_form(self, url: str, form: str, *, deadline: float) -> Reply:
        """POST a form to a URL below the base (`_search`); raises SourceError."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._send(Outgoing("POST", url, kind, lambda: form), deadline)

    def send(self, request: Outgoing, deadline: float) -> Reply:
        """Send any request to a URL below the base; raises SourceError."""
        return self._send(request, deadline)

    def write(self, request: Outgoing, deadline: float) -> Reply:
        """Send a request that changes something below the base; raises SourceError.

        A redirect is given back: following it might turn the change into a mere GET.
        """
        if not inside(self.base_url, request.url):
            raise SourceError("this address is not on the FHIR server, so nothing is written there")
        return self._authorised(request, deadline)

    def _send(self, request: Outgoing, deadline: float) -> Reply:
        for _ in range(self.limits.redirects + 1):
            if not inside(self.base_url, request.url):
                raise SourceError("the FHIR server points to another address, which is not asked")
            self._count(request.url)
            reply = self._authorised(request, deadline)
            location = reply.headers.get("Location")
            if reply.status not in _REDIRECTS or not location:
                return reply
            request = replace(request, url=urljoin(request.url, location))
            if reply.status in _TO_GET:
                request = replace(request, method="GET", form=None, headers={})
        raise SourceError("the FHIR server redirects without end")

    def _authorised(self, request: Outgoing, deadline: float) -> Reply:
        token = self._auth.token(deadline)
        reply = self._transport.send(self._with(request, token), deadline)
        if reply.status != HTTPStatus.UNAUTHORIZED or token is None:
            return reply
        # A token may expire between two pages: renew it and replay the request, once.
        renewed = self._auth.renew(token, deadline)
        if renewed is None:
            return reply
        return self._transport.send(self._with(request, renewed), deadline)

    def _with(self, request: Outgoing, token: str | None) -> Outgoing:
        headers = {**self._headers, **request.headers}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return replace(request, headers=headers)

    def hides(self, text: str) -> bool:
        """Whether a text of the server's holds the token, so that it must not be repeated."""
        try:
            token = self._auth.token(time.monotonic())
        except SourceError:
            return False
        return token is not None and token in text
