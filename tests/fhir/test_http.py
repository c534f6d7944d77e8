"""Waiting, failing fast, and which addresses are asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import responses
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ConfigurationError, SourceError, SourceTimeout
from service.fhir.auth import BearerToken
from service.fhir.http import (
    Circuit,
    Client,
    Cut,
    Limits,
    Outgoing,
    TooLarge,
    Transport,
    base_of,
    inside,
    retry_after,
)
from tests.faults import (
    QUICK,
    FaultyServer,
    bomb,
    broken_gzip,
    cut,
    cut_chunked,
    drip,
    faulty_server,
    reset,
    silent,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
BASE = "https://fhir.example.org/r4"


# Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.0),
        ("86400", 30.0),
        ("9" * 5000, 30.0),
        ("-5", 0.0),
        (format_datetime(NOW + timedelta(seconds=9), usegmt=True), 9.0),
        (format_datetime(NOW + timedelta(days=900), usegmt=True), 30.0),
        (format_datetime(NOW - timedelta(days=900), usegmt=True), 0.0),
        ("Sun, 22 Nov 2026 13:00:05 +0100", 0.0 + 5.0),
        ("Sunday, 22-Nov-26 12:00:04 GMT", 4.0),
        ("soon", None),
        ("", None),
        ("Sun, 99 Nov 2026 12:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_bounded(
    value: str | None, seconds: float | None
) -> None:
    assert retry_after(value, NOW, 30.0) == seconds


@given(st.one_of(st.text(max_size=40), st.integers().map(str), st.datetimes().map(str)))
def test_no_retry_after_can_make_us_wait_longer_than_the_ceiling(value: str) -> None:
    found = retry_after(value, NOW, 30.0)
    assert found is None or 0.0 <= found <= 30.0


@given(
    st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2400, 1, 1))  # noqa: DTZ001
)
def test_any_http_date_is_read(moment: datetime) -> None:
    value = format_datetime(moment.replace(tzinfo=UTC, microsecond=0), usegmt=True)
    assert retry_after(value, NOW, 30.0) is not None


# Addresses


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://H.example.org/r4/", "https://h.example.org/r4"),
        ("http://localhost:8080", "http://localhost:8080"),
        (" http://localhost:8080/fhir ", "http://localhost:8080/fhir"),
    ],
)
def test_a_base_address_is_cleaned(given: str, expected: str) -> None:
    assert base_of(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        "", "fhir.example.org", "ftp://x/", "https://", "https://u:secret@x/", "https://x/?a=secret",
        "https://x/#secret", "https://x:port/", "https://x:99999/", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_a_base_address_with_secrets_or_without_sense_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        base_of(given)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        BASE,
        BASE + "/",
        BASE + "?page=2",
        BASE + "/Condition?patient=1",
        "HTTPS://FHIR.example.org:443/r4/x",
    ],
)
def test_addresses_below_the_base_are_asked(url: str) -> None:
    assert inside(BASE, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://fhir.example.org/r4/x",
        "https://fhir.example.org:8443/r4/x",
        "https://fhir.example.org.evil.test/r4/x",
        "https://evil.test/r4/x",
        "https://fhir.example.org/r4x",
        "https://fhir.example.org/other",
        "https://fhir.example.org/r4/../admin",
        "https://fhir.example.org/r4/%2e%2e/admin",
        "https://fhir.example.org/r4/%252e%252e/admin",
        "https://fhir.example.org/r4/..%2fadmin",
        "https://fhir.example.org/r4/..%5cadmin",
        "https://fhir.example.org@evil.test/r4/x",
        "https://me@fhir.example.org/r4/x",
        "https://evil.test\\@fhir.example.org/r4/x",
        "https://fhir.example.org:443:443/r4/x",
        "https://[fhir.example.org/r4/x",
        "https://fhir.example.org/r4/x\n",
        "//fhir.example.org/r4/x",
        "/r4/x",
        "",
    ],
)
def test_all_other_addresses_are_not_asked(url: str) -> None:
    assert not inside(BASE, url)


@given(st.text(alphabet="htps:/.@\\%2ef#?evil-r4x ", max_size=40))
def test_whatever_counts_as_inside_has_the_origin_of_the_base(rest: str) -> None:
    url = "https://fhir.example.org" + rest
    if inside(BASE, url):
        assert url.removeprefix("https://fhir.example.org").startswith("/r4")


# The circuit


def test_the_circuit_fails_fast_after_repeated_failures_and_probes_later() -> None:
    now = [0.0]
    circuit = Circuit(2, 30.0, lambda: now[0])
    for _ in range(2):
        circuit.enter()
        circuit.failure()
    with pytest.raises(SourceError, match="not asked for a while"):
        circuit.enter()
    now[0] = 31.0
    circuit.enter()  # the probe
    with pytest.raises(SourceError):
        circuit.enter()
    circuit.success()
    circuit.enter()


def test_a_success_in_between_keeps_the_circuit_closed() -> None:
    circuit = Circuit(2, 30.0)
    for _ in range(5):
        circuit.failure()
        circuit.success()
        circuit.enter()


def test_limits_without_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="attempts"):
        Limits(attempts=0)


# What a server may do


def soon() -> float:
    return time.monotonic() + 5


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    with faulty_server() as server:
        yield server


@pytest.fixture
def transport() -> Iterator[Callable[[Limits], Transport]]:
    made: list[Transport] = []

    def make(limits: Limits = QUICK) -> Transport:
        made.append(Transport(limits))
        return made[-1]

    yield make
    for found in made:
        found.close()


@pytest.mark.parametrize("fault", [reset, cut, cut_chunked, silent, broken_gzip])
def test_what_fails_once_is_asked_again(
    faulty: FaultyServer,
    transport: Callable[..., Transport],
    fault: Callable[[object], None],
) -> None:
    faulty.fail("/Condition", fault, times=1)
    reply = transport().send(Outgoing("GET", faulty.base + "/Condition"), soon())
    assert reply.status == 200
    assert faulty.seen == ["/Condition", "/Condition"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (reset, SourceError),
        (cut, Cut),
        (cut_chunked, Cut),
        (silent, SourceTimeout),
        (broken_gzip, Cut),
    ],
)
def test_what_fails_always_is_given_up(
    faulty: FaultyServer,
    transport: Callable[..., Transport],
    fault: Callable[[object], None],
    error: type[SourceError],
) -> None:
    faulty.fail("/Condition", fault)
    with pytest.raises(error):
        transport().send(Outgoing("GET", faulty.base + "/Condition"), soon())
    assert len(faulty.seen) == QUICK.attempts


def test_a_body_that_drips_ends_with_the_time_allowed(
    faulty: FaultyServer, transport: Callable[..., Transport]
) -> None:
    faulty.fail("/Condition", drip)
    started = time.monotonic()
    with pytest.raises(SourceTimeout):
        transport().send(Outgoing("GET", faulty.base + "/Condition"), started + 0.3)
    assert time.monotonic() - started < 1.0


def test_a_body_that_unpacks_beyond_the_limit_is_not_read_on(
    faulty: FaultyServer, transport: Callable[..., Transport]
) -> None:
    faulty.fail("/Condition", bomb)
    with pytest.raises(TooLarge):
        transport(Limits(body=100_000)).send(Outgoing("GET", faulty.base + "/Condition"), soon())


def test_a_gzipped_body_is_unpacked(
    faulty: FaultyServer, transport: Callable[..., Transport]
) -> None:
    faulty.fail("/Condition", lambda h: h.reply(200, "x", {"Content-Encoding": "gzip"}))
    reply = transport().send(Outgoing("GET", faulty.base + "/Condition"), soon())
    assert reply.body == b'"x"'


def test_a_dead_server_is_soon_not_asked_any_more(transport: Callable[..., Transport]) -> None:
    found = transport(Limits(attempts=1, circuit_failures=2, connect=0.5))
    with faulty_server() as server:
        dead = server.base
    for _ in range(2):
        with pytest.raises(SourceError, match="could not be reached"):
            found.send(Outgoing("GET", dead + "/metadata"), soon())
    with pytest.raises(SourceError, match="not asked for a while"):
        found.send(Outgoing("GET", dead + "/metadata"), soon())


def test_connections_are_used_again(
    faulty: FaultyServer, transport: Callable[..., Transport]
) -> None:
    found = transport()
    ports: set[int] = set()
    faulty.fail("/Condition", lambda h: (ports.add(h.client_address[1]), h.reply(200, {}))[1])
    for _ in range(5):
        found.send(Outgoing("GET", faulty.base + "/Condition"), soon())
    assert len(ports) == 1


@pytest.fixture
def web() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        yield mocked


@pytest.fixture
def client() -> Iterator[Client]:
    found = Client(BASE, BearerToken("tok3n"), Transport(QUICK))
    yield found
    found.close()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("wait", ["0", "-1", "999999999", "Sun, 22 Nov 2099 00:00:00 GMT", "x"])
def test_passing_failures_are_asked_again_whatever_retry_after_says(
    web: responses.RequestsMock, client: Client, status: int, wait: str
) -> None:
    web.get(BASE + "/x", status=status, headers={"Retry-After": wait})
    web.get(BASE + "/x", json={})
    assert client.get(BASE + "/x", deadline=soon()).status == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 501])
def test_other_failures_are_not_asked_again(
    web: responses.RequestsMock, client: Client, status: int
) -> None:
    web.get(BASE + "/x", status=status)
    assert client.get(BASE + "/x", deadline=soon()).status == status
    assert len(web.calls) == 1


def test_a_wait_beyond_the_time_allowed_is_not_begun(web: responses.RequestsMock) -> None:
    web.get(BASE + "/x", status=429, headers={"Retry-After": "20"})
    client = Client(BASE, BearerToken("t"), Transport(Limits()))
    started = time.monotonic()
    assert client.get(BASE + "/x", deadline=started + 5).status == 429
    assert time.monotonic() - started < 1
    client.close()


def test_redirects_within_the_server_are_followed_with_the_token(
    web: responses.RequestsMock, client: Client
) -> None:
    web.get(BASE + "/x", status=307, headers={"Location": "/r4/y"})
    web.get(BASE + "/y", json={})
    assert client.get(BASE + "/x", deadline=soon()).url == BASE + "/y"
    assert web.calls[1].request.headers["Authorization"] == "Bearer tok3n"


@pytest.mark.parametrize(
    "location",
    ["https://evil.test/r4/y", "http://fhir.example.org/r4/y", "//evil.test/r4", "/admin"],
)
def test_redirects_to_another_address_are_not_followed(
    web: responses.RequestsMock, client: Client, location: str
) -> None:
    web.get(BASE + "/x", status=302, headers={"Location": location})
    with pytest.raises(SourceError, match="another address"):
        client.get(BASE + "/x", deadline=soon())
    assert len(web.calls) == 1


def test_redirects_without_end_are_given_up(web: responses.RequestsMock, client: Client) -> None:
    web.get(BASE + "/x", status=302, headers={"Location": "/r4/x"})
    with pytest.raises(SourceError, match="without end"):
        client.get(BASE + "/x", deadline=soon())


def test_a_search_by_post_keeps_its_form_on_307_and_loses_it_on_303(
    web: responses.RequestsMock, client: Client
) -> None:
    web.post(BASE + "/a", status=307, headers={"Location": "/r4/b"})
    web.post(BASE + "/b", status=303, headers={"Location": "/r4/c"})
    web.get(BASE + "/c", json={})
    assert client.post_form(BASE + "/a", "patient=1", deadline=soon()).status == 200
    assert [call.request.body for call in web.calls] == ["patient=1", "patient=1", None]


def test_credentials_of_a_netrc_file_are_never_sent(
    web: responses.RequestsMock,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w", encoding="utf-8") as file:  # noqa: PTH123 - any path will do
        file.write("machine fhir.example.org login me password secret\n")
    monkeypatch.setenv("NETRC", netrc)
    web.get(BASE + "/x", json={})
    client.get(BASE + "/x", deadline=soon())
    assert web.calls[0].request.headers["Authorization"] == "Bearer tok3n"


def test_errors_tell_neither_the_address_nor_the_token(client: Client) -> None:
    with responses.RequestsMock(), pytest.raises(SourceError) as error:
        client.get(BASE + "/Patient/secret-id", deadline=soon())
    assert "secret-id" not in str(error.value)
    assert "tok3n" not in str(error.value)
