"""Runs of lines taken at once are understood as lines gone through one by one, however odd."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.nightly import directory
from service.nightly.directory import Reader, listing, units_of
from service.nightly.partition import Route, RouteLine, kept_of
from service.nightly.population import (
    Named,
    Population,
    Scan,
    ScanLine,
    interest_of,
    is_plain,
    resolve,
)
from tests.nightly.making import TRIAL, screening

INSIDE, OUTSIDE = "Patient/in", "Patient/out"
NAMES = [
    INSIDE,
    OUTSIDE,
    "Patient/other",
    "Patient/in/_history/3",
    "https://fhir.example.org/r4/Patient/in",
    "https://fhir.example.org/r4/Patient/out",
    "urn:uuid:5",
    "Group/1",
    "#in",
    "",
    "Patient/",
    "Patient/in\\nPatient/out",
    "x\\nPatient/out/Patient/other",
    "\\u0050atient/in",
    "Patient\\/in",
    "Patient/o\\u0075t",
]
REFERENCES = [
    *(f'{{"reference":"{name}"}}' for name in NAMES),
    '{"reference" : "Patient/in" , "display":"A"}',
    '{"reference":"Patient/out","reference":"Patient/in"}',
    '{"reference":null}',
    '{"identifier":{"system":"urn:mrn","value":"7"}}',
    "{}",
    "null",
]
BAD_REFERENCES = ['{"reference":5}', '{"identifier":5}', '"Patient/in"', "[]"]
TYPES = ["Observation", "Condition", "Patient", "AllergyIntolerance", "Encounter", "Medication"]
CODES = [
    '{"coding":[{"system":"http://hl7.org/fhir/sid/icd-10-cm","code":"C91.02"}]}',
    '{"coding":[{"system":"http://hl7.org/fhir/sid/icd-10-cm","code":"I10"}]}',
    '{"text":"acute lymphoblastic leukemia"}',
    '{"text":5}',
    "null",
    "{}",
]
OTHER_FIELDS = [
    *(f'"id":"{key}"' for key in ("in", "out", "i\\u006e", "in\\nx")),
    '"note":"\\"subject\\":{\\"reference\\":\\"Patient/in\\"}"',
    '"text":{"div":"<div>{}\\n{}</div>"}',
    '"contained":[{"resourceType":"Patient","id":"in","subject":{"reference":"Patient/in"}}]',
    '"extension":[{"url":"x","valueReference":{"reference":"Patient/in"}}]',
    '"value":1e400,"more":[[[]],{"resourceType":"Bundle"}]',
    '"deep":' + "[" * 40 + "]" * 40,
    '"identifier":[{"system":"urn:mrn","value":"7"}]',
    '"link":[{"other":{"reference":"Patient/out"},"type":"replaced-by"}]',
    '"link":7',
]
BAD_FIELDS = ['"id":5', '"deeper":' + "[" * 3000 + "]" * 3000]
Change = Callable[[bytes], bytes]
HARMLESS: list[Change] = [
    lambda line: b" \t" + line + b" \r",
    lambda line: line + b"\r",
    lambda line: line.replace(b"Patient", b"Pati\xffent"),
    lambda line: line.replace(b"}", b',"pad":"' + b"y" * 3000 + b'"}', 1),
]
HARMFUL: list[Change] = [
    lambda line: line[: len(line) // 2],
    lambda line: line + line,
    lambda line: line + b" x",
    lambda line: line + b"\x00",
    lambda line: b"\xef\xbb\xbf" + line,
    lambda line: line.replace(b",", b",\n", 1),
    lambda line: b"[" + line + b"]",
    lambda line: b"",
    lambda line: b"  ",
]


def fields_of(kind: str, *, bad: bool) -> st.SearchStrategy[str]:
    """Draw the fields of a resource, whose type is the one given or, if ``bad``, any."""
    kinds = st.sampled_from([kind] * 12 + TYPES) if bad else st.just(kind)
    first = kinds.map(lambda each: f'"resourceType":"{each}"')
    escaped = kinds.map(lambda each: f'"resourc\\u0065Type":"\\u{ord(each[0]):04x}{each[1:]}"')
    typed = st.one_of(first, first, first, escaped)
    named = st.sampled_from(["subject"] * 6 + ["patient", "individual", "subj\\u0065ct"])
    references = st.sampled_from(REFERENCES + BAD_REFERENCES * bad)
    whose = st.builds('"{}":{}'.format, named, references)
    usual = st.sampled_from([INSIDE, OUTSIDE, OUTSIDE]).map('"subject":{{"reference":"{}"}}'.format)
    code = st.sampled_from(CODES).map('"code":{}'.format)
    other = st.sampled_from(OTHER_FIELDS + BAD_FIELDS * bad)
    more = st.lists(st.one_of(usual, usual, whose, code, other, typed), max_size=5)
    fields = st.builds(lambda head, tail: [head, *tail], typed, more)
    shuffled = fields.flatmap(st.permutations)
    untyped = [more] * bad
    return st.one_of(fields, fields, shuffled, *untyped).map(",".join)


def lines_of(kind: str, *, bad: bool) -> st.SearchStrategy[list[bytes]]:
    """Draw lines that all can be decoded, or, if ``bad``, some that can't."""
    whole = fields_of(kind, bad=bad).map(lambda fields: b"{" + fields.encode() + b"}")
    changes = st.sampled_from(HARMLESS + HARMFUL * bad)
    changed = st.builds(lambda line, change: change(line), whole, changes)
    return st.lists(st.one_of(whole, whole, whole, whole, changed), max_size=12)


FILES = st.tuples(st.sampled_from(TYPES), st.sampled_from([False, False, True])).flatmap(
    lambda drawn: lines_of(drawn[0], bad=drawn[1])
)
NAMED_OTHERWISE = b'{"resourceType":"Patient","id":"in","subject":{"reference":"Patient/out"}}'


class CarefulRoute(Route):
    """Goes through every line by itself."""

    def _run(self, raw: bytes, end: int, line: int) -> int:
        return careful(self, raw, end, line)


class CarefulScan(Scan):
    """Goes through every line by itself."""

    def _run(self, raw: bytes, end: int, line: int) -> int:
        return careful(self, raw, end, line)


def careful(reader: Reader[Any], raw: bytes, end: int, line: int) -> int:
    """Take lines one by one, as those are in which anything is amiss."""
    lines = raw[:end].split(b"\n")
    for number, text in enumerate(lines, line):
        reader.any_line(text, number)
    return len(lines) - (not lines[-1])


def population() -> Population:
    """Give one patient, known by several names."""
    named = [Named("Patient/in", None, ("urn:mrn|7",), ()), Named("Patient/out", None, (), ())]
    scanned = Scan(Path(), [], frozenset(), interest_of((), screening().terms)).scanned()
    scanned.named = ["Patient/in"]
    scanned.bases = ["https://fhir.example.org/r4"]
    return resolve([scanned], lambda: iter(named), spoken_of_all=True)


def read(make: Callable[[Path], Reader[Any]], raw: bytes, chunk: int) -> Reader[Any]:
    """Read one file with a reader."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "CHUNK", chunk)
        root = Path(folder)
        (root / "Observation.ndjson").write_bytes(raw)
        reader = make(root)
        for unit in units_of(listing(root)):
            reader.read(unit)
    return reader


def routed(kind: type[Route], raw: bytes, chunk: int) -> dict[str, Any]:
    """Tell all that the second pass makes of a file, but for the count of bytes."""
    people = population()

    def make(root: Path) -> Route:
        return kind(root, listing(root), frozenset(), people, 4, frozenset((0,)), frozenset())

    route = read(make, raw, chunk)
    assert isinstance(route, Route)
    found, parts = route.routed()
    return {
        "kept": [each for part in parts for each in kept_of(bytes(part))],
        "types": {
            name: (each.lines, each.read, {why: n for why, n in each.skipped.items() if n})
            for name, each in found.types.items()
        },
        "lines": found.lines,
        "holds": found.holds,
        "lost": found.lost,
        "refers": found.refers,
        "replies": set(found.replies),
    }


def scanned(kind: type[Scan], raw: bytes, chunk: int) -> dict[str, Any]:
    """Tell all that the first pass makes of a file."""
    interest = interest_of((screening().trial(TRIAL),), screening().terms)
    scan = read(lambda root: kind(root, listing(root), frozenset(), interest), raw, chunk)
    assert isinstance(scan, Scan)
    found = scan.scanned()
    found.bytes = 0
    return {"scanned": found, "patients": scan.patients}


@settings(max_examples=300, deadline=None)
@given(FILES, st.sampled_from([700, 5000, 200_000]))
@example([NAMED_OTHERWISE], 5000)
def test_the_second_pass_takes_runs_as_it_takes_single_lines(
    lines: list[bytes], chunk: int
) -> None:
    raw = b"".join(line + b"\n" for line in lines)
    assert routed(Route, raw, chunk) == routed(CarefulRoute, raw, chunk)


@settings(max_examples=250, deadline=None)
@given(FILES, st.sampled_from([700, 5000, 200_000]))
def test_the_first_pass_takes_runs_as_it_takes_single_lines(lines: list[bytes], chunk: int) -> None:
    raw = b"".join(line + b"\n" for line in lines)
    assert scanned(Scan, raw, chunk) == scanned(CarefulScan, raw, chunk)


@given(st.sets(st.one_of(st.none(), st.sampled_from(NAMES), st.text("Patien/\nx1"))))
def test_strangers_are_only_those_who_surely_are(names: set[str | None]) -> None:
    people = population()
    sure = all(
        name is not None and name not in people.owners and is_plain(name) and "\n" not in name
        for name in names
    )
    assert people.has_none_of(names) == sure


@pytest.mark.parametrize("line_type", [RouteLine, ScanLine])
def test_a_decoder_of_one_type_refuses_the_others(line_type: type[Any]) -> None:
    decode = directory.of_one_type(line_type, "Observation")
    for text in ('"Observation"', '"Obs\\u0065rvation"'):
        assert decode(b'{"resourceType":%s}' % text.encode()).resource_type == "Observation"
    for text in ('"Patient"', '"Observations"', "null", "5", '"Observation","resourceType":"X"'):
        with pytest.raises(directory.msgspec.DecodeError):
            decode(b'{"resourceType":%s}' % text.encode())
    with pytest.raises(directory.msgspec.DecodeError):
        decode(b'{"id":"x"}')
