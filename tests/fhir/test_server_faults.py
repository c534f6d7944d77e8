"""A server that breaks connections: whatever it does to a search, the record is still given."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from service.errors import SourceError
from service.fhir.http import Limits
from service.fhir.server import ServerSource
from service.fhir.source import Wanted
from tests.faults import (
    QUICK,
    FaultyServer,
    bomb,
    broken_gzip,
    bundle,
    capability,
    condition,
    cut,
    cut_chunked,
    drip,
    faulty_server,
    reset,
    silent,
)

CONDITIONS = Wanted({"Condition": None})
FAULTS = [reset, cut, cut_chunked, drip, silent, bomb, broken_gzip]


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    with faulty_server() as server:
        yield server


@pytest.fixture
def source(faulty: FaultyServer) -> Iterator[Callable[..., ServerSource]]:
    made: list[ServerSource] = []

    def make(limits: Limits = QUICK) -> ServerSource:
        made.append(ServerSource(faulty.base, limits=limits))
        return made[-1]

    yield make
    for found in made:
        found.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_search_that_breaks_leaves_its_type_incomplete(
    faulty: FaultyServer, source: Callable[..., ServerSource], fault: Callable[[object], None]
) -> None:
    faulty.fail("/Condition", fault)
    limits = replace(QUICK, read=0.2, fetch=1.5, attempts=2, body=1_000_000)
    fetched = source(limits).fetch("p1", CONDITIONS)
    assert not fetched.readings["Condition"].complete
    assert len(fetched.items) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_later_page_that_breaks_keeps_the_first(
    faulty: FaultyServer, source: Callable[..., ServerSource], fault: Callable[[object], None]
) -> None:
    faulty.answers["/Condition"] = bundle(condition("c1"), following=faulty.base + "/page2")
    faulty.answers["/page2"] = bundle(condition("c2"))
    faulty.fail("/page2", fault)
    limits = replace(QUICK, read=0.2, fetch=1.5, attempts=2, body=1_000_000)
    fetched = source(limits).fetch("p1", CONDITIONS)
    assert not fetched.readings["Condition"].complete
    assert [json.loads(item.raw)["id"] for item in fetched.items] == ["p1", "c1"]


@pytest.mark.parametrize("fault", [reset, cut, cut_chunked, silent, broken_gzip])
@pytest.mark.parametrize("path", ["/metadata", "/Patient/p1", "/Condition"])
def test_a_fault_that_passes_is_not_noticed(
    faulty: FaultyServer,
    source: Callable[..., ServerSource],
    path: str,
    fault: Callable[[object], None],
) -> None:
    faulty.fail(path, fault, times=1)
    fetched = source(replace(QUICK, read=0.2)).fetch("p1", CONDITIONS)
    assert fetched.readings["Condition"].complete
    assert len(fetched.items) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_patient_that_cannot_be_read_is_an_error(
    faulty: FaultyServer, source: Callable[..., ServerSource], fault: Callable[[object], None]
) -> None:
    faulty.fail("/Patient/p1", fault)
    limits = replace(QUICK, read=0.2, fetch=1.5, attempts=2, body=1_000_000)
    with pytest.raises(SourceError) as error:
        source(limits).fetch("p1", CONDITIONS)
    assert error.value.status in (502, 504)
    assert "p1" not in str(error.value)


def test_a_slow_server_cannot_hold_a_fetch_beyond_its_time(
    faulty: FaultyServer, source: Callable[..., ServerSource]
) -> None:
    types = [f"Type{number}" for number in range(12)]
    faulty.answers["/metadata"] = capability({kind: ["patient"] for kind in types})
    for kind in types:
        faulty.fail(f"/{kind}", drip)
    started = time.monotonic()
    fetched = source(replace(QUICK, fetch=1.0)).fetch("p1", Wanted(dict.fromkeys(types)))
    assert time.monotonic() - started < 2.5
    assert not any(reading.complete for reading in fetched.readings.values())


def test_searches_run_in_parallel_up_to_the_limit(
    faulty: FaultyServer, source: Callable[..., ServerSource]
) -> None:
    types = [f"Type{number}" for number in range(9)]
    faulty.answers["/metadata"] = capability({kind: ["patient"] for kind in types})
    running: list[int] = [0, 0]

    def slow(handler: object) -> None:
        running[0] += 1
        running[1] = max(running[1], running[0])
        time.sleep(0.05)
        running[0] -= 1
        handler.reply(200, bundle())  # type: ignore[attr-defined]

    for kind in types:
        faulty.fail(f"/{kind}", slow)
    fetched = source(replace(QUICK, parallel=3)).fetch("p1", Wanted(dict.fromkeys(types)))
    assert all(reading.complete for reading in fetched.readings.values())
    assert running[1] == 3
